//! The node's lease: the sign of life that the control plane goes by.
//!
//! A task of its own, so that nothing else the agent does can delay it.
//! Source: kubelet, `k8s.io/component-helpers/apimachinery/lease/controller.go`.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Node,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use krustlet_model::Chain;
use kube::{
    Resource,
    api::{GetParams, PostParams},
    core::Request,
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{Cluster, RequestError, feed::pause, retry::Backoff};

/// Where node leases live.
const NAMESPACE: &str = "kube-node-lease";

/// How long the control plane waits for a renewal.
/// Source: kubelet, `nodeLeaseDurationSeconds`.
const DURATION: Duration = Duration::from_secs(40);

/// A quarter of the duration. Source: kubelet, `nodeLeaseRenewIntervalFraction`.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// Tries per renewal, one right after the other. Source: `maxUpdateRetries`.
const TRIES: usize = 5;

/// Per request: two renewals must fit into the lease's duration.
const LIMIT: Duration = Duration::from_secs(5);

/// Renews the lease.
#[derive(Debug)]
pub struct LeaseTask {
    cluster: Cluster,
    name: String,
    node: watch::Receiver<Option<Arc<Node>>>,
    held: Option<Lease>,
}

/// The lease of the node of this name, owned by the Node that `node` shows.
#[must_use]
pub fn lease(
    cluster: &Cluster,
    node_name: &str,
    node: watch::Receiver<Option<Arc<Node>>>,
) -> LeaseTask {
    LeaseTask { cluster: cluster.clone(), name: node_name.to_owned(), node, held: None }
}

impl LeaseTask {
    /// Renews every ten seconds until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        // Cancel-safe: a renewal that is dropped is made again or not missed.
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&mut self) {
        // A lease without its owner would outlive the Node.
        if self.node.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let mut turn = interval(RENEW_EVERY);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turn.tick().await;
            self.renew().await;
        }
    }

    /// One renewal, with its tries.
    async fn renew(&mut self) {
        for attempt in 0..TRIES {
            let lease = match self.held.take() {
                Some(lease) => lease,
                None => self.ensure().await,
            };
            match self.update(lease).await {
                Ok(lease) => {
                    self.held = Some(lease);
                    return;
                }
                // Gone, or written by somebody else: `ensure` looks again.
                Err(error) => {
                    tracing::warn!(attempt, error = %Chain(&error), "cannot renew the node's lease");
                }
            }
        }
    }

    /// Reads the lease, or creates it; tries until there is one.
    async fn ensure(&self) -> Lease {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(7));
        loop {
            match self.get_or_create().await {
                Ok(lease) => return lease,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "cannot get the node's lease");
                    pause(&mut backoff, &error).await;
                }
            }
        }
    }

    async fn get_or_create(&self) -> Result<Lease, RequestError> {
        let path = path();
        let found = self.cluster.call(path.get(&self.name, &GetParams::default())?, LIMIT).await;
        match found {
            Err(error) if error.code() == Some(404) => {
                let lease = self.renewed(Lease {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        namespace: Some(NAMESPACE.to_owned()),
                        ..ObjectMeta::default()
                    },
                    spec: None,
                });
                self.cluster.call(path.create(&PostParams::default(), body(&lease)?)?, LIMIT).await
            }
            found => found,
        }
    }

    async fn update(&self, lease: Lease) -> Result<Lease, RequestError> {
        let body = body(&self.renewed(lease))?;
        self.cluster.call(path().replace(&self.name, &PostParams::default(), body)?, LIMIT).await
    }

    /// The same lease, renewed now.
    fn renewed(&self, mut lease: Lease) -> Lease {
        if lease.metadata.owner_references.as_ref().is_none_or(Vec::is_empty) {
            lease.metadata.owner_references = self.owner().map(|owner| vec![owner]);
        }
        let before = lease.spec.take().unwrap_or_default();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..before
        });
        lease
    }

    fn owner(&self) -> Option<OwnerReference> {
        let node = self.node.borrow();
        Some(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.name.clone(),
            uid: node.as_ref()?.metadata.uid.clone()?,
            ..OwnerReference::default()
        })
    }
}

fn path() -> Request {
    Request::new(Lease::url_path(&(), Some(NAMESPACE)))
}

fn body(lease: &Lease) -> Result<Vec<u8>, RequestError> {
    Ok(serde_json::to_vec(lease).map_err(kube::core::request::Error::SerializeBody)?)
}
