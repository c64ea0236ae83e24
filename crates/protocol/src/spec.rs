//! What a sandbox is told about a container. No pod spec: names are resolved,
//! paths are descriptors.

use krustlet_model::{ContainerId, ContainerName, PodUid};
use serde::{Deserialize, Serialize};

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The run's id.
    pub id: ContainerId,
    /// The pod it belongs to; in a shared sandbox there are several.
    pub pod: PodUid,
    /// Its name, for messages.
    pub name: ContainerName,
    /// How to run the guest.
    pub guest: GuestKind,
    /// The artifact's file name in the directory that comes along as
    /// [`DescriptorName::ArtifactDirectory`](crate::DescriptorName).
    pub artifact: String,
    /// Arguments, the program's name first.
    pub args: Vec<String>,
    /// Environment, in order; no name twice.
    pub env: Vec<(String, String)>,
    /// The guest's working directory, if the image or the pod names one.
    pub working_directory: Option<String>,
    /// Directories the guest may open, one descriptor each, in this order.
    pub preopens: Vec<Preopen>,
    /// How many bound TCP sockets come along. Each is listened on while the
    /// guest listens on the port it is for.
    pub listeners: u16,
    /// The container port that each of those is for, in their order. Empty:
    /// the ports that they are bound to.
    #[serde(default)]
    pub listener_ports: Vec<u16>,
    /// The container port of each bound UDP socket that comes along, in their
    /// order. What comes there is heard by who is bound to that port in the pod.
    #[serde(default)]
    pub datagram_ports: Vec<u16>,
    /// Ports on which the sandbox listens for the guest: the one port of an http
    /// guest; the TCP ports that a module's container declares, in their order,
    /// which a module that accepts connections finds pre-opened. A command
    /// listens itself.
    #[serde(default)]
    pub listen_ports: Vec<ListenPort>,
    /// What it may use.
    pub limits: Limits,
    /// How far its log may grow.
    pub log: LogLimits,
}

/// How a guest is entered, found by inspection of its exports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestKind {
    /// A core module: this export is called (`_start` for a WASI p1 command).
    Module {
        /// The export's name.
        export: String,
    },
    /// A component that exports `wasi:cli/run` 0.2.
    Command,
    /// A component that exports `wasi:http/incoming-handler` 0.2 or
    /// `wasi:http/handler` 0.3; no instance lives while nobody calls.
    Http(HttpLimits),
}

/// Bounds of an http guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpLimits {
    /// Requests served at once; more wait for their turn. At least 1.
    pub max_concurrent: u32,
    /// Time for one request to be answered whole, in milliseconds.
    pub request_timeout_ms: u64,
    /// How long a connection is kept on which nothing is asked, in
    /// milliseconds.
    pub idle_timeout_ms: u64,
    /// Bytes of a request's body; no bound if none.
    pub max_body_bytes: Option<u64>,
    /// Requests that an instance answers before another takes its place, at
    /// least 1; if none, 1 of WASI 0.2 and 128 of 0.3.
    pub max_instance_reuse: Option<u32>,
    /// Requests at once in an instance, at least 1; if none, 16. WASI 0.2 has
    /// no more than one.
    pub max_instance_concurrent_reuse: Option<u32>,
    /// How long an instance without a request is kept for the next one, in
    /// milliseconds.
    pub idle_instance_timeout_ms: u64,
    /// Connections that may wait to be accepted, at least 1; if none, as many as
    /// the node lets wait.
    pub backlog: Option<u32>,
}

impl Default for HttpLimits {
    /// `wasmtime serve` has no bound on requests at once; one node holds many
    /// pods. Times are nginx's (`proxy_read_timeout`, `keepalive_timeout`),
    /// rounded; what is of instances is that of `wasmtime serve`.
    fn default() -> Self {
        Self {
            max_concurrent: 128,
            request_timeout_ms: 60_000,
            idle_timeout_ms: 60_000,
            max_body_bytes: None,
            max_instance_reuse: None,
            max_instance_concurrent_reuse: None,
            idle_instance_timeout_ms: 1000,
            backlog: None,
        }
    }
}

/// A port to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenPort {
    /// Its name, if the container gives it one.
    pub name: Option<String>,
    /// Its number; not 0.
    pub port: u16,
}

/// What a container may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of linear memory and tables over all instances of the container.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core over all instances of the container, execs
    /// included. 0 and what one thread cannot exceed, 1000 and more, are none.
    #[serde(default)]
    pub cpu_millis: Option<u64>,
}

/// A directory handed to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preopen {
    /// Where the guest sees it; absolute.
    pub guest_path: String,
    /// Whether the guest may write to it. The mount says so too.
    pub writable: bool,
}

/// How far a container's log may grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes in one file before the next is begun; kubelet's
    /// `containerLogMaxSize` (10 MiB by default).
    pub max_bytes: u64,
}
