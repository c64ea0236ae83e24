//! The reasons and sentences that people and programs find in events.
//!
//! Those that kubelet has are kubelet's, to the letter: dashboards and scripts
//! look for them. Sources: `pkg/kubelet/events/event.go`,
//! `pkg/kubelet/images/image_manager.go`, `pkg/kubelet/kuberuntime/`.

use std::{fmt::Write as _, time::Duration};

use krustlet_image::PullReport;
use krustlet_model::{PodKey, PodUid, observed::ContainerKind, probes::ProbeKind};

pub(crate) const BACK_OFF: &str = "BackOff";
pub(crate) const CREATED: &str = "Created";
pub(crate) const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
pub(crate) const EVICTED: &str = "Evicted";
pub(crate) const FAILED: &str = "Failed";
pub(crate) const FAILED_KILL_POD: &str = "FailedKillPod";
pub(crate) const FAILED_MOUNT: &str = "FailedMount";
pub(crate) const FAILED_SANDBOX: &str = "FailedCreatePodSandBox";
/// Source: kubelet, `NetworkNotReady` in `pkg/kubelet/events/event.go`.
pub(crate) const NETWORK_NOT_READY: &str = "NetworkNotReady";
/// Not kubelet's, which leaves these annotations and policies to network plugins.
pub(crate) const INVALID_NETWORK_ANNOTATION: &str = "InvalidNetworkAnnotation";
/// As that.
pub(crate) const POLICY_TOO_LARGE: &str = "NetworkPolicyTooLarge";
pub(crate) const INSPECT_FAILED: &str = "InspectFailed";
pub(crate) const KILLING: &str = "Killing";
pub(crate) const NEVER_PULL: &str = "ErrImageNeverPull";
pub(crate) const NO_ROOT: &str = "RunAsUserChanged";
pub(crate) const PROBE_WARNING: &str = "ProbeWarning";
pub(crate) const PULLED: &str = "Pulled";
pub(crate) const PULLING: &str = "Pulling";
pub(crate) const PULL_SECRET: &str = "FailedToRetrieveImagePullSecret";
pub(crate) const RESIZE_COMPLETED: &str = "ResizeCompleted";
pub(crate) const RESIZE_DEFERRED: &str = "ResizeDeferred";
pub(crate) const RESIZE_ERROR: &str = "ResizeError";
pub(crate) const RESIZE_STARTED: &str = "ResizeStarted";
pub(crate) const SANDBOX_CHANGED: &str = "SandboxChanged";
pub(crate) const STARTED: &str = "Started";
/// Not kubelet's, which has no such order.
pub(crate) const STOPPED_ON_NODE: &str = "StoppedOnNode";
pub(crate) const UNHEALTHY: &str = "Unhealthy";

pub(crate) const CONTAINER_CREATED: &str = "Container created";
pub(crate) const CONTAINER_STARTED: &str = "Container started";
pub(crate) const CHANGED: &str = "Pod sandbox changed, it will be killed and re-created.";
/// Source: `pkg/kubelet/active_deadline.go`.
pub(crate) const TOO_LONG: &str = "Pod was active on the node longer than the specified deadline";

pub(crate) const ORDERED: &str = "The pod was stopped by hand on its node (krustlet stop)";

/// Waiting reasons of containers.
pub(crate) mod waiting {
    pub(crate) const CRASH_LOOP: &str = "CrashLoopBackOff";
    pub(crate) const CREATE: &str = "CreateContainerError";
    pub(crate) const CREATE_CONFIG: &str = "CreateContainerConfigError";
    pub(crate) const CREATING: &str = "ContainerCreating";
    pub(crate) const INITIALIZING: &str = "PodInitializing";
    pub(crate) const INVALID_NAME: &str = "InvalidImageName";
    pub(crate) const NEVER_PULL: &str = "ErrImageNeverPull";
    pub(crate) const PULL_BACK_OFF: &str = "ImagePullBackOff";
    pub(crate) const RUN: &str = "RunContainerError";
}

pub(crate) fn pulling(image: &str) -> String {
    format!("Pulling image {image:?}")
}

pub(crate) fn pulled(image: &str, pull: Option<PullReport>, bytes: u64) -> String {
    match pull {
        None => format!(
            "Container image {image:?} already present on machine and can be accessed by the pod"
        ),
        Some(PullReport { took, waited, .. }) => format!(
            "Successfully pulled image {image:?} in {} ({} including waiting). \
             Image size: {bytes} bytes.",
            go_millis(took),
            go_millis(took + waited),
        ),
    }
}

pub(crate) fn failed_pull(image: &str, why: &str) -> String {
    format!("Failed to pull image {image:?}: {why}")
}

pub(crate) fn back_off_pulling(image: &str) -> String {
    format!("Back-off pulling image {image:?}")
}

pub(crate) fn never_pull(image: &str) -> String {
    format!("Container image {image:?} is not present with pull policy of Never")
}

