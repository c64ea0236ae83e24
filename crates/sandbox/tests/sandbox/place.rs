//! A network namespace of these tests' own, in which all of `10.77.0.0/16` and
//! `fd00:77::1` can be bound, as pods' addresses can on a node.

use std::{io, mem, net::Ipv6Addr, os::fd::AsRawFd};

/// Enters it. The process must have one thread.
pub(crate) fn enter() {
    // SAFETY: descriptors stay as they are.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    // On a loopback interface the whole network of an address is local.
    with_ipv4("lo", libc::SIOCSIFFLAGS, |request| {
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap();
    });
    address("lo:0", libc::SIOCSIFADDR, [10, 77, 0, 1]);
    address("lo:0", libc::SIOCSIFNETMASK, [255, 255, 0, 0]);
    ipv6("fd00:77::1".parse().unwrap());
}

fn with_ipv4(name: &str, call: libc::Ioctl, fill: impl FnOnce(&mut libc::ifreq)) {
    // SAFETY: plain numbers.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    fill(&mut request);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: the request is what the call takes.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), call, &raw mut request) };
    assert_eq!(done, 0, "{name}: {}", io::Error::last_os_error());
}

fn address(name: &str, call: libc::Ioctl, octets: [u8; 4]) {
    with_ipv4(name, call, |request| {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET.try_into().unwrap(),
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(octets) },
            sin_zero: [0; 8],
        };
        // SAFETY: both have the same size, and the family says which it is.
        request.ifr_ifru.ifru_addr =
            unsafe { mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    });
}

/// Has an address of IPv6 be one of this machine's.
pub(crate) fn ipv6(address: Ipv6Addr) {
    /// Linux's `struct in6_ifreq`.
    #[repr(C)]
    struct Request {
        address: [u8; 16],
        prefix: u32,
        index: i32,
    }
    // SAFETY: the name ends with a zero.
    let index = unsafe { libc::if_nametoindex(c"lo".as_ptr()) }.cast_signed();
    let mut request = Request { address: address.octets(), prefix: 128, index };
    let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
    // SAFETY: the request is what the call takes on such a socket.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR, &raw mut request) };
    assert_eq!(done, 0, "{address}: {}", io::Error::last_os_error());
}
