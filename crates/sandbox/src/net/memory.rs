//! What a pod's sockets keep in the memory of its sandbox, where no limit of a
//! container counts it: bytes under way on the private loopback, and those that
//! guests have written and the network has not taken yet.
//!
//! One bound for all of them, as Linux has for a protocol's sockets (tcp(7),
//! `tcp_mem`). So that each still gets on when others hold all there is, each may
//! have [`LEAST`] beyond it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Bytes of all sockets together: room for 256 that keep as much as one may.
const MOST: usize = 16 << 20;

/// Bytes that one may have in any case. As many as a `blocking-write-and-flush`
/// of `wasi:io` has, so that these never wait for other sockets.
pub(crate) const LEAST: usize = 4 << 10;

/// How much of one pod is in use, in bytes.
#[derive(Debug, Default)]
pub(crate) struct SocketMemory(AtomicUsize);

/// Some of it, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    from: Arc<SocketMemory>,
    bytes: usize,
}

impl SocketMemory {
    /// Whether there is any left.
    pub(super) fn has_left(&self) -> bool {
        self.0.load(Relaxed) < MOST
    }

    /// Whether half of it is in use, so that less should be asked for.
    pub(crate) fn is_scarce(&self) -> bool {
        self.0.load(Relaxed) >= MOST / 2
    }

    /// Takes what is left of so many bytes, but at least as many as `least`;
    /// says how many it took.
    pub(super) fn take_some(&self, wanted: usize, least: usize) -> usize {
        let mut granted = 0;
        // It never refuses; the number it was then is of no interest.
        let _ = self.0.fetch_update(Relaxed, Relaxed, |used| {
            granted = wanted.min(MOST.saturating_sub(used).max(least));
            Some(used + granted)
        });
        granted
    }

    /// Takes all of it or nothing.
    pub(super) fn take_all(&self, bytes: usize) -> bool {
        let more = |used: usize| Some(used + bytes).filter(|used| *used <= MOST);
        self.0.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    pub(super) fn give(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Relaxed);
    }

    /// As [`take_all`](Self::take_all), given back when it is dropped.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Option<Taken> {
        self.take_all(bytes).then(|| Taken { from: Arc::clone(self), bytes })
    }

    #[cfg(test)]
    pub(super) const MOST: usize = MOST;

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.from.give(self.bytes);
    }
}
