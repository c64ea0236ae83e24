//! Connections that never leave the sandbox: two bounded pipes, crosswise.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use super::memory::{LEAST, SocketMemory};

/// Bytes that may wait in one direction; that of a pipe(7). Fewer where others
/// of the pod have taken its [`SocketMemory`].
const ROOM: usize = 64 << 10;

/// One direction.
#[derive(Debug)]
struct Pipe {
    memory: Arc<SocketMemory>,
    waiting: VecDeque<u8>,
    /// No more will be written.
    ended: bool,
    /// What is written is thrown away: its reader wants no more.
    unread: bool,
    /// The reader is gone, and whoever writes is to know.
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn new(memory: &Arc<SocketMemory>) -> Self {
        Self {
            memory: Arc::clone(memory),
            waiting: VecDeque::new(),
            ended: false,
            unread: false,
            broken: false,
            reader: None,
            writer: None,
        }
    }

    /// Throws away what waits.
    fn clear(&mut self) {
        self.memory.give(self.waiting.len());
        self.waiting = VecDeque::new();
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    fn can_read(&self) -> bool {
        !self.waiting.is_empty() || self.ended || self.unread
    }

    /// Whoever finds no memory left is woken when its own bytes are read: until
    /// there are fewer than [`LEAST`] some are there to be read.
    fn has_room(&self) -> bool {
        let waiting = self.waiting.len();
        waiting < LEAST || waiting < ROOM && self.memory.has_left()
    }

    fn can_write(&self) -> bool {
        self.has_room() || self.ended || self.unread || self.broken
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.clear();
    }
}

/// One end of a connection. Closed when dropped.
#[derive(Debug)]
pub(crate) struct PipeEnd {
    input: Arc<Mutex<Pipe>>,
    output: Arc<Mutex<Pipe>>,
}

fn lock(pipe: &Mutex<Pipe>) -> MutexGuard<'_, Pipe> {
    pipe.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers who waits; whoever waited before asks again or is gone.
fn note(place: &mut Option<Waker>, context: &Context<'_>) {
    if !place.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
        *place = Some(context.waker().clone());
    }
}

/// A connection's two ends.
pub(crate) fn pair(memory: &Arc<SocketMemory>) -> (PipeEnd, PipeEnd) {
    let [there, back] = [(); 2].map(|()| Arc::new(Mutex::new(Pipe::new(memory))));
    let other = PipeEnd { input: Arc::clone(&there), output: Arc::clone(&back) };
    (PipeEnd { input: back, output: there }, other)
}

impl PipeEnd {
    /// Reads what is there; 0 at the end.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nothing is there yet.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut pipe = lock(&self.input);
        if pipe.unread || buffer.is_empty() {
            return Ok(0);
        }
        if pipe.waiting.is_empty() {
            return if pipe.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let read = io::Read::read(&mut pipe.waiting, buffer)?;
        pipe.memory.give(read);
        if pipe.waiting.is_empty() {
            // A connection that rests keeps no room.
            pipe.waiting = VecDeque::new();
        }
        pipe.wake_writer();
        Ok(read)
    }

    /// As [`try_read`](Self::try_read), and leaves it there.
    pub(crate) fn try_peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let pipe = lock(&self.input);
        if pipe.unread || buffer.is_empty() {
            return Ok(0);
        }
        if pipe.waiting.is_empty() {
            return if pipe.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let (first, second) = pipe.waiting.as_slices();
        let mut read = 0;
        for part in [first, second] {
            let more = part.len().min(buffer.len() - read);
            buffer[read..read + more].copy_from_slice(&part[..more]);
            read += more;
        }
        Ok(read)
    }

