//! One container of a pod: what was seen of it, and what may be done next.
//!
//! ```text
//!            ┌───────────── restarts ──────────────┐
//!            ▼                                     │
//! Idle ──▶ Launching ──▶ Created ──▶ Entered ──▶ ended ──▶ Over
//!   ▲          │            │
//!   └─ failed ─┴────────────┘
//! ```
//!
//! No I/O: the worker does, and tells a [`Slot`] what came of it.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use krustlet_model::{
    ContainerId, ContainerName, PodKey, PodUid,
    observed::{ContainerKind, ContainerObserved, ContainerState, Terminated},
    probes::{self, Finding, Outcome, ProbeKind, Probes},
    resize::ContainerResources,
    restarts::{self, Backoff, RestartPolicy, after_exit, crash_loop_message},
};
use krustlet_protocol::ExitReport;
use krustlet_volume::MessagePlace;
use tokio::{task::AbortHandle, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    checkpoint::ContainerNote,
    clock::Clock,
    order::{Stage, Standing},
    outside::PulledImage,
    pulls,
    words::waiting,
};

/// The wait after a container could not be made for the first time; it doubles.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The longest such wait. Kubelet looks at a pod again after at most one
/// minute (`syncFrequency`).
const LAST_RETRY: Duration = Duration::from_mins(1);

/// Where an image is, from one container's point of view.
pub(crate) enum ImageState {
    /// To be asked for when the container is due.
    Wanted,
    /// It is being asked for.
    Asked(AbortHandle),
    /// It is on this node.
    Here(Arc<dyn PulledImage>),
    /// It could not be had.
    Failed(pulls::Failed),
}

impl fmt::Debug for ImageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wanted => f.write_str("Wanted"),
            Self::Asked(_) => f.write_str("Asked"),
            Self::Here(image) => f.debug_tuple("Here").field(&image.id()).finish(),
            Self::Failed(failed) => f.debug_tuple("Failed").field(failed).finish(),
        }
    }
}

/// How far the newest run is.
#[derive(Debug)]
pub(crate) enum Run {
    /// There is none, or it has ended; the next may begin at this moment.
    Idle { due: Instant },
    /// Its code is being loaded.
    Launching { id: ContainerId, abort: AbortHandle },
    /// Its code is loaded. It is entered once the checkpoint of this number,
    /// which names it, is on disk.
    Created { id: ContainerId, needs: u64 },
    /// It is being entered, or runs. `asked` is when it was told to stop at last.
    Entered { id: ContainerId, stop_by: Option<Instant> },
    /// It has ended, or never was, and there will be no other.
    Over,
}

/// What was seen before a launch: shown until its guest is entered, and what to
/// go back to if that fails.
#[derive(Clone, Debug)]
pub(crate) struct Before {
    id: Option<ContainerId>,
    restart_count: u32,
}

/// What follows from an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It will not run again.
    Over,
    /// It runs again at once.
    Restart,
    /// It runs again after a wait.
    BackOff,
}

/// One container.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) seen: ContainerObserved,
    pub(crate) image: ImageState,
    pub(crate) run: Run,
    /// The run before, which still lies in the sandbox with its descriptors.
    pub(crate) leftover: Option<Leftover>,
    /// Whether it was begun in the sandbox that is there now.
    pub(crate) has_begun: bool,
    /// Where the newest run's termination message lies.
    pub(crate) message: MessagePlace,
    /// The probes of the run that there is, if it has any.
    pub(crate) probing: Option<Probing>,
    /// Cancelled when the newest run has ended; for readers of its log.
    pub(crate) ended: CancellationToken,
    policy: RestartPolicy,
    restarts: Backoff,
    pulls: Backoff,
    /// The wait after the next failure to make the container.
    retry: Duration,
    /// Whether the newest run's end was seen.
    has_ended: bool,
    /// The wait from that end to the next run.
    pause: Duration,
    /// Whether it is to run again whatever its policy: it has another image now.
    is_replaced: bool,
    /// Whether it failed a probe and is to run again, be it that it ends with 0.
    must_restart: bool,
    /// Whether the run is just being told what it may use.
    pub(crate) is_updating: bool,
    /// The run before, until the state is the newest one's.
    before: Option<Before>,
    /// How the run ended that is being replaced. Shown when there is something
    /// else to show: as an end, it could be taken for the pod's.
    replaced: Option<Terminated>,
}

