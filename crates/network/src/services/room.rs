//! What the file of an address holds of all the Services that have it. Pure.
//!
//! A file is bounded, and the addresses of the node are shared by all Services
//! that have a port there. So its room is for all namespaces alike: what one asks
//! for beyond its part, it has only of what the others leave.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use krustlet_model::services::{Kind, Lead, Otherwise, ServiceKey, Transport, some_of};
use krustlet_protocol::{Destinations, ServiceAddress, ServicePort};

/// What Services say of an address, in the order in which they count.
pub(super) type Shares = BTreeMap<(Kind, ServiceKey), Share>;

/// What a Service says of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Where its ports lead: one value for all addresses that lead to the same.
    pub(super) leads: Arc<[Lead]>,
    /// How long a client is led to the same endpoint, in seconds; 0 for not.
    pub(super) affinity_s: u64,
    /// The only clients that are led; all if empty.
    pub(super) sources: Vec<Destinations>,
}

/// What the file of one address has room for, in endpoints: less than
/// [`MAX_SERVICE`](krustlet_protocol::services::MAX_SERVICE) whatever they are, at
/// some 50 bytes each.
const MOST: usize = 16_000;

/// What of that is for ports with their first endpoints; the rest is for endpoints
/// alone, so that however many ports there are none is left with the first.
const PLACES: usize = 12_000;

/// What a port takes of these, with the names of its Service and its own, and a
/// range of clients.
const PORT: usize = 6;
const SOURCE: usize = 2;

/// Endpoints that a port has wherever it has a place: the one that is called and
/// the three that are tried where that one refuses.
const FEW: usize = 4;

/// Ports of one namespace that are looked at: more have no place however few others
/// there are.
const LOOKED_AT: usize = PLACES / PORT;

/// A port that wants a place.
struct Asked<'a> {
    key: &'a ServiceKey,
    lead: &'a Lead,
    share: &'a Share,
    number: u16,
    /// Its place among all, and what its namespace asks for with it and all before.
    place: usize,
    so_far: usize,
}

impl Asked<'_> {
    /// The endpoints without which it has no place.
    fn few(&self) -> usize {
        self.lead.endpoints.len().min(FEW)
    }

    fn more(&self) -> usize {
        self.lead.endpoints.len() - self.few()
    }

    fn least(&self) -> usize {
        least(self.lead, self.share)
    }

    /// With so many endpoints at most; each node takes others.
    fn port(&self, most: usize, node: &str) -> ServicePort {
        let Self { key, lead, share, number, .. } = self;
        ServicePort {
            transport: lead.transport,
            port: *number,
            of: format!("{key}:{}", lead.name),
            endpoints: some_of(lead.endpoints.clone(), most, node),
            is_silent: lead.otherwise == Otherwise::Dropped,
            affinity_s: share.affinity_s,
            sources: share.sources.clone(),
        }
    }
}

/// What a port takes at least. Without its ranges it would be for everybody.
fn least(lead: &Lead, share: &Share) -> usize {
    PORT + SOURCE * share.sources.len() + lead.endpoints.len().min(FEW)
}

/// What an address is, of all Services that have it. Where the cluster gave it to
/// one, others that name it too have no say; else of several that want a port the
/// one has it to which the address is more than a name, and then the first in the
/// order of their names. None for what another proxy leads to.
///
/// Where there is no room for all, ports have a place in the order of what their
/// namespaces ask for before them: the first of each before the second of any. What
/// is left is for endpoints beyond the first few, for namespaces alike and within
/// one for its ports alike.
pub(super) fn merge(all: &Shares, node: &str) -> Option<ServiceAddress> {
    if is_others(all) {
        return None;
    }
    let is_only = all.keys().any(|(kind, _)| *kind == Kind::Cluster);
    let (placed, left) = place(asked(all, is_only));
    let mut wants: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for one in &placed {
        wants.entry(&one.key.namespace).or_default().push(one.more());
    }
    let of_each = level(wants.values().map(|of| of.iter().sum()).collect(), left);
    let most: HashMap<&str, usize> = wants
        .into_iter()
        .map(|(namespace, of)| {
            let room = of.iter().sum::<usize>().min(of_each);
            (namespace, level(of, room))
        })
        .collect();
    let port = |one: &Asked| {
        let more = most.get(&*one.key.namespace).copied().unwrap_or_default();
        one.port(one.few() + more.min(one.more()), node)
    };
    Some(ServiceAddress { is_only, ports: placed.iter().map(port).collect() })
}

