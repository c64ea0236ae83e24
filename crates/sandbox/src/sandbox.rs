//! A sandbox process: from the fork to the last lock, then its control thread.
//!
//! What a fork leaves of the zygote is given up in this order: descriptors,
//! signals, the user, capabilities, and last the system calls that did it.
//! After that there are two kinds of threads: this one, which answers agents
//! ([`control`](crate::control)), and the one that runs guests
//! ([`guests`](crate::guests)).
//!
//! The process ends only by `_exit`: destructors and exit handlers belong to
//! the zygote, whose memory this is a copy of.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{self, AssertUnwindSafe},
};

use crate::{
    control::Control,
    room::{self, Walls},
    seccomp::{FilterError, Filters},
    warm::Warm,
    zygote,
};

/// The exit code of a sandbox that could not be set up, or whose host failed;
/// an aborted program has it too. Containers report their own codes.
pub(crate) const HOST_FAILED: i32 = 134;

/// What a new sandbox is to be.
#[derive(Debug)]
pub(crate) struct Birth {
    /// Its user; not 0.
    pub(crate) uid: u32,
    /// Its group; not 0.
    pub(crate) gid: u32,
    /// Its supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// What the zygote could put around it.
    pub(crate) walls: Walls,
    /// A bound socket, to listen on.
    pub(crate) control: OwnedFd,
    /// Gets a line for each ended container.
    pub(crate) status: OwnedFd,
}

/// Which step of locking up failed; written to the status file.
#[derive(Debug, thiserror::Error)]
enum LockError {
    #[error("cannot become user {uid}, group {gid}: {source}")]
    User { uid: u32, gid: u32, source: io::Error },
    #[error("cannot drop rights: {0}")]
    Rights(io::Error),
    #[error("cannot redirect the standard streams: {0}")]
    Streams(io::Error),
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// Runs the sandbox in the forked child. Never returns, also not by a panic.
pub(crate) fn main(warm: &Warm, filters: &Filters, nothing: BorrowedFd<'_>, birth: Birth) -> ! {
    let code = panic::catch_unwind(AssertUnwindSafe(|| {
        match lock(filters, nothing, &birth) {
            Ok(()) => Control::new(warm, birth.control, File::from(birth.status))
                .map_or(HOST_FAILED, Control::run),
            Err(error) => {
                // The agent sees the exit code; the words are for people.
                zygote::say(&error);
                HOST_FAILED
            }
        }
    }))
    .unwrap_or(HOST_FAILED);
    // SAFETY: ends the process without running what belongs to the zygote.
    unsafe { libc::_exit(code) }
}

fn lock(filters: &Filters, nothing: BorrowedFd<'_>, birth: &Birth) -> Result<(), LockError> {
    // The zygote's values still name these descriptors, but are never dropped.
    let mut first = 3;
    for kept in zygote::numbers(&[nothing, birth.control.as_fd(), birth.status.as_fd()]) {
        zygote::close_between(first, kept - 1);
        first = kept + 1;
    }
    zygote::close_from(first);
    zygote::unblock_signals();
    // A name is for people; without one it still works.
    let _ = rustix::thread::set_name(c"krustlet-pod");

    match birth.walls {
        Walls::Users => {
            room::become_user(birth.uid, birth.gid, &birth.groups)
                .map_err(|source| LockError::User { uid: birth.uid, gid: birth.gid, source })?;
        }
        // There is one user to be; the zygote has said so.
        Walls::OneUser | Walls::FiltersOnly => {}
    }
    room::drop_rights().map_err(LockError::Rights)?;
    // Whose terminal or log that is may be gone long before this process is.
    zygote::redirect(libc::STDERR_FILENO, &nothing).map_err(LockError::Streams)?;
    Ok(filters.lock_sandbox()?)
}
