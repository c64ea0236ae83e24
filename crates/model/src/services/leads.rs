//! Which endpoints the ports of a Service lead to from one node.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Endpoint, Front, Kind, Slice, Transport};

/// Endpoints of one address of a Service, its ports added up; each port has its
/// share of them. Of more, each node takes others. What a client reads when it
/// connects is as large: half a megabyte at most.
const ENDPOINTS: usize = 8192;

/// The most endpoints of one port.
const OF_PORT: usize = 1024;

/// The node whose clients are led.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// Its name.
    pub node: String,
    /// Its zone, `topology.kubernetes.io/zone`; may be empty.
    pub zone: String,
    /// Its addresses: ports of nodes are there.
    pub addresses: Vec<IpAddr>,
}

/// Where a port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lead {
    /// The Service's name for it; may be empty.
    pub name: String,
    /// How it is spoken to.
    pub transport: Transport,
    /// Its number.
    pub port: u16,
    /// Its number at the addresses of nodes, if it has one.
    pub node_port: Option<u16>,
    /// Any of these, sorted.
    pub endpoints: Vec<SocketAddr>,
    /// What becomes of clients when there is none.
    pub otherwise: Otherwise,
}

/// What becomes of clients of a port that leads to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// They are told: nobody answers for the Service.
    Refused,
    /// They hear nothing: somebody does elsewhere, and they may only go to one on
    /// their own node.
    Dropped,
}

/// Where the ports of one kind of a Service's addresses lead for IPv4 or IPv6: the
/// same for all kinds of which [`Front::is_local_at`] says the same.
///
/// The traffic policy for clients from outside does not hold for pods, which
/// are led to all endpoints by addresses of load balancers too (kube-proxy,
/// `syncProxyRules` in `pkg/proxy/nftables/proxier.go`: "short-circuit").
#[must_use]
pub fn leads(
    front: &Front,
    slices: &[Arc<Slice>],
    kind: Kind,
    is_v6: bool,
    here: &Here,
) -> Vec<Lead> {
    let is_local = front.is_local_at(kind);
    let share = (ENDPOINTS / front.ports.len().max(1)).min(OF_PORT);
    let mut leads: Vec<Lead> = Vec::new();
    for port in &front.ports {
        // The API server takes no port twice.
        if leads.iter().any(|lead| (lead.transport, lead.port) == (port.transport, port.port)) {
            continue;
        }
        let all = candidates(slices, &port.name, port.transport, is_v6, here);
        let (endpoints, otherwise) = choose(&all, is_local, here);
        let endpoints = some_of(endpoints, share, &here.node);
        leads.push(Lead {
            name: port.name.clone(),
            transport: port.transport,
            port: port.port,
            node_port: port.node_port,
            endpoints,
            otherwise,
        });
    }
    leads
}

/// The endpoints of a port, each once: of two that say the same address, the one
/// counts that does not end, for a pod may have the address of one that does; of
/// two that are alike in this, the one on this node.
///
/// Source: kube-proxy, `addEndpoints` in `pkg/proxy/endpointslicecache.go`, which
/// leaves open what is said last here.
fn candidates<'a>(
    slices: &'a [Arc<Slice>],
    name: &str,
    transport: Transport,
    is_v6: bool,
    here: &Here,
) -> BTreeMap<SocketAddr, &'a Endpoint> {
    let mut all: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.is_led_to) {
        let ports = slice.ports.iter().filter(|port| port.name == name);
        for port in ports.filter(|port| port.transport == transport) {
            for endpoint in slice.endpoints.iter().filter(|one| one.address.is_ipv6() == is_v6) {
                let at = SocketAddr::new(endpoint.address, port.port);
                let rank = |one: &Endpoint| (!one.is_terminating, is_here(one, here));
                if all.get(&at).is_none_or(|known| rank(known) < rank(endpoint)) {
                    all.insert(at, endpoint);
                }
            }
        }
    }
    all
}

fn is_here(endpoint: &Endpoint, here: &Here) -> bool {
    !here.node.is_empty() && endpoint.node.as_deref() == Some(&here.node)
}

fn is_last_resort(endpoint: &Endpoint) -> bool {
    endpoint.is_serving && endpoint.is_terminating
}

/// Those that are ready; if there is none, those that still answer while they
/// end.
///
/// Source: kube-proxy, `CategorizeEndpoints` in `pkg/proxy/topology.go`.
fn choose(
    all: &BTreeMap<SocketAddr, &Endpoint>,
    is_local: bool,
    here: &Here,
) -> (Vec<SocketAddr>, Otherwise) {
    let those = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<SocketAddr> {
        all.iter().filter(|(_, endpoint)| wanted(endpoint)).map(|(at, _)| *at).collect()
    };
    let is_any = all.values().any(|one| one.is_ready || is_last_resort(one));
    let otherwise = if is_local && is_any { Otherwise::Dropped } else { Otherwise::Refused };
    let for_us = if is_local { ForUs::Here } else { by_hints(all, here) };
    let ready = those(&|one| one.is_ready && for_us.has(one, here));
    if !ready.is_empty() {
        return (ready, otherwise);
    }
    // Hints do not count for them.
    let last = those(&|one| is_last_resort(one) && (!is_local || is_here(one, here)));
    (last, otherwise)
}

/// Which endpoints are for the clients of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ForUs {
    All,
    /// Those on it.
    Here,
    /// Those with a hint for it.
    HintedNode,
    /// Those with a hint for its zone.
    HintedZone,
}

impl ForUs {
    fn has(self, endpoint: &Endpoint, here: &Here) -> bool {
        match self {
            Self::All => true,
            Self::Here => is_here(endpoint, here),
            Self::HintedNode => endpoint.nodes.iter().any(|node| **node == *here.node),
            Self::HintedZone => endpoint.zones.iter().any(|zone| **zone == *here.zone),
        }
    }
}

/// Hints count if each ready endpoint has one and one of them is for here; those
/// for nodes before those for zones.
///
/// Source: kube-proxy, `topologyModeFromHints` in `pkg/proxy/topology.go`.
fn by_hints(all: &BTreeMap<SocketAddr, &Endpoint>, here: &Here) -> ForUs {
    let ready: Vec<&Endpoint> = all.values().copied().filter(|one| one.is_ready).collect();
    let is_here = |for_us: ForUs| ready.iter().any(|one| for_us.has(one, here));
    if ready.iter().all(|one| !one.nodes.is_empty()) && is_here(ForUs::HintedNode) {
        ForUs::HintedNode
    } else if ready.iter().all(|one| !one.zones.is_empty()) && is_here(ForUs::HintedZone) {
        ForUs::HintedZone
    } else {
        ForUs::All
    }
}

/// So many of these at most, sorted; each node takes others.
#[must_use]
pub fn some_of(mut endpoints: Vec<SocketAddr>, most: usize, node: &str) -> Vec<SocketAddr> {
    if endpoints.len() > most {
        endpoints.sort_by_cached_key(|endpoint| (spread(node, endpoint), *endpoint));
        endpoints.truncate(most);
        endpoints.sort_unstable();
    }
    endpoints
}

/// A number that orders endpoints otherwise on each node, and the same way each
/// time. FNV-1a: it need not be hard to guess.
fn spread(node: &str, endpoint: &SocketAddr) -> u64 {
    let text = format!("{node} {endpoint}");
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
