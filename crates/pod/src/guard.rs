//! What the cluster's policies and the pod's own list let its sockets do.
//!
//! Pure but for what the network knows of the node's addresses.

use k8s_openapi::api::core::v1::Pod;
use krustlet_model::{
    outbound::{Outbound, OutboundError},
    policy::{MOST_RANGES, MOST_RULES, PodPolicy, Policies, Verdict},
};
use krustlet_network::Network;

use crate::place::is_host_network;

/// What is let through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guard {
    /// By the policies; none while they are not known.
    pub(crate) policy: Option<PodPolicy>,
    /// By the pod's own list; everything without one.
    pub(crate) outbound: Option<Vec<Outbound>>,
}

/// Why a guard is not what it should be. A pod is not started with one: a
/// sandbox that lives lets less through than it might, never more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The policies are not known, for this reason.
    Unknown(String),
    /// They have more addresses, ports or rules for the pod than it may have.
    TooLarge,
    /// The list makes no sense any more.
    List(OutboundError),
}

/// What holds for a pod now, and what is wrong with it.
///
/// A pod of the host's network is subject to no policy, as with most plugins:
/// what it sends cannot be told from what the node does.
pub(crate) fn look(network: &Network, policies: &Policies, pod: &Pod) -> (Guard, Option<Trouble>) {
    let mut trouble = None;
    let outbound = Outbound::of(pod).unwrap_or_else(|error| {
        trouble = Some(Trouble::List(error));
        Some(Vec::new())
    });
    if is_host_network(pod) {
        return (Guard { policy: Some(PodPolicy::default()), outbound }, trouble);
    }
    let policy = match policies {
        Policies::Off => Some(PodPolicy::default()),
        Policies::Unknown(why) => {
            trouble = Some(Trouble::Unknown(why.clone()));
            None
        }
        Policies::Known(book) => {
            let Verdict { mut policy, is_too_large } = book.of(pod);
            if is_too_large {
                trouble = Some(Trouble::TooLarge);
            }
            if policy.ingress.is_some() {
                policy.node = network.node_speaks_from();
            }
            Some(policy)
        }
    };
    (Guard { policy, outbound }, trouble)
}

impl Trouble {
    /// What people are told.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Unknown(why) => format!("network is not ready: {why}"),
            Self::TooLarge => format!(
                "the NetworkPolicies that select the pod come to more than {MOST_RANGES} ranges of \
                 addresses or {MOST_RULES} rules or ports; what is beyond is not let through: use \
                 ipBlocks or fewer policies"
            ),
            Self::List(error) => error.to_string(),
        }
    }
}
