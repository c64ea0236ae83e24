//! The Services of the cluster, for the variables every container gets.
//!
//! What the variables are is `krustlet_model::env`'s business.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Service;
use krustlet_model::Chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Cluster,
    feed::{Change, Feed, Holder},
};

/// The newest Services; None until the first full list has arrived. A container
/// that started before that would lack its variables.
pub type Services = watch::Receiver<Option<Arc<Vec<Service>>>>;

/// Follows the Services.
#[derive(Debug)]
pub struct ServicesTask {
    feed: Feed<Service>,
    held: Held,
}

/// The Services by namespace and name.
#[derive(Debug)]
struct Held {
    shown: watch::Sender<Option<Arc<Vec<Service>>>>,
    services: BTreeMap<(String, String), Service>,
}

/// The Services of all namespaces.
#[must_use]
pub fn services(cluster: &Cluster) -> (Services, ServicesTask) {
    let (shown, services) = watch::channel(None);
    let feed = Feed::new(cluster, None, None);
    (services, ServicesTask { feed, held: Held { shown, services: BTreeMap::new() } })
}

impl ServicesTask {
    /// Shows the newest Services until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        self.feed.keep(&mut self.held, &stop).await;
    }
}

impl Holder<Service> for Held {
    fn show(&mut self) {
        let all = self.services.values().cloned().collect();
        self.shown.send_replace(Some(Arc::new(all)));
    }

    fn take(&mut self, change: Change<Service>) -> bool {
        match change {
            Change::Replaced(all) => {
                self.services = all.into_iter().map(entry).collect();
                true
            }
            Change::Applied(service) => {
                let (name, service) = entry(service);
                self.services.insert(name, service);
                true
            }
            Change::Removed(service) => self.services.remove(&entry(service).0).is_some(),
            Change::Ended => false,
            Change::Interrupted(error) => {
                tracing::warn!(error = %Chain(&error), "cannot follow the services");
                false
            }
        }
    }
}

fn entry(mut service: Service) -> ((String, String), Service) {
    service.metadata.managed_fields = None;
    let namespace = service.metadata.namespace.clone().unwrap_or_default();
    let name = service.metadata.name.clone().unwrap_or_default();
    ((namespace, name), service)
}