/// A run's probes, by the task's clock.
#[derive(Debug)]
pub(crate) struct Probing {
    probes: Probes,
    /// A moment, and how long the guest had run then.
    since: (Instant, Duration),
    /// Cancelled when this is dropped.
    over: CancellationToken,
    _ends: DropGuard,
}

impl Probing {
    /// Of a run whose guest was entered just now. None if it has no probes.
    pub(crate) fn begin(container: &Container) -> Option<Self> {
        let since = (Instant::now(), Duration::ZERO);
        probes::has_any(container).then(|| Self::new(Probes::begin(container), since))
    }

    /// Of a run that an earlier agent saw, and that has lasted as long as this.
    pub(crate) fn resume(
        container: &Container,
        is_started: bool,
        is_ready: bool,
        lasted: Duration,
    ) -> Option<Self> {
        let chance = || f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / f64::from(u8::MAX);
        let probes = || Probes::resume(container, is_started, is_ready, lasted, chance);
        let since = (Instant::now(), lasted);
        probes::has_any(container).then(|| Self::new(probes(), since))
    }

    fn new(probes: Probes, since: (Instant, Duration)) -> Self {
        let over = CancellationToken::new();
        Self { probes, since, over: over.clone(), _ends: over.drop_guard() }
    }

    /// Cancelled when the run is over.
    pub(crate) fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// The probes to be made now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<ProbeKind> {
        self.probes.due(self.lasted(now))
    }

    pub(crate) fn take(
        &mut self,
        kind: ProbeKind,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Finding> {
        self.probes.take(kind, outcome, self.lasted(now))
    }

    pub(crate) fn is_started(&self) -> bool {
        self.probes.is_started()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.probes.is_ready()
    }

    fn ends(&mut self) {
        self.probes.ends();
    }

    fn wake(&self) -> Option<Instant> {
        let (moment, lasted) = self.since;
        Some(moment + self.probes.next()?.saturating_sub(lasted))
    }

    fn lasted(&self, now: Instant) -> Duration {
        let (moment, lasted) = self.since;
        lasted + now.saturating_duration_since(moment)
    }
}

/// An ended run that its sandbox has not forgotten.
#[derive(Clone, Debug)]
pub(crate) struct Leftover {
    pub(crate) id: ContainerId,
    /// The checkpoint that holds its end; before it is on disk, the sandbox's
    /// record is the only one.
    pub(crate) needs: u64,
    pub(crate) is_asked: bool,
}

impl Slot {
    /// All containers of a pod that nothing has been done for.
    pub(crate) fn all_of(pod: &Pod, max_backoff: Duration) -> Vec<Self> {
        let has_init = restarts::containers(pod).any(|(kind, _)| kind != ContainerKind::App);
        let reason = if has_init { waiting::INITIALIZING } else { waiting::CREATING };
        restarts::containers(pod)
            .map(|(kind, container)| Self {
                seen: ContainerObserved {
                    name: ContainerName::new(&container.name),
                    kind,
                    image: container.image.clone().unwrap_or_default(),
                    image_id: String::new(),
                    id: None,
                    restart_count: 0,
                    state: ContainerState::Waiting {
                        reason: reason.to_owned(),
                        message: String::new(),
                    },
                    last: None,
                    before_last: None,
                    started: false,
                    ready: false,
                    resources: None,
                },
                image: ImageState::Wanted,
                run: Run::Idle { due: Instant::now() },
                leftover: None,
                has_begun: false,
                message: MessagePlace::Own,
                probing: None,
                ended: CancellationToken::new(),
                policy: RestartPolicy::of_container(pod, container),
                restarts: Backoff::restarts().with_max(max_backoff),
                pulls: Backoff::pulls(),
                retry: FIRST_RETRY,
                has_ended: false,
                pause: Duration::ZERO,
                is_replaced: false,
                must_restart: false,
                is_updating: false,
                before: None,
                replaced: None,
            })
            .collect()
    }

