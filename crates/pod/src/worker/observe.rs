//! What jobs and sandboxes tell, and what is taken note of.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use krustlet_model::{
    ContainerId,
    observed::{ContainerKind, ContainerState},
    policy::Verdict,
    probes::ProbeKind,
    resize::ContainerResources,
    restarts,
    termination::{self, MessagePolicy},
};
use krustlet_protocol::{ExitReport, Names};
use krustlet_volume::Volumes;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{Files, Removal, Sandbox, Worker, own_grace, stop::killed};
use crate::{
    checkpoint::CheckpointError,
    containers::{After, Slot, terminated},
    decide::Phase,
    launch::{LaunchError, Launched},
    messages::{self, Ask, Said},
    outside::{DeleteFailure, EventType, PodEvent, PodEvents, ProbeAnswer, Refused, Why},
    pulls::{self, ImageAnswer},
    setup::SetUpError,
    words::{self, waiting},
};

/// The wait before a sandbox is asked again to stop a run that another replaces.
const STOP_AGAIN: Duration = Duration::from_secs(10);

/// What came of a job.
pub(super) enum Done {
    /// Nothing to take note of.
    Nothing,
    /// What a new sandbox tells, and how it was told to look names up.
    Sandbox(Result<(PodEvents, Names), Refused>),
    /// What runs left is read before their ends are taken note of.
    Read(Said),
    SandboxStopped(Result<(), Refused>, Said),
    /// What policies say of the pod; none if the agent stops.
    WorkedOut(Option<Arc<Verdict>>),
    /// Whether the sandbox took what its sockets may do, and how it was told to look
    /// names up, if it was.
    Rules(Result<Option<Names>, Refused>),
    Files(Result<(), SetUpError>),
    FilesRemoved(Result<(), String>),
    Image {
        index: usize,
        /// What was asked for.
        image: String,
        answer: ImageAnswer,
    },
    Created {
        index: usize,
        id: ContainerId,
        result: Result<Launched, LaunchError>,
    },
    Started {
        index: usize,
        id: ContainerId,
        result: Result<(), Refused>,
    },
    Stopped {
        index: usize,
        id: ContainerId,
        result: Result<(), Refused>,
    },
    Probed {
        index: usize,
        id: ContainerId,
        kind: ProbeKind,
        answer: ProbeAnswer,
    },
    Updated {
        index: usize,
        id: ContainerId,
        resources: ContainerResources,
        result: Result<(), Refused>,
    },
    Removed {
        index: usize,
        id: ContainerId,
        result: Result<(), Refused>,
    },
    Saved {
        number: u64,
        result: Result<(), CheckpointError>,
    },
    Told(Result<(), DeleteFailure>),
    Forgotten(Result<(), String>),
    /// The limit of local storage that is exceeded, in kubelet's words.
    Stored(Option<String>),
}

impl Worker {
    /// Takes what the source says now.
    pub(super) fn take_wanted(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        let old = std::mem::replace(&mut self.pod, wanted.pod);
        // Most changes are the statuses that were reported from here.
        if is_other_wish(&old, &self.pod) {
            // Fields of the pod that a volume shows may have changed.
            if let Files::Set { refresh: Some(at) } = &mut self.files {
                *at = (*at).min(Instant::now());
            }
            self.take_images();
            self.tell_of_ephemeral(Some(&old));
            self.set_deadline();
            self.take_limits();
            self.look_at_guard();
            self.touch_lazily();
        }
        self.take_resources(&old);
        self.reported.again(wanted.is_known && !wanted.is_gone);
    }

    /// Has containers of which the source now names another image run again.
    ///
    /// Source: kubelet, `computePodActions` in
    /// `pkg/kubelet/kuberuntime/kuberuntime_manager.go`.
    fn take_images(&mut self) {
        let pod = Arc::clone(&self.pod);
        for (index, (kind, container)) in restarts::containers(&pod).enumerate() {
            let image = container.image.as_deref().unwrap_or_default();
            let Some(slot) = self.slots.get_mut(index) else { break };
            if kind == ContainerKind::Init || !slot.take_image(image) {
                continue;
            }
            let Some(id) = slot.live().cloned() else { continue };
            let message = words::changed(&container.name);
            self.tell_of(index, EventType::Normal, words::KILLING, message);
            let grace = own_grace(&pod).duration();
            let runtime = &self.context.outside.runtime;
            let asked = runtime.stop_container(self.uid.clone(), id.clone(), grace);
            self.jobs.spawn(async move { Done::Stopped { index, id, result: asked.await } });
        }
    }

