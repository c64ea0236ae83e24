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
//! Rules have the pods' namespace look for routes in this order, in each family
//! that pods have:
//!
//! ```text
//! 1  to a name server of the node's that is refused otherwise, port 53: main
//! 2  sent to a range that is refused: refuse
//! 3  sent by TCP to the port of the node's API: table 108, which refuses it at
//!    the node's addresses
//! 4  sent to 10.244.1.0/24: main, so that it passes the node
//! 5  all: local
//! ```
//!
//! Sandboxes refuse the same themselves, and say so better; 1 to 3 are for one that
//! was broken out of. 4 is there where a kube-proxy is to hear of what pods send each
//! other. With it packets from an address of the namespace's own are taken too, for
//! the link is where an answer to that would go.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::Path,
};

use ipnet::IpNet;
use krustlet_protocol::Destinations;

use crate::{
    netlink::{Does, FIRST_TABLE, MAIN_TABLE, Port, Route, Rule, whole},
    ranges::gateway,
};

/// The pods' end of the pair, in their namespace.
pub const INSIDE: &str = "eth0";

/// Where the kernel has the rule that asks for what is a namespace's own.
const KERNELS: u32 = 0;

/// Where the rules stand; see above. 1 is not only about what is sent: a packet
/// from there is taken where one to there could be sent.
const NAME_SERVERS: u32 = 1;
const REFUSED: u32 = 2;
const API: u32 = 3;
const BY_NODE: u32 = 4;
const OWN: u32 = 5;

/// The last place that is the agent's. Those behind are the kernel's own two, and
/// anybody's.
pub(crate) const LAST_PLACE: u32 = 9;

/// The table that refuses the node's API.
pub(crate) const API_TABLE: u8 = 108;

/// Where name servers listen.
const NAMES: u16 = 53;

/// What the links are called and what leads over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The node's end of the pair.
    pub(crate) name: String,
    pub(crate) ranges: Vec<IpNet>,
    /// Whether what pods send each other passes the node.
    pub(crate) by_node: bool,
    /// Where nobody among the pods may send anything, as sandboxes are told; of
    /// those with a port it is the node's API's.
    pub(crate) refused: Vec<Destinations>,
    /// Name servers that the node gives its pods.
    pub(crate) name_servers: Vec<IpAddr>,
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

    /// The pods' rules of a family, that for what is their own first: at no moment
    /// is there to be none, if these are added before others are removed.
    pub(crate) fn pod_rules(&self, is_ipv4: bool) -> Vec<Rule> {
        let own = |place| Rule {
            place,
            does: Does::Ask(FIRST_TABLE),
            is_sent: false,
            to: None,
            port: None,
        };
        if !self.has_family(is_ipv4) {
            return vec![own(KERNELS)];
        }
        let mut rules = vec![own(OWN)];
        let main = Rule { does: Does::Ask(MAIN_TABLE), ..own(NAME_SERVERS) };
        for &server in self.name_servers.iter().filter(|server| server.is_ipv4() == is_ipv4) {
            if self.kept_out(is_ipv4).any(|range| range.contains(&server)) {
                let to = Some(IpNet::from(server));
                rules.extend([Port::Udp(NAMES), Port::Tcp(NAMES)].map(|port| Rule {
                    to,
                    port: Some(port),
                    ..main
                }));
            }
        }
        let sent = Rule { is_sent: true, ..own(REFUSED) };
        let kept_out = self.kept_out(is_ipv4);
        rules.extend(kept_out.map(|to| Rule { does: Does::Refuse, to: Some(to), ..sent }));
        if let Some(port) = self.refused.iter().find_map(|refused| refused.port) {
            let port = Some(Port::Tcp(port));
            rules.push(Rule { place: API, does: Does::Ask(API_TABLE), port, ..sent });
        }
        if self.by_node {
            let ranges = self.ranges.iter().filter(|range| range.addr().is_ipv4() == is_ipv4);
            let main = Rule { place: BY_NODE, does: Does::Ask(MAIN_TABLE), ..sent };
            rules.extend(ranges.map(|&to| Rule { to: Some(to), ..main }));
        }
        rules
    }

    /// Ranges of a family that are refused whatever the port.
    fn kept_out(&self, is_ipv4: bool) -> impl Iterator<Item = IpNet> {
        let all = self.refused.iter().filter(|refused| refused.port.is_none());
        ranges_of(all, is_ipv4)
    }

    /// Where the node's API is refused, in a family that pods have.
    pub(crate) fn api_at(&self, is_ipv4: bool) -> Vec<IpNet> {
        let has_family = self.has_family(is_ipv4);
        let at = self.refused.iter().filter(|refused| has_family && refused.port.is_some());
        ranges_of(at, is_ipv4).collect()
    }
}

