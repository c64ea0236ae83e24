//! Where a pod's sockets may not go. Pure.
//!
//! Only what belongs to the machine or its cloud, not to the cluster: cluster
//! policies are others' business. A guest's own loopback is not the machine's
//! and is not among these.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use krustlet_protocol::Destinations;

/// Addresses at which clouds serve credentials and that are not link-local:
/// Alibaba, Azure, Oracle, and Amazon's over IPv6.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Where a pod may not connect or send to: link-local addresses, at which
/// clouds serve a machine its credentials, other such addresses, and the node's
/// own API at any of `node`'s addresses.
///
/// A pod with `hostNetwork` is refused nothing: it was given what the node has.
#[must_use]
pub fn refused(host_network: bool, node: &[IpAddr], api_port: Option<u16>) -> Vec<Destinations> {
    if host_network {
        return Vec::new();
    }
    let all = |address: IpAddr, prefix| Destinations { address, prefix, port: None };
    let whole = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let mut refused = vec![
        all(Ipv4Addr::new(169, 254, 0, 0).into(), 16),
        all(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
    ];
    refused.extend(METADATA.map(|address| all(address, whole(address))));
    if let Some(port) = api_port {
        refused.extend(node.iter().map(|&address| Destinations {
            address,
            prefix: whole(address),
            port: Some(port),
        }));
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

    #[test]
    fn the_machines_own_is_refused_and_nothing_else() {
        let node = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let list = refused(false, &node, Some(10250));
        for (address, port, expected) in [
            ("169.254.169.254", 80, true),
            ("169.254.170.2", 80, true),
            ("fe80::1", 53, true),
            ("fd00:ec2::254", 80, true),
            ("100.100.100.200", 80, true),
            ("168.63.129.16", 32526, true),
            ("192.0.2.1", 10250, true),
            ("2001:db8::1", 10250, true),
            ("192.0.2.1", 6443, false),
            ("192.0.2.2", 10250, false),
            ("100.100.100.201", 80, false),
            ("fd00:ec2::255", 80, false),
            ("10.96.0.1", 443, false),
        ] {
            assert_eq!(is_refused(&list, address, port), expected, "{address} {port}");
        }
        assert!(refused(true, &node, Some(10250)).is_empty());
    }
}
