//! From the cluster's policies and the names and labels in them to addresses.
//!
//! ```text
//! Book ── of(pod) ──▶ what policies say of it ──▶ kept for all that are like it
//!  │                                                       │
//!  └── the next Book follows ◀─────────────────────────────┘
//!      what did not change is taken over; what did is worked out before anybody asks
//! ```
//!
//! Working out blocks for a time that is bounded ([`MOST_PARTS`],
//! [`MOST_PARTS_OF_ALL`]) for each namespace by what is in it: whoever is allowed to
//! write its policies costs its own pods most.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicySpec};

use super::{
    Labels, PeerPod, PodPolicy, PolicyKey, PolicyRule,
    named::Named,
    peer::Subject,
    resolve::{Closes, Resolved, Sum, reach, resolve},
    select::selects,
    size::{MOST_PARTS, MOST_PARTS_OF_ALL, parts},
    whom::{Changes, Whom},
};

/// So many times what a pod may have is looked at for it: several policies often
/// say the same, which counts once.
const SAME: usize = 4;

/// What is known of the cluster's policies.
#[derive(Clone, Debug, Default)]
pub enum Policies {
    /// They are none of this node's business.
    #[default]
    Off,
    /// Not enough, for this reason: pods wait.
    Unknown(String),
    /// All of them.
    Known(Arc<Book>),
}

/// All policies, and whom they name.
#[derive(Debug, Default)]
pub struct Book {
    whom: Arc<Whom>,
    namespaces: BTreeMap<String, Namespace>,
    /// Looks that working out took.
    steps: AtomicU64,
}

/// The policies of a namespace.
#[derive(Debug, Default)]
struct Namespace {
    /// In the order of their names.
    entries: Vec<Entry>,
    /// What they say of those who were asked for.
    asked: Mutex<BTreeMap<Subject, Arc<Verdict>>>,
}

/// A policy. What it comes to is worked out when it is first asked for: most
/// are for pods of other nodes.
#[derive(Debug)]
struct Entry {
    name: String,
    spec: Arc<NetworkPolicySpec>,
    parts: OnceLock<usize>,
    resolved: OnceLock<Arc<Resolved>>,
}

/// What policies come to for one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What it may do; of what is too much, the first part.
    pub policy: PodPolicy,
    /// Whether there is more than is let through.
    pub excess: Option<Excess>,
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// What the pod's policies come to for it
    /// ([`MOST_RANGES`](super::MOST_RANGES), [`MOST_RULES`](super::MOST_RULES)), or one of them
    /// by itself.
    Pod,
    /// What the policies of its namespace say: none of them is looked at, and all
    /// pods there are closed.
    Namespace,
}

impl Entry {
    fn parts(&self) -> usize {
        *self.parts.get_or_init(|| parts(&self.spec))
    }

    /// Whether it says more than is looked at.
    fn is_too_large(&self) -> bool {
        self.parts() > MOST_PARTS
    }

    /// A selector that cannot be read selects all: a policy that nobody can read
    /// opens nothing.
    fn selects(&self, labels: &Labels) -> bool {
        let selector = self.spec.pod_selector.as_ref();
        selector.is_none_or(|selector| selects(selector, labels).unwrap_or(true))
    }

    /// Takes over what is known of the same policy. Whether it says the same.
    fn take_over(&self, old: &Self, is_concerned: impl FnOnce() -> bool) -> bool {
        if !Arc::ptr_eq(&self.spec, &old.spec) && self.spec != old.spec {
            return false;
        }
        if let Some(parts) = old.parts.get() {
            let _ = self.parts.set(*parts);
        }
        let Some(resolved) = old.resolved.get() else { return true };
        if is_concerned() {
            return false;
        }
        let _ = self.resolved.set(Arc::clone(resolved));
        true
    }
}

impl Namespace {
    /// Never held while anything is worked out.
    fn asked(&self) -> MutexGuard<'_, BTreeMap<Subject, Arc<Verdict>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What those were told who asked, as long as they hold it.
    fn held(&self) -> Vec<(Subject, Arc<Verdict>)> {
        let asked = self.asked();
        let held = asked.iter().filter(|(_, verdict)| Arc::strong_count(verdict) > 1);
        held.map(|(subject, verdict)| (subject.clone(), Arc::clone(verdict))).collect()
    }

