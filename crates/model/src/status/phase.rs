//! The phase of a pod.
//!
//! ```text
//! Pending ◀──▶ Running ──▶ Succeeded
//!    └───────────┴───────▶ Failed
//! ```

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};

use crate::{
    observed::{ContainerKind, ContainerObserved, ContainerState, PodObserved},
    restarts::{self, RestartPolicy, after_exit},
};

/// `status.phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A container has yet to run for the first time.
    Pending,
    /// All have run; at least one runs or will run again.
    Running,
    /// All ended with 0 and none will run again.
    Succeeded,
    /// None will run again and one ended with another code, or the node gave
    /// the pod up.
    Failed,
}

impl Phase {
    /// The API's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// Reads the API's word. `None` for anything else; `Unknown`, which no
    /// component writes any more, is among that.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Pending, Self::Running, Self::Succeeded, Self::Failed]
            .into_iter()
            .find(|phase| phase.as_str() == word)
    }

    /// Whether a pod in this phase stays in it for ever.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Pending | Self::Running => false,
            Self::Succeeded | Self::Failed => true,
        }
    }
}

/// The phase that a status names.
pub(super) fn of(status: &PodStatus) -> Option<Phase> {
    status.phase.as_deref().and_then(Phase::parse)
}

/// Chooses the phase.
///
/// `old` is the phase reported before. A terminal one is never left; a terminal
/// one is only entered when no container runs.
///
/// Source: kubelet, `getPhase` in `pkg/kubelet/kubelet_pods.go` and
/// `TerminatePod` in `pkg/kubelet/status/status_manager.go`.
#[must_use]
pub fn phase(pod: &Pod, seen: &PodObserved, old: Option<Phase>) -> Phase {
    if let Some(old) = old.filter(|old| old.is_terminal()) {
        return old;
    }
    let counts = Counts::of(pod, seen);
    if counts.running > 0 {
        // Whatever else is to be said of the pod has to wait for the last
        // container: a terminal phase promises that nothing runs.
        return match old {
            Some(old) if seen.failure.is_some() => old,
            Some(_) | None => counts.phase_while_alive(),
        };
    }
    if is_over(seen) {
        let succeeded = seen.failure.is_none()
            && counts.stopped > 0
            && counts.stopped == counts.succeeded
            && counts.stopped == counts.apps;
        return if succeeded { Phase::Succeeded } else { Phase::Failed };
    }
    match counts.phase_while_alive() {
        // Given up but not yet taken down.
        phase if phase.is_terminal() && seen.failure.is_some() => old.unwrap_or(Phase::Pending),
        phase => phase,
    }
}

/// The phase from which conditions are made: a pod of which nothing ran becomes
/// `Failed` only after they were made.
///
/// Source: kubelet, `SyncTerminatedPod` in `pkg/kubelet/kubelet.go`: first
/// `generateAPIPodStatus` with what `getPhase` says, then `TerminatePod`, which
/// changes the phase and keeps the conditions.
pub(super) fn before_the_end(pod: &Pod, seen: &PodObserved, phase: Phase) -> Phase {
    let is_ended = phase == Phase::Failed && seen.failure.is_none() && is_over(seen);
    if is_ended && Counts::of(pod, seen).phase_while_alive() == Phase::Pending {
        Phase::Pending
    } else {
        phase
    }
}

/// Whether the node is through with the pod: told to stop it or having given it
/// up, and its sandbox is gone.
pub(super) fn is_over(seen: &PodObserved) -> bool {
    let runs = seen
        .containers
        .iter()
        .any(|container| matches!(container.state, ContainerState::Running { .. }));
    (seen.terminating || seen.failure.is_some()) && !seen.sandbox_ready && !runs
}

/// How a run that is over ended, be the container terminated or waiting to run
/// once more.
pub(super) fn last_exit(container: &ContainerObserved) -> Option<i32> {
    match &container.state {
        ContainerState::Running { .. } => None,
        ContainerState::Terminated(end) => Some(end.exit_code),
        ContainerState::Waiting { .. } => container.last.as_ref().map(|end| end.exit_code),
    }
}

