//! The files of a pod's volumes: what lies in them, how they change under a
//! running guest, and which directory a container gets for each of its mounts.
//!
//! ```text
//! <pod directory>/volumes/<volume>/            an emptyDir
//! <pod directory>/volumes/<volume>/..data ──▶ ..2026_11_24_10_00_00.1   the other kinds:
//! <pod directory>/volumes/<volume>/KEY ──▶ ..data/KEY                   swapped whole by rename
//! <pod directory>/containers/<name>/<restart>/ a run's termination message
//! <pod directory>/etc/                         its hosts file and the like
//! ```
//!
//! Files only: fetching config maps, secrets and tokens is the pod's business,
//! turning a directory into a mount that cannot be left is the runtime's.

mod atomic;
mod error;
mod etc;
mod message;
mod mounts;
mod objects;
mod payload;
mod remove;
mod usage;
mod volumes;

pub use error::VolumeError;
pub use etc::EtcFiles;
pub use message::{MessageFile, MessagePlace, MessageRun};
pub use mounts::VolumeMountDir;
pub use objects::{ObjectRef, object_refs, token_requests};
pub use payload::{Sources, TokenKey};
pub use usage::{UsageError, disk_usage};
pub use volumes::{VolumeOwner, Volumes};
