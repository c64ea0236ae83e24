//! What a Node says, given what the machine is and how it fares. Pure.
//!
//! Source: kubelet, `pkg/kubelet/nodestatus/setters.go` and
//! `pkg/kubelet/kubelet_node_status.go`.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{
        ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
        NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo,
        Taint,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, Time},
    },
    jiff::Timestamp,
};
use serde_json::{Map, Value, json};

use super::{EvictionThresholds, Machine, NodeConfig, NodeHealth, Usage};

/// Images a Node names. Source: kubelet, `nodeStatusMaxImages`.
const MOST_IMAGES: usize = 50;

/// Names per image. Source: kubelet, `MaxNamesPerImageInNodeStatus`.
const MOST_NAMES: usize = 5;

/// What the node is short of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Memory.
    pub memory: bool,
    /// Ephemeral storage or its inodes.
    pub disk: bool,
    /// Process ids.
    pub pids: bool,
}

/// What the node is short of at this moment.
#[must_use]
pub fn pressure(usage: &Usage, thresholds: &EvictionThresholds) -> Pressure {
    let EvictionThresholds { memory, storage, inodes, images, image_inodes, pids, stays: _ } =
        thresholds;
    let bytes = (usage.storage_available, usage.storage_total);
    let files = (usage.inodes_available, usage.inodes_total);
    let disk = [(storage, bytes), (images, bytes), (inodes, files), (image_inodes, files)];
    let free_pids = usage.pids_limit.saturating_sub(usage.pids);
    Pressure {
        memory: memory.is_crossed(usage.memory_available, usage.memory_total),
        disk: disk.iter().any(|(least, (free, all))| least.is_crossed(*free, *all)),
        pids: pids.is_crossed(free_pids, usage.pids_limit),
    }
}

/// The Node as it is created.
#[must_use]
pub fn node(config: &NodeConfig, status: NodeStatus) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(config.name.clone()),
            labels: Some(labels(config)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            provider_id: config.provider_id.clone(),
            taints: Some(config.taints.clone()).filter(|taints| !taints.is_empty()),
            unschedulable: config.unschedulable.then_some(true),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

/// The default labels and the configured ones.
#[must_use]
pub fn labels(config: &NodeConfig) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<_, _> = [
        ("kubernetes.io/hostname", &config.hostname),
        ("kubernetes.io/os", &config.os),
        ("kubernetes.io/arch", &config.arch),
        ("beta.kubernetes.io/os", &config.os),
        ("beta.kubernetes.io/arch", &config.arch),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.clone()))
    .collect();
    labels.extend(config.labels.clone());
    labels
}

/// What an existing Node's metadata and spec lack: a merge patch, or None.
///
/// Labels of others, taints, cordons and annotations stay as they are.
#[must_use]
pub fn reconcile(config: &NodeConfig, found: &Node) -> Option<Value> {
    let held = found.metadata.labels.as_ref();
    let labels: Map<String, Value> = labels(config)
        .into_iter()
        .filter(|(name, value)| held.and_then(|held| held.get(name)) != Some(value))
        .map(|(name, value)| (name, Value::String(value)))
        .collect();
    let mut patch = Map::new();
    if !labels.is_empty() {
        patch.insert("metadata".to_owned(), json!({ "labels": labels }));
    }
    let provider = found.spec.as_ref().and_then(|spec| spec.provider_id.as_ref());
    if let (Some(id), None) = (&config.provider_id, provider) {
        patch.insert("spec".to_owned(), json!({ "providerID": id }));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The configured taints that an existing Node lacks.
#[must_use]
pub fn missing_taints<'a>(config: &'a NodeConfig, found: &Node) -> Vec<&'a Taint> {
    let held = found.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let same = |a: &Taint, b: &Taint| a.key == b.key && a.effect == b.effect && a.value == b.value;
    config.taints.iter().filter(|taint| !held.iter().any(|other| same(taint, other))).collect()
}

/// Everything a status is made of.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// What the machine is.
    pub machine: &'a Machine,
    /// What it is short of.
    pub pressure: Pressure,
    /// What the agent says.
    pub health: &'a NodeHealth,
    /// The conditions of the Node as it is; for the times of their changes.
    pub conditions: &'a [NodeCondition],
    /// Now.
    pub now: Timestamp,
}

