//! What of a pod leaves its task: statuses, views and checkpoints. Each is
//! written only when it is another one than the last.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use krustlet_model::{
    observed::{ContainerState, PodObserved},
    status::{Phase as PodPhase, pod_status},
};
use tokio::{task::spawn_blocking, time::Instant};

use super::{Done, Worker};
use crate::{
    checkpoint::{Checkpoint, CheckpointError},
    decide::Phase,
    view::{ContainerView, PodView},
    words::waiting,
};

/// How long a new pod that merely waits to start is not reported, nor a deleted
/// one that merely waits to be cleaned up: most are done sooner, and each report
/// is a request that the next one waits for. A person does not notice.
const QUIET: Duration = Duration::from_millis(50);

/// How long a change may wait that the next agent can do without.
const LAZY: Duration = Duration::from_secs(1);

/// The wait after a checkpoint could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// What was reported.
#[derive(Debug)]
pub(super) struct Reported {
    /// The newest status that was made. What must not go back is read there.
    status: Option<PodStatus>,
    /// Whether it is to be sent, though it may be the same.
    again: bool,
    /// Whether the source is known to have the pod.
    is_open: bool,
    quiet_until: Instant,
    /// Until when the end of a pod that is deleted is not reported: whether its
    /// containers have ended, and [`QUIET`] from then.
    ending: Option<(bool, Instant)>,
    view: Option<Arc<PodView>>,
}

impl Reported {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            status: None,
            again: true,
            is_open: false,
            quiet_until: now + QUIET,
            ending: None,
            view: None,
        }
    }

    /// The last status of an earlier agent.
    pub(super) fn resume(&mut self, status: Option<PodStatus>) {
        self.status = status;
        self.quiet_until = Instant::now();
    }

    pub(super) fn speak_up(&mut self) {
        self.quiet_until = Instant::now();
    }

    /// The source has said something: it is to hear of the pod again, and sees
    /// by itself what it knows already.
    pub(super) fn again(&mut self, is_open: bool) {
        self.again = true;
        self.is_open = is_open;
    }

    /// Whether the source is known to have the pod.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    pub(super) fn wake(&self, lazily: Option<Instant>) -> impl Iterator<Item = Instant> {
        [Some(self.quiet_until), self.ending.map(|(_, until)| until), lazily].into_iter().flatten()
    }
}

impl Worker {
    /// Reports the pod, if there is something to say.
    pub(super) fn report(&mut self) {
        if self.saves.is_off && self.failure.is_none() {
            // It ended before this agent's time; what is reported is final.
            if !std::mem::take(&mut self.reported.again) && self.reported.view.is_some() {
                return;
            }
            let status = self.pod.status.clone().unwrap_or_default();
            self.show(&status);
            return;
        }
        let seen = self.observed();
        let now = self.context.config.clock.now();
        let status = pod_status(&self.pod, &seen, self.reported.status.as_ref(), now);
        let is_new = self.reported.status.as_ref() != Some(&status);
        if !is_new && !self.reported.again && self.reported.view.is_some() {
            return;
        }
        self.show(&status);
        if is_new {
            self.reported.status = Some(status.clone());
            self.touch_lazily();
        }
        let is_passing = self.is_merely_beginning(&status) || self.is_merely_ending();
        if !self.reported.is_open || is_passing {
            // Said once the source has told of the pod, or the moment is over.
            self.reported.again = true;
            return;
        }
        self.reported.again = false;
        self.context.outside.status.report(&self.pod, status);
    }

    fn is_merely_beginning(&self, status: &PodStatus) -> bool {
        let waits = |state: &ContainerState| match state {
            ContainerState::Waiting { reason, .. } => {
                reason == waiting::CREATING || reason == waiting::INITIALIZING
            }
            ContainerState::Running { .. } | ContainerState::Terminated(_) => false,
        };
        Instant::now() < self.reported.quiet_until
            && matches!(self.phase, Phase::Starting | Phase::Running)
            && status.phase.as_deref() == Some(PodPhase::Pending.as_str())
            && self.slots.iter().all(|slot| waits(&slot.seen.state))
    }

    /// Whether the containers of a pod that is deleted have just been asked to
    /// end, or nothing but cleaning up is left: the status that its deletion waits
    /// for is the one after that.
    fn is_merely_ending(&mut self) -> bool {
        let has_ended = self.phase == Phase::Terminated;
        let is_ending = self.pod.metadata.deletion_timestamp.is_some()
            && (has_ended || matches!(self.phase, Phase::Terminating(_)))
            && self.removal == super::Removal::NotAsked;
        if !is_ending {
            self.reported.ending = None;
            return false;
        }
        let now = Instant::now();
        let ending = self.reported.ending.filter(|(ended, _)| *ended == has_ended);
        let (_, until) = *self.reported.ending.insert(ending.unwrap_or((has_ended, now + QUIET)));
        now < until
    }

