//! How fast a pod's sockets move bytes in one direction, and how many they did.
//!
//! ```text
//! may_move ──0, in the queue──▶ WouldBlock ──▶ poll ──woken in turn──▶ may_move
//!    └──▶ moved: charged to the bucket ──below empty──▶ nobody moves ──time──▶ paid
//! ```
//!
//! A socket that may not read leaves the bytes to the system, whose buffers fill
//! until the sender waits (TCP) or datagrams are lost (UDP), as with a shaper on
//! a link. While some wait, nobody goes before them: who tries again and again,
//! and waits for nothing, has his turn as they have. A pod without a limit has no bucket, no queue and no task. What stays
//! within the pod never comes here.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::task::AtomicWaker;
use tokio::{
    runtime::Handle,
    task::{JoinSet, yield_now},
    time::{Instant, sleep},
};

use crate::bucket::{Bucket, most_bytes};

/// One direction of one pod.
#[derive(Debug, Default)]
pub(super) struct Flow {
    bytes: AtomicU64,
    /// Made by the first limit.
    pace: OnceLock<Arc<Pace>>,
}

#[derive(Debug, Default)]
struct Pace(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    limit: Option<Limit>,
    /// Sockets that wait, the first to be woken first; none twice.
    queue: VecDeque<Arc<Waiting>>,
    /// The task that wakes them, while somebody waits.
    waker: Option<JoinSet<()>>,
}

#[derive(Debug)]
struct Limit {
    bucket: Bucket,
    /// Bytes of one move.
    most: usize,
}

/// A socket's place in the queue of a flow.
#[derive(Debug, Default)]
pub(super) struct Turn(OnceLock<(Arc<Pace>, Arc<Waiting>)>);

/// The newest task that waits for a socket.
#[derive(Debug, Default)]
struct Waiting {
    is_queued: AtomicBool,
    /// It is its turn, until it moves something.
    is_next: AtomicBool,
    waker: AtomicWaker,
}

impl Flow {
    /// Bytes moved so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Limits it to so many bits per second, or no more. Those who wait look
    /// again.
    pub(super) fn limit(&self, bits_per_second: Option<u64>) {
        if bits_per_second.is_some() || self.pace.get().is_some() {
            self.pace.get_or_init(Arc::default).limit(bits_per_second);
        }
    }

    /// How many bytes of so many may be moved now. 0: not before
    /// [`poll_turn`](Self::poll_turn) is ready.
    pub(super) fn may_move(&self, turn: &Turn, wanted: usize) -> usize {
        self.pace.get().map_or(wanted, |pace| pace.may_move(turn, wanted))
    }

    /// So many were moved.
    pub(super) fn moved(&self, turn: &Turn, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        if let Some(pace) = self.pace.get() {
            pace.moved(turn, bytes as u64);
        }
    }

    /// Ready when something may be moved; else the task is woken when it may be.
    pub(super) fn poll_turn(&self, turn: &Turn, context: &Context<'_>) -> Poll<()> {
        match self.pace.get() {
            Some(pace) => pace.poll(turn, context),
            None => Poll::Ready(()),
        }
    }
}

/// By a clock that tests may stop.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl Inner {
    fn may_move(&mut self, turn: &Turn, wanted: usize) -> usize {
        let Some(limit) = &mut self.limit else { return wanted };
        let is_free = self.queue.is_empty() || turn.is_next();
        if !is_free || limit.bucket.wait(now()).is_some() { 0 } else { wanted.min(limit.most) }
    }

    /// Puts one into the queue. Whose turn it was already, when another was
    /// quicker, is the first again.
    fn wait(&mut self, waiting: &Arc<Waiting>) {
        if waiting.is_queued.swap(true, SeqCst) {
            return;
        }
        let waits = Arc::clone(waiting);
        if waiting.is_next.load(SeqCst) {
            self.queue.push_front(waits);
        } else {
            self.queue.push_back(waits);
        }
    }

    /// What the task that wakes has to do.
    fn next(&mut self) -> Next {
        let debt = self.limit.as_mut().and_then(|limit| limit.bucket.wait(now()));
        match (debt, self.queue.is_empty()) {
            (_, true) => Next::Nobody,
            (Some(time), false) => Next::Wait(time),
            (None, false) => {
                self.wake_first();
                Next::Woken
            }
        }
    }

    fn wake_first(&mut self) {
        if let Some(first) = self.queue.pop_front() {
            first.is_queued.store(false, SeqCst);
            first.is_next.store(true, SeqCst);
            first.waker.wake();
        }
    }
}

