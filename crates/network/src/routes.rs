//! Routes to the pods of other nodes on the same network, as host-gateway CNIs
//! make them. Pure; [`ensure`](crate::ensure) makes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;

use crate::ranges::{PodRanges, RangeError};

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

/// Why pods of another node are not led to. Each is told once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unled {
    /// Its podCIDRs cannot be used, for this reason.
    Unusable { node: String, why: String },
    /// It has no address of the family of this range.
    NoAddress { node: String, range: IpNet },
    /// Addresses of its range are this node's pods', or those of another before it.
    Overlaps { node: String, range: IpNet, other: IpNet },
    /// This address of it is of the range of pods, of this node or another.
    Pods { node: String, address: IpAddr, range: IpNet },
    /// No network of this node's leads there.
    Apart { hop: IpAddr },
    /// A route that is not ours leads to its range.
    Taken { range: IpNet },
}

impl fmt::Display for Unled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable { node, why } => {
                write!(f, "the pods of node {node} are not led to: {why}")
            }
            Self::NoAddress { node, range } => write!(
                f,
                "the pods of node {node} in {range} are not led to: it has no InternalIP of that \
                 family; name one of each to it (--node-ip)"
            ),
            Self::Overlaps { node, range, other } => write!(
                f,
                "the pods of node {node} in {range} are not led to: {other}, this node's or \
                 another's, holds the same addresses"
            ),
            Self::Pods { node, address, range } => write!(
                f,
                "the pods of node {node} are not led to by its address {address}: that is one of \
                 {range}, which is of pods"
            ),
            Self::Apart { hop } => write!(
                f,
                "the pods of the node at {hop} are not led to: it is on no network of this node"
            ),
            Self::Taken { range } => write!(
                f,
                "the pods of {range} are not led to: another program's route leads there; remove \
                 it, or leave --node-routes out"
            ),
        }
    }
}

/// By which address each range of other nodes is reached, and why some are not.
///
/// A range is left to whatever else routes it if its node has no address of its
/// family, or if it overlaps this node's own or another's before it. So are the
/// ranges of a node of which one holds an address of this node (`own_addresses`)
/// or of that node itself: the route would lead away from there.
///
/// Nodes write their addresses themselves, and are given their ranges. So where an
/// address of one lies in the range of another, the address is not believed: else a
/// node could cut others off.
#[must_use]
pub(crate) fn routes(
    own: (&str, &[IpAddr]),
    ranges: Option<&PodRanges>,
    peers: &[Peer],
) -> (BTreeMap<IpNet, IpAddr>, BTreeSet<Unled>) {
    let (owners, mut unled) = owners(own, ranges, peers);
    let mut routes = BTreeMap::new();
    for (&range, peer) in &owners {
        let of_family = |hop: &&IpAddr| hop.is_ipv4() == range.addr().is_ipv4();
        let mut hops = peer.addresses.iter().filter(of_family).peekable();
        if hops.peek().is_none() {
            unled.insert(Unled::NoAddress { node: peer.name.clone(), range });
        }
        for &hop in hops {
            let ours = ranges.into_iter().flat_map(PodRanges::iter);
            let mut within = ours.filter(|our| our.contains(&hop));
            match within.next().or_else(|| overlapping(&owners, hop.into())) {
                None => {
                    routes.insert(range, hop);
                    break;
                }
                Some(other) => {
                    let (node, address) = (peer.name.clone(), hop);
                    unled.insert(Unled::Pods { node, address, range: other });
                }
            }
        }
    }
    (routes, unled)
}

/// Which range is whose, of those that may be led to; no two overlap.
fn owners<'a>(
    (own, own_addresses): (&str, &[IpAddr]),
    ranges: Option<&PodRanges>,
    peers: &'a [Peer],
) -> (BTreeMap<IpNet, &'a Peer>, BTreeSet<Unled>) {
    let mut owners: BTreeMap<IpNet, &Peer> = BTreeMap::new();
    let mut unled = BTreeSet::new();
    for peer in peers.iter().filter(|peer| peer.name != own) {
        let apart =
            |ranges: PodRanges| ranges.apart_from(own_addresses)?.apart_from(&peer.addresses);
        let theirs = match PodRanges::parse(&peer.ranges).and_then(apart) {
            Ok(theirs) => theirs,
            // It has yet to get some.
            Err(RangeError::None) => continue,
            Err(error) => {
                let (node, why) = (peer.name.clone(), error.to_string());
                unled.insert(Unled::Unusable { node, why });
                continue;
            }
        };
        for range in theirs.iter() {
            let mut ours = ranges.into_iter().flat_map(PodRanges::iter);
            let taken =
                ours.find(|our| overlap(*our, range)).or_else(|| overlapping(&owners, range));
            match taken {
                None => drop(owners.insert(range, peer)),
                Some(other) => {
                    unled.insert(Unled::Overlaps { node: peer.name.clone(), range, other });
                }
            }
        }
    }
    (owners, unled)
}

