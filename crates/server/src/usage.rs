//! What pods use, and who may ask for it at once.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::routes::Queries;

/// What all pods use.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Those with a running container.
    pub pods: Vec<PodUsage>,
    /// Pods of which it is not known: their sandboxes did not answer.
    pub unknown: usize,
}

/// What one pod uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodUsage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// When it was started here.
    pub started_at: Option<Time>,
    /// When its sandbox was asked.
    pub asked_at: Time,
    /// What its sockets did.
    pub network: NetworkUsage,
    /// Its running containers.
    pub containers: Vec<ContainerUsage>,
}

/// What the sockets of one pod did since its sandbox began. What stays within the
/// pod counts as a socket only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkUsage {
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// TCP connections made.
    pub opened: u64,
    /// TCP connections accepted.
    pub accepted: u64,
    /// What a rule or a bound refused.
    pub refused: RefusedUsage,
    /// Sockets open now.
    pub sockets: u32,
}

/// What a pod was refused: binds, connections, datagrams and sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedUsage {
    /// Because no pod may go there.
    pub destination: u64,
    /// By the cluster's policies, either direction.
    pub policy: u64,
    /// By the pod's own list, of a destination or a name.
    pub list: u64,
    /// Because it had as many sockets as it may.
    pub bound: u64,
    /// By one of these: a sandbox that an older version started does not say which.
    #[serde(default)]
    pub unknown: u64,
}

impl RefusedUsage {
    /// Each with the name of what refused; what nobody can name only where there is
    /// some.
    pub(crate) fn by_rule(self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self { destination, policy, list, bound, unknown } = self;
        let named =
            [("destination", destination), ("policy", policy), ("list", list), ("bound", bound)];
        named.into_iter().chain((unknown > 0).then_some(("unknown", unknown)))
    }

    /// All of them.
    #[must_use]
    pub fn all(self) -> u64 {
        self.by_rule().map(|(_, count)| count).sum()
    }
}

/// What one container uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerUsage {
    /// Its name.
    pub name: String,
    /// When its present run began.
    pub started_at: Option<Time>,
    /// CPU time of that run, in nanoseconds.
    pub cpu_nanoseconds: u64,
    /// Linear memory and tables now, in bytes.
    pub memory_bytes: u64,
}

/// Asks for it, for one at a time: each answer asks every sandbox, so that many
/// who ask at once cost no more than one who asks again and again.
#[derive(Clone)]
pub(crate) struct Meter {
    pods: Queries,
    one: Arc<Semaphore>,
    /// The node's name.
    pub(crate) node: Arc<str>,
}

impl Meter {
    pub(crate) fn new(pods: Queries, node: &str) -> Self {
        Self { pods, one: Arc::new(Semaphore::new(1)), node: node.into() }
    }

    pub(crate) async fn read(&self) -> Usage {
        // Never closed.
        let _one = self.one.acquire().await;
        self.pods.usage().await
    }
}
