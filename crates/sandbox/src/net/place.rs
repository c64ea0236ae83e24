//! Where addresses that guests name really lie.
//!
//! Pure: no socket, no clock. Everything that is bound or connected has been
//! through here first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use krustlet_protocol::{Destinations, PodNetwork};

use super::NetError;

/// Internet protocol, version 4 or 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `0.0.0.0` or `::`.
    pub(crate) fn wildcard(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// `127.0.0.1` or `::1`.
    pub(crate) fn localhost(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

/// Where a socket is to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    /// The pod's address to bind a real socket to, if any.
    pub(crate) real: Option<IpAddr>,
    /// The address on the pod's private loopback, if any; a wildcard stands for
    /// all of them.
    pub(crate) private: Option<IpAddr>,
}

/// Where a guest that binds to `ip` is bound.
///
/// A wildcard means the pod's address of its family and the private loopback;
/// on a pod without an address of that family only the latter, as on a machine
/// that has no such address. A pod that shares the node's loopback has nothing
/// that is private, and the wildcard is the node's.
///
/// # Errors
///
/// [`NetError::AccessDenied`] on a pod without network, and
/// [`NetError::AddressNotBindable`] for what is not the pod's.
pub(crate) fn binding(network: &PodNetwork, ip: IpAddr) -> Result<Binding, NetError> {
    if network.addresses.is_empty() {
        return Err(NetError::AccessDenied);
    }
    if network.shares_loopback && (ip.is_unspecified() || ip.is_loopback()) {
        return Ok(Binding { real: Some(ip), private: None });
    }
    if ip.is_unspecified() {
        let real = own(network, Family::of(ip));
        return Ok(Binding { real, private: Some(ip) });
    }
    if ip.is_loopback() {
        return Ok(Binding { real: None, private: Some(ip) });
    }
    if network.addresses.contains(&ip) {
        return Ok(Binding { real: Some(ip), private: None });
    }
    Err(NetError::AddressNotBindable)
}

/// Where a guest's socket for datagrams is bound: as [`binding`], but at any port of
/// the wildcard it is the machine's wildcard where that is what the pod calls from:
/// it goes nowhere else from a loopback address.
///
/// # Errors
///
/// As there.
pub(crate) fn datagrams(network: &PodNetwork, address: SocketAddr) -> Result<Binding, NetError> {
    let (ip, bound) = (address.ip(), binding(network, address.ip())?);
    let is_any = ip.is_unspecified() && address.port() == 0;
    let calls_from = source(network, Family::of(ip));
    Ok(match calls_from {
        Some(Source::Machine) if is_any => Binding { real: Some(ip), ..bound },
        Some(Source::Machine | Source::Own(_)) | None => bound,
    })
}

/// From which address a pod calls others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Its own.
    Own(IpAddr),
    /// That which the machine has on the way there, chosen by the kernel: the pod's
    /// own is none that anybody could answer to, or all of the machine's are.
    Machine,
}

/// From where a pod calls others by a family; none if it cannot.
pub(crate) fn source(network: &PodNetwork, family: Family) -> Option<Source> {
    match own(network, family) {
        Some(ip) if !ip.is_loopback() && !network.shares_loopback => Some(Source::Own(ip)),
        Some(_) => Some(Source::Machine),
        None => {
            let is_of_machine = |ip: &IpAddr| network.shares_loopback || ip.is_loopback();
            network.addresses.iter().any(is_of_machine).then_some(Source::Machine)
        }
    }
}

/// The pod's address of a family.
pub(crate) fn own(network: &PodNetwork, family: Family) -> Option<IpAddr> {
    network.addresses.iter().copied().find(|ip| Family::of(*ip) == family)
}

/// The way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The pod's private loopback.
    Private(SocketAddr),
    /// The network.
    Real(SocketAddr),
}

