//! The streams of a connection.
//!
//! What a guest has written is taken over at once: as much as fits goes to the
//! connection, the rest waits here, and the guest may write on when it is gone.
//! A task sends it on, whatever the guest does meanwhile.
//!
//! ```text
//! all is sent ──write, not all fits──▶ a task sends ──all is sent, or it failed──▶ all is sent
//!                                          └──the guest lets go──▶ for LINGER at most
//! ```

use std::{
    future::poll_fn,
    io,
    net::Shutdown,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{sync::Notify, time::sleep};
use wasmtime_wasi::{
    async_trait,
    p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult},
};

use crate::net::{Connection, LEAST_MEMORY, Left, NetError, Stack, Taken};

/// Bytes of one read or write. Of a write fewer where the pod's sockets keep
/// much already.
const MOST: usize = 64 << 10;

/// How long what a guest has written is sent on after it has let go of the
/// connection. The kernel's own bound is about that (`net.ipv4.tcp_fin_timeout`).
const LINGER: Duration = Duration::from_mins(1);

/// A connection, as its socket and its two streams share it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) connection: Arc<Connection>,
    stack: Stack,
    /// The guest reads no more.
    read: AtomicBool,
    way_out: Arc<WayOut>,
}

/// The direction that is written to, as the guest and the task that sends for it
/// share it. It does not keep the stack alive, which owns that task.
#[derive(Debug)]
struct WayOut {
    connection: Arc<Connection>,
    out: Mutex<Out>,
    /// The guest has let go of the connection.
    left: Notify,
}

#[derive(Debug, Default)]
struct Out {
    /// Empty unless a task sends it.
    waiting: Bytes,
    /// The memory for it.
    memory: Option<Taken>,
    /// A task sends. It alone waits for the connection then, which remembers one
    /// waiting task only.
    is_sending: bool,
    /// Who waits until that task has done.
    writer: Option<Waker>,
    /// Nothing more will be written; the end is sent after what waits.
    ends: bool,
    ended: bool,
    failed: Option<NetError>,
    /// What the guest has left to be sent.
    left: Option<Left>,
}

impl Shared {
    pub(super) fn new(connection: Connection, stack: Stack) -> Arc<Self> {
        let connection = Arc::new(connection);
        let (out, left) = (Mutex::default(), Notify::new());
        let way_out = Arc::new(WayOut { connection: Arc::clone(&connection), out, left });
        Arc::new(Self { connection, stack, read: AtomicBool::new(false), way_out })
    }

    pub(super) fn streams(self: &Arc<Self>) -> (Input, Output) {
        (Input(Arc::clone(self)), Output(Arc::clone(self)))
    }

    pub(super) fn shutdown(&self, how: Shutdown) {
        if matches!(how, Shutdown::Read | Shutdown::Both) && !self.read.swap(true, Relaxed) {
            self.connection.shutdown(Shutdown::Read);
        }
        if matches!(how, Shutdown::Write | Shutdown::Both) {
            let mut out = self.way_out.lock();
            out.ends = true;
            self.send(&mut out);
        }
    }

    /// Sends what goes at once, and has a task send the rest.
    fn send(&self, out: &mut Out) {
        if out.is_sending || out.send(&self.connection, None).is_ready() {
            return;
        }
        if out.waiting.len() > LEAST_MEMORY {
            out.memory = self.stack.memory().hold(out.waiting.len());
            if out.memory.is_none() {
                // Less was permitted before it came to this, but to many at once.
                out.waiting.clear();
                out.failed = Some(NetError::OutOfMemory);
                return;
            }
        }
        // Not with what was sent of it.
        out.waiting = Bytes::copy_from_slice(&out.waiting);
        out.is_sending = true;
        self.stack.send_on(send_on(Arc::clone(&self.way_out)));
    }
}

impl Drop for Shared {
    /// What a guest has written is sent also when the guest is gone.
    fn drop(&mut self) {
        let mut out = self.way_out.lock();
        if out.is_sending {
            out.left = Some(self.stack.left());
            self.way_out.left.notify_one();
        }
    }
}

