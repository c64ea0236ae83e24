//! All pods of the node: one task for each, and who gets one.
//!
//! A pod that is new is admitted beside those that run, the oldest first, and
//! given a user. One of the same name as a pod that still ends waits for it.
//! What an earlier agent left is taken up at once, before the source has told
//! anything: containers go on, and restart by their policies. But nothing is
//! taken for removed before the source has told all that it has.

mod left;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use krustlet_model::{
    Chain, Grace, PodKey, PodUid,
    admission::{NodeFacts, Rejection, admit, room_for_resize},
    observed::PodFailure,
    restarts,
    status::Phase,
};
use krustlet_volume::VolumeOwner;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{Id, JoinError, JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use self::left::Left;
use crate::{
    checkpoint::{CheckpointError, PodDirectories},
    config::{Context, PodsConfig},
    handle::{Command, Pods, QUEUE},
    outside::{About, Adopted, Domain, EventType, Outside, PodUser},
    users::{self, Allotted, UserError, Users},
    view::Views,
    words,
    worker::{End, Start, Wanted, Worker, key_of},
};

/// The pods that this node is to run.
#[derive(Clone, Debug, Default)]
pub struct WantedPods {
    /// Whether every source has told all that it has. Before that, a pod that
    /// is missing means nothing.
    pub synced: bool,
    /// The newest state of each pod.
    pub pods: Arc<BTreeMap<PodUid, Arc<Pod>>>,
}

/// Why pods cannot be run at all.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum OpenError {
    #[error("cannot take up the pods of the agent before this one")]
    Checkpoints(#[from] CheckpointError),

    #[error("the work was broken off")]
    Broken(#[from] JoinError),

    #[error("cannot use the directory of the logs")]
    Logs(#[source] std::io::Error),
}

/// Runs the pods. Ends when told; the pods' guests go on.
#[derive(Debug)]
pub struct PodsTask {
    context: Arc<Context>,
    wanted: watch::Receiver<WantedPods>,
    node: watch::Receiver<Option<Arc<Node>>>,
    commands: mpsc::Receiver<Command>,
    users: Users,
    entries: BTreeMap<PodUid, Entry>,
    /// Pods whose checkpoints cannot be read: whether they have run is unknown.
    damaged: BTreeSet<PodUid>,
    /// Pods of which nothing is left here, but which the source still has: it
    /// was told, or others have reasons to keep them (finalizers).
    gone: BTreeSet<PodUid>,
    /// What was left without a checkpoint, and is removed first.
    strays: BTreeSet<PodUid>,
    workers: JoinSet<End>,
    uids: HashMap<Id, PodUid>,
    stop_workers: CancellationToken,
}

/// A pod that has a task.
#[derive(Debug)]
struct Entry {
    key: PodKey,
    wanted: watch::Sender<Wanted>,
    /// Whether it counts when another pod asks for room.
    is_admitted: bool,
    user: Allotted,
    /// Whether its task died once already.
    is_broken: bool,
}

/// Takes up what an earlier agent left and gets ready to run pods.
///
/// `adopted` is what the runtime found. The task acts only when it is run, but for
/// the pods that go on and a sandbox that is at the address of another.
///
/// # Errors
///
/// [`OpenError`] if the directories cannot be read, or were written by a newer
/// agent.
pub async fn open(
    config: PodsConfig,
    outside: Outside,
    adopted: Vec<Adopted>,
    wanted: watch::Receiver<WantedPods>,
) -> Result<(Pods, PodsTask), OpenError> {
    let directories = PodDirectories::new(config.pods.clone());
    let (places, read) = (config.logs.clone(), directories.clone());
    let loaded = spawn_blocking(move || {
        places.sweep_links().map_err(OpenError::Logs)?;
        Ok::<_, OpenError>(read.load()?)
    })
    .await??;

    let (commands, received) = mpsc::channel(QUEUE);
    let views = Arc::new(Views::default());
    let pods = Pods { commands, views: Arc::clone(&views), runtime: Arc::clone(&outside.runtime) };
    let mut task = PodsTask {
        node: outside.objects.node(),
        users: Users::new(config.users),
        context: Arc::new(Context {
            config,
            outside,
            directories,
            views,
            storage_looks: Semaphore::new(1),
            policy_looks: Semaphore::new(1),
        }),
        wanted,
        commands: received,
        entries: BTreeMap::new(),
        damaged: BTreeSet::new(),
        gone: BTreeSet::new(),
        strays: BTreeSet::new(),
        workers: JoinSet::new(),
        uids: HashMap::new(),
        stop_workers: CancellationToken::new(),
    };
    let mut adopted: BTreeMap<PodUid, Adopted> =
        adopted.into_iter().map(|adopted| (adopted.pod.clone(), adopted)).collect();
    let mut resumed = Vec::new();
    for (uid, found) in loaded {
        match found {
            Ok(Some(checkpoint)) => {
                resumed.push(Left { adopted: adopted.remove(&uid), uid, checkpoint });
            }
            Ok(None) => drop(task.strays.insert(uid)),
            Err(error @ CheckpointError::Newer { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::error!(%uid, error = %Chain(&error), "a pod's checkpoint is lost");
                task.damaged.insert(uid.clone());
                task.strays.insert(uid);
            }
        }
    }
    task.keep_addresses(&mut resumed).await;
    for (uid, stray) in adopted {
        task.reserve(&stray);
        task.strays.insert(uid);
    }
    // From now on pods may be given some; the first may ask as soon as it is begun.
    task.context.outside.network.restored();
    let context = Arc::clone(&task.context);
    let read = move || resumed.into_iter().map(|left| left.read(&context)).collect::<Vec<_>>();
    for (left, said) in spawn_blocking(read).await? {
        task.take_up(left, said);
    }
    Ok((pods, task))
}

impl PodsTask {
    /// Runs pods until stopped. The guests go on when it has ended, and their
    /// checkpoints are on disk.
    pub async fn run(mut self, stop: CancellationToken) {
        self.remove_strays().await;
        loop {
            self.look();
            // Cancel-safe: channels and set keep what was not taken.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.workers.join_next_with_id() => self.take_end(ended),
                Some(command) = self.commands.recv() => self.obey(command),
                changed = self.wanted.changed() => {
                    // No source is left: the agent is about to stop.
                    if changed.is_err() {
                        stop.cancelled().await;
                        break;
                    }
                }
                Ok(()) = self.node.changed() => {}
            }
        }
        self.stop_workers.cancel();
        while self.workers.join_next().await.is_some() {}
    }

    /// Compares what is wanted with what has a task.
    fn look(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        let mut resized = Vec::new();
        for (uid, entry) in &self.entries {
            let pod = wanted.pods.get(uid);
            if let Some(pod) = pod
                && entry.is_admitted
                && entry.wanted.borrow().is_to_be_resized(pod)
            {
                resized.push((uid.clone(), Arc::clone(pod)));
                continue;
            }
            entry.wanted.send_if_modified(|told| match pod {
                Some(pod) if !told.is_known || !Arc::ptr_eq(pod, &told.wish) => {
                    told.take(Arc::clone(pod));
                    true
                }
                None if wanted.synced && !told.is_gone => {
                    told.is_gone = true;
                    true
                }
                Some(_) | None => false,
            });
        }
        for (uid, pod) in resized {
            self.resize(&uid, &pod);
        }
        if wanted.synced {
            self.forget_damaged(&wanted);
        }
        self.gone.retain(|uid| wanted.pods.contains_key(uid));
        let is_new = |uid: &PodUid| !self.entries.contains_key(uid) && !self.gone.contains(uid);
        let mut new: Vec<(&PodUid, &Arc<Pod>)> =
            wanted.pods.iter().filter(|(uid, _)| is_new(uid)).collect();
        // Kubelet's order after a restart; the uid makes it the same each time.
        new.sort_by_key(|(uid, pod)| (pod.metadata.creation_timestamp.clone(), *uid));
        for (uid, pod) in new {
            let key = key_of(pod);
            // Its name is not free yet.
            if self.entries.values().any(|entry| entry.key == key) {
                continue;
            }
            if let Some((start, is_admitted)) = self.start_of(uid, pod) {
                let wanted = Wanted {
                    pod: Arc::clone(pod),
                    wish: Arc::clone(pod),
                    pending: None,
                    is_known: true,
                    is_gone: false,
                    stop: None,
                };
                self.begin(uid.clone(), wanted, start, is_admitted);
            }
        }
    }

    /// Damaged checkpoints whose pods the source does not have are of no use.
    fn forget_damaged(&mut self, wanted: &WantedPods) {
        let gone: Vec<PodUid> =
            self.damaged.iter().filter(|uid| !wanted.pods.contains_key(*uid)).cloned().collect();
        for uid in gone {
            self.damaged.remove(&uid);
            if let Err(error) = self.context.directories.remove(&uid) {
                tracing::error!(%uid, error = %Chain(&error), "cannot remove a damaged checkpoint");
            }
        }
    }

    /// What a new pod begins with, and whether it takes room. None: it has to
    /// wait until the node is known.
    fn start_of(&mut self, uid: &PodUid, pod: &Arc<Pod>) -> Option<(Start, bool)> {
        // One that is run again anyway loses nothing but the count of its restarts.
        if !restarts::may_end_for_good(pod) {
            self.damaged.remove(uid);
        }
        if self.damaged.contains(uid) {
            let failure = PodFailure {
                reason: "CheckpointLost".to_owned(),
                message: "the node's record of this pod is damaged, so that it is not known \
                          whether the pod has run"
                    .to_owned(),
            };
            return Some((Start::Broken(nobody(), failure), false));
        }
        let phase = pod.status.as_ref().and_then(|status| Phase::parse(status.phase.as_deref()?));
        if phase.is_some_and(Phase::is_terminal) {
            return Some((Start::Ended(nobody()), false));
        }
        if pod.metadata.deletion_timestamp.is_some() {
            // It will not run, so that it needs no room.
            return Some((Start::Fresh(nobody()), false));
        }
        let node = self.node.borrow_and_update().clone()?;
        match self.admit(pod, &node) {
            Ok(user) => {
                if users::asks_for_root(pod) {
                    let message = words::no_root(user.user.uid);
                    let events = &self.context.outside.events;
                    events.record(About::Pod(pod), EventType::Warning, words::NO_ROOT, message);
                }
                Some((Start::Fresh(user), true))
            }
            Err(rejection) => {
                let message = rejection.message.clone();
                tracing::info!(pod = %key_of(pod), reason = rejection.reason, message, "refused");
                let events = &self.context.outside.events;
                events.record(About::Pod(pod), EventType::Warning, &rejection.reason, message);
                Some((Start::Refused(nobody(), rejection.into_failure()), false))
            }
        }
    }

    /// Gives a pod the resources that its source wants for it, if there is room;
    /// until then it keeps those that it has, and this is asked again whenever
    /// anything changes.
    fn resize(&mut self, uid: &PodUid, pod: &Arc<Pod>) {
        let node = self.node.borrow_and_update().clone();
        let verdict = node.map(|node| {
            let others = self.others(Some(uid));
            room_for_resize(pod, &facts(&node), others.iter().map(|pod| &**pod))
        });
        let Some(entry) = self.entries.get(uid) else { return };
        entry.wanted.send_if_modified(|told| {
            let pending = match verdict {
                Some(Ok(())) => {
                    told.take(Arc::clone(pod));
                    return true;
                }
                Some(Err(pending)) => Some(pending),
                // What the node has is not known yet.
                None => told.pending.clone(),
            };
            let is_news =
                !told.is_known || told.pending != pending || !Arc::ptr_eq(pod, &told.wish);
            if is_news {
                told.hold(Arc::clone(pod), pending);
            }
            is_news
        });
    }

    /// The pods that take room, without the one that asks.
    fn others(&self, but: Option<&PodUid>) -> Vec<Arc<Pod>> {
        self.entries
            .iter()
            .filter(|(uid, entry)| {
                let view = self.context.views.by_uid(uid);
                but != Some(*uid) && entry.is_admitted && view.is_none_or(|view| !view.is_over)
            })
            .map(|(_, entry)| Arc::clone(&entry.wanted.borrow().pod))
            .collect()
    }

    fn admit(&mut self, pod: &Pod, node: &Node) -> Result<Allotted, Rejection> {
        let others = self.others(None);
        admit(pod, &facts(node), others.iter().map(|pod| &**pod))?;
        let unsupported = |message| Rejection { reason: UNSUPPORTED.to_owned(), message };
        let domain = self.context.config.domain(pod).map_err(unsupported)?;
        self.allot(domain, pod).map_err(|error| unsupported(error.to_string()))
    }

    fn allot(&mut self, domain: Domain, pod: &Pod) -> Result<Allotted, UserError> {
        let asked = users::asked(pod)?;
        if self.context.config.is_privileged {
            return self.users.allot(domain, &asked);
        }
        if asked.own_users {
            return Err(UserError::Unprivileged { field: "hostUsers" });
        }
        // Without privilege there is but one user to run as: the agent's own.
        let VolumeOwner { uid, gid } = VolumeOwner::current();
        let user = PodUser { uid, gid, groups: Vec::new() };
        Ok(Allotted { domain, from_range: false, user, volume_group: gid })
    }

    fn begin(&mut self, uid: PodUid, wanted: Wanted, start: Start, is_admitted: bool) {
        let key = key_of(&wanted.pod);
        let user = start.user().clone();
        let (wanted, told) = watch::channel(wanted);
        self.spawn(uid.clone(), told, start);
        let entry = Entry { key, wanted, is_admitted, user, is_broken: false };
        self.entries.insert(uid, entry);
    }

    fn spawn(&mut self, uid: PodUid, told: watch::Receiver<Wanted>, start: Start) {
        let context = Arc::clone(&self.context);
        let stop = self.stop_workers.clone();
        let of = uid.clone();
        let handle = self
            .workers
            .spawn(async move { Worker::new(context, of, told, start).run(stop).await });
        self.uids.insert(handle.id(), uid);
    }

    fn take_end(&mut self, ended: Result<(Id, End), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(uid) = self.uids.remove(&id) else { return };
        match ended {
            Ok((_, End::Gone(user))) => {
                self.users.release(&user);
                // Done with its sandbox, unless its task died in between.
                self.context.outside.network.release(&uid);
                self.damaged.remove(&uid);
                self.entries.remove(&uid);
                self.context.views.remove(&uid);
                self.gone.insert(uid);
            }
            Ok((_, End::Stopped)) => {}
            Err(error) => self.take_panic(&uid, &error),
        }
    }

    /// A defect that one pod met is that pod's failure: it is stopped and
    /// reported, once.
    fn take_panic(&mut self, uid: &PodUid, error: &JoinError) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        tracing::error!(pod = %entry.key, %error, "the task of a pod died");
        if std::mem::replace(&mut entry.is_broken, true) {
            return;
        }
        let failure = PodFailure {
            reason: "AgentError".to_owned(),
            message: format!("the node agent met a defect while it ran this pod: {error}"),
        };
        let (told, user) = (entry.wanted.subscribe(), entry.user.clone());
        self.spawn(uid.clone(), told, Start::Broken(user, failure));
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Stop { uid, grace } => {
                let Some(entry) = self.entries.get(&uid) else { return };
                entry.wanted.send_modify(|told| {
                    let own = told
                        .pod
                        .spec
                        .as_ref()
                        .and_then(|spec| spec.termination_grace_period_seconds);
                    let asked = grace.unwrap_or_else(|| Grace::from_seconds(own.unwrap_or(30)));
                    told.stop = Some(told.stop.map_or(asked, |old| old.min(asked)));
                });
            }
        }
    }
}

/// Kubelet's reason for what a node does not offer.
const UNSUPPORTED: &str = "PodFeatureUnsupported";

/// The user of pods that run nothing. Source: `overflowuid` of Linux.
fn nobody() -> Allotted {
    const NOBODY: u32 = 65534;
    Allotted {
        domain: Domain::Pod,
        from_range: false,
        user: PodUser { uid: NOBODY, gid: NOBODY, groups: Vec::new() },
        volume_group: NOBODY,
    }
}

/// What admission must know of a node.
fn facts(node: &Node) -> NodeFacts {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    NodeFacts {
        name: node.metadata.name.clone().unwrap_or_default(),
        os: labels.get("kubernetes.io/os").cloned().unwrap_or_default(),
        labels,
        taints: node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default(),
        allocatable: node
            .status
            .as_ref()
            .and_then(|status| status.allocatable.clone())
            .unwrap_or_default(),
    }
}
