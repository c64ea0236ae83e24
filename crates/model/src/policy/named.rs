//! The labels that policies name their peers by.

use std::collections::HashSet;

use k8s_openapi::{
    api::networking::v1::{NetworkPolicyPeer, NetworkPolicySpec},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

/// Keys of labels in selectors of peers. Most labels of a cluster are named by nobody.
#[derive(Debug, Default)]
pub(super) struct Named<'a> {
    /// Of pods.
    pub(super) pods: HashSet<&'a str>,
    /// Of namespaces.
    pub(super) namespaces: HashSet<&'a str>,
}

impl<'a> Named<'a> {
    /// Adds those of a policy. Whom it selects itself is looked at one by one.
    pub(super) fn add(&mut self, spec: &'a NetworkPolicySpec) {
        for rule in spec.ingress.iter().flatten() {
            self.add_peers(rule.from.as_deref().unwrap_or_default());
        }
        for rule in spec.egress.iter().flatten() {
            self.add_peers(rule.to.as_deref().unwrap_or_default());
        }
    }

    fn add_peers(&mut self, peers: &'a [NetworkPolicyPeer]) {
        for NetworkPolicyPeer { pod_selector, namespace_selector, .. } in peers {
            self.pods.extend(pod_selector.iter().flat_map(keys));
            self.namespaces.extend(namespace_selector.iter().flat_map(keys));
        }
    }
}

fn keys(selector: &LabelSelector) -> impl Iterator<Item = &str> {
    let labels = selector.match_labels.iter().flatten().map(|(key, _)| key);
    let expressions = selector.match_expressions.iter().flatten().map(|one| &one.key);
    labels.chain(expressions).map(String::as_str)
}
