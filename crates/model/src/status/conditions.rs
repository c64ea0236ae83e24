//! The conditions of a pod: those the kubelet owns, computed; all others kept.

use std::borrow::Cow;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};

use super::{
    containers::Statuses,
    phase::{self, Phase},
};
use crate::{
    observed::{ContainerKind, ContainerState, PodObserved},
    resize::ContainerResources,
    restarts,
    time::api_time,
};

const READY: &str = "Ready";
const CONTAINERS_READY: &str = "ContainersReady";
const INITIALIZED: &str = "Initialized";
const READY_TO_START: &str = "PodReadyToStartContainers";
const SCHEDULED: &str = "PodScheduled";
const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

/// The types that the kubelet owns; others never write them.
///
/// Source: kubelet, `PodConditionsByKubelet` in `pkg/kubelet/types/pod_status.go`.
const OWNED: [&str; 8] = [
    SCHEDULED,
    READY,
    INITIALIZED,
    CONTAINERS_READY,
    READY_TO_START,
    RESIZE_PENDING,
    RESIZE_IN_PROGRESS,
    "AllContainersRestarting",
];

/// What a condition says, without its times.
struct Claim {
    holds: bool,
    reason: Cow<'static, str>,
    message: String,
}

impl Claim {
    fn holds() -> Self {
        Self { holds: true, reason: "".into(), message: String::new() }
    }

    fn fails(reason: &'static str, message: String) -> Self {
        Self { holds: false, reason: reason.into(), message }
    }
}

/// The conditions of others: those that stand at the API server, and of what
/// the node reported before the ones that are not there yet.
pub(super) fn foreign(pod: &Pod, old: &PodStatus) -> Vec<PodCondition> {
    let is_foreign = |condition: &&PodCondition| !OWNED.contains(&condition.type_.as_str());
    let at_server = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut kept: Vec<PodCondition> = at_server.filter(is_foreign).cloned().collect();
    for condition in old.conditions.iter().flatten().filter(is_foreign) {
        // Of the shared types only this one is set by a node itself; any other
        // that is gone from the server has been taken away by its owner.
        if condition.type_ == "DisruptionTarget"
            && !kept.iter().any(|other| other.type_ == condition.type_)
        {
            kept.push(condition.clone());
        }
    }
    kept
}

/// All conditions of a pod. `lastTransitionTime` is `now` where the status
/// flipped or the condition is new, else what it was.
///
/// Source: kubelet, `pkg/kubelet/status/generate.go`.
pub(super) fn conditions(
    pod: &Pod,
    seen: &PodObserved,
    statuses: &Statuses,
    phase: Phase,
    old: &PodStatus,
    now: Timestamp,
) -> Vec<PodCondition> {
    let mut all = foreign(pod, old);
    let phase = phase::before_the_end(pod, seen, phase);
    let ready = ready(pod, statuses, phase, &all);
    let owned = [
        (READY_TO_START, ready_to_start(seen)),
        (INITIALIZED, initialized(pod, seen, statuses, phase)),
        (READY, ready),
        (CONTAINERS_READY, containers_ready(pod, statuses, phase)),
        (SCHEDULED, Claim::holds()),
    ];
    all.extend(owned.map(|(type_, claim)| condition(type_, claim, pod, old, now)));
    let resize = [
        (RESIZE_PENDING, resize_pending(seen, phase)),
        (RESIZE_IN_PROGRESS, resize_in_progress(pod, seen)),
    ];
    let resize = resize.into_iter().filter_map(|(type_, claim)| Some((type_, claim?)));
    all.extend(resize.map(|(type_, claim)| condition(type_, claim, pod, old, now)));
    all
}

fn condition(
    type_: &str,
    claim: Claim,
    pod: &Pod,
    old: &PodStatus,
    now: Timestamp,
) -> PodCondition {
    let status = if claim.holds { "True" } else { "False" };
    let since = old
        .conditions
        .iter()
        .flatten()
        .find(|before| before.type_ == type_ && before.status == status)
        .and_then(|before| before.last_transition_time.clone());
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: (!claim.reason.is_empty()).then(|| claim.reason.into_owned()),
        message: (!claim.message.is_empty()).then_some(claim.message),
        observed_generation: pod.metadata.generation,
        last_transition_time: Some(since.unwrap_or_else(|| api_time(now))),
        last_probe_time: None,
    }
}

