//! What a pod's sockets may do. No Service or Node, no label: the agent has
//! resolved those to addresses.
//!
//! Handed over before the pod's first container is created, and again, whole,
//! whenever it changes. The sandbox goes by the last one it was given, also
//! while no agent is there.

use std::net::{IpAddr, SocketAddr};

use krustlet_model::{outbound::Outbound, policy::PodPolicy};
use serde::{Deserialize, Serialize};

/// The network of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodNetwork {
    /// The pod's addresses, the node's own family first; at most one for each
    /// family. Every socket of the pod is bound to one of them, or to the
    /// loopback; but a pod whose address is a loopback's, or that shares the
    /// node's, calls others from the address that the machine has on the way
    /// there. Empty: the pod has no network, and every socket is refused.
    pub addresses: Vec<IpAddr>,
    /// Whether the addresses are the node's, which the pod shares with it:
    /// ports below 1024 can then be bound only if their listener was handed
    /// over.
    pub is_host: bool,
    /// Whether the loopback is the node's too, and no other is there, as with
    /// `hostNetwork`. Else `127.0.0.0/8` and `::1` are the pod's own.
    pub shares_loopback: bool,
    /// Where no guest may connect or send to. Loopback is not among them.
    pub refused: Vec<Destinations>,
    /// What the cluster's policies let through. None if that is not known now:
    /// what was said last stays, and if nothing was, nothing is let through.
    pub policy: Option<PodPolicy>,
    /// Where guests may go by the pod's own list; anywhere if none.
    pub outbound: Option<Vec<Outbound>>,
    /// How names are looked up. None if that is not known now: what was said last
    /// stays. A sandbox of version 2 refuses a telling without them.
    pub names: Option<Names>,
    /// Bounds.
    pub limits: SocketLimits,
}

impl Default for PodNetwork {
    /// No network, and no policy.
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            is_host: false,
            shares_loopback: false,
            refused: Vec::new(),
            policy: Some(PodPolicy::default()),
            outbound: None,
            names: Some(Names::default()),
            limits: SocketLimits::default(),
        }
    }
}

/// Destinations: a range of addresses, and one port or all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destinations {
    /// An address of the range; bits beyond `prefix` count for nothing.
    pub address: IpAddr,
    /// Bits that addresses of the range share; 0 to 32 or 128.
    pub prefix: u8,
    /// The port; all if none.
    pub port: Option<u16>,
}

/// How a pod looks names up: what `/etc/hosts` and `/etc/resolv.conf` say in a
/// container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Names {
    /// Names that need no server, each with its addresses' text as written.
    pub hosts: Vec<Host>,
    /// The domain whose names are those of the Services that the sandbox was
    /// handed ([`services`](crate::services)); empty if servers are asked for
    /// them.
    pub cluster_domain: String,
    /// Servers, asked in this order.
    pub servers: Vec<SocketAddr>,
    /// Those of them that the node gave, and not the pod's own spec: look-ups may
    /// go there also where the pod's guests may not.
    pub node_servers: Vec<SocketAddr>,
    /// Domains tried after a name with fewer dots than `ndots`, or before.
    pub searches: Vec<String>,
    /// From so many dots on a name is tried as it is first; resolv.conf's
    /// default is 1, that of `ClusterFirst` 5.
    pub ndots: u8,
    /// How long one server is waited for, in milliseconds.
    pub timeout_ms: u64,
    /// How many times the servers are gone through; at least 1.
    pub attempts: u8,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The address.
    pub address: IpAddr,
    /// Its names, in lower case.
    pub names: Vec<String>,
}

/// Bounds of one pod's sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketLimits {
    /// Sockets open at once: listeners, connections and datagram sockets,
    /// private ones included.
    pub sockets: u32,
    /// Look-ups under way at once; more wait.
    pub lookups: u32,
    /// Bits per second that all its sockets together receive from the network;
    /// no limit if none. What comes faster waits where it came from.
    pub ingress_bits: Option<u64>,
    /// As `ingress_bits`, for what they send.
    pub egress_bits: Option<u64>,
}

impl Default for SocketLimits {
    /// Descriptors of a process are limited to 20,000 on small machines; a pod
    /// that needs more than these sockets is rare.
    fn default() -> Self {
        Self { sockets: 4096, lookups: 32, ingress_bits: None, egress_bits: None }
    }
}
