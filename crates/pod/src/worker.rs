//! The task of one pod.
//!
//! ```text
//! wanted pod ─┐                        ┌─▶ jobs: pull, set up, launch, stop, save …
//! news ───────┼─▶ observe ─▶ decide ─▶ act                       │
//! jobs done ──┤       ▲         │                                │
//! time ───────┘       └─────────┼────────────────────────────────┘
//!                               └─▶ one status, if it is another one
//! ```
//!
//! The task owns everything that is known of the pod, never waits for anything
//! but the next of these four, and so hears of a deletion during a pull. What
//! is to be done is decided in [`decide`](crate::decide) and
//! [`order`](crate::order); starting is in `start.rs`, probing in `probing.rs`,
//! stopping and cleaning up in `stop.rs`, what jobs and sandboxes tell in `observe.rs`, reporting in
//! `report.rs`, going on where an earlier agent was in `resume.rs`, what sockets may do in `rules.rs`.

mod observe;
mod probing;
mod report;
mod resize;
mod resume;
mod rules;
mod start;
mod stop;
mod storage;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use krustlet_model::{
    Grace, PodKey, PodUid,
    observed::{PodFailure, PodObserved, ResizePending},
    policy::{Policies, Verdict},
    resize::{is_resized, keep_resources},
    status::{EPHEMERAL_MESSAGE, EPHEMERAL_REASON, ephemeral_containers},
    time::from_api_time,
};
use krustlet_network::{NetworkState, NodeAddresses};
use krustlet_protocol::{Names, SocketLimits};
use krustlet_volume::Volumes;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::resume::Start;
use self::{observe::Done, rules::Rules};
use crate::{
    config::Context,
    containers::Slot,
    decide::{Action, Desired, Facts, Phase, decide},
    guard::{Guard, Trouble},
    order::{self, Standing},
    outside::{About, EventType, PodEvent, PodEvents, Prober},
    place::{self, Place},
    turns::Turns,
    users::Allotted,
    words,
};

/// What is asked of a pod, newest state.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The pod as its source has it, but with the resources that it may have.
    pub(crate) pod: Arc<Pod>,
    /// The same with the resources that its source wants.
    pub(crate) wish: Arc<Pod>,
    /// Why these are others, if they are.
    pub(crate) pending: Option<ResizePending>,
    /// Whether the source has it: false for one that an earlier agent left, as
    /// long as the source has not told what it has.
    pub(crate) is_known: bool,
    /// Whether the source has it no more.
    pub(crate) is_gone: bool,
    /// Whether it was told to stop without being removed, and how soon.
    pub(crate) stop: Option<Grace>,
}

impl Wanted {
    /// Takes what the source says now.
    pub(crate) fn take(&mut self, pod: Arc<Pod>) {
        self.pod = Arc::clone(&pod);
        self.wish = pod;
        self.pending = None;
        self.is_known = true;
    }

    /// Whether `pod`, which the source has now, is to have other resources than
    /// were allotted. Pods are looked at often and change seldom: one that was
    /// taken as it is is not compared again.
    pub(crate) fn is_to_be_resized(&self, pod: &Arc<Pod>) -> bool {
        let is_as_taken = Arc::ptr_eq(pod, &self.wish) && Arc::ptr_eq(pod, &self.pod);
        !is_as_taken && is_resized(&self.pod, pod)
    }

    /// Takes what the source says now, but for the resources: those stay.
    pub(crate) fn hold(&mut self, wish: Arc<Pod>, pending: Option<ResizePending>) {
        self.pod = Arc::new(keep_resources(&wish, &self.pod));
        self.wish = wish;
        self.pending = pending;
        self.is_known = true;
    }
}

/// How a worker ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Nothing is left of the pod; its user may be given to another.
    Gone(Allotted),
    /// The agent stops; the pod goes on without it.
    Stopped,
}

/// Whether the sandbox is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sandbox {
    /// There is none; one may be made from this moment on.
    None { from: Instant },
    /// It is being made.
    Making,
    /// It is there.
    Up,
    /// It is being ended.
    Stopping,
    /// It could not be ended; the next try may begin at this moment.
    Stuck { from: Instant },
    /// It has been ended for good.
    Stopped,
}

impl Sandbox {
    /// Whether the runtime may be told to end it. Also where none is known: one
    /// may have been made and not told of.
    fn may_be_stopped(self, now: Instant) -> bool {
        match self {
            Self::None { .. } | Self::Up => true,
            Self::Stuck { from } => from <= now,
            Self::Making | Self::Stopping | Self::Stopped => false,
        }
    }
}

