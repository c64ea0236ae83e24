//! The pods this node is to run, as the API server has them.
//!
//! The source shows the newest set and nothing else. Until the first full list
//! has arrived the set is not `synced`, and a pod that is missing from it means
//! nothing; while the API server is away the last set stands.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{Node, Pod};
use krustlet_model::{Chain, PodUid};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Cluster,
    feed::{Change, Feed, Holder, is_newer},
};

/// The annotation that says where a pod comes from.
const SOURCE: &str = "kubernetes.io/config.source";

/// Every pod bound to this node.
#[derive(Clone, Debug, Default)]
pub struct PodSet {
    /// Whether the first full list has arrived.
    pub synced: bool,
    /// The newest state of each pod, without `metadata.managedFields`.
    pub pods: Arc<BTreeMap<PodUid, Arc<Pod>>>,
}

/// Keeps a [`PodSet`] up to date.
#[derive(Debug)]
pub struct PodSourceTask {
    feed: Feed<Pod>,
    node: watch::Receiver<Option<Arc<Node>>>,
    held: Held,
}

/// The pods by uid.
#[derive(Debug)]
struct Held {
    sets: watch::Sender<PodSet>,
    pods: BTreeMap<PodUid, Arc<Pod>>,
    synced: bool,
}

/// The pods bound to the node of this name. The task begins once `node` has been
/// seen: a kubelet admits no pod before it knows its own Node.
#[must_use]
pub fn pods(
    cluster: &Cluster,
    node_name: &str,
    node: watch::Receiver<Option<Arc<Node>>>,
) -> (watch::Receiver<PodSet>, PodSourceTask) {
    let (sets, shown) = watch::channel(PodSet::default());
    let feed = Feed::new(cluster, None, Some(format!("spec.nodeName={node_name}")));
    let held = Held { sets, pods: BTreeMap::new(), synced: false };
    (shown, PodSourceTask { feed, node, held })
}

impl PodSourceTask {
    /// Shows the newest set until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        // Cancel-safe: waiting for a value takes nothing.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            seen = self.node.wait_for(Option::is_some) => {
                if seen.is_err() {
                    return;
                }
            }
        }
        self.feed.keep(&mut self.held, &stop).await;
    }
}

impl Holder<Pod> for Held {
    fn show(&mut self) {
        let pods = Arc::new(self.pods.clone());
        self.sets.send_replace(PodSet { synced: self.synced, pods });
    }

    fn take(&mut self, change: Change<Pod>) -> bool {
        match change {
            Change::Replaced(pods) => {
                self.pods = pods.into_iter().filter_map(entry).collect();
                self.synced = true;
                true
            }
            Change::Applied(pod) => {
                let Some((uid, pod)) = entry(pod) else { return false };
                // A repeated or late event is no news.
                if let Some(held) = self.pods.get(&uid)
                    && !is_newer(version(&pod), version(held))
                {
                    return false;
                }
                self.pods.insert(uid, pod);
                true
            }
            Change::Removed(pod) => {
                entry(pod).is_some_and(|(uid, _)| self.pods.remove(&uid).is_some())
            }
            Change::Ended => false,
            Change::Interrupted(error) => {
                tracing::warn!(error = %Chain(&error), "cannot follow this node's pods");
                false
            }
        }
    }
}

fn version(pod: &Pod) -> Option<&str> {
    pod.metadata.resource_version.as_deref()
}

/// The pod by its uid; the server gives every pod one.
fn entry(mut pod: Pod) -> Option<(PodUid, Arc<Pod>)> {
    // Half of a small pod's bytes, and of no use to a node.
    pod.metadata.managed_fields = None;
    // A pod may not pass itself off as the node's own. Source: kubelet,
    // `updatePodsFunc` in `pkg/kubelet/config/config.go`.
    if let Some(source) = pod.metadata.annotations.as_mut().and_then(|all| all.get_mut(SOURCE)) {
        "api".clone_into(source);
    }
    let uid = PodUid::new(pod.metadata.uid.clone()?);
    Some((uid, Arc::new(pod)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_pod_of_the_server_passes_for_the_nodes_own() {
        for annotations in [json!({"a": "b"}), json!({"a": "b", SOURCE: "file"})] {
            let metadata = json!({"uid": "u", "annotations": annotations});
            let pod = serde_json::from_value(json!({"metadata": metadata})).unwrap();
            let (_, pod) = entry(pod).unwrap();
            let mut expected = annotations;
            if expected.get(SOURCE).is_some() {
                expected[SOURCE] = json!("api");
            }
            assert_eq!(serde_json::to_value(&pod.metadata.annotations).unwrap(), expected);
        }
    }
}
