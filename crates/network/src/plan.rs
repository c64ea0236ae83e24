//! What leads to the pods. Pure.
//!
//! ```text
//! node's namespace                          pods' namespace
//!   kr…… 10.244.1.1/32 ═══════ veth ═══════ eth0
//!   10.244.1.0/24 via 169.254.1.2           default via 169.254.1.1
//!                                           local 10.244.1.0/24 dev lo
//!                                           10.244.1.1 via 169.254.1.1
//! ```
//!
//! Both next hops have a permanent neighbour entry on their link, in both
//! families: nobody is asked who has an address, however many pods there are,
//! and no address of the link's own is needed. The node's first address of the
//! range is its end of the pair; it must not be local among the pods, for a
//! namespace takes no packet from an address of its own.
//!
//! What pods send each other does not leave their namespace, unless it is to pass
//! the node, where a kube-proxy leads it and has answers come from where it led.
//! Then rules have the table with the default route asked for it before the one
//! by which all of their addresses are local:
//!
//! ```text
//! 1  from lo to 10.244.1.0/24: main
//! 2  all: local
//! ```
//!
//! With them packets from an address of the namespace's own are taken too, for
//! the link is where an answer to that would go.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    io, iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::Path,
};

use ipnet::IpNet;

use crate::{
    netlink::{Asks, Route, Rule, whole},
    ranges::gateway,
};

/// The pods' end of the pair, in their namespace.
pub const INSIDE: &str = "eth0";

/// Where the rule stands that asks for what is this namespace's own, as the kernel
/// makes it.
const FIRST: u32 = 0;

/// Where the rules stand by which pods meet at the node, and the one for what is
/// the namespace's own after them.
const BEFORE_OWN: u32 = 1;
const OWN: u32 = 2;

/// What the links are called and what leads over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The node's end of the pair.
    pub(crate) name: String,
    pub(crate) ranges: Vec<IpNet>,
    /// Whether what pods send each other passes the node.
    pub(crate) by_node: bool,
}

/// Which end of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Node,
    Pods,
}

impl End {
    /// The next hop by which packets reach this end.
    pub(crate) fn hop(self, is_ipv4: bool) -> IpAddr {
        let last = match self {
            Self::Node => 1,
            Self::Pods => 2,
        };
        if is_ipv4 {
            Ipv4Addr::new(169, 254, 1, last).into()
        } else {
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last.into()).into()
        }
    }
}

/// Whether an address is the next hop of an end, of whichever link.
pub(crate) fn is_hop(address: IpAddr) -> bool {
    [End::Node, End::Pods].iter().any(|end| end.hop(address.is_ipv4()) == address)
}

impl Plan {
    /// Addresses of the node's end.
    pub(crate) fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.ranges.iter().filter(|range| has_gateway(**range)).map(|range| gateway(*range))
    }

    pub(crate) fn has_family(&self, is_ipv4: bool) -> bool {
        self.ranges.iter().any(|range| range.addr().is_ipv4() == is_ipv4)
    }

    /// Routes over the node's end.
    pub(crate) fn node_routes(&self) -> impl Iterator<Item = Route> {
        self.ranges.iter().map(|range| {
            let hop = End::Pods.hop(range.addr().is_ipv4());
            let source = has_gateway(*range).then(|| gateway(*range));
            Route::Via { range: *range, hop, source, first: false }
        })
    }

    /// Routes by which each address of the ranges is the pods' own.
    pub(crate) fn local_routes(&self) -> impl Iterator<Item = Route> {
        self.ranges.iter().map(|range| Route::Local { range: *range })
    }

    /// Routes over the pods' end.
    pub(crate) fn pod_routes(&self) -> impl Iterator<Item = Route> {
        let to_node = self.gateways().map(|address| Route::Via {
            range: IpNet::from(address),
            hop: End::Node.hop(address.is_ipv4()),
            source: None,
            first: true,
        });
        let defaults = [true, false].into_iter().filter(|is_ipv4| self.has_family(*is_ipv4));
        let out = defaults.map(|is_ipv4| Route::Via {
            range: everywhere(is_ipv4),
            hop: End::Node.hop(is_ipv4),
            source: None,
            first: false,
        });
        to_node.chain(out)
    }

    /// The pods' rules of a family, in the order in which they are to be added
    /// before others are removed: at no moment is there none for what is their
    /// own.
    pub(crate) fn pod_rules(&self, is_ipv4: bool) -> Vec<Rule> {
        if !self.by_node || !self.has_family(is_ipv4) {
            return vec![Rule { place: FIRST, asks: Asks::Own }];
        }
        let ranges = self.ranges.iter().filter(|range| range.addr().is_ipv4() == is_ipv4);
        let out = ranges.map(|&to| Rule { place: BEFORE_OWN, asks: Asks::Elsewhere { to } });
        iter::once(Rule { place: OWN, asks: Asks::Own }).chain(out).collect()
    }
}

