//! Whose turn it is: the newest status of each pod and where its writing stands.
//!
//! ```text
//! clean ──report──▶ due ──next──▶ in flight ──finish──▶ clean | due (later)
//! ```
//!
//! Pure apart from the clock it is given: it neither sends nor waits. A pod is
//! in flight once at most, so its writes never overtake each other; a deletion
//! is due only when its last status is written or refused for good.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use krustlet_model::{Chain, PodKey, PodUid};
use serde_json::Value;
use tokio::{sync::oneshot, time::Instant};

use crate::{RequestError, feed::is_newer, retry::Backoff};

use super::patch;

/// Waits after a failure of one pod's request that is no outage.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// One request to send.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) uid: PodUid,
    pub(super) key: PodKey,
    pub(super) work: Work,
}

/// What to send.
#[derive(Debug)]
pub(super) enum Work {
    /// Write a status; `wanted` is the whole of it.
    Patch { body: Value, wanted: Value },
    /// See whether the pod is still there and still this one.
    Look,
    /// Remove the pod.
    Delete,
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) uid: PodUid,
    pub(super) key: PodKey,
    pub(super) work: Work,
    pub(super) result: Result<Option<Box<Pod>>, RequestError>,
}

#[derive(Debug)]
struct Entry {
    key: PodKey,
    /// The pod as its reporter last saw it; None if only a deletion was asked.
    pod: Option<Arc<Pod>>,
    /// What is to be written. None: nothing that is not written.
    wanted: Option<PodStatus>,
    /// What was written last, and the pod the server answered with.
    written: Option<(Value, Arc<Pod>)>,
    /// What the server will not have; not sent again until it changes.
    refused: Option<Value>,
    /// The server said something that only a look at the pod explains.
    look: bool,
    deletion: Option<Vec<oneshot::Sender<()>>>,
    in_flight: bool,
    queued: bool,
    not_before: Option<Instant>,
    backoff: Backoff,
}

impl Entry {
    fn new(key: PodKey) -> Self {
        Self {
            key,
            pod: None,
            wanted: None,
            written: None,
            refused: None,
            look: false,
            deletion: None,
            in_flight: false,
            queued: false,
            not_before: None,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
        }
    }

    fn has_work(&self) -> bool {
        self.look || self.wanted.is_some() || self.deletion.is_some()
    }

    /// The newest that is known of the pod at the server.
    fn base(&self) -> Option<&Arc<Pod>> {
        let written = self.written.as_ref().map(|(_, pod)| pod);
        match (&self.pod, written) {
            (Some(seen), Some(written)) => {
                let version = |pod: &'_ Arc<Pod>| pod.metadata.resource_version.clone();
                let newer = is_newer(version(seen).as_deref(), version(written).as_deref());
                Some(if newer { seen } else { written })
            }
            (seen, written) => seen.as_ref().or(written),
        }
    }

    /// What to send now; None if the server knows everything.
    fn work(&mut self, uid: &PodUid) -> Option<Work> {
        if self.look {
            return Some(Work::Look);
        }
        if let (Some(status), Some(pod)) = (self.wanted.take(), &self.pod)
            && let Some(base) = self.base()
        {
            let wanted = patch::whole(&status);
            let known = self.written.as_ref().map(|(whole, pod)| (whole, pod));
            let told = known.is_some_and(|(whole, at)| *whole == wanted && Arc::ptr_eq(at, base));
            let refused = self.refused.as_ref() == Some(&wanted);
            if !told
                && !refused
                && let Some(body) = patch::patch(uid, pod, base, &wanted)
            {
                // Kept until the server has it.
                self.wanted = Some(status);
                return Some(Work::Patch { body, wanted });
            }
        }
        self.deletion.is_some().then_some(Work::Delete)
    }
}

/// Every pod that was reported and is not forgotten.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<PodUid, Entry>,
    /// Pods with work, in the order in which it came up. Each is in it once.
    due: VecDeque<PodUid>,
    closed: bool,
}

impl Ledger {
    /// Takes a status; see [`super::StatusWriter::report`].
    pub(super) fn report(&mut self, pod: &Arc<Pod>, status: PodStatus) {
        let (Some(uid), Some(name)) = (&pod.metadata.uid, &pod.metadata.name) else {
            return;
        };
        let uid = PodUid::new(uid.clone());
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let key = PodKey { namespace, name: name.clone() };
        let entry = self.entries.entry(uid.clone()).or_insert_with(|| Entry::new(key));
        entry.pod = Some(Arc::clone(pod));
        entry.wanted = Some(status);
        self.enqueue(&uid);
    }

    /// Takes a deletion; see [`super::StatusWriter::delete`].
    pub(super) fn delete(&mut self, key: &PodKey, uid: &PodUid, done: oneshot::Sender<()>) {
        if self.closed {
            return;
        }
        let entry = self.entries.entry(uid.clone()).or_insert_with(|| Entry::new(key.clone()));
        entry.deletion.get_or_insert_default().push(done);
        self.enqueue(uid);
    }

