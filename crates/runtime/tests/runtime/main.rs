//! The runtime over stand-ins for zygote and sandbox: real processes, sockets
//! and files, no Wasm. Needs root, as detached mounts do.

mod bed;
mod stand_in;

mod containers;
mod domains;
mod survival;
