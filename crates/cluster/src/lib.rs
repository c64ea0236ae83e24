//! All that is said to the API server.
//!
//! The agent hears of pods ([`pods`]), reports what became of them
//! ([`status`]), keeps its Node and its lease ([`node`], [`lease`]), reads what
//! pods refer to ([`objects`], [`tokens`], [`services`], [`endpoints`]) and may do to
//! each other ([`policies`]), writes events ([`events`]) and asks who may use its own
//! API ([`reviews`]). This crate is
//! the only one that names the Kubernetes client, and it decides nothing about
//! pods: `pod` does.
//!
//! Each subsystem is a handle and a task. A task keeps trying while the API
//! server is away, and nothing it holds grows meanwhile: a status is the newest
//! one per pod, events are a bounded queue, and watches carry the newest state.

pub mod connect;
pub mod endpoints;
pub mod events;
mod feed;
mod kept;
pub mod lease;
pub mod node;
pub mod nodes;
pub mod objects;
pub mod pods;
pub mod policies;
pub mod request;
mod retry;
pub mod reviews;
pub mod services;
pub mod status;
pub mod tokens;

pub use connect::{Cluster, ConnectError, ConnectOptions};
pub use endpoints::{Endpoints, EndpointsTask};
pub use events::{About, EventRate, EventType, Events, EventsTask};
pub use lease::LeaseTask;
pub use node::{NodeConfig, NodeHealth, NodeTask};
pub use nodes::{NodesTask, PeerNode, Peers};
pub use objects::{ObjectError, Objects, ObjectsTask};
pub use pods::{PodSet, PodSourceTask};
pub use policies::{PolicyFacts, PolicyFactsTask};
pub use request::RequestError;
pub use reviews::{ReviewError, Reviews};
pub use services::ServicesTask;
pub use status::{DeleteError, StatusTask, StatusWriter};
pub use tokens::{Token, TokenError, TokenRequest, Tokens};