    pub(super) fn take_done(&mut self, done: Done) {
        match done {
            Done::Nothing => {}
            Done::Sandbox(result) => self.sandbox_made(result),
            // Whose event is not in hand any more ended with its sandbox.
            Done::Read(said) => {
                if let Some(event) = self.in_hand.take() {
                    self.take_read(event, &said);
                }
            }
            Done::SandboxStopped(Ok(()), said) => self.sandbox_stopped(&said),
            Done::SandboxStopped(Err(refused), _) => {
                let message = format!("error killing pod: {refused}");
                self.tell(EventType::Warning, words::FAILED_KILL_POD, message);
                self.sandbox = Sandbox::Stuck { from: Self::retry(3) };
            }
            Done::WorkedOut(verdict) => self.worked_out(verdict),
            Done::Rules(result) => self.rules_were_told(result),
            Done::Files(Ok(())) => {
                self.files_failures = 0;
                self.files = Files::Set { refresh: self.next_refresh() };
            }
            Done::Files(Err(error)) => self.files_failed(&error),
            Done::FilesRemoved(Ok(())) => self.files = Files::Removed,
            Done::FilesRemoved(Err(error)) => {
                tracing::warn!(pod = %self.key, error, "cannot remove the volumes");
                self.files = Files::Missing { from: Self::retry(3) };
            }
            // The spec may name another one by now.
            Done::Image { index, image, .. } if !self.slots[index].asks_for(&image) => {}
            Done::Image { index, answer, .. } => self.image_answered(index, answer),
            Done::Created { index, id, result } => self.created(index, &id, result),
            Done::Started { index, id, result } => self.started(index, &id, result),
            Done::Stopped { index, id, result } => self.stop_asked(index, &id, result),
            Done::Updated { index, id, resources, result } => {
                self.updated(index, &id, resources, result);
            }
            Done::Probed { index, id, kind, answer } => self.probed(index, &id, kind, answer),
            Done::Removed { index, id, result } => {
                if let Err(refused) = result {
                    tracing::debug!(pod = %self.key, %refused, "cannot remove a container");
                }
                let slot = &mut self.slots[index];
                if slot.leftover.as_ref().is_some_and(|leftover| leftover.id == id) {
                    slot.leftover = None;
                }
            }
            Done::Stored(found) => self.stored(found),
            Done::Saved { number, result } => self.saved(number, result),
            Done::Told(Ok(())) => self.removal = Removal::Told,
            Done::Told(Err(error)) => {
                tracing::warn!(pod = %self.key, %error, "cannot remove the pod from its source");
                self.removal = Removal::Failed { from: Self::retry(3) };
            }
            Done::Forgotten(Ok(())) => self.removal = Removal::Forgotten,
            Done::Forgotten(Err(error)) => {
                tracing::error!(pod = %self.key, error, "cannot remove what is left of a pod");
                // What is left on disk is found by the next agent.
                self.removal = Removal::Forgotten;
            }
        }
    }

    fn sandbox_made(&mut self, result: Result<(PodEvents, Names), Refused>) {
        match result {
            Ok((events, names)) => {
                self.events = Some(events);
                self.names = Some(names);
                self.sandbox = Sandbox::Up;
            }
            Err(refused) if refused.why == Why::Stopping => {
                self.sandbox = Sandbox::None { from: later() }
            }
            Err(refused) => self.sandbox_failed(&refused.to_string()),
        }
    }

    /// Takes an event of the sandbox. None: there will be no more.
    pub(super) fn take_event(&mut self, event: Option<PodEvent>) {
        match event {
            None => self.events = None,
            Some(PodEvent::Running { id, at }) => {
                for index in 0..self.slots.len() {
                    let probing = self.probing(index);
                    if self.slots[index].running(&id, at, probing) {
                        // Not when it is made: it may die of what is made in it.
                        self.sandbox_failures = 0;
                        self.tell_of(
                            index,
                            EventType::Normal,
                            words::STARTED,
                            words::CONTAINER_STARTED.to_owned(),
                        );
                    }
                }
            }
            Some(PodEvent::LogRotated { .. }) => {}
            Some(event @ (PodEvent::Exited { .. } | PodEvent::SandboxDied { .. })) => {
                let asks = self.messages(|slot| match &event {
                    PodEvent::Exited { id, .. } => slot.seen.id.as_ref() == Some(id),
                    _ => slot.live().is_some(),
                });
                if asks.is_empty() {
                    self.take_read(event, &Said::new());
                    return;
                }
                self.in_hand = Some(event);
                let volumes = self.volumes.clone();
                self.jobs.spawn(async move { Done::Read(read(volumes, asks).await) });
            }
        }
    }