/// The status of the Node.
#[must_use]
pub fn status(config: &NodeConfig, seen: &Observed<'_>) -> NodeStatus {
    let capacity = capacity(config, seen.machine);
    let allocatable = allocatable(config, seen.machine);
    NodeStatus {
        addresses: Some(addresses(config)),
        conditions: Some(conditions(seen)),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: config.port.into() }),
        }),
        declared_features: Some(sorted(&config.declared_features))
            .filter(|features| !features.is_empty()),
        images: Some(images(&seen.health.images)),
        node_info: Some(NodeSystemInfo {
            architecture: config.arch.clone(),
            boot_id: seen.machine.boot_id.clone(),
            container_runtime_version: config.runtime_version.clone(),
            kernel_version: seen.machine.kernel.clone(),
            kubelet_version: config.kubelet_version.clone(),
            machine_id: seen.machine.machine_id.clone(),
            operating_system: config.os.clone(),
            os_image: seen.machine.os_image.clone(),
            system_uuid: seen.machine.system_uuid.clone(),
            ..NodeSystemInfo::default()
        }),
        runtime_handlers: Some(handlers(&config.runtime_handlers))
            .filter(|handlers| !handlers.is_empty()),
        ..NodeStatus::default()
    }
}

/// The API server refuses features that are unsorted or named twice.
fn sorted(features: &[String]) -> Vec<String> {
    let mut features = features.to_vec();
    features.sort_unstable();
    features.dedup();
    features
}

fn handlers(names: &[String]) -> Vec<NodeRuntimeHandler> {
    sorted(names)
        .into_iter()
        .map(|name| NodeRuntimeHandler {
            name: Some(name),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(false),
                user_namespaces: Some(false),
            }),
        })
        .collect()
}

fn addresses(config: &NodeConfig) -> Vec<NodeAddress> {
    let ip = |ip: &IpAddr| NodeAddress { type_: "InternalIP".to_owned(), address: ip.to_string() };
    let hostname = NodeAddress { type_: "Hostname".to_owned(), address: config.hostname.clone() };
    config.ips.iter().map(ip).chain([hostname]).collect()
}

fn capacity(config: &NodeConfig, machine: &Machine) -> BTreeMap<String, Quantity> {
    resources([
        ("cpu", machine.cpus.to_string()),
        ("memory", format!("{}Ki", machine.memory / 1024)),
        ("ephemeral-storage", format!("{}Ki", machine.storage / 1024)),
        ("pods", config.max_pods.to_string()),
    ])
}

/// Capacity less what is reserved and what must stay free; never below zero.
fn allocatable(config: &NodeConfig, machine: &Machine) -> BTreeMap<String, Quantity> {
    let millis = (machine.cpus.get() as u64).saturating_mul(1000);
    let cpu = match millis.saturating_sub(config.reserved.cpu_millis) {
        whole if whole % 1000 == 0 => (whole / 1000).to_string(),
        millis => format!("{millis}m"),
    };
    let memory = machine
        .memory
        .saturating_sub(config.reserved.memory)
        .saturating_sub(config.eviction.memory.of(machine.memory));
    let kept_free = config.eviction.storage.of(machine.storage);
    let storage = machine.storage.saturating_sub(config.reserved.storage).saturating_sub(kept_free);
    resources([
        ("cpu", cpu),
        ("memory", format!("{}Ki", memory / 1024)),
        ("ephemeral-storage", storage.to_string()),
        ("pods", config.max_pods.to_string()),
    ])
}

fn resources<const N: usize>(all: [(&str, String); N]) -> BTreeMap<String, Quantity> {
    all.into_iter().map(|(name, amount)| (name.to_owned(), Quantity(amount))).collect()
}

/// The largest images, names by digest first.
fn images(all: &[ContainerImage]) -> Vec<ContainerImage> {
    let mut images = all.to_vec();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    images.truncate(MOST_IMAGES);
    for names in images.iter_mut().filter_map(|image| image.names.as_mut()) {
        names.sort_by_key(|name| !name.contains('@'));
        names.truncate(MOST_NAMES);
    }
    images
}

