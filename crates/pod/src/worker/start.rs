//! Making a pod ready and starting its containers.
//!
//! Volumes, sandbox and images are made ready at the same time. A container is
//! launched when its turn has come ([`order`](crate::order)) and its image is
//! here; its guest is entered once the run is on disk, which is written while
//! the code is loaded.

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use krustlet_model::{
    Chain, ContainerId, ContainerName,
    names::NamesWarning,
    objects::{of_environment, of_volumes},
    resize::ContainerResources,
    restarts,
};
use krustlet_protocol::Names;
use tokio::{task::spawn_blocking, time::Instant};

use super::{Done, Files, Sandbox, Worker, rules::Rules};
use crate::{
    config::Context,
    containers::{ImageState, Run},
    decide::Phase,
    launch::{LaunchOrder, launch},
    names::{self, NamesConfig, NamesError},
    order,
    outside::{About, EventType, NetworkKind, PodEvents, PodSandbox, Refused, Why},
    place::{self, NoPlace, Place},
    pulls::{self, ImageQuestion, ask_for_image},
    setup::{SetUp, SetUpError, set_up},
    words,
};

/// The wait after the first failure to make a sandbox or to set volumes up; it
/// doubles. Source: kubelet, `initialDurationBeforeRetry` in
/// `pkg/volume/util/operationexecutor`.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The longest such wait. Kubelet's is two minutes; here what is waited for is
/// in memory, so that looking again costs little.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// How often a new pod may be refused what its volumes need before people are
/// told: a node often hears of a pod before the node authorizer does, and asks
/// within milliseconds.
const QUIET_REFUSALS: u32 = 2;

/// The wait after such a refusal.
const REFUSED_RETRY: Duration = Duration::from_millis(100);

/// Reads something of the node's files for a pod: of the node's name and addresses,
/// and the pod's.
type Read<T> = fn(&NamesConfig, &Pod, (&str, &[IpAddr]), &[IpAddr]) -> Result<T, NamesError>;

/// Reads of the node's files how the pod at these addresses looks names up.
pub(super) async fn read_names<T: Send + 'static>(
    context: Arc<Context>,
    pod: Arc<Pod>,
    addresses: Vec<IpAddr>,
    read: Read<T>,
) -> Result<T, Refused> {
    let failed = |message| Refused { message, why: Why::Failed };
    let names = spawn_blocking(move || {
        let node = context.node(None);
        let at = (node.name.as_str(), context.outside.network.node_addresses());
        read(&context.config.names, &pod, at, &addresses)
    });
    let names = names.await.map_err(|error| failed(error.to_string()))?;
    names.map_err(|error| failed(Chain(&error).to_string()))
}

/// Makes a sandbox, once it is known how the pod looks names up, and says how that
/// is.
async fn make_sandbox(
    context: Arc<Context>,
    pod: Arc<Pod>,
    mut sandbox: PodSandbox,
) -> Result<(PodEvents, Names), Refused> {
    let addresses = sandbox.network.addresses.clone();
    let read = read_names(Arc::clone(&context), Arc::clone(&pod), addresses, names::of_pod);
    let (names, warnings) = read.await?;
    for NamesWarning { reason, message } in warnings {
        context.outside.events.record(About::Pod(&pod), EventType::Warning, reason, message);
    }
    sandbox.network.names = Some(names.clone());
    let events = context.outside.runtime.run_pod_sandbox(sandbox).await?;
    Ok((events, names))
}

impl Worker {
    /// Makes ready whatever is not. Images are asked for at the same time.
    pub(super) fn prepare(&mut self, now: Instant) {
        if let Sandbox::None { from } = self.sandbox
            && from <= now
            && self.is_guarded()
            && self.has_place()
        {
            self.make_sandbox();
        }
        if let Files::Missing { from } = self.files
            && from <= now
        {
            self.files = Files::Setting;
            self.set_up_files();
        }
        self.ask_for_images(now);
    }