/// Which of these, of which no two overlap, overlaps a range: if one does, one of
/// the two beside it in their order does.
fn overlapping<T>(all: &BTreeMap<IpNet, T>, range: IpNet) -> Option<IpNet> {
    let before = all.range(..=range).next_back();
    let after = all.range(range..).next();
    before.into_iter().chain(after).map(|(other, _)| *other).find(|other| overlap(*other, range))
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other.addr()) || other.contains(&one.addr())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        let (made, unled) = routes(("self", &[]), Some(&own), &peers);
        let made: Vec<_> =
            made.into_iter().map(|(range, hop)| format!("{range} via {hop}")).collect();
        assert_eq!(
            made,
            [
                "10.244.2.0/24 via 192.0.2.2",
                "10.244.3.0/24 via 192.0.2.3",
                "fd00:2::/64 via 2001:db8::2",
            ],
        );
        let unled: Vec<_> = unled.iter().map(ToString::to_string).collect();
        let told = |words: &str| unled.iter().any(|why| why.contains(words));
        for words in [
            "node wrong are not led to: podCIDR \"nonsense\"",
            "node half in fd00:3::/64 are not led to: it has no InternalIP of that family",
            "node ours in 10.244.0.0/16 are not led to: 10.244.1.0/24,",
            "node theirs in 10.244.2.128/25 are not led to: 10.244.2.0/24,",
        ] {
            assert!(told(words), "{words}: {unled:?}");
        }
        assert_eq!(unled.len(), 4, "{unled:?}");
    }

    #[test]
    fn no_route_leads_away_from_a_node() {
        let here: IpAddr = "198.51.100.1".parse().unwrap();
        for (theirs, word) in [
            ("0.0.0.0/0", "at least 8 bits"),
            // The network of the nodes, and that of an address that but this one has.
            ("192.0.2.0/24", "contains 192.0.2.2"),
            ("198.51.100.0/25", "contains 198.51.100.1"),
        ] {
            let peers = [
                peer("greedy", &["192.0.2.2"], &[theirs]),
                peer("other", &["192.0.2.3"], &["10.244.3.0/24"]),
            ];
            let (made, unled) = routes(("self", &[here]), None, &peers);
            assert_eq!(made.len(), 1, "{made:?}");
            assert!(unled.iter().any(|why| why.to_string().contains(word)), "{unled:?}");
        }
    }

    #[test]
    fn no_node_cuts_others_off_by_what_it_calls_its_address() {
        let own = PodRanges::parse(&["10.244.1.0/24"]).unwrap();
        let peers = [
            peer("liar", &["10.244.2.5", "10.244.1.7", "192.0.2.9"], &["10.244.9.0/24"]),
            peer("other", &["192.0.2.2"], &["10.244.2.0/24"]),
            peer("without", &["10.244.2.6"], &["10.244.8.0/24"]),
        ];
        let (made, unled) = routes(("self", &[]), Some(&own), &peers);
        let made: Vec<_> =
            made.into_iter().map(|(range, hop)| format!("{range} via {hop}")).collect();
        assert_eq!(made, ["10.244.2.0/24 via 192.0.2.2", "10.244.9.0/24 via 192.0.2.9"]);
        let unled: Vec<_> = unled.iter().map(ToString::to_string).collect();
        for words in [
            "node liar are not led to by its address 10.244.2.5: that is one of 10.244.2.0/24,",
            "node liar are not led to by its address 10.244.1.7: that is one of 10.244.1.0/24,",
            "node without are not led to by its address 10.244.2.6: ",
        ] {
            assert!(unled.iter().any(|why| why.contains(words)), "{words}: {unled:?}");
        }
        assert_eq!(unled.len(), 3, "{unled:?}");
    }

    /// Ranges of a few small networks, of both families, wide and narrow.
    fn range() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u8>(), 16_u8..=30).prop_map(|(part, prefix)| {
                IpNet::new([10, 0, part, part << 4].into(), prefix).unwrap().trunc()
            }),
            (any::<u8>(), 96_u8..=126).prop_map(|(part, prefix)| {
                let part = u16::from(part);
                let address = [0xfd00, 0, 0, 0, 0, 0, part, part << 4];
                IpNet::new(address.into(), prefix).unwrap().trunc()
            }),
        ]
    }

    proptest! {
        /// What is looked up in order is what each with each would come to.
        #[test]
        fn neighbours_in_order_say_what_all_would(
            ranges in prop::collection::vec(range(), 0..40),
            nodes in prop::collection::btree_set(range().prop_map(|range| range.addr()), 0..20),
        ) {
            let mut routes = BTreeMap::new();
            for range in ranges {
                let all = routes.keys().copied().any(|other| overlap(other, range));
                let found = overlapping(&routes, range);
                prop_assert_eq!(found.is_some(), all, "{} among {:?}", range, routes);
                if let Some(other) = found {
                    prop_assert!(overlap(other, range));
                } else {
                    routes.insert(range, range.addr());
                }
                for node in &nodes {
                    let is_within = routes.keys().any(|other| other.contains(node));
                    prop_assert_eq!(overlapping(&routes, (*node).into()).is_some(), is_within);
                }
            }
        }
    }
}