impl WayOut {
    fn lock(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when nothing waits any more.
    fn poll_sent(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut out = self.lock();
        ready!(out.send(&self.connection, Some(context)));
        out.is_sending = false;
        if let Some(waker) = out.writer.take() {
            waker.wake();
        }
        Poll::Ready(())
    }
}

/// Sends what waits; who does not read in time does not get it.
async fn send_on(way_out: Arc<WayOut>) {
    let over = async {
        way_out.left.notified().await;
        sleep(LINGER).await;
    };
    tokio::select! {
        biased;
        // What is sent is sent, and the others only wait.
        () = poll_fn(|context| way_out.poll_sent(context)) => {}
        () = over => {}
    }
}

impl Out {
    /// Sends what waits, and the end if it is due. Without a context nobody is
    /// woken to go on.
    fn send(&mut self, to: &Connection, mut context: Option<&mut Context<'_>>) -> Poll<()> {
        while !self.waiting.is_empty() {
            match to.try_write(&self.waiting) {
                Ok(written) => drop(self.waiting.split_to(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match &mut context {
                    Some(context) => ready!(to.poll_write_ready(context)),
                    None => return Poll::Pending,
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.waiting.clear();
                    self.failed = Some(error.into());
                }
            }
        }
        (self.waiting, self.memory) = (Bytes::new(), None);
        if self.ends && !self.ended {
            self.ended = true;
            to.shutdown(Shutdown::Write);
        }
        Poll::Ready(())
    }
}

/// What comes in. Dropping it is to read no more.
#[derive(Debug)]
pub(super) struct Input(Arc<Shared>);

impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.0.read.load(Relaxed) {
            return Err(StreamError::Closed);
        }
        if size == 0 {
            return Ok(Bytes::new());
        }
        let mut buffer = BytesMut::zeroed(size.min(MOST));
        match self.0.connection.try_read(&mut buffer) {
            Ok(0) => {
                self.0.read.store(true, Relaxed);
                Err(StreamError::Closed)
            }
            Ok(read) => {
                buffer.truncate(read);
                Ok(buffer.freeze())
            }
            Err(error) if is_early(&error) => Ok(Bytes::new()),
            Err(error) => {
                self.0.read.store(true, Relaxed);
                Err(failed(error.into()))
            }
        }
    }
}

fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn failed(error: NetError) -> StreamError {
    match error {
        NetError::ConnectionBroken => StreamError::Closed,
        error => StreamError::LastOperationFailed(error.into()),
    }
}

#[async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        if !self.0.read.load(Relaxed) {
            poll_fn(|context| self.0.connection.poll_readable(context)).await;
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.0.shutdown(Shutdown::Read);
    }
}

/// What goes out. Dropping it ends the direction, after what waits.
#[derive(Debug)]
pub(super) struct Output(Arc<Shared>);