    /// Whether the pod is somewhere in the network; it is given a place if it
    /// has none. Otherwise it is clear what it waits for.
    fn has_place(&mut self) -> bool {
        let network = &self.context.outside.network;
        // One among the pods is of no use to an agent that has no namespace.
        let is_usable = |place: &Place| place.kind == NetworkKind::Node || network.has_namespace();
        if self.place.as_ref().is_some_and(is_usable) {
            return true;
        }
        match place::find(network, &self.pod, &self.uid) {
            Ok(found) => {
                self.place = Some(found);
                self.waits_for_network = false;
                true
            }
            Err(NoPlace::NotReady(why)) => {
                // Told once; what follows is told by the node.
                if !std::mem::replace(&mut self.waits_for_network, true) {
                    let message = format!("network is not ready: {why}");
                    self.tell(EventType::Warning, words::NETWORK_NOT_READY, message);
                }
                false
            }
            Err(NoPlace::Full(error)) => {
                self.waits_for_network = false;
                self.sandbox_failed(&error.to_string());
                false
            }
        }
    }

    fn make_sandbox(&mut self) {
        if self.place.is_none() {
            return;
        }
        // It is made with the newest; what changes from now on, it is told. If that
        // has to be worked out first, this is called again.
        if !self.newest_guard() {
            return;
        }
        self.sandbox = Sandbox::Making;
        self.rules.made();
        let Some(place) = &self.place else { return };
        let sandbox = PodSandbox {
            pod: self.uid.clone(),
            domain: self.user.domain.clone(),
            user: self.user.user.clone(),
            kind: place.kind,
            network: place::rules(
                &self.context.outside.network,
                &self.pod,
                place,
                &self.limits,
                &self.guard,
            ),
        };
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        self.jobs.spawn(async move { Done::Sandbox(make_sandbox(context, pod, sandbox).await) });
    }

    /// No sandbox was made; another try follows.
    pub(super) fn sandbox_failed(&mut self, why: &str) {
        let message = format!("Failed to create pod sandbox: {why}");
        self.tell(EventType::Warning, words::FAILED_SANDBOX, message);
        let from = Self::retry(self.sandbox_failures.saturating_add(1));
        self.sandbox_failures = self.sandbox_failures.saturating_add(1);
        self.sandbox = Sandbox::None { from };
    }

    /// Starts the containers whose turn it is, and keeps the volumes fresh.
    pub(super) fn start_due(&mut self, now: Instant) {
        self.ask_for_images(now);
        for index in order::to_start(&self.standings(now)) {
            self.launch(index);
        }
        if let Files::Set { refresh: Some(at) } = self.files
            && at <= now
        {
            self.files = Files::Refreshing;
            self.set_up_files();
        }
    }