/// Whether the cluster gave the address to a Service of another proxy: who goes
/// there goes where the network leads.
pub(super) fn is_others(all: &Shares) -> bool {
    all.keys().any(|(kind, _)| *kind == Kind::Others)
}

/// The ports that want a place, none twice.
fn asked(all: &Shares, is_only: bool) -> Vec<Asked<'_>> {
    let mut taken: HashSet<(Transport, u16)> = HashSet::new();
    // How many of a namespace were looked at, and what it asks for.
    let mut namespaces: HashMap<&str, (usize, usize)> = HashMap::new();
    let mut asked = Vec::new();
    for ((kind, key), share) in all {
        if is_only && *kind != Kind::Cluster {
            continue;
        }
        let (looked_at, so_far) = namespaces.entry(&key.namespace).or_default();
        for lead in share.leads.iter().take(LOOKED_AT - *looked_at) {
            *looked_at += 1;
            let number = if *kind == Kind::Node { lead.node_port } else { Some(lead.port) };
            let Some(number) = number.filter(|number| taken.insert((lead.transport, *number)))
            else {
                continue;
            };
            *so_far += least(lead, share);
            let (place, so_far) = (asked.len(), *so_far);
            asked.push(Asked { key, lead, share, number, place, so_far });
        }
    }
    asked
}

/// Those that have a place, in the order in which they came, and what is left for more
/// endpoints.
fn place(mut asked: Vec<Asked<'_>>) -> (Vec<Asked<'_>>, usize) {
    asked.sort_by_key(|one| (one.so_far, one.place));
    let mut left = PLACES;
    let fitting = asked
        .iter()
        .take_while(|one| match left.checked_sub(one.least()) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        })
        .count();
    asked.truncate(fitting);
    asked.sort_by_key(|one| one.place);
    (asked, left + MOST - PLACES)
}

