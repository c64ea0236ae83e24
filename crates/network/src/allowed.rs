//! Where a pod's sockets may not go. Pure.
//!
//! Only what belongs to the machine or its cloud, not to the cluster: cluster
//! policies are others' business. A guest's own loopback is not the machine's
//! and is not among these.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use krustlet_protocol::Destinations;

use crate::netlink::whole;

/// Addresses at which clouds serve credentials and that are not link-local:
/// Alibaba, Azure and Oracle; over IPv6 Alibaba, Google, Linode, Oracle and Scaleway.
const METADATA: [IpAddr; 8] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
];

/// Amazon's own over IPv6: metadata, the credentials of EKS's pods, and whatever
/// else it will have there. The first 32 bits.
const AMAZON: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0);

/// NAT64 prefixes that a network may choose from (RFC 8215). Where the IPv4
/// address lies in them is that network's affair, so that none can be let
/// through; of the well-known prefix, a sandbox reads the address.
const LOCAL_NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0);

/// Addresses of the node that are named one by one. Beyond it (a kube-proxy
/// with IPVS gives the node the address of every Service) the port of the
/// node's API is refused everywhere: a sandbox looks through the list for each
/// connection.
pub(crate) const MOST: usize = 512;

/// The addresses at which the node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeAddresses {
    /// They cannot be found out.
    Unknown,
    /// These and no others.
    Known(BTreeSet<IpAddr>),
}

impl NodeAddresses {
    /// Those that a pod could reach the node at: without loopback, which is the
    /// pod's own, and link-local ones, which are refused altogether.
    pub(crate) fn known(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let is_reached = |address: &IpAddr| match address {
            IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        };
        Self::Known(addresses.into_iter().filter(is_reached).collect())
    }
}

/// Which of the node's own addresses it had at the look before and has no more.
pub(crate) fn gone(
    own: &[IpAddr],
    before: &BTreeSet<IpAddr>,
    found: &BTreeSet<IpAddr>,
) -> Vec<IpAddr> {
    own.iter().filter(|one| before.contains(one) && !found.contains(one)).copied().collect()
}

/// Where a pod may not connect or send to: link-local addresses, at which
/// clouds serve a machine its credentials, other such addresses, and the node's
/// own API at any of the node's addresses. Where those are not known or too
/// many, its port is refused everywhere.
///
/// None of it is for a pod with `hostNetwork`: it was given what the node has.
#[must_use]
pub fn refused(node: &NodeAddresses, api_port: Option<u16>) -> Vec<Destinations> {
    let all = |address: IpAddr, prefix| Destinations { address, prefix, port: None };
    let mut refused = vec![
        all(Ipv4Addr::new(169, 254, 0, 0).into(), 16),
        all(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
        all(LOCAL_NAT64.into(), 48),
    ];
    refused.extend(METADATA.map(|address| all(address, whole(address))));
    refused.push(all(AMAZON.into(), 32));
    let Some(port) = api_port else { return refused };
    let at = |address: IpAddr, prefix| Destinations { address, prefix, port: Some(port) };
    match node {
        NodeAddresses::Known(addresses) if addresses.len() <= MOST => {
            refused.extend(addresses.iter().map(|&address| at(address, whole(address))));
        }
        NodeAddresses::Known(_) | NodeAddresses::Unknown => refused
            .extend([at(Ipv4Addr::UNSPECIFIED.into(), 0), at(Ipv6Addr::UNSPECIFIED.into(), 0)]),
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(list: &[Destinations], address: &str, port: u16) -> bool {
        let address: IpAddr = address.parse().unwrap();
        list.iter().any(|range| {
            let net = ipnet::IpNet::new(range.address, range.prefix).unwrap();
            net.contains(&address) && range.port.is_none_or(|only| only == port)
        })
    }

    fn at(addresses: &[&str]) -> NodeAddresses {
        NodeAddresses::known(addresses.iter().map(|address| address.parse().unwrap()))
    }

    #[test]
    fn a_node_misses_only_what_was_its_own_and_there() {
        let set = |texts: &[&str]| -> BTreeSet<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let own: Vec<IpAddr> = set(&["192.0.2.1", "2001:db8::1"]).into_iter().collect();
        let both = set(&["192.0.2.1", "2001:db8::1", "172.17.0.1"]);
        assert_eq!(gone(&own, &both, &set(&["2001:db8::1"])), own[..1]);
        // Once for each time that it goes; one that is not the machine's never was here.
        assert!(gone(&own, &set(&["2001:db8::1"]), &set(&["2001:db8::1"])).is_empty());
        assert!(gone(&own, &set(&[]), &both).is_empty());
        assert!(gone(&own, &both, &both).is_empty());
    }

    #[test]
    fn the_machines_own_is_refused_and_nothing_else() {
        // With the ends of links to pods, and what other programs made.
        let node = at(&["192.0.2.1", "2001:db8::1", "10.244.1.1", "fd00:1::1", "172.17.0.1"]);
        let list = refused(&node, Some(10250));
        for (address, port, expected) in [
            ("169.254.169.254", 80, true),
            ("169.254.170.2", 80, true),
            ("fe80::1", 53, true),
            ("fd00:ec2::254", 80, true),
            ("fd00:ec2::23", 80, true),
            ("fd20:ce::254", 80, true),
            ("fd00:c1::a9fe:a9fe", 80, true),
            ("fd00:42::42", 80, true),
            ("fd00:a9fe:a9fe::1", 80, true),
            ("fd00:100::100:200", 80, true),
            ("100.100.100.200", 80, true),
            ("168.63.129.16", 32526, true),
            ("64:ff9b:1::a9fe:a9fe", 80, true),
            ("192.0.2.1", 10250, true),
            ("2001:db8::1", 10250, true),
            ("10.244.1.1", 10250, true),
            ("fd00:1::1", 10250, true),
            ("172.17.0.1", 10250, true),
            ("192.0.2.1", 6443, false),
            ("10.244.1.1", 53, false),
            ("192.0.2.2", 10250, false),
            ("100.100.100.201", 80, false),
            ("fd00:ec3::254", 80, false),
            ("fd20:ce::255", 80, false),
            ("64:ff9b:2::a9fe:a9fe", 80, false),
            ("10.96.0.1", 443, false),
        ] {
            assert_eq!(is_refused(&list, address, port), expected, "{address} {port}");
        }
    }

    #[test]
    fn links_that_come_and_go_with_link_local_addresses_change_nothing() {
        let before = at(&["192.0.2.1"]);
        assert_eq!(at(&["192.0.2.1", "fe80::42:1", "127.0.0.1", "::1", "169.254.9.9"]), before);
    }

    #[test]
    fn the_api_is_refused_everywhere_if_the_node_may_be_anywhere() {
        let many = (0..=u16::try_from(MOST).unwrap()).map(|number| {
            let [high, low] = number.to_be_bytes();
            IpAddr::from([10, 96, high, low])
        });
        for node in [NodeAddresses::Unknown, NodeAddresses::known(many)] {
            let list = refused(&node, Some(10250));
            assert!(list.len() < 25, "{}", list.len());
            for address in ["192.0.2.1", "2001:db8::1"] {
                assert!(is_refused(&list, address, 10250));
                assert!(!is_refused(&list, address, 443));
            }
            let list = refused(&node, None);
            assert!(!is_refused(&list, "192.0.2.1", 10250));
        }
    }
}
