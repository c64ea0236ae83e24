//! What a pod's task asks of the world: each a trait, because each is outside
//! this process (sandboxes, the API server, registries and compilers) or comes
//! in two kinds (cluster and standalone).
//!
//! The binary implements them for the real handles; `krustlet-runtime`'s
//! implements [`PodRuntime`] here.

use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, PodStatus, Secret};
use krustlet_image::{ImageRequest, ProgramConfig, PullReport};
use krustlet_model::{
    Chain, ContainerId, ContainerName, PodKey, PodUid, observed::ContainerKind, policy::Policies,
    probes::target::Target, services::Services,
};
use krustlet_network::Network;
use krustlet_protocol::{ExecOutcome, Failure, Limits, PodNetwork, connection::CallError};
pub use krustlet_runtime::{
    Adopted, Domain, ExecStreams, Launch, NetworkKind, PodEvent, PodEvents, PodSandbox, PodUser,
    Stats, VisitStreams,
};
use krustlet_runtime::{Runtime, RuntimeError};
use tokio::sync::watch;

use crate::guest::ProgramShape;

/// Everything that is outside, for a pod's task. Cheap to clone.
#[derive(Clone)]
pub struct Outside {
    /// Sandboxes.
    pub runtime: Arc<dyn PodRuntime>,
    /// Addresses.
    pub network: Network,
    /// What the cluster's policies say.
    pub policies: watch::Receiver<Policies>,
    /// Images and compiled programs.
    pub programs: Arc<dyn Programs>,
    /// What pods refer to.
    pub objects: Arc<dyn Objects>,
    /// Where statuses go.
    pub status: Arc<dyn StatusSink>,
    /// Where events go.
    pub events: Arc<dyn EventSink>,
    /// Makes probes; each pod's task has its own of it.
    pub prober: Arc<dyn Prober>,
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outside").finish_non_exhaustive()
    }
}

/// Why a sandbox did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The error and its causes.
    pub message: String,
    /// What is to be made of it.
    pub why: Why,
}

/// What is to be made of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The agent is stopping: nothing.
    Stopping,
    /// The sandbox is dead: nothing, for its pod is told so by an event.
    Died,
    /// Anything else: it concerns what was asked.
    Failed,
}

/// The verbs of the CRI. What each promises is said at `krustlet_runtime::Runtime`.
///
/// What was asked for is carried out even if the future is dropped.
pub trait PodRuntime: Send + Sync + 'static {
    /// Makes a sandbox for a pod.
    fn run_pod_sandbox(
        &self,
        sandbox: PodSandbox,
    ) -> BoxFuture<'static, Result<PodEvents, Refused>>;

    /// Loads a container's code.
    fn create_container(&self, launch: Launch) -> BoxFuture<'static, Result<(), Refused>>;

    /// Enters the guest.
    fn start_container(
        &self,
        pod: PodUid,
        id: ContainerId,
    ) -> BoxFuture<'static, Result<(), Refused>>;

    /// Changes what a container may use.
    fn update_container(
        &self,
        pod: PodUid,
        id: ContainerId,
        limits: Limits,
    ) -> BoxFuture<'static, Result<(), Refused>>;

    /// Asks the guest to stop; it is trapped after `grace`.
    fn stop_container(
        &self,
        pod: PodUid,
        id: ContainerId,
        grace: Duration,
    ) -> BoxFuture<'static, Result<(), Refused>>;

    /// Forgets an ended container.
    fn remove_container(
        &self,
        pod: PodUid,
        id: ContainerId,
    ) -> BoxFuture<'static, Result<(), Refused>>;

    /// Ends the pod's process, or its share of one.
    fn stop_pod_sandbox(&self, pod: PodUid) -> BoxFuture<'static, Result<(), Refused>>;

    /// Says anew what the pod's sockets may do.
    fn set_pod_network(
        &self,
        pod: PodUid,
        network: PodNetwork,
    ) -> BoxFuture<'static, Result<(), Refused>>;

    /// Runs the container's program once more.
    fn exec(
        &self,
        pod: PodUid,
        id: ContainerId,
        args: Vec<String>,
        streams: ExecStreams,
    ) -> BoxFuture<'static, Result<ExecOutcome, Refused>>;

    /// Connects to a port of the pod's own loopback.
    fn connect(
        &self,
        pod: PodUid,
        port: u16,
        streams: VisitStreams,
    ) -> BoxFuture<'static, Result<(), Refused>>;

    /// What the containers of every pod use whose sandbox answers.
    fn stats(&self) -> BoxFuture<'static, Result<Stats, Refused>>;
}