/// Whether the volumes are in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Files {
    /// They are not; the next try may begin at this moment.
    Missing { from: Instant },
    /// They are being set up.
    Setting,
    /// They are, and are looked at again at this moment, if ever.
    Set { refresh: Option<Instant> },
    /// They are in place and being brought up to date.
    Refreshing,
    /// They are being removed.
    Removing,
    /// They have been removed.
    Removed,
}

impl Files {
    fn are_set(self) -> bool {
        match self {
            Self::Set { .. } | Self::Refreshing => true,
            Self::Missing { .. } | Self::Setting | Self::Removing | Self::Removed => false,
        }
    }
}

/// How far the pod's removal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    NotAsked,
    /// The source is being told.
    Telling,
    /// The source has been told; it may try again at this moment if it failed.
    Failed {
        from: Instant,
    },
    Told,
    /// Checkpoint and logs are being removed.
    Forgetting,
    Forgotten,
}

/// Checkpoints by number. A change that must be on disk raises `wanted`.
#[derive(Clone, Copy, Debug, Default)]
struct Saves {
    wanted: u64,
    in_flight: Option<u64>,
    done: u64,
    /// When a change that can wait is written, if there is one.
    lazily: Option<Instant>,
    /// When the next try may begin, after one that failed.
    retry: Option<Instant>,
    /// Whether nothing is written: the pod never ran here.
    is_off: bool,
}

/// One pod's task.
#[derive(Debug)]
pub(crate) struct Worker {
    context: Arc<Context>,
    uid: PodUid,
    key: PodKey,
    pod: Arc<Pod>,
    wanted: watch::Receiver<Wanted>,
    user: Allotted,
    volumes: Volumes,
    turns: Turns,
    /// Where it is in the network, from before its sandbox is made until after
    /// it is gone.
    place: Option<Place>,
    /// How pods get their addresses; looked at while this one has none.
    network: watch::Receiver<NetworkState>,
    waits_for_network: bool,
    /// Where the node answers: what the sandbox is told changes with it.
    reached_at: watch::Receiver<NodeAddresses>,
    rules: Rules,
    /// How the sandbox looks names up, as it was told by this agent.
    names: Option<Names>,
    /// Bounds of its sockets, a part of the rules.
    limits: SocketLimits,
    /// What the cluster's policies say.
    policies: watch::Receiver<Policies>,
    /// What the sandbox was told of them, and of the pod's own list.
    guard: Guard,
    /// What is wrong with that, as people were told.
    trouble: Option<Trouble>,
    /// What the policies said last; held so that the next ones are known to be
    /// asked for.
    verdict: Option<Arc<Verdict>>,
    /// Whether what they say is being worked out.
    works_out: bool,

    phase: Phase,
    slots: Vec<Slot>,
    started_at: Timestamp,
    /// When `activeDeadlineSeconds` are over. Worked out once for each wish:
    /// asked of the clock again, it would always lie ahead.
    deadline: Option<Instant>,
    failure: Option<PodFailure>,
    sandbox: Sandbox,
    /// Whether one was there and ready.
    had_sandbox: bool,
    /// Failures to make or keep a sandbox in a row, until a guest runs.
    sandbox_failures: u32,
    files: Files,
    /// Failures to set volumes up in a row.
    files_failures: u32,
    /// How often the new pod was refused what its volumes need.
    refusals: u32,
    removal: Removal,
    /// When what still runs is to be gone.
    stop_by: Option<Instant>,
    /// When the whole sandbox is ended because something will not.
    kill_at: Option<Instant>,

    storage: storage::Storage,
    resizing: resize::Resizing,
    /// Makes this pod's probes.
    prober: Arc<dyn Prober>,
    events: Option<PodEvents>,
    /// An event that tells of ends; no other is taken until what the runs left
    /// is read.
    in_hand: Option<PodEvent>,
    jobs: JoinSet<Done>,
    saves: Saves,
    reported: report::Reported,
}