    /// Whether all its policies together say more than is looked at.
    fn is_too_large(&self) -> bool {
        // One that is too large by itself is not looked at, and so costs no more.
        let all = self.entries.iter().map(|entry| entry.parts().min(MOST_PARTS + 1));
        all.sum::<usize>() > MOST_PARTS_OF_ALL
    }

    /// Takes over what is known of the same policies. Whether all say the same of
    /// whoever asked.
    fn take_over(&self, name: &str, old: &Self, changes: &Changes) -> bool {
        let mut is_same = self.entries.len() == old.entries.len();
        for entry in &self.entries {
            // Both are in the order of names.
            let found = old.entries.binary_search_by(|old| old.name.cmp(&entry.name));
            is_same &= found.is_ok_and(|index| {
                entry.take_over(&old.entries[index], || changes.concern(reach(&entry.spec), name))
            });
        }
        is_same
    }
}

impl Book {
    /// Puts together what is known.
    #[must_use]
    pub fn new(
        policies: &BTreeMap<PolicyKey, Arc<NetworkPolicySpec>>,
        namespaces: Arc<BTreeMap<String, Labels>>,
        pods: Arc<BTreeMap<PolicyKey, Arc<PeerPod>>>,
    ) -> Self {
        let mut book = Self { whom: Arc::new(Whom::new(pods, namespaces)), ..Self::default() };
        for ((namespace, name), spec) in policies {
            let entry = Entry {
                name: name.clone(),
                spec: Arc::clone(spec),
                parts: OnceLock::new(),
                resolved: OnceLock::new(),
            };
            book.namespaces.entry(namespace.clone()).or_default().entries.push(entry);
        }
        book
    }

    /// Works out for all who asked the book before this one, and still go by what
    /// it said, what this one says. Whether any of them is answered otherwise, or
    /// may be. Blocks.
    #[must_use]
    pub fn follow(&mut self, before: &Self) -> bool {
        let changes = if self.whom.is(&before.whom) {
            // One that is not made yet would be by what the policies before name.
            if before.whom.has_index_for(|| self.named()) {
                self.whom = Arc::clone(&before.whom);
            }
            Changes::default()
        } else {
            self.whom.changes_since(&before.whom)
        };
        // Of those without policies nobody knows who asked.
        let mut differs = self.namespaces.keys().any(|name| !before.namespaces.contains_key(name));
        for (name, old) in &before.namespaces {
            // First: whoever asks from now on finds nothing here, and is told.
            let held = old.held();
            let Some(new) = self.namespaces.get(name) else {
                differs |= held.iter().any(|(_, told)| **told != Verdict::default());
                continue;
            };
            let is_same = new.take_over(name, old, &changes);
            for (subject, told) in held {
                let verdict = if is_same {
                    told
                } else {
                    let verdict = self.verdict(name, new, &subject);
                    if verdict == *told {
                        told
                    } else {
                        differs = true;
                        Arc::new(verdict)
                    }
                };
                new.asked().insert(subject, verdict);
            }
        }
        differs
    }

    /// Whether this one says of all who go by the book before it what that says,
    /// without anything being worked out. [`follow`](Self::follow) comes first;
    /// whoever asked since then is not among those whom it asked for.
    #[must_use]
    pub fn covers(&self, before: &Self) -> bool {
        before.namespaces.iter().all(|(name, old)| {
            let held = old.held();
            let Some(new) = self.namespaces.get(name) else {
                return held.iter().all(|(_, told)| **told == Verdict::default());
            };
            let asked = new.asked();
            held.iter().all(|(subject, told)| asked.get(subject).is_some_and(|new| new == told))
        })
    }

    /// What the policies come to for a pod, if that is known: it need not be
    /// worked out.
    #[must_use]
    pub fn known(&self, pod: &Pod) -> Option<Arc<Verdict>> {
        match self.namespaces.get(namespace_of(pod)) {
            Some(namespace) => namespace.asked().get(&Subject::of(pod)).cloned(),
            None => Some(Arc::default()),
        }
    }

