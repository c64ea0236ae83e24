//! Whether and when an ended container runs again.
//!
//! The pod's task asks [`after_exit`] whether, and its [`Backoff`] when. That
//! task keeps the clock; nothing here looks at it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};

use crate::{PodKey, PodUid, observed::ContainerKind};

/// `restartPolicy` of a pod or of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Runs again whatever its exit code.
    Always,
    /// Runs again unless its exit code was 0.
    OnFailure,
    /// Never runs again.
    Never,
}

impl RestartPolicy {
    /// Reads the API's word. The API server defaults it to `Always`; so does
    /// this, for pods that come from a file.
    #[must_use]
    pub fn parse(word: Option<&str>) -> Self {
        match word {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            Some(_) | None => Self::Always,
        }
    }

    /// The pod's own policy.
    #[must_use]
    pub fn of_pod(pod: &Pod) -> Self {
        Self::parse(pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()))
    }

    /// The policy that holds for one container: its own if it has one, else
    /// the pod's.
    ///
    /// Source: `ContainerShouldRestart` in `pkg/api/v1/pod/util.go`.
    #[must_use]
    pub fn of_container(pod: &Pod, container: &Container) -> Self {
        match &container.restart_policy {
            Some(own) => Self::parse(Some(own)),
            None => Self::of_pod(pod),
        }
    }
}

/// Which list of the spec a container comes from, and what that makes of it.
///
/// `is_init` says that the container stands in `spec.initContainers`.
#[must_use]
pub fn kind(container: &Container, is_init: bool) -> ContainerKind {
    match (is_init, container.restart_policy.as_deref()) {
        (true, Some("Always")) => ContainerKind::Sidecar,
        (true, _) => ContainerKind::Init,
        (false, _) => ContainerKind::App,
    }
}

/// All containers of a pod with their kinds: init containers and sidecars in
/// the order of the spec, then the others.
pub fn containers(pod: &Pod) -> impl Iterator<Item = (ContainerKind, &Container)> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let app = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    init.iter()
        .map(|container| (kind(container, true), container))
        .chain(app.iter().map(|container| (kind(container, false), container)))
}

/// Whether a container that ended with this exit code runs again while its
/// pod lives.
///
/// A sidecar always does. An init container that succeeded has done its work,
/// under `Always` too.
#[must_use]
pub fn after_exit(policy: RestartPolicy, kind: ContainerKind, exit_code: i32) -> bool {
    match (kind, policy) {
        (ContainerKind::Sidecar, _) | (ContainerKind::App, RestartPolicy::Always) => true,
        (ContainerKind::Init, RestartPolicy::Always | RestartPolicy::OnFailure)
        | (ContainerKind::App, RestartPolicy::OnFailure) => exit_code != 0,
        (ContainerKind::Init | ContainerKind::App, RestartPolicy::Never) => false,
    }
}

/// Whether a container of the pod may end and never be run again. Of any other
/// pod nothing is lost if it is forgotten that it ran: it runs anyway.
///
/// Init containers do not count: they may be run again at any time.
#[must_use]
pub fn may_end_for_good(pod: &Pod) -> bool {
    containers(pod).any(|(kind, container)| {
        kind == ContainerKind::App
            && RestartPolicy::of_container(pod, container) != RestartPolicy::Always
    })
}

/// The waits between a container's restarts, or between tries at its image.
///
/// The first restart is immediate; then the waits are ten seconds, doubling up
/// to five minutes, each counted from the container's end. They begin anew
/// when two ends lie more than ten minutes apart.
///
/// Source: kubelet, `doBackOff` in `pkg/kubelet/kuberuntime/kuberuntime_manager.go`,
/// `NewMainKubelet` in `pkg/kubelet/kubelet.go`, and `client-go`'s `flowcontrol.Backoff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// The wait after a failure that no other came shortly before.
    first: Duration,
    /// The shortest wait that is not zero.
    initial: Duration,
    /// The longest wait.
    max: Duration,
    /// The wait that the next failure earns.
    next: Duration,
    last_failure: Option<Timestamp>,
}

impl Backoff {
    /// The shortest wait.
    pub const INITIAL: Duration = Duration::from_secs(10);
    /// The longest wait; `crashLoopBackOff.maxContainerRestartPeriod` may lower it.
    pub const MAX: Duration = Duration::from_mins(5);
    /// Time between two failures after which the waits begin anew.
    pub const RESET: Duration = Duration::from_mins(10);

    /// A container's waits: its first restart does not wait.
    #[must_use]
    pub fn restarts() -> Self {
        Self::starting_with(Duration::ZERO)
    }

    /// An image's waits: after the first failure already there is one.
    #[must_use]
    pub fn pulls() -> Self {
        Self::starting_with(Self::INITIAL)
    }

    fn starting_with(first: Duration) -> Self {
        Self { first, initial: Self::INITIAL, max: Self::MAX, next: first, last_failure: None }
    }

