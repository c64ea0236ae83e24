//! Reports of pods: the newest status of each, one request in flight for each.
//!
//! ```text
//! report ──▶ ledger (newest per pod) ──▶ up to 16 requests ──▶ API server
//!                ▲────────── acknowledged, or to be tried again ───┘
//! ```
//!
//! A report leaves at once when nothing of its pod is under way, and replaces
//! the one that waits otherwise. [`patch`] decides what of it the server has to
//! be told, [`ledger`] whose turn it is; the task here sends. What a status is
//! made of is decided by `krustlet_model::status`.

mod ledger;
mod patch;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use krustlet_model::{Chain, PodKey, PodUid};
use kube::{
    Resource,
    api::{DeleteParams, GetParams, Patch, PatchParams, Preconditions},
    core::Request,
};
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{Cluster, PodSet, RequestError, request::LIMIT, retry::Backoff};

use ledger::{Job, Ledger, Outcome, Work};

/// Requests in flight together. One patch takes the API server some 12 ms of
/// which most is waiting, so this is about a thousand reports a second, more
/// than a server on a small machine takes.
const IN_FLIGHT: usize = 16;

/// How long statuses that wait are still sent once the agent stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How often pods that are gone are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Why a pod could not be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeleteError {
    /// The agent stops; the next one begins where this one was.
    #[error("the agent is stopping")]
    Stopping,
}

/// Takes reports. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StatusWriter {
    shared: Arc<Shared>,
}

/// A queue would grow while the server is away; this holds the newest status of
/// each pod only. The lock is held for map operations, never across an await.
#[derive(Debug)]
struct Shared {
    ledger: Mutex<Ledger>,
    changed: Notify,
}

impl Shared {
    fn with<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        // A panic inside leaves at worst one pod's entry as it was.
        change(&mut self.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Sends reports until stopped, then those that still wait.
#[derive(Debug)]
pub struct StatusTask {
    cluster: Cluster,
    shared: Arc<Shared>,
    pods: watch::Receiver<PodSet>,
    in_flight: JoinSet<Outcome>,
    /// While the server is away one request at a time asks whether it is back.
    outage: Option<Instant>,
    backoff: Backoff,
}

/// The writer of statuses. `pods` tells it which pods it may forget.
#[must_use]
pub fn status(cluster: &Cluster, pods: watch::Receiver<PodSet>) -> (StatusWriter, StatusTask) {
    let shared = Arc::new(Shared { ledger: Mutex::new(Ledger::default()), changed: Notify::new() });
    let task = StatusTask {
        cluster: cluster.clone(),
        shared: Arc::clone(&shared),
        pods,
        in_flight: JoinSet::new(),
        outage: None,
        // The longest wait is what is lost after an outage.
        backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(5)),
    };
    (StatusWriter { shared }, task)
}

impl StatusWriter {
    /// Has this status written, instead of an earlier one that still waits.
    ///
    /// `pod` is the newest state of the pod that is known; what its status says
    /// already is not written again. Never blocks.
    pub fn report(&self, pod: &Arc<Pod>, status: PodStatus) {
        self.shared.with(|ledger| ledger.report(pod, status));
        self.shared.changed.notify_one();
    }

