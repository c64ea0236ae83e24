//! Sockets that the agent handed over for a container's ports, while no guest uses
//! them.
//!
//! ```text
//! put ──▶ at rest ──take──▶ a guest's ──put──▶ at rest ──its container is gone──▶ closed
//! ```

use std::{
    net::SocketAddr,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::handed::Which;

/// One that nobody uses now.
#[derive(Debug)]
pub(super) struct Idle<S> {
    /// The container's port that it is for.
    pub(super) port: u16,
    pub(super) socket: S,
    pub(super) owner: Weak<()>,
}

/// Those of one kind, of one pod.
#[derive(Debug)]
pub(super) struct Resting<S>(Arc<Mutex<Vec<Idle<S>>>>);

/// Whose some of them are; with it they are gone.
#[derive(Debug)]
pub(super) struct Owner<S> {
    mark: Option<Arc<()>>,
    home: Resting<S>,
}

impl<S: AsFd> Idle<S> {
    /// Where it is bound.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        rustix::net::getsockname(&self.socket).ok()?.try_into().ok()
    }
}

impl<S> Resting<S> {
    /// Those whose container is there.
    pub(super) fn all(&self) -> MutexGuard<'_, Vec<Idle<S>>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.owner.strong_count() > 0);
        all
    }

    /// Somebody new, who has none yet.
    pub(super) fn owner(&self) -> Owner<S> {
        Owner { mark: Some(Arc::default()), home: self.clone() }
    }

    /// Puts one to rest. Without its owner it is closed.
    pub(super) fn put(&self, one: Idle<S>) {
        self.all().push(one);
        drop(self.all());
    }

    /// Takes all that are for a port and wanted.
    pub(super) fn take(&self, port: u16, which: Which) -> Vec<Idle<S>>
    where
        S: AsFd,
    {
        let is_wanted = |one: &mut Idle<S>| {
            one.port == port && one.local().is_some_and(|local| which.has(local))
        };
        self.all().extract_if(.., is_wanted).collect()
    }
}

impl<S> Clone for Resting<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Default for Resting<S> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<S> Owner<S> {
    /// What says of one that it is this one's.
    pub(super) fn mark(&self) -> Weak<()> {
        self.mark.as_ref().map(Arc::downgrade).unwrap_or_default()
    }
}

impl<S> Drop for Owner<S> {
    fn drop(&mut self) {
        drop(self.mark.take());
        drop(self.home.all());
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn what_rests_is_closed_with_its_owner_and_so_is_what_comes_back_after_him() {
        let resting = Resting::default();
        let [first, second] = [(); 2].map(|()| resting.owner());
        let sockets = [&first, &first, &second].map(|owner| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let at = socket.local_addr().unwrap();
            resting.put(Idle { port: 53, socket, owner: owner.mark() });
            at
        });
        let is_open = || sockets.map(|at| UdpSocket::bind(at).is_err());
        assert!(resting.take(54, Which::All).is_empty());
        let mut taken = resting.take(53, Which::All);
        assert!(resting.take(53, Which::All).is_empty(), "somebody has them");
        for one in taken.drain(1..) {
            resting.put(one);
        }
        assert_eq!(is_open(), [true; 3]);
        drop(first);
        assert_eq!(is_open(), [true, false, true], "the first is in use");
        for one in taken {
            resting.put(one);
        }
        assert_eq!(is_open(), [false, false, true]);
        drop(second);
        assert_eq!(is_open(), [false; 3]);
    }
}