    fn enqueue(&mut self, uid: &PodUid) {
        if let Some(entry) = self.entries.get_mut(uid)
            && entry.has_work()
            && !entry.in_flight
            && !entry.queued
        {
            entry.queued = true;
            self.due.push_back(uid.clone());
        }
    }

    /// The next request that may be sent.
    pub(super) fn next(&mut self, now: Instant) -> Option<Job> {
        // Each is looked at once; those that must wait keep their place.
        for _ in 0..self.due.len() {
            let uid = self.due.pop_front()?;
            let Some(entry) = self.entries.get_mut(&uid) else { continue };
            if entry.not_before.is_some_and(|at| now < at) {
                self.due.push_back(uid);
                continue;
            }
            entry.not_before = None;
            entry.queued = false;
            if let Some(work) = entry.work(&uid) {
                entry.in_flight = true;
                return Some(Job { key: entry.key.clone(), uid, work });
            }
        }
        None
    }

    /// When [`Ledger::next`] may have something again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.iter().filter_map(|uid| self.entries.get(uid)?.not_before).min()
    }

    /// Notes what became of a request.
    pub(super) fn finish(&mut self, outcome: Outcome, now: Instant) {
        let Outcome { uid, key, work, result } = outcome;
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        entry.in_flight = false;
        match result {
            Ok(answer) => {
                // A look mends nothing by itself.
                if !matches!(work, Work::Look) {
                    entry.backoff.reset();
                }
                match (work, answer) {
                    (Work::Patch { wanted, .. }, Some(pod)) => entry.acknowledge(wanted, *pod),
                    (Work::Look, Some(pod)) => {
                        if pod.metadata.uid.as_deref() != Some(uid.as_str()) {
                            self.forget(&uid);
                            return;
                        }
                        entry.look = false;
                        entry.pod = Some(Arc::new(*pod));
                    }
                    (Work::Delete, _) => {
                        self.forget(&uid);
                        return;
                    }
                    (Work::Patch { .. } | Work::Look, None) => {}
                }
            }
            Err(error) => {
                if error.code() == Some(404)
                    || error.names("metadata.uid")
                    || (error.code() == Some(409) && matches!(work, Work::Delete))
                {
                    // Gone, or another pod has the name.
                    self.forget(&uid);
                    return;
                }
                entry.failed(&key, work, &error);
                entry.not_before = Some(now + entry.backoff.wait(error.retry_after()));
            }
        }
        self.enqueue(&uid);
    }

    /// Whether everything is written and no deletion waits.
    pub(super) fn is_idle(&self) -> bool {
        self.due.is_empty()
    }

    /// How many pods have something unwritten.
    pub(super) fn waiting(&self) -> usize {
        self.entries.values().filter(|entry| entry.has_work() || entry.in_flight).count()
    }

    /// Forgets the pods that `keep` does not know, but none in flight.
    pub(super) fn retain(&mut self, keep: impl Fn(&PodUid) -> bool) {
        self.entries.retain(|uid, entry| {
            if entry.in_flight || keep(uid) {
                return true;
            }
            entry.tell();
            false
        });
        let entries = &self.entries;
        self.due.retain(|uid| entries.contains_key(uid));
    }

    /// Forgets everything; whoever waits for a deletion learns that it will not
    /// come, and so do those who ask later.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.entries.clear();
        self.due.clear();
    }

    fn forget(&mut self, uid: &PodUid) {
        if let Some(mut entry) = self.entries.remove(uid) {
            entry.tell();
        }
    }
}

impl Entry {
    /// The server has `wanted` and answered with `pod`.
    fn acknowledge(&mut self, wanted: Value, pod: Pod) {
        // A newer report may have come meanwhile; it stays.
        if self.wanted.as_ref().is_some_and(|status| patch::whole(status) == wanted) {
            self.wanted = None;
        }
        self.refused = None;
        self.written = Some((wanted, Arc::new(pod)));
    }

    fn failed(&mut self, key: &PodKey, work: Work, error: &RequestError) {
        match (work, error.code()) {
            // 409: the uid differs, or too many wrote at once.
            (Work::Patch { .. }, Some(409)) => self.look = true,
            (Work::Patch { wanted, .. }, Some(400 | 422)) => {
                self.look = true;
                tracing::warn!(pod = %key, error = %Chain(error), "the API server will not have this pod status");
                self.refused = Some(wanted);
            }
            (Work::Patch { .. } | Work::Look | Work::Delete, _) if error.is_outage() => {}
            (Work::Patch { .. } | Work::Look | Work::Delete, _) => {
                tracing::warn!(pod = %key, error = %Chain(error), "cannot write a pod's status; trying again");
            }
        }
    }

    /// Tells those who wait for the deletion that the pod is gone.
    fn tell(&mut self) {
        for waiter in self.deletion.take().unwrap_or_default() {
            // Whoever no longer waits need not know.
            let _ = waiter.send(());
        }
    }
}
