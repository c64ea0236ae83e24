//! The kubelet's HTTPS API and the local socket of the command line.
//!
//! Answers from handles and decides nothing: what pods there are and where
//! their logs lie comes through [`PodQueries`], who may ask through
//! [`Reviews`]. Exec, attach and port-forward over HTTPS are not served yet;
//! their paths answer 404.
//!
//! ```text
//! kubectl ─▶ API server ─TLS─▶ identity ─▶ attributes ─▶ Reviews ─▶ routes ─▶ PodQueries
//! krustlet ps, logs, exec, … ─unix socket (mode 0600)─────────────▶ routes ─▶ PodQueries
//! ```

pub mod access;
mod everywhere;
pub mod exec;
mod forward;
pub mod identity;
pub mod listen;
pub mod local;
pub mod logs;
mod metrics;
pub mod queries;
pub mod routes;
mod summary;
pub mod tls;
pub mod usage;

pub use access::{Attributes, ReviewFailed, Reviews};
pub use identity::User;
pub use listen::{HttpsTask, ServeError};
pub use local::LocalTask;
pub use queries::{
    ConnectFailure, ConnectStreams, ExecFailure, ExecRequest, ExecStreams, LogRun, LogSource,
    NotFound, PodQueries, StopFailure, Stopped,
};
pub use tls::{ServingIdentity, TlsError};
pub use usage::{ContainerUsage, NetworkUsage, PodUsage, RefusedUsage, Usage};
