//! Connections that the pod's http client keeps for later, and that are closed
//! when the pod has no socket left for something else.

use std::{
    net::Shutdown,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use super::Connection;

/// Those of one pod.
#[derive(Debug, Default)]
pub(super) struct Idle(Mutex<Vec<Weak<Kept>>>);

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
}

/// A request that is under way on a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Asking {
    kept: Arc<Kept>,
    /// The connection was made for it.
    is_first: bool,
}

impl Idle {
    pub(super) fn add(&self, connection: &Arc<Connection>) -> Arc<Kept> {
        let kept = Arc::new(Kept {
            connection: Arc::downgrade(connection),
            requests: AtomicUsize::new(1),
            is_awaited: AtomicBool::new(true),
        });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|kept| kept.strong_count() > 0);
        all.push(Arc::downgrade(&kept));
        kept
    }

    /// Closes the oldest that is idle; its socket is free as soon as the client
    /// has seen it. False if there is none.
    pub(super) fn close_one(&self) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |kept: &Weak<Kept>| kept.upgrade().is_some_and(|kept| kept.is_idle());
        let Some(index) = all.iter().position(idle) else { return false };
        let closed = all.remove(index).upgrade();
        drop(all);
        // The client sees it before it is asked for the next request.
        let connection = closed.and_then(|kept| kept.connection.upgrade());
        connection.inspect(|connection| connection.shutdown(Shutdown::Both)).is_some()
    }
}

impl Kept {
    /// A request takes it.
    pub(crate) fn asked(self: &Arc<Self>) -> Asking {
        let is_first = self.is_awaited.swap(false, Relaxed);
        if !is_first {
            self.requests.fetch_add(1, Relaxed);
        }
        Asking { kept: Arc::clone(self), is_first }
    }

    /// The request that it was made for goes by another.
    pub(crate) fn is_for_nobody(&self) {
        if self.is_awaited.swap(false, Relaxed) {
            self.requests.fetch_sub(1, Relaxed);
        }
    }

    fn is_idle(&self) -> bool {
        self.requests.load(Relaxed) == 0
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
        self.kept.requests.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::test_connection;

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
    fn a_connection_whose_request_went_by_another_is_idle_until_the_next_takes_it() {
        let (idle, connection) = (Idle::default(), Arc::new(test_connection()));
        let kept = idle.add(&connection);
        kept.is_for_nobody();
        let next = kept.asked();
        assert!(!next.is_first(), "it may be as old as any");
        kept.is_for_nobody();
        assert!(!idle.close_one(), "it is in use");
        drop(next);
        assert!(idle.close_one());
    }
}
