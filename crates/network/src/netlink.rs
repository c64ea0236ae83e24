//! The kernel's links, addresses, neighbours, routes and rules, asked and changed one
//! step at a time. What they should be is [`ensure`](crate::ensure)'s business.
//!
//! Each step tells whether it changed anything: what is as it should be is left
//! alone, because each change wakes everybody who watches, us included. All of
//! it blocks, for microseconds.

mod rules;
mod socket;

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::IpAddr,
    os::fd::RawFd,
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteScope, RouteType,
    },
};

use self::socket::Socket;
pub(crate) use self::{
    rules::{Does, Port, Rule},
    socket::{neighbour_of, notices},
};
use crate::outgoing::FAR;

/// `RT_TABLE_LOCAL` of `linux/rtnetlink.h`: the table that is asked first, unless
/// a [`Rule`] comes before it.
pub(crate) const FIRST_TABLE: u8 = 255;

/// `RT_TABLE_MAIN`: the table of routes that lead elsewhere.
pub(crate) const MAIN_TABLE: u8 = RouteHeader::RT_TABLE_MAIN;

/// By which a route is known to lead to another node's pods: no program that
/// `/etc/iproute2/rt_protos` knows has this number.
const TO_PEERS: RouteProtocol = RouteProtocol::Other(107);

/// What the kernel says where no route leads somewhere, where one says that none
/// does, and where it does not know the family.
const NO_WAY: [i32; 6] = [
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::EACCES,
    libc::EINVAL,
    libc::EAFNOSUPPORT,
    libc::EOPNOTSUPP,
];

/// A link as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    /// The other end of a pair, by its number in its own namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) mac: Vec<u8>,
    /// The longest packet that it takes, in bytes.
    pub(crate) mtu: u32,
    pub(crate) is_up: bool,
}

/// A route that should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Every address of the range is this namespace's own.
    Local { range: IpNet },
    /// The range is reached by this next hop, which is on the link though no
    /// range says so.
    Via {
        range: IpNet,
        hop: IpAddr,
        /// The address that packets of this namespace's own have.
        source: Option<IpAddr>,
        /// Whether it stands in the table that is asked first, where it goes
        /// before a [`Route::Local`] around it.
        first: bool,
    },
}

/// What came of a route to another node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerRoute {
    Added,
    /// That node is not on a network of this one, or is this machine.
    Apart,
    /// Somebody else leads to that range already.
    Taken,
}

/// Routes of the main table.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// Those to pods of other nodes, and by which next hop; of any agent of the machine.
    pub(crate) to_peers: BTreeSet<(IpNet, IpAddr)>,
    /// Ranges to which others lead, whatever the metric.
    pub(crate) of_others: BTreeSet<IpNet>,
}

