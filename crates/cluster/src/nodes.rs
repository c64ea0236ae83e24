//! The other nodes of the cluster, as far as routes to their pods need them.
//!
//! A node may not list Nodes by `system:node` alone: this needs a further right
//! (`deploy/network-rbac.yaml`), and tells when that is missing.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1::Node;
use krustlet_model::Chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Cluster,
    feed::{Change, Feed, Holder},
};

/// A node, as another one needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNode {
    /// Its name.
    pub name: String,
    /// Its addresses of the type `InternalIP`.
    pub addresses: Vec<IpAddr>,
    /// Its podCIDRs, as written.
    pub pod_ranges: Vec<String>,
}

/// What is known of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Peers {
    /// Nothing yet.
    #[default]
    Unknown,
    /// That this node may not know them, in the API server's words.
    Forbidden(String),
    /// All of them, this one included, by their names.
    Known(Arc<Vec<PeerNode>>),
}

/// Follows the nodes.
#[derive(Debug)]
pub struct NodesTask {
    feed: Feed<Node>,
    held: Held,
}

/// The nodes by name.
#[derive(Debug)]
struct Held {
    shown: watch::Sender<Peers>,
    nodes: BTreeMap<String, PeerNode>,
}

/// The nodes of the cluster.
#[must_use]
pub fn nodes(cluster: &Cluster) -> (watch::Receiver<Peers>, NodesTask) {
    let (shown, nodes) = watch::channel(Peers::Unknown);
    let feed = Feed::new(cluster, None, None);
    (nodes, NodesTask { feed, held: Held { shown, nodes: BTreeMap::new() } })
}

impl NodesTask {
    /// Shows the nodes until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        self.feed.keep(&mut self.held, &stop).await;
    }
}

impl Holder<Node> for Held {
    fn show(&mut self) {
        let known = Peers::Known(Arc::new(self.nodes.values().cloned().collect()));
        // Most changes are heartbeats, which change nothing here.
        self.shown.send_if_modified(|shown| {
            let is_other = *shown != known;
            if is_other {
                *shown = known;
            }
            is_other
        });
    }

    fn take(&mut self, change: Change<Node>) -> bool {
        match change {
            Change::Replaced(all) => {
                self.nodes = all.into_iter().map(|node| entry(&node)).collect();
                true
            }
            Change::Applied(node) => {
                let (name, node) = entry(&node);
                self.nodes.insert(name, node);
                true
            }
            Change::Removed(node) => self.nodes.remove(&entry(&node).0).is_some(),
            Change::Ended => false,
            Change::Interrupted(error) => {
                let chain = Chain(&error).to_string();
                if error.code() == Some(403) {
                    // What is known stays, and may be old.
                    self.shown.send_replace(Peers::Forbidden(chain));
                } else {
                    tracing::warn!(error = chain, "cannot follow the nodes");
                }
                false
            }
        }
    }
}

fn entry(node: &Node) -> (String, PeerNode) {
    let name = node.metadata.name.clone().unwrap_or_default();
    let status = node.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    let addresses = addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect();
    let pod_ranges = node
        .spec
        .as_ref()
        .map(|spec| match &spec.pod_cidrs {
            Some(many) if !many.is_empty() => many.clone(),
            Some(_) | None => spec.pod_cidr.iter().cloned().collect(),
        })
        .unwrap_or_default();
    (name.clone(), PeerNode { name, addresses, pod_ranges })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_known_by_its_inner_addresses_and_ranges() {
        let node = serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24", "fd00:3::/64"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n"},
                {"type": "InternalIP", "address": "192.0.2.3"},
                {"type": "ExternalIP", "address": "198.51.100.3"},
                {"type": "InternalIP", "address": "2001:db8::3"},
            ]},
        }))
        .unwrap();
        let (name, peer) = entry(&node);
        assert_eq!(name, "n");
        let addresses: Vec<_> = peer.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.3", "2001:db8::3"]);
        assert_eq!(peer.pod_ranges, ["10.244.3.0/24", "fd00:3::/64"]);
    }
}
