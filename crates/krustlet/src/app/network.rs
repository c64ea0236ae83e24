//! What the Node says of the pods' addresses, and what the network says of the
//! Node.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::core::v1::Node;
use krustlet_cluster::{self as cluster, About, EventType, Events};
use krustlet_network::{NetworkState, NodeRanges, Peer, Peers};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The reason of the event by which a node says that its pods have no addresses
/// of their own.
const SHARED: &str = "PodsShareNodeAddress";

/// The reason of the event by which it says that it may not know other nodes.
const FORBIDDEN: &str = "NodeRoutesForbidden";

/// The reason of the event by which it says that it may not know who answers for
/// Services.
const SERVICES_FORBIDDEN: &str = "ServiceEndpointsForbidden";

/// Passes the Node's podCIDRs on, and tells its readers when pods do without.
#[derive(Debug)]
pub(super) struct NodeNetworkTask {
    pub(super) node: watch::Receiver<Option<Arc<Node>>>,
    pub(super) ranges: watch::Sender<NodeRanges>,
    pub(super) state: watch::Receiver<NetworkState>,
    /// What is known of other nodes, if that is asked for.
    pub(super) peers: Option<watch::Receiver<cluster::Peers>>,
    /// Why it is not known who answers for Services, if that is asked for and for
    /// lack of a right.
    pub(super) endpoints_forbidden: Option<watch::Receiver<Option<String>>>,
    pub(super) events: Events,
}

impl NodeNetworkTask {
    /// Passes on until stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut told = BTreeSet::new();
        loop {
            let node = self.node.borrow_and_update().clone();
            let next = ranges(node.as_deref());
            self.ranges.send_if_modified(|shown| {
                let changed = *shown != next;
                if changed {
                    *shown = next;
                }
                changed
            });
            let forbidden = [
                (FORBIDDEN, self.peers_forbidden()),
                (SERVICES_FORBIDDEN, self.endpoints_forbidden()),
            ];
            for (reason, why) in forbidden {
                if let (Some(node), Some(why)) = (&node, why)
                    && told.insert(why.clone())
                {
                    tracing::error!("{why}");
                    self.events.record(&About::node(node), EventType::Warning, reason, why);
                }
            }
            let state = self.state.borrow_and_update().clone();
            if let (Some(node), NetworkState::Host { why: Some(why) }) = (node, state)
                && told.insert(why.clone())
            {
                let message = format!("Pods share the node's address: {why}");
                self.events.record(&About::node(&node), EventType::Warning, SHARED, message);
            }
            tokio::select! {
                biased;
                // All are cancel-safe. Neither sender ends before this task.
                () = stop.cancelled() => return,
                Ok(()) = self.node.changed() => {}
                Ok(()) = self.state.changed() => {}
                Ok(()) = changed(self.peers.as_mut()) => {}
                Ok(()) = changed(self.endpoints_forbidden.as_mut()) => {}
                else => return stop.cancelled().await,
            }
        }
    }
}

impl NodeNetworkTask {
    /// Why other nodes are not known, if that is for lack of a right.
    fn peers_forbidden(&mut self) -> Option<String> {
        let peers = self.peers.as_mut()?.borrow_and_update().clone();
        match peers {
            cluster::Peers::Forbidden(why) => Some(format!(
                "Pods of other nodes are not led to: {why}; apply deploy/network-rbac.yaml, or \
                 leave --node-routes (nodeRoutes) out"
            )),
            cluster::Peers::Unknown | cluster::Peers::Known(_) => None,
        }
    }

    /// Why it is not known who answers for Services.
    fn endpoints_forbidden(&mut self) -> Option<String> {
        let why = self.endpoints_forbidden.as_mut()?.borrow_and_update().clone()?;
        Some(format!(
            "Pods are not led to Services: {why}; apply deploy/network-rbac.yaml, or leave \
             --service-proxy (serviceProxy) out"
        ))
    }
}

/// Waits for the next value, for ever if there is nothing to wait for.
pub(super) async fn changed<T>(
    of: Option<&mut watch::Receiver<T>>,
) -> Result<(), watch::error::RecvError> {
    match of {
        Some(receiver) => receiver.changed().await,
        None => std::future::pending().await,
    }
}

/// Passes the cluster's nodes on in the network's words.
#[derive(Debug)]
pub(super) struct PeersTask {
    states: watch::Receiver<cluster::Peers>,
    known: watch::Sender<Option<Arc<Vec<Peer>>>>,
}

/// The nodes of the cluster, for the network of the node of this name.
pub(super) fn peers(own: &str, states: watch::Receiver<cluster::Peers>) -> (Peers, PeersTask) {
    let (known, shown) = watch::channel(None);
    (Peers { own: own.to_owned(), known: shown }, PeersTask { states, known })
}

impl PeersTask {
    /// Passes on until stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            if let cluster::Peers::Known(all) = self.states.borrow_and_update().clone() {
                let all = all.iter().map(|node| Peer {
                    name: node.name.clone(),
                    addresses: node.addresses.clone(),
                    ranges: node.pod_ranges.clone(),
                });
                self.known.send_replace(Some(Arc::new(all.collect())));
            }
            tokio::select! {
                biased;
                // Both are cancel-safe.
                () = stop.cancelled() => return,
                changed = self.states.changed() => {
                    if changed.is_err() {
                        return stop.cancelled().await;
                    }
                }
            }
        }
    }
}

/// The podCIDRs of a Node, if it is known.
fn ranges(node: Option<&Node>) -> NodeRanges {
    let Some(node) = node else { return NodeRanges::Unknown };
    let spec = node.spec.as_ref();
    let many = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
    let one = spec.and_then(|spec| spec.pod_cidr.clone());
    let texts: Vec<String> = if many.is_empty() { one.into_iter().collect() } else { many };
    if texts.is_empty() { NodeRanges::None } else { NodeRanges::Some(texts) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newer_field_goes_first() {
        let of = |spec| {
            let node = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            ranges(Some(&node))
        };
        let some =
            |texts: &[&str]| NodeRanges::Some(texts.iter().map(ToString::to_string).collect());
        assert_eq!(of(json!({"podCIDR": "a", "podCIDRs": ["a", "b"]})), some(&["a", "b"]));
        assert_eq!(of(json!({"podCIDR": "a"})), some(&["a"]));
        assert_eq!(of(json!({})), NodeRanges::None);
        assert_eq!(ranges(None), NodeRanges::Unknown);
    }
}
