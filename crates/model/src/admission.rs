//! Whether the node takes a pod.
//!
//! The scheduler has chosen this node, but it may have done so on old news, or
//! not have been asked at all. So the node looks for itself, once for each pod,
//! before anything of the pod runs. A refused pod fails for ever; whoever made
//! it makes another.
//!
//! Pure: `pod` says which other pods count, and keeps the verdict.

mod affinity;
mod names;
mod ports;
mod resources;
#[cfg(test)]
mod tests;
mod unsupported;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Pod, Taint},
    apimachinery::pkg::api::resource::Quantity,
};

pub use self::ports::MOST_PORTS;
pub use self::unsupported::{Unsupported, unsupported};
use crate::{
    bandwidth::SocketAnnotations,
    observed::{PodFailure, ResizePending},
    outbound::Outbound,
};

/// The label by which nodes, and sometimes pods, name their system.
const OS_LABEL: &str = "kubernetes.io/os";

/// What admission must know of the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its system, as its label `kubernetes.io/os` says: `wasm32-wasi` unless
    /// configured otherwise.
    pub os: String,
    /// Its labels as they stand at the API server.
    pub labels: BTreeMap<String, String>,
    /// Its taints as they stand at the API server.
    pub taints: Vec<Taint>,
    /// What it has to give, `status.allocatable`. A resource that is missing
    /// here is one of which there is none; in standalone mode leave out all.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// Why a pod is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// One CamelCase word: `status.reason`, and the reason of a warning event.
    pub reason: String,
    /// A sentence: the event's message.
    pub message: String,
}

impl Rejection {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }

    /// A predicate of the scheduler's that does not hold.
    fn predicate(name: &str, why: &str) -> Self {
        Self::new(name, format!("Predicate {name} failed: {why}"))
    }

    /// What the pod's status says.
    ///
    /// Source: kubelet, `rejectPod` in `pkg/kubelet/kubelet.go`.
    #[must_use]
    pub fn into_failure(self) -> PodFailure {
        PodFailure { reason: self.reason, message: format!("Pod was rejected: {}", self.message) }
    }
}

/// Decides whether the node takes a pod beside `others`: the pods it has taken
/// before and that have not ended.
///
/// Reasons, in the order in which they are looked for:
///
/// | reason | when |
/// |---|---|
/// | `UnexpectedAdmissionError` | a name that could not be a file's name |
/// | `PodOSSelectorNodeLabelDoesNotMatch` | the pod's label `kubernetes.io/os` names another system |
/// | `PodOSNotSupported` | so does `spec.os` |
/// | `PodFeatureUnsupported` | see [`unsupported`] |
/// | `InvalidNetworkAnnotation` | see [`SocketAnnotations`] and [`Outbound`] |
/// | `OutOfpods`, `OutOfcpu`, `OutOfmemory`, … | the requests do not fit |
/// | `NodeAffinity` | selector or required affinity do not match |
/// | `NodeName` | bound to another node |
/// | `NodePorts` | a host port is taken |
/// | `TaintToleration` | a `NoExecute` taint is not tolerated |
///
/// After a `NodeAffinity` the caller should ask once more with a node that was
/// read afresh, since labels may have changed just now.
///
/// Source: kubelet, `pkg/kubelet/lifecycle/predicate.go`.
///
/// # Errors
///
/// The first reason that holds.
pub fn admit<'a>(
    pod: &Pod,
    node: &NodeFacts,
    others: impl Iterator<Item = &'a Pod>,
) -> Result<(), Rejection> {
    names::check(pod)?;
    check_os(pod, node)?;
    unsupported::check(pod)?;
    let annotation = |message: String| Rejection::new("InvalidNetworkAnnotation", message);
    SocketAnnotations::of(pod).map_err(|error| annotation(error.to_string()))?;
    Outbound::of(pod).map_err(|error| annotation(error.to_string()))?;
    let others: Vec<_> = others.collect();
    resources::check(pod, node, &others)?;
    if !affinity::matches(pod, node) {
        return Err(Rejection::predicate(
            "NodeAffinity",
            "node(s) didn't match Pod's node affinity/selector",
        ));
    }
    let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    if !bound.is_empty() && bound != node.name {
        return Err(Rejection::predicate(
            "NodeName",
            "node(s) didn't match the requested node name",
        ));
    }
    if !ports::are_free(pod, others.iter().copied()) {
        return Err(Rejection::predicate(
            "NodePorts",
            "node(s) didn't have free ports for the requested pod ports",
        ));
    }
    if !is_static(pod) && !affinity::tolerates(pod, node, "NoExecute") {
        return Err(Rejection::predicate(
            "TaintToleration",
            "node(s) had taints that the pod didn't tolerate",
        ));
    }
    Ok(())
}

/// Decides whether a pod that runs here may have the resources that are wanted
/// for it now, beside `others`, which leave it out.
///
/// Source: kubelet, `handlePodResourcesResize` in
/// `pkg/kubelet/allocation/allocation_manager.go`, which looks at labels and
/// taints too; what has nothing to do with resources does not hold up a resize
/// here. As there, one that is larger than the whole node waits as well.
///
/// # Errors
///
/// Why it has to wait.
pub fn room_for_resize<'a>(
    wanted: &Pod,
    node: &NodeFacts,
    others: impl Iterator<Item = &'a Pod>,
) -> Result<(), ResizePending> {
    let others: Vec<_> = others.collect();
    resources::check(wanted, node, &others).map_err(|rejection| ResizePending {
        reason: "Deferred".to_owned(),
        message: rejection.message,
    })
}

fn check_os(pod: &Pod, node: &NodeFacts) -> Result<(), Rejection> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(OS_LABEL));
    if label.is_some_and(|label| *label != node.os) {
        return Err(Rejection::new(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    let os = pod.spec.as_ref().and_then(|spec| spec.os.as_ref());
    if os.is_some_and(|os| os.name != node.os) {
        return Err(Rejection::new(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ));
    }
    Ok(())
}

/// Whether a pod comes from a file of the node and not from the API server.
///
/// Source: kubelet, `IsStaticPod` in `pkg/kubelet/types/pod_update.go`.
#[must_use]
pub fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let source = annotations.and_then(|all| all.get("kubernetes.io/config.source"));
    source.is_some_and(|source| source != "api")
}