pub(crate) fn back_off_restarting(container: &str, pod: &PodKey, uid: &PodUid) -> String {
    format!(
        "Back-off restarting failed container {container} in pod {}_{}({uid})",
        pod.name, pod.namespace,
    )
}

pub(crate) fn stopping(container: &str) -> String {
    format!("Stopping container {container}")
}

pub(crate) fn changed(container: &str) -> String {
    format!("Container {container} definition changed, will be restarted")
}

/// What an event of a resize says, given its reason and what is wanted.
///
/// Source: `podResizeMessage` in `pkg/kubelet/events/resize.go`.
pub(crate) fn resize(reason: &str, summary: &str) -> String {
    let what = match reason {
        RESIZE_STARTED => "started",
        RESIZE_COMPLETED => "completed",
        RESIZE_ERROR => "error",
        _ => "Deferred",
    };
    format!("Pod resize {what}: {summary}")
}

/// Source: `computePodResizeAction` in
/// `pkg/kubelet/kuberuntime/kuberuntime_manager.go`.
pub(crate) fn resize_requires_restart(container: &str) -> String {
    format!("Container {container} resize requires restart")
}

pub(crate) fn no_root(uid: u32) -> String {
    format!(
        "runAsUser 0 is not given, because no sandbox is root; the pod runs as user {uid}, \
         which its programs cannot tell"
    )
}

/// Source: `verifyRunAsNonRoot` in
/// `pkg/kubelet/kuberuntime/security_context_others.go`.
pub(crate) fn breaks_non_root(pod: &PodKey, uid: &PodUid, container: &str) -> String {
    format!(
        "container's runAsUser breaks non-root policy (pod: \"{}_{}({uid})\", container: \
         {container})",
        pod.name, pod.namespace,
    )
}

pub(crate) fn probe_failed(kind: ProbeKind, why: &str) -> String {
    format!("{kind} probe failed: {why}")
}

/// `state` is the kubelet's word for how far it came; it counts for nothing.
pub(crate) fn probe_errored(kind: ProbeKind, state: &str, why: &str) -> String {
    format!("{kind} probe errored and resulted in {state} state: {why}")
}

pub(crate) fn probe_warning(kind: ProbeKind, why: &str) -> String {
    format!("{kind} probe warning: {why}")
}

/// Source: `computePodActions` and `computeInitContainerActions` in
/// `pkg/kubelet/kuberuntime/`.
pub(crate) fn failed_probe(
    container: &str,
    of: ContainerKind,
    probe: ProbeKind,
    restarts: bool,
) -> String {
    let probe = probe.to_string().to_lowercase();
    match (of, restarts) {
        (ContainerKind::Init | ContainerKind::Sidecar, _) => {
            format!("Init container {container} failed {probe} probe")
        }
        (ContainerKind::App, true) => {
            format!("Container {container} failed {probe} probe, will be restarted")
        }
        (ContainerKind::App, false) => format!("Container {container} failed {probe} probe"),
    }
}

pub(crate) fn error(message: &str) -> String {
    format!("Error: {message}")
}

/// A duration as Go prints it, to whole milliseconds: `523ms`, `1.2s`, `2m3.05s`.
pub(crate) fn go_millis(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return if millis == 0 { "0s".to_owned() } else { format!("{millis}ms") };
    }
    let (seconds, fraction) = (millis / 1000, millis % 1000);
    let mut text = String::new();
    // Writing to a String cannot fail.
    if seconds >= 3600 {
        let _ = write!(text, "{}h", seconds / 3600);
    }
    if seconds >= 60 {
        let _ = write!(text, "{}m", seconds / 60 % 60);
    }
    let _ = write!(text, "{}", seconds % 60);
    if fraction > 0 {
        let digits = format!("{fraction:03}");
        let _ = write!(text, ".{}", digits.trim_end_matches('0'));
    }
    text.push('s');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        let table = [
            (0, "0s"),
            (523, "523ms"),
            (1000, "1s"),
            (1200, "1.2s"),
            (1234, "1.234s"),
            (123_050, "2m3.05s"),
            (3_600_000, "1h0m0s"),
        ];
        for (millis, expected) in table {
            assert_eq!(go_millis(Duration::from_millis(millis)), expected);
        }
    }

    #[test]
    fn a_pull_says_how_long_it_took() {
        let pull = PullReport {
            took: Duration::from_millis(1200),
            waited: Duration::from_millis(100),
            bytes: 7,
        };
        assert_eq!(
            pulled("web:1", Some(pull), 42),
            "Successfully pulled image \"web:1\" in 1.2s (1.3s including waiting). Image size: 42 bytes.",
        );
        assert_eq!(
            back_off_restarting("main", &PodKey::new("default", "web"), &PodUid::new("7")),
            "Back-off restarting failed container main in pod web_default(7)",
        );
    }
}