/// That other resources are wanted for the pod than it is allotted. It is there
/// only while that is so.
fn resize_pending(seen: &PodObserved, phase: Phase) -> Option<Claim> {
    let pending = seen.resize.pending.as_ref().filter(|_| !phase.is_terminal())?;
    let (reason, message) = (pending.reason.clone().into(), pending.message.clone());
    Some(Claim { holds: true, reason, message })
}

/// That a container runs with other resources than it is allotted. It is there
/// only while that is so.
///
/// Source: kubelet, `IsPodResizeInProgress` in
/// `pkg/kubelet/kuberuntime/kuberuntime_manager.go`.
fn resize_in_progress(pod: &Pod, seen: &PodObserved) -> Option<Claim> {
    restarts::containers(pod).find(|(_, container)| {
        let seen = seen.containers.iter().find(|seen| seen.name.as_str() == container.name);
        seen.is_some_and(|seen| {
            let runs = matches!(seen.state, ContainerState::Running { .. });
            let allotted = ContainerResources::of(container);
            runs && seen.resources.as_ref().is_some_and(|actual| !actual.is_same(&allotted))
        })
    })?;
    Some(match &seen.resize.error {
        Some(error) => Claim { holds: true, reason: "Error".into(), message: error.clone() },
        None => Claim::holds(),
    })
}

fn ready_to_start(seen: &PodObserved) -> Claim {
    const REASON: &str = "PodSandboxNotReady";
    if seen.sandbox_ready {
        return Claim::holds();
    }
    let message =
        if seen.had_sandbox { "pod sandbox is not ready" } else { "no pod sandbox exists" };
    Claim::fails(REASON, message.to_owned())
}

fn initialized(pod: &Pod, seen: &PodObserved, statuses: &Statuses, phase: Phase) -> Claim {
    if phase == Phase::Succeeded {
        return Claim { reason: "PodCompleted".into(), ..Claim::holds() };
    }
    // Sidecars that start anew do not take it back.
    if phase::has_started(seen) {
        return Claim::holds();
    }
    let mut incomplete = Vec::new();
    for (kind, container) in restarts::containers(pod) {
        let done = statuses.find(&container.name).is_some_and(|status| match kind {
            ContainerKind::Init => status.ready,
            ContainerKind::Sidecar => status.started.unwrap_or_default(),
            ContainerKind::App => true,
        });
        if !done {
            incomplete.push(container.name.as_str());
        }
    }
    if incomplete.is_empty() {
        return Claim::holds();
    }
    Claim::fails(
        "ContainersNotInitialized",
        format!("containers with incomplete status: [{}]", incomplete.join(" ")),
    )
}

fn containers_ready(pod: &Pod, statuses: &Statuses, phase: Phase) -> Claim {
    match phase {
        Phase::Succeeded => return Claim::fails("PodCompleted", String::new()),
        Phase::Failed => return Claim::fails("PodFailed", String::new()),
        Phase::Pending | Phase::Running => {}
    }
    let unready: Vec<_> = restarts::containers(pod)
        .filter(|(kind, _)| *kind != ContainerKind::Init)
        .map(|(_, container)| container.name.as_str())
        .filter(|name| !statuses.find(name).is_some_and(|status| status.ready))
        .collect();
    if unready.is_empty() {
        return Claim::holds();
    }
    Claim::fails(
        "ContainersNotReady",
        format!("containers with unready status: [{}]", unready.join(" ")),
    )
}

/// `Ready`: the containers are, and so says every readiness gate.
fn ready(pod: &Pod, statuses: &Statuses, phase: Phase, foreign: &[PodCondition]) -> Claim {
    let containers = containers_ready(pod, statuses, phase);
    if !containers.holds {
        return containers;
    }
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let shut: Vec<_> = gates
        .filter_map(|gate| {
            let wanted = gate.condition_type.as_str();
            match foreign.iter().find(|condition| condition.type_ == wanted) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{wanted}\" does not exist."
                )),
                Some(found) if found.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{wanted}\" is not \"True\", but {}",
                    found.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if shut.is_empty() {
        return Claim::holds();
    }
    Claim::fails("ReadinessGatesNotReady", shut.join(", "))
}