    /// Takes over what an earlier agent saw.
    pub(crate) fn resume(&mut self, seen: ContainerObserved, note: ContainerNote) {
        self.seen = seen;
        self.restarts = note.backoff;
        // One that was being replaced has an end that nobody was shown; the
        // sandbox still knows it.
        let is_shown = !matches!(self.seen.state, ContainerState::Running { .. });
        self.has_ended = note.has_ended && is_shown;
        self.has_begun = note.has_begun;
        self.pause = note.pause;
        self.message = note.message;
        if self.has_ended {
            self.ended.cancel();
        }
    }

    /// What users are to see. A run that is not entered yet has an id and is
    /// counted, but the state is that of the run before; so are its id and count.
    ///
    /// Source: kubelet, whose status of a container is made of one run, the
    /// newest that the runtime has; `convertToAPIContainerStatuses` in
    /// `pkg/kubelet/kubelet_pods.go`.
    pub(crate) fn shown(&self) -> ContainerObserved {
        let mut shown = self.seen.clone();
        if let Some(before) = &self.before {
            shown.id.clone_from(&before.id);
            shown.restart_count = before.restart_count;
        }
        shown
    }

    pub(crate) fn note(&self) -> ContainerNote {
        ContainerNote {
            backoff: self.restarts.clone(),
            has_ended: self.has_ended,
            has_begun: self.has_begun,
            pause: self.pause,
            message: self.message.clone(),
        }
    }

    /// The run that has not ended, if there is one.
    pub(crate) fn live(&self) -> Option<&ContainerId> {
        match &self.run {
            Run::Launching { id, .. } | Run::Created { id, .. } | Run::Entered { id, .. } => {
                Some(id)
            }
            Run::Idle { .. } | Run::Over => None,
        }
    }

    /// Whether the newest run was begun and its end is not known.
    pub(crate) fn is_open(&self) -> bool {
        self.seen.id.is_some() && !self.has_ended
    }

    /// The newest run that has a log, and its number. One whose code is being
    /// loaded has none yet.
    pub(crate) fn logged(&self) -> Option<(&ContainerId, u32)> {
        let (id, restart) = match (&self.run, &self.before) {
            (Run::Launching { .. }, Some(before)) => (&before.id, before.restart_count),
            _ => (&self.seen.id, self.seen.restart_count),
        };
        Some((id.as_ref()?, restart))
    }

    /// The number of the run whose end is shown as the last one.
    ///
    /// Source: kubelet, `validateContainerLogStatus` in
    /// `pkg/kubelet/kubelet_pods.go`.
    pub(crate) fn logged_last(&self) -> Option<u32> {
        let last = self.seen.last.as_ref()?.id.as_ref()?;
        let (id, restart) = self.logged()?;
        if id == last { Some(restart) } else { restart.checked_sub(1) }
    }

    /// Cancelled when the run that has the newest log has ended.
    pub(crate) fn logged_ended(&self) -> CancellationToken {
        let ended = self.ended.clone();
        match (&self.run, &self.before) {
            (Run::Launching { .. }, Some(Before { id: Some(_), .. })) => {
                let ended = CancellationToken::new();
                ended.cancel();
                ended
            }
            _ => ended,
        }
    }