impl From<RuntimeError> for Refused {
    fn from(error: RuntimeError) -> Self {
        let message = match &error {
            // In the sandbox's own words: they tell a user what to mend.
            RuntimeError::Refused(Failure::Unlinkable { message }) => message.clone(),
            other => Chain(other).to_string(),
        };
        let is_dead = matches!(error, RuntimeError::Died | RuntimeError::Call(CallError::Gone));
        let why = if matches!(error, RuntimeError::Stopping) {
            Why::Stopping
        } else if is_dead {
            Why::Died
        } else {
            Why::Failed
        };
        Self { message, why }
    }
}

impl PodRuntime for Runtime {
    fn run_pod_sandbox(
        &self,
        sandbox: PodSandbox,
    ) -> BoxFuture<'static, Result<PodEvents, Refused>> {
        let runtime = self.clone();
        Box::pin(async move { Ok(runtime.run_pod_sandbox(sandbox).await?) })
    }

    fn create_container(&self, launch: Launch) -> BoxFuture<'static, Result<(), Refused>> {
        let runtime = self.clone();
        Box::pin(async move { Ok(runtime.create_container(launch).await?) })
    }

    fn start_container(
        &self,
        pod: PodUid,
        id: ContainerId,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        let runtime = self.clone();
        Box::pin(async move { Ok(runtime.start_container(&pod, &id).await?) })
    }

    fn update_container(
        &self,
        pod: PodUid,
        id: ContainerId,
        limits: Limits,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        let runtime = self.clone();
        Box::pin(async move { Ok(runtime.update_container(&pod, &id, limits).await?) })
    }

    fn stop_container(
        &self,
        pod: PodUid,
        id: ContainerId,
        grace: Duration,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        let runtime = self.clone();
        Box::pin(async move { Ok(runtime.stop_container(&pod, &id, grace).await?) })
    }

    fn remove_container(
        &self,
        pod: PodUid,
        id: ContainerId,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        let runtime = self.clone();
        Box::pin(async move { Ok(runtime.remove_container(&pod, &id).await?) })
    }

    fn stop_pod_sandbox(&self, pod: PodUid) -> BoxFuture<'static, Result<(), Refused>> {
        let runtime = self.clone();
        Box::pin(async move { Ok(runtime.stop_pod_sandbox(&pod).await?) })
    }

    fn set_pod_network(
        &self,
        pod: PodUid,
        network: PodNetwork,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        let runtime = self.clone();
        Box::pin(async move { Ok(runtime.set_pod_network(&pod, network).await?) })
    }

    fn exec(
        &self,
        pod: PodUid,
        id: ContainerId,
        args: Vec<String>,
        streams: ExecStreams,
    ) -> BoxFuture<'static, Result<ExecOutcome, Refused>> {
        let runtime = self.clone();
        Box::pin(async move { Ok(runtime.exec(&pod, &id, args, streams).await?) })
    }

    fn connect(
        &self,
        pod: PodUid,
        port: u16,
        streams: VisitStreams,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        let runtime = self.clone();
        Box::pin(async move { Ok(runtime.connect(&pod, port, streams).await?) })
    }

    fn stats(&self) -> BoxFuture<'static, Result<Stats, Refused>> {
        let runtime = self.clone();
        Box::pin(async move { Ok(runtime.stats().await?) })
    }
}

/// Makes programs available: pulls images and compiles what is in them.
pub trait Programs: Send + Sync + 'static {
    /// Has the image on this node, pulling it if its policy says so. Should
    /// begin to compile too, if it is clear already which program will run.
    fn ensure(
        &self,
        request: ImageRequest,
    ) -> BoxFuture<'static, Result<Arc<dyn PulledImage>, ImageFailure>>;
}

/// An image on this node; it stays there as long as this is held.
pub trait PulledImage: Send + Sync + 'static {
    /// `repository@sha256:…`.
    fn id(&self) -> &str;

    /// How the image wants to be run.
    fn config(&self) -> &ProgramConfig;

    /// Its size in bytes.
    fn bytes(&self) -> u64;

    /// What its pull took. None if it was here and no registry was asked.
    fn pull(&self) -> Option<PullReport>;

    /// The compiled program that `argv0` names in the image.
    fn program(&self, argv0: Option<String>) -> BoxFuture<'static, Result<Program, LoadFailure>>;
}

/// Why an image is not here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ImageFailure {
    /// The waiting reason: `ErrImagePull`, `ErrImageNeverPull`,
    /// `InvalidImageName`, `RegistryUnavailable`, …
    pub reason: &'static str,
    /// What people are to read.
    pub message: String,
}

/// Why a program of an image cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LoadFailure {
    /// The waiting reason, usually `CreateContainerError`.
    pub reason: &'static str,
    /// What people are to read.
    pub message: String,
}

