//! The statuses of a pod's containers.

use std::cmp;

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, Pod, PodStatus, VolumeMountStatus,
};

use super::{limits, phase};
use crate::{
    observed::{ContainerKind, ContainerObserved, ContainerState, PodObserved, Terminated},
    resize::ContainerResources,
    restarts,
    time::api_time,
};

/// The reason of a container whose end nobody saw.
const UNKNOWN: &str = "ContainerStatusUnknown";

/// The two lists of a pod's status.
#[derive(Debug, Default)]
pub(super) struct Statuses {
    /// `initContainerStatuses`, in the order of the spec.
    pub init: Vec<ContainerStatus>,
    /// `containerStatuses`, by name, as kubelet sorts them.
    pub app: Vec<ContainerStatus>,
}

impl Statuses {
    pub(super) fn find(&self, name: &str) -> Option<&ContainerStatus> {
        self.init.iter().chain(&self.app).find(|status| status.name == name)
    }
}

/// Builds a status for each container of the spec, seen or not.
///
/// Source: kubelet, `convertToAPIContainerStatuses` in
/// `pkg/kubelet/kubelet_pods.go`, `UpdatePodStatus` in
/// `pkg/kubelet/prober/prober_manager.go`.
pub(super) fn statuses(pod: &Pod, seen: &PodObserved, old: &PodStatus) -> Statuses {
    let count = restarts::containers(pod).count();
    let has_init = restarts::containers(pod).any(|(kind, _)| kind != ContainerKind::App);
    let surroundings = Surroundings {
        seen,
        share: limits::share(count),
        default_reason: if has_init { "PodInitializing" } else { "ContainerCreating" },
        last_begun_init: last_begun_init(seen),
        app_may_have_run: !has_init || phase::has_started(seen) || init_done(pod, seen),
    };

    let mut statuses = Statuses::default();
    for (index, (kind, container)) in restarts::containers(pod).enumerate() {
        let previous = old
            .init_container_statuses
            .iter()
            .chain(&old.container_statuses)
            .flatten()
            .find(|status| status.name == container.name);
        let status = surroundings.status(index, kind, container, previous);
        match kind {
            ContainerKind::Init | ContainerKind::Sidecar => statuses.init.push(status),
            ContainerKind::App => statuses.app.push(status),
        }
    }
    statuses.app.sort_by(|a, b| a.name.cmp(&b.name));
    statuses
}

/// The last init container or sidecar that has run; 0 when none has, for the
/// first is always taken to have been tried.
fn last_begun_init(seen: &PodObserved) -> usize {
    seen.containers
        .iter()
        .take_while(|container| container.kind != ContainerKind::App)
        .enumerate()
        .filter(|(_, container)| {
            container.last.is_some() || !matches!(container.state, ContainerState::Waiting { .. })
        })
        .map(|(index, _)| index)
        .last()
        .unwrap_or(0)
}

/// Whether every init container succeeded and every sidecar started, so that
/// app containers may have been tried.
fn init_done(pod: &Pod, seen: &PodObserved) -> bool {
    restarts::containers(pod).filter(|(kind, _)| *kind != ContainerKind::App).all(
        |(kind, container)| {
            let found = seen.containers.iter().find(|seen| seen.name.as_str() == container.name);
            found.is_some_and(|seen| match kind {
                ContainerKind::Init => phase::last_exit(seen) == Some(0),
                ContainerKind::Sidecar | ContainerKind::App => seen.started,
            })
        },
    )
}

/// What one container's status depends on besides the container.
struct Surroundings<'a> {
    seen: &'a PodObserved,
    /// Bytes for one termination message.
    share: usize,
    /// The waiting reason of a container that nothing is known of.
    default_reason: &'static str,
    last_begun_init: usize,
    app_may_have_run: bool,
}

