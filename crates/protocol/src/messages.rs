//! The verbs.

use krustlet_model::{ContainerId, PodUid};
use serde::{Deserialize, Serialize};

use crate::Limits;

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame<T> {
    /// Numbers a request; its reply bears the same. 0 for what nobody asked.
    pub id: u64,
    /// What the descriptors that ride along are, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub descriptors: Vec<DescriptorName>,
    /// The message itself.
    pub body: T,
}

/// What a descriptor in a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DescriptorName {
    /// A bound, not yet listening control socket. Who calls `listen` is the
    /// peer that `SO_PEERPIDFD` names.
    Control,
    /// A file for one line of JSON per ended container, opened `O_APPEND`.
    Status,
    /// A memfd with the JSON of a [`ContainerSpec`](crate::ContainerSpec).
    Spec,
    /// A detached, read-only mount of the directory with the compiled code.
    ArtifactDirectory,
    /// The log that stdout and stderr go to, opened `O_APPEND`.
    Log,
    /// The log to go on with when the first is full, opened `O_APPEND`.
    NextLog,
    /// A detached mount of a directory for the guest.
    Preopen,
    /// A bound TCP socket; whether it listens makes no difference. Of a
    /// [`SandboxReply::Listeners`] one of the pod's.
    Listener,
    /// A bound UDP socket.
    Datagrams,
    /// The standard streams of an [`SandboxRequest::Exec`]; of a
    /// [`SandboxRequest::Connect`] what is sent to the pod, and what it sends.
    Stdin,
    /// See [`DescriptorName::Stdin`].
    Stdout,
    /// See [`DescriptorName::Stdin`].
    Stderr,
    /// A process, from the zygote.
    PidFd,
    /// A memfd with the JSON of a [`PodNetwork`](crate::PodNetwork).
    Network,
    /// A detached, read-only mount of the directory of [`services`](crate::services).
    Services,
}

/// Agent to zygote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum ZygoteRequest {
    /// Forks a sandbox. Descriptors: `Control`, `Status`.
    RunSandbox {
        /// Names the process in the journal and in `List`.
        id: String,
        /// The process's user, never 0.
        uid: u32,
        /// The process's group, never 0.
        gid: u32,
        /// Supplementary groups.
        groups: Vec<u32>,
    },
    /// Asks what lives.
    List,
    /// Fork no more, reap what is left, then end.
    Retire,
}

/// Zygote to agent, in answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum ZygoteReply {
    /// The sandbox lives. Descriptor: `PidFd`.
    Forked {
        /// Its process id.
        pid: i32,
    },
    /// What `List` found: ids and process ids.
    Sandboxes {
        /// One for each living sandbox.
        running: Vec<(String, i32)>,
    },
    /// `Retire` is under way.
    Retiring,
    /// It was not done.
    Failed(Failure),
}

/// Zygote to agent: an answer, or news.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZygoteMessage {
    /// The zygote is ready to fork. Said once to the agent that started it.
    Warm {
        /// [`VERSION`](crate::VERSION) of the zygote.
        version: u32,
    },
    /// An answer.
    Reply(ZygoteReply),
    /// A sandbox was reaped. Also appended to the journal as one JSON line.
    Exited {
        /// The id it was started with.
        id: String,
        /// Its process id.
        pid: i32,
        /// As `wait4` gave it.
        wait_status: i32,
    },
}

