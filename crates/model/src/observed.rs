//! What a node has seen of a pod, before it is put into the API's words.
//!
//! The pod's task owns one [`PodObserved`] and replaces parts of it as it
//! learns; `status` turns the newest one into a `PodStatus`.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ContainerId, ContainerName, resize::ContainerResources};

/// Everything known of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodObserved {
    /// When the node first saw the pod; `status.startTime`. Never changes.
    pub started_at: Timestamp,
    /// Set once for ever if the node refused the pod or gave it up.
    pub failure: Option<PodFailure>,
    /// Whether a sandbox process holds the pod and its addresses are known.
    pub sandbox_ready: bool,
    /// Whether one ever did. Never falls.
    #[serde(default)]
    pub had_sandbox: bool,
    /// The pod's addresses, the node's own family first. Empty until known.
    pub pod_ips: Vec<IpAddr>,
    /// The node's addresses. Empty until known.
    pub host_ips: Vec<IpAddr>,
    /// Init containers first, then the others, each in the order of the spec.
    pub containers: Vec<ContainerObserved>,
    /// Whether the pod is being stopped, so that nothing may start any more.
    pub terminating: bool,
    /// What keeps other resources that are wanted for it from being its own.
    #[serde(default)]
    pub resize: ResizeObserved,
}

/// What keeps a pod from being resized. See [`resize`](crate::resize).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeObserved {
    /// Why what is wanted was not allotted.
    pub pending: Option<ResizePending>,
    /// Why a sandbox did not take what was.
    pub error: Option<String>,
}

/// Why what is wanted for a pod is not allotted to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizePending {
    /// `Deferred`: there may be room later. Kubelet has `Infeasible` besides,
    /// for what this node has not: swap, exclusive CPUs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// Why a whole pod failed without its containers deciding it.
///
/// Becomes `status.reason` and `status.message` with phase `Failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFailure {
    /// One CamelCase word, such as `OutOfcpu` or `DeadlineExceeded`.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// Which list of the spec a container comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerKind {
    /// `spec.initContainers`, runs to its end before the next.
    Init,
    /// `spec.initContainers` with `restartPolicy: Always`.
    Sidecar,
    /// `spec.containers`.
    App,
}

/// Everything known of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerObserved {
    /// Its name in the spec.
    pub name: ContainerName,
    /// Which list of the spec it comes from.
    pub kind: ContainerKind,
    /// The image as the spec asks for it.
    pub image: String,
    /// The image as it was found, `repository@sha256:…`. Empty until known.
    pub image_id: String,
    /// The newest run. None until the first is created.
    pub id: Option<ContainerId>,
    /// Runs begun after the first one. Never falls.
    pub restart_count: u32,
    /// What it does now.
    pub state: ContainerState,
    /// How the run before the newest ended; `lastState.terminated`.
    pub last: Option<Terminated>,
    /// How the run before that one ended. Shown as `lastState` once a container
    /// that waits will not run again, for then its last end is its state.
    #[serde(default)]
    pub before_last: Option<Terminated>,
    /// Whether it is past its startup probe (without one: whether it runs).
    pub started: bool,
    /// Whether it passes its readiness probe (without one: whether it runs).
    pub ready: bool,
    /// What the newest run may use. None before the first run, and if an older
    /// agent, which could not change it, wrote this.
    #[serde(default)]
    pub resources: Option<ContainerResources>,
}

/// What a container does now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// It does not run and its end has not been decided.
    Waiting {
        /// One CamelCase word, such as `ContainerCreating`.
        reason: String,
        /// A sentence for people; may be empty.
        message: String,
    },
    /// Its guest has entered its first function.
    Running {
        /// When that was.
        started_at: Timestamp,
    },
    /// It has ended.
    Terminated(Terminated),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminated {
    /// 0 to 255; see the table in `docs/exit-codes.md`.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub reason: String,
    /// The termination message or the trap with its backtrace; may be empty.
    pub message: String,
    /// When its guest was entered. None if it never was.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Which run it was.
    pub id: Option<ContainerId>,
}
