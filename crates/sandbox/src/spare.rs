//! Descriptors that are kept for agents: for what they hand over, what is opened
//! of it, and for those that come.
//!
//! All others of the process may be taken by guests, in whose files and sockets
//! nobody else has a say. A guest that opens something while these are given up
//! may get some. Then what was handed over is missing, which is answered as a
//! failure; the next request may find room.

use std::os::fd::OwnedFd;

/// How many: for the largest of what agents send, a new container with some
/// volumes and ports.
const SPARE: usize = 12;

/// See the module.
#[derive(Debug)]
pub(crate) struct Spare(Vec<OwnedFd>);

impl Spare {
    /// As many as the process has left.
    pub(crate) fn new() -> Self {
        let mut spare = Self(Vec::with_capacity(SPARE));
        spare.refill();
        spare
    }

    /// Makes room.
    pub(crate) fn give_up(&mut self) {
        self.0.clear();
    }

    /// Takes what there is again, as far as it is still free.
    pub(crate) fn refill(&mut self) {
        while self.0.len() < SPARE {
            // Whatever it is: it is never read.
            match rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 0) {
                Ok(another) => self.0.push(another),
                Err(_) => return,
            }
        }
    }
}