    pub(crate) fn standing(&self, now: Instant) -> Standing {
        let stage = match &self.run {
            Run::Over => match self.last_exit() {
                Some(0) => Stage::Succeeded,
                Some(_) | None => Stage::Failed,
            },
            Run::Entered { .. } if self.seen.started => Stage::Started,
            Run::Launching { .. } | Run::Created { .. } | Run::Entered { .. } => Stage::Starting,
            Run::Idle { due } => {
                let is_here = matches!(self.image, ImageState::Here(_));
                // A port of the run before is free once that is forgotten.
                if *due <= now && is_here && self.leftover.is_none() {
                    Stage::Due
                } else {
                    Stage::Held
                }
            }
        };
        Standing { kind: self.seen.kind, stage, has_begun: self.has_begun }
    }

    /// Whether its image is to be asked for.
    pub(crate) fn wants_image(&self, now: Instant) -> bool {
        let is_due = matches!(self.run, Run::Idle { due } if due <= now);
        is_due
            && match &self.image {
                ImageState::Wanted => true,
                ImageState::Failed(failed) => failed.retry_at <= now,
                ImageState::Asked(_) | ImageState::Here(_) => false,
            }
    }

    /// When it next needs to be looked at, if nothing happens before.
    pub(crate) fn wake(&self, now: Instant) -> Option<Instant> {
        match (&self.run, &self.image) {
            (Run::Idle { due }, _) if *due > now => Some(*due),
            (Run::Idle { .. }, ImageState::Failed(failed)) => Some(failed.wake()),
            _ => None,
        }
    }

    fn last_exit(&self) -> Option<i32> {
        match &self.seen.state {
            ContainerState::Terminated(end) => Some(end.exit_code),
            ContainerState::Waiting { .. } => self.seen.last.as_ref().map(|end| end.exit_code),
            ContainerState::Running { .. } => None,
        }
    }

    /// Shows why it does not run. An end that stood there becomes the last one.
    pub(crate) fn wait_for(&mut self, reason: impl Into<String>, message: impl Into<String>) {
        let state = ContainerState::Waiting { reason: reason.into(), message: message.into() };
        self.show(state);
    }

    fn show(&mut self, state: ContainerState) {
        let old = std::mem::replace(&mut self.seen.state, state);
        let end = match (self.replaced.take(), old) {
            (Some(end), _) | (None, ContainerState::Terminated(end)) => end,
            (None, ContainerState::Waiting { .. } | ContainerState::Running { .. }) => return,
        };
        self.seen.before_last = self.seen.last.replace(end);
    }

    /// Takes note of a failed pull; it is tried again after a wait.
    pub(crate) fn pull_failed(&mut self, failure: crate::outside::ImageFailure, clock: &Clock) {
        let wait = self.pulls.next(clock.now());
        self.wait_for(failure.reason, failure.message.clone());
        self.image = ImageState::Failed(pulls::Failed::new(failure, Instant::now(), wait));
    }

    /// Turns `ErrImagePull` into `ImagePullBackOff` when its moment has come;
    /// says whether it did.
    pub(crate) fn show_back_off(&mut self, now: Instant) -> bool {
        let ImageState::Failed(failed) = &mut self.image else { return false };
        if failed.shown_as_error_until.is_none_or(|until| until > now) {
            return false;
        }
        failed.shown_as_error_until = None;
        let (reason, message) = failed.back_off(&self.seen.image);
        self.wait_for(reason, message);
        true
    }

    /// Takes the image that the spec names now; says whether the run that there
    /// is has another one, and is to be stopped.
    pub(crate) fn take_image(&mut self, image: &str) -> bool {
        if self.seen.image == image {
            return false;
        }
        image.clone_into(&mut self.seen.image);
        if let ImageState::Asked(abort) = &self.image {
            abort.abort();
        }
        self.image = ImageState::Wanted;
        self.replace()
    }

    /// Whether the run is being stopped for another to take its place.
    pub(crate) fn is_being_replaced(&self) -> bool {
        self.is_replaced
    }