/// One namespace's part of the kernel's network.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens that of the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open()? })
    }

    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut asked = LinkMessage::default();
        asked.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.link_of(asked)
    }

    fn link_of(&mut self, asked: LinkMessage) -> io::Result<Option<Link>> {
        match self.socket.ask(RouteNetlinkMessage::GetLink(asked)) {
            Ok(RouteNetlinkMessage::NewLink(found)) => Ok(Some(link(&found))),
            Ok(other) => Err(io::Error::other(format!("not a link: {other:?}"))),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Netlink::link`], of one that must be there.
    pub(crate) fn known_link(&mut self, name: &str) -> io::Result<Link> {
        let missing = || io::Error::new(ErrorKind::NotFound, format!("there is no link {name}"));
        self.link(name)?.ok_or_else(missing)
    }

    /// Makes a pair of links, one here and one in another namespace.
    pub(crate) fn add_pair(
        &mut self,
        (name, mac): (&str, [u8; 6]),
        (peer, peer_mac, namespace): (&str, [u8; 6], RawFd),
    ) -> io::Result<()> {
        let mut other = LinkMessage::default();
        other.attributes = vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::Address(peer_mac.to_vec()),
            LinkAttribute::NetNsFd(namespace),
        ];
        let mut pair = LinkMessage::default();
        pair.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
            ]),
        ];
        self.socket.change(RouteNetlinkMessage::NewLink(pair), NLM_F_CREATE | NLM_F_EXCL)
    }

    pub(crate) fn remove_link(&mut self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        gone(self.socket.change(RouteNetlinkMessage::DelLink(link), 0))
    }

    pub(crate) fn set_up(&mut self, link: &Link) -> io::Result<bool> {
        if link.is_up {
            return Ok(false);
        }
        let mut up = LinkMessage::default();
        up.header.index = link.index;
        up.header.flags = LinkFlags::Up;
        up.header.change_mask = LinkFlags::Up;
        self.socket.change(RouteNetlinkMessage::SetLink(up), 0)?;
        Ok(true)
    }

    pub(crate) fn set_mtu(&mut self, link: &Link, mtu: u32) -> io::Result<bool> {
        if link.mtu == mtu {
            return Ok(false);
        }
        let mut other = LinkMessage::default();
        other.header.index = link.index;
        other.attributes = vec![LinkAttribute::Mtu(mtu)];
        self.socket.change(RouteNetlinkMessage::SetLink(other), 0)?;
        Ok(true)
    }

    /// The longest packet that all ways outwards take; None without such a way.
    pub(crate) fn outgoing_mtu(&mut self) -> io::Result<Option<u32>> {
        let mut least = None;
        for far in FAR {
            let Some(index) = self.way(far)? else { continue };
            let mut asked = LinkMessage::default();
            asked.header.index = index;
            // One that went meanwhile is no way.
            let mtu = self.link_of(asked)?.map(|link| link.mtu);
            least = least.into_iter().chain(mtu).min();
        }
        Ok(least)
    }

    /// Over which link an address is reached that is not this namespace's own.
    fn way(&mut self, to: IpAddr) -> io::Result<Option<u32>> {
        let mut asked = RouteMessage::default();
        asked.header.address_family = family(to);
        asked.header.destination_prefix_length = whole(to);
        asked.attributes = vec![RouteAttribute::Destination(to.into())];
        match self.socket.ask(RouteNetlinkMessage::GetRoute(asked)) {
            Ok(RouteNetlinkMessage::NewRoute(found)) => {
                Ok(oif(&found).filter(|_| found.header.kind == RouteType::Unicast))
            }
            Ok(other) => Err(io::Error::other(format!("not a route: {other:?}"))),
            Err(error) if NO_WAY.iter().any(|code| error.raw_os_error() == Some(*code)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every address of this namespace's own, of all links and both families.
    pub(crate) fn addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        // No family given asks for all of them.
        let asked = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let all = self.socket.list(asked)?;
        Ok(all.iter().filter_map(own_address).collect())
    }

    /// Gives a link an address that nobody else has.
    pub(crate) fn add_address(&mut self, link: u32, address: IpAddr) -> io::Result<bool> {
        let message = RouteNetlinkMessage::NewAddress(single_address(link, address));
        added(self.socket.change(message, NLM_F_CREATE | NLM_F_EXCL))
    }

    pub(crate) fn remove_address(&mut self, link: u32, address: IpAddr) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelAddress(single_address(link, address));
        gone(self.socket.change(message, 0))
    }

    /// Says once and for all where a neighbour is.
    pub(crate) fn set_neighbour(
        &mut self,
        link: u32,
        address: IpAddr,
        mac: &[u8],
    ) -> io::Result<()> {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = family(address);
        neighbour.header.ifindex = link;
        neighbour.header.state = NeighbourState::Permanent;
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(address.into()),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        let message = RouteNetlinkMessage::NewNeighbour(neighbour);
        self.socket.change(message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Adds a route over a link. One to the same range that leads elsewhere, or
    /// has lost its source with an address that was removed, is replaced.
    pub(crate) fn add_route(&mut self, link: u32, route: Route) -> io::Result<bool> {
        let add = RouteNetlinkMessage::NewRoute(route_message(link, route));
        if added(self.socket.change(add.clone(), NLM_F_CREATE | NLM_F_EXCL))? {
            return Ok(true);
        }
        let (range, source) = match route {
            Route::Via { range, source, first: false, .. } => (range, source),
            // In the first table the kernel and we are alone.
            Route::Via { first: true, .. } | Route::Local { .. } => return Ok(false),
        };
        if self.leads(range)? == Some((link, source)) {
            return Ok(false);
        }
        self.socket.change(add, NLM_F_CREATE | NLM_F_REPLACE)?;
        Ok(true)
    }

    pub(crate) fn remove_route(&mut self, link: u32, route: Route) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelRoute(route_message(link, route));
        gone(self.socket.change(message, 0))
    }

    /// The routes of the main table that are there.
    pub(crate) fn routes(&mut self, is_ipv4: bool) -> io::Result<Routes> {
        let mut asked = RouteMessage::default();
        asked.header.address_family =
            if is_ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let all = self.socket.list(RouteNetlinkMessage::GetRoute(asked))?;
        let mut routes = Routes::default();
        for message in all {
            let RouteNetlinkMessage::NewRoute(route) = message else { continue };
            if route.header.table != MAIN_TABLE {
                continue;
            }
            let Some((range, hop)) = range_and_hop(&route) else { continue };
            if route.header.protocol != TO_PEERS {
                routes.of_others.insert(range);
            } else if let Some(hop) = hop {
                routes.to_peers.insert((range, hop));
            }
        }
        Ok(routes)
    }

    /// Adds a route to another node's pods, if there can be one. That somebody else
    /// leads there with the same metric is told; with another one it is not.
    pub(crate) fn add_peer_route(&mut self, range: IpNet, hop: IpAddr) -> io::Result<PeerRoute> {
        let message = RouteNetlinkMessage::NewRoute(peer_message(range, hop));
        let Err(error) = self.socket.change(message, NLM_F_CREATE | NLM_F_EXCL) else {
            return Ok(PeerRoute::Added);
        };
        match error.raw_os_error() {
            // The last two: the kernel has no IPv6.
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EINVAL
                | libc::EAFNOSUPPORT
                | libc::EOPNOTSUPP,
            ) => Ok(PeerRoute::Apart),
            Some(libc::EEXIST) => Ok(PeerRoute::Taken),
            _ => Err(error),
        }
    }

    pub(crate) fn remove_peer_route(&mut self, range: IpNet, hop: IpAddr) -> io::Result<()> {
        gone(self.socket.change(RouteNetlinkMessage::DelRoute(peer_message(range, hop)), 0))
    }

    /// Over which link an address of the range is reached, and the source that
    /// the route names.
    fn leads(&mut self, range: IpNet) -> io::Result<Option<(u32, Option<IpAddr>)>> {
        let within = one_of(range);
        let mut asked = RouteMessage::default();
        asked.header.address_family = family(within);
        asked.header.destination_prefix_length = whole(within);
        // The route itself, not what comes of it: without one a source is chosen.
        asked.header.flags = RouteFlags::FibMatch;
        asked.attributes = vec![RouteAttribute::Destination(within.into())];
        match self.socket.ask(RouteNetlinkMessage::GetRoute(asked)) {
            Ok(RouteNetlinkMessage::NewRoute(found)) => {
                Ok(oif(&found).map(|link| (link, source(&found))))
            }
            Ok(other) => Err(io::Error::other(format!("not a route: {other:?}"))),
            Err(error) if error.raw_os_error() == Some(libc::ENETUNREACH) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// An address of the range that a pod may have: neither end's own and, with IPv4,
/// not the last one, if there are others.
fn one_of(range: IpNet) -> IpAddr {
    match range {
        IpNet::V4(range) if range.prefix_len() < 31 => {
            IpAddr::V4((u32::from(range.broadcast()) - 1).into())
        }
        other => other.broadcast(),
    }
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        peer: None,
        mac: Vec::new(),
        mtu: 0,
        is_up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}

/// The address of a message about one. With IPv4 and a point-to-point link,
/// `IFA_ADDRESS` is the other end's and `IFA_LOCAL` this one's; with IPv6 there
/// is often but the former.
fn own_address(message: &RouteNetlinkMessage) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let mut own = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => return Some(*address),
            AddressAttribute::Address(address) => own = Some(*address),
            _ => {}
        }
    }
    own
}

fn single_address(link: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = whole(address);
    message.header.scope = AddressScope::Universe;
    message.header.index = link;
    message.attributes = vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
    if address.is_ipv6() {
        // Looking for others that have it takes a second, and finds none.
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

fn route_message(link: u32, route: Route) -> RouteMessage {
    let (Route::Local { range } | Route::Via { range, .. }) = route;
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(range.addr());
    header.destination_prefix_length = range.prefix_len();
    header.protocol = RouteProtocol::Static;
    message.attributes = vec![RouteAttribute::Oif(link)];
    if range.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(range.network().into()));
    }
    match route {
        Route::Local { .. } => {
            header.kind = RouteType::Local;
            header.scope = RouteScope::Host;
            header.table = FIRST_TABLE;
        }
        Route::Via { hop, source, first, .. } => {
            header.kind = RouteType::Unicast;
            header.scope = RouteScope::Universe;
            header.table = if first { FIRST_TABLE } else { MAIN_TABLE };
            header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(hop.into()));
            let source = source.map(|source| RouteAttribute::PrefSource(source.into()));
            message.attributes.extend(source);
        }
    }
    message
}

fn peer_message(range: IpNet, hop: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(range.addr());
    header.destination_prefix_length = range.prefix_len();
    header.protocol = TO_PEERS;
    header.kind = RouteType::Unicast;
    header.scope = RouteScope::Universe;
    header.table = MAIN_TABLE;
    message.attributes = vec![
        RouteAttribute::Destination(range.network().into()),
        RouteAttribute::Gateway(hop.into()),
    ];
    message
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn source(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(source) => address(source),
        _ => None,
    })
}

/// Where a route leads, and by which next hop if it names one. None for the one that
/// leads everywhere.
fn range_and_hop(message: &RouteMessage) -> Option<(IpNet, Option<IpAddr>)> {
    let (mut range, mut hop) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => range = address(to),
            RouteAttribute::Gateway(over) => hop = address(over),
            _ => {}
        }
    }
    let range = IpNet::new(range?, message.header.destination_prefix_length).ok()?;
    Some((range, hop))
}

fn oif(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The length of a prefix that names one address.
pub(crate) fn whole(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// True if it was added, false if it was there.
fn added(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// What is not there need not be removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    const NOT_THERE: [i32; 4] = [libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL, libc::ENODEV];
    match result {
        Err(error) if error.raw_os_error().is_some_and(|code| NOT_THERE.contains(&code)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_of_the_range() {
        for (range, address) in [
            ("10.244.1.0/24", "10.244.1.254"),
            ("10.244.1.0/30", "10.244.1.2"),
            ("10.244.1.8/31", "10.244.1.9"),
            ("10.244.1.9/32", "10.244.1.9"),
            ("0.0.0.0/32", "0.0.0.0"),
            ("fd00::/64", "fd00::ffff:ffff:ffff:ffff"),
            ("fd00::9/128", "fd00::9"),
        ] {
            assert_eq!(one_of(range.parse().unwrap()).to_string(), address, "{range}");
        }
    }
}