    /// What is to be read of these containers' runs.
    pub(super) fn messages(&self, is_wanted: impl Fn(&Slot) -> bool) -> Vec<Ask> {
        let logs = &self.context.config.logs;
        let containers = restarts::containers(&self.pod).zip(&self.slots);
        containers
            .filter(|(_, slot)| is_wanted(slot))
            .filter_map(|((_, container), slot)| {
                Ask::of(container, &slot.seen, &slot.message, || {
                    let restart = slot.seen.restart_count;
                    logs.run(&self.key, &self.uid, &slot.seen.name, restart)
                })
            })
            .collect()
    }

    /// Takes an event that tells of ends, now that what the runs left is read.
    pub(super) fn take_read(&mut self, event: PodEvent, said: &Said) {
        match event {
            PodEvent::Running { .. } | PodEvent::LogRotated { .. } => {}
            PodEvent::Exited { id, exit } => {
                let of = self.slots.iter().position(|slot| slot.seen.id.as_ref() == Some(&id));
                match of {
                    Some(index) => self.take_exit(index, &id, exit, said),
                    None => self.remove_stranger(id),
                }
            }
            PodEvent::SandboxDied { exit_code, message } => {
                let at = self.context.config.clock.now().as_microsecond();
                let message = format!("the sandbox process ended: {message}");
                self.end_all(&ExitReport { exit_code, ..killed(&message, at) }, said);
                self.sandbox_lost(Instant::now());
            }
        }
    }

    /// A run has ended, and this is what runs left.
    pub(super) fn take_exit(
        &mut self,
        index: usize,
        id: &ContainerId,
        exit: ExitReport,
        said: &Said,
    ) {
        let mut end = terminated(id, exit);
        if let Some(written) = said.get(id)
            && let Some((_, container)) = restarts::containers(&self.pod).nth(index)
        {
            let policy = MessagePolicy::of(container);
            end.message = termination::message(policy, end.exit_code, &end.message, written);
        }
        if let ContainerState::Running { started_at } = &self.slots[index].seen.state {
            end.started_at.get_or_insert(*started_at);
        }
        let may_restart = matches!(self.phase, Phase::Starting | Phase::Running);
        let needs = self.saves.wanted + 1;
        let clock = &self.context.config.clock;
        let pod = (&self.key, &self.uid);
        let Some(after) = self.slots[index].exited(end, needs, may_restart, clock, pod) else {
            return;
        };
        self.touch();
        if after == After::BackOff {
            let name = self.slots[index].seen.name.as_str();
            let message = words::back_off_restarting(name, &self.key, &self.uid);
            self.tell_of(index, EventType::Warning, words::BACK_OFF, message);
        }
    }

    /// Has a container removed that no slot knows: a run that was called off
    /// while it was made.
    pub(super) fn remove_stranger(&mut self, id: ContainerId) {
        let removed = self.context.outside.runtime.remove_container(self.uid.clone(), id);
        self.jobs.spawn(async move {
            if let Err(refused) = removed.await {
                tracing::debug!(%refused, "cannot remove an unknown container");
            }
            Done::Nothing
        });
    }

    fn image_answered(&mut self, index: usize, answer: ImageAnswer) {
        let ImageAnswer { result, is_told } = answer;
        let image = self.slots[index].seen.image.clone();
        let is_pulled = match &result {
            Ok(found) => found.pull().is_some(),
            Err(failure) => pulls::is_pull(failure.reason),
        };
        if is_pulled && !is_told {
            self.tell_of(index, EventType::Normal, words::PULLING, words::pulling(&image));
        }
        match result {
            Ok(found) => {
                let message = words::pulled(&image, found.pull(), found.bytes());
                self.tell_of(index, EventType::Normal, words::PULLED, message);
                self.slots[index].image_is_here(found);
            }
            Err(failure) => {
                let (reason, message) = match failure.reason {
                    waiting::NEVER_PULL => (words::NEVER_PULL, words::never_pull(&image)),
                    waiting::INVALID_NAME => (words::INSPECT_FAILED, failure.message.clone()),
                    _ => (words::FAILED, words::failed_pull(&image, &failure.message)),
                };
                self.tell_of(index, EventType::Warning, reason, message);
                let message = words::error(failure.reason);
                self.tell_of(index, EventType::Warning, words::FAILED, message);
                self.slots[index].pull_failed(failure, &self.context.config.clock);
            }
        }
    }

