//! What a pod was refused, and by what: a guest hears one code, whichever rule it
//! was.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use krustlet_protocol::Refusals;

use super::NetError;

/// What refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// No pod may go there, or this one has no network.
    Destination,
    /// The cluster's policies.
    Policy,
    /// The pod's own list.
    List,
    /// It has as many sockets as it may.
    Bound,
}

/// Why one cannot go somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoWay {
    /// A rule refuses it.
    Refused(Rule),
    /// It is no destination, or not known now.
    Failed(NetError),
}

impl From<NetError> for NoWay {
    /// What [`place`](super::place) says, which knows but one rule.
    fn from(error: NetError) -> Self {
        match error {
            NetError::AccessDenied => Self::Refused(Rule::Destination),
            error => Self::Failed(error),
        }
    }
}

impl From<NoWay> for NetError {
    fn from(why: NoWay) -> Self {
        match why {
            NoWay::Refused(_) => Self::AccessDenied,
            NoWay::Failed(error) => error,
        }
    }
}

/// How many were refused, of one pod.
#[derive(Debug, Default)]
pub(super) struct Refused {
    destination: AtomicU64,
    policy: AtomicU64,
    list: AtomicU64,
    bound: AtomicU64,
}

impl Refused {
    pub(super) fn count(&self, by: Rule) {
        let counter = match by {
            Rule::Destination => &self.destination,
            Rule::Policy => &self.policy,
            Rule::List => &self.list,
            Rule::Bound => &self.bound,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn report(&self) -> Refusals {
        Refusals {
            destination: self.destination.load(Relaxed),
            policy: self.policy.load(Relaxed),
            list: self.list.load(Relaxed),
            bound: self.bound.load(Relaxed),
        }
    }
}