    /// Writes what there is room for, at least one byte.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is no room; `BrokenPipe` after the end, or if the
    /// other end is gone.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = lock(&self.output);
        if pipe.ended || pipe.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if pipe.unread {
            return Ok(bytes.len());
        }
        let waiting = pipe.waiting.len();
        let wanted = bytes.len().min(ROOM.saturating_sub(waiting));
        let written = pipe.memory.take_some(wanted, LEAST.saturating_sub(waiting));
        if written == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        pipe.waiting.extend(&bytes[..written]);
        pipe.wake_reader();
        Ok(written)
    }

    /// Bytes that wait to be read.
    pub(crate) fn waiting(&self) -> u64 {
        lock(&self.input).waiting.len() as u64
    }

    /// Whether nothing more will come.
    pub(crate) fn has_ended(&self) -> bool {
        let pipe = lock(&self.input);
        pipe.ended || pipe.unread
    }

    /// Ready when [`try_read`](Self::try_read) would not have to wait.
    pub(crate) fn poll_read_ready(&self, context: &Context<'_>) -> Poll<()> {
        let mut pipe = lock(&self.input);
        if pipe.can_read() {
            return Poll::Ready(());
        }
        note(&mut pipe.reader, context);
        Poll::Pending
    }

    /// Ready when [`try_write`](Self::try_write) would not have to wait.
    pub(crate) fn poll_write_ready(&self, context: &Context<'_>) -> Poll<()> {
        let mut pipe = lock(&self.output);
        if pipe.can_write() {
            return Poll::Ready(());
        }
        note(&mut pipe.writer, context);
        Poll::Pending
    }

    /// Writes no more: the other end reads what waits, then the end.
    pub(crate) fn end_writing(&self) {
        let mut pipe = lock(&self.output);
        pipe.ended = true;
        pipe.wake_reader();
        pipe.wake_writer();
    }

    /// Reads no more: what waits and what will come is thrown away.
    pub(crate) fn end_reading(&self) {
        let mut pipe = lock(&self.input);
        pipe.unread = true;
        pipe.clear();
        pipe.wake_reader();
        pipe.wake_writer();
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        self.end_writing();
        let mut pipe = lock(&self.input);
        pipe.broken = true;
        pipe.clear();
        pipe.wake_writer();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;

    use super::*;

    fn pair() -> (PipeEnd, PipeEnd) {
        super::pair(&Arc::default())
    }

    fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
        result.unwrap_err().kind()
    }

    #[test]
    fn an_end_may_stop_writing_and_still_read() {
        let (one, other) = pair();
        one.try_write(b"ask").unwrap();
        one.end_writing();
        let mut buffer = [0; 8];
        assert_eq!(other.try_peek(&mut buffer).unwrap(), 3);
        assert_eq!(other.try_read(&mut buffer).unwrap(), 3);
        assert_eq!(other.try_read(&mut buffer).unwrap(), 0);
        assert_eq!(other.try_write(b"answer").unwrap(), 6);
        assert_eq!(one.try_read(&mut buffer).unwrap(), 6);
        assert_eq!(kind(one.try_write(b"x")), io::ErrorKind::BrokenPipe);
        assert_eq!(kind(one.try_read(&mut buffer)), io::ErrorKind::WouldBlock);
        drop(other);
        assert_eq!(one.try_read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn whoever_writes_to_nobody_hears_of_it() {
        let (one, other) = pair();
        other.end_reading();
        assert_eq!(one.try_write(&vec![0; 2 * ROOM]).unwrap(), 2 * ROOM, "thrown away");
        drop(other);
        assert_eq!(kind(one.try_write(b"x")), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_full_pipe_makes_its_writer_wait_and_wakes_it() {
        let (one, other) = pair();
        assert_eq!(one.try_write(&vec![7; ROOM + 1]).unwrap(), ROOM);
        assert_eq!(kind(one.try_write(b"x")), io::ErrorKind::WouldBlock);
        let writes = async {
            poll_fn(|context| one.poll_write_ready(context)).await;
            one.try_write(b"x").unwrap()
        };
        let reads = async {
            tokio::task::yield_now().await;
            other.try_read(&mut [0; 10]).unwrap()
        };
        assert_eq!(tokio::join!(writes, reads), (1, 10));
    }

    #[test]
    fn all_together_have_a_bound_and_each_gets_on() {
        const COUNT: usize = 1000;
        let (memory, much) = (Arc::default(), vec![7; ROOM]);
        let pipes: Vec<_> = (0..COUNT).map(|_| super::pair(&memory)).collect();
        for (one, _) in &pipes {
            assert!(one.try_write(&much).unwrap() >= LEAST);
        }
        assert!(memory.used() <= SocketMemory::MOST + COUNT * LEAST, "{}", memory.used());
        let (one, other) = pipes.last().unwrap();
        assert_eq!(kind(one.try_write(b"x")), io::ErrorKind::WouldBlock);
        assert_eq!(other.try_read(&mut [0; 10]).unwrap(), 10);
        assert_eq!(one.try_write(&much).unwrap(), 10);
        drop(pipes);
        assert_eq!(memory.used(), 0);
    }

    proptest! {
        #[test]
        fn bytes_arrive_whole_and_in_order_and_never_too_many_wait(
            steps in prop::collection::vec((any::<bool>(), 0_usize..100_000), 0..60)
        ) {
            let memory = Arc::default();
            let (one, other) = super::pair(&memory);
            let (mut sent, mut got) = (Vec::new(), Vec::new());
            let mut next = 0_u8;
            for (writes, length) in steps {
                if writes {
                    let bytes: Vec<u8> = (0..length).map(|_| { next = next.wrapping_add(1); next }).collect();
                    let written = one.try_write(&bytes).unwrap_or(0);
                    next = next.wrapping_sub(u8::try_from((length - written) % 256).unwrap());
                    sent.extend_from_slice(&bytes[..written]);
                } else {
                    let mut buffer = vec![0; length];
                    let read = other.try_read(&mut buffer).unwrap_or(0);
                    got.extend_from_slice(&buffer[..read]);
                }
                prop_assert!(sent.len() - got.len() <= ROOM);
                prop_assert_eq!(sent.len() - got.len(), memory.used());
                prop_assert_eq!(&sent[..got.len()], &got[..]);
            }
        }
    }
}
