//! Pods, as far as policies look at them.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::Pod;

use crate::services::Transport;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Labels that a pod or a namespace may have to be named by selectors. Kubernetes
/// bounds their length and not their number; few have more than twenty.
pub const MOST_LABELS: usize = 256;

/// Ports with names that a pod may have to be named.
pub const MOST_NAMED_PORTS: usize = 256;

/// Whether what has these labels may be named. Of more none counts: to look at some
/// of them would let in what is to be kept out by another.
#[must_use]
pub fn may_be_named(labels: &Labels) -> bool {
    labels.len() <= MOST_LABELS
}

/// Namespace and name of an object.
pub type PolicyKey = (String, String);

/// A pod that policies may name: one that runs, and has addresses of its own.
///
/// Pods of the host's network are none, nor are those that have ended, whose
/// addresses others may have by now, nor those with too many labels or ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerPod {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports of its containers that have a name.
    pub ports: Vec<NamedPort>,
}

/// A port with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The protocol.
    pub protocol: Transport,
    /// The number.
    pub port: u16,
}

impl NamedPort {
    /// Reads a container's port; none without a name, or of a protocol that
    /// guests do not have.
    #[must_use]
    pub fn new(name: Option<&str>, protocol: Option<&str>, port: i32) -> Option<Self> {
        let name = name.filter(|name| !name.is_empty())?.to_owned();
        let protocol = Transport::parse(protocol)?;
        Some(Self { name, protocol, port: u16::try_from(port).ok()? })
    }
}

/// What policies look at in a pod that is subject to them: of two that are alike
/// they say the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subject {
    pub(super) labels: Labels,
    pub(super) ports: Vec<NamedPort>,
}

impl Subject {
    pub(super) fn of(pod: &Pod) -> Self {
        Self { labels: pod.metadata.labels.clone().unwrap_or_default(), ports: named_ports(pod) }
    }
}

/// The named ports of a pod's containers, those that run beside them included.
fn named_ports(pod: &Pod) -> Vec<NamedPort> {
    let spec = pod.spec.as_ref();
    let beside = spec
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default()
        .iter()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let containers = spec.map_or(&[][..], |spec| &spec.containers).iter().chain(beside);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let ports = ports.filter_map(|port| {
        NamedPort::new(port.name.as_deref(), port.protocol.as_deref(), port.container_port)
    });
    ports.collect()
}
