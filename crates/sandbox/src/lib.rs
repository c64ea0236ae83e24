//! The processes that guests run in, and the host they run on.
//!
//! [`zygote_main`] is the body of the command that an agent starts once. The
//! zygote builds the engine, locks itself into an empty room and then forks a
//! sandbox for whoever asks. A sandbox runs the guests of one isolation domain:
//! one pod, or many. All it works with, it is handed as open descriptors.
//!
//! ```text
//! zygote.rs ─fork─▶ sandbox.rs ─▶ control.rs ◀──news── guests.rs ─▶ run.rs, http.rs, exec.rs, visit.rs
//!   room.rs, seccomp.rs             create.rs ──order──▶              log, state.rs
//!                                                     sockets, p3, preview1, http.rs ─▶ net
//! ```
//!
//! The only user of wasmtime's runtime. Nothing here compiles, opens a path,
//! knows a pod's spec or speaks to the API server.

#[cfg(feature = "test-attacks")]
mod attacks;
mod bucket;
mod connection;
mod container;
mod control;
mod create;
mod directories;
mod door;
mod exec;
mod exit;
mod fields;
mod files;
mod guests;
mod heap;
mod held;
mod http;
mod instead;
mod log;
mod net;
mod news;
mod offers;
mod outgoing;
mod p3;
mod pipe;
mod ports;
mod preview1;
mod program;
mod room;
mod run;
mod sandbox;
mod seccomp;
mod sockets;
mod spare;
mod state;
mod table;
mod threads;
mod ticker;
mod visit;
mod warm;
mod zygote;

use std::process::ExitCode;

/// The body of `krustlet zygote`.
///
/// Takes over three descriptors: 3, a socket to the agent that started it; 4, a
/// bound socket at which it will listen for other agents; 5, the journal,
/// opened `O_APPEND`. Says [`Warm`](krustlet_protocol::ZygoteMessage::Warm) when
/// it is ready, and ends when it has been told to retire and its last sandbox
/// has ended. Must be called before the process has a second thread.
#[must_use]
pub fn zygote_main() -> ExitCode {
    zygote::main()
}
