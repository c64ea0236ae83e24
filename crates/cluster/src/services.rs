//! The Services of the cluster, for the variables every container gets and for those
//! who lead to them.
//!
//! What is kept of them is [`krustlet_model::services::slim`]'s business.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use krustlet_model::services::{ServiceKey, Services, slim};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Cluster, feed::Feed, kept::Kept};

/// Follows the Services.
#[derive(Debug)]
pub struct ServicesTask {
    feed: Feed<Service>,
    kept: Kept<Service, ServiceKey, Service>,
}

/// The newest Services of all namespaces; None until the first full list has arrived:
/// a container that started before that would lack its variables.
#[must_use]
pub fn services(cluster: &Cluster) -> (watch::Receiver<Option<Arc<Services>>>, ServicesTask) {
    let (services, kept) = Kept::new("the services", |service: Service| {
        let namespace = service.metadata.namespace.clone().unwrap_or_default();
        let name = service.metadata.name.clone().unwrap_or_default();
        (ServiceKey { namespace, name }, Some(slim(service)))
    });
    (services, ServicesTask { feed: Feed::new(cluster, None, None), kept })
}

impl ServicesTask {
    /// Shows the newest Services until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        self.feed.keep(&mut self.kept, &stop).await;
    }
}
