//! `krustlet run` and the commands beside it, as a person without a cluster
//! uses them: the built program, real sandboxes, the examples of the project.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod background;
mod examples;
mod images;
mod machine;
mod ordinary_user;
mod output;
mod outside;
mod own_addresses;
mod ports;
#[path = "../../../image/tests/images/registry.rs"]
#[expect(dead_code, reason = "it can misbehave in ways that only its owner's tests ask for")]
mod registry;
mod stopping;
mod targets;
mod terminal;