impl Worker {
    pub(crate) fn new(
        context: Arc<Context>,
        uid: PodUid,
        wanted: watch::Receiver<Wanted>,
        start: Start,
    ) -> Self {
        let pod = Arc::clone(&wanted.borrow().pod);
        let key = key_of(&pod);
        let owner = context.volume_owner(start.user());
        let volumes = Volumes::new(&context.directories.of(&uid), owner);
        let slots = Slot::all_of(&pod, context.config.max_restart_backoff);
        let told = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let started_at = told.map_or_else(|| context.config.clock.now(), from_api_time);
        let now = Instant::now();
        let storage = storage::Storage::new(&pod, now);
        // One that is wrong is told of, or the pod is refused.
        let limits = place::limits(&pod, &context.config.sockets)
            .unwrap_or_else(|_| context.config.sockets.clone());
        let mut worker = Self {
            uid,
            key,
            pod,
            wanted,
            user: start.user().clone(),
            volumes,
            turns: Turns::default(),
            place: None,
            network: context.outside.network.state(),
            waits_for_network: false,
            reached_at: context.outside.network.node_reached_at(),
            rules: Rules::Current,
            names: None,
            policies: context.outside.policies.clone(),
            guard: Guard::default(),
            trouble: None,
            verdict: None,
            works_out: false,
            limits,
            phase: Phase::Starting,
            slots,
            started_at,
            deadline: None,
            failure: None,
            sandbox: Sandbox::None { from: now },
            had_sandbox: false,
            sandbox_failures: 0,
            files: Files::Missing { from: now },
            files_failures: 0,
            refusals: 0,
            removal: Removal::NotAsked,
            stop_by: None,
            kill_at: None,
            storage,
            resizing: resize::Resizing::default(),
            prober: context.outside.prober.for_pod(),
            events: None,
            in_hand: None,
            jobs: JoinSet::new(),
            saves: Saves::default(),
            reported: report::Reported::new(now),
            context,
        };
        let is_new = matches!(start, Start::Fresh(_));
        worker.resume(start);
        worker.set_deadline();
        if is_new {
            worker.tell_of_ephemeral(None);
        }
        worker
    }

