//! What guests' threads tell the control thread.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
};

use krustlet_model::{ContainerId, PodUid};
use krustlet_protocol::{ExecOutcome, ExitReport};
use rustix::event::EventfdFlags;

/// Something that happened to a guest.
#[derive(Debug)]
pub(crate) enum News {
    /// It entered its first function, at this time in microseconds.
    Running { id: ContainerId, at: i64 },
    /// It ended.
    Exited { id: ContainerId, exit: ExitReport },
    /// Its log moved on to the next file.
    LogRotated { id: ContainerId },
    /// The program of an exec ended; `request` says whose it was.
    ExecEnded { request: RequestId, outcome: ExecOutcome },
    /// A connection for the agent was made, or why it was not.
    Visited { request: RequestId, made: Result<(), String> },
    /// A pod listens anew.
    Listening { pod: PodUid },
    /// Something of the node's is not as it should be.
    Complaint { what: String },
    /// The guests' thread failed; no guest runs any more.
    HostFailed { what: String },
}

/// A request that is answered later: its connection, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestId {
    pub(crate) connection: u64,
    pub(crate) frame: u64,
}

/// Tells the control thread.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    news: Sender<News>,
    wake: Arc<Wake>,
}

impl Teller {
    /// A way to tell, and the end where the control thread hears.
    ///
    /// The channel has no bound of its own, whose room would be taken in every
    /// sandbox: news are bounded by what the control thread has ordered. A
    /// container gives two, and one for each log file handed over; an exec one;
    /// a visit one; a pod that listens one, and the next when the agent has asked.
    /// Complaints come once a minute at most.
    pub(crate) fn new(wake: Arc<Wake>) -> (Self, Receiver<News>) {
        let (news, heard) = mpsc::channel();
        (Self { news, wake }, heard)
    }

    pub(crate) fn tell(&self, news: News) {
        // Nobody hears only when the process is about to end.
        let _ = self.news.send(news);
        self.wake.wake();
    }
}

/// Wakes the control thread, which polls this descriptor.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }

    pub(crate) fn wake(&self) {
        // Fails only when it is already as ready as it can be.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes it unready again.
    pub(crate) fn heard(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
