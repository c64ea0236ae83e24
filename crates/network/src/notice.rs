//! Word from the kernel that links, addresses or routes of a namespace have
//! changed. Which ones does not matter: whoever hears it looks at all.

use std::{io, os::fd::OwnedFd};

use rustix::net::{RecvFlags, recv};
use tokio::io::{Interest, unix::AsyncFd};

/// A socket that hears of changes.
#[derive(Debug)]
pub(crate) struct Notices {
    socket: AsyncFd<OwnedFd>,
}

impl Notices {
    /// Needs a tokio runtime; the socket is one of
    /// [`notices`](crate::netlink::notices), of any namespace.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: the AsyncFd owns the descriptor and is the only one to close it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self { socket: socket.map_err(io::Error::from)? })
    }

    /// Resolves when something has changed. Cancel-safe: what was not taken is
    /// still there.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        let mut ready = self.socket.readable().await?;
        loop {
            // Nothing is to be learned from what it says.
            let mut bytes = [0; 256];
            let read = ready
                .try_io(|socket| Ok(recv(socket.get_ref(), &mut bytes[..], RecvFlags::TRUNC)?));
            match read {
                Ok(Ok(_)) => {}
                // Word was lost, which is word of a change too.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => return Ok(()),
            }
        }
    }
}
