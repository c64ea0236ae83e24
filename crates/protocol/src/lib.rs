//! What the agent, the zygote and the sandboxes say to each other.
//!
//! One `SOCK_SEQPACKET` packet is one [`Frame`]: JSON of at most
//! [`MAX_MESSAGE`] bytes, with at most [`MAX_DESCRIPTORS`] open files riding
//! along (`SCM_RIGHTS`), named in order by [`Frame::descriptors`]. What may be
//! larger than a packet (a container's environment) travels as a sealed memfd;
//! so does a whole message that is too long, such as a list of thousands of
//! containers ([`socket::send_any_length`]).
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
pub mod services;
pub mod socket;
pub mod spec;

pub use connection::{Caller, Incoming, WithSandbox, WithZygote, ZygoteNews, connection};
pub use messages::{
    ContainerReport, DescriptorName, ExecOutcome, ExitReport, Failure, Frame, NetworkReport,
    Refusals, RunState, SandboxEvent, SandboxMessage, SandboxReply, SandboxRequest, StatsReport,
    ZygoteMessage, ZygoteReply, ZygoteRequest,
};
pub use network::{Destinations, Host, Names, PodNetwork, SocketLimits};
pub use process::PidFd;
pub use services::{NamedAddress, ServiceAddress, ServiceName, ServicePort};
pub use socket::{Packet, ParseError};
pub use spec::{ContainerSpec, GuestKind, HttpLimits, Limits, ListenPort, LogLimits, Preopen};

/// The protocol's version. Goes up when a verb or field is added.
///
/// 2: messages of any length ([`FOLDS`]), `Limits::cpu_millis`, `SetPodNetwork`,
/// `UpdateContainer`, `Complained`, `Connect`.
///
/// 3: sockets for datagrams ([`DATAGRAMS`]), `NetworkReport::refusals`,
/// `HttpLimits::backlog`, `Listeners`, `Listening`.
pub const VERSION: u32 = 3;

/// The version from which on an agent understands a message in a memfd.
pub const FOLDS: u32 = 2;

/// The version from which on a sandbox takes [`DescriptorName::Datagrams`].
pub const DATAGRAMS: u32 = 3;

/// The longest packet in bytes. The kernel's default send buffer is 212,992.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The longest message in a memfd, in bytes: what a shared sandbox has to say of
/// 65,536 containers, most of which have ended without many words.
pub const MAX_FOLDED: usize = 64 << 20;

/// The most descriptors in one packet; the kernel's own limit is 253
/// (`SCM_MAX_FD`, `include/net/scm.h`). A pod with 50 volumes fits twice.
pub const MAX_DESCRIPTORS: usize = 128;

/// The most listening sockets of one pod that a sandbox lends the agent. Few pods
/// have more than two for each of a few ports; what is done to each takes memory of
/// the system's.
pub const MAX_LISTENERS: usize = 64;

/// The longest container spec in its memfd, in bytes. The API server takes
/// objects of up to 1.5 MiB; expansion of `$(VAR)` may add to that.
pub const MAX_SPEC: usize = 4 << 20;
