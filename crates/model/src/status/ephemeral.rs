//! Containers that somebody adds to a running pod (`kubectl debug`).
//!
//! This node runs none of them. Each says so in its own status and in an event;
//! the pod goes on as it is.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateWaiting, ContainerStatus, EphemeralContainer, Pod,
};

/// The waiting reason of each, and the reason of its event: the one by which
/// kubelet says that a node lacks a feature.
pub const EPHEMERAL_REASON: &str = "PodFeatureUnsupported";

/// What people are to read.
pub const EPHEMERAL_MESSAGE: &str = "ephemeral containers are not offered by this node: a \
    WebAssembly program can neither see another's processes nor share its files; use `kubectl \
    logs`, or add a container to the pod's template";

/// The ephemeral containers of a pod.
pub fn ephemeral_containers(pod: &Pod) -> impl Iterator<Item = &EphemeralContainer> {
    pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten())
}

/// Their statuses, by name, as kubelet sorts them.
pub(super) fn statuses(pod: &Pod) -> Vec<ContainerStatus> {
    let mut statuses: Vec<_> = ephemeral_containers(pod)
        .map(|container| ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            ready: false,
            started: Some(false),
            state: Some(ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some(EPHEMERAL_REASON.to_owned()),
                    message: Some(EPHEMERAL_MESSAGE.to_owned()),
                }),
                ..ContainerState::default()
            }),
            last_state: Some(ContainerState::default()),
            ..ContainerStatus::default()
        })
        .collect();
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    statuses
}
