//! The address by which others know this machine, where nobody names one.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

/// Somewhere far off, of each family: addresses for documentation, which only the
/// way outwards leads to.
pub(crate) const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// Whether an address may be that of a machine on a network. Source: kubelet,
/// `validateNodeIP` in `pkg/kubelet/kubelet_node_status.go`.
#[must_use]
pub fn is_of_a_network(address: IpAddr) -> bool {
    let is_near = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(is_near || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// The address that packets to the outside leave from: that of IPv4, or of IPv6
/// where IPv4 has no way outwards. The other way round if IPv6 is preferred.
///
/// # Errors
///
/// What the system says of the preferred family.
pub fn outgoing_address(prefers_ipv6: bool) -> io::Result<IpAddr> {
    let [first, second] = if prefers_ipv6 { [FAR[1], FAR[0]] } else { FAR };
    towards(first).or_else(|error| towards(second).map_err(|_| error))
}

/// Connecting a datagram socket sends nothing; it only asks the routing table.
fn towards(far: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match far {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // The port counts for nothing, but must be one.
    socket.connect(SocketAddr::new(far, 9))?;
    let address = socket.local_addr()?.ip();
    let is_of_a_network = is_of_a_network(address);
    is_of_a_network.then_some(address).ok_or_else(|| ErrorKind::AddrNotAvailable.into())
}
