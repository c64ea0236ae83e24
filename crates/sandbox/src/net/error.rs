//! Why a socket could not do what was asked.

use std::io;

use rustix::io::Errno;

/// As `wasi:sockets/network.error-code`, in whose words the guests hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NetError {
    #[error("the pod may not do this")]
    AccessDenied,
    #[error("the operation is not supported")]
    NotSupported,
    #[error("one of the arguments is invalid")]
    InvalidArgument,
    #[error("the system has no memory for it")]
    OutOfMemory,
    #[error("the operation timed out")]
    Timeout,
    #[error("the socket's state does not allow it")]
    InvalidState,
    #[error("there are too many sockets")]
    NewSocketLimit,
    #[error("the address is not the pod's")]
    AddressNotBindable,
    #[error("the address is in use, or no port is free")]
    AddressInUse,
    #[error("the remote address cannot be reached")]
    RemoteUnreachable,
    #[error("the connection was refused")]
    ConnectionRefused,
    #[error("the connection was reset")]
    ConnectionReset,
    #[error("the connection was aborted")]
    ConnectionAborted,
    /// Nobody reads any more. POSIX equivalent: `EPIPE`.
    #[error("the other side reads no more")]
    ConnectionBroken,
    #[error("the datagram is too large")]
    DatagramTooLarge,
    #[error("it would have to wait")]
    WouldBlock,
    #[error("an unknown error")]
    Unknown,
}

impl From<Errno> for NetError {
    /// Source: WIT of `wasi:sockets` 0.2.12, the POSIX equivalents given there.
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ACCESS | Errno::PERM => Self::AccessDenied,
            Errno::OPNOTSUPP
            | Errno::NOPROTOOPT
            | Errno::PFNOSUPPORT
            | Errno::PROTONOSUPPORT
            | Errno::PROTOTYPE
            | Errno::SOCKTNOSUPPORT
            | Errno::AFNOSUPPORT
            // What the system call filter answers.
            | Errno::NOSYS => Self::NotSupported,
            Errno::INVAL => Self::InvalidArgument,
            Errno::NOMEM | Errno::NOBUFS => Self::OutOfMemory,
            Errno::TIMEDOUT => Self::Timeout,
            Errno::ISCONN | Errno::NOTCONN | Errno::DESTADDRREQ => Self::InvalidState,
            Errno::MFILE | Errno::NFILE => Self::NewSocketLimit,
            Errno::ADDRNOTAVAIL => Self::AddressNotBindable,
            Errno::ADDRINUSE => Self::AddressInUse,
            Errno::HOSTUNREACH
            | Errno::HOSTDOWN
            | Errno::NETUNREACH
            | Errno::NETDOWN
            | Errno::NONET => Self::RemoteUnreachable,
            Errno::CONNREFUSED => Self::ConnectionRefused,
            Errno::CONNRESET => Self::ConnectionReset,
            Errno::CONNABORTED => Self::ConnectionAborted,
            Errno::PIPE => Self::ConnectionBroken,
            Errno::MSGSIZE => Self::DatagramTooLarge,
            Errno::AGAIN | Errno::INTR => Self::WouldBlock,
            _ => Self::Unknown,
        }
    }
}

impl From<io::Error> for NetError {
    fn from(error: io::Error) -> Self {
        if let Some(errno) = Errno::from_io_error(&error) {
            return errno.into();
        }
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Self::WouldBlock,
            io::ErrorKind::BrokenPipe => Self::ConnectionBroken,
            io::ErrorKind::ConnectionReset => Self::ConnectionReset,
            io::ErrorKind::ConnectionRefused => Self::ConnectionRefused,
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::InvalidInput => Self::InvalidArgument,
            io::ErrorKind::OutOfMemory => Self::OutOfMemory,
            _ => Self::Unknown,
        }
    }
}

impl From<NetError> for io::Error {
    fn from(error: NetError) -> Self {
        let kind = match error {
            NetError::AccessDenied => io::ErrorKind::PermissionDenied,
            NetError::NotSupported => io::ErrorKind::Unsupported,
            NetError::InvalidArgument => io::ErrorKind::InvalidInput,
            NetError::OutOfMemory => io::ErrorKind::OutOfMemory,
            NetError::Timeout => io::ErrorKind::TimedOut,
            NetError::InvalidState => io::ErrorKind::NotConnected,
            NetError::AddressNotBindable => io::ErrorKind::AddrNotAvailable,
            NetError::AddressInUse => io::ErrorKind::AddrInUse,
            NetError::RemoteUnreachable => io::ErrorKind::HostUnreachable,
            NetError::ConnectionRefused => io::ErrorKind::ConnectionRefused,
            NetError::ConnectionReset => io::ErrorKind::ConnectionReset,
            NetError::ConnectionAborted => io::ErrorKind::ConnectionAborted,
            NetError::ConnectionBroken => io::ErrorKind::BrokenPipe,
            NetError::WouldBlock => io::ErrorKind::WouldBlock,
            NetError::NewSocketLimit | NetError::DatagramTooLarge | NetError::Unknown => {
                io::ErrorKind::Other
            }
        };
        Self::new(kind, error)
    }
}
