//! Threads for the connections of http guests, whose containers may use more than
//! one core: the guests' own, and others beside it.
//!
//! ```text
//! guests' thread ──accepts──▶ the thread with the fewest connections open:
//!                              itself, or another: its instances, their sockets
//! ```
//!
//! All that a connection asks for is done on its thread, so that nobody is woken
//! on another while a request is answered. A thread is started by the first
//! connection for which all others have one, and ends when nothing is left on it.
//!
//! Our own, and not tokio's runtime of several threads: that one takes its memory
//! before it is needed, and has each task that is woken pass between threads.

use std::{
    cell::Cell,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::Notify,
    task::spawn_blocking,
    time::sleep,
};

/// Sockets heard of at once. tokio's default of 1024 takes 12 KiB of memory.
const IO_EVENTS: usize = 64;

/// Threads for calls that block: files of guests. A stalled volume may hold some of
/// them; what else needs one then waits. (A volume's directory is opened for each
/// instance where its guest runs: there a stalled one holds up all guests.)
const BLOCKING_THREADS: usize = 8;

/// How long such a thread waits for more; a guest at work keeps it. One for
/// connections that has tasks left after that is looked at ever more seldom.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Stack of the threads in bytes, beside which guests have their own. Only
/// touched pages cost anything.
pub(crate) const STACK: usize = 1 << 20;

/// Threads of one sandbox at most.
const MOST: usize = 64;

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

/// Which thread this is, as [`Place::index`] has it.
pub(crate) fn current() -> usize {
    INDEX.get()
}

/// What runs tasks on one thread.
///
/// # Errors
///
/// When the system gives no descriptors.
pub(crate) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_io()
        .max_io_events_per_tick(IO_EVENTS)
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP_ALIVE)
        .thread_stack_size(STACK)
        .thread_name("blocking")
        .build()
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Threads {
    /// Connections of the guests' own, and what runs tasks there.
    own: (Arc<Load>, Handle),
    others: Vec<Arc<Other>>,
}

/// Connections that are open on a thread.
#[derive(Debug, Default)]
struct Load {
    open: AtomicUsize,
    /// Told when one is gone.
    gone: Notify,
}

/// A thread beside the guests' own.
#[derive(Debug, Default)]
struct Other {
    load: Arc<Load>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    None,
    Runs(Handle),
    /// It waits for calls that block, and takes nothing more: as many threads may do so
    /// as there may be.
    Ends,
}

impl Threads {
    /// As many as the node has cores. `own` runs the guests' own.
    pub(crate) fn new(own: Handle, cores: usize) -> Self {
        let others = (1..cores.min(MOST)).map(|_| Arc::default()).collect();
        Self { own: (Arc::default(), own), others }
    }

    /// How many there may be.
    pub(crate) fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// How many of them may serve a container that may use so many thousandths of a
    /// core, or all there are; at least one.
    pub(crate) fn of_limit(&self, cpu_millis: Option<u64>) -> usize {
        let cores = cpu_millis.map(|millis| millis.div_ceil(1000).max(1));
        let cores = cores.map_or(usize::MAX, |cores| usize::try_from(cores).unwrap_or(usize::MAX));
        cores.min(self.count())
    }

    /// A place on that of the first `most` that has the fewest, of equals on the
    /// first. Where the system gives no other thread it is on the guests' own.
    pub(crate) fn place(&self, most: usize) -> Place {
        let (own, handle) = &self.own;
        self.others
            .iter()
            .zip(1..most)
            .min_by_key(|(other, _)| other.load.open())
            .filter(|(other, _)| other.load.open() < own.open())
            .and_then(|(other, index)| other.place(index))
            .unwrap_or_else(|| Place::new(0, handle.clone(), own))
    }
}

impl Load {
    fn open(&self) -> usize {
        self.open.load(SeqCst)
    }
}

impl Other {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on it; starts it if need be. None while it ends, and where the system
    /// gives no thread.
    fn place(self: &Arc<Self>, index: usize) -> Option<Place> {
        let mut state = self.lock();
        let handle = match &*state {
            State::Runs(handle) => handle.clone(),
            State::Ends => return None,
            State::None => {
                let handle = self.start(index, STACK).ok()?;
                *state = State::Runs(handle.clone());
                handle
            }
        };
        // While it is locked: the thread does not end meanwhile.
        Some(Place::new(index, handle, &self.load))
    }

    fn start(self: &Arc<Self>, index: usize, stack: usize) -> io::Result<Handle> {
        let runtime = runtime()?;
        let handle = runtime.handle().clone();
        // Whoever is refused a thread drops what was for it, and a runtime that is dropped
        // where another runs panics.
        let kept = Arc::new(Mutex::new(Some(runtime)));
        let taken = Arc::clone(&kept);
        let other = Arc::clone(self);
        let thread = thread::Builder::new().name(format!("guests {index}")).stack_size(stack);
        let started = thread.spawn(move || {
            // Dropped in turn from below, also by a panic, as of a system that gives no
            // thread for calls that block. A task that panics ends alone.
            let _gone = Sets(&other, || State::None);
            let Some(runtime) = take(&taken) else { return };
            let _ends = Sets(&other, || State::Ends);
            INDEX.set(index);
            runtime.block_on(other.until_idle());
        });
        if started.is_err()
            && let Some(runtime) = take(&kept)
        {
            runtime.shutdown_background();
        }
        started.map(|_| handle)
    }

