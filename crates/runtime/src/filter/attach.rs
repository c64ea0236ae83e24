//! Attaches a filter to what a pod listens on, or takes it away.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::net::{getpeername, getsockname, ipproto, sockopt};

use super::program::{Family, Programs, Step};

/// Why a socket was not filtered as its pod's policies are.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum FilterError {
    #[error("what the sandbox lends is no socket that may listen by TCP")]
    NotAListener,

    #[error("what the sandbox lends cannot be looked at")]
    Unknown(#[source] io::Error),

    #[error("the system does not take a packet filter of {steps} steps")]
    Refused {
        steps: usize,
        #[source]
        source: io::Error,
    },
}

/// Keeps those out of a listening socket, for a port of its pod, whom the pod's
/// policies do not let in; whoever may come in to none has all come in. If it fails,
/// all do.
pub(super) fn keep_out(
    programs: &mut Programs<'_>,
    port: u16,
    socket: &OwnedFd,
) -> Result<(), FilterError> {
    let local = local(socket)?;
    // A sandbox names the port, of which nobody but itself suffers if it is wrong. It
    // need not be believed where the socket says it.
    let port = if programs.guard.is_own(local.ip()) { local.port() } else { port };
    match programs.get(Family::of(local.ip()), port) {
        None => detach(socket).map_err(FilterError::Unknown),
        Some(steps) => replace(socket, steps),
    }
}

/// Where a socket is bound that listens, or may: one at rest keeps its filter until
/// it is listened on again. To another socket a filter is not attached, whatever the
/// sandbox meant by it.
fn local(socket: &OwnedFd) -> Result<SocketAddr, FilterError> {
    let unknown = |error: rustix::io::Errno| FilterError::Unknown(error.into());
    let is_tcp = sockopt::socket_protocol(socket) == Ok(Some(ipproto::TCP));
    let is_free = || sockopt::socket_acceptconn(socket) == Ok(true) || getpeername(socket).is_err();
    if !(is_tcp && is_free()) {
        return Err(FilterError::NotAListener);
    }
    let local = getsockname(socket).map_err(unknown)?;
    SocketAddr::try_from(local).map_err(unknown)
}

fn replace(socket: &OwnedFd, steps: &[Step]) -> Result<(), FilterError> {
    let attached = match attach(socket, steps) {
        // There is no room for the one before it and another (Linux,
        // `net.core.optmem_max`). Who comes between them is seen when he is accepted.
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            detach(socket).and_then(|()| attach(socket, steps))
        }
        attached => attached,
    };
    attached.map_err(|source| {
        // It is of other policies, and may keep out whom these let in.
        let _ = detach(socket);
        FilterError::Refused { steps: steps.len(), source }
    })
}

fn attach(socket: &OwnedFd, steps: &[Step]) -> io::Result<()> {
    let length = u16::try_from(steps.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: steps.as_ptr().cast_mut() };
    set(socket, libc::SO_ATTACH_FILTER, &program)
}

/// Also of one that has none.
fn detach(socket: &OwnedFd) -> io::Result<()> {
    match set(socket, libc::SO_DETACH_FILTER, &0_i32) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        detached => detached,
    }
}

/// `rustix` has no such options.
fn set<T>(socket: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the value is of this size, and what it points to is only read.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use krustlet_model::policy::PodPolicy;
    use krustlet_protocol::PodNetwork;

    use super::{super::program::Guard, *};

    fn closed() -> Guard {
        let policy = Some(PodPolicy::closed());
        Guard::of(&PodNetwork { policy, ..PodNetwork::default() }).unwrap()
    }

    #[test]
    fn nothing_but_a_listener_is_filtered() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        let file = tempfile::tempfile().unwrap();
        let pipes = std::os::unix::net::UnixStream::pair().unwrap();
        let closed = closed();
        let mut programs = Programs::of(&closed);
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        for other in
            [connection.into(), accepted.into(), file.into(), pipes.0.into(), datagrams.into()]
        {
            let error = keep_out(&mut programs, 80, &other).unwrap_err();
            assert!(matches!(error, FilterError::NotAListener), "{error}");
        }
        keep_out(&mut programs, 80, &listener.into()).unwrap();
    }
}