    /// Lowers the longest wait, to one second at the least; a longest wait
    /// below the shortest one lowers that too. To be called before
    /// [`Backoff::next`].
    #[must_use]
    pub fn with_max(mut self, max: Duration) -> Self {
        self.max = max.clamp(Duration::from_secs(1), Self::MAX);
        self.initial = self.initial.min(self.max);
        self.first = self.first.min(self.max);
        self.next = self.first;
        self
    }

    /// Takes note of a failure (of a container: its end) and says how long to
    /// wait from then until the next try.
    pub fn next(&mut self, failed_at: Timestamp) -> Duration {
        if self.last_failure.is_some_and(|last| lies_apart(last, failed_at)) {
            self.next = self.first;
        }
        let wait = self.next;
        self.next =
            if wait.is_zero() { self.initial } else { wait.saturating_mul(2).min(self.max) };
        self.last_failure = Some(failed_at);
        wait
    }
}

fn lies_apart(last: Timestamp, now: Timestamp) -> bool {
    // A clock that was set back counts as no time gone by.
    Duration::try_from(now.duration_since(last)).is_ok_and(|gone| gone > Backoff::RESET)
}

/// The waiting message of `CrashLoopBackOff`.
///
/// Source: kubelet, `doBackOff` in `pkg/kubelet/kuberuntime/kuberuntime_manager.go`.
#[must_use]
pub fn crash_loop_message(wait: Duration, container: &str, pod: &PodKey, uid: &PodUid) -> String {
    format!(
        "back-off {} restarting failed container={container} pod={}_{}({uid})",
        go_duration(wait),
        pod.name,
        pod.namespace,
    )
}

/// A duration as Go prints it, to whole seconds: `40s`, `2m40s`, `5m0s`.
#[must_use]
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn waits_double_from_zero_to_five_minutes() {
        let mut backoff = Backoff::restarts();
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wait = backoff.next(now);
            waits.push(wait.as_secs());
            now += SignedDuration::try_from(wait).unwrap() + SignedDuration::from_secs(1);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_failed_pull_waits_at_once() {
        let mut backoff = Backoff::pulls();
        assert_eq!(backoff.next(at(0)).as_secs(), 10);
        assert_eq!(backoff.next(at(11)).as_secs(), 20);
    }

    #[test]
    fn ten_quiet_minutes_forgive() {
        let mut backoff = Backoff::restarts();
        for _ in 0..5 {
            backoff.next(at(0));
        }
        assert_eq!(backoff.next(at(600)).as_secs(), 160, "ten minutes are not more than ten");
        assert_eq!(backoff.next(at(1201)).as_secs(), 0);
        assert_eq!(backoff.next(at(1202)).as_secs(), 10);
    }

    #[test]
    fn a_short_maximum_shortens_the_first_wait_too() {
        let mut backoff = Backoff::restarts().with_max(Duration::from_secs(3));
        let waits: Vec<_> = (0..3).map(|n| backoff.next(at(n)).as_secs()).collect();
        assert_eq!(waits, [0, 3, 3]);
    }

    #[test]
    fn who_restarts() {
        use ContainerKind::{App, Init, Sidecar};
        use RestartPolicy::{Always, Never, OnFailure};
        let table = [
            (Always, App, [true, true]),
            (OnFailure, App, [false, true]),
            (Never, App, [false, false]),
            (Always, Init, [false, true]),
            (OnFailure, Init, [false, true]),
            (Never, Init, [false, false]),
            (Always, Sidecar, [true, true]),
            (OnFailure, Sidecar, [true, true]),
            (Never, Sidecar, [true, true]),
        ];
        for (policy, kind, [success, failure]) in table {
            assert_eq!(after_exit(policy, kind, 0), success, "{policy:?} {kind:?} exit 0");
            assert_eq!(after_exit(policy, kind, 1), failure, "{policy:?} {kind:?} exit 1");
            assert_eq!(after_exit(policy, kind, 137), failure, "{policy:?} {kind:?} exit 137");
        }
    }

    #[test]
    fn the_message_is_kubelets() {
        let key = PodKey::new("default", "web-0");
        let uid = PodUid::new("f7a5");
        assert_eq!(
            crash_loop_message(Duration::from_secs(40), "main", &key, &uid),
            "back-off 40s restarting failed container=main pod=web-0_default(f7a5)",
        );
        assert_eq!(go_duration(Duration::from_secs(160)), "2m40s");
        assert_eq!(go_duration(Duration::from_mins(5)), "5m0s");
        assert_eq!(go_duration(Duration::from_hours(1)), "1h0m0s");
    }

    proptest! {
        #[test]
        fn a_wait_is_never_beyond_the_maximum(gaps in prop::collection::vec(-1000_i64..1000, 0..40)) {
            let mut backoff = Backoff::restarts();
            let mut now = 0;
            for gap in gaps {
                now += gap;
                prop_assert!(backoff.next(at(now)) <= Backoff::MAX);
            }
        }
    }
}