/// The kubelet's four conditions.
fn conditions(seen: &Observed<'_>) -> Vec<NodeCondition> {
    let short = |kind: &str, short: bool, yes: [&str; 2], no: [&str; 2]| {
        let [reason, message] = if short { yes } else { no };
        condition(seen, kind, short, reason, message)
    };
    let ready = match &seen.health.not_ready {
        None => condition(seen, "Ready", true, "KubeletReady", "kubelet is posting ready status"),
        Some(why) => condition(seen, "Ready", false, "KubeletNotReady", why),
    };
    vec![
        short(
            "MemoryPressure",
            seen.pressure.memory,
            ["KubeletHasInsufficientMemory", "kubelet has insufficient memory available"],
            ["KubeletHasSufficientMemory", "kubelet has sufficient memory available"],
        ),
        short(
            "DiskPressure",
            seen.pressure.disk,
            ["KubeletHasDiskPressure", "kubelet has disk pressure"],
            ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
        ),
        short(
            "PIDPressure",
            seen.pressure.pids,
            ["KubeletHasInsufficientPID", "kubelet has insufficient PID available"],
            ["KubeletHasSufficientPID", "kubelet has sufficient PID available"],
        ),
        ready,
    ]
}

/// A condition whose time of change moves only when its status does.
fn condition(
    seen: &Observed<'_>,
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let before = find(seen.conditions, kind).filter(|before| before.status == status);
    let changed =
        before.and_then(|before| before.last_transition_time.clone()).unwrap_or(Time(seen.now));
    NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(Time(seen.now)),
        last_transition_time: Some(changed),
    }
}

/// The condition of this type.
#[must_use]
pub fn find<'a>(conditions: &'a [NodeCondition], kind: &str) -> Option<&'a NodeCondition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether the server's status differs from this one in anything but the times
/// of its heartbeats. Fields of others do not count.
#[must_use]
pub fn differs(found: &NodeStatus, wanted: &NodeStatus) -> bool {
    let comparable = |status: &NodeStatus| {
        let mut status = status.clone();
        // Others have conditions of their own.
        let ours = wanted.conditions.as_deref().unwrap_or_default();
        let conditions = status.conditions.take().unwrap_or_default();
        let mut conditions: Vec<_> = conditions
            .into_iter()
            .filter(|condition| find(ours, &condition.type_).is_some())
            .map(|mut condition| {
                condition.last_heartbeat_time = None;
                condition.last_transition_time = None;
                condition
            })
            .collect();
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        // What this agent does not set, and lists that a server may leave out.
        NodeStatus {
            addresses: status.addresses.filter(|list| !list.is_empty()),
            allocatable: status.allocatable,
            capacity: status.capacity,
            conditions: Some(conditions),
            daemon_endpoints: status.daemon_endpoints,
            declared_features: status.declared_features.filter(|list| !list.is_empty()),
            images: status.images.filter(|list| !list.is_empty()),
            node_info: status.node_info,
            runtime_handlers: status.runtime_handlers.filter(|list| !list.is_empty()),
            ..NodeStatus::default()
        }
    };
    comparable(found) != comparable(wanted)
}

/// The strategic merge patch that writes `wanted` over `found`.
#[must_use]
pub fn patch(found: &NodeStatus, wanted: &NodeStatus) -> Value {
    // Text and numbers only: nothing in it can fail.
    let mut status = serde_json::to_value(wanted).unwrap_or_default();
    let Some(fields) = status.as_object_mut() else { return Value::Null };
    // Addresses merge by type, which would keep a second one of a type for ever.
    if let Some(Value::Array(addresses)) = fields.get_mut("addresses") {
        addresses.insert(0, json!({ "$patch": "replace" }));
    }
    for (field, before) in [("capacity", &found.capacity), ("allocatable", &found.allocatable)] {
        if let Some(Value::Object(now)) = fields.get_mut(field) {
            for name in before.iter().flat_map(BTreeMap::keys) {
                now.entry(name.clone()).or_insert(Value::Null);
            }
        }
    }
    for (field, gone) in [
        ("declaredFeatures", found.declared_features.is_some()),
        ("runtimeHandlers", found.runtime_handlers.is_some()),
    ] {
        if gone {
            fields.entry(field).or_insert(Value::Null);
        }
    }
    json!({ "status": status })
}

#[cfg(test)]
mod tests;
