//! Stopping a pod's containers, and removing what is left of it.
//!
//! ```text
//! apps and init ──▶ sidecars, last first ──▶ checkpoint ──▶ sandbox ──▶ volumes
//!     ──▶ last status ──▶ told to remove: source ──▶ checkpoint, logs
//! ```
//!
//! Source: kubelet, `killContainer` in
//! `pkg/kubelet/kuberuntime/kuberuntime_container.go`, `SyncTerminatedPod` in
//! `pkg/kubelet/kubelet.go`.

use std::{sync::Arc, time::Duration};

use krustlet_model::{Chain, Grace};
use krustlet_protocol::ExitReport;
use tokio::{task::spawn_blocking, time::Instant};

use super::{Done, Files, Removal, Sandbox, Worker, observe::read};
use crate::{containers::Run, decide::Phase, messages::Said, order, outside::EventType, words};

/// The least time a container gets. Source: kubelet,
/// `minimumGracePeriodInSeconds` in `pkg/kubelet/kuberuntime/`.
pub(super) const LEAST_GRACE: Duration = Duration::from_secs(2);

/// Time a sandbox has to end a guest whose grace period is over, before the
/// whole sandbox is ended: a guest in a host call is out of its reach.
const KILL_AFTER: Duration = Duration::from_secs(2);

impl Worker {
    /// The pod has come to another phase.
    pub(super) fn entered(&mut self, phase: Phase) {
        match phase {
            Phase::Starting | Phase::Running => {}
            Phase::Terminating(_) | Phase::Terminated => {
                for slot in &mut self.slots {
                    slot.halt();
                }
                // What was waited for is another try to set them up.
                if let Files::Missing { from } = &mut self.files {
                    *from = Instant::now();
                }
                // On disk at once, lest a new agent restart what ends before
                // its source tells it; and before the sandbox, whose record
                // says what has run, is gone.
                self.touch();
                self.saves.retry = None;
            }
        }
    }

    /// Stops what runs: what is to be stopped first, first.
    pub(super) fn stop_all(&mut self, grace: Grace, now: Instant) {
        let until = now + grace.duration();
        let until = self.stop_by.map_or(until, |by| by.min(until));
        if self.stop_by != Some(until) {
            self.stop_by = Some(until);
            self.kill_at = Some(until.max(now + LEAST_GRACE) + KILL_AFTER);
        }
        for index in order::to_stop(&self.standings(now)) {
            let slot = &mut self.slots[index];
            let Run::Entered { id, stop_by } = &mut slot.run else { continue };
            // Asked again only if the time has become shorter.
            if stop_by.is_some_and(|asked| asked <= until) {
                continue;
            }
            let is_first = stop_by.replace(until).is_none();
            let id = id.clone();
            let left = until.saturating_duration_since(now).max(LEAST_GRACE);
            let asked =
                self.context.outside.runtime.stop_container(self.uid.clone(), id.clone(), left);
            self.jobs.spawn(async move { Done::Stopped { index, id, result: asked.await } });
            if is_first {
                // Sidecars are asked later than the others, and get their least.
                let least = now + LEAST_GRACE + KILL_AFTER;
                self.kill_at = self.kill_at.max(Some(least));
                let message = words::stopping(slot.seen.name.as_str());
                self.tell_of(index, EventType::Normal, words::KILLING, message);
            }
        }
        if self.is_overdue(now) && self.sandbox.may_be_stopped(now) {
            let name = self.key.to_string();
            tracing::warn!(pod = name, "did not end in time; its sandbox is ended");
            self.stop_sandbox();
        }
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.kill_at.is_some_and(|at| at <= now)
            && self.slots.iter().any(|slot| matches!(slot.run, Run::Entered { .. }))
    }

    /// Goes one step further in removing what is left.
    pub(super) fn clean_up(&mut self, now: Instant) {
        // A disk that is full must not keep the pod: what is removed frees it.
        let has_failed = self.saves.retry.is_some();
        let is_saved = self.saves.done >= self.saves.wanted || has_failed;
        if is_saved && self.sandbox.may_be_stopped(now) {
            self.stop_sandbox();
        }
        if self.sandbox != Sandbox::Stopped {
            return;
        }
        match self.files {
            Files::Setting | Files::Refreshing | Files::Removing => return,
            Files::Missing { from } if from > now => return,
            Files::Missing { .. } | Files::Set { .. } => {
                self.files = Files::Removing;
                let volumes = self.volumes.clone();
                self.jobs.spawn(async move {
                    let removed = spawn_blocking(move || volumes.tear_down()).await;
                    Done::FilesRemoved(match removed {
                        Ok(result) => result.map_err(|error| Chain(&error).to_string()),
                        Err(error) => Err(error.to_string()),
                    })
                });
                return;
            }
            Files::Removed => {}
        }
        self.remove(now);
    }