    /// Lets the handle see the pod.
    fn show(&mut self, status: &PodStatus) {
        let pod = Pod { status: Some(status.clone()), ..(*self.pod).clone() };
        let logs = &self.context.config.logs;
        let containers = self
            .slots
            .iter()
            .map(|slot| ContainerView {
                name: slot.seen.name.clone(),
                id: slot.shown().id,
                is_running: matches!(slot.seen.state, ContainerState::Running { .. }),
                waiting: match &slot.seen.state {
                    ContainerState::Waiting { reason, .. } => Some(reason.clone()),
                    ContainerState::Running { .. } | ContainerState::Terminated(_) => None,
                },
                log: slot
                    .logged()
                    .map(|(_, run)| logs.run(&self.key, &self.uid, &slot.seen.name, run)),
                log_restarts: slot.logged().map(|(_, run)| run),
                previous_log: slot
                    .logged_last()
                    .map(|run| logs.run(&self.key, &self.uid, &slot.seen.name, run)),
                ended: slot.logged_ended(),
            })
            .collect();
        let view = Arc::new(PodView {
            key: self.key.clone(),
            uid: self.uid.clone(),
            pod: Arc::new(pod),
            containers,
            is_over: self.is_over(),
        });
        self.context.views.put(Arc::clone(&view));
        self.reported.view = Some(view);
    }

    /// Whether nothing of the pod runs or will run.
    fn is_over(&self) -> bool {
        self.phase == Phase::Terminated && self.sandbox == super::Sandbox::Stopped
    }

    /// A change that must be on disk soon.
    pub(super) fn touch(&mut self) {
        self.saves.wanted += 1;
    }

    /// A change that the next agent can do without.
    pub(super) fn touch_lazily(&mut self) {
        self.saves.lazily.get_or_insert_with(|| Instant::now() + LAZY);
    }

    /// Writes the checkpoint, if it is due and none is being written.
    pub(super) fn save(&mut self) {
        let now = Instant::now();
        if self.saves.is_off {
            self.saves.done = self.saves.wanted;
            return;
        }
        if self.saves.lazily.is_some_and(|at| at <= now) {
            self.touch();
            self.saves.lazily = None;
        }
        let is_waiting = self.saves.retry.is_some_and(|at| at > now);
        if self.saves.in_flight.is_some()
            || self.saves.done >= self.saves.wanted
            || is_waiting
            // What is being removed is not written again.
            || self.removal != super::Removal::NotAsked
        {
            return;
        }
        let number = self.saves.wanted;
        self.saves.in_flight = Some(number);
        self.saves.lazily = None;
        let checkpoint = self.checkpoint();
        let (directories, uid) = (self.context.directories.clone(), self.uid.clone());
        self.jobs.spawn(async move {
            let saved = spawn_blocking(move || directories.save(&uid, &checkpoint)).await;
            match saved {
                Ok(result) => Done::Saved { number, result },
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        });
    }

    pub(super) fn saved(&mut self, number: u64, result: Result<(), CheckpointError>) {
        self.saves.in_flight = None;
        match result {
            Ok(()) => {
                self.saves.done = number;
                self.saves.retry = None;
                self.enter_saved();
            }
            Err(error) => {
                let error = krustlet_model::Chain(&error).to_string();
                tracing::error!(pod = %self.key, error, "cannot keep a checkpoint");
                self.saves.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Writes what is not on disk yet: the agent stops.
    pub(super) async fn save_at_last(&mut self) {
        if self.saves.is_off || self.removal != super::Removal::NotAsked {
            return;
        }
        let is_dirty = self.saves.done < self.saves.wanted || self.saves.lazily.is_some();
        // One that is being written must not come after this one. Other jobs
        // are not waited for: some have no end.
        while self.saves.in_flight.is_some() {
            match self.jobs.join_next().await {
                Some(Ok(Done::Saved { number, result })) => {
                    self.saves.in_flight = None;
                    self.saves.done = if result.is_ok() { number } else { self.saves.done };
                }
                Some(_) => {}
                None => break,
            }
        }
        if !is_dirty {
            return;
        }
        let checkpoint = self.checkpoint();
        let (directories, uid) = (self.context.directories.clone(), self.uid.clone());
        let saved = spawn_blocking(move || directories.save(&uid, &checkpoint)).await;
        if let Ok(Err(error)) = saved {
            let error = krustlet_model::Chain(&error).to_string();
            tracing::error!(pod = %self.key, error, "cannot keep the last checkpoint");
        }
    }

    fn checkpoint(&self) -> Checkpoint {
        // The next agent is to know of runs that are not shown yet.
        let containers = self.slots.iter().map(|slot| slot.seen.clone()).collect();
        Checkpoint::new(
            &self.pod,
            PodObserved { containers, ..self.observed() },
            self.reported.status.clone(),
            self.user.clone(),
            self.place.clone(),
            matches!(self.phase, Phase::Terminating(_) | Phase::Terminated),
            self.slots.iter().map(crate::containers::Slot::note).collect(),
        )
    }
}
