//! Who is in which sandbox: the runtime's table.
//!
//! ```text
//! pod:     (none) ──▶ Joining ──▶ In ──▶ Leaving ──▶ (none)
//! domain:  (none) ──▶ Starting ──▶ Live ──▶ Ending ──▶ (none)
//! ```
//!
//! A pod of its own and a thousand that share a process go the same way: the
//! first of a domain starts the process, the last ends it, and who comes while
//! it ends waits for the next. Only a table; [`task`](crate::task) acts on it.

use std::{collections::HashMap, sync::Arc};

use krustlet_model::PodUid;

use crate::{
    Domain, NetworkKind, PodEvents, PodSandbox, PodUser, RuntimeError, handle::Reply,
    sandbox::Sandbox,
};

#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) pods: HashMap<PodUid, Slot>,
    pub(crate) domains: HashMap<Key, Process>,
    /// By id, the living and the dead that some pod has not left yet.
    pub(crate) sandboxes: HashMap<String, Held>,
}

/// Who shares a process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Own(PodUid),
    Shared(Domain, PodUser, NetworkKind),
}

/// What all pods of one process have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) domain: Domain,
    pub(crate) user: PodUser,
    pub(crate) network: NetworkKind,
}

impl From<&PodSandbox> for Who {
    fn from(wanted: &PodSandbox) -> Self {
        let PodSandbox { domain, user, kind, .. } = wanted;
        Self { domain: domain.clone(), user: user.clone(), network: *kind }
    }
}

/// Where a pod stands.
#[derive(Debug)]
pub(crate) enum Slot {
    /// It is to be stopped once it has joined, if anybody waits for that.
    Joining {
        stops: Vec<Reply<()>>,
    },
    In(Arc<Sandbox>),
    Leaving {
        replies: Vec<Reply<()>>,
    },
}

/// Where a domain's process stands.
#[derive(Debug)]
pub(crate) enum Process {
    Starting { joiners: Vec<Joiner> },
    Live(Arc<Sandbox>),
    Ending { id: String, joiners: Vec<Joiner> },
}

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) sandbox: Arc<Sandbox>,
    /// Pods that are in it or about to join.
    pub(crate) members: usize,
}

#[derive(Debug)]
pub(crate) struct Joiner {
    pub(crate) wanted: PodSandbox,
    pub(crate) reply: Reply<PodEvents>,
}

impl Key {
    pub(crate) fn of(who: &Who, pod: &PodUid) -> Self {
        let Who { domain, user, network } = who;
        match domain {
            Domain::Pod => Self::Own(pod.clone()),
            Domain::Namespace(_) | Domain::Node => {
                Self::Shared(domain.clone(), user.clone(), *network)
            }
        }
    }
}

impl Table {
    pub(crate) fn sandbox_of(&self, pod: &PodUid) -> Result<Arc<Sandbox>, RuntimeError> {
        match self.pods.get(pod) {
            Some(Slot::In(sandbox)) => Ok(Arc::clone(sandbox)),
            Some(Slot::Joining { .. } | Slot::Leaving { .. }) | None => {
                Err(RuntimeError::NoSandbox { pod: pod.clone() })
            }
        }
    }

    /// The sandboxes, each with the pods that are in it.
    pub(crate) fn members(&self) -> Vec<(Arc<Sandbox>, Vec<PodUid>)> {
        let mut all: HashMap<&str, (Arc<Sandbox>, Vec<PodUid>)> = HashMap::new();
        for (pod, slot) in &self.pods {
            if let Slot::In(sandbox) = slot {
                let empty = || (Arc::clone(sandbox), Vec::new());
                all.entry(&sandbox.id).or_insert_with(empty).1.push(pod.clone());
            }
        }
        all.into_values().collect()
    }

    /// Counts one pod less in a sandbox; true if it was the last.
    pub(crate) fn member_leaves(&mut self, sandbox: &Sandbox) -> bool {
        match self.sandboxes.get_mut(&sandbox.id) {
            Some(held) => {
                held.members = held.members.saturating_sub(1);
                held.members == 0
            }
            None => true,
        }
    }

    pub(crate) fn is_live(&self, key: &Key, sandbox: &Arc<Sandbox>) -> bool {
        matches!(self.domains.get(key), Some(Process::Live(live)) if Arc::ptr_eq(live, sandbox))
    }
}