#[async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut out = self.0.way_out.lock();
        if let Some(error) = out.failed {
            return Err(failed(error));
        }
        if out.ends {
            return Err(StreamError::Closed);
        }
        if out.is_sending || bytes.len() > MOST {
            return Err(StreamError::trap("more was written than was permitted"));
        }
        out.waiting = bytes;
        self.0.send(&mut out);
        out.failed.map_or(Ok(()), |error| Err(failed(error)))
    }

    fn flush(&mut self) -> StreamResult<()> {
        // What is written goes out as soon as it can.
        self.0.way_out.lock().failed.map_or(Ok(()), |error| Err(failed(error)))
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let out = self.0.way_out.lock();
        if let Some(error) = out.failed {
            return Err(failed(error));
        }
        if out.ends {
            return Err(StreamError::Closed);
        }
        if out.is_sending {
            return Ok(0);
        }
        Ok(if self.0.stack.memory().is_scarce() { LEAST_MEMORY } else { MOST })
    }

    async fn cancel(&mut self) {
        // A peer that does not read must not hold up a guest that lets go.
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        poll_fn(|context| {
            let mut out = self.0.way_out.lock();
            if out.is_sending {
                out.writer = Some(context.waker().clone());
                return Poll::Pending;
            }
            if out.ends || out.failed.is_some() {
                return Poll::Ready(());
            }
            self.0.connection.poll_write_ready(context)
        })
        .await;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.0.shutdown(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncReadExt,
        time::{Instant, timeout},
    };

    use super::*;
    use crate::net::{Stream, test_connections, test_reset, test_tcp};

    /// A connection whose other end holds as much as it can, with something more
    /// that waits to be sent.
    fn stalled() -> (Arc<Shared>, Input, Output, Stream) {
        stalled_in(Stack::default())
    }

    fn stalled_in(stack: Stack) -> (Arc<Shared>, Input, Output, Stream) {
        let [ours, theirs] = test_connections();
        let shared = Shared::new(ours, stack);
        let (input, mut output) = shared.streams();
        for _ in 0..2 {
            let room = output.check_write().unwrap();
            output.write(Bytes::from(vec![b'.'; room])).unwrap();
        }
        assert_eq!(output.check_write().unwrap(), 0);
        (shared, input, output, Stream(Arc::new(theirs)))
    }

    /// A test that hangs must fail, by name.
    async fn within<T>(done: impl Future<Output = T>) -> T {
        timeout(LINGER * 10, done).await.expect("it ends")
    }

    async fn length(mut of: Stream) -> usize {
        let mut all = Vec::new();
        within(of.read_to_end(&mut all)).await.unwrap();
        all.len()
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_is_sent_though_the_guest_waits_for_something_else() {
        let (shared, mut input, _output, peer) = stalled();
        shared.shutdown(Shutdown::Write);
        tokio::select! {
            biased;
            () = input.ready() => panic!("the peer has sent nothing"),
            length = length(peer) => assert_eq!(length, 2 * MOST),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_to_write_is_woken_when_all_is_sent() {
        let (_shared, _input, mut output, mut peer) = stalled();
        let mut most = vec![0; 2 * MOST];
        let both = async { tokio::join!(peer.read_exact(&mut most), output.ready()) };
        let (read, ()) = within(both).await;
        read.unwrap();
        assert_eq!(output.check_write().unwrap(), MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_lets_go_is_not_held_up_and_what_it_wrote_is_sent() {
        let (shared, input, mut output, peer) = stalled();
        let begin = Instant::now();
        within(output.cancel()).await;
        let stack = shared.stack.clone();
        drop((shared, input, output));
        assert_eq!(begin.elapsed(), Duration::ZERO);
        let (length, ()) = tokio::join!(length(peer), within(stack.all_is_sent()));
        assert_eq!((length, begin.elapsed()), (2 * MOST, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_that_ends_waits_for_no_others_peers() {
        let pod = Stack::default();
        let [one, other] = [(); 2].map(|()| pod.for_container());
        let (shared, input, output, peer) = stalled_in(one.clone());
        drop((shared, input, output));
        let begin = Instant::now();
        within(other.all_is_sent()).await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
        let (length, ()) = tokio::join!(length(peer), within(one.all_is_sent()));
        assert_eq!(length, 2 * MOST, "it is sent all the same");
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_on_all_connections_of_a_pod_has_a_bound() {
        let stack = Stack::default();
        let connection = || {
            let [ours, theirs] = test_connections();
            let (input, output) = Shared::new(ours, stack.clone()).streams();
            (input, output, theirs)
        };
        let mut all: Vec<_> = (0..600).map(|_| connection()).collect();
        // All are permitted before the first is written to.
        for (_, output, _) in &mut all {
            assert_eq!(output.check_write().unwrap(), MOST);
            output.write(Bytes::from(vec![b'.'; MOST])).unwrap();
        }
        assert!(all.iter_mut().all(|(_, output, _)| output.check_write().unwrap() == MOST));
        let mut written = 0;
        for (_, output, _) in &mut all {
            written += usize::from(output.write(Bytes::from(vec![b'.'; MOST])).is_ok());
        }
        assert_eq!(written, 256, "16 MiB");
        // Who asks now is given less, and that is taken.
        let (_input, mut output, _theirs) = connection();
        for _ in 0..=MOST / LEAST_MEMORY {
            assert_eq!(output.check_write().unwrap(), LEAST_MEMORY);
            output.write(Bytes::from(vec![b'.'; LEAST_MEMORY])).unwrap();
        }
        assert_eq!(output.check_write().unwrap(), 0);
        drop(all);
        within(stack.all_is_sent()).await;
        assert!(!stack.memory().is_scarce());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_waited_for_only_so_long() {
        let (shared, input, output, peer) = stalled();
        let stack = shared.stack.clone();
        drop((shared, input, output));
        let begin = Instant::now();
        within(stack.all_is_sent()).await;
        assert!(begin.elapsed() >= LINGER && begin.elapsed() < LINGER * 2);
        assert_eq!(length(peer).await, MOST, "only what was on its way already");
    }

    #[tokio::test]
    async fn a_connection_that_was_broken_off_has_not_ended_in_order() {
        let (ours, peer) = test_tcp().await;
        let (mut input, _output) = Shared::new(ours, Stack::default()).streams();
        tokio::select! {
            biased;
            () = input.ready() => panic!("the peer has sent nothing"),
            () = tokio::task::yield_now() => test_reset(peer),
        }
        within(input.ready()).await;
        let told = input.read(1);
        assert!(matches!(told, Err(StreamError::LastOperationFailed(_))), "{told:?}");
        assert!(matches!(input.read(1), Err(StreamError::Closed)));
    }
}