    /// Tells the source and forgets, if the pod is to be removed.
    fn remove(&mut self, now: Instant) {
        let is_gone = self.wanted.borrow().is_gone;
        let is_deleted = self.pod.metadata.deletion_timestamp.is_some();
        match self.removal {
            Removal::NotAsked | Removal::Failed { .. } | Removal::Telling if is_gone => {
                self.forget();
            }
            // A source that has not told of the pod does not take its last status.
            Removal::NotAsked if is_deleted && self.reported.is_open() => self.tell_source(),
            Removal::Failed { from } if from <= now => self.tell_source(),
            Removal::Told => self.forget(),
            Removal::NotAsked
            | Removal::Telling
            | Removal::Failed { .. }
            | Removal::Forgetting
            | Removal::Forgotten => {}
        }
    }

    fn tell_source(&mut self) {
        self.removal = Removal::Telling;
        // The last status goes first; the source keeps their order.
        self.report();
        let told = self.context.outside.status.delete(&self.pod);
        self.jobs.spawn(async move { Done::Told(told.await) });
    }

    fn forget(&mut self) {
        // One that is being written would be there again after its removal.
        if self.saves.in_flight.is_some() {
            return;
        }
        self.removal = Removal::Forgetting;
        self.context.outside.objects.forget_tokens(&self.uid);
        let context = Arc::clone(&self.context);
        let (key, uid) = (self.key.clone(), self.uid.clone());
        let links: Vec<_> = self
            .slots
            .iter()
            .filter_map(|slot| Some((slot.seen.name.clone(), slot.seen.id.clone()?)))
            .collect();
        self.jobs.spawn(async move {
            let logs = context.config.logs.clone();
            let removed = spawn_blocking(move || {
                for (name, id) in links {
                    logs.unlink(&key, &name, &id).map_err(|error| error.to_string())?;
                }
                logs.remove(&key, &uid).map_err(|error| error.to_string())?;
                // Last: as long as there is a checkpoint, the next agent goes on.
                context.directories.remove(&uid).map_err(|error| error.to_string())
            });
            Done::Forgotten(removed.await.unwrap_or_else(|error| Err(error.to_string())))
        });
    }

    /// Whether nothing is left to be done for a terminated pod, for now.
    pub(super) fn is_cleaned(&self) -> bool {
        let is_removed = match self.removal {
            Removal::NotAsked => {
                !self.wanted.borrow().is_gone && self.pod.metadata.deletion_timestamp.is_none()
            }
            Removal::Forgotten => true,
            Removal::Telling | Removal::Failed { .. } | Removal::Told | Removal::Forgetting => {
                false
            }
        };
        self.sandbox == Sandbox::Stopped && self.files == Files::Removed && is_removed
    }

    fn stop_sandbox(&mut self) {
        self.sandbox = Sandbox::Stopping;
        let stopped = self.context.outside.runtime.stop_pod_sandbox(self.uid.clone());
        let asks = self.messages(|slot| slot.live().is_some());
        let volumes = self.volumes.clone();
        self.jobs.spawn(async move {
            let result = stopped.await;
            let said = if asks.is_empty() { Said::new() } else { read(volumes, asks).await };
            Done::SandboxStopped(result, said)
        });
    }

    /// The sandbox has been ended; what still ran in it has ended with it.
    pub(super) fn sandbox_stopped(&mut self, said: &Said) {
        self.sandbox = Sandbox::Stopped;
        // Nothing of the pod uses them any more, and nothing will.
        self.context.outside.network.release(&self.uid);
        if self.place.take().is_some() {
            // For the next agent, which lets them rest once more if it is not
            // on disk by then.
            self.touch_lazily();
        }
        // Ends that were told before this one come first.
        if let Some(event) = self.in_hand.take() {
            self.take_read(event, said);
        }
        while let Some(event) = self.events.as_mut().and_then(|events| events.try_recv().ok()) {
            self.take_read(event, said);
        }
        self.events = None;
        let message = "it did not end within its grace period";
        self.end_all(&killed(message, self.context.config.clock.now().as_microsecond()), said);
        for slot in &mut self.slots {
            slot.leftover = None;
        }
    }

    /// Takes every run that has not ended as ended like this.
    pub(super) fn end_all(&mut self, exit: &ExitReport, said: &Said) {
        for index in 0..self.slots.len() {
            // One that was not entered has not run.
            if matches!(self.slots[index].run, Run::Created { .. } | Run::Launching { .. }) {
                self.slots[index].undo_launch();
            }
            if let Some(id) = self.slots[index].live().cloned() {
                self.take_exit(index, &id, exit.clone(), said);
            }
        }
    }
}

/// The end of a guest that was ended with its process.
pub(super) fn killed(message: &str, finished_at: i64) -> ExitReport {
    ExitReport {
        exit_code: 137,
        reason: "Error".to_owned(),
        message: message.to_owned(),
        started_at: None,
        finished_at,
    }
}
