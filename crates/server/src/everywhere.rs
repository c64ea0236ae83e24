//! Listening at every address of a machine, of whichever families it has.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt},
};
use tokio::net::TcpListener;

/// Connections that wait to be accepted; what tokio takes.
const BACKLOG: i32 = 1024;

/// Listens at an address. One that stands for all, of whichever family, is all of
/// both families, as for the kubelet: Go's `net.Listen` has it so
/// (`favoriteAddrFamily` in `net/ipsock_posix.go`).
///
/// # Errors
///
/// What the system says.
pub(crate) async fn bind_at(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        everywhere(|any| of_both_families(SocketAddr::new(any, address.port())))
    } else {
        TcpListener::bind(address).await
    }
}

/// IPv4 alone where the kernel has no IPv6.
fn everywhere<L>(mut open: impl FnMut(IpAddr) -> io::Result<L>) -> io::Result<L> {
    const NO_IPV6: [Errno; 2] = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL];
    match open(Ipv6Addr::UNSPECIFIED.into()) {
        Err(error) if NO_IPV6.iter().any(|no| error.raw_os_error() == Some(no.raw_os_error())) => {
            open(Ipv4Addr::UNSPECIFIED.into())
        }
        opened => opened,
    }
}

/// A listener at `::` takes connections of IPv4 too, whatever is the system's default.
fn of_both_families(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(family, SocketType::STREAM, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // A port may be had again while old connections of it fade away.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn an_address_that_stands_for_all_is_all_of_both_families() {
        for any in ["0.0.0.0:0", "[::]:0"] {
            let listener = bind_at(any.parse().unwrap()).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            for near in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
                TcpStream::connect((near, port)).await.unwrap();
            }
        }
        let one = bind_at("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = one.local_addr().unwrap().port();
        assert!(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.is_err());
    }

    #[test]
    fn a_kernel_without_ipv6_is_listened_to_by_ipv4() {
        for missing in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            let opened =
                everywhere(|any| if any.is_ipv6() { Err(missing.into()) } else { Ok(any) });
            assert_eq!(opened.unwrap(), Ipv4Addr::UNSPECIFIED);
        }
        // A port that is taken is no reason to have less.
        let mut asked = Vec::new();
        let opened: io::Result<()> = everywhere(|any| {
            asked.push(any);
            Err(Errno::ADDRINUSE.into())
        });
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(asked, [IpAddr::from(Ipv6Addr::UNSPECIFIED)]);
    }
}
