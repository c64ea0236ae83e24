//! Datagrams with the address of this machine that they were sent to. A socket
//! that is bound to all of them answers from there: by itself the kernel would
//! choose the one that is nearest to the peer, who knows nothing of that.
//!
//! Source: ip(7), `IP_PKTINFO`; ipv6(7), `IPV6_PKTINFO`.

use std::{
    io,
    mem::{self, MaybeUninit},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

use rustix::net::{SocketAddrAny, addr::SocketAddrStorage};

use super::place::Family;

/// Room in bytes for the one control message that is asked for; that of IPv6, with
/// its header, has 40.
const ROOM: usize = 64;

/// Aligned as its header is.
#[repr(C, align(8))]
struct Control([u8; ROOM]);

/// The loopback interface's number in every network namespace. (Linux,
/// `LOOPBACK_IFINDEX` in `include/net/flow.h`.)
const LOOPBACK: libc::c_int = 1;

/// A datagram that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parcel {
    /// In bytes, as far as it fitted.
    pub(super) length: usize,
    pub(super) from: SocketAddr,
    /// Where to, if that is known and an address of this machine.
    pub(super) to: Option<IpAddr>,
    /// The number of the interface that it came by, of IPv4 and if that is known.
    interface: Option<libc::c_int>,
}

impl Parcel {
    /// Whether it may come from another machine though its source is a loopback. The
    /// kernel takes such packets of IPv4 where `route_localnet` is set, as a kube-proxy
    /// does, and `rp_filter` is not. What a program of this machine sends from its
    /// loopback to another of its addresses looks the same. Such packets of IPv6 no
    /// kernel takes (`ip6_rcv_core` in `net/ipv6/ip6_input.c`).
    pub(super) fn may_be_forged(&self) -> bool {
        self.from.ip().is_loopback() && self.interface.is_some_and(|it| it != LOOPBACK)
    }
}

/// Has the kernel tell with each datagram where it was sent to.
///
/// # Errors
///
/// What the system said.
pub(super) fn tell_destinations(socket: impl AsFd, family: Family) -> io::Result<()> {
    /// Of the value, in bytes.
    const SIZE: libc::socklen_t = 4;
    let on: i32 = 1;
    let (level, option) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the pointer is to a value of the size given.
    let done = unsafe { libc::setsockopt(socket, level, option, (&raw const on).cast(), SIZE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a datagram. What does not fit into `buffer` is lost.
///
/// # Errors
///
/// What the system said.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Parcel> {
    let mut from = MaybeUninit::<SocketAddrStorage>::zeroed();
    let mut control = Control([0; ROOM]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = empty();
    message.msg_name = from.as_mut_ptr().cast();
    message.msg_namelen = size_of_addresses();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = ROOM;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: what the message points to is here, and as long as it says.
    let length = unsafe { libc::recvmsg(socket, &raw mut message, libc::MSG_DONTWAIT) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written an address of this length there.
    let from = unsafe { SocketAddrAny::new(from, message.msg_namelen) };
    let (to, interface) = destination(&message).unwrap_or_default();
    Ok(Parcel { length, from: SocketAddr::try_from(from)?, to, interface })
}

/// Sends a datagram, from an address of this machine if one is given.
///
/// # Errors
///
/// What the system said.
pub(super) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    to: SocketAddr,
    from: Option<IpAddr>,
) -> io::Result<usize> {
    let to = SocketAddrAny::from(to);
    let mut control = Control([0; ROOM]);
    // The kernel only reads it.
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = empty();
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.addr_len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    match from {
        Some(IpAddr::V4(from)) => {
            let from = libc::in_addr { s_addr: from.to_bits().to_be() };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: from };
            say(&mut message, &mut control, (libc::IPPROTO_IP, libc::IP_PKTINFO), info);
        }
        Some(IpAddr::V6(from)) => {
            let from = libc::in6_addr { s6_addr: from.octets() };
            let info = libc::in6_pktinfo { ipi6_addr: from, ipi6_ifindex: 0 };
            say(&mut message, &mut control, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info);
        }
        None => {}
    }
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: what the message points to is here, and as long as it says.
    let sent = unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_DONTWAIT) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn empty() -> libc::msghdr {
    // SAFETY: numbers and pointers, which are null.
    unsafe { mem::zeroed() }
}

fn size_of_addresses() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<SocketAddrStorage>()).unwrap_or(0)
}

/// Where a message was sent to, and by which interface it came.
fn destination(message: &libc::msghdr) -> Option<(Option<IpAddr>, Option<libc::c_int>)> {
    // SAFETY: the kernel has filled the message in, and its control messages are in a
    // buffer that is still there.
    let (header, data) = unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        (header.as_ref()?, libc::CMSG_DATA(header))
    };
    let (address, interface): (IpAddr, _) = match (header.cmsg_level, header.cmsg_type) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // SAFETY: that is what a message of this type is.
            let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
            let address = Ipv4Addr::from_bits(u32::from_be(info.ipi_spec_dst.s_addr));
            (address.into(), Some(info.ipi_ifindex))
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            // SAFETY: that is what a message of this type is.
            let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
            (Ipv6Addr::from(info.ipi6_addr.s6_addr).into(), None)
        }
        _ => return None,
    };
    // What was sent to many is answered from the nearest.
    let is_one = !address.is_multicast() && !address.is_unspecified();
    Some((is_one.then_some(address), interface))
}

/// Puts one control message into a message.
fn say<T>(
    message: &mut libc::msghdr,
    control: &mut Control,
    (level, kind): (libc::c_int, libc::c_int),
    value: T,
) {
    let size = libc::c_uint::try_from(size_of::<T>()).unwrap_or(0);
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = ROOM;
    // SAFETY: both messages and their headers fit into the room, which is aligned as
    // headers are; it is the caller's and outlives the message.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        message.msg_controllen = libc::CMSG_SPACE(size) as usize;
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, time::Duration};

    use super::*;

    #[test]
    fn who_is_bound_to_all_addresses_answers_from_the_one_that_was_asked() {
        for (all, asked, family) in [
            ("0.0.0.0:0", ["127.0.0.1", "127.0.0.9"], Family::V4),
            ("[::]:0", ["::1", "::1"], Family::V6),
        ] {
            let server = UdpSocket::bind(all).unwrap();
            tell_destinations(&server, family).unwrap();
            let port = server.local_addr().unwrap().port();
            for asked in asked.map(|ip| SocketAddr::new(ip.parse().unwrap(), port)) {
                let client = UdpSocket::bind(SocketAddr::new(family.localhost(), 0)).unwrap();
                client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                client.send_to(b"who?", asked).unwrap();
                let mut buffer = [0; 8];
                server.peek_from(&mut buffer).unwrap();
                let parcel = receive(&server, &mut buffer).unwrap();
                let Parcel { length, from, to, .. } = parcel;
                assert_eq!((length, from), (4, client.local_addr().unwrap()));
                assert_eq!(to, Some(asked.ip()));
                assert!(!parcel.may_be_forged());
                assert_eq!(send(&server, b"me", from, to).unwrap(), 2);
                assert_eq!(client.recv_from(&mut buffer).unwrap(), (2, asked));
            }
            let nothing = receive(&server, &mut [0; 8]).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        }
    }
}
