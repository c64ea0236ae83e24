//! What pods use, and who may ask for it at once.
//!
//! `krustlet stats` reads it as the agent's JSON, and may be older or newer than that
//! agent: what is added is a new field, and no field's kind is changed.

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
#[serde(rename_all = "camelCase", default)]
pub struct NetworkUsage {
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// TCP connections made.
    pub opened: u64,
    /// TCP connections accepted.
    pub accepted: u64,
    /// What a rule or a bound refused. A number for ever: commands of before read it.
    pub refused: u64,
    /// What of it refused them.
    pub refused_by: RefusedUsage,
    /// Sockets open now.
    pub sockets: u32,
}

/// What a pod was refused: binds, connections, datagrams and sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_str, from_value, json, to_value};

    use super::*;

    /// What an agent of before said, word for word. It is never changed: one that says
    /// it may live still.
    const BEFORE: &str = r#"{"namespace":"shop","name":"web","uid":"u","startedAt":null,
        "askedAt":"2026-11-29T12:00:00Z","network":{"receivedBytes":1,"sentBytes":2,"opened":3,
        "accepted":4,"refused":5,"sockets":6},"containers":[{"name":"app","startedAt":null,
        "cpuNanoseconds":7,"memoryBytes":8}]}"#;

    fn usage() -> PodUsage {
        PodUsage {
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u".into(),
            started_at: None,
            asked_at: Time("2026-11-29T12:00:00Z".parse().unwrap()),
            network: NetworkUsage {
                received_bytes: 1,
                sent_bytes: 2,
                opened: 3,
                accepted: 4,
                refused: 5,
                refused_by: RefusedUsage::default(),
                sockets: 6,
            },
            containers: vec![ContainerUsage {
                name: "app".into(),
                started_at: None,
                cpu_nanoseconds: 7,
                memory_bytes: 8,
            }],
        }
    }

    #[test]
    fn an_agent_of_before_is_understood() {
        assert_eq!(from_str::<PodUsage>(BEFORE).unwrap(), usage());
    }

    #[test]
    fn an_agent_of_later_is_understood_as_far_as_it_is_known() {
        let mut later = to_value(usage()).unwrap();
        for place in ["", "/network", "/network/refusedBy", "/containers/0"] {
            later.pointer_mut(place).unwrap()["more"] = json!({"of": [1]});
        }
        assert_eq!(from_value::<PodUsage>(later).unwrap(), usage());
    }

    /// Whether all that was said before is said now. What was null may be anything.
    fn has_all_of(now: &Value, before: &Value) -> bool {
        match (now, before) {
            (Value::Object(now), Value::Object(before)) => before
                .iter()
                .all(|(name, before)| now.get(name).is_some_and(|now| has_all_of(now, before))),
            (Value::Array(now), Value::Array(before)) => {
                now.iter().zip(before).all(|(now, before)| has_all_of(now, before))
            }
            _ => before.is_null() || now == before,
        }
    }

    #[test]
    fn a_command_of_before_finds_all_that_it_reads() {
        let now = to_value(PodUsage {
            network: NetworkUsage {
                refused_by: RefusedUsage { policy: 5, ..RefusedUsage::default() },
                ..usage().network
            },
            ..usage()
        });
        let now = now.unwrap();
        assert!(has_all_of(&now, &from_str(BEFORE).unwrap()), "{now}");
    }
}
