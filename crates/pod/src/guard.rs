//! What the cluster's policies and the pod's own list let its sockets do.
//!
//! Pure but for what the network knows of the node's addresses. What policies come
//! to for a pod is worked out by whoever may take the time ([`Looked::ToWorkOut`]).

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use krustlet_model::{
    outbound::{Outbound, OutboundError},
    policy::{
        Book, Excess, MOST_PARTS, MOST_PARTS_OF_ALL, MOST_RANGES, MOST_RULES, PodPolicy, Policies,
        Verdict,
    },
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
    /// They have more than is let through.
    TooLarge(Excess),
    /// The list makes no sense any more.
    List(OutboundError),
}

/// What came of a look.
#[derive(Debug)]
pub(crate) enum Looked {
    /// What holds for the pod, and what is wrong with it.
    Known {
        guard: Guard,
        trouble: Option<Trouble>,
        /// What the policies say, to be held as long as it is gone by.
        verdict: Option<Arc<Verdict>>,
    },
    /// What the policies say has to be worked out of these first.
    ToWorkOut(Arc<Book>),
}

/// What holds for a pod now, as far as it is known. Takes no time.
///
/// A pod of the host's network is subject to no policy, as with most plugins:
/// what it sends cannot be told from what the node does.
pub(crate) fn look(network: &Network, policies: &Policies, pod: &Pod) -> Looked {
    let mut trouble = None;
    let outbound = Outbound::of(pod).unwrap_or_else(|error| {
        trouble = Some(Trouble::List(error));
        Some(Vec::new())
    });
    let mut verdict = None;
    let policy = if is_host_network(pod) {
        Some(PodPolicy::default())
    } else {
        match policies {
            Policies::Off => Some(PodPolicy::default()),
            Policies::Unknown(why) => {
                trouble = Some(Trouble::Unknown(why.clone()));
                None
            }
            Policies::Known(book) => {
                let Some(known) = book.known(pod) else {
                    return Looked::ToWorkOut(Arc::clone(book));
                };
                if let Some(excess) = known.excess {
                    trouble = Some(Trouble::TooLarge(excess));
                }
                let mut policy = known.policy.clone();
                if policy.ingress.is_some() {
                    policy.node = network.node_speaks_from();
                }
                verdict = Some(known);
                Some(policy)
            }
        }
    };
    Looked::Known { guard: Guard { policy, outbound }, trouble, verdict }
}

impl Trouble {
    /// What people are told.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Unknown(why) => format!("network is not ready: {why}"),
            Self::TooLarge(Excess::Pod) => format!(
                "the NetworkPolicies that select the pod come to more than {MOST_RANGES} ranges of \
                 addresses or {MOST_RULES} rules or ports, or one of them has more than {MOST_PARTS} \
                 parts; what is beyond is not let through: use ipBlocks or fewer policies"
            ),
            Self::TooLarge(Excess::Namespace) => format!(
                "the NetworkPolicies of the pod's namespace have more than {MOST_PARTS_OF_ALL} parts \
                 together; nothing is let through to or from its pods until they have fewer"
            ),
            Self::List(error) => error.to_string(),
        }
    }
}
