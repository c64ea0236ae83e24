//! What the agent, the zygote and the sandboxes say to each other.
//!
//! One `SOCK_SEQPACKET` packet is one [`Frame`]: JSON of at most
//! [`MAX_MESSAGE`] bytes, with at most [`MAX_DESCRIPTORS`] open files riding
//! along (`SCM_RIGHTS`), named in order by [`Frame::descriptors`]. What may be
//! larger than a packet (a container's environment) travels as a sealed memfd.
//!
//! ```text
//! agent ──ZygoteRequest──▶ zygote ──fork──▶ sandbox
//!       ◀──ZygoteReply───                     │
//! agent ──SandboxRequest────────────────────▶ │
//!       ◀──SandboxReply, SandboxEvent──────── │
//! ```
//!
//! The verbs are those of the CRI. A newer agent must understand the sandboxes
//! of the version before it: fields and verbs are only ever added, unknown
//! fields are ignored, an unknown verb is answered with
//! [`Failure::UnknownVerb`].

pub mod connection;
pub mod messages;
pub mod network;
pub mod process;
pub mod socket;
pub mod spec;

pub use connection::{Caller, Incoming, WithSandbox, WithZygote, ZygoteNews, connection};
pub use messages::{
    ContainerReport, DescriptorName, ExecOutcome, ExitReport, Failure, Frame, RunState,
    SandboxEvent, SandboxMessage, SandboxReply, SandboxRequest, StatsReport, ZygoteMessage,
    ZygoteReply, ZygoteRequest,
};
pub use network::{Destinations, Host, Names, PodNetwork, SocketLimits};
pub use process::PidFd;
pub use socket::{Packet, ParseError};
pub use spec::{ContainerSpec, GuestKind, HttpLimits, Limits, LogLimits, Preopen};

/// The protocol's version. Goes up when a verb or field is added.
pub const VERSION: u32 = 1;

/// The longest packet in bytes. The kernel's default send buffer is 212,992.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The most descriptors in one packet; the kernel's own limit is 253
/// (`SCM_MAX_FD`, `include/net/scm.h`). A pod with 50 volumes fits twice.
pub const MAX_DESCRIPTORS: usize = 128;

/// The longest container spec in its memfd, in bytes. The API server takes
/// objects of up to 1.5 MiB; expansion of `$(VAR)` may add to that.
pub const MAX_SPEC: usize = 4 << 20;