    fn created(&mut self, index: usize, id: &ContainerId, result: Result<Launched, LaunchError>) {
        if self.slots[index].live() != Some(id) {
            // Called off while it was made; its listener is not to stay.
            if result.is_ok() && self.sandbox == Sandbox::Up {
                self.remove_stranger(id.clone());
            }
            return;
        }
        match result {
            Ok(Launched { previous, message }) => {
                if self.slots[index].message != message {
                    // On disk before the guest is entered: the next agent may
                    // be the one that reads it.
                    self.slots[index].message = message;
                    self.touch();
                }
                let needs = self.saves.wanted;
                if self.slots[index].created(id, needs) {
                    let message = words::CONTAINER_CREATED.to_owned();
                    self.tell_of(index, EventType::Normal, words::CREATED, message);
                    self.link_log(index, previous);
                    self.remove_old_log(index);
                    self.enter_saved();
                }
            }
            Err(LaunchError::Sandbox(Refused { why: Why::Stopping, .. })) => {}
            // It has not run; what follows comes with the event.
            Err(LaunchError::Sandbox(Refused { why: Why::Died, .. })) => {
                self.slots[index].undo_launch();
            }
            Err(error) => self.launch_failed(index, error.reason(), &error.text()),
        }
    }

    fn started(&mut self, index: usize, id: &ContainerId, result: Result<(), Refused>) {
        let Err(refused) = result else { return };
        match refused.why {
            // The end of one whose sandbox died comes as an event.
            Why::Stopping | Why::Died => return,
            Why::Failed if self.slots[index].live() != Some(id) => return,
            Why::Failed => {}
        }
        let message = refused.to_string();
        self.tell_of(index, EventType::Warning, words::FAILED, words::error(&message));
        let at = self.context.config.clock.now().as_microsecond();
        let exit =
            ExitReport { exit_code: 128, reason: "StartError".to_owned(), ..killed(&message, at) };
        // It never ran, so that it left nothing.
        self.take_exit(index, id, exit, &Said::new());
        if matches!(self.slots[index].seen.state, ContainerState::Waiting { .. }) {
            self.slots[index].wait_for(waiting::RUN, message);
        }
    }

    fn stop_asked(&mut self, index: usize, id: &ContainerId, result: Result<(), Refused>) {
        let Err(refused) = result else { return };
        if refused.why != Why::Failed || self.slots[index].live() != Some(id) {
            return;
        }
        tracing::warn!(pod = %self.key, %refused, "cannot stop a container");
        // That of a pod that ends is ended with its sandbox when its time is over.
        if self.slots[index].is_being_replaced()
            && matches!(self.phase, Phase::Starting | Phase::Running)
        {
            let (context, pod, id) = (Arc::clone(&self.context), self.uid.clone(), id.clone());
            let grace = own_grace(&self.pod).duration();
            self.jobs.spawn(async move {
                sleep(STOP_AGAIN).await;
                let asked = context.outside.runtime.stop_container(pod, id.clone(), grace);
                Done::Stopped { index, id, result: asked.await }
            });
        }
    }
}

/// Reads what runs left.
pub(super) async fn read(volumes: Volumes, asks: Vec<Ask>) -> Said {
    match spawn_blocking(move || messages::read(&volumes, asks)).await {
        Ok(said) => said,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Whether something else is asked of a pod, be it only what it is called.
fn is_other_wish(old: &Pod, new: &Pod) -> bool {
    let (before, after) = (&old.metadata, &new.metadata);
    old.spec != new.spec
        || before.labels != after.labels
        || before.annotations != after.annotations
        || before.deletion_timestamp != after.deletion_timestamp
        || before.deletion_grace_period_seconds != after.deletion_grace_period_seconds
}

/// A moment that does not come while the agent stops.
pub(super) fn later() -> Instant {
    Instant::now() + std::time::Duration::from_mins(1)
}