impl Surroundings<'_> {
    fn status(
        &self,
        index: usize,
        kind: ContainerKind,
        container: &Container,
        old: Option<&ContainerStatus>,
    ) -> ContainerStatus {
        let seen = self.seen.containers.iter().find(|seen| seen.name.as_str() == container.name);
        let (state, last) = self.states(index, kind, seen, old);

        let running = state.running.is_some();
        let started =
            running && (kind == ContainerKind::Init || seen.is_some_and(|seen| seen.started));
        let ready = match kind {
            ContainerKind::Init => state.terminated.as_ref().is_some_and(|end| end.exit_code == 0),
            ContainerKind::Sidecar | ContainerKind::App => {
                started && seen.is_some_and(|seen| seen.ready)
            }
        };
        let restarts = seen.map_or(0, |seen| i32::try_from(seen.restart_count).unwrap_or(i32::MAX));
        let created = seen.is_some_and(|seen| seen.id.is_some());
        let allotted = container.resources.clone().unwrap_or_default();
        // What runs may still have others than it is allotted.
        let actual = seen.filter(|_| running).and_then(|seen| seen.resources.as_ref());
        let resources =
            actual.map_or_else(|| allotted.clone(), ContainerResources::to_requirements);

        ContainerStatus {
            name: container.name.clone(),
            image: match seen {
                Some(seen) if !seen.image.is_empty() => seen.image.clone(),
                Some(_) | None => container.image.clone().unwrap_or_default(),
            },
            image_id: seen.map(|seen| seen.image_id.clone()).unwrap_or_default(),
            container_id: seen.and_then(|seen| seen.id.as_ref()).map(ToString::to_string),
            restart_count: cmp::max(restarts, old.map_or(0, |old| old.restart_count)),
            ready,
            started: Some(started),
            state: Some(state),
            last_state: Some(last),
            allocated_resources: if created { allotted.requests } else { None },
            resources: created.then_some(resources),
            volume_mounts: volume_mounts(container),
            // Not known to this crate or not offered by this version.
            allocated_resources_status: None,
            stop_signal: None,
            user: None,
        }
    }

    /// `state` and `lastState`.
    fn states(
        &self,
        index: usize,
        kind: ContainerKind,
        seen: Option<&ContainerObserved>,
        old: Option<&ContainerStatus>,
    ) -> (ApiState, ApiState) {
        let last = seen.and_then(|seen| seen.last.as_ref()).map_or_else(
            || old.and_then(|old| old.last_state.clone()).unwrap_or_default(),
            |end| self.terminated(end),
        );
        let Some(seen) = seen else {
            return (self.never_run(index, kind, "", ""), last);
        };
        match &seen.state {
            ContainerState::Running { started_at } => (
                ApiState {
                    running: Some(ContainerStateRunning {
                        started_at: Some(api_time(*started_at)),
                    }),
                    ..ApiState::default()
                },
                last,
            ),
            ContainerState::Terminated(end) => (self.terminated(end), last),
            ContainerState::Waiting { reason, message } => match &seen.last {
                // It will not run again, so that its last end is its end.
                Some(end) if self.seen.terminating || self.seen.failure.is_some() => {
                    let before = seen.before_last.as_ref().map(|end| self.terminated(end));
                    (self.terminated(end), before.unwrap_or_default())
                }
                Some(_) => (waiting(reason, message, self.default_reason), last),
                None => (self.never_run(index, kind, reason, message), last),
            },
        }
    }

    /// The state of a container of which no run is known. When the pod is over,
    /// it says so for each container that may have been begun, since nobody
    /// knows that it was not.
    ///
    /// Source: kubelet, `TerminatePod`, `hasPodInitialized` and
    /// `initializedContainers` in `pkg/kubelet/status/status_manager.go`.
    fn never_run(
        &self,
        index: usize,
        kind: ContainerKind,
        reason: &str,
        message: &str,
    ) -> ApiState {
        let may_have_run = match kind {
            ContainerKind::Init | ContainerKind::Sidecar => index <= self.last_begun_init,
            ContainerKind::App => self.app_may_have_run,
        };
        if !phase::is_over(self.seen) || !may_have_run {
            return waiting(reason, message, self.default_reason);
        }
        ApiState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some(UNKNOWN.to_owned()),
                message: Some(
                    "The container could not be located when the pod was terminated".to_owned(),
                ),
                ..ContainerStateTerminated::default()
            }),
            ..ApiState::default()
        }
    }

    fn terminated(&self, end: &Terminated) -> ApiState {
        ApiState {
            terminated: Some(ContainerStateTerminated {
                container_id: end.id.as_ref().map(ToString::to_string),
                exit_code: end.exit_code,
                finished_at: Some(api_time(end.finished_at)),
                message: some_text(limits::truncated(&end.message, self.share)),
                reason: some_text(&end.reason),
                signal: None,
                started_at: end.started_at.map(api_time),
            }),
            ..ApiState::default()
        }
    }
}

fn waiting(reason: &str, message: &str, default_reason: &str) -> ApiState {
    let reason = if reason.is_empty() { default_reason } else { reason };
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: some_text(message),
        }),
        ..ApiState::default()
    }
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// What is mounted where; it does not change in a container's life.
fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts: Vec<_> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| {
            let read_only = mount.read_only.unwrap_or_default();
            VolumeMountStatus {
                name: mount.name.clone(),
                mount_path: mount.mount_path.clone(),
                // The API server leaves a false out.
                read_only: read_only.then_some(true),
                recursive_read_only: read_only.then(|| "Disabled".to_owned()),
                volume_status: None,
            }
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}
