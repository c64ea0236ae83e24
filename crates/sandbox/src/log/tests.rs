use std::{fs, io::Read, path::Path, sync::mpsc::Receiver};

use super::*;
use crate::news::Wake;

fn id() -> ContainerId {
    ContainerId::from_bytes([7; 32])
}

fn append_to(path: &Path) -> File {
    File::options().create(true).append(true).open(path).unwrap()
}

fn log(directory: &Path, next: &[&str], max: u64) -> (Arc<Log>, Receiver<News>) {
    let (teller, news) = Teller::new(Arc::new(Wake::new().unwrap()));
    let log = Log::new(id(), teller, append_to(&directory.join("0")), None, max).unwrap();
    for name in next {
        assert!(log.hand_next(append_to(&directory.join(name))));
    }
    (Arc::new(log), news)
}

#[tokio::test]
async fn output_goes_on_in_the_next_file_and_lines_stay_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (log, news) = log(directory.path(), &["1", "2"], 200);
    let stream = LogStream::new(Arc::clone(&log), Stream::Stdout);
    for number in 0..9 {
        stream.push(format!("line {number}\n").as_bytes());
        log.flush().await;
    }
    drop(stream);
    log.flush().await;

    let mut all = Vec::new();
    for name in ["0", "1", "2"] {
        let text = fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(text.len() <= 200 && text.ends_with('\n'), "{name}: {text}");
        all.extend(text.lines().map(|line| line.split(' ').skip(3).collect::<Vec<_>>().join(" ")));
    }
    let expected: Vec<_> = (0..9).map(|number| format!("line {number}")).collect();
    assert_eq!(all, expected);
    assert_eq!(news.try_iter().count(), 2, "each new file is told once");
    assert_eq!(log.dropped(), 0);
}

#[test]
fn output_does_not_wait_for_the_files_of_guests() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (log, _news) = log(directory.path(), &[], 1000);
    runtime.block_on(async {
        // As one that a volume holds.
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let held = tokio::task::spawn_blocking(move || ended.recv());
        LogStream::new(Arc::clone(&log), Stream::Stdout).push(b"a line\n");
        log.flush().await;
        assert!(fs::read_to_string(directory.path().join("0")).unwrap().ends_with("a line\n"));
        drop(end);
        held.await.unwrap().unwrap_err();
    });
}

#[tokio::test]
async fn without_a_next_file_output_is_counted_and_thrown_away() {
    let directory = tempfile::tempdir().unwrap();
    let (log, news) = log(directory.path(), &[], 100);
    let stream = LogStream::new(Arc::clone(&log), Stream::Stdout);
    for _ in 0..5 {
        stream.push(b"twenty bytes of text\n");
        log.flush().await;
    }
    let length = fs::metadata(directory.path().join("0")).unwrap().len();
    assert!(length <= 100);
    assert_eq!(length + log.dropped(), 5 * 61, "each byte is in the file or counted");
    assert!(log.hand_next(append_to(&directory.path().join("1"))));
    stream.push(b"again\n");
    log.flush().await;
    assert!(fs::read_to_string(directory.path().join("1")).unwrap().ends_with("again\n"));
    assert!(matches!(news.try_recv().unwrap(), News::LogRotated { .. }));
}

#[tokio::test]
async fn a_line_longer_than_a_file_still_comes_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (log, _news) = log(directory.path(), &["1"], 10);
    LogStream::new(Arc::clone(&log), Stream::Stdout).push(b"first\nsecond\n");
    log.flush().await;
    for (name, text) in [("0", "first\n"), ("1", "second\n")] {
        let found = fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(found.ends_with(text), "{found}");
    }
}

#[tokio::test]
async fn a_line_that_was_begun_ends_with_its_instance() {
    let directory = tempfile::tempdir().unwrap();
    let (log, _news) = log(directory.path(), &[], 1000);
    let stream = LogStream::new(Arc::clone(&log), Stream::Stderr);
    stream.push(b"no end");
    log.flush().await;
    assert_eq!(fs::read(directory.path().join("0")).unwrap(), b"");
    drop(stream.clone());
    drop(stream);
    log.flush().await;
    let text = fs::read_to_string(directory.path().join("0")).unwrap();
    assert!(text.ends_with("stderr F no end\n"), "{text}");
}

#[tokio::test]
async fn a_disk_that_stalls_holds_a_guest_up_once_and_loses_output_after() {
    // A pipe that nobody reads stands for the disk.
    let (mut reader, writer) = io::pipe().unwrap();
    let (teller, _news) = Teller::new(Arc::new(Wake::new().unwrap()));
    let file = File::from(std::os::fd::OwnedFd::from(writer));
    let log = Arc::new(Log::new(id(), teller, file, None, u64::MAX).unwrap());
    let mut stream = LogStream::new(Arc::clone(&log), Stream::Stdout);
    let piece = vec![b'x'; 16 << 10];
    let mut waits = 0;
    for _ in 0..100 {
        use wasmtime_wasi::p2::{OutputStream, Pollable};
        if stream.check_write().unwrap() == 0 {
            stream.ready().await;
            waits += 1;
        }
        stream.push(&piece);
        stream.push(b"\n");
    }
    // In vain once; before that maybe until the first lines were on their way.
    assert!((1..=2).contains(&waits), "{waits}");
    assert!(log.dropped() > 0);

    // The disk moves again, and nothing of what was kept is lost.
    let drained = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; 1 << 16];
        while reader.read(&mut buffer).is_ok_and(|read| read > 0) {}
    });
    while log.room() < QUEUE || lock(&log.queue).stalled {
        log.flush().await;
        stream.push(b"more\n");
    }
    log.flush().await;
    drop((stream, log));
    drained.await.unwrap();
}

#[tokio::test]
async fn a_guest_of_wasi_03_waits_for_room_too() {
    use tokio::io::AsyncWriteExt;
    use wasmtime_wasi::cli::StdoutStream;

    // As above.
    let (mut reader, writer) = io::pipe().unwrap();
    let (teller, _news) = Teller::new(Arc::new(Wake::new().unwrap()));
    let file = File::from(std::os::fd::OwnedFd::from(writer));
    let log = Arc::new(Log::new(id(), teller, file, None, u64::MAX).unwrap());
    let stream = LogStream::new(Arc::clone(&log), Stream::Stdout);
    let mut writer = Box::into_pin(stream.async_stream());
    let lines = "a line\n".repeat(QUEUE);
    let writing = async {
        writer.write_all(lines.as_bytes()).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut most = 0;
    let reading = async {
        loop {
            // What is taken by the disk is not in the queue.
            most = most.max(lock(&log.queue).lines.len());
            if log.dropped() > 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writing, reading);
    assert!(most < QUEUE + 16 * (16 << 10), "{most} bytes wait");
    let drained = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; 1 << 16];
        while reader.read(&mut buffer).is_ok_and(|read| read > 0) {}
    });
    log.flush().await;
    drop((writer, stream, log));
    drained.await.unwrap();
}
