//! Connections that the pod's http client keeps for later, and that are closed
//! when the pod has no socket left for something else.

use std::{
    net::Shutdown,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::Connection;

/// Those of one pod.
#[derive(Debug, Default)]
pub(super) struct Idle(Mutex<Vec<Weak<Kept>>>);

/// A connection of HTTP/1, on which one request follows the other.
///
/// ```text
/// asked ──answer is read──▶ idle ──request──▶ asked
///                             └──another needs the socket──▶ closed
/// ```
#[derive(Debug)]
pub(crate) struct Kept {
    /// The answer may outlive it.
    connection: Weak<Connection>,
    /// How often bytes of requests went out, and how often they had when what was
    /// answered last had been asked: the same when nothing is asked for.
    written: AtomicUsize,
    done: AtomicUsize,
    /// Answers that are being read.
    answers: AtomicUsize,
}

/// An answer that is being read.
#[derive(Debug)]
pub(crate) struct Answering {
    kept: Arc<Kept>,
    /// What had been written when it began. A client may ask for more on the
    /// connection before its reader lets go of it.
    written: usize,
}

impl Idle {
    pub(super) fn add(&self, connection: &Arc<Connection>) -> Arc<Kept> {
        let kept = Arc::new(Kept {
            connection: Arc::downgrade(connection),
            // It was made for a request.
            written: AtomicUsize::new(1),
            done: AtomicUsize::new(0),
            answers: AtomicUsize::new(0),
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
        // Who takes it in this moment finds it closed before it has sent anything,
        // and takes another one.
        let connection = closed.and_then(|kept| kept.connection.upgrade());
        connection.inspect(|connection| connection.shutdown(Shutdown::Both)).is_some()
    }
}

impl Kept {
    /// Bytes of a request go out.
    pub(crate) fn asked(&self) {
        self.written.fetch_add(1, Relaxed);
    }

    /// Its answer has begun.
    pub(crate) fn answered(self: &Arc<Self>) -> Answering {
        self.answers.fetch_add(1, Relaxed);
        Answering { kept: Arc::clone(self), written: self.written.load(Relaxed) }
    }

    fn is_idle(&self) -> bool {
        self.answers.load(Relaxed) == 0 && self.written.load(Relaxed) == self.done.load(Relaxed)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.kept.done.fetch_max(self.written, Relaxed);
        self.kept.answers.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::test_connection;

    #[test]
    fn a_connection_is_idle_when_all_that_was_asked_is_answered_and_read() {
        let (idle, connection) = (Idle::default(), Arc::new(test_connection()));
        let kept = idle.add(&connection);
        assert!(!idle.close_one(), "it was made for a request");
        let first = kept.answered();
        // Its answer is whole, but not let go of: the next request goes out.
        kept.asked();
        drop(first);
        assert!(!idle.close_one(), "the next is not answered");
        let second = kept.answered();
        assert!(!idle.close_one(), "nor read");
        drop(second);
        assert!(idle.close_one());
        assert!(!idle.close_one(), "it was closed");
    }
}
