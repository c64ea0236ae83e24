//! What the cluster's NetworkPolicies let a pod's sockets do.
//!
//! ```text
//! NetworkPolicies, Namespaces, Pods ──▶ Book ──of(pod)──▶ PodPolicy ──▶ lets_in, lets_out
//!        (the agent: names and labels)                     (a sandbox: addresses and ports)
//! ```
//!
//! A direction that no policy speaks of is open; one that some do is closed but
//! for what at least one of them lets through. Answers to what was let through
//! are nobody's business here.
//!
//! Who may write the policies of a namespace may not hold up those of others:
//! what is worked out is bounded (`size.rs`), and is cheap by how pods are looked
//! up (`index.rs`). Beyond the bound the namespace's pods are closed. Who may make
//! pods has a bound too: those with more labels than that are named by nobody
//! ([`may_be_named`]).
//!
//! Source: Kubernetes, `NetworkPolicySpec` in `staging/src/k8s.io/api/networking/v1/types.go`
//! and the concept page "Network Policies".

mod bits;
mod book;
#[cfg(test)]
mod cost;
mod index;
mod named;
mod peer;
mod ranges;
mod resolve;
mod select;
mod size;
#[cfg(test)]
mod tests;
mod whom;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::services::Transport;

pub use self::{
    book::{Book, Excess, Policies, Verdict},
    peer::{Labels, MOST_LABELS, MOST_NAMED_PORTS, NamedPort, PeerPod, PolicyKey, may_be_named},
    ranges::{AddressRange, merge},
    size::{MOST_PARTS, MOST_PARTS_OF_ALL},
};

/// Ranges of addresses that one pod's policy may have. A sandbox looks through
/// them, and they take memory there: 34 bytes each.
pub const MOST_RANGES: usize = 4096;

/// Rules, and ranges of ports of all rules together, that it may have.
pub const MOST_RULES: usize = 1024;

/// What one pod's sockets may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodPolicy {
    /// Who may come in, and where to; anybody if none.
    pub ingress: Option<Vec<PolicyRule>>,
    /// Where the pod may go; anywhere if none.
    pub egress: Option<Vec<PolicyRule>>,
    /// The node's own addresses, which may come in whatever `ingress` says: the
    /// probes come from there.
    pub node: Vec<IpAddr>,
}

/// Lets through what fits both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PolicyRule {
    /// The other side, in order and without overlap; any if none.
    pub peers: Option<Vec<AddressRange>>,
    /// The port that is connected or sent to; any of any protocol if none.
    pub ports: Option<Vec<PortRange>>,
}

/// Ports of a protocol, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// The protocol.
    pub protocol: Transport,
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl PodPolicy {
    /// One that lets nothing through.
    #[must_use]
    pub fn closed() -> Self {
        Self { ingress: Some(Vec::new()), egress: Some(Vec::new()), node: Vec::new() }
    }

    /// Whether `from` may connect or send to a port of the pod.
    #[must_use]
    pub fn lets_in(&self, protocol: Transport, from: IpAddr, port: u16) -> bool {
        let Some(rules) = &self.ingress else { return true };
        let from = from.to_canonical();
        self.node.contains(&from) || fits(rules, protocol, from, port)
    }

    /// Who may connect or send to a port of the pod, in order and without overlap;
    /// anybody if none. [`lets_in`](Self::lets_in) asks of one.
    #[must_use]
    pub fn sources(&self, protocol: Transport, port: u16) -> Option<Vec<AddressRange>> {
        let rules = self.ingress.as_ref()?.iter().filter(|rule| rule.is_of(protocol, port));
        let mut sources: Vec<_> = self.node.iter().copied().map(AddressRange::one).collect();
        for rule in rules {
            sources.extend(rule.peers.as_ref()?);
        }
        Some(merge(sources))
    }

    /// Whether the pod may connect or send there.
    #[must_use]
    pub fn lets_out(&self, protocol: Transport, to: SocketAddr) -> bool {
        let Some(rules) = &self.egress else { return true };
        fits(rules, protocol, to.ip().to_canonical(), to.port())
    }
}

impl PolicyRule {
    fn is_of(&self, protocol: Transport, port: u16) -> bool {
        let is_port = |range: &PortRange| {
            range.protocol == protocol && (range.first..=range.last).contains(&port)
        };
        self.ports.as_ref().is_none_or(|ports| ports.iter().any(is_port))
    }
}

fn fits(rules: &[PolicyRule], protocol: Transport, peer: IpAddr, port: u16) -> bool {
    rules.iter().any(|rule| {
        rule.is_of(protocol, port)
            && rule.peers.as_ref().is_none_or(|peers| ranges::contain(peers, peer))
    })
}