    /// Removes a pod from the API server, once its last reported status is
    /// written; to be asked when nothing of the pod is left on the node.
    ///
    /// Done too when the pod is not there, or is another of the same name.
    ///
    /// # Errors
    ///
    /// [`DeleteError::Stopping`] if the task ended before that.
    pub async fn delete(&self, key: &PodKey, uid: &PodUid) -> Result<(), DeleteError> {
        let (done, wait) = oneshot::channel();
        self.shared.with(|ledger| ledger.delete(key, uid, done));
        self.shared.changed.notify_one();
        wait.await.map_err(|_| DeleteError::Stopping)
    }
}

impl StatusTask {
    /// Sends until stopped, and then for at most five seconds what still waits.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut end: Option<Instant> = None;
        loop {
            self.start_due();
            if end.is_some() && self.in_flight.is_empty() && self.shared.with(|l| l.is_idle()) {
                break;
            }
            let due = self.next_due();
            // Every arm is cancel-safe: none but join_next yields a value, and
            // join_next keeps what it has not returned.
            tokio::select! {
                biased;
                () = stop.cancelled(), if end.is_none() => end = Some(Instant::now() + DRAIN_LIMIT),
                Some(done) = self.in_flight.join_next() => match done {
                    Ok(outcome) => self.finish(outcome),
                    Err(error) => tracing::error!(%error, "a status request died"),
                },
                () = self.shared.changed.notified() => {}
                _ = sweep.tick() => self.sweep(),
                () = sleep_until(due) => {}
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                    let waiting = self.shared.with(|ledger| ledger.waiting());
                    tracing::warn!(waiting, "stopped before every pod status was written");
                    break;
                }
            }
        }
        // Tells everyone who waits for a deletion.
        self.shared.with(Ledger::close);
    }

    /// Starts what is due, as far as the limit allows.
    fn start_due(&mut self) {
        let now = Instant::now();
        if self.outage.is_some_and(|until| now < until) {
            return;
        }
        let limit = if self.outage.is_some() { 1 } else { IN_FLIGHT };
        while self.in_flight.len() < limit {
            let Some(job) = self.shared.with(|ledger| ledger.next(now)) else { break };
            self.in_flight.spawn(perform(self.cluster.clone(), job));
        }
    }

    /// When the next try is due, if nothing else happens.
    fn next_due(&self) -> Instant {
        let distant = Instant::now() + SWEEP_EVERY;
        let due = self.shared.with(|ledger| ledger.next_due()).unwrap_or(distant);
        due.max(self.outage.unwrap_or(due))
    }

    fn finish(&mut self, outcome: Outcome) {
        match &outcome.result {
            Err(error) if error.is_outage() => {
                if self.outage.is_none() {
                    tracing::warn!(error = %Chain(error), "pod statuses wait for the API server");
                }
                self.outage = Some(Instant::now() + self.backoff.wait(error.retry_after()));
            }
            Ok(_) | Err(_) => {
                if self.outage.take().is_some() {
                    tracing::info!("pod statuses are written again");
                }
                self.backoff.reset();
            }
        }
        self.shared.with(|ledger| ledger.finish(outcome, Instant::now()));
    }

    /// Forgets pods that the API server has no more.
    fn sweep(&mut self) {
        let set = self.pods.borrow_and_update().clone();
        if set.synced {
            self.shared.with(|ledger| ledger.retain(|uid| set.pods.contains_key(uid)));
        }
    }
}

/// Sends one request.
async fn perform(cluster: Cluster, job: Job) -> Outcome {
    let pods = Request::new(Pod::url_path(&(), Some(&job.key.namespace)));
    let name = &job.key.name;
    let result = async {
        let request = match &job.work {
            Work::Patch { body, .. } => {
                let patch = Patch::Strategic(body);
                pods.patch_subresource("status", name, &PatchParams::default(), &patch)?
            }
            Work::Look => pods.get(name, &GetParams::default())?,
            Work::Delete => pods.delete(name, &now(&job.uid))?,
        };
        match &job.work {
            // The answer is the pod, or a Status; nothing of it is used.
            Work::Delete => {
                cluster.call::<serde::de::IgnoredAny>(request, LIMIT).await.map(|_| None)
            }
            Work::Patch { .. } | Work::Look => {
                cluster.call(request, LIMIT).await.map(|answer| Some(Box::new(answer)))
            }
        }
    };
    let result: Result<_, RequestError> = result.await;
    Outcome { uid: job.uid, key: job.key, work: job.work, result }
}

/// At once, and this pod only.
fn now(uid: &PodUid) -> DeleteParams {
    DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(uid.as_str().to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}
