use std::{fs::OpenOptions, io::Write, path::PathBuf, time::Duration};

use futures::{StreamExt, TryStreamExt};
use proptest::prelude::*;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;

struct Log {
    directory: tempfile::TempDir,
    ended: CancellationToken,
}

impl Log {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), ended: CancellationToken::new() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("0.log")
    }

    fn source(&self) -> LogSource {
        LogSource { path: self.path(), ended: self.ended.clone() }
    }

    fn write(&self, text: &str) {
        let mut file = OpenOptions::new().append(true).create(true).open(self.path()).unwrap();
        for line in text.split_inclusive('\n') {
            write!(file, "2026-11-24T10:00:00Z stdout F {line}").unwrap();
        }
    }

    async fn read(&self, options: LogOptions) -> String {
        let pieces = open(self.source(), options).await.unwrap();
        let all = pieces.try_fold(Vec::new(), |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        });
        String::from_utf8(limited(all).await.unwrap()).unwrap()
    }
}

/// A test that hangs must fail here, by name, not in the runner's limit.
async fn limited<F: Future>(work: F) -> F::Output {
    timeout(Duration::from_secs(30), work).await.expect("the reader goes on")
}

#[tokio::test]
async fn the_whole_file_is_read_without_options() {
    let log = Log::new();
    log.write("a\nb\nc\n");
    assert_eq!(log.read(LogOptions::default()).await, "a\nb\nc\n");
}

#[tokio::test]
async fn tail_counts_lines_from_the_end() {
    let log = Log::new();
    log.write("a\nb\nc\n");
    for (lines, wanted) in [(0, ""), (1, "c\n"), (2, "b\nc\n"), (9, "a\nb\nc\n")] {
        let options = LogOptions { tail: Some(lines), ..LogOptions::default() };
        assert_eq!(log.read(options).await, wanted, "tail {lines}");
    }
}

#[tokio::test]
async fn following_gives_what_is_written_later_and_ends_with_the_run() {
    let log = Log::new();
    log.write("a\n");
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut pieces = Box::pin(open(log.source(), options).await.unwrap());
    assert_eq!(limited(pieces.next()).await.unwrap().unwrap(), "a\n");
    log.write("b\n");
    assert_eq!(limited(pieces.next()).await.unwrap().unwrap(), "b\n");
    log.write("c\n");
    log.ended.cancel();
    assert_eq!(limited(pieces.next()).await.unwrap().unwrap(), "c\n");
    assert!(limited(pieces.next()).await.is_none());
}

#[tokio::test]
async fn following_survives_rotation() {
    let log = Log::new();
    log.write("a\n");
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut pieces = Box::pin(open(log.source(), options).await.unwrap());
    assert_eq!(limited(pieces.next()).await.unwrap().unwrap(), "a\n");
    log.write("b\n");
    fs::rename(log.path(), log.directory.path().join("0.log.20261124-100000")).unwrap();
    log.write("c\n");
    let mut seen = Vec::new();
    while seen != b"b\nc\n" {
        seen.extend_from_slice(&limited(pieces.next()).await.unwrap().unwrap());
    }
}

#[tokio::test]
async fn a_line_is_given_once_it_is_whole() {
    let log = Log::new();
    log.write("first half ");
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut pieces = Box::pin(open(log.source(), options).await.unwrap());
    let mut file = OpenOptions::new().append(true).open(log.path()).unwrap();
    file.write_all(b"and second\n").unwrap();
    assert_eq!(limited(pieces.next()).await.unwrap().unwrap(), "first half and second\n");
}

#[tokio::test]
async fn a_limit_ends_a_followed_log() {
    let log = Log::new();
    log.write("abcdef\n");
    let options = LogOptions { follow: true, limit_bytes: Some(3), ..LogOptions::default() };
    assert_eq!(log.read(options).await, "abc");
}

#[tokio::test]
async fn a_missing_file_is_an_error() {
    let log = Log::new();
    assert!(open(log.source(), LogOptions::default()).await.is_err());
}

proptest! {
    #[test]
    fn the_tail_is_the_same_as_counting_all_lines(text in "[ab\n]{0,9000}", lines in 0u64..12) {
        let start = tail_start(&mut io::Cursor::new(text.as_bytes()), lines).unwrap();
        let all: Vec<_> = text.split_inclusive('\n').collect();
        let skip = all.len().saturating_sub(usize::try_from(lines).unwrap());
        prop_assert_eq!(&text[usize::try_from(start).unwrap()..], all[skip..].concat());
    }
}