/// The most that each may have so that all together have no more than there is room
/// for.
fn level(mut wants: Vec<usize>, room: usize) -> usize {
    wants.sort_unstable();
    let (mut left, mut others) = (room, wants.len());
    for want in wants {
        let each = left / others;
        if want > each {
            return each;
        }
        left -= want;
        others -= 1;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;

    /// A port with so many endpoints, that nodes have at the same number.
    fn lead(port: u16, endpoints: u16) -> Lead {
        // As long as any when it is written.
        let address = |n| [0x2001, 0xdb8a, 0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x1000 + n];
        let endpoint = |n: u16| SocketAddr::from((address(n), 65_535));
        Lead {
            name: "x".repeat(63),
            transport: Transport::Tcp,
            port,
            node_port: Some(port),
            endpoints: (0..endpoints).map(endpoint).collect(),
            otherwise: Otherwise::Dropped,
        }
    }

    fn share(ports: impl Iterator<Item = u16>, endpoints: u16, sources: usize) -> Share {
        let source = "2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap();
        let source = Destinations { address: source, prefix: 128, port: None };
        Share {
            leads: ports.map(|port| lead(port, endpoints)).collect(),
            affinity_s: 86_400,
            sources: vec![source; sources],
        }
    }

    fn of(kind: Kind, namespace: &str, name: impl Into<String>) -> (Kind, ServiceKey) {
        (kind, ServiceKey::new(namespace, name))
    }

    #[test]
    fn nobody_takes_the_ports_of_nodes_from_other_namespaces() {
        // As many as a Service has at most, of which two filled the file; and as many
        // ports as there is room for.
        for (services, ports, endpoints) in [(2, 8, 1024), (2, 256, 32), (20, 128, 1)] {
            let mut all = Shares::new();
            for n in 0..services {
                let numbers = (0..ports).map(|port| 1000 + n * ports + port);
                all.insert(of(Kind::Node, "a", format!("s{n:02}")), share(numbers, endpoints, 0));
            }
            all.insert(of(Kind::Node, "b", "z"), share([80, 81].into_iter(), 100, 0));
            let merged = merge(&all, "node").unwrap();
            let found = |port: u16| merged.ports.iter().find(|one| one.port == port).unwrap();
            for port in [80, 81] {
                assert_eq!(found(port).endpoints.len(), 100, "beside {services} of {ports}");
            }
            // The other has all the rest, each of its ports as much as any.
            let fewest = merged.ports.iter().map(|port| port.endpoints.len()).min().unwrap();
            assert!(fewest >= usize::from(endpoints.min(4)), "{fewest}");
            let used: usize = merged.ports.iter().map(|port| PORT + port.endpoints.len()).sum();
            let most = if endpoints == 1 { PLACES } else { MOST };
            assert!((most - 600..=MOST).contains(&used), "{used}");
        }
    }

    #[test]
    fn each_node_takes_other_endpoints_where_there_is_no_room_for_all() {
        let services = (0..20).map(|n| (of(Kind::Node, "a", format!("{n}")), n));
        let all: Shares = services.map(|(key, n)| (key, share([n].into_iter(), 1000, 0))).collect();
        let of_node = |node: &str| merge(&all, node).unwrap().ports.remove(0).endpoints;
        assert_eq!(of_node("one"), of_node("one"));
        assert_ne!(of_node("one"), of_node("two"));
        assert!(of_node("one").is_sorted());
    }

    #[test]
    fn what_a_namespace_asks_for_in_vain_is_not_looked_at() {
        // Many Services that want the same ports of one address.
        let ports: Arc<[Lead]> = (1..=256).map(|port| lead(port, 0)).collect();
        let mut all: Shares = (0..1000)
            .map(|n| {
                let share = Share { leads: Arc::clone(&ports), affinity_s: 0, sources: Vec::new() };
                (of(Kind::External, "a", format!("{n:04}")), share)
            })
            .collect();
        all.insert(of(Kind::External, "b", "z"), share([300].into_iter(), 1, 0));
        let asked = asked(&all, false);
        assert_eq!(asked.len(), 257);
        let merged = merge(&all, "node").unwrap();
        assert_eq!(merged.ports.len(), 257);
    }

    #[test]
    fn no_file_is_longer_than_sandboxes_read() {
        let long = "x".repeat(63);
        for (services, ports, endpoints, sources) in
            [(200_u16, 256, 0, 0), (100, 256, 1, 64), (1, 256, 1000, 0), (30, 1, 8000, 1)]
        {
            let all: Shares = (0..services)
                .map(|service| {
                    let key = ServiceKey::new(&long[..60], format!("{}{service:03}", &long[..60]));
                    let numbers = (0..ports).map(move |n| service * ports + n);
                    ((Kind::External, key), share(numbers, endpoints, sources))
                })
                .collect();
            let merged = merge(&all, "node").unwrap();
            let length = serde_json::to_vec(&merged).unwrap().len();
            assert!(length <= krustlet_protocol::services::MAX_SERVICE, "{length}");
            // What there is room for is there.
            assert!(length > 350_000, "{length}");
            assert!(merged.ports.iter().all(|port| port.sources.len() == sources));
        }
    }

    proptest! {
        #[test]
        fn the_level_is_the_highest_for_which_there_is_room(
            wants in prop::collection::vec(0_usize..50, 1..20), room in 0_usize..600,
        ) {
            let each = level(wants.clone(), room);
            let sum = |each: usize| wants.iter().map(|want| *want.min(&each)).sum::<usize>();
            prop_assert!(sum(each) <= room);
            prop_assert!(each == usize::MAX || sum(each + 1) > room);
        }
    }
}
