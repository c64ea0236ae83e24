//! What is reported of a pod.
//!
//! ```text
//! Pod (wanted) ─┐
//! PodObserved ──┼─▶ containers ─▶ phase ─▶ conditions ─▶ PodStatus
//! PodStatus (the one before) ┘
//! ```
//!
//! Pure: the same input gives the same status, so that a caller may compare it
//! with the last one and send nothing when they are equal. Sending is left to
//! `cluster`, deciding what to run to `pod`.

mod conditions;
mod containers;
mod ephemeral;
mod limits;
mod phase;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodIP, PodStatus};

pub use self::{
    ephemeral::{EPHEMERAL_MESSAGE, EPHEMERAL_REASON, ephemeral_containers},
    limits::{MAX_POD_TERMINATION_MESSAGES, MAX_TERMINATION_MESSAGE, truncated},
    phase::{Phase, phase},
};
use crate::{observed::PodObserved, qos::qos_class, time::api_time};

/// Builds the status of a pod from what was seen of it.
///
/// `previous` is the status that this node reported last, `None` after a start;
/// then the one in `pod` counts. It decides what must not go back: a terminal
/// phase, restart counts, addresses, the start time, and the times at which
/// conditions flipped. What other components write into a status (their own
/// conditions, resource claims, `nominatedNodeName`) is taken over from `pod`.
///
/// A terminal phase is reported only once nothing runs any more. For a pod that
/// is being stopped or was given up, that means also that
/// [`PodObserved::sandbox_ready`] is false again.
///
/// Times are cut to seconds and termination messages to their share of
/// [`MAX_POD_TERMINATION_MESSAGES`], as the API server would have them, so that
/// a status which comes back from there compares equal.
///
/// Source: kubelet, `generateAPIPodStatus` in `pkg/kubelet/kubelet_pods.go`,
/// `mergePodStatus` and `normalizeStatus` in `pkg/kubelet/status/status_manager.go`.
#[must_use]
pub fn pod_status(
    pod: &Pod,
    seen: &PodObserved,
    previous: Option<&PodStatus>,
    now: Timestamp,
) -> PodStatus {
    let api = pod.status.clone().unwrap_or_default();
    let old = previous.unwrap_or(&api);
    let rejected = seen.failure.is_some() && seen.containers.is_empty();

    let statuses = containers::statuses(pod, seen, old);
    let phase = phase::phase(pod, seen, phase::of(old).or_else(|| phase::of(&api)));
    let (reason, message) = cause(phase, seen, old, &api);
    let conditions = if rejected {
        conditions::foreign(pod, old)
    } else {
        conditions::conditions(pod, seen, &statuses, phase, old, now)
    };
    let (pod_ips, host_ips) = addresses(pod, seen, old);

    PodStatus {
        observed_generation: pod.metadata.generation,
        phase: Some(phase.as_str().to_owned()),
        reason,
        message,
        start_time: old
            .start_time
            .clone()
            .or_else(|| api.start_time.clone())
            .or_else(|| Some(api_time(seen.started_at))),
        conditions: Some(conditions),
        host_ip: host_ips.first().cloned(),
        host_ips: some_if_any(host_ips.into_iter().map(|ip| HostIP { ip }).collect()),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: some_if_any(pod_ips.into_iter().map(|ip| PodIP { ip }).collect()),
        qos_class: Some(match api.qos_class {
            Some(class) => class,
            None => qos_class(pod).to_owned(),
        }),
        container_statuses: if rejected { None } else { some_if_any(statuses.app) },
        init_container_statuses: if rejected { None } else { some_if_any(statuses.init) },
        // Not this node's to write; left as they are.
        nominated_node_name: api.nominated_node_name,
        resource_claim_statuses: api.resource_claim_statuses,
        extended_resource_claim_status: api.extended_resource_claim_status,
        node_allocatable_resource_claim_statuses: api.node_allocatable_resource_claim_statuses,
        ephemeral_container_statuses: if rejected {
            None
        } else {
            some_if_any(ephemeral::statuses(pod))
        },
        // Not offered by this version.
        allocated_resources: None,
        resources: None,
        resize: None,
        volume_health: None,
    }
}

/// `status.reason` and `status.message`: those of a failure, once the phase
/// says so; else what stood there, as long as the phase is the same.
fn cause(
    phase: Phase,
    seen: &PodObserved,
    old: &PodStatus,
    api: &PodStatus,
) -> (Option<String>, Option<String>) {
    match &seen.failure {
        Some(failure) if phase == Phase::Failed && phase::of(old) != Some(Phase::Failed) => {
            (Some(failure.reason.clone()), Some(failure.message.clone()))
        }
        Some(_) | None if phase::of(old) == Some(phase) => (
            old.reason.clone().or_else(|| api.reason.clone()),
            old.message.clone().or_else(|| api.message.clone()),
        ),
        Some(_) | None => (None, None),
    }
}

/// The pod's addresses and the node's. Once known they stay known: a pod whose
/// sandbox is gone keeps the address it had.
fn addresses(pod: &Pod, seen: &PodObserved, old: &PodStatus) -> (Vec<String>, Vec<String>) {
    let text = |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();

    let mut host_ips = text(&seen.host_ips);
    if host_ips.is_empty() {
        host_ips = old.host_ips.iter().flatten().map(|host| host.ip.clone()).collect();
    }
    let mut pod_ips = text(&seen.pod_ips);
    if pod_ips.is_empty() {
        pod_ips = old.pod_ips.iter().flatten().map(|pod| pod.ip.clone()).collect();
    }
    let shares_the_host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default();
    if pod_ips.is_empty()
        && shares_the_host
        && !(seen.failure.is_some() && seen.containers.is_empty())
    {
        pod_ips.clone_from(&host_ips);
    }
    (pod_ips, host_ips)
}

fn some_if_any<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}
