//! The agent's side of zygote and sandboxes: the verbs of the CRI, in Rust.
//!
//! ```text
//! pod ──Runtime──▶ RuntimeTask ──▶ zygote (forks)
//!     ◀─PodEvents─ watch ◀─────── sandbox, one for each isolation domain
//! ```
//!
//! Knows no pod spec, no image and no cluster: it is handed users, files and
//! names that are already resolved. It opens everything that a sandbox may
//! use, keeps on disk what the next agent needs to go on, and tells each pod,
//! without loss, what became of its containers. What to run, and what to do
//! when it ends, is decided in `pod`; how to run it, in `sandbox`.

mod adopt;
mod error;
mod events;
mod filter;
mod handle;
mod logs;
mod mounts;
mod namespace;
mod record;
mod sandbox;
mod stats;
mod table;
mod task;
mod verbs;
mod watch;
mod words;
mod work;
mod zygote;

pub use adopt::Adopted;
pub use error::{OpenError, RuntimeError};
pub use events::{PodEvent, PodEvents};
pub use filter::{FilterError, filter_listeners};
pub use handle::{Domain, NetworkKind, PodSandbox, PodUser, Runtime, RuntimeConfig, open};
pub use mounts::{Handover, MountError};
pub use namespace::namespace_of_pods;
pub use stats::Stats;
pub use task::RuntimeTask;
pub use verbs::{ExecStreams, Launch, VisitStreams};
pub use zygote::StartError;