/// Whether an app container runs or has run.
pub(super) fn has_started(seen: &PodObserved) -> bool {
    seen.containers.iter().filter(|container| container.kind == ContainerKind::App).any(
        |container| match container.state {
            ContainerState::Running { .. } | ContainerState::Terminated(_) => true,
            ContainerState::Waiting { .. } => container.last.is_some(),
        },
    )
}

/// What the containers of the spec do, counted.
#[derive(Debug, Default)]
struct Counts {
    /// App containers of the spec.
    apps: usize,
    /// App containers and sidecars that run.
    running: usize,
    /// App containers and sidecars that have never run.
    waiting: usize,
    /// App containers that are not observed at all.
    unknown: usize,
    /// App containers that have ended, be they to run again or not.
    stopped: usize,
    /// Those of them that will not.
    stopped_for_good: usize,
    /// Those that ended with 0 and do not wait to run again.
    succeeded: usize,
    /// Init containers that are still to succeed for the first time.
    init_pending: usize,
    /// Sidecars that have not started.
    sidecar_pending: usize,
    /// Whether an init container failed and will not be tried again.
    init_failed: bool,
    has_started: bool,
}

impl Counts {
    fn of(pod: &Pod, seen: &PodObserved) -> Self {
        let mut counts = Self { has_started: has_started(seen), ..Self::default() };
        for (kind, container) in restarts::containers(pod) {
            let observed = seen.containers.iter().find(|seen| seen.name.as_str() == container.name);
            match kind {
                ContainerKind::Init => counts.add_init(pod, container, observed),
                ContainerKind::Sidecar => counts.add_sidecar(observed),
                ContainerKind::App => counts.add_app(pod, container, observed),
            }
        }
        counts
    }

    fn add_init(&mut self, pod: &Pod, container: &Container, seen: Option<&ContainerObserved>) {
        let Some(seen) = seen else {
            self.init_pending += 1;
            return;
        };
        if matches!(seen.state, ContainerState::Running { .. }) {
            self.init_pending += 1;
            return;
        }
        match last_exit(seen) {
            None => self.init_pending += 1,
            Some(0) => {}
            Some(code) => {
                let policy = RestartPolicy::of_container(pod, container);
                if after_exit(policy, ContainerKind::Init, code) {
                    self.init_pending += 1;
                } else {
                    self.init_failed = true;
                }
            }
        }
    }

    fn add_sidecar(&mut self, seen: Option<&ContainerObserved>) {
        match seen.map(|seen| (&seen.state, seen)) {
            None => self.unknown += 1,
            Some((ContainerState::Running { .. }, seen)) => {
                self.running += 1;
                self.sidecar_pending += usize::from(!seen.started);
            }
            Some((ContainerState::Waiting { .. }, seen)) if seen.last.is_none() => {
                self.waiting += 1;
                self.sidecar_pending += 1;
            }
            // Ended sidecars do not count: they neither hold up success nor
            // make a failure.
            Some((ContainerState::Waiting { .. } | ContainerState::Terminated(_), _)) => {}
        }
    }

    fn add_app(&mut self, pod: &Pod, container: &Container, seen: Option<&ContainerObserved>) {
        self.apps += 1;
        let Some(seen) = seen else {
            self.unknown += 1;
            return;
        };
        if matches!(seen.state, ContainerState::Running { .. }) {
            self.running += 1;
            return;
        }
        let Some(code) = last_exit(seen) else {
            self.waiting += 1;
            return;
        };
        self.stopped += 1;
        let policy = RestartPolicy::of_container(pod, container);
        if !after_exit(policy, ContainerKind::App, code) {
            self.stopped_for_good += 1;
        }
        if code == 0 {
            self.succeeded += 1;
        }
    }

    /// The phase of a pod that nobody stops.
    fn phase_while_alive(&self) -> Phase {
        if self.init_failed && self.running == 0 {
            return Phase::Failed;
        }
        // A sidecar that restarts does not take a pod back that has begun.
        let initialising = self.init_failed
            || self.init_pending > 0
            || (self.sidecar_pending > 0 && !self.has_started);
        if initialising || self.waiting > 0 || self.unknown > 0 {
            Phase::Pending
        } else if self.running > 0 || self.stopped > self.stopped_for_good {
            Phase::Running
        } else if self.stopped == 0 {
            Phase::Pending
        } else if self.stopped == self.succeeded {
            Phase::Succeeded
        } else {
            Phase::Failed
        }
    }
}