enum Next {
    Nobody,
    Wait(Duration),
    Woken,
}

impl Pace {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self, bits_per_second: Option<u64>) {
        let new = bits_per_second
            .map(|bits| Limit { bucket: Bucket::of_bits(bits, now()), most: most_bytes(bits) });
        let mut inner = self.lock();
        // The same again leaves what was used.
        let stays = match (&inner.limit, &new) {
            (Some(old), Some(new)) => old.bucket.is_like(&new.bucket),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if stays {
            return;
        }
        inner.limit = new;
        // It sleeps for what held before.
        inner.waker = None;
        while !inner.queue.is_empty() {
            inner.wake_first();
        }
    }

    fn may_move(self: &Arc<Self>, turn: &Turn, wanted: usize) -> usize {
        let mut inner = self.lock();
        let granted = inner.may_move(turn, wanted);
        // Who only tries is woken by nobody, and need not wait a second time for
        // what is his already.
        if granted == 0 && wanted > 0 && !turn.is_next() {
            self.wait(&mut inner, turn.waiting(self));
        }
        granted
    }

    fn moved(&self, turn: &Turn, bytes: u64) {
        let mut inner = self.lock();
        if let Some(limit) = &mut inner.limit {
            limit.bucket.charge(now(), bytes);
        }
        turn.end();
    }

    fn poll(self: &Arc<Self>, turn: &Turn, context: &Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.may_move(turn, 1) > 0 {
            return Poll::Ready(());
        }
        let waiting = turn.waiting(self);
        waiting.waker.register(context.waker());
        self.wait(&mut inner, waiting);
        Poll::Pending
    }

    fn wait(self: &Arc<Self>, inner: &mut Inner, waiting: &Arc<Waiting>) {
        inner.wait(waiting);
        // Without a runtime the process ends.
        if inner.waker.is_none()
            && let Ok(runtime) = Handle::try_current()
        {
            let task = wake_in_turn(Arc::downgrade(self));
            inner.waker.insert(JoinSet::new()).spawn_on(task, &runtime);
        }
    }

    /// As [`Inner::next`]; with nobody left the task is to end.
    fn next(&self) -> Next {
        let mut inner = self.lock();
        let next = inner.next();
        if matches!(next, Next::Nobody) {
            // Dropped by itself, at its end.
            if let Some(mut task) = inner.waker.take() {
                task.detach_all();
            }
        }
        next
    }
}

/// Wakes one socket after the other, each when all that was moved is paid for: a
/// crowd that waits does not run all at once for what one of them then takes.
async fn wake_in_turn(pace: Weak<Pace>) {
    loop {
        let Some(next) = pace.upgrade().map(|pace| pace.next()) else { return };
        match next {
            Next::Nobody => return,
            Next::Wait(time) => sleep(time).await,
            // It has its turn first.
            Next::Woken => yield_now().await,
        }
    }
}

impl Turn {
    fn waiting(&self, pace: &Arc<Pace>) -> &Arc<Waiting> {
        let (_, waiting) = self.0.get_or_init(|| (Arc::clone(pace), Arc::default()));
        waiting
    }

    fn is_next(&self) -> bool {
        self.0.get().is_some_and(|(_, waiting)| waiting.is_next.load(SeqCst))
    }

