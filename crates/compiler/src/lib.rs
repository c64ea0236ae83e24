//! Makes machine code of WebAssembly, once for each program and engine.
//!
//! A program comes from outside and may be made to hurt the compiler. So the
//! agent never looks into it: [`Artifacts`] starts a short-lived child
//! ([`compile_main`]) that has the program as its input, one output file,
//! limits on processor time, memory and file size, and nothing else. What comes
//! out is published under a name that stands for the program and for all that
//! the code depends on ([`engine_config`]), and is loaded by sandboxes.
//!
//! Left to others: fetching programs (`image`), loading and running artifacts
//! (`sandbox`), deciding what a failure means for a pod (`pod`).

mod artifacts;
mod child;
mod engine;
mod error;
mod gauge;
mod inspect;
mod limits;
mod lockdown;
mod process;
mod report;
mod setbacks;
mod store;

pub use artifacts::{Artifact, Artifacts, ArtifactsConfig, ArtifactsTask, open};
pub use child::compile_main;
pub use engine::engine_config;
pub use error::{CompileError, OpenError};
pub use inspect::{InspectError, Inspection, ProgramKind, inspect};
pub use limits::CompileLimits;
pub use report::Fault;