    /// Has another run take the place of the one there is; says whether that is
    /// to be stopped.
    pub(crate) fn replace(&mut self) -> bool {
        match &self.run {
            // Not broken off: what it makes in the sandbox is removed once it
            // is known to be there.
            Run::Launching { .. } => {
                self.revert();
                false
            }
            // Removed before the next one needs its port.
            Run::Created { id, .. } => {
                self.leftover = Some(Leftover { id: id.clone(), needs: 0, is_asked: false });
                self.revert();
                false
            }
            Run::Entered { .. } => {
                self.is_replaced = true;
                true
            }
            Run::Idle { .. } | Run::Over => false,
        }
    }

    /// Whether an answer about this image is waited for.
    pub(crate) fn asks_for(&self, image: &str) -> bool {
        matches!(self.image, ImageState::Asked(_)) && self.seen.image == image
    }

    /// The image is on this node.
    pub(crate) fn image_is_here(&mut self, image: Arc<dyn PulledImage>) {
        image.id().clone_into(&mut self.seen.image_id);
        self.pulls = Backoff::pulls();
        self.image = ImageState::Here(image);
    }

    /// The number of the run that a launch would begin.
    pub(crate) fn next_restart_count(&self) -> u32 {
        self.seen.restart_count + u32::from(self.seen.id.is_some())
    }

    /// A run begins, with these resources.
    pub(crate) fn launch(
        &mut self,
        id: ContainerId,
        resources: ContainerResources,
        abort: AbortHandle,
    ) {
        self.seen.resources = Some(resources);
        self.is_updating = false;
        let before = Before { id: self.seen.id.clone(), restart_count: self.seen.restart_count };
        self.before = Some(before);
        self.seen.restart_count = self.next_restart_count();
        self.seen.id = Some(id.clone());
        self.has_ended = false;
        self.ended = CancellationToken::new();
        self.run = Run::Launching { id, abort };
    }

    /// The code of the run is loaded. `needs` is the checkpoint that names it.
    pub(crate) fn created(&mut self, created: &ContainerId, needs: u64) -> bool {
        match &self.run {
            Run::Launching { id, .. } if id == created => {
                self.retry = FIRST_RETRY;
                self.run = Run::Created { id: id.clone(), needs };
                true
            }
            _ => false,
        }
    }

    /// The guest is being entered.
    pub(crate) fn enter(&mut self) {
        if let Run::Created { id, .. } = &self.run {
            self.has_begun = true;
            self.run = Run::Entered { id: id.clone(), stop_by: None };
        }
    }

    /// The run came to nothing before its guest was entered: it does not count.
    pub(crate) fn undo_launch(&mut self) {
        if let Run::Launching { abort, .. } = &self.run {
            abort.abort();
        }
        self.revert();
    }

    fn revert(&mut self) {
        if !matches!(self.run, Run::Launching { .. } | Run::Created { .. }) {
            return;
        }
        // There is nothing to go back to for what an earlier agent launched.
        if let Some(before) = self.before.take() {
            self.seen.id = before.id;
            self.seen.restart_count = before.restart_count;
        }
        self.has_ended = self.seen.id.is_some();
        self.ended.cancel();
        self.run = Run::Idle { due: Instant::now() };
    }

    /// The container could not be made: shows why and waits before the next try.
    pub(crate) fn launch_failed(&mut self, reason: &str, message: &str) {
        self.undo_launch();
        self.wait_for(reason, message);
        // Asked for again each time, as kubelet does.
        self.image = ImageState::Wanted;
        self.run = Run::Idle { due: Instant::now() + self.retry };
        self.retry = (self.retry * 2).min(LAST_RETRY);
    }

