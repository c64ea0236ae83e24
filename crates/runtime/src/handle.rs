//! What the rest of the agent asks the runtime.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use krustlet_model::{ContainerId, PodUid};
use krustlet_protocol::{ExecOutcome, Limits, PodNetwork};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Adopted, ExecStreams, Handover, Launch, OpenError, PodEvents, RuntimeError, RuntimeTask,
    VisitStreams,
    mounts::{self, Use},
    record::{State, is_file_name},
    sandbox::Common,
    stats::Stats,
    work::blocking,
    zygote::Nursery,
};

/// Requests that may queue up before a caller waits: the pods of one full node,
/// each starting at once (kubelet's default `maxPods` is 110).
const QUEUE: usize = 128;

/// How the runtime is set up.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// The state directory, private to the agent. Keep its path below 80 bytes:
    /// sockets are in it.
    pub state: PathBuf,
    /// What to run as zygote, such as `/proc/self/exe zygote`.
    pub zygote: Vec<OsString>,
    /// How directories are handed to sandboxes.
    pub handover: Handover,
    /// Log files of a container, the current one included; at least 2.
    pub log_files: usize,
    /// A file that is the network namespace of pods with addresses of their
    /// own; none if there are no such pods.
    pub pod_namespace: Option<PathBuf>,
    /// The directory of Services that pods are led to, which exists; none if
    /// they are not led by their sandboxes.
    pub services: Option<PathBuf>,
}

impl RuntimeConfig {
    /// The usual: detached mounts, five log files for each container (kubelet's
    /// `containerLogMaxFiles`), all pods in the node's network, and nobody led to
    /// Services.
    #[must_use]
    pub fn new(state: PathBuf, zygote: Vec<OsString>) -> Self {
        Self {
            state,
            zygote,
            handover: Handover::Detached,
            log_files: 5,
            pod_namespace: None,
            services: None,
        }
    }
}

/// Who shares a process. Among those who name the same domain, pods with the
/// same user do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Domain {
    /// Nobody: the pod has a process of its own.
    Pod,
    /// The pods of this namespace.
    Namespace(String),
    /// All pods of the node.
    Node,
}

/// The network namespace that a sandbox is born in. Pods of different ones
/// never share a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkKind {
    /// The node's own.
    #[default]
    Node,
    /// That of [`RuntimeConfig::pod_namespace`].
    Pods,
}

/// The user that a sandbox's process is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodUser {
    /// Its user id, never 0.
    pub uid: u32,
    /// Its group id, never 0.
    pub gid: u32,
    /// Its supplementary groups, none of them 0.
    pub groups: Vec<u32>,
}

/// A sandbox to be made for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSandbox {
    /// For which pod.
    pub pod: PodUid,
    /// Whom it may share the process with.
    pub domain: Domain,
    /// The process's user. The caller allocates; in a shared domain, pods with
    /// different users get different processes.
    pub user: PodUser,
    /// Where it is born.
    pub kind: NetworkKind,
    /// What the pod's sockets may do.
    pub network: PodNetwork,
}

/// Asks for sandboxes and containers. Cheap to clone.
///
/// What was asked for is carried out even if the future is dropped.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) healthy: watch::Receiver<bool>,
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, RuntimeError>>;

/// What a handle may ask of the task.
#[derive(Debug)]
pub(crate) enum Command {
    Run {
        sandbox: Box<PodSandbox>,
        reply: Reply<PodEvents>,
    },
    Create {
        launch: Box<Launch>,
        reply: Reply<()>,
    },
    Start {
        pod: PodUid,
        id: ContainerId,
        reply: Reply<()>,
    },
    Update {
        pod: PodUid,
        id: ContainerId,
        limits: Limits,
        reply: Reply<()>,
    },
    Stop {
        pod: PodUid,
        id: ContainerId,
        grace: Duration,
        reply: Reply<()>,
    },
    Remove {
        pod: PodUid,
        id: ContainerId,
        reply: Reply<()>,
    },
    StopPod {
        pod: PodUid,
        reply: Reply<()>,
    },
    SetNetwork {
        pod: PodUid,
        network: Box<PodNetwork>,
        reply: Reply<()>,
    },
    Exec {
        pod: PodUid,
        id: ContainerId,
        args: Vec<String>,
        streams: ExecStreams,
        reply: Reply<ExecOutcome>,
    },
    Connect {
        pod: PodUid,
        port: u16,
        streams: VisitStreams,
        reply: Reply<()>,
    },
    Stats {
        reply: Reply<Stats>,
    },
    Retire {
        reply: Reply<()>,
    },
}

