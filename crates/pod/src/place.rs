//! Where a pod is in the network: its addresses, and the namespace that its
//! process is born in.
//!
//! Chosen before the sandbox is made and kept as long as there is one, over
//! deaths of sandbox and agent. What the pod's sockets may do there is put
//! together here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::Pod;
use krustlet_model::{
    PodUid,
    bandwidth::{SocketAnnotationError, SocketAnnotations},
    observed::PodObserved,
};
use krustlet_network::{AddressError, Network, NetworkState};
use krustlet_protocol::{PodNetwork, SocketLimits};
use serde::{Deserialize, Serialize};

use crate::{
    guard::Guard,
    outside::{Adopted, NetworkKind},
};

/// A pod's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The namespace of its process.
    pub kind: NetworkKind,
    /// Its addresses, the node's family first: its own, or those of the node.
    pub addresses: Vec<IpAddr>,
}

/// Why a pod has no place yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// The network is not ready, for this reason.
    NotReady(String),
    /// There are no addresses.
    Full(AddressError),
}

/// Whether the pod asks for the node's own network.
pub(crate) fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default()
}

/// The addresses that a pod shares, so that its ports there are taken before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    /// Those for connections.
    pub(crate) tcp: Vec<IpAddr>,
    /// Those for datagrams.
    pub(crate) udp: Vec<IpAddr>,
}

/// What a pod shares: the node's addresses. With `hostNetwork` its loopback too, and
/// datagrams are heard at all addresses, for some come to none of these: broadcasts,
/// and what is sent to another address of the node. None if the pod has addresses of
/// its own.
pub(crate) fn shared(pod: &Pod, place: &Place) -> Option<Shared> {
    if place.kind != NetworkKind::Node {
        return None;
    }
    let mut tcp = place.addresses.clone();
    if !is_host_network(pod) {
        return Some(Shared { udp: tcp.clone(), tcp });
    }
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    // Standalone the node's address is one of them.
    tcp.extend(loopback.into_iter().filter(|ip| !place.addresses.contains(ip)));
    Some(Shared { tcp, udp: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] })
}

/// Finds a place for a pod.
pub(crate) fn find(network: &Network, pod: &Pod, uid: &PodUid) -> Result<Place, NoPlace> {
    let at_the_node =
        || Place { kind: NetworkKind::Node, addresses: network.node_addresses().to_vec() };
    if is_host_network(pod) {
        return Ok(at_the_node());
    }
    let state = network.state().borrow().clone();
    match state {
        NetworkState::Waiting(why) => Err(NoPlace::NotReady(why)),
        NetworkState::Host { .. } => Ok(at_the_node()),
        NetworkState::Own(_) => {
            let addresses = network.allocate(uid).map_err(NoPlace::Full)?;
            Ok(Place { kind: NetworkKind::Pods, addresses })
        }
    }
}

/// The place of a sandbox that an earlier agent made, if it is known.
pub(crate) fn of_sandbox(adopted: &Adopted) -> Option<Place> {
    let Adopted { network: kind, addresses, .. } = adopted;
    let place = || Place { kind: *kind, addresses: addresses.clone() };
    (!addresses.is_empty()).then(place)
}

/// The place of a pod that was left by an agent which had but one.
pub(crate) fn of_older_agent(observed: &PodObserved) -> Option<Place> {
    let addresses = observed.pod_ips.clone();
    observed.sandbox_ready.then_some(Place { kind: NetworkKind::Node, addresses })
}

/// The node's bounds, and those that the pod's annotations put in their place. A
/// pod has no more sockets than the node gives it.
///
/// # Errors
///
/// The annotation that makes no sense.
pub(crate) fn limits(
    pod: &Pod,
    node: &SocketLimits,
) -> Result<SocketLimits, SocketAnnotationError> {
    let own = SocketAnnotations::of(pod)?;
    Ok(SocketLimits {
        sockets: own.max_sockets.map_or(node.sockets, |own| own.min(node.sockets)),
        lookups: own.max_lookups.unwrap_or(node.lookups),
        ingress_bits: own.ingress_bits.or(node.ingress_bits),
        egress_bits: own.egress_bits.or(node.egress_bits),
    })
}

/// What the pod's sockets may do at its place; its names are [`names`](crate::names)'.
pub(crate) fn rules(
    network: &Network,
    pod: &Pod,
    place: &Place,
    limits: &SocketLimits,
    guard: &Guard,
) -> PodNetwork {
    PodNetwork {
        addresses: place.addresses.clone(),
        is_host: place.kind == NetworkKind::Node,
        shares_loopback: is_host_network(pod),
        refused: network.refused(is_host_network(pod)),
        policy: guard.policy.clone(),
        outbound: guard.outbound.clone(),
        // Filled in by whoever knows them.
        names: None,
        limits: limits.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_shares_what_it_has_of_the_node() {
        let pod = |host: bool| -> Pod {
            let spec = json!({"containers": [], "hostNetwork": host});
            serde_json::from_value(json!({"spec": spec})).unwrap()
        };
        let place = |kind, address: &str| Place { kind, addresses: vec![address.parse().unwrap()] };
        let found = |host, place: &Place| {
            let Shared { tcp, udp } = shared(&pod(host), place)?;
            let text =
                |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            Some([text(&tcp), text(&udp)])
        };
        assert_eq!(found(false, &place(NetworkKind::Pods, "10.244.1.2")), None);
        let node = place(NetworkKind::Node, "192.0.2.1");
        assert_eq!(found(false, &node).unwrap(), ["192.0.2.1"; 2]);
        assert_eq!(found(true, &node).unwrap(), ["192.0.2.1 127.0.0.1 ::1", "0.0.0.0 ::"]);
        let standalone = place(NetworkKind::Node, "127.0.0.1");
        assert_eq!(found(true, &standalone).unwrap(), ["127.0.0.1 ::1", "0.0.0.0 ::"]);
    }
}
