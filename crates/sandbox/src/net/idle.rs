//! Connections of HTTP that are closed when their pod has no socket left for
//! something else: those that its client keeps for later, and those of its servers,
//! while nothing is asked on them.
//!
//! Whoever reads from one closes it, where he does so: only there it is sure that
//! nothing is begun on it in the same moment.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{Connection, Stream};

/// Connections of a pod's client, those in use among them: twice as many as requests
/// may be under way. Each may take some 25 KiB for TLS and what waits.
const KEPT: usize = 512;

/// How long a client that was let in has to ask something before its connection makes
/// room for another: its first request comes a round trip later. As long as Linux waits
/// for one before it sends again (RFC 6298, 2.1).
const FIRST_TIME: Duration = Duration::from_secs(1);

/// Those of one pod.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// Of its client.
    kept: Mutex<Vec<Weak<Kept>>>,
    servers: Mutex<Vec<Weak<Served>>>,
}

/// Those of one http server.
#[derive(Debug, Default)]
pub(crate) struct Served(Mutex<VecDeque<Weak<Kept>>>);

/// A connection on which requests follow each other or, in version 2, are under
/// way side by side.
///
/// ```text
/// made for a request ──▶ in use ──none is under way──▶ idle ──request──▶ in use
///   └──that went by another──────────────────────────▶  └──another needs the socket──▶ closed
/// ```
#[derive(Debug)]
pub(crate) struct Kept {
    /// The answer may outlive it.
    connection: Weak<Connection>,
    /// Requests under way on it, with the one that it is made for.
    requests: AtomicUsize,
    /// That one has not come yet.
    is_awaited: AtomicBool,
    /// Something was asked on it since it was looked at.
    was_asked: AtomicBool,
    /// It was accepted, and nothing was asked on it yet.
    is_new: AtomicBool,
    made: Instant,
    /// Another needs the socket.
    is_to_go: AtomicBool,
    /// Whoever reads from it.
    reader: AtomicWaker,
}

/// A request that is under way on a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Asking {
    kept: Arc<Kept>,
    /// The connection was made for it.
    is_first: bool,
}

/// A connection as what is read and written, which ends when it is to go.
#[derive(Debug)]
pub(crate) struct Lasting {
    stream: Stream,
    kept: Arc<Kept>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// False if none is idle.
fn close_first(all: &[Weak<Kept>]) -> bool {
    all.iter().any(|kept| kept.upgrade().is_some_and(|kept| kept.close()))
}

impl Idle {
    /// One of the client's, made for a request. Where there are many the oldest that is
    /// idle is closed.
    pub(super) fn add(&self, connection: &Arc<Connection>) -> Arc<Kept> {
        let kept = Kept::new(connection, true);
        let mut all = lock(&self.kept);
        all.retain(|kept| kept.strong_count() > 0);
        if all.len() >= KEPT {
            close_first(&all);
        }
        all.push(Arc::downgrade(&kept));
        kept
    }

    /// For one more http server.
    pub(super) fn serve(&self) -> Arc<Served> {
        let served = Arc::default();
        let mut servers = lock(&self.servers);
        servers.retain(|served| served.strong_count() > 0);
        servers.push(Arc::downgrade(&served));
        served
    }

    /// Closes one that is idle, the client's oldest first; its socket is free as soon
    /// as whoever reads from it has seen it. False if there is none.
    pub(super) fn close_one(&self) -> bool {
        if close_first(&lock(&self.kept)) {
            return true;
        }
        let mut servers = lock(&self.servers).clone().into_iter().filter_map(|one| one.upgrade());
        servers.any(|served| served.close_one())
    }
}

impl Served {
    /// One that was accepted.
    pub(crate) fn add(&self, connection: &Arc<Connection>) -> Arc<Kept> {
        let kept = Kept::new(connection, false);
        let mut all = lock(&self.0);
        if all.len() == all.capacity() {
            all.retain(|kept| kept.strong_count() > 0);
            // Not again before as many have come.
            let more = all.len().max(16);
            all.reserve(more);
        }
        all.push_back(Arc::downgrade(&kept));
        kept
    }

