//! Epochs that tick only while a guest computes, and the processor time it takes.
//!
//! A guest yields at each tick, so that guests share their thread and a stop is
//! heard. A guest thread says when it enters a guest ([`Ticker::enter`]); the
//! control thread ticks ([`Ticks`]). A sandbox whose guests all wait has no
//! timer at all. Where a container's CPU is limited ([`bucket`](crate::bucket)),
//! [`Metered`] is what holds its guests back.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use tokio::time::{Sleep, sleep};
use wasmtime::Engine;

use crate::{news::Wake, state::Usage};

/// Time between ticks: how long a guest may keep its thread from others. (What one
/// call of the host copies or draws may take twice that; it is bounded in
/// [`state`](crate::state).) Ticks of 5 ms cost 0.4 % of a core.
const TICK: Duration = Duration::from_millis(5);

/// Ticks without a guest after which ticking ends, so that a guest that runs
/// often and briefly does not switch it on and off each time.
const IDLE_TICKS: u32 = 4;

/// The guest threads' side.
#[derive(Debug)]
pub(crate) struct Ticker {
    /// Guests that are being run right now, each by a thread.
    inside: AtomicUsize,
    /// How many times a guest was entered.
    entries: AtomicU64,
    ticking: AtomicBool,
    wake: Arc<Wake>,
}

impl Ticker {
    pub(crate) fn new(wake: Arc<Wake>) -> Self {
        Self {
            inside: AtomicUsize::new(0),
            entries: AtomicU64::new(0),
            ticking: AtomicBool::new(false),
            wake,
        }
    }

    /// Says that a guest is entered, until the value is dropped.
    fn enter(&self) -> Inside<'_> {
        self.entries.fetch_add(1, SeqCst);
        self.inside.fetch_add(1, SeqCst);
        // After `entries`: the control thread looks at them after it has
        // stopped ticking, so one of the two sees the other.
        if !self.ticking.load(SeqCst) {
            self.wake.wake();
        }
        Inside(self)
    }
}

struct Inside<'a>(&'a Ticker);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, SeqCst);
    }
}

/// The control thread's side.
pub(crate) struct Ticks {
    ticker: Arc<Ticker>,
    engine: Engine,
    seen: u64,
    idle: u32,
    due: Option<Instant>,
}

impl Ticks {
    pub(crate) fn new(ticker: Arc<Ticker>, engine: Engine) -> Self {
        Self { ticker, engine, seen: 0, idle: 0, due: None }
    }

    /// How long the control thread may sleep; `None` for ever.
    pub(crate) fn timeout(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }

    /// To be called each time the control thread has woken.
    pub(crate) fn woke(&mut self, now: Instant) {
        match self.due {
            Some(due) if now >= due => self.tick(now),
            None if self.ticker.entries.load(SeqCst) != self.seen => self.begin(now),
            Some(_) | None => {}
        }
    }

    fn begin(&mut self, now: Instant) {
        self.ticker.ticking.store(true, SeqCst);
        self.idle = 0;
        self.due = Some(now + TICK);
    }

    fn tick(&mut self, now: Instant) {
        let entries = self.ticker.entries.load(SeqCst);
        let inside = self.ticker.inside.load(SeqCst) > 0;
        if inside {
            self.engine.increment_epoch();
        }
        self.idle = if inside || entries != self.seen { 0 } else { self.idle + 1 };
        self.seen = entries;
        self.due = Some(now + TICK);
        if self.idle < IDLE_TICKS {
            return;
        }
        self.due = None;
        self.ticker.ticking.store(false, SeqCst);
        if self.ticker.entries.load(SeqCst) != self.seen {
            self.begin(now);
        }
    }

    /// Makes a guest that computes yield now, not at the next tick.
    pub(crate) fn hurry(&self) {
        self.engine.increment_epoch();
    }
}

/// A guest's future, or one of the sandbox that works for it: while it is polled
/// epochs tick, and its container is charged for the time. Of one that is polled
/// within another each pays for what the other does not. File operations are not
/// counted: wasmtime hands them to threads that it shares among all, and says of none
/// for whom it works (`runtime::spawn_blocking` of `wasmtime-wasi`). On this thread
/// (`WasiCtxBuilder::allow_blocking_current_thread`) they would be, and a volume that
/// stalls would stop all guests.
///
/// A guest whose container has used more than its CPU limit is not polled until
/// that is made good: others have the thread, and whoever polls this can still
/// drop it. It yields at each tick, so a container runs ahead of its limit by no
/// more than that on each thread; a shorter tick for small limits would cut short pieces of
/// work in two for the same share of the time.
pub(crate) struct Metered<F> {
    guest: Pin<Box<F>>,
    /// None where no guest computes.
    ticker: Option<Arc<Ticker>>,
    usage: Arc<Usage>,
    /// Runs while the container is over its limit.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<F: Future> Metered<F> {
    pub(crate) fn new(guest: F, ticker: Arc<Ticker>, usage: Arc<Usage>) -> Self {
        Self { guest: Box::pin(guest), ticker: Some(ticker), usage, pause: None }
    }

    /// What the sandbox itself does for a container, charged and held back as its
    /// guests are.
    pub(crate) fn of_host(work: F, usage: Arc<Usage>) -> Self {
        Self { guest: Box::pin(work), ticker: None, usage, pause: None }
    }

