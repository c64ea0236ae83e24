//! Pods without a cluster: manifests from files instead of a watch, a table
//! instead of the API server. Everything below is the same as on a node.

pub(crate) mod agent;
mod api;
mod defaults;
mod follow;
mod manifest;
mod print;
pub(crate) mod run;
mod target;
mod wishes;
mod world;
