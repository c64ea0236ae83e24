//! Images: references, credentials, pull, verify, store.
//!
//! Gives a program's file, or a root file system of programs, for an image reference, and keeps it for as long as
//! someone holds it. Knows no pods: back-off between failed pulls, events, and when to pull at all are theirs.
//! Nothing here compiles or runs a program.
//!
//! Reading order: [`reference`](Reference), `format` (what is accepted), `registry/` (how it
//! is fetched), `assemble` (how it becomes content), `store/` (how it is kept), `verification` (who gets what is
//! here), `task` (who waits for what).

mod access;
mod artifact;
mod assemble;
mod credential;
mod digest;
mod docker_config;
mod format;
mod image;
mod images;
mod import;
mod index;
mod layout;
mod limits;
mod manifest;
mod preamble;
mod pull;
mod push;
mod reference;
mod registry;
mod remove;
mod request;
mod store;
mod task;
mod unpack;
mod verification;

pub use access::SecretSource;
pub use artifact::ArtifactError;
pub use assemble::ContentError;
pub use credential::{Credential, CredentialError};
pub use digest::{Algorithm, Digest, DigestError};
pub use docker_config::DockerConfigError;
pub use format::FormatError;
pub use image::{Content, Image, Lease, Program, ProgramConfig, ProgramError};
pub use images::{Images, ImagesConfig, open};
pub use import::ImportError;
pub use index::ImageSummary;
pub use layout::LayoutError;
pub use limits::PullLimits;
pub use manifest::DocumentError;
pub use preamble::NotWasm;
pub use pull::PullError;
pub use push::{PushError, Pushed};
pub use reference::{DEFAULT_REGISTRY, Reference, ReferenceError};
pub use registry::error::RequestError;
pub use registry::guard::GuardError;
pub use registry::rules::{EndpointError, Mirror, RegistryRules};
pub use remove::RemoveError;
pub use request::{Asker, Ensured, ImageRequest, PullPolicy, PullReport};
pub use store::OpenError;
pub use task::ImagesTask;
pub use unpack::{Overrun, PathError, UnpackError};
pub use verification::{Allowlist, PolicyError, VerificationPolicy};