    /// The guest was entered; what it is to be probed for.
    pub(crate) fn running(
        &mut self,
        id: &ContainerId,
        at: Timestamp,
        probing: Option<Probing>,
    ) -> bool {
        if self.live() != Some(id) {
            return false;
        }
        self.before = None;
        self.show(ContainerState::Running { started_at: at });
        // Without probes, what runs is ready.
        self.seen.started = probing.as_ref().is_none_or(Probing::is_started);
        self.seen.ready = probing.as_ref().is_none_or(Probing::is_ready);
        self.probing = probing;
        true
    }

    /// The run has ended. None if it is not the newest or its end is known.
    pub(crate) fn exited(
        &mut self,
        end: Terminated,
        needs: u64,
        may_restart: bool,
        clock: &Clock,
        pod: (&PodKey, &PodUid),
    ) -> Option<After> {
        if end.id.is_none() || end.id != self.seen.id || self.has_ended {
            return None;
        }
        self.has_ended = true;
        self.before = None;
        self.ended.cancel();
        self.seen.started = false;
        self.seen.ready = false;
        self.probing = None;
        self.leftover = end.id.clone().map(|id| Leftover { id, needs, is_asked: false });
        let (code, finished_at) = (end.exit_code, end.finished_at);
        let runs_again = after_exit(self.policy, self.seen.kind, code);
        // Its pod is not over, though the policy takes this for the end.
        let must_restart = std::mem::take(&mut self.must_restart) && !runs_again;
        if may_restart && (std::mem::take(&mut self.is_replaced) || must_restart) {
            self.replaced = Some(end);
            self.image = ImageState::Wanted;
            self.run = Run::Idle { due: Instant::now() };
            return Some(After::Restart);
        }
        self.show(ContainerState::Terminated(end));
        if !may_restart || !runs_again {
            self.run = Run::Over;
            return Some(After::Over);
        }
        let wait = self.restarts.next(finished_at);
        self.pause = wait;
        self.image = ImageState::Wanted;
        self.run = Run::Idle { due: clock.instant(finished_at, wait) };
        if wait.is_zero() {
            return Some(After::Restart);
        }
        let message = crash_loop_message(wait, self.seen.name.as_str(), pod.0, pod.1);
        self.wait_for(waiting::CRASH_LOOP, message);
        Some(After::BackOff)
    }

    /// It failed a probe and is being stopped; says whether it will run again.
    pub(crate) fn failed_probe(&mut self) -> bool {
        let is_sidecar = self.seen.kind == ContainerKind::Sidecar;
        self.must_restart = is_sidecar || self.policy != RestartPolicy::Never;
        self.must_restart
    }

    /// When it is to be probed next.
    pub(crate) fn probe_wake(&self) -> Option<Instant> {
        self.probing.as_ref().and_then(Probing::wake)
    }

    /// No other run will begin.
    pub(crate) fn halt(&mut self) {
        if let Some(probing) = &mut self.probing {
            probing.ends();
        }
        if let ImageState::Asked(abort) = &self.image {
            abort.abort();
            self.image = ImageState::Wanted;
        }
        self.undo_launch();
        if let Some(end) = self.replaced.take() {
            self.seen.state = ContainerState::Terminated(end);
        }
        if matches!(self.run, Run::Idle { .. }) {
            self.run = Run::Over;
        }
    }

    /// Decides anew whether a container that does not run will, as after a
    /// restart of the agent.
    pub(crate) fn reconsider(&mut self, is_over: bool, clock: &Clock) {
        let restarts = match (&self.seen.state, self.last_exit()) {
            (_, None) => true,
            (_, Some(code)) => after_exit(self.policy, self.seen.kind, code),
        };
        if is_over || !restarts {
            self.run = Run::Over;
            return;
        }
        let end = match &self.seen.state {
            ContainerState::Terminated(end) => Some(end),
            ContainerState::Waiting { .. } | ContainerState::Running { .. } => {
                self.seen.last.as_ref()
            }
        };
        let due = end.map_or_else(Instant::now, |end| clock.instant(end.finished_at, self.pause));
        self.run = Run::Idle { due };
    }