/// Agent to sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum SandboxRequest {
    /// Says who is there.
    Hello {
        /// [`VERSION`](crate::VERSION) of the agent.
        version: u32,
    },
    /// Says what a pod's sockets may do, before its first container is created
    /// and whenever it changes. Descriptors: `Network`, then `Services` if
    /// the pod is led to Services here. A sandbox forgets it with `StopPod`.
    SetPodNetwork {
        /// Which pod.
        pod: PodUid,
    },
    /// Loads the code and links it. Descriptors: `Spec`, `ArtifactDirectory`,
    /// `Log`, `NextLog`, then a `Preopen` for each of the spec's preopens and
    /// a `Listener` for each of its listeners and a `Datagrams` for each of its
    /// datagram ports.
    CreateContainer,
    /// Enters the guest.
    StartContainer {
        /// Which container.
        id: ContainerId,
    },
    /// Changes what a container may use, its instances and execs included. Memory
    /// that it has already is not taken from it: less is refused.
    UpdateContainer {
        /// Which container.
        id: ContainerId,
        /// What it may use from now on.
        limits: Limits,
    },
    /// Tells the guest to stop, and traps it when the grace period is over.
    /// A second request may shorten the period, not lengthen it.
    StopContainer {
        /// Which container.
        id: ContainerId,
        /// The grace period in milliseconds.
        grace_ms: u64,
    },
    /// Forgets an ended container and lets its descriptors go.
    RemoveContainer {
        /// Which container.
        id: ContainerId,
    },
    /// Asks for every container.
    ListContainers,
    /// Asks what the containers use.
    Stats,
    /// Runs the container's program once more, beside it. Descriptors:
    /// `Stdin`, `Stdout`, `Stderr`. The reply comes when it has ended.
    Exec {
        /// Which container's program, files and environment.
        id: ContainerId,
        /// Arguments, the program's name first.
        args: Vec<String>,
    },
    /// Connects to a port of the pod's own loopback: at `127.0.0.1`, and at `::1`
    /// where nobody listens there. No policy is asked. Descriptors: `Stdin`, what
    /// is sent to the pod, and `Stdout`, what it sends; best two pipes. The reply
    /// comes when it is connected. The connection ends when both have ended, or
    /// nobody reads `Stdout` any more.
    Connect {
        /// Which pod.
        pod: PodUid,
        /// The port.
        port: u16,
    },
    /// Asks for what a pod listens on: the agent attaches to it what a sandbox may
    /// not. It keeps none of it.
    Listeners {
        /// Which pod.
        pod: PodUid,
    },
    /// Hands over the log to go on with after the next one. Descriptor: `NextLog`.
    NextLog {
        /// Which container.
        id: ContainerId,
    },
    /// Stops and forgets all containers of a pod; no grace period.
    StopPod {
        /// Which pod.
        pod: PodUid,
    },
    /// Ends the process, whatever runs in it.
    Shutdown,
}

/// Sandbox to agent: an answer, or news.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxMessage {
    /// An answer.
    Reply(SandboxReply),
    /// News, sent to every connected agent.
    Event(SandboxEvent),
}

/// Sandbox to agent, in answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum SandboxReply {
    /// Done.
    Done,
    /// Who is here.
    Hello {
        /// [`VERSION`](crate::VERSION) of the sandbox.
        version: u32,
        /// Its process id.
        pid: u32,
    },
    /// Every container.
    Containers {
        /// In the order of their creation.
        containers: Vec<ContainerReport>,
    },
    /// What each container uses.
    Stats {
        /// In the order of their creation.
        containers: Vec<StatsReport>,
    },
    /// The program run by `Exec` has ended.
    Exec(ExecOutcome),
    /// What a pod listens on by TCP, and what was handed over for it that it may
    /// listen on; of more than [`MAX_LISTENERS`](crate::MAX_LISTENERS) first those
    /// that it listens on, and of these first those that are there longest.
    /// Descriptors: a `Listener` for each port.
    Listeners {
        /// The pod's port that each is for, which is not always the one that it is
        /// bound to.
        ports: Vec<u16>,
    },
    /// It was not done.
    Failed(Failure),
}

/// How an exec ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOutcome {
    /// Its exit code.
    pub exit_code: i32,
    /// Why it could not run or was ended, if so.
    pub message: String,
}

/// One container of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// Which run.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodUid,
    /// What it does.
    pub state: RunState,
}

