//! The socket at which agents come in, and rest from it when that fails.
//!
//! A connection that cannot be accepted, because descriptors are short, stays
//! in the queue; whoever polls for it would wake again at once, for ever.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{event::PollFlags, io::Errno, net::SocketFlags};

/// Rest after a failed accept: others must end first.
const REST: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(crate) struct Door {
    listener: OwnedFd,
    shut_until: Option<Instant>,
}

impl Door {
    /// Takes a socket that listens and does not block.
    pub(crate) fn new(listener: OwnedFd) -> Self {
        Self { listener, shut_until: None }
    }

    /// What to poll it for.
    pub(crate) fn interest(&self, now: Instant) -> PollFlags {
        if self.rest(now).is_some() { PollFlags::empty() } else { PollFlags::IN }
    }

    /// After how long to ask for [`interest`](Self::interest) again; `None` if
    /// it is open.
    pub(crate) fn rest(&self, now: Instant) -> Option<Duration> {
        self.shut_until.map(|until| until.saturating_duration_since(now)).filter(|d| !d.is_zero())
    }

    /// Lets one agent in, if one is there.
    ///
    /// # Errors
    ///
    /// What accept4(2) says; the door is shut for a while then.
    pub(crate) fn accept(&mut self, now: Instant) -> Result<Option<OwnedFd>, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => Ok(Some(socket)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => {
                self.shut_until = Some(now + REST);
                Err(error)
            }
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failed_accept_it_is_not_polled_for_a_while() {
        // A socket that does not listen fails at each accept.
        let (socket, _peer) = krustlet_protocol::socket::pair().unwrap();
        let mut door = Door::new(socket);
        let now = Instant::now();
        assert_eq!((door.interest(now), door.rest(now)), (PollFlags::IN, None));
        assert!(door.accept(now).is_err());
        assert_eq!((door.interest(now), door.rest(now)), (PollFlags::empty(), Some(REST)));
        let later = now + REST;
        assert_eq!((door.interest(later), door.rest(later)), (PollFlags::IN, None));
    }
}
