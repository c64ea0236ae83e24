//! Wires the agent together. Every other crate knows only its neighbours.
//!
//! Tasks are started in the order of the flow backwards, so that each outlives
//! those that use it when they are stopped.

mod api;
pub(crate) mod core;
pub(crate) mod images;
mod network;
pub(crate) mod node;
pub(crate) mod pods;
mod policies;
mod programs;
pub(crate) mod queries;
mod services;