    /// Runs the pod until nothing is left of it or the agent stops. In the
    /// latter case its guests go on.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> End {
        loop {
            let looked = self.step();
            if self.removal == Removal::Forgotten {
                return End::Gone(self.user);
            }
            let wake = self.wake(looked);
            // Cancel-safe: the channels and the set keep what was not taken.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = self.wanted.changed() => {
                    // The sender is the owner of this task and outlives it.
                    if changed.is_err() {
                        break;
                    }
                    self.take_wanted();
                }
                // Its sender lives as long as the network, which we hold.
                Ok(()) = self.network.changed(), if self.waits_for_network => {}
                // So does this one. What changes while the sandbox is told is
                // seen afterwards.
                Ok(()) = self.reached_at.changed(),
                    if !matches!(self.rules, Rules::Telling { .. }) => self.rules_are_old(),
                // Without a sender they never change.
                Ok(()) = self.policies.changed(),
                    if !matches!(self.rules, Rules::Telling { .. }) => self.look_at_guard(),
                event = next(&mut self.events), if self.in_hand.is_none() => {
                    self.take_event(event);
                }
                Some(done) = self.jobs.join_next() => match done {
                    Ok(done) => self.take_done(done),
                    // The pod fails with its job; the owner of this task sees it.
                    Err(error) if error.is_panic() => {
                        std::panic::resume_unwind(error.into_panic())
                    }
                    // One that was called off.
                    Err(_) => {}
                },
                () = sleep_until(wake) => {}
            }
        }
        self.save_at_last().await;
        End::Stopped
    }

    /// Decides and acts once, with everything that is known now; returns that
    /// moment.
    fn step(&mut self) -> Instant {
        // Each action is followed by a look at what it changed, as long as
        // phases follow each other without anything to wait for.
        let looked = loop {
            let now = Instant::now();
            self.look_at_orders(now);
            self.look_at_the_clock(now);
            let (phase, action) = decide(self.phase, self.desired(), self.facts(now));
            let moved = std::mem::replace(&mut self.phase, phase) != phase;
            if moved {
                self.entered(phase);
            }
            match action {
                Action::Prepare => self.prepare(now),
                Action::StartDue => self.start_due(now),
                Action::StopAll(grace) => self.stop_all(grace, now),
                Action::CleanUp => self.clean_up(now),
                Action::Wait => {}
            }
            if !moved {
                break now;
            }
        };
        self.tell_rules(looked);
        self.probe(looked);
        self.resize(looked);
        self.remove_leftovers();
        self.had_sandbox |= self.is_sandbox_ready();
        self.save();
        self.report();
        looked
    }

    fn desired(&self) -> Desired {
        let wanted = self.wanted.borrow();
        if let Some(grace) = deletion(&self.pod).or(wanted.stop) {
            return Desired::Stop(grace);
        }
        if self.failure.as_ref().is_some_and(|failure| failure.reason == words::EVICTED) {
            // Source: kubelet, `immediateEvictionGracePeriodSeconds` in
            // `pkg/kubelet/eviction/eviction_manager.go`.
            return Desired::Stop(Grace::from_seconds(1));
        }
        if wanted.is_gone || self.failure.is_some() {
            return Desired::Stop(own_grace(&self.pod));
        }
        Desired::Run
    }

    fn facts(&self, now: Instant) -> Facts {
        let standings = self.standings(now);
        Facts {
            prepared: self.sandbox == Sandbox::Up && self.files.are_set(),
            alive: standings.iter().filter(|container| container.stage.is_alive()).count(),
            finished: order::has_finished(&standings),
            own_grace: own_grace(&self.pod),
            cleaned: self.is_cleaned(),
        }
    }

    fn standings(&self, now: Instant) -> Vec<Standing> {
        self.slots.iter().map(|slot| slot.standing(now)).collect()
    }

    /// What follows from being told to stop without being removed.
    fn look_at_orders(&mut self, now: Instant) {
        let is_told = self.wanted.borrow().stop.is_some() && deletion(&self.pod).is_none();
        if !is_told
            || self.failure.is_some()
            || !matches!(self.phase, Phase::Starting | Phase::Running)
            || order::has_finished(&self.standings(now))
        {
            return;
        }
        // Whatever code its programs end with, it has not done what it was for.
        self.failure = Some(PodFailure {
            reason: words::STOPPED_ON_NODE.to_owned(),
            message: words::ORDERED.to_owned(),
        });
        self.tell(EventType::Warning, words::STOPPED_ON_NODE, words::ORDERED.to_owned());
    }

    /// What follows from time alone.
    fn look_at_the_clock(&mut self, now: Instant) {
        if self.failure.is_none()
            && matches!(self.phase, Phase::Starting | Phase::Running)
            && self.deadline.is_some_and(|deadline| deadline <= now)
        {
            self.failure = Some(PodFailure {
                reason: words::DEADLINE_EXCEEDED.to_owned(),
                message: words::TOO_LONG.to_owned(),
            });
            self.tell(EventType::Normal, words::DEADLINE_EXCEEDED, words::TOO_LONG.to_owned());
        }
        self.look_at_storage(now);
        for index in 0..self.slots.len() {
            if self.slots[index].show_back_off(now) {
                let image = &self.slots[index].seen.image;
                let message = words::back_off_pulling(image);
                self.tell_of(index, EventType::Normal, words::BACK_OFF, message);
                let message = words::error(words::waiting::PULL_BACK_OFF);
                self.tell_of(index, EventType::Warning, words::FAILED, message);
            }
        }
    }

    /// Works out when `activeDeadlineSeconds` are over.
    ///
    /// Source: kubelet, `pkg/kubelet/active_deadline.go`.
    fn set_deadline(&mut self) {
        let seconds = self.pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
        self.deadline = seconds.map(|seconds| {
            let limit = Duration::from_secs(seconds.max(0).unsigned_abs());
            self.context.config.clock.instant(self.started_at, limit)
        });
    }

    /// When this pod needs to be looked at again, if nothing happens after it
    /// was looked at.
    fn wake(&self, looked: Instant) -> Instant {
        let mut moments = Vec::new();
        moments.extend(self.reported.wake(self.saves.lazily));
        moments.extend(self.saves.retry);
        moments.extend(self.rules.wake());
        moments.extend(self.slots.iter().filter_map(Slot::probe_wake));
        match self.phase {
            Phase::Starting | Phase::Running => {
                moments.extend(self.deadline);
                moments.extend(self.storage.wake());
                moments.extend(self.resizing.wake());
                moments.extend(self.slots.iter().filter_map(|slot| slot.wake(looked)));
                if let Sandbox::None { from } = self.sandbox {
                    moments.push(from);
                }
                match self.files {
                    Files::Missing { from } => moments.push(from),
                    Files::Set { refresh } => moments.extend(refresh),
                    Files::Setting | Files::Refreshing | Files::Removing | Files::Removed => {}
                }
            }
            Phase::Terminating(_) => {
                moments.extend(self.kill_at);
                if let Sandbox::Stuck { from } = self.sandbox {
                    moments.push(from);
                }
            }
            Phase::Terminated => {
                if let Sandbox::Stuck { from } = self.sandbox {
                    moments.push(from);
                }
                if let Removal::Failed { from } = self.removal {
                    moments.push(from);
                }
                if let Files::Missing { from } = self.files {
                    moments.push(from);
                }
            }
        }
        earliest(looked, moments)
    }

    fn is_sandbox_ready(&self) -> bool {
        match self.sandbox {
            // Kubelet makes the sandbox after the volumes; here both are made
            // at once, and it counts from when both are there.
            Sandbox::Up => self.files.are_set(),
            Sandbox::Stopping | Sandbox::Stuck { .. } => true,
            Sandbox::None { .. } | Sandbox::Making | Sandbox::Stopped => false,
        }
    }

    /// What is seen of the pod, in the words of the model.
    fn observed(&self) -> PodObserved {
        let sandbox_ready = self.is_sandbox_ready();
        PodObserved {
            started_at: self.started_at,
            failure: self.failure.clone(),
            sandbox_ready,
            had_sandbox: self.had_sandbox,
            pod_ips: if sandbox_ready { self.pod_ips().to_vec() } else { Vec::new() },
            host_ips: self.context.outside.network.node_addresses().to_vec(),
            containers: self.slots.iter().map(Slot::shown).collect(),
            terminating: matches!(self.phase, Phase::Terminating(_) | Phase::Terminated),
            resize: self.resize_observed(),
        }
    }

    /// Tells of the ephemeral containers that were not in the pod before: none
    /// is run.
    fn tell_of_ephemeral(&self, before: Option<&Pod>) {
        let is_known = |name: &str| {
            before.is_some_and(|pod| ephemeral_containers(pod).any(|known| known.name == name))
        };
        for container in ephemeral_containers(&self.pod).filter(|one| !is_known(&one.name)) {
            let about = About::Ephemeral(&self.pod, &container.name);
            let message = EPHEMERAL_MESSAGE.to_owned();
            let events = &self.context.outside.events;
            events.record(about, EventType::Warning, EPHEMERAL_REASON, message);
        }
    }

    /// An event about the pod.
    fn tell(&self, kind: EventType, reason: &'static str, message: String) {
        self.context.outside.events.record(About::Pod(&self.pod), kind, reason, message);
    }

    /// An event about one of its containers.
    fn tell_of(&self, index: usize, kind: EventType, reason: &'static str, message: String) {
        let seen = &self.slots[index].seen;
        let about = About::Container(&self.pod, seen.kind, &seen.name);
        self.context.outside.events.record(about, kind, reason, message);
    }
}