fn ranges_of<'a>(
    all: impl Iterator<Item = &'a Destinations>,
    is_ipv4: bool,
) -> impl Iterator<Item = IpNet> {
    all.filter(move |range| range.address.is_ipv4() == is_ipv4).filter_map(|range| {
        // Bits beyond the prefix count for nothing.
        IpNet::new(range.address, range.prefix).ok().map(|range| range.trunc())
    })
}

/// Whether the node has an address of the range: a single one is a pod's.
pub(crate) fn has_gateway(range: IpNet) -> bool {
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
        Plan {
            name: "kr0".into(),
            ranges,
            by_node: false,
            refused: Vec::new(),
            name_servers: Vec::new(),
        }
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

    /// Rules as `ip rule` shows them.
    fn shown(rules: &[Rule]) -> Vec<String> {
        let one = |rule: &Rule| {
            let to = rule.to.map(|to| format!(" to {to}")).unwrap_or_default();
            let sent = if rule.is_sent { " sent" } else { "" };
            let port = match rule.port {
                Some(Port::Tcp(port)) => format!(" tcp {port}"),
                Some(Port::Udp(port)) => format!(" udp {port}"),
                None => String::new(),
            };
            let does = match rule.does {
                Does::Ask(table) => format!(" ask {table}"),
                Does::Refuse => " refuse".to_owned(),
            };
            format!("{}{to}{sent}{port}{does}", rule.place)
        };
        rules.iter().map(one).collect()
    }

    #[test]
    fn pods_meet_at_the_node_only_where_that_is_asked_for() {
        let mut plan = plan(&["10.244.1.0/24", "fd00::/64", "10.244.9.0/24"]);
        assert_eq!(shown(&plan.pod_rules(true)), ["5 ask 255"]);
        plan.by_node = true;
        assert_eq!(
            shown(&plan.pod_rules(true)),
            ["5 ask 255", "4 to 10.244.1.0/24 sent ask 254", "4 to 10.244.9.0/24 sent ask 254"],
        );
        assert_eq!(shown(&plan.pod_rules(false)), ["5 ask 255", "4 to fd00::/64 sent ask 254"],);
        // As the kernel has it.
        plan.ranges.retain(|range| range.addr().is_ipv4());
        assert_eq!(shown(&plan.pod_rules(false)), ["0 ask 255"]);
    }

    #[test]
    fn what_sandboxes_refuse_the_namespace_refuses_but_to_name_servers() {
        let mut plan = plan(&["10.244.1.0/24", "fd00::/64"]);
        let at = |address: &str, prefix, port| Destinations {
            address: address.parse().unwrap(),
            prefix,
            port,
        };
        plan.refused = vec![
            at("169.254.0.0", 16, None),
            at("fe80::", 10, None),
            at("192.0.2.1", 32, Some(10250)),
            at("2001:db8::1", 128, Some(10250)),
        ];
        plan.name_servers =
            ["169.254.20.10", "10.96.0.10"].map(|server| server.parse().unwrap()).to_vec();
        assert_eq!(
            shown(&plan.pod_rules(true)),
            [
                "5 ask 255",
                "1 to 169.254.20.10/32 udp 53 ask 254",
                "1 to 169.254.20.10/32 tcp 53 ask 254",
                "2 to 169.254.0.0/16 sent refuse",
                "3 sent tcp 10250 ask 108",
            ],
        );
        assert_eq!(
            shown(&plan.pod_rules(false)),
            ["5 ask 255", "2 to fe80::/10 sent refuse", "3 sent tcp 10250 ask 108"],
        );
        assert_eq!(plan.api_at(true), ["192.0.2.1/32".parse().unwrap()]);
        assert_eq!(plan.api_at(false), ["2001:db8::1/128".parse().unwrap()]);
        // Of a family that pods do not have there is nothing.
        plan.ranges.retain(|range| range.addr().is_ipv4());
        assert_eq!(plan.api_at(false), []);
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
