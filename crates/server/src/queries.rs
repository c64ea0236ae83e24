//! What the server asks of the pods.

use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use krustlet_model::{PodKey, PodUid};
use tokio_util::sync::CancellationToken;

use crate::usage::Usage;

/// The pods of this node, as they are asked for.
///
/// The binary implements it for the pods' handle; tests for a table.
pub trait PodQueries: Send + Sync + 'static {
    /// Every pod with its newest status.
    fn pods(&self) -> Vec<Arc<Pod>>;

    /// Where the log of one run of a container lies.
    ///
    /// # Errors
    ///
    /// [`NotFound`] says what is missing, in kubelet's words.
    fn log(
        &self,
        pod: &PodKey,
        uid: Option<&PodUid>,
        container: &str,
        run: LogRun,
    ) -> Result<LogSource, NotFound>;

    /// Runs a program in a container and gives its exit code.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<i32, ExecFailure>>;

    /// Connects to a port of a pod's own loopback; answers when it is connected.
    fn connect(
        &self,
        pod: PodKey,
        port: u16,
        streams: ConnectStreams,
    ) -> BoxFuture<'static, Result<(), ConnectFailure>>;

    /// Stops a pod, giving it `grace` or its own period, and waits for its end.
    fn stop(
        &self,
        pod: PodKey,
        grace: Option<Duration>,
    ) -> BoxFuture<'static, Result<Stopped, StopFailure>>;

    /// What the pods with a running container use.
    fn usage(&self) -> BoxFuture<'static, Usage>;
}

/// Which run of a container a log is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogRun {
    /// The newest that has a log.
    Newest,
    /// The one whose end the status shows as the last.
    Previous,
    /// The one that began after so many restarts: 0 for the first. It can be
    /// had until the second one after it begins.
    AfterRestarts(u32),
}

/// A container's log.
#[derive(Clone, Debug)]
pub struct LogSource {
    /// The current file, in the format of the CRI. It may be renamed away and
    /// made anew at any time.
    pub path: PathBuf,
    /// Cancelled when the run that writes the file has ended.
    pub ended: CancellationToken,
}

/// A request to run a program in a container.
#[derive(Debug)]
pub struct ExecRequest {
    /// Which pod.
    pub pod: PodKey,
    /// Which container; the pod's first if not said.
    pub container: Option<String>,
    /// The program's arguments, its name first. Not empty.
    pub command: Vec<String>,
    /// What it reads and writes.
    pub streams: ExecStreams,
}

/// The standard streams of an exec, open files each.
#[derive(Debug)]
pub struct ExecStreams {
    /// Read by the program.
    pub stdin: OwnedFd,
    /// Written by the program.
    pub stdout: OwnedFd,
    /// Written by the program.
    pub stderr: OwnedFd,
}

/// The two directions of a connection to a pod, a pipe each.
#[derive(Debug)]
pub struct ConnectStreams {
    /// What is read here is sent to the pod, until its end.
    pub input: OwnedFd,
    /// What the pod sends is written here. When nobody reads it any more, the
    /// connection ends.
    pub output: OwnedFd,
}

/// What was asked for is not here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// No pod of that name (or of that name and uid).
    #[error("pod does not exist")]
    Pod,
    /// The pod has no such container.
    #[error("container {container} not found in pod {pod}")]
    Container {
        /// `name_namespace`, as kubelet prints it.
        pod: String,
        /// The container asked for.
        container: String,
    },
    /// The container has not run, so there is no log to read.
    #[error("container {container:?} in pod {pod:?} is waiting to start: {reason}")]
    NotStarted {
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
        /// Its waiting reason.
        reason: String,
    },
    /// There was no such run, or its log is removed.
    #[error("container {container:?} in pod {pod:?} has no log of a run after {restarts} restarts")]
    NoRun {
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
        /// Of the run asked for.
        restarts: u32,
    },
    /// `previous` was asked for and there was only one run.
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    NoPrevious {
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
    },
}

/// Why a program could not be run in a container.
#[derive(Debug, thiserror::Error)]
pub enum ExecFailure {
    /// Nothing to run it in.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// The container does not run now.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The sandbox could not do it.
    #[error("{0}")]
    Failed(String),
}

/// Why a pod could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectFailure {
    /// Nothing to connect to.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// Nobody listens there, or the sandbox could not do it.
    #[error("{0}")]
    Failed(String),
}

/// What is left of a pod that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Nothing: it was started here.
    Removed,
    /// Its object, which is the cluster's to delete.
    Kept,
}

/// Why a pod could not be stopped from here.
#[derive(Debug, thiserror::Error)]
pub enum StopFailure {
    /// Nothing to stop.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// It did not end.
    #[error("{0}")]
    Failed(String),
}