/// Whether the node has an address of the range: a single one is a pod's.
fn has_gateway(range: IpNet) -> bool {
    range.prefix_len() < whole(range.addr())
}

/// All addresses of a family.
pub(crate) fn everywhere(is_ipv4: bool) -> IpNet {
    let address: IpAddr =
        if is_ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    IpNet::new_assert(address, 0)
}

/// The name of the node's end of the pair, the same each time for a root
/// directory and another for each, for several nodes may run in one namespace.
///
/// # Errors
///
/// When the directory cannot be looked at.
pub fn link_name(root: &Path) -> io::Result<String> {
    let path = fs::canonicalize(root)?;
    let found = fs::metadata(&path)?;
    let mut hasher = DefaultHasher::new();
    // The path alone is not enough: containers that share the machine's
    // network may each have a directory of this name.
    (path, found.dev(), found.ino()).hash(&mut hasher);
    Ok(format!("kr{:010x}", hasher.finish() >> 24))
}

/// An address of the link layer for one end, made of the link's name: one that
/// is given is left alone by programs that hand out lasting ones.
pub(crate) fn mac(name: &str, end: End) -> [u8; 6] {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let mut mac = [0; 6];
    mac.copy_from_slice(&hasher.finish().to_be_bytes()[..6]);
    // Locally administered, for one receiver.
    mac[0] = match end {
        End::Node => 0x02,
        End::Pods => 0x06,
    };
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(ranges: &[&str]) -> Plan {
        let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        Plan { name: "kr0".into(), ranges, by_node: false }
    }

    #[test]
    fn the_nodes_own_address_is_not_the_pods() {
        let plan = plan(&["10.244.1.0/24", "fd00::/64"]);
        let via = |range: &str, hop: &str, first| Route::Via {
            range: range.parse().unwrap(),
            hop: hop.parse().unwrap(),
            source: None,
            first,
        };
        let from = |route, address: &str| match route {
            Route::Via { range, hop, first, .. } => {
                Route::Via { range, hop, source: Some(address.parse().unwrap()), first }
            }
            local @ Route::Local { .. } => local,
        };
        assert_eq!(
            plan.pod_routes().collect::<Vec<_>>(),
            [
                via("10.244.1.1/32", "169.254.1.1", true),
                via("fd00::1/128", "fe80::1", true),
                via("0.0.0.0/0", "169.254.1.1", false),
                via("::/0", "fe80::1", false),
            ],
        );
        assert_eq!(
            plan.node_routes().collect::<Vec<_>>(),
            [
                from(via("10.244.1.0/24", "169.254.1.2", false), "10.244.1.1"),
                from(via("fd00::/64", "fe80::2", false), "fd00::1"),
            ],
        );
    }

    #[test]
    fn a_single_address_is_a_pods() {
        let plan = plan(&["10.244.1.9/32"]);
        assert_eq!(plan.gateways().count(), 0);
        assert_eq!(plan.local_routes().count(), 1);
    }

    #[test]
    fn pods_meet_at_the_node_only_where_that_is_asked_for() {
        let mut plan = plan(&["10.244.1.0/24", "fd00::/64", "10.244.9.0/24"]);
        let own = |place| Rule { place, asks: Asks::Own };
        let out = |to: &str| Rule { place: 1, asks: Asks::Elsewhere { to: to.parse().unwrap() } };
        // As the kernel has it.
        assert_eq!(plan.pod_rules(true), [own(0)]);
        plan.by_node = true;
        assert_eq!(plan.pod_rules(true), [own(2), out("10.244.1.0/24"), out("10.244.9.0/24")]);
        assert_eq!(plan.pod_rules(false), [own(2), out("fd00::/64")]);
        plan.ranges.retain(|range| range.addr().is_ipv4());
        assert_eq!(plan.pod_rules(false), [own(0)]);
    }

    #[test]
    fn each_directory_has_its_link() {
        let home = tempfile::tempdir().unwrap();
        let (one, two) = (home.path().join("a"), home.path().join("b"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        let name = link_name(&one).unwrap();
        assert_eq!(name, link_name(&one).unwrap());
        assert_ne!(name, link_name(&two).unwrap());
        // IFNAMSIZ is 16, with the zero at the end.
        assert!(name.len() < 16, "{name}");
        assert_ne!(mac(&name, End::Node), mac(&name, End::Pods));
    }
}
