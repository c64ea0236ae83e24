//! Why the runtime could not do what was asked.

use std::{io, path::PathBuf, time::Duration};

use krustlet_model::{ContainerId, PodUid};
use krustlet_protocol::{Failure, connection::CallError};

use crate::{mounts::MountError, zygote::StartError};

/// Why the runtime could not be opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum OpenError {
    #[error("another agent uses the state directory {}", .path.display())]
    InUse { path: PathBuf },

    #[error("cannot use the state directory {}", .path.display())]
    State {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("cannot start the zygote")]
    Zygote(#[source] StartError),

    #[error("cannot hand the Services to sandboxes")]
    Services(#[from] MountError),
}

/// Why a verb was not carried out.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum RuntimeError {
    #[error("the agent is stopping")]
    Stopping,

    #[error("{uid:?} cannot be a pod's uid")]
    InvalidPod { uid: PodUid },

    #[error("pod {pod} has a sandbox already")]
    HasSandbox { pod: PodUid },

    #[error("pod {pod} has no sandbox")]
    NoSandbox { pod: PodUid },

    #[error("the sandbox of pod {pod} was stopped while it was started")]
    StoppedMeanwhile { pod: PodUid },

    #[error("the sandbox process is gone")]
    Died,

    #[error("no zygote was ready within {limit:?}")]
    NoZygote { limit: Duration },

    #[error("this agent has no network namespace for pods")]
    NoPodNamespace,

    #[error("the new sandbox did not answer within {limit:?}")]
    NotUp { limit: Duration },

    #[error("container {id} exists already")]
    Exists { id: ContainerId },

    #[error("there is no container {id}")]
    NoContainer { id: ContainerId },

    #[error("{given} {what} for a container that names {named}")]
    Mismatch { what: &'static str, given: usize, named: usize },

    #[error("cannot hand over a directory")]
    Mount(#[from] MountError),

    #[error("cannot open the log {}", .path.display())]
    Log {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("cannot keep the runtime's state at {}", .path.display())]
    State {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("cannot write down the container's description")]
    Spec(#[source] io::Error),

    #[error("cannot reach the process")]
    Process(#[source] io::Error),

    #[error("the work was broken off")]
    Work(#[source] io::Error),

    #[error(
        "the sandbox is of an older version, which cannot do that; one that is started anew can"
    )]
    OldSandbox,

    #[error("the request was not answered")]
    Call(#[source] CallError),

    #[error("{}", .0)]
    Refused(Failure),

    #[error("the sandbox told more than is believed before it answered")]
    TooMuchNews,

    #[error("an answer to another question came: {answer}")]
    WrongAnswer { answer: String },
}

impl RuntimeError {
    /// Whether the same request may succeed later, with nothing changed in it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            // The zygote and the sandbox are started anew; disks, descriptors
            // and memory are let go again.
            Self::Stopping
            | Self::StoppedMeanwhile { .. }
            | Self::Died
            | Self::NoZygote { .. }
            | Self::NotUp { .. }
            | Self::Log { .. }
            | Self::State { .. }
            | Self::Process(_)
            | Self::Call(CallError::Gone | CallError::TimedOut { .. } | CallError::Send(_))
            | Self::Mount(MountError::Open { .. } | MountError::Restrict { .. })
            | Self::Refused(Failure::Failed { .. }) => true,
            Self::InvalidPod { .. }
            | Self::HasSandbox { .. }
            | Self::NoPodNamespace
            | Self::NoSandbox { .. }
            | Self::Exists { .. }
            | Self::NoContainer { .. }
            | Self::Mismatch { .. }
            | Self::Mount(MountError::NotPermitted { .. })
            | Self::OldSandbox
            | Self::Spec(_)
            | Self::Work(_)
            | Self::Call(CallError::NotUnderstood(_))
            | Self::Refused(
                Failure::UnknownVerb
                | Failure::Malformed { .. }
                | Failure::NotFound { .. }
                | Failure::Unlinkable { .. },
            )
            | Self::TooMuchNews
            | Self::WrongAnswer { .. } => false,
        }
    }

    /// Whether the sandbox has ended, so that its pod needs a new one.
    #[must_use]
    pub fn is_death(&self) -> bool {
        matches!(self, Self::Died)
    }
}

impl From<CallError> for RuntimeError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Gone => Self::Died,
            error @ (CallError::TimedOut { .. }
            | CallError::Send(_)
            | CallError::NotUnderstood(_)) => Self::Call(error),
        }
    }
}