    /// Ready when the container may run. Asked again after each pause, as other
    /// guests of the container may have run first.
    fn poll_limit(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match self.usage.cpu_wait() {
                Some(wait) => self.pause = Some(Box::pin(sleep(wait))),
                None => return Poll::Ready(()),
            }
        }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        ready!(this.poll_limit(context));
        let _inside = this.ticker.as_deref().map(Ticker::enter);
        let before = time_before();
        let mut outer = Outer(WITHIN.replace(Some(0)));
        let polled = this.guest.as_mut().poll(context);
        let after = thread_time();
        let took = after.saturating_sub(before);
        this.usage.charge_cpu(took.saturating_sub(WITHIN.get().unwrap_or(0)));
        outer.0 = outer.0.map(|within| within + took);
        drop(outer);
        LAST.set(Some((Instant::now(), after)));
        polled
    }
}

/// Runs what HTTP does beside the task that serves or asks: streams of version 2,
/// connections that are kept. Charged to a container and held back as that is.
#[derive(Clone, Debug)]
pub(crate) struct Charged(Arc<Usage>);

impl Charged {
    pub(crate) fn new(usage: Arc<Usage>) -> Self {
        Self(usage)
    }
}

impl<F> Executor<F> for Charged
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, work: F) {
        TokioExecutor::new().execute(Metered::of_host(work, Arc::clone(&self.0)));
    }
}

thread_local! {
    /// Nanoseconds that those have paid for who were polled within the one at hand; none
    /// while none is polled.
    static WITHIN: Cell<Option<u64>> = const { Cell::new(None) };
    /// When the last one was polled, and this thread's time after that.
    static LAST: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };
}

/// What [`WITHIN`] was before one is polled, and is again after that, also if it panics:
/// its thread may poll others then.
struct Outer(Option<u64>);

impl Drop for Outer {
    fn drop(&mut self) {
        WITHIN.set(self.0);
    }
}

/// How long the time after one that was polled is good for the next one: to ask for it
/// is a system call, which was a tenth of what a short request took.
const NEAR: Duration = Duration::from_micros(20);

/// This thread's time for one that is polled now.
fn time_before() -> u64 {
    match LAST.take() {
        // What another does before it polls this one is its own affair.
        Some((at, time)) if WITHIN.get().is_none() && at.elapsed() < NEAR => time,
        Some(_) | None => thread_time(),
    }
}

/// Processor time of this thread in nanoseconds.
pub(crate) fn thread_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a value of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    // Neither is negative for this clock.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        panic::{AssertUnwindSafe, catch_unwind},
        task::Waker,
    };

    use krustlet_protocol::Limits;

    use super::*;

    #[tokio::test]
    async fn nobody_pays_for_what_another_pays_for() {
        const SOME: u64 = 20_000_000;
        let [inner, outer] = [(); 2].map(|()| Arc::new(Usage::new(&Limits::default())));
        let work = |many| {
            let end = thread_time() + many * SOME;
            while thread_time() < end {}
        };
        let before = thread_time();
        let works = async {
            work(1);
            Metered::of_host(async { work(3) }, Arc::clone(&inner)).await;
        };
        Metered::of_host(works, Arc::clone(&outer)).await;
        let took = thread_time() - before;
        assert!(inner.cpu() >= 3 * SOME && outer.cpu() >= SOME);
        assert!(inner.cpu() + outer.cpu() <= took);
    }

    #[test]
    fn after_a_panic_nobody_is_taken_to_be_polled_within_another() {
        let usage = Arc::new(Usage::new(&Limits::default()));
        let work = poll_fn(|_| -> Poll<()> { panic!("as a host's function might") });
        let mut metered = Metered::of_host(work, usage);
        let polls = || Pin::new(&mut metered).poll(&mut Context::from_waker(Waker::noop()));
        assert!(catch_unwind(AssertUnwindSafe(polls)).is_err());
        assert_eq!(WITHIN.get(), None);
    }

    fn engine() -> Engine {
        let mut config = krustlet_compiler::engine_config();
        config.enable_compiler(false);
        Engine::new(&config).unwrap()
    }

    #[test]
    fn ticking_begins_with_a_guest_and_ends_after_the_last() {
        let ticker = Arc::new(Ticker::new(Arc::new(Wake::new().unwrap())));
        let mut ticks = Ticks::new(Arc::clone(&ticker), engine());
        let mut now = Instant::now();
        assert_eq!(ticks.timeout(now), None);
        ticks.woke(now);
        assert_eq!(ticks.timeout(now), None, "no guest, no ticks");

        let inside = ticker.enter();
        ticks.woke(now);
        for _ in 0..100 {
            assert_eq!(ticks.timeout(now), Some(TICK));
            now += TICK;
            ticks.woke(now);
        }
        drop(inside);
        let mut left = 0;
        while ticks.timeout(now).is_some() {
            now += TICK;
            ticks.woke(now);
            left += 1;
        }
        assert!(left <= IDLE_TICKS + 1, "{left} ticks after the last guest");
        drop(ticker.enter());
        ticks.woke(now);
        assert_eq!(ticks.timeout(now), Some(TICK), "it begins again");
    }
}
