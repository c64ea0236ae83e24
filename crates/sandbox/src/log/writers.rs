//! The threads that write logs.
//!
//! They are none of those that files of guests use: a guest that has all of these at
//! work holds up nobody's output. Logs take turns, so that none which is always
//! written to does either.

use std::{
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::Log;
use crate::threads::STACK;

/// At once. A disk that stalls may hold some of them.
const THREADS: usize = 4;

/// How long one waits for more.
const KEEP_ALIVE: Duration = Duration::from_millis(500);

static WRITERS: Writers = Writers {
    state: Mutex::new(State { waiting: VecDeque::new(), threads: 0, idle: 0 }),
    more: Condvar::new(),
};

/// Those of this process.
struct Writers {
    state: Mutex<State>,
    /// Told when one waits.
    more: Condvar,
}

struct State {
    /// Logs that are to be written; none twice.
    waiting: VecDeque<Arc<Log>>,
    threads: usize,
    /// Threads that wait for one.
    idle: usize,
}

/// Has what waits in a log written.
pub(super) fn write(log: Arc<Log>) {
    let mut state = WRITERS.lock();
    state.waiting.push_back(log);
    if state.waiting.len() <= state.idle || state.threads == THREADS {
        WRITERS.more.notify_one();
        return;
    }
    state.threads += 1;
    drop(state);
    let thread = thread::Builder::new().name("logs".into()).stack_size(STACK);
    if thread.spawn(|| WRITERS.run()).is_err() {
        WRITERS.lack();
    }
}

impl Writers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until there has been nothing to do for a while.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some(log) = state.waiting.pop_front() {
                drop(state);
                // What panics is lost with its log alone.
                let is_more = panic::catch_unwind(AssertUnwindSafe(|| log.drain_some()));
                state = self.lock();
                if is_more.unwrap_or(false) {
                    state.waiting.push_back(log);
                }
                continue;
            }
            state.idle += 1;
            let waited = self.more.wait_timeout(state, KEEP_ALIVE);
            let (next, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if waited.timed_out() && state.waiting.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    /// The system gives no more threads. Without any whoever wrote has to wait for the
    /// disk.
    fn lack(&self) {
        let mut state = self.lock();
        state.threads -= 1;
        let left = if state.threads == 0 { std::mem::take(&mut state.waiting) } else { return };
        drop(state);
        for log in left {
            log.drain();
        }
    }
}