/// How, and whether, one may send to an address. The address of the answer
/// is the one to use: an IPv4 address written as IPv6 has become what it is.
/// What is `given` is not refused.
///
/// # Errors
///
/// [`NetError::AccessDenied`] on a pod without network and for destinations
/// that are refused, or not one machine's, in whichever way they are written;
/// [`NetError::InvalidArgument`] for
/// what is no destination.
pub(crate) fn way(
    network: &PodNetwork,
    given: &[SocketAddr],
    to: SocketAddr,
) -> Result<Way, NetError> {
    if network.addresses.is_empty() {
        return Err(NetError::AccessDenied);
    }
    let to = canonical(to);
    // Linux takes the wildcard for its own loopback.
    if to.ip().is_unspecified() || to.port() == 0 {
        return Err(NetError::InvalidArgument);
    }
    if to.ip().is_loopback() {
        return Ok(if network.shares_loopback { Way::Real(to) } else { Way::Private(to) });
    }
    let is_refused = |to: SocketAddr| network.refused.iter().any(|range| contains(range, to));
    let is_given = given.iter().any(|given| is_same(*given, to));
    if is_for_many(to.ip()) || is_refused(to) && !is_given {
        return Err(NetError::AccessDenied);
    }
    if let Some(translated) = embedded(to.ip()) {
        // No machine is reached by its own loopback from elsewhere; one that
        // translates might take it for its own.
        let is_nowhere = translated.is_loopback() || translated.is_unspecified();
        let translated = SocketAddr::new(translated.into(), to.port());
        if is_nowhere || is_for_many(translated.ip()) || is_refused(translated) {
            return Err(NetError::AccessDenied);
        }
    }
    Ok(Way::Real(to))
}

/// Whether who sent something to an address of the machine may be answered: where one
/// may send, and besides the node itself, by its loopback or whichever address it
/// sends to itself, and a neighbour who asks by IPv6 at the address of their link.
///
/// # Errors
///
/// As [`way`].
pub(super) fn may_answer(
    network: &PodNetwork,
    from: SocketAddr,
    to: Option<IpAddr>,
) -> Result<(), NetError> {
    let is_node = from.ip().is_loopback() || to == Some(from.ip());
    let is_neighbour = match (from.ip(), to) {
        (IpAddr::V6(from), Some(IpAddr::V6(to))) => {
            from.is_unicast_link_local() && to.is_unicast_link_local()
        }
        _ => false,
    };
    if is_node || is_neighbour { Ok(()) } else { way(network, &[], from).map(drop) }
}

/// The IPv4 address that an IPv6 one is turned into on the way, by a machine
/// that translates or unwraps: NAT64's well-known prefix `64:ff9b::/96` (RFC
/// 6052), 6to4 `2002::/16` (RFC 3056), IPv4-compatible addresses `::/96` (RFC
/// 4291) and IPv4-translated ones `::ffff:0:0:0/96` (RFC 2765). Which prefixes a
/// network chose for itself cannot be known here.
fn embedded(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(ip) = ip else { return None };
    let words = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0, 0, 0, 0, 0 | 0xffff, 0, high, low]
        | [0x2002, high, low, ..] => Some(words(high, low)),
        _ => None,
    }
}

/// An address with IPv4 in IPv6's clothes (`::ffff:a.b.c.d`) as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        // With its scope.
        IpAddr::V6(_) => address,
    }
}

/// Whether two addresses are one socket's. Flow and scope, which those of IPv6
/// have besides, are no part of what a guest was told.
pub(super) fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip(), one.port()) == (other.ip(), other.port())
}