    /// It was used.
    fn end(&self) {
        if let Some((_, waiting)) = self.0.get() {
            waiting.is_next.store(false, SeqCst);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some((pace, waiting)) = self.0.get() else { return };
        let mut inner = pace.lock();
        if waiting.is_queued.load(SeqCst) {
            inner.queue.retain(|other| !Arc::ptr_eq(other, waiting));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt;
    use tokio::time::advance;

    use super::*;

    /// Moves bytes, as a socket does that always has some.
    async fn move_all(flow: &Flow, mut bytes: usize) {
        let turn = Turn::default();
        while bytes > 0 {
            match flow.may_move(&turn, bytes) {
                0 => poll_fn(|context| flow.poll_turn(&turn, context)).await,
                some => {
                    flow.moved(&turn, some);
                    bytes -= some;
                }
            }
        }
    }

    fn limited(bits: u64) -> Arc<Flow> {
        let flow = Arc::new(Flow::default());
        flow.limit(Some(bits));
        flow
    }

    fn waiting(flow: &Flow) -> usize {
        flow.pace.get().unwrap().lock().queue.len()
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_has_the_bandwidth_of_one_and_each_gets_on() {
        let flow = limited(8_000_000);
        let begin = Instant::now();
        let mut crowd = JoinSet::new();
        for _ in 0..20 {
            let flow = Arc::clone(&flow);
            crowd.spawn(async move { move_all(&flow, 500_000).await });
        }
        let mut ends = Vec::new();
        while let Some(ended) = crowd.join_next().await {
            ended.unwrap();
            ends.push(begin.elapsed());
        }
        // 10 MB at 1 MB/s, less the depth and one move.
        let all = begin.elapsed().as_secs_f64();
        assert!((9.5..10.5).contains(&all), "{all}");
        // One was first, when there was no queue; the others had each its turn.
        assert!(ends[1].as_secs_f64() > 7.0, "one was far ahead: {ends:?}");
        assert_eq!(flow.bytes(), 10_000_000);
        assert_eq!(waiting(&flow), 0);
        // It waits for the last of the debt.
        sleep(Duration::from_secs(1)).await;
        assert!(flow.pace.get().unwrap().lock().waker.is_none(), "nobody waits");
    }

    #[tokio::test(start_paused = true)]
    async fn another_limit_holds_at_once_for_those_who_wait() {
        let flow = limited(1000);
        // A debt of more than a day.
        let other = Turn::default();
        flow.moved(&other, 20_000_000);
        let begin = Instant::now();
        let change = async {
            sleep(Duration::from_secs(1)).await;
            flow.limit(Some(1000));
            assert_eq!(waiting(&flow), 1, "the same again changes nothing");
            flow.limit(Some(8_000_000));
            sleep(Duration::from_secs(1)).await;
            flow.moved(&other, 100_000_000);
            flow.limit(None);
        };
        tokio::join!(move_all(&flow, 5_000_000), change);
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_closed_while_it_waits_leaves_the_queue() {
        let flow = limited(1000);
        flow.moved(&Turn::default(), 1_000_000);
        for _ in 0..3 {
            let turn = Turn::default();
            let context = Context::from_waker(std::task::Waker::noop());
            assert!(flow.poll_turn(&turn, &context).is_pending());
            assert!(flow.poll_turn(&turn, &context).is_pending());
            assert_eq!(waiting(&flow), 1);
            drop(turn);
            assert_eq!(waiting(&flow), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_tries_again_and_again_goes_before_nobody_and_has_his_turn() {
        // A kilobyte in each second.
        let flow = limited(8000);
        let [waits, tries] = [(); 2].map(|()| Turn::default());
        let context = Context::from_waker(std::task::Waker::noop());
        // Nobody is woken meanwhile: for that the task would have to run.
        let pass = |seconds| advance(Duration::from_secs(seconds)).now_or_never();
        flow.moved(&tries, 2000);
        assert!(flow.poll_turn(&waits, &context).is_pending());
        pass(10);
        assert_eq!(flow.may_move(&tries, 1), 0, "another waits");
        let pace = flow.pace.get().unwrap();
        assert!(matches!(pace.next(), Next::Woken));
        assert_eq!(flow.may_move(&tries, 1), 0, "it is the other's turn");
        assert_eq!(flow.may_move(&waits, 1), 1);
        flow.moved(&waits, 2000);
        assert!(flow.poll_turn(&waits, &context).is_pending());
        pass(10);
        // Now it has waited longer, though nobody wakes it.
        assert!(matches!(pace.next(), Next::Woken));
        assert_eq!(flow.may_move(&waits, 1), 0);
        assert_eq!(flow.may_move(&tries, 1), 1);
        flow.moved(&tries, 1);
        assert_eq!(flow.may_move(&tries, 1), 0);
        assert!(matches!(pace.next(), Next::Woken));
        assert!(flow.poll_turn(&waits, &context).is_ready());
    }

    #[test]
    fn without_a_limit_there_is_nothing_but_a_number() {
        let flow = Flow::default();
        flow.limit(None);
        let turn = Turn::default();
        assert_eq!(flow.may_move(&turn, usize::MAX), usize::MAX);
        flow.moved(&turn, 7);
        assert_eq!(flow.bytes(), 7);
        assert!(flow.pace.get().is_none());
    }
}
