//! Why there is no artifact.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use crate::report::Fault;

/// Why the artifacts cannot be used at all.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum OpenError {
    #[error("cannot prepare {path} for compiled code")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("no command is given that compiles")]
    NoCommand,
}

/// Why a program could not be compiled. Cloned for everyone who waits for it.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum CompileError {
    #[error("cannot compile the program {digest}")]
    Program {
        digest: String,
        #[source]
        fault: Fault,
    },

    #[error("{digest:?} is not a digest of the form sha256:<64 hexadecimal digits>")]
    InvalidDigest { digest: String },

    #[error("the program at {path} is not {digest} any more")]
    Changed { path: PathBuf, digest: String },

    #[error("compiling {digest} took longer than {limit:?}; the machine may be overloaded")]
    TimedOut { digest: String, limit: Duration },

    #[error("the compiler of {digest} was killed by signal {signal}")]
    Killed { digest: String, signal: i32 },

    #[error(
        "the compiler of {digest} crashed ({how}); it is tried again, with longer and longer waits"
    )]
    Crashed { digest: String, how: String },

    #[error("the machine has not enough memory for compiling {digest}")]
    Shortage { digest: String },

    #[error("the compiler does not work here: {message}")]
    Broken { message: String },

    #[error("cannot {what}")]
    File {
        what: String,
        #[source]
        source: Arc<io::Error>,
    },

    #[error("the agent is stopping")]
    Stopping,
}

impl CompileError {
    /// Whether the same request may succeed later, with nothing changed here.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Program { .. } | Self::InvalidDigest { .. } => false,
            // A file is mended by the next pull, a full disk is cleared, an
            // overloaded machine recovers. A compiler that crashes may lack
            // something too; only what it says of the program lasts.
            Self::Changed { .. }
            | Self::TimedOut { .. }
            | Self::Killed { .. }
            | Self::Crashed { .. }
            | Self::Shortage { .. }
            | Self::Broken { .. }
            | Self::File { .. }
            | Self::Stopping => true,
        }
    }

    /// Whether finding it out took much of the machine, so that it is not done again at once.
    pub(crate) fn is_costly(&self) -> bool {
        match self {
            Self::TimedOut { .. }
            | Self::Killed { .. }
            | Self::Crashed { .. }
            | Self::Shortage { .. } => true,
            Self::Program { .. }
            | Self::InvalidDigest { .. }
            | Self::Changed { .. }
            | Self::Broken { .. }
            | Self::File { .. }
            | Self::Stopping => false,
        }
    }

    /// The waiting reason users see in `kubectl get pods`.
    ///
    /// Source: kubelet, `pkg/kubelet/images/types.go` (an image that is there
    /// but cannot be understood) and `pkg/kubelet/kuberuntime/kuberuntime_container.go`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Program { .. } | Self::InvalidDigest { .. } | Self::Changed { .. } => {
                "ImageInspectError"
            }
            Self::TimedOut { .. }
            | Self::Killed { .. }
            | Self::Crashed { .. }
            | Self::Shortage { .. }
            | Self::Broken { .. }
            | Self::File { .. }
            | Self::Stopping => "CreateContainerError",
        }
    }

    /// A file operation that failed; `what` completes "cannot …".
    pub(crate) fn file(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::File { what, source: Arc::new(source) }
    }
}