/// Opens the runtime: takes over or starts a zygote and adopts every sandbox
/// that an earlier agent left. With a namespace for pods it is the zygote there
/// that is started; the one in the node's comes with the first pod that needs
/// it. Needs a tokio runtime.
///
/// # Errors
///
/// When another agent uses the state directory, it cannot be used at all, or
/// no zygote can be started.
pub async fn open(
    config: RuntimeConfig,
) -> Result<(Runtime, RuntimeTask, Vec<Adopted>), OpenError> {
    let RuntimeConfig { state: root, zygote, handover, log_files, pod_namespace, services } =
        config;
    let path = root.clone();
    let failed = |source| OpenError::State { path, source };
    let prepared = blocking(move || {
        let state = State::open(root)?;
        let lock = state.lock()?;
        Ok((state, lock))
    });
    let (state, lock) = prepared.await.map_err(failed)?;
    let Some(lock) = lock else {
        return Err(OpenError::InUse { path: state.root().to_owned() });
    };
    let nursery = |namespace| {
        Nursery::new(zygote.clone(), state.clone(), namespace).map_err(OpenError::Zygote)
    };
    let node = nursery(None)?;
    let pods = pod_namespace.map(|path| nursery(Some(path))).transpose()?;
    // Once: a thousand sandboxes are handed the same mount.
    let services = services.map(|path| mounts::open(&path, Use::Read, handover)).transpose()?;
    let services = services.map(Arc::new);
    let common = Common { state, handover, log_files, services, looks: Arc::default() };
    let (commands, requests) = mpsc::channel(QUEUE);
    let (task, adopted) = RuntimeTask::open(common, (node, pods), requests, lock).await?;
    let healthy = task.healthy();
    Ok((Runtime { commands, healthy }, task, adopted))
}

impl Runtime {
    /// Makes a sandbox for a pod, or takes the pod into that of its domain.
    /// The events tell what happens in it until it is stopped.
    ///
    /// A pod whose sandbox has died may ask again and gets a new one.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::HasSandbox`] while the pod has one that lives; otherwise
    /// why none could be made.
    pub async fn run_pod_sandbox(&self, sandbox: PodSandbox) -> Result<PodEvents, RuntimeError> {
        if !is_file_name(&sandbox.pod) {
            return Err(RuntimeError::InvalidPod { uid: sandbox.pod });
        }
        self.ask(|reply| Command::Run { sandbox: Box::new(sandbox), reply }).await
    }

    /// Loads a container's code and hands over its files.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Refused`] with what the sandbox says: a guest whose
    /// imports are not offered is `Unlinkable`. Otherwise what could not be
    /// opened or reached.
    pub async fn create_container(&self, launch: Launch) -> Result<(), RuntimeError> {
        let launch = Box::new(launch);
        self.ask(|reply| Command::Create { launch, reply }).await
    }

    /// Enters the guest; that it runs comes as an event.
    ///
    /// # Errors
    ///
    /// When there is no such container or its sandbox does not answer.
    pub async fn start_container(
        &self,
        pod: &PodUid,
        id: &ContainerId,
    ) -> Result<(), RuntimeError> {
        let (pod, id) = (pod.clone(), id.clone());
        self.ask(|reply| Command::Start { pod, id, reply }).await
    }

