//! The vocabulary and the rules: what is wanted, what is seen, and what
//! follows from comparing them.
//!
//! Everything here is a value or a pure function: no I/O, no clock, no async.
//! Tasks in the other crates observe, ask a rule of this crate, and do what it
//! says.

pub mod admission;
pub mod bandwidth;
pub mod chain;
pub mod downward;
pub mod env;
pub mod grace;
pub mod http;
pub mod ids;
pub mod names;
pub mod objects;
pub mod observed;
pub mod outbound;
pub mod policy;
pub mod probes;
pub mod qos;
pub mod quantity;
pub mod resize;
pub mod restarts;
pub mod services;
pub mod status;
pub mod termination;
pub mod time;
mod zeros;

pub use chain::Chain;
pub use grace::Grace;
pub use ids::{ContainerId, ContainerName, PodKey, PodUid};
pub use objects::ObjectRef;
