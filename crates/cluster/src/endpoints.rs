//! Who answers for the Services of the cluster: its EndpointSlices.
//!
//! A node may not list them by `system:node` alone: this needs a further right
//! (`deploy/network-rbac.yaml`), and tells when that is missing. Of each slice
//! only what connections and names need is kept.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use krustlet_model::{
    Chain,
    services::{Slice, Slices},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Cluster,
    feed::{Change, Feed, Holder},
};

/// What is known of the EndpointSlices.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// All of them; None until the first full list has arrived.
    pub known: watch::Receiver<Option<Arc<Slices>>>,
    /// That this node may not know them, in the API server's words. What is
    /// known may be old then.
    pub forbidden: watch::Receiver<Option<String>>,
}

/// Follows the EndpointSlices.
#[derive(Debug)]
pub struct EndpointsTask {
    feed: Feed<EndpointSlice>,
    held: Held,
}

#[derive(Debug)]
struct Held {
    shown: watch::Sender<Option<Arc<Slices>>>,
    forbidden: watch::Sender<Option<String>>,
    /// By namespace and name.
    slices: BTreeMap<(String, String), Arc<Slice>>,
}

/// The EndpointSlices of all namespaces.
#[must_use]
pub fn endpoints(cluster: &Cluster) -> (Endpoints, EndpointsTask) {
    let (held, endpoints) = Held::new();
    (endpoints, EndpointsTask { feed: Feed::new(cluster, None, None), held })
}

impl EndpointsTask {
    /// Shows the newest EndpointSlices until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        self.feed.keep(&mut self.held, &stop).await;
    }
}

impl Held {
    fn new() -> (Self, Endpoints) {
        let ((shown, known), (forbidden, is_forbidden)) =
            (watch::channel(None), watch::channel(None));
        let held = Self { shown, forbidden, slices: BTreeMap::new() };
        (held, Endpoints { known, forbidden: is_forbidden })
    }

    /// Keeps one; says whether anything is other than before. Most updates of a
    /// slice are none of what is kept.
    fn put(&mut self, slice: &EndpointSlice) -> bool {
        let name = name(slice);
        match Slice::of(slice) {
            Some(kept) if self.slices.get(&name).is_some_and(|old| **old == kept) => false,
            Some(kept) => {
                self.slices.insert(name, Arc::new(kept));
                true
            }
            None => self.slices.remove(&name).is_some(),
        }
    }
}

impl Holder<EndpointSlice> for Held {
    fn show(&mut self) {
        let mut all = Slices::new();
        for slice in self.slices.values() {
            all.entry(slice.service.clone()).or_default().push(Arc::clone(slice));
        }
        self.shown.send_replace(Some(Arc::new(all)));
    }

    fn take(&mut self, change: Change<EndpointSlice>) -> bool {
        match change {
            Change::Replaced(all) => {
                self.forbidden.send_if_modified(|why| why.take().is_some());
                // Those that are as they were stay the same ones.
                let mut before = std::mem::take(&mut self.slices);
                for slice in &all {
                    if let Some((name, kept)) = before.remove_entry(&name(slice)) {
                        self.slices.insert(name, kept);
                    }
                    self.put(slice);
                }
                true
            }
            Change::Applied(slice) => self.put(&slice),
            Change::Removed(slice) => self.slices.remove(&name(&slice)).is_some(),
            Change::Ended => false,
            Change::Interrupted(error) => {
                let chain = Chain(&error).to_string();
                if error.code() == Some(403) {
                    self.forbidden.send_replace(Some(chain));
                } else {
                    tracing::warn!(error = chain, "cannot follow the endpoints of services");
                }
                false
            }
        }
    }
}

fn name(slice: &EndpointSlice) -> (String, String) {
    let metadata = &slice.metadata;
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    (of(&metadata.namespace), of(&metadata.name))
}

#[cfg(test)]
mod tests {
    use krustlet_model::services::ServiceKey;
    use serde_json::json;

    use super::*;

    fn slice(name: &str, of: &str, address: &str) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "n", "name": name, "labels": {"kubernetes.io/service-name": of},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address]}],
            "ports": [{"name": "", "port": 80}],
        }))
        .unwrap()
    }

    #[test]
    fn slices_are_shown_by_their_services_and_kept_if_nothing_changed() {
        let (mut held, endpoints) = Held::new();
        let key = |name: &str| ServiceKey::new("n", name);
        let shown = || endpoints.known.borrow().clone().unwrap();
        let (one, two) = (slice("a-1", "a", "10.1.0.1"), slice("a-2", "a", "10.1.0.2"));
        assert!(held.take(Change::Replaced(vec![one.clone(), two.clone()])));
        held.show();
        let before = shown();
        assert_eq!(before[&key("a")].len(), 2);

        let mut touched = one.clone();
        touched.metadata.resource_version = Some("2".into());
        assert!(!held.take(Change::Applied(touched.clone())), "nothing that is kept changed");
        assert!(held.take(Change::Replaced(vec![touched, slice("b-1", "b", "10.1.0.3")])));
        held.show();
        assert!(Arc::ptr_eq(&before[&key("a")][0], &shown()[&key("a")][0]));
        assert_eq!(shown()[&key("a")].len(), 1);

        // One that is another Service's from now on.
        assert!(held.take(Change::Applied(slice("a-1", "b", "10.1.0.1"))));
        assert!(!held.take(Change::Removed(two)), "it was not there");
        held.show();
        assert_eq!(shown().keys().collect::<Vec<_>>(), [&key("b")]);
        assert_eq!(shown()[&key("b")].len(), 2);
    }
}
