//! `GET /stats/summary`: what pods use, as the kubelet says it. What is not
//! measured is left out.
//!
//! Source: `k8s.io/kubelet/pkg/apis/stats/v1alpha1`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

use crate::usage::{ContainerUsage, NetworkUsage, PodUsage};

/// `Summary`.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    node: NodeStats,
    pods: Vec<PodStats>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStats {
    node_name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodReference,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<Time>,
    containers: Vec<ContainerStats>,
    memory: MemoryStats,
    network: NetworkStats,
}

#[derive(Debug, Serialize)]
struct PodReference {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStats {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<Time>,
    cpu: CpuStats,
    memory: MemoryStats,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuStats {
    time: Time,
    usage_core_nano_seconds: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MemoryStats {
    time: Time,
    working_set_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkStats {
    time: Time,
    name: &'static str,
    rx_bytes: u64,
    tx_bytes: u64,
}

impl Summary {
    pub(crate) fn of(node: &str, pods: Vec<PodUsage>) -> Self {
        Self {
            node: NodeStats { node_name: node.to_owned() },
            pods: pods.into_iter().map(PodStats::of).collect(),
        }
    }
}

impl PodStats {
    fn of(pod: PodUsage) -> Self {
        let PodUsage { namespace, name, uid, started_at, asked_at: time, network, containers } =
            pod;
        let NetworkUsage { received_bytes, sent_bytes, .. } = network;
        let all = containers.iter().map(|container| container.memory_bytes).sum();
        Self {
            pod_ref: PodReference { name, namespace, uid },
            start_time: started_at,
            memory: MemoryStats { time: time.clone(), working_set_bytes: all },
            network: NetworkStats {
                time: time.clone(),
                name: "eth0",
                rx_bytes: received_bytes,
                tx_bytes: sent_bytes,
            },
            containers: containers
                .into_iter()
                .map(|container| ContainerStats::of(container, &time))
                .collect(),
        }
    }
}

impl ContainerStats {
    fn of(container: ContainerUsage, time: &Time) -> Self {
        let ContainerUsage { name, started_at, cpu_nanoseconds, memory_bytes } = container;
        Self {
            name,
            start_time: started_at,
            cpu: CpuStats { time: time.clone(), usage_core_nano_seconds: cpu_nanoseconds },
            memory: MemoryStats { time: time.clone(), working_set_bytes: memory_bytes },
        }
    }
}
