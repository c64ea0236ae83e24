//! Routes to the pods of other nodes on the same network, as host-gateway CNIs
//! make them. Pure; [`ensure`](crate::ensure) makes them.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::ranges::PodRanges;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its addresses on the network that the nodes share.
    pub addresses: Vec<IpAddr>,
    /// Its podCIDRs, as written.
    pub ranges: Vec<String>,
}

/// By which address each range of other nodes is reached. A range without an
/// address of its family, or one that overlaps this node's own or another's
/// before it, is left out, for whatever routes it otherwise.
#[must_use]
pub(crate) fn routes(
    own: &str,
    ranges: Option<&PodRanges>,
    peers: &[Peer],
) -> BTreeMap<IpNet, IpAddr> {
    let mut routes: BTreeMap<IpNet, IpAddr> = BTreeMap::new();
    for peer in peers.iter().filter(|peer| peer.name != own) {
        let Ok(theirs) = PodRanges::parse(&peer.ranges) else { continue };
        for range in theirs.iter() {
            let is_ours = ranges.is_some_and(|ours| ours.iter().any(|our| overlap(our, range)));
            let is_taken = routes.keys().any(|other| overlap(*other, range));
            let hop = peer.addresses.iter().find(|hop| hop.is_ipv4() == range.addr().is_ipv4());
            if let (false, false, Some(hop)) = (is_ours, is_taken, hop) {
                routes.insert(range, *hop);
            }
        }
    }
    routes
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other.addr()) || other.contains(&one.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, addresses: &[&str], ranges: &[&str]) -> Peer {
        Peer {
            name: name.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ranges: ranges.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn each_range_of_others_is_reached_by_their_address_of_its_family() {
        let own = PodRanges::parse(&["10.244.1.0/24"]).unwrap();
        let peers = [
            peer("self", &["192.0.2.1"], &["10.244.1.0/24"]),
            peer("both", &["192.0.2.2", "2001:db8::2"], &["10.244.2.0/24", "fd00:2::/64"]),
            peer("half", &["192.0.2.3"], &["10.244.3.0/24", "fd00:3::/64"]),
            peer("new", &["192.0.2.4"], &[]),
            peer("wrong", &["192.0.2.5"], &["nonsense"]),
            peer("ours", &["192.0.2.6"], &["10.244.0.0/16"]),
            peer("theirs", &["192.0.2.7"], &["10.244.2.128/25"]),
        ];
        let made: Vec<_> = routes("self", Some(&own), &peers)
            .into_iter()
            .map(|(range, hop)| format!("{range} via {hop}"))
            .collect();
        assert_eq!(
            made,
            [
                "10.244.2.0/24 via 192.0.2.2",
                "10.244.3.0/24 via 192.0.2.3",
                "fd00:2::/64 via 2001:db8::2",
            ],
        );
    }
}