    /// What the policies come to for a pod: it is the business of whoever asks
    /// that those of the host's network are not subject to any. Blocks where it is
    /// not known. As long as what is returned is held, the books that follow know
    /// what they say of the pod.
    #[must_use]
    pub fn of(&self, pod: &Pod) -> Arc<Verdict> {
        let name = namespace_of(pod);
        let Some(namespace) = self.namespaces.get(name) else { return Arc::default() };
        let subject = Subject::of(pod);
        let known = namespace.asked().get(&subject).cloned();
        known.unwrap_or_else(|| {
            let verdict = Arc::new(self.verdict(name, namespace, &subject));
            Arc::clone(namespace.asked().entry(subject).or_insert(verdict))
        })
    }

    /// What has been worked out by this book until now, in looks at some 64 pods
    /// each: as a measure of its cost.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    fn verdict(&self, name: &str, namespace: &Namespace, subject: &Subject) -> Verdict {
        if namespace.is_too_large() {
            return Verdict { policy: PodPolicy::closed(), excess: Some(Excess::Namespace) };
        }
        let mut ports = subject.ports.clone();
        ports.sort();
        let mut found = Found::default();
        for entry in namespace.entries.iter().filter(|entry| entry.selects(&subject.labels)) {
            if entry.is_too_large() {
                found.close(Closes::BOTH);
                found.is_too_much = true;
                continue;
            }
            found.close(Closes::of(&entry.spec));
            // Of what comes after the first that is too much nothing is let
            // through, so that it need not be worked out.
            if found.is_too_much {
                continue;
            }
            let resolved = self.resolved(name, entry);
            for rule in resolved.ingress.iter().filter_map(|rule| rule.of(&ports)) {
                found.add(Direction::In, rule);
            }
            for rule in &resolved.egress {
                found.add(Direction::Out, rule.clone());
            }
            found.is_too_much |= resolved.is_too_large;
        }
        let excess = found.is_too_much.then_some(Excess::Pod);
        Verdict { policy: found.policy, excess }
    }

    /// What policies that are looked at name.
    fn named(&self) -> Named<'_> {
        let mut named = Named::default();
        for namespace in self.namespaces.values().filter(|namespace| !namespace.is_too_large()) {
            for entry in namespace.entries.iter().filter(|entry| !entry.is_too_large()) {
                named.add(&entry.spec);
            }
        }
        named
    }

    fn resolved<'a>(&self, name: &str, entry: &'a Entry) -> &'a Resolved {
        entry.resolved.get_or_init(|| {
            let mut steps = 0;
            let index = || self.whom.index(|| self.named());
            let resolved = resolve(&index, name, &entry.spec, &mut steps);
            self.steps.fetch_add(steps, Ordering::Relaxed);
            Arc::new(resolved)
        })
    }
}

/// What a pod may do, as far as its policies were gone through.
#[derive(Default)]
struct Found {
    policy: PodPolicy,
    is_too_much: bool,
    told: Sum,
    looked_at: Sum,
    known: HashSet<(Direction, PolicyRule)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Direction {
    In,
    Out,
}

impl Found {
    fn close(&mut self, closes: Closes) {
        if closes.ingress {
            self.policy.ingress.get_or_insert_default();
        }
        if closes.egress {
            self.policy.egress.get_or_insert_default();
        }
    }

    fn add(&mut self, direction: Direction, rule: PolicyRule) {
        if self.is_too_much || !self.looked_at.has_room(&rule, SAME) {
            self.is_too_much = true;
            return;
        }
        // Several policies often say the same.
        if !self.known.insert((direction, rule.clone())) {
            return;
        }
        if !self.told.has_room(&rule, 1) {
            self.is_too_much = true;
            return;
        }
        let rules = match direction {
            Direction::In => &mut self.policy.ingress,
            Direction::Out => &mut self.policy.egress,
        };
        rules.get_or_insert_default().push(rule);
    }
}

fn namespace_of(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}
