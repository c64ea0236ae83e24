//! Where a pod is in the network: its addresses, and the namespace that its
//! process is born in.
//!
//! Chosen before the sandbox is made and kept as long as there is one, over
//! deaths of sandbox and agent. What the pod's sockets may do there is put
//! together here.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use krustlet_model::{
    PodUid,
    bandwidth::{SocketAnnotationError, SocketAnnotations},
    observed::PodObserved,
};
use krustlet_network::{AddressError, Network, NetworkState};
use krustlet_protocol::{Names, PodNetwork, SocketLimits};
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
        refused: network.refused(is_host_network(pod)),
        policy: guard.policy.clone(),
        outbound: guard.outbound.clone(),
        // Filled in when the node's files have been read.
        names: Names::default(),
        limits: limits.clone(),
    }
}
