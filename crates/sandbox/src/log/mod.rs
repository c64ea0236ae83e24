//! A container's log: what its guests write goes here, and from here to a file.
//!
//! ```text
//! guest ──write──▶ lines ──▶ queue ──(writers.rs)──▶ file ──full──▶ next file
//! ```
//!
//! A guest never waits on the disk itself. It waits for room in the queue, and
//! not for ever: after [`PATIENCE`] what it writes is thrown away and counted,
//! until there is room again. A file that is full is left for the next one,
//! which the agent has handed over in advance; when there is none, because no
//! agent lives, output is thrown away and counted too. Naming, renaming and
//! removing files is left to the agent.

mod cri;
mod stream;
mod writers;

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use krustlet_model::ContainerId;
use tokio::{runtime::Handle, sync::Notify, time::timeout};

use crate::news::{News, Teller};
pub(crate) use cri::Stream;
pub(crate) use stream::LogStream;

/// Bytes that may wait for the disk: a few hundredths of a second of a disk of
/// 10 MB/s, and not much for 10,000 containers if all their disks stall.
const QUEUE: usize = 256 << 10;

/// How long a guest waits for a disk before its output is thrown away.
const PATIENCE: Duration = Duration::from_secs(2);

/// Files handed over for the time after the one in use. One is enough for an
/// agent that answers each rotation.
const NEXT_FILES: usize = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Log {
    id: ContainerId,
    teller: Teller,
    queue: Mutex<Queue>,
    /// Only the one who drains the queue waits for the disk with it.
    files: Mutex<Files>,
    next: Mutex<VecDeque<File>>,
    /// Signalled when the queue got shorter.
    moved: Notify,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    lines: Vec<u8>,
    /// Whether a thread is on its way to empty the queue.
    draining: bool,
    /// Whether a guest has waited in vain; it does not do so twice.
    stalled: bool,
}

#[derive(Debug)]
struct Files {
    current: File,
    /// Bytes in the current file.
    length: u64,
    max: u64,
}

impl Log {
    /// A log that goes on at the end of `current`; `max` is the length in bytes
    /// at which a file is left.
    ///
    /// # Errors
    ///
    /// When the file's length cannot be read.
    pub(crate) fn new(
        id: ContainerId,
        teller: Teller,
        current: File,
        next: Option<File>,
        max: u64,
    ) -> io::Result<Self> {
        let length = current.metadata()?.len();
        Ok(Self {
            id,
            teller,
            queue: Mutex::default(),
            files: Mutex::new(Files { current, length, max }),
            next: Mutex::new(next.into_iter().collect()),
            moved: Notify::new(),
            dropped: AtomicU64::new(0),
        })
    }

    /// Takes a file for after the one in use; false when there are enough.
    pub(crate) fn hand_next(&self, file: File) -> bool {
        let mut next = lock(&self.next);
        let room = next.len() < NEXT_FILES;
        if room {
            next.push_back(file);
        }
        room
    }

    /// Bytes thrown away since the container was created.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Bytes the queue has room for; 0 when a guest must wait.
    fn room(&self) -> usize {
        let queue = lock(&self.queue);
        // A stalled log takes everything, to throw it away.
        if queue.stalled { QUEUE } else { QUEUE.saturating_sub(queue.lines.len()) }
    }

    /// Waits until there is room, or patience ends.
    async fn wait_for_room(&self) {
        let waited = timeout(PATIENCE, async {
            loop {
                let moved = self.moved.notified();
                if self.room() > 0 {
                    return;
                }
                moved.await;
            }
        });
        if waited.await.is_err() {
            lock(&self.queue).stalled = true;
        }
    }

    /// Puts whole lines into the queue.
    fn append(self: &Arc<Self>, lines: Vec<u8>) {
        if lines.is_empty() {
            return;
        }
        let mut queue = lock(&self.queue);
        if queue.stalled {
            if queue.lines.len() >= QUEUE {
                drop(queue);
                self.drop_bytes(lines.len());
                return;
            }
            queue.stalled = false;
        }
        if queue.lines.is_empty() {
            queue.lines = lines;
        } else {
            queue.lines.extend_from_slice(&lines);
        }
        if !queue.draining {
            queue.draining = true;
            drop(queue);
            match Handle::try_current() {
                // `flush` waits for its effect.
                Ok(_) => writers::write(Arc::clone(self)),
                // The process ends, and waits for nobody else.
                Err(_) => self.drain(),
            }
        }
    }

    /// Waits until all lines are in the file, but not longer than a guest would.
    pub(crate) async fn flush(&self) {
        let drained = async {
            loop {
                let moved = self.moved.notified();
                if !lock(&self.queue).draining {
                    return;
                }
                moved.await;
            }
        };
        // What a stalled disk has not taken is still in the queue: it is written
        // when the disk moves again, as long as the process lives.
        let _ = timeout(PATIENCE, drained).await;
    }

    /// As [`flush`](Self::flush), where time may be paused.
    #[cfg(test)]
    pub(crate) fn flush_here(&self) {
        let begun = std::time::Instant::now();
        while lock(&self.queue).draining && begun.elapsed() < 10 * PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Writes until the queue is empty. May block, as the next.
    fn drain(&self) {
        while self.drain_some() {}
    }

    /// Writes what waits now. False if there was nothing: whoever comes then begins
    /// anew.
    fn drain_some(&self) -> bool {
        let lines = {
            let mut queue = lock(&self.queue);
            queue.draining = !queue.lines.is_empty();
            std::mem::take(&mut queue.lines)
        };
        self.moved.notify_waiters();
        self.write(&lines);
        !lines.is_empty()
    }

    fn write(&self, mut lines: &[u8]) {
        let mut files = lock(&self.files);
        while !lines.is_empty() {
            let room =
                usize::try_from(files.max.saturating_sub(files.length)).unwrap_or(usize::MAX);
            let mut fits = cri::whole_lines(lines, room);
            if fits == 0 {
                if files.length > 0 && !self.rotate(&mut files) {
                    self.drop_bytes(lines.len());
                    return;
                }
                // An empty file takes at least one line, however long.
                fits = cri::whole_lines(lines, usize::try_from(files.max).unwrap_or(usize::MAX))
                    .max(cri::first_line(lines));
            }
            let (now, later) = lines.split_at(fits);
            match files.current.write_all(now) {
                Ok(()) => files.length += now.len() as u64,
                // A full disk, most likely. The guest is not to blame.
                Err(_) => self.drop_bytes(now.len()),
            }
            lines = later;
        }
    }

    /// Goes on with the next file; false when there is none.
    fn rotate(&self, files: &mut Files) -> bool {
        let Some(next) = lock(&self.next).pop_front() else { return false };
        files.length = next.metadata().map_or(0, |metadata| metadata.len());
        files.current = next;
        self.teller.tell(News::LogRotated { id: self.id.clone() });
        true
    }

    fn drop_bytes(&self, bytes: usize) {
        self.dropped.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A panic elsewhere leaves these values whole: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