    /// Closes one that is idle, of those on which nothing was asked for long; none that
    /// came just now. False if there is none.
    pub(crate) fn close_one(&self) -> bool {
        let mut all = lock(&self.0);
        // One on which something was asked since it was looked at has its turn again
        // when all others have had theirs.
        for _ in 0..2 * all.len() {
            let Some(next) = all.pop_front() else { return false };
            let Some(kept) = next.upgrade() else { continue };
            if !kept.was_asked.swap(false, Relaxed) && kept.close() {
                return true;
            }
            all.push_back(next);
        }
        false
    }
}

impl Kept {
    /// `is_awaited`: made for a request; any other was accepted.
    fn new(connection: &Arc<Connection>, is_awaited: bool) -> Arc<Self> {
        Arc::new(Self {
            connection: Arc::downgrade(connection),
            requests: AtomicUsize::new(is_awaited.into()),
            is_awaited: AtomicBool::new(is_awaited),
            was_asked: AtomicBool::new(false),
            is_new: AtomicBool::new(!is_awaited),
            made: Instant::now(),
            is_to_go: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        })
    }

    /// A request takes it. To be called where it is read from.
    pub(crate) fn asked(self: &Arc<Self>) -> Asking {
        self.was_asked.store(true, Relaxed);
        self.is_new.store(false, Relaxed);
        let is_first = self.is_awaited.swap(false, Relaxed);
        if !is_first {
            self.requests.fetch_add(1, SeqCst);
        }
        Asking { kept: Arc::clone(self), is_first }
    }

    /// The request that it was made for goes by another.
    pub(crate) fn expect_nobody(&self) {
        if self.is_awaited.swap(false, Relaxed) {
            self.one_less();
        }
    }

    /// A request is no longer under way on it.
    fn one_less(&self) {
        // Whoever reads from it may have looked while it was in use: one of the two sees
        // the other.
        if self.requests.fetch_sub(1, SeqCst) == 1 && self.is_to_go.load(SeqCst) {
            self.reader.wake();
        }
    }

    fn is_idle(&self) -> bool {
        self.requests.load(SeqCst) == 0
    }

    /// Whether its first request may still be on its way.
    fn is_expected(&self) -> bool {
        self.is_new.load(Relaxed) && self.made.elapsed() < FIRST_TIME
    }

    /// Has it closed if it is there, idle with nothing on its way, and not to be closed
    /// already. If it is asked something in the same moment it is closed after that.
    fn close(&self) -> bool {
        let is_idle = self.is_idle() && !self.is_expected();
        let is_there = is_idle && self.connection.strong_count() > 0;
        let goes = is_there && !self.is_to_go.swap(true, SeqCst);
        if goes {
            self.reader.wake();
        }
        goes
    }

    /// Whether it is to be closed now, as seen where it is read from.
    pub(super) fn goes(&self) -> bool {
        self.is_to_go.load(SeqCst) && self.is_idle()
    }
}

impl Asking {
    /// Whether it is under way on this one.
    pub(crate) fn is_by(&self, kept: &Arc<Kept>) -> bool {
        Arc::ptr_eq(&self.kept, kept)
    }