    /// An earlier agent's run that no sandbox knows: it does not count as begun.
    pub(crate) fn never_made(&mut self) {
        // The run before is the one whose end is shown, if there was one.
        let end = match &self.seen.state {
            ContainerState::Terminated(end) => Some(end),
            ContainerState::Waiting { .. } | ContainerState::Running { .. } => {
                self.seen.last.as_ref()
            }
        };
        self.seen.id = end.and_then(|end| end.id.clone());
        if self.seen.id.is_some() {
            self.seen.restart_count = self.seen.restart_count.saturating_sub(1);
        }
        self.has_ended = self.seen.id.is_some();
        self.ended.cancel();
        self.run = Run::Idle { due: Instant::now() };
    }

    /// An earlier agent's run whose code is loaded and whose guest was not
    /// entered.
    pub(crate) fn was_created(&mut self, id: ContainerId, needs: u64) {
        self.run = Run::Created { id, needs };
    }

    /// Has an init container that is over run again: its sandbox is a new one.
    pub(crate) fn repeat(&mut self) {
        if self.seen.kind == ContainerKind::Init && matches!(self.run, Run::Over) {
            self.image = ImageState::Wanted;
            self.run = Run::Idle { due: Instant::now() };
        }
    }
}

/// A sandbox's report in the words of a status.
pub(crate) fn terminated(id: &ContainerId, exit: ExitReport) -> Terminated {
    let time = |micros: i64| Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH);
    Terminated {
        exit_code: exit.exit_code,
        reason: exit.reason,
        message: exit.message,
        started_at: exit.started_at.map(time),
        finished_at: time(exit.finished_at),
        id: Some(id.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id(byte: u8) -> ContainerId {
        ContainerId::from_bytes([byte; 32])
    }

    fn slot() -> Slot {
        let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "a", "image": "i"}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        Slot::all_of(&pod, Duration::from_mins(5)).remove(0)
    }

    fn launch(slot: &mut Slot, byte: u8) {
        let idle = tokio::task::JoinSet::<()>::new().spawn(std::future::pending());
        slot.launch(id(byte), ContainerResources::default(), idle);
    }

    fn begin(slot: &mut Slot, byte: u8) {
        launch(slot, byte);
        assert!(slot.created(&id(byte), 0));
        slot.enter();
        assert!(slot.running(&id(byte), Timestamp::UNIX_EPOCH, None));
    }

    fn end(slot: &mut Slot, byte: u8) {
        let exit = ExitReport {
            exit_code: 1,
            reason: "Error".to_owned(),
            message: String::new(),
            started_at: None,
            finished_at: 0,
        };
        let pod = (&PodKey::new("n", "p"), &PodUid::new("u"));
        slot.exited(terminated(&id(byte), exit), 0, true, &Clock::system(), pod).unwrap();
    }

    #[tokio::test]
    async fn another_image_calls_off_what_was_made_of_the_old_one() {
        let mut slot = slot();
        launch(&mut slot, 1);
        assert!(!slot.take_image("j"));
        assert!(slot.live().is_none() && slot.leftover.is_none(), "nothing was made yet");
        launch(&mut slot, 2);
        assert!(slot.created(&id(2), 0));
        assert!(!slot.take_image("k"));
        assert!(slot.live().is_none());
        assert_eq!(slot.leftover.as_ref().map(|leftover| &leftover.id), Some(&id(2)));
    }

    #[tokio::test]
    async fn only_the_image_that_the_spec_names_is_waited_for() {
        let mut slot = slot();
        assert!(!slot.asks_for("i"));
        let pull = tokio::task::JoinSet::<()>::new().spawn(std::future::pending());
        slot.image = ImageState::Asked(pull.clone());
        assert!(slot.asks_for("i"));
        slot.take_image("j");
        assert!(!slot.asks_for("i") && !slot.asks_for("j"));
        slot.image = ImageState::Asked(pull);
        assert!(slot.asks_for("j") && !slot.asks_for("i"));
    }

    #[tokio::test]
    async fn a_run_that_was_never_made_is_not_counted() {
        let mut slot = slot();
        launch(&mut slot, 1);
        slot.run = Run::Idle { due: Instant::now() };
        slot.never_made();
        assert_eq!((slot.seen.id.clone(), slot.next_restart_count()), (None, 0));
        begin(&mut slot, 2);
        end(&mut slot, 2);
        launch(&mut slot, 3);
        slot.run = Run::Idle { due: Instant::now() };
        slot.never_made();
        assert!(!slot.is_open());
        assert_eq!((slot.seen.id.clone(), slot.next_restart_count()), (Some(id(2)), 1));
    }

    #[tokio::test]
    async fn a_run_is_counted_when_it_is_shown() {
        let mut slot = slot();
        let shown = |slot: &Slot| (slot.shown().id, slot.shown().restart_count);
        begin(&mut slot, 1);
        end(&mut slot, 1);
        launch(&mut slot, 2);
        assert_eq!((shown(&slot), slot.seen.restart_count), ((Some(id(1)), 0), 1));
        assert!(slot.created(&id(2), 0));
        slot.enter();
        assert_eq!(shown(&slot), (Some(id(1)), 0), "its guest was not entered");
        assert!(slot.running(&id(2), Timestamp::UNIX_EPOCH, None));
        assert_eq!(shown(&slot), (Some(id(2)), 1));
        end(&mut slot, 2);
        launch(&mut slot, 3);
        slot.undo_launch();
        assert_eq!(shown(&slot), (Some(id(2)), 1));
        launch(&mut slot, 4);
        assert!(slot.created(&id(4), 0));
        slot.enter();
        end(&mut slot, 4);
        assert_eq!(shown(&slot), (Some(id(4)), 2), "its end is the state");
    }

    #[tokio::test]
    async fn the_last_two_ends_are_known() {
        let mut slot = slot();
        let ids = |slot: &Slot| {
            let id = |end: &Option<Terminated>| end.as_ref().and_then(|end| end.id.clone());
            (id(&slot.seen.last), id(&slot.seen.before_last))
        };
        for byte in 1..=3 {
            begin(&mut slot, byte);
            end(&mut slot, byte);
        }
        slot.wait_for(waiting::CRASH_LOOP, "");
        assert_eq!(ids(&slot), (Some(id(3)), Some(id(2))));
        slot.wait_for(waiting::CRASH_LOOP, "still");
        assert_eq!(ids(&slot), (Some(id(3)), Some(id(2))), "waiting is no end");
    }

    #[tokio::test]
    async fn logs_are_those_of_the_runs_that_the_status_names() {
        let mut slot = slot();
        let seen = |slot: &Slot| (slot.logged().map(|(_, restart)| restart), slot.logged_last());
        assert_eq!(seen(&slot), (None, None));
        launch(&mut slot, 1);
        assert_eq!(seen(&slot), (None, None), "it is being loaded");
        slot.undo_launch();
        begin(&mut slot, 1);
        assert_eq!(seen(&slot), (Some(0), None));
        end(&mut slot, 1);
        assert!(slot.logged_ended().is_cancelled());
        launch(&mut slot, 2);
        assert_eq!(seen(&slot), (Some(0), None), "the first is shown as it ended");
        assert!(slot.logged_ended().is_cancelled());
        slot.undo_launch();
        begin(&mut slot, 2);
        assert_eq!(seen(&slot), (Some(1), Some(0)));
        assert!(!slot.logged_ended().is_cancelled());
        end(&mut slot, 2);
        slot.wait_for(waiting::CRASH_LOOP, "");
        assert_eq!(seen(&slot), (Some(1), Some(1)), "it waits; its last end is that of its run");
        launch(&mut slot, 3);
        assert_eq!(seen(&slot), (Some(1), Some(1)), "the new one is being loaded");
    }
}
