//! The runtime over stand-ins for zygote and sandbox: real processes, sockets
//! and files, no Wasm. Needs root, as detached mounts do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bed;
mod stand_in;

mod containers;
mod domains;
mod filters;
mod survival;