    /// Enters the guests whose runs are on disk, once the sandbox was told what
    /// their sockets may do.
    pub(super) fn enter_saved(&mut self) {
        if !matches!(self.phase, Phase::Starting | Phase::Running) || self.rules != Rules::Current {
            return;
        }
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let Run::Created { id, needs, .. } = &slot.run else { continue };
            if *needs > self.saves.done {
                continue;
            }
            let id = id.clone();
            slot.enter();
            let started =
                self.context.outside.runtime.start_container(self.uid.clone(), id.clone());
            self.jobs.spawn(async move { Done::Started { index, id, result: started.await } });
        }
    }

    /// When to try again after so many failures in a row.
    pub(super) fn retry(failures: u32) -> Instant {
        let wait = FIRST_RETRY.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
        Instant::now() + wait.min(LAST_RETRY)
    }

    fn set_up_files(&mut self) {
        let order = SetUp {
            context: Arc::clone(&self.context),
            pod: Arc::clone(&self.pod),
            key: self.key.clone(),
            uid: self.uid.clone(),
            volumes: self.volumes.clone(),
            place: self.place.clone(),
        };
        self.jobs.spawn(async move { Done::Files(set_up(order).await) });
    }

    /// When the volumes are to be looked at again: for what others change, and
    /// for tokens, about once a minute; a tenth of that is left to chance, lest
    /// all pods ask at once.
    pub(super) fn next_refresh(&self) -> Option<Instant> {
        let tokens = krustlet_volume::token_requests(&self.pod);
        let has_downward = has_downward(&self.pod);
        if tokens.is_empty() && of_volumes(&self.pod).is_empty() && !has_downward {
            return None;
        }
        let chance = f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / f64::from(u8::MAX);
        Some(Instant::now() + self.context.config.refresh.mul_f64(0.9 + 0.2 * chance))
    }

    fn ask_for_images(&mut self, now: Instant) {
        let pod = Arc::clone(&self.pod);
        for (index, (kind, container)) in restarts::containers(&pod).enumerate() {
            if !self.slots.get(index).is_some_and(|slot| slot.wants_image(now)) {
                continue;
            }
            let question = ImageQuestion {
                context: Arc::clone(&self.context),
                pod: Arc::clone(&pod),
                kind,
                name: ContainerName::new(&container.name),
                image: container.image.clone().unwrap_or_default(),
                policy: pulls::policy(container),
            };
            let image = question.image.clone();
            let abort = self.jobs.spawn(async move {
                Done::Image { index, image, answer: ask_for_image(question).await }
            });
            self.slots[index].image = ImageState::Asked(abort);
        }
    }

    fn launch(&mut self, index: usize) {
        let ImageState::Here(image) = &self.slots[index].image else { return };
        let image = Arc::clone(image);
        // There is a sandbox, so that there is a place.
        let Some(place) = self.place.clone() else { return };
        let Some((_, container)) = restarts::containers(&self.pod).nth(index) else { return };
        let id = new_id();
        let order = LaunchOrder {
            context: Arc::clone(&self.context),
            pod: Arc::clone(&self.pod),
            container: container.clone(),
            uid: self.uid.clone(),
            key: self.key.clone(),
            id: id.clone(),
            restart_count: self.slots[index].next_restart_count(),
            previous: self.slots[index].seen.id.clone(),
            image,
            volumes: self.volumes.clone(),
            turns: self.turns.clone(),
            place,
            refs: of_environment(&self.pod),
        };
        let (given, resources) = (id.clone(), ContainerResources::of(container));
        let abort = self
            .jobs
            .spawn(async move { Done::Created { index, id: given, result: launch(order).await } });
        self.slots[index].launch(id, resources, abort);
        // Written while the code is loaded; the guest is entered after both.
        self.touch();
    }

    /// A container could not be made.
    pub(super) fn launch_failed(&mut self, index: usize, reason: &str, message: &str) {
        self.tell_of(index, EventType::Warning, words::FAILED, words::error(message));
        self.slots[index].launch_failed(reason, message);
    }

    /// Volumes could not be set up.
    pub(super) fn files_failed(&mut self, error: &SetUpError) {
        if self.phase == Phase::Starting
            && self.files == Files::Setting
            && error.is_refused()
            && self.refusals < QUIET_REFUSALS
        {
            self.refusals += 1;
            self.files = Files::Missing { from: Instant::now() + REFUSED_RETRY };
            return;
        }
        self.tell(EventType::Warning, words::FAILED_MOUNT, error.text());
        let retry = match self.phase {
            Phase::Starting | Phase::Running => Self::retry(self.files_failures),
            // There will be no other try.
            Phase::Terminating(_) | Phase::Terminated => Instant::now(),
        };
        self.files_failures = self.files_failures.saturating_add(1);
        self.files = match self.files {
            // What lies there is older than it should be, and all there is.
            Files::Refreshing => Files::Set { refresh: Some(retry) },
            Files::Missing { .. }
            | Files::Setting
            | Files::Set { .. }
            | Files::Removing
            | Files::Removed => Files::Missing { from: retry },
        };
    }

    /// Has containers that have ended forgotten by the sandbox, as soon as
    /// their ends are on disk.
    pub(super) fn remove_leftovers(&mut self) {
        if self.sandbox != Sandbox::Up {
            return;
        }
        for index in 0..self.slots.len() {
            let Some(leftover) = &mut self.slots[index].leftover else { continue };
            if leftover.is_asked || leftover.needs > self.saves.done {
                continue;
            }
            leftover.is_asked = true;
            let id = leftover.id.clone();
            let removed =
                self.context.outside.runtime.remove_container(self.uid.clone(), id.clone());
            self.jobs.spawn(async move { Done::Removed { index, id, result: removed.await } });
        }
    }

    /// The sandbox is gone, with everything that was in it. The next one is
    /// made at once; one that dies before a guest ran, after a wait.
    pub(super) fn sandbox_lost(&mut self, now: Instant) {
        let failures = self.sandbox_failures;
        let from = if failures == 0 { now } else { Self::retry(failures) };
        self.sandbox_failures = failures.saturating_add(1);
        self.sandbox = Sandbox::None { from };
        self.events = None;
        self.names = None;
        for slot in &mut self.slots {
            slot.leftover = None;
            slot.has_begun = false;
        }
        if !matches!(self.phase, Phase::Starting | Phase::Running)
            || order::has_finished(&self.standings(now))
        {
            return;
        }
        self.tell(EventType::Normal, words::SANDBOX_CHANGED, words::CHANGED.to_owned());
        // Source: kubelet, `computePodActions`: a new sandbox begins with the
        // init containers.
        for slot in &mut self.slots {
            slot.repeat();
        }
    }

    /// Removes the logs that a new run makes superfluous: those of all but the
    /// run before. Source: kubelet, `maxPerPodContainerCount` (1) in
    /// `cmd/kubelet/app/options/options.go`.
    pub(super) fn remove_old_log(&mut self, index: usize) {
        let seen = &self.slots[index].seen;
        let Some(restart) = seen.restart_count.checked_sub(2) else { return };
        let (name, key, uid) = (seen.name.clone(), self.key.clone(), self.uid.clone());
        let places = self.context.config.logs.clone();
        self.jobs.spawn(async move {
            let removed = spawn_blocking(move || places.remove_run(&key, &uid, &name, restart));
            if let Ok(Err(error)) = removed.await {
                tracing::warn!(error = %Chain(&error), "cannot remove an old log");
            }
            Done::Nothing
        });
    }

    /// Keeps the link of a new run for log collectors, and drops the old one.
    pub(super) fn link_log(&mut self, index: usize, previous: Option<ContainerId>) {
        let slot = &self.slots[index];
        let Some(id) = slot.seen.id.clone() else { return };
        let (name, key) = (slot.seen.name.clone(), self.key.clone());
        let places = self.context.config.logs.clone();
        if places.links.is_none() {
            return;
        }
        let log = places.run(&key, &self.uid, &name, slot.seen.restart_count);
        self.jobs.spawn(async move {
            let linked = spawn_blocking(move || {
                places.link(&key, &name, &id, &log)?;
                previous.map_or(Ok(()), |previous| places.unlink(&key, &name, &previous))
            });
            if let Ok(Err(error)) = linked.await {
                tracing::warn!(error = %Chain(&error), "cannot link a log");
            }
            Done::Nothing
        });
    }
}

/// An id that was never used: 32 random bytes, but for the twelve bits in which
/// two uuids say that they are random.
fn new_id() -> ContainerId {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    bytes[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    ContainerId::from_bytes(bytes)
}

/// Whether a volume shows fields of the pod, which may change.
fn has_downward(pod: &k8s_openapi::api::core::v1::Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| {
        let mut sources =
            volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        volume.downward_api.is_some() || sources.any(|source| source.downward_api.is_some())
    })
}
