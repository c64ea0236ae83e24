//! Wakes a reader when something happens in a log's directory, by inotify.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Tells of changes to the files of one directory.
#[derive(Debug)]
pub(super) struct DirectoryWatch {
    inotify: AsyncFd<OwnedFd>,
}

impl DirectoryWatch {
    /// Begins to watch: what happens from now on is told.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // Appends, the rename of a rotation, and the new file after it.
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&inotify, directory, flags)?;
        // SAFETY: the AsyncFd owns the descriptor and is the only one to close it.
        let inotify = unsafe { AsyncFd::register(inotify) }.map_err(io::Error::from)?;
        Ok(Self { inotify })
    }

    /// Returns after the next change, or at once if one was missed. Cancel-safe:
    /// events are taken only in the poll that reports them.
    pub(super) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            if let Ok(result) = ready.try_io(|fd| drain(fd.get_ref())) {
                return result;
            }
        }
    }
}

/// Reads all events away; what they say does not matter.
fn drain(fd: &OwnedFd) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(fd.as_fd(), &mut buffer);
    let mut seen = false;
    loop {
        match reader.next() {
            Ok(_) => seen = true,
            Err(rustix::io::Errno::AGAIN) if seen => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