    /// Whether no other request was under way on it before.
    pub(crate) fn is_first(&self) -> bool {
        self.is_first
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.kept.one_less();
    }
}

impl Lasting {
    pub(crate) fn new(connection: Arc<Connection>, kept: Arc<Kept>) -> Self {
        Self { stream: Stream(connection), kept }
    }
}

impl AsyncRead for Lasting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.kept.reader.register(context.waker());
        // As if the other side had ended it.
        if self.kept.goes() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Lasting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncReadExt,
        task::{JoinSet, yield_now},
        time::{advance, timeout},
    };

    use super::*;
    use crate::net::{test_connection, test_connections};

    #[test]
    fn a_connection_is_idle_when_no_request_is_under_way_on_it() {
        let (idle, connection) = (Idle::default(), Arc::new(test_connection()));
        let kept = idle.add(&connection);
        assert!(!idle.close_one(), "it was made for a request");
        let first = kept.asked();
        assert!(first.is_first());
        // One more, before the answer to the first is let go of.
        let second = kept.asked();
        assert!(!second.is_first());
        drop(first);
        assert!(!idle.close_one(), "the next is under way");
        drop(second);
        assert!(idle.close_one());
        assert!(!idle.close_one(), "it was closed");
    }

    #[test]
    fn a_client_keeps_no_more_than_a_number() {
        let (idle, connection) = (Idle::default(), Arc::new(test_connection()));
        let all: Vec<_> = (0..KEPT + 8)
            .map(|number| {
                let kept = idle.add(&connection);
                // Every other is in use.
                let asking = kept.asked();
                (kept, (number % 2 == 0).then_some(asking))
            })
            .collect();
        let gone = all.iter().filter(|(kept, _)| kept.goes()).count();
        assert_eq!(gone, 8);
        assert!(all[1].0.goes() && !all[0].0.goes());
    }

    #[tokio::test]
    async fn one_that_is_to_go_ends_for_its_reader_when_it_is_idle() {
        let [ours, theirs] = test_connections();
        let (idle, ours) = (Idle::default(), Arc::new(ours));
        let kept = idle.add(&ours);
        let mut reader = Lasting::new(ours, Arc::clone(&kept));
        drop(kept.asked());
        let reads = async { reader.read(&mut [0]).await.unwrap() };
        let closes = async {
            yield_now().await;
            assert!(idle.close_one());
        };
        assert_eq!(tokio::join!(reads, closes), (0, ()));
        // A request was quicker.
        let asking = kept.asked();
        theirs.try_write(b"answer").unwrap();
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 6);
        drop(asking);
        assert_eq!(reader.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_to_go_ends_for_who_read_from_it_while_a_request_was_quicker() {
        let [ours, _theirs] = test_connections();
        let (idle, ours) = (Idle::default(), Arc::new(ours));
        let kept = idle.add(&ours);
        let mut reader = Lasting::new(ours, Arc::clone(&kept));
        drop(kept.asked());
        // A task of its own: it looks when it is woken, and only then.
        let mut reads = JoinSet::new();
        reads.spawn(async move { reader.read(&mut [0]).await });
        yield_now().await;
        assert!(idle.close_one());
        let asking = kept.asked();
        yield_now().await;
        assert!(reads.try_join_next().is_none(), "it is in use");
        drop(asking);
        let read = timeout(Duration::from_secs(20), reads.join_next()).await;
        assert_eq!(read.expect("nobody woke it").unwrap().unwrap().unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_let_in_just_now_makes_room_for_nobody_before_it_has_asked() {
        let idle = Idle::default();
        let served = idle.serve();
        let all = [(); 2].map(|()| Arc::new(test_connection()));
        let [first, second] = [0, 1].map(|index| served.add(&all[index]));
        assert!(!idle.close_one(), "their requests may be on their way");
        drop(second.asked());
        // It was asked since it was looked at last, but there is no other.
        assert!(idle.close_one() && second.goes());
        assert!(!idle.close_one());
        advance(FIRST_TIME).await;
        assert!(idle.close_one() && first.goes());
    }

    #[tokio::test(start_paused = true)]
    async fn a_servers_connections_are_closed_last_and_those_that_were_asked_last_of_these() {
        let idle = Idle::default();
        let all = [(); 4].map(|()| Arc::new(test_connection()));
        let served = idle.serve();
        let [busy, asked, silent] = [0, 1, 2].map(|index| served.add(&all[index]));
        let kept = idle.add(&all[3]);
        advance(FIRST_TIME).await;
        let request = busy.asked();
        for kept in [&asked, &kept] {
            drop(kept.asked());
        }
        for kept in [&kept, &silent, &asked] {
            assert!(!kept.goes());
            assert!(idle.close_one());
            assert!(kept.goes());
        }
        assert!(!idle.close_one(), "something is asked on the last");
        drop(request);
        assert!(idle.close_one() && busy.goes());
        // Those that are gone take no place for ever.
        for _ in 0..1000 {
            served.add(&all[0]);
        }
        assert!(lock(&served.0).len() < 100);
    }

    #[test]
    fn a_connection_whose_request_went_by_another_is_idle_until_the_next_takes_it() {
        let (idle, connection) = (Idle::default(), Arc::new(test_connection()));
        let kept = idle.add(&connection);
        kept.expect_nobody();
        let next = kept.asked();
        assert!(!next.is_first(), "it may be as old as any");
        kept.expect_nobody();
        assert!(!idle.close_one(), "it is in use");
        drop(next);
        assert!(idle.close_one());
    }
}