/// Whether datagrams to it are for all who listen: what a node hears of these
/// comes from whoever its programs trust.
fn is_for_many(ip: IpAddr) -> bool {
    ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// Whether a destination lies in a range.
pub(super) fn contains(range: &Destinations, to: SocketAddr) -> bool {
    if range.port.is_some_and(|port| port != to.port()) {
        return false;
    }
    match (range.address, to.ip()) {
        (IpAddr::V4(range_ip), IpAddr::V4(ip)) => {
            let different = u128::from(range_ip.to_bits() ^ ip.to_bits());
            shares_prefix(different, 32, range.prefix)
        }
        (IpAddr::V6(range_ip), IpAddr::V6(ip)) => {
            shares_prefix(range_ip.to_bits() ^ ip.to_bits(), 128, range.prefix)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Whether no bit among the first `prefix` of `width` is set.
fn shares_prefix(different: u128, width: u32, prefix: u8) -> bool {
    let rest = width.saturating_sub(u32::from(prefix));
    different.checked_shr(rest).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn flow_and_scope_do_not_make_another_address() {
        let address = |port, flow, scope| {
            std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), port, flow, scope).into()
        };
        assert!(is_same(address(1, 2, 3), address(1, 0, 0)));
        assert!(!is_same(address(1, 0, 0), address(2, 0, 0)));
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn network(addresses: &[&str], refused: &[(&str, u8, Option<u16>)]) -> PodNetwork {
        PodNetwork {
            addresses: addresses.iter().map(|address| ip(address)).collect(),
            refused: refused
                .iter()
                .map(|&(address, prefix, port)| Destinations { address: ip(address), prefix, port })
                .collect(),
            ..PodNetwork::default()
        }
    }

    fn ips() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
            (0_u32..1 << 24).prop_map(|low| IpAddr::V4(Ipv4Addr::from_bits(127 << 24 | low))),
            any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
            any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).to_ipv6_mapped().into()),
            Just(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            Just(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            Just(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            Just(ip("10.1.2.3")),
        ]
    }

    #[test]
    fn a_wildcard_is_the_pods_address_and_its_loopback() {
        let pod = network(&["10.1.2.3"], &[]);
        let wildcard = ip("0.0.0.0");
        let bound = Binding { real: Some(ip("10.1.2.3")), private: Some(wildcard) };
        assert_eq!(binding(&pod, wildcard), Ok(bound));
        // It has no address of the other family but the loopback's.
        assert_eq!(binding(&pod, ip("::")), Ok(Binding { real: None, private: Some(ip("::")) }));
        for other in ["10.1.2.4", "192.168.0.1", "224.0.0.1", "fe80::1", "::ffff:10.1.2.3"] {
            assert_eq!(binding(&pod, ip(other)), Err(NetError::AddressNotBindable), "{other}");
        }
    }

    #[test]
    fn a_pod_that_shares_the_nodes_loopback_has_no_other() {
        let pod = PodNetwork { shares_loopback: true, ..network(&["192.0.2.1"], &[]) };
        for address in ["0.0.0.0", "::", "127.0.0.1", "127.9.9.9", "::1", "192.0.2.1"] {
            let bound = Binding { real: Some(ip(address)), private: None };
            assert_eq!(binding(&pod, ip(address)), Ok(bound));
        }
        assert_eq!(binding(&pod, ip("192.0.2.2")), Err(NetError::AddressNotBindable));
        for to in ["127.0.0.9:80", "[::1]:80", "192.0.2.9:80"] {
            let to: SocketAddr = to.parse().unwrap();
            assert_eq!(way(&pod, &[], to), Ok(Way::Real(to)));
        }
        // Another machine's is no way to it.
        let translated = "[64:ff9b::7f00:1]:80".parse().unwrap();
        assert_eq!(way(&pod, &[], translated), Err(NetError::AccessDenied));
    }

    #[test]
    fn a_pod_calls_from_its_own_address_if_others_know_it() {
        let own = |text| Some(Source::Own(ip(text)));
        let machine = Some(Source::Machine);
        // Its addresses, whether it has the node's loopback; from where it calls by
        // IPv4 and by IPv6.
        for (addresses, shares_loopback, v4, v6) in [
            (&[] as &[&str], false, None, None),
            (&[], true, None, None),
            (&["10.1.2.3"], false, own("10.1.2.3"), None),
            (&["fd00::7"], false, None, own("fd00::7")),
            (&["fd00::7", "10.1.2.3"], false, own("10.1.2.3"), own("fd00::7")),
            (&["192.0.2.1"], true, machine, machine),
            (&["192.0.2.1", "2001:db8::1"], true, machine, machine),
            (&["127.0.0.1"], false, machine, machine),
            (&["127.0.0.1"], true, machine, machine),
            (&["127.0.0.1", "2001:db8::1"], false, machine, own("2001:db8::1")),
        ] {
            let pod = PodNetwork { shares_loopback, ..network(addresses, &[]) };
            let found = [Family::V4, Family::V6].map(|family| source(&pod, family));
            assert_eq!(found, [v4, v6], "{addresses:?} {shares_loopback}");
        }
    }

    #[test]
    fn only_what_is_bound_to_no_port_leaves_the_loopback_of_a_pod_that_has_no_more() {
        let pod = network(&["127.0.0.1"], &[]);
        let bound = |address: &str| {
            let Binding { real, private } = datagrams(&pod, address.parse().unwrap()).unwrap();
            (real.map(|ip| ip.to_string()), private.map(|ip| ip.to_string()))
        };
        for (address, real, private) in [
            ("0.0.0.0:0", Some("0.0.0.0"), Some("0.0.0.0")),
            ("0.0.0.0:53", Some("127.0.0.1"), Some("0.0.0.0")),
            ("127.0.0.1:0", None, Some("127.0.0.1")),
            ("[::]:0", Some("::"), Some("::")),
            ("[::]:53", None, Some("::")),
            ("[::1]:0", None, Some("::1")),
        ] {
            let expected = (real.map(str::to_owned), private.map(str::to_owned));
            assert_eq!(bound(address), expected, "{address}");
        }
        // Whoever has an address of its own is at home there.
        for (pod, own) in [
            (network(&["10.1.2.3"], &[]), "10.1.2.3"),
            (PodNetwork { shares_loopback: true, ..network(&["192.0.2.1"], &[]) }, "0.0.0.0"),
        ] {
            let bound = datagrams(&pod, "0.0.0.0:0".parse().unwrap()).unwrap();
            assert_eq!(bound.real, Some(ip(own)));
        }
    }

    #[test]
    fn refused_ranges_hold_for_every_spelling() {
        let pod = network(&["10.1.2.3"], &[("169.254.0.0", 16, None), ("10.0.0.1", 32, Some(22))]);
        let to = |text: &str| way(&pod, &[], text.parse().unwrap());
        for refused in ["169.254.169.254:80", "[::ffff:169.254.169.254]:80", "10.0.0.1:22"] {
            assert_eq!(to(refused), Err(NetError::AccessDenied), "{refused}");
        }
        let open: SocketAddr = "10.0.0.1:80".parse().unwrap();
        assert_eq!(way(&pod, &[], open), Ok(Way::Real(open)));
        assert_eq!(to("[::ffff:10.0.0.1]:80"), Ok(Way::Real(open)));
        let local: SocketAddr = "127.0.0.1:80".parse().unwrap();
        assert_eq!(to("[::ffff:127.0.0.1]:80"), Ok(Way::Private(local)));
        for none in ["0.0.0.0:80", "[::]:80", "[::ffff:0.0.0.0]:80", "10.0.0.2:0"] {
            assert_eq!(to(none), Err(NetError::InvalidArgument), "{none}");
        }
        for many in ["255.255.255.255:9", "224.0.0.251:5353", "[ff02::1]:9"] {
            assert_eq!(to(many), Err(NetError::AccessDenied), "{many}");
        }
    }

    #[test]
    fn who_sends_from_where_no_pod_may_go_is_not_answered() {
        let refused =
            [("169.254.0.0", 16, None), ("fe80::", 10, None), ("fd00:ec2::254", 128, None)];
        let pod = network(&["10.1.2.3"], &refused);
        let may = |from: &str, to: Option<&str>| {
            may_answer(&pod, from.parse().unwrap(), to.map(ip)).is_ok()
        };
        for (from, to) in [
            ("192.0.2.9:53", Some("192.0.2.1")),
            ("192.0.2.9:53", None),
            // The node.
            ("127.0.0.1:53", Some("127.0.0.1")),
            ("127.0.0.9:53", None),
            ("[::1]:53", Some("::1")),
            ("169.254.20.10:53", Some("169.254.20.10")),
            // A neighbour.
            ("[fe80::7]:53", Some("fe80::1")),
        ] {
            assert!(may(from, to), "{from} {to:?}");
        }
        for (from, to) in [
            ("169.254.169.254:53", Some("192.0.2.1")),
            ("169.254.169.254:53", Some("169.254.20.10")),
            ("169.254.169.254:53", None),
            ("[fe80::7]:53", Some("2001:db8::1")),
            ("[fe80::7]:53", None),
            ("[fd00:ec2::254]:53", Some("fe80::1")),
            ("[64:ff9b::a9fe:a9fe]:53", Some("fe80::1")),
            ("192.0.2.9:0", Some("192.0.2.1")),
        ] {
            assert!(!may(from, to), "{from} {to:?}");
        }
    }

    #[test]
    fn what_is_given_is_that_one_address_and_port() {
        let pod = network(&["10.1.2.3"], &[("169.254.0.0", 16, None)]);
        let at = |text: &str| text.parse().unwrap();
        let given = ["169.254.20.10:53", "224.0.0.251:53", "0.0.0.0:53"].map(at);
        let to = |text: &str| way(&pod, &given, at(text));
        assert_eq!(to("169.254.20.10:53"), Ok(Way::Real(given[0])));
        assert_eq!(to("[::ffff:169.254.20.10]:53"), Ok(Way::Real(given[0])));
        for refused in ["169.254.20.10:80", "169.254.20.11:53", "[64:ff9b::a9fe:140a]:53"] {
            assert_eq!(to(refused), Err(NetError::AccessDenied), "{refused}");
        }
        // What is no one machine's stays so.
        assert_eq!(to("224.0.0.251:53"), Err(NetError::AccessDenied));
        assert_eq!(to("0.0.0.0:53"), Err(NetError::InvalidArgument));
    }

    #[test]
    fn a_translated_address_is_what_it_is_translated_to() {
        let pod = network(&["fd00::7"], &[("169.254.0.0", 16, None), ("10.0.0.1", 32, Some(22))]);
        let to = |text: &str| way(&pod, &[], text.parse().unwrap());
        for refused in [
            "[64:ff9b::a9fe:a9fe]:80",
            "[2002:a9fe:a9fe::1]:80",
            "[::a9fe:a9fe]:80",
            "[::ffff:0:a9fe:a9fe]:80",
            "[::ffff:0:7f00:1]:80",
            "[64:ff9b::a00:1]:22",
            "[64:ff9b::7f00:1]:80",
            "[2002:7f00:1::]:80",
            "[64:ff9b::]:80",
            "[64:ff9b::e000:fb]:5353",
        ] {
            assert_eq!(to(refused), Err(NetError::AccessDenied), "{refused}");
        }
        for open in ["[64:ff9b::a00:1]:23", "[64:ff9b::808:808]:80", "[2001:db8::a9fe:a9fe]:80"] {
            let open: SocketAddr = open.parse().unwrap();
            assert_eq!(way(&pod, &[], open), Ok(Way::Real(open)));
        }
    }

    proptest! {
        #[test]
        fn no_spelling_of_a_refused_address_gets_through(
            range in any::<u32>(),
            prefix in 0_u8..=32,
            within in any::<u32>(),
            rest in any::<u128>(),
        ) {
            let kept = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            let bits = range & kept | within & !kept;
            let mut pod = network(&["10.1.2.3", "fd00::7"], &[]);
            let address = Ipv4Addr::from_bits(range).into();
            pod.refused.push(Destinations { address, prefix, port: None });
            let low = u128::from(bits);
            for spelling in [
                low,
                0xffff << 32 | low,
                0xffff << 48 | low,
                0x64_ff9b << 96 | low,
                0x2002 << 112 | low << 80 | rest >> 48,
            ] {
                let ip = IpAddr::V6(Ipv6Addr::from_bits(spelling));
                let way = way(&pod, &[], SocketAddr::new(ip, 80));
                prop_assert!(!matches!(way, Ok(Way::Real(_))), "{ip}: {way:?}");
            }
        }

        #[test]
        fn no_real_socket_is_bound_to_an_address_that_is_not_the_pods(
            asked in ips(),
            port in prop_oneof![Just(0), any::<u16>()],
        ) {
            let pod = network(&["10.1.2.3", "fd00::7"], &[]);
            prop_assert_eq!(datagrams(&pod, SocketAddr::new(asked, port)), binding(&pod, asked));
            if let Ok(Binding { real, private }) = binding(&pod, asked) {
                prop_assert!(real.is_none_or(|real| pod.addresses.contains(&real)));
                prop_assert!(private.is_none_or(|ip| ip.is_loopback() || ip.is_unspecified()));
                prop_assert!(real.is_some() || private.is_some());
            }
        }

        #[test]
        fn no_real_connection_goes_to_a_loopback_or_a_refused_range(
            asked in ips(),
            port in any::<u16>(),
            range in ips(),
            prefix in 0_u8..=128,
        ) {
            let range = range.to_canonical();
            let prefix = if range.is_ipv4() { prefix % 33 } else { prefix };
            let mut pod = network(&["10.1.2.3"], &[]);
            pod.refused.push(Destinations { address: range, prefix, port: None });
            match way(&pod, &[], SocketAddr::new(asked, port)) {
                Ok(Way::Real(to)) => {
                    prop_assert!(!to.ip().is_loopback() && !to.ip().is_unspecified());
                    prop_assert_eq!(to.ip(), to.ip().to_canonical());
                    // Bit by bit, and not as the code under test does it.
                    let bits = |ip: IpAddr| match ip {
                        IpAddr::V4(ip) => format!("4{:032b}", ip.to_bits()),
                        IpAddr::V6(ip) => format!("6{:0128b}", ip.to_bits()),
                    };
                    let (range, to) = (bits(range), bits(to.ip()));
                    let shared = 1 + usize::from(prefix);
                    // Of another family it has fewer bits, or another first one.
                    prop_assert_ne!(range.get(..shared), to.get(..shared));
                }
                Ok(Way::Private(to)) => prop_assert!(to.ip().is_loopback()),
                Err(_) => {}
            }
        }

        #[test]
        fn a_pod_without_addresses_reaches_nothing(asked in ips(), port in 1_u16..) {
            let pod = PodNetwork::default();
            prop_assert_eq!(binding(&pod, asked), Err(NetError::AccessDenied));
            prop_assert_eq!(way(&pod, &[], SocketAddr::new(asked, port)), Err(NetError::AccessDenied));
        }
    }
}