    /// Returns when no connection is open and no task is left of any; then nothing more
    /// is taken.
    async fn until_idle(&self) {
        let tasks = Handle::current().metrics();
        loop {
            self.load.gone.notified().await;
            let mut wait = KEEP_ALIVE;
            while self.load.open() == 0 {
                sleep(wait).await;
                // What is queued for threads that may block is begun before this is,
                // and what is begun is done before the runtime is gone.
                let _ = spawn_blocking(|| ()).await;
                let mut state = self.lock();
                if self.load.open() == 0 && tasks.num_alive_tasks() == 0 {
                    *state = State::Ends;
                    return;
                }
                // An instance that waits for another request, or what it left behind:
                // that may stay for long.
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

/// Sets a thread's state when it is dropped.
struct Sets<'a>(&'a Other, fn() -> State);

impl Drop for Sets<'_> {
    fn drop(&mut self) {
        *self.0.lock() = (self.1)();
    }
}

fn take(runtime: &Mutex<Option<Runtime>>) -> Option<Runtime> {
    runtime.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A connection's place on a thread, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    index: usize,
    handle: Handle,
    load: Arc<Load>,
}

impl Place {
    fn new(index: usize, handle: Handle, load: &Arc<Load>) -> Self {
        load.open.fetch_add(1, SeqCst);
        Self { index, handle, load: Arc::clone(load) }
    }

    /// Which thread it is; 0 is the guests' own.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// What runs tasks there.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.open.fetch_sub(1, SeqCst);
        self.load.gone.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    fn soon(is_so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_mins(1);
        while !is_so() {
            assert!(Instant::now() < end, "it does not come true");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn where_the_system_gives_no_thread_the_guests_own_serves() {
        /// More than there are addresses.
        const TOO_LARGE: usize = 1 << 50;
        let runtime = runtime().unwrap();
        let other = Arc::new(Other::default());
        // As where connections are accepted.
        runtime.block_on(async { other.start(1, TOO_LARGE).unwrap_err() });
        // One that is at its end takes nothing either.
        let threads = Threads::new(runtime.handle().clone(), 2);
        *threads.others[0].lock() = State::Ends;
        let places = [(); 2].map(|()| threads.place(2));
        assert_eq!(places.map(|place| place.index()), [0; 2]);
    }

    #[test]
    fn a_container_has_as_many_as_its_limit_has_cores() {
        let runtime = runtime().unwrap();
        let threads = Threads::new(runtime.handle().clone(), 4);
        let table = [(None, 4), (Some(1), 1), (Some(1000), 1), (Some(1001), 2)];
        for (limit, most) in table.into_iter().chain([(Some(64_000), 4), (Some(u64::MAX), 4)]) {
            assert_eq!(threads.of_limit(limit), most, "{limit:?}");
        }
    }

    #[test]
    fn what_runs_in_a_place_runs_on_its_thread() {
        let runtime = runtime().unwrap();
        let threads = Threads::new(runtime.handle().clone(), 3);
        let places: Vec<_> = (0..3).map(|_| threads.place(3)).collect();
        let name = async || thread::current().name().map(ToOwned::to_owned);
        let names: Vec<_> = places[1..].iter().map(|place| place.handle().spawn(name())).collect();
        let names: Vec<_> =
            names.into_iter().map(|name| runtime.block_on(name).unwrap().unwrap()).collect();
        assert_eq!(names, ["guests 1", "guests 2"]);
    }

    #[test]
    fn a_thread_lasts_as_long_as_there_is_something_on_it() {
        let runtime = runtime().unwrap();
        let threads = Threads::new(runtime.handle().clone(), 2);
        let is_started = || !matches!(*threads.others[0].lock(), State::None);
        // One after the other, and several of a container that may use one core.
        for _ in 0..3 {
            drop(threads.place(2));
        }
        let _open: Vec<_> = (0..3).map(|_| threads.place(1)).collect();
        assert!(!is_started());
        let place = threads.place(2);
        assert!(place.index() == 1 && is_started());
        // What a connection leaves behind: a task, and something for a thread that may
        // block, the last of many.
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let left = place.handle().spawn(async move {
            for _ in 0..=BLOCKING_THREADS {
                let tell = tell.clone();
                drop(spawn_blocking(move || {
                    thread::sleep(KEEP_ALIVE);
                    tell.send(()).unwrap();
                }));
            }
            ended.await
        });
        drop(place);
        thread::sleep(3 * KEEP_ALIVE);
        assert!(is_started(), "a task is left");
        end.send(()).unwrap();
        runtime.block_on(left).unwrap().unwrap();
        soon(|| !is_started());
        assert_eq!(told.iter().take(BLOCKING_THREADS + 1).count(), BLOCKING_THREADS + 1);
        // It begins again.
        let _place = threads.place(2);
        assert!(is_started());
    }

    proptest! {
        // Its threads last a while longer.
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn connections_are_shared_out_evenly(
            cores in 1_usize..5,
            steps in prop::collection::vec(any::<Option<prop::sample::Index>>(), 0..40),
        ) {
            let runtime = runtime().unwrap();
            let threads = Threads::new(runtime.handle().clone(), cores);
            let mut places: Vec<Place> = Vec::new();
            for step in steps {
                match step {
                    Some(which) if !places.is_empty() => {
                        let index = which.index(places.len());
                        drop(places.swap_remove(index));
                    }
                    Some(_) | None => {
                        let open = |index| places.iter().filter(|at| at.index() == index).count();
                        let fewest = (0..cores).min_by_key(|&index| open(index)).unwrap();
                        let place = threads.place(cores);
                        prop_assert_eq!(place.index(), fewest);
                        places.push(place);
                    }
                }
            }
        }
    }
}