    /// Changes what a container may use, from now on; see
    /// [`SandboxRequest::UpdateContainer`](krustlet_protocol::SandboxRequest).
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Refused`] if it uses more memory already,
    /// [`RuntimeError::OldSandbox`] if its sandbox does not know how; when there
    /// is no such container or its sandbox does not answer.
    pub async fn update_container(
        &self,
        pod: &PodUid,
        id: &ContainerId,
        limits: Limits,
    ) -> Result<(), RuntimeError> {
        let (pod, id) = (pod.clone(), id.clone());
        self.ask(|reply| Command::Update { pod, id, limits, reply }).await
    }

    /// Asks the guest to stop and has it trapped after `grace` (rounded down to
    /// milliseconds). Returns when the request is taken; the end comes as an
    /// event. A later request may shorten the time, not lengthen it. One that
    /// has ended already is no error.
    ///
    /// # Errors
    ///
    /// When there is no such container or its sandbox does not answer.
    pub async fn stop_container(
        &self,
        pod: &PodUid,
        id: &ContainerId,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let (pod, id) = (pod.clone(), id.clone());
        self.ask(|reply| Command::Stop { pod, id, grace, reply }).await
    }

    /// Forgets an ended container; its log stays. One that is not known is no
    /// error.
    ///
    /// # Errors
    ///
    /// When it has not ended or its sandbox does not answer.
    pub async fn remove_container(
        &self,
        pod: &PodUid,
        id: &ContainerId,
    ) -> Result<(), RuntimeError> {
        let (pod, id) = (pod.clone(), id.clone());
        self.ask(|reply| Command::Remove { pod, id, reply }).await
    }

    /// Says anew what the pod's sockets may do.
    ///
    /// # Errors
    ///
    /// When the pod has no sandbox or it does not answer.
    pub async fn set_pod_network(
        &self,
        pod: &PodUid,
        network: PodNetwork,
    ) -> Result<(), RuntimeError> {
        let (pod, network) = (pod.clone(), Box::new(network));
        self.ask(|reply| Command::SetNetwork { pod, network, reply }).await
    }

    /// Ends the pod's process, or its share of one, without any grace, and
    /// forgets it. Returns when that is done. A pod without a sandbox is no
    /// error.
    ///
    /// # Errors
    ///
    /// When the process cannot be ended or forgotten; then ask again.
    pub async fn stop_pod_sandbox(&self, pod: &PodUid) -> Result<(), RuntimeError> {
        let pod = pod.clone();
        self.ask(|reply| Command::StopPod { pod, reply }).await
    }

    /// Runs the container's program once more, beside it, and waits until that
    /// has ended, however long it takes.
    ///
    /// # Errors
    ///
    /// When there is no such container, or its sandbox refuses or dies.
    pub async fn exec(
        &self,
        pod: &PodUid,
        id: &ContainerId,
        args: Vec<String>,
        streams: ExecStreams,
    ) -> Result<ExecOutcome, RuntimeError> {
        let (pod, id) = (pod.clone(), id.clone());
        self.ask(|reply| Command::Exec { pod, id, args, streams, reply }).await
    }

    /// Connects to a port of the pod's own loopback, as a container of it would:
    /// by IPv4, and by IPv6 where nobody listens there. Returns when it is
    /// connected; what comes and goes then is no concern of this agent's task. It
    /// counts as one of the pod's sockets, and no policy is asked.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Refused`] if nobody listens there or the pod has too many
    /// sockets, [`RuntimeError::OldSandbox`] if its sandbox does not know how; when
    /// the pod has no sandbox or it does not answer.
    pub async fn connect(
        &self,
        pod: &PodUid,
        port: u16,
        streams: VisitStreams,
    ) -> Result<(), RuntimeError> {
        let pod = pod.clone();
        self.ask(|reply| Command::Connect { pod, port, streams, reply }).await
    }

    /// What the containers of every pod use now. Each sandbox is asked once,
    /// however many pods are in it; pods whose sandbox does not answer are left
    /// out.
    ///
    /// # Errors
    ///
    /// When the runtime stops.
    pub async fn stats(&self) -> Result<Stats, RuntimeError> {
        self.ask(|reply| Command::Stats { reply }).await
    }

    /// Has the zygotes end once their last sandbox has, and starts no other: for
    /// an agent that leaves nothing behind.
    ///
    /// # Errors
    ///
    /// When a zygote lives and does not answer.
    pub async fn retire(&self) -> Result<(), RuntimeError> {
        self.ask(|reply| Command::Retire { reply }).await
    }

    /// Whether new sandboxes can be made: true while every zygote that was
    /// needed so far lives.
    #[must_use]
    pub fn healthy(&self) -> watch::Receiver<bool> {
        self.healthy.clone()
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, RuntimeError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| RuntimeError::Stopping)?;
        answer.await.map_err(|_| RuntimeError::Stopping)?
    }
}