/// A program that is ready to run.
#[derive(Clone)]
pub struct Program {
    /// The directory of the compiled artifact.
    pub directory: PathBuf,
    /// The artifact's name in it.
    pub file: String,
    /// What inspection found it to be.
    pub shape: ProgramShape,
    /// The export to call, if the image names one.
    pub entry: Option<String>,
    /// Where an image with a root file system has it.
    pub root: Option<PathBuf>,
    /// Keeps the files on disk.
    pub hold: Arc<dyn Send + Sync + 'static>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("directory", &self.directory)
            .field("file", &self.file)
            .field("shape", &self.shape)
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}

/// Why an object could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ObjectFailure {
    /// The error and its causes.
    pub message: String,
    /// Whether this node was refused it. Of a new pod that may pass at once:
    /// the node authorizer hears of a pod a moment after its node.
    pub is_refused: bool,
}

/// A service account token.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceToken {
    /// What a guest sends; not to be printed.
    pub token: String,
    /// When the API server stops taking it.
    pub expires: Timestamp,
}

impl fmt::Debug for ServiceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceToken").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// A token that a pod's volume asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenAsk {
    /// The pod's name and namespace, which is the account's too.
    pub pod: PodKey,
    /// The pod that the token is bound to.
    pub uid: PodUid,
    /// The service account's name.
    pub service_account: String,
    /// For whom; None means for the API server itself.
    pub audience: Option<String>,
    /// How long it is to live, in seconds.
    pub expiration_seconds: i64,
}

/// What pods refer to. Answers come from memory as far as possible: they are
/// asked for again about once a minute.
pub trait Objects: Send + Sync + 'static {
    /// A ConfigMap; None if there is none.
    fn config_map(
        &self,
        namespace: String,
        name: String,
    ) -> BoxFuture<'static, Result<Option<Arc<ConfigMap>>, ObjectFailure>>;

    /// A Secret; None if there is none.
    fn secret(
        &self,
        namespace: String,
        name: String,
    ) -> BoxFuture<'static, Result<Option<Arc<Secret>>, ObjectFailure>>;

    /// A token, renewed in time by whoever implements this: at four fifths of
    /// its life.
    fn token(&self, ask: TokenAsk) -> BoxFuture<'static, Result<ServiceToken, ObjectFailure>>;

    /// The tokens of a pod are no longer needed.
    fn forget_tokens(&self, uid: &PodUid);

    /// All services; None until they were read once.
    fn services(&self) -> watch::Receiver<Option<Arc<Services>>>;

    /// The node itself; None until it is known.
    fn node(&self) -> watch::Receiver<Option<Arc<Node>>>;
}

/// Why a pod was not removed from where it is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DeleteFailure {
    /// The error and its causes.
    pub message: String,
}

/// Where statuses go.
pub trait StatusSink: Send + Sync + 'static {
    /// Has this status written, instead of an earlier one that waits. Never
    /// blocks. `pod` is the newest state that is known of it.
    fn report(&self, pod: &Arc<Pod>, status: PodStatus);

    /// Removes the pod from where it is kept, once its last status is written.
    /// Tries until it is done.
    fn delete(&self, pod: &Arc<Pod>) -> BoxFuture<'static, Result<(), DeleteFailure>>;
}

/// A probe to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeAsk {
    /// What it does.
    pub target: Target,
    /// The pod's address, for a target that names no host.
    pub address: IpAddr,
    /// How long it may take.
    pub limit: Duration,
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// The container answered as it should.
    Success,
    /// It did, but somebody should know this.
    Warning(String),
    /// It did not, and why.
    Failure(String),
    /// Its answer's body broke off or took too long, and why; that says nothing.
    Broken(String),
    /// The probe could not be made, and why; that says nothing of the container.
    Unknown(String),
}

/// Makes probes.
pub trait Prober: fmt::Debug + Send + Sync + 'static {
    /// One for a pod, whose probes wait for none of another's.
    fn for_pod(&self) -> Arc<dyn Prober>;

    /// Makes a probe. It is broken off if the future is dropped.
    fn probe(&self, ask: ProbeAsk) -> BoxFuture<'static, ProbeAnswer>;
}

/// What an event is about.
#[derive(Clone, Copy, Debug)]
pub enum About<'a> {
    /// A pod as a whole.
    Pod(&'a Pod),
    /// One container of a pod.
    Container(&'a Pod, ContainerKind, &'a ContainerName),
    /// One ephemeral container of a pod, by its name.
    Ephemeral(&'a Pod, &'a str),
}

/// Whether an event tells of something wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// As it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

/// Where events go.
pub trait EventSink: Send + Sync + 'static {
    /// Takes note of an event. Never blocks.
    fn record(&self, about: About<'_>, kind: EventType, reason: &str, message: String);
}
