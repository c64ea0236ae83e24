//! Whom policies may name, and what of that has changed.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use super::{Labels, PeerPod, PolicyKey, index::Index, named::Named};

/// All pods and namespaces.
#[derive(Debug, Default)]
pub(super) struct Whom {
    pods: Arc<BTreeMap<PolicyKey, Arc<PeerPod>>>,
    namespaces: Arc<BTreeMap<String, Labels>>,
    /// Made when somebody is first looked up, for what policies named then.
    index: OnceLock<Index>,
}

/// Who can make a difference to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// Addresses alone.
    Nobody,
    /// Pods of its own namespace.
    Namespace,
    /// All pods and namespaces.
    Everybody,
}

/// What is other than before.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The namespaces with other pods.
    pods: BTreeSet<String>,
    /// Whether namespaces have other labels.
    labels: bool,
}

impl Whom {
    pub(super) fn new(
        pods: Arc<BTreeMap<PolicyKey, Arc<PeerPod>>>,
        namespaces: Arc<BTreeMap<String, Labels>>,
    ) -> Self {
        Self { pods, namespaces, index: OnceLock::new() }
    }

    /// Whether these are the same, and not only alike.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pods, &other.pods) && Arc::ptr_eq(&self.namespaces, &other.namespaces)
    }

    /// All of them by what policies name; `named` is asked for it if that is needed.
    pub(super) fn index<'a>(&self, named: impl FnOnce() -> Named<'a>) -> &Index {
        self.index.get_or_init(|| Index::new(self.pods.values(), &self.namespaces, &named()))
    }

    /// Whether there is an index already, and that for policies which name these.
    pub(super) fn has_index_for<'a>(&self, named: impl FnOnce() -> Named<'a>) -> bool {
        self.index.get().is_some_and(|index| index.names_all(&named()))
    }

    pub(super) fn changes_since(&self, before: &Self) -> Changes {
        let mut pods = BTreeSet::new();
        let (mut old, mut new) = (before.pods.iter().peekable(), self.pods.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let other = match order {
                Ordering::Less => old.next(),
                Ordering::Greater => new.next(),
                Ordering::Equal => {
                    let both = old.next().zip(new.next());
                    let is_same = |old: &Arc<PeerPod>, new| Arc::ptr_eq(old, new) || old == new;
                    both.filter(|((_, old), (_, new))| !is_same(old, new)).map(|(old, _)| old)
                }
            };
            if let Some(((namespace, _), _)) = other
                && !pods.contains(namespace)
            {
                pods.insert(namespace.clone());
            }
        }
        let is_same = Arc::ptr_eq(&self.namespaces, &before.namespaces);
        Changes { pods, labels: !is_same && self.namespaces != before.namespaces }
    }
}

impl Changes {
    /// Whether they can make a difference to a policy of a namespace.
    pub(super) fn concern(&self, reach: Reach, namespace: &str) -> bool {
        match reach {
            Reach::Nobody => false,
            Reach::Namespace => self.pods.contains(namespace),
            Reach::Everybody => self.labels || !self.pods.is_empty(),
        }
    }
}