/// What a container does. Times are microseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Loaded, not entered.
    Created,
    /// The guest has entered its first function (an http guest: listens).
    Running {
        /// When.
        started_at: i64,
    },
    /// Ended.
    Exited(ExitReport),
}

/// How a container ended. Times are microseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// 0 to 255.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled` or `StartError`.
    pub reason: String,
    /// A trap with its backtrace, or why it could not start; at most 4 KiB.
    pub message: String,
    /// When the guest was entered, if it was.
    pub started_at: Option<i64>,
    /// When it ended.
    pub finished_at: i64,
}

/// What a container uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsReport {
    /// Which run.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodUid,
    /// Bytes of linear memory and tables now.
    pub memory_bytes: u64,
    /// CPU time of its guest, in nanoseconds.
    pub cpu_ns: u64,
    /// Bytes of output that were thrown away because no log could take them.
    pub log_dropped_bytes: u64,
    /// What the sockets of its pod did; the same for each container of a pod.
    #[serde(default)]
    pub network: NetworkReport,
}

/// What the sockets of a pod did. What stays within the pod, on its loopback,
/// counts as a socket only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkReport {
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// TCP connections made.
    pub opened: u64,
    /// TCP connections accepted.
    pub accepted: u64,
    /// Binds, connections, datagrams and sockets that a rule or a bound of the
    /// pod refused.
    pub refused: u64,
    /// What of it refused them. Sandboxes of version 2 do not say it.
    pub refusals: Refusals,
    /// Sockets open now.
    pub sockets: u32,
}

impl NetworkReport {
    /// How many were refused by what the sandbox does not say.
    #[must_use]
    pub fn refused_by_unknown(&self) -> u64 {
        self.refused.saturating_sub(self.refusals.all())
    }
}

/// What a pod was refused, by what refused it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refusals {
    /// No pod may go there.
    pub destination: u64,
    /// The cluster's policies, either direction.
    pub policy: u64,
    /// The pod's own list, of a destination or a name.
    pub list: u64,
    /// It had as many sockets as it may.
    pub bound: u64,
}

impl Refusals {
    /// All of them.
    #[must_use]
    pub fn all(self) -> u64 {
        let Self { destination, policy, list, bound } = self;
        destination.saturating_add(policy).saturating_add(list).saturating_add(bound)
    }
}

/// News of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum SandboxEvent {
    /// The guest has entered its first function (an http guest: listens).
    Running {
        /// Which run.
        id: ContainerId,
        /// When, in microseconds since the Unix epoch.
        at: i64,
    },
    /// The container has ended. Also appended to the status file as one line
    /// of JSON: `[id, ExitReport]`.
    Exited {
        /// Which run.
        id: ContainerId,
        /// How.
        exit: ExitReport,
    },
    /// The log was full and the next one is in use: rename, and hand over
    /// another with [`SandboxRequest::NextLog`].
    LogRotated {
        /// Which run.
        id: ContainerId,
    },
    /// Something of the node's is not as it should be. Said at most once a minute.
    Complained {
        /// What, for people.
        what: String,
    },
    /// A pod that policies bound listens anew. Not said again before somebody has
    /// asked with [`SandboxRequest::Listeners`].
    Listening {
        /// Which pod.
        pod: PodUid,
    },
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "failure", rename_all = "kebab-case")]
pub enum Failure {
    /// A verb of a newer version.
    #[error("the other side does not know this verb")]
    UnknownVerb,
    /// Descriptors or fields that do not fit the verb.
    #[error("malformed request: {why}")]
    Malformed {
        /// What did not fit.
        why: String,
    },
    /// No such container.
    #[error("no container {id}")]
    NotFound {
        /// Which was asked for.
        id: String,
    },
    /// The guest wants what this node does not offer.
    #[error("{message}")]
    Unlinkable {
        /// Lists every import that is missing.
        message: String,
    },
    /// Anything the system refused.
    #[error("{message}")]
    Failed {
        /// The error and its causes.
        message: String,
    },
}

#[cfg(test)]
mod tests;
