//! How much there is to look at in a policy.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

/// Parts of one policy that are looked at: itself, its rules, peers, ports,
/// exceptions, labels, expressions and their values. What one part costs grows
/// with the pods of the cluster, a look at 64 of them at once.
pub const MOST_PARTS: usize = 8192;

/// Parts of all policies of one namespace. Of more none is looked at, and all
/// its pods are closed.
pub const MOST_PARTS_OF_ALL: usize = 65_536;

/// Parts that a port's name counts as where pods go out to it: each pod that has
/// such a port is looked at by itself.
const NAME: usize = 64;

/// The parts of a policy.
pub(super) fn parts(spec: &NetworkPolicySpec) -> usize {
    let ingress = spec
        .ingress
        .iter()
        .flatten()
        .map(|rule| 1 + peers(rule.from.as_deref()) + rule.ports.as_ref().map_or(0, Vec::len));
    let egress = spec.egress.iter().flatten().map(|rule| {
        let ports = rule.ports.iter().flatten().map(out_to);
        1 + peers(rule.to.as_deref()) + ports.sum::<usize>()
    });
    1 + terms(spec.pod_selector.as_ref()) + ingress.chain(egress).sum::<usize>()
}

fn peers(peers: Option<&[NetworkPolicyPeer]>) -> usize {
    let peer = |peer: &NetworkPolicyPeer| {
        let block = peer.ip_block.as_ref();
        let but = block.and_then(|block| block.except.as_ref()).map_or(0, Vec::len);
        let selectors = [&peer.pod_selector, &peer.namespace_selector];
        1 + but + selectors.map(|selector| terms(selector.as_ref())).iter().sum::<usize>()
    };
    peers.unwrap_or_default().iter().map(peer).sum()
}

fn out_to(port: &NetworkPolicyPort) -> usize {
    match port.port {
        Some(IntOrString::String(_)) => NAME,
        Some(IntOrString::Int(_)) | None => 1,
    }
}

fn terms(selector: Option<&LabelSelector>) -> usize {
    let Some(selector) = selector else { return 0 };
    let expressions = selector.match_expressions.iter().flatten();
    let expressions = expressions.map(|one| 1 + one.values.as_ref().map_or(0, Vec::len));
    selector.match_labels.as_ref().map_or(0, BTreeMap::len) + expressions.sum::<usize>()
}