/// The first moment that a look at this one did not see yet. It may be over by
/// now, and is looked at at once then.
///
/// What was past was looked at; if nothing came of it, it waits for something
/// that will wake the task by itself.
fn earliest(looked: Instant, moments: impl IntoIterator<Item = Instant>) -> Instant {
    // A moment that never counts; the timer needs one.
    const IDLE: Duration = Duration::from_hours(24);
    moments.into_iter().filter(|&moment| moment > looked).min().unwrap_or(looked + IDLE)
}

/// The next event; never, if nobody tells any.
async fn next(events: &mut Option<PodEvents>) -> Option<PodEvent> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// A pod's namespace and name.
pub(crate) fn key_of(pod: &Pod) -> PodKey {
    PodKey::new(
        pod.metadata.namespace.clone().unwrap_or_default(),
        pod.metadata.name.clone().unwrap_or_default(),
    )
}

/// The grace period of a deletion that was asked for.
///
/// Source: kubelet, `calculateEffectiveGracePeriod` in
/// `pkg/kubelet/pod_workers.go`.
fn deletion(pod: &Pod) -> Option<Grace> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let own = || own_grace(pod);
    Some(pod.metadata.deletion_grace_period_seconds.map_or_else(own, Grace::from_seconds))
}

/// The pod's own grace period; 30 s if it names none, as the API server has it.
fn own_grace(pod: &Pod) -> Grace {
    let spec = pod.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    Grace::from_seconds(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_that_passes_after_the_look_is_not_lost() {
        let now = Instant::now();
        let looked = now.checked_sub(Duration::from_millis(10)).unwrap();
        let passed = now.checked_sub(Duration::from_millis(5)).unwrap();
        assert_eq!(earliest(looked, [now + Duration::from_secs(9), passed]), passed);
        assert!(earliest(looked, [looked]) > now, "what was looked at waits for news");
    }
}
