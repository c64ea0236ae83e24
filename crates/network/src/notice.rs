//! Word from the kernel that links, addresses, routes, rules, settings of links or
//! neighbours of a namespace have changed. Which ones does not matter: whoever
//! hears it looks at all. But neighbours of other links come and go all the time.

use std::{io, os::fd::OwnedFd};

use rustix::net::{RecvFlags, recv};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{netlink::neighbour_of, plan::is_hop};

/// Enough for word of a neighbour; of all else it is enough that there is some.
const LONGEST: usize = 256;

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
    /// still there, and it waits for more only while nothing that was matters.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        let mut matters = false;
        loop {
            let mut ready = self.socket.readable().await?;
            loop {
                let mut bytes = [0; LONGEST];
                let read = ready
                    .try_io(|socket| Ok(recv(socket.get_ref(), &mut bytes[..], RecvFlags::TRUNC)?));
                match read {
                    Ok(Ok((read, _))) => matters |= neighbour_of(&bytes[..read]).is_none_or(is_hop),
                    // Word was lost, which is word of a change too.
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => matters = true,
                    Ok(Err(error)) => return Err(error),
                    Err(_would_block) if matters => return Ok(()),
                    Err(_would_block) => break,
                }
            }
        }
    }
}
