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
    /// Something was asked that is not answered yet.
    is_asked: AtomicBool,
    /// Answers that are being read.
    answers: AtomicUsize,
}

/// An answer that is being read.
#[derive(Debug)]
pub(crate) struct Answering(Arc<Kept>);

impl Idle {
    pub(super) fn add(&self, connection: &Arc<Connection>) -> Arc<Kept> {
        let kept = Arc::new(Kept {
            connection: Arc::downgrade(connection),
            // It was made for a request.
            is_asked: AtomicBool::new(true),
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
        self.is_asked.store(true, Relaxed);
    }

    /// Its answer has begun.
    pub(crate) fn answered(self: &Arc<Self>) -> Answering {
        self.answers.fetch_add(1, Relaxed);
        Answering(Arc::clone(self))
    }

    fn is_idle(&self) -> bool {
        !self.is_asked.load(Relaxed) && self.answers.load(Relaxed) == 0
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.is_asked.store(false, Relaxed);
        self.0.answers.fetch_sub(1, Relaxed);
    }
}
