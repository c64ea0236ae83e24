//! Owns every sandbox and does what is asked of them.
//!
//! Keeps the [`table`](crate::table) of who is in which; whatever waits for a
//! process or a disk runs beside this task and reports its outcome.

use std::{fs::File, sync::Arc, time::Duration};

use krustlet_model::{Chain, PodUid};
use krustlet_protocol::Failure;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Adopted, OpenError, PodEvents, PodSandbox, RuntimeError,
    adopt::{Adoption, adopt_all, kill_unknown},
    handle::{Command, Reply},
    sandbox::{Common, Reading, Sandbox},
    stats::ask_all,
    table::{Held, Joiner, Key, Process, Slot, Table, Who},
    watch::watch,
    work::blocking,
    zygote::{Health, Keeper, Nursery, Reaped, Zygote, Zygotes},
};

/// Time for what is under way to be finished when the agent stops. What is not
/// is found again by the next agent.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Ends that a zygote may report before it waits: all sandboxes of a full node
/// ending at once (kubelet's default `maxPods` is 110).
const REAPED: usize = 128;

/// Does what [`Runtime`](crate::Runtime) asks. Runs until stopped; the zygote
/// and the sandboxes outlive it.
#[derive(Debug)]
pub struct RuntimeTask {
    common: Common,
    requests: mpsc::Receiver<Command>,
    reaped: mpsc::Receiver<Reaped>,
    keepers: Vec<Keeper>,
    zygotes: Zygotes,
    health: Health,
    /// Cancelled when no zygote is wanted any more.
    retired: CancellationToken,
    readings: Vec<(Key, Arc<Sandbox>, Reading)>,
    table: Table,
    /// What is under way; finished before the task ends.
    work: JoinSet<Outcome>,
    /// Execs, which may last for ever, and connections being made; broken off when
    /// the task ends.
    execs: JoinSet<()>,
    /// One for each living sandbox; gives its domain and id.
    watches: JoinSet<(Key, String)>,
    stop: CancellationToken,
    /// Keeps other agents away.
    _lock: File,
}

/// What came of work.
#[derive(Debug)]
enum Outcome {
    /// Whoever asked has been told.
    Told,
    Started {
        key: Key,
        started: Result<(Arc<Sandbox>, Reading), RuntimeError>,
    },
    Joined {
        sandbox: Arc<Sandbox>,
        pod: PodUid,
        reply: Reply<PodEvents>,
        joined: Result<PodEvents, RuntimeError>,
    },
    Left {
        sandbox: Arc<Sandbox>,
        pod: PodUid,
        left: Result<(), RuntimeError>,
    },
    /// `pod` is the last one, unless it never joined.
    Ended {
        key: Key,
        sandbox: Arc<Sandbox>,
        pod: Option<PodUid>,
        ended: Result<(), RuntimeError>,
    },
}

impl RuntimeTask {
    /// Finds or starts a zygote and adopts what is there. The nurseries are
    /// those of the node's namespace and, if there is one, of the pods'.
    pub(crate) async fn open(
        common: Common,
        (node, pods): (Nursery, Option<Nursery>),
        requests: mpsc::Receiver<Command>,
        lock: File,
    ) -> Result<(Self, Vec<Adopted>), OpenError> {
        let mut of_node = node.adopt().await;
        let mut of_pods = None;
        if let Some(pods) = &pods {
            of_pods = Some(match pods.adopt().await {
                Some(zygote) => zygote,
                None => pods.start().await.map_err(OpenError::Zygote)?,
            });
        } else if of_node.is_none() {
            of_node = Some(node.start().await.map_err(OpenError::Zygote)?);
        }
        let ours: Vec<_> = std::iter::once(&node).chain(&pods).map(Nursery::socket).collect();
        Nursery::retire_others(common.state.clone(), &ours).await;
        let failed = |source| OpenError::State { path: common.state.root().to_owned(), source };
        let namespace = pods.as_ref().and_then(Nursery::namespace);
        let adoptions = adopt_all(&common, namespace).await.map_err(failed)?;
        let living = of_node.iter_mut().chain(&mut of_pods).collect();
        tidy(&common, living, &adoptions).await;

        let health = Health::new();
        let (reaped_by, reaped) = mpsc::channel(REAPED);
        let retired = CancellationToken::new();
        let keeper = |nursery, zygote| {
            Keeper::new(nursery, zygote, health.clone(), reaped_by.clone(), retired.clone())
        };
        let (node_keeper, node) = keeper(node, of_node);
        let (pods_keeper, pods) = pods.map(|nursery| keeper(nursery, of_pods)).unzip();
        let keepers = std::iter::once(node_keeper).chain(pods_keeper).collect();
        let zygotes = Zygotes { node, pods };
        let mut task = Self {
            common,
            requests,
            reaped,
            keepers,
            zygotes,
            health,
            retired,
            readings: Vec::new(),
            table: Table::default(),
            work: JoinSet::new(),
            execs: JoinSet::new(),
            watches: JoinSet::new(),
            stop: CancellationToken::new(),
            _lock: lock,
        };
        let adopted = adoptions.into_iter().flat_map(|one| task.take_over(one)).collect();
        Ok((task, adopted))
    }

    pub(crate) fn healthy(&self) -> watch::Receiver<bool> {
        self.health.shown()
    }

    fn take_over(&mut self, adoption: Adoption) -> Vec<Adopted> {
        let Adoption { sandbox, reading, pods } = adoption;
        for pod in &pods {
            let slot = Slot::In(Arc::clone(&sandbox));
            self.table.pods.insert(pod.pod.clone(), slot);
        }
        let held = Held { sandbox: Arc::clone(&sandbox), members: pods.len() };
        self.table.sandboxes.insert(sandbox.id.clone(), held);
        // There is a pod in each, or it had been ended.
        if let (Some(reading), Some(pod)) = (reading, pods.first()) {
            let key = Key::of(&sandbox.who, &pod.pod);
            let live = Process::Live(Arc::clone(&sandbox));
            self.table.domains.insert(key.clone(), live);
            self.readings.push((key, sandbox, reading));
        }
        pods
    }

    /// Serves until stopped, or until every handle is gone.
    pub async fn run(mut self, stop: CancellationToken) {
        // Ends the watches and the keeper however this function is left.
        let _ended = self.stop.clone().drop_guard();
        let mut keepers = JoinSet::new();
        for keeper in std::mem::take(&mut self.keepers) {
            keepers.spawn(keeper.run(self.stop.child_token()));
        }
        for (key, sandbox, reading) in std::mem::take(&mut self.readings) {
            self.watch(key, sandbox, reading);
        }
        loop {
            tokio::select! {
                biased;
                // All are cancel-safe, and no arm awaits in its body.
                () = stop.cancelled() => break,
                Some(done) = self.work.join_next() => self.finish(done),
                Some(watched) = self.watches.join_next() => self.unwatch(watched),
                Some(_) = self.execs.join_next() => {}
                Some((id, wait_status)) = self.reaped.recv() => {
                    if let Some(held) = self.table.sandboxes.get(&id) {
                        held.sandbox.wait_status.send_replace(Some(wait_status));
                    }
                }
                command = self.requests.recv() => match command {
                    Some(command) => self.carry_out(command),
                    None => break,
                },
            }
        }
        self.requests.close();
        let rest = async {
            while let Some(done) = self.work.join_next().await {
                self.finish(done);
            }
        };
        if timeout(STOP_LIMIT, rest).await.is_err() {
            tracing::warn!("stopped in the middle of work; the next agent finds it");
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Run { sandbox, reply } => self.run_pod(*sandbox, reply),
            Command::StopPod { pod, reply } => self.stop_pod(pod, reply),
            Command::Create { launch, reply } => {
                let pod = launch.spec.pod.clone();
                self.beside(&pod, reply, async move |sandbox| sandbox.create(*launch).await);
            }
            Command::Start { pod, id, reply } => {
                self.beside(&pod, reply, async move |sandbox| sandbox.start_container(id).await);
            }
            Command::Update { pod, id, limits, reply } => {
                self.beside(&pod, reply, async move |sandbox| {
                    sandbox.update_container(id, limits).await
                });
            }
            Command::Stop { pod, id, grace, reply } => {
                self.beside(&pod, reply, async move |sandbox| {
                    sandbox.stop_container(id, grace).await
                });
            }
            Command::Remove { pod, id, reply } => match self.table.sandbox_of(&pod) {
                Err(_) => answer(reply, Ok(())),
                Ok(_) => self
                    .beside(&pod, reply, async move |sandbox| sandbox.remove_container(id).await),
            },
            Command::Stats { reply } => {
                let asked = ask_all(self.table.members());
                self.work.spawn(async move {
                    answer(reply, Ok(asked.await));
                    Outcome::Told
                });
            }
            Command::SetNetwork { pod, network, reply } => {
                let of = pod.clone();
                self.beside(&pod, reply, async move |sandbox| {
                    sandbox.set_network(&of, *network).await
                });
            }
            Command::Exec { pod, id, args, streams, reply } => match self.table.sandbox_of(&pod) {
                Err(error) => answer(reply, Err(error)),
                Ok(sandbox) => {
                    self.execs.spawn(async move {
                        answer(reply, sandbox.exec(id, args, streams).await);
                    });
                }
            },
            Command::Connect { pod, port, streams, reply } => match self.table.sandbox_of(&pod) {
                Err(error) => answer(reply, Err(error)),
                Ok(sandbox) => {
                    self.execs.spawn(async move {
                        answer(reply, sandbox.connect(pod, port, streams).await);
                    });
                }
            },
            Command::Retire { reply } => {
                self.retired.cancel();
                let zygotes = self.zygotes.clone();
                self.work.spawn(async move {
                    answer(reply, zygotes.retire().await);
                    Outcome::Told
                });
            }
        }
    }

    /// Has something done to the pod's sandbox and its asker told.
    fn beside<T, F>(&mut self, pod: &PodUid, reply: Reply<T>, verb: impl FnOnce(Arc<Sandbox>) -> F)
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RuntimeError>> + Send + 'static,
    {
        match self.table.sandbox_of(pod) {
            Err(error) => answer(reply, Err(error)),
            Ok(sandbox) => {
                let doing = verb(sandbox);
                self.work.spawn(async move {
                    answer(reply, doing.await);
                    Outcome::Told
                });
            }
        }
    }

    fn run_pod(&mut self, wanted: PodSandbox, reply: Reply<PodEvents>) {
        let pod = wanted.pod.clone();
        match self.table.pods.get(&pod) {
            None => {}
            Some(Slot::In(dead)) if dead.is_dead() => {
                let dead = Arc::clone(dead);
                self.leave_dead(dead, pod.clone());
            }
            Some(Slot::Joining { .. } | Slot::In(_) | Slot::Leaving { .. }) => {
                return answer(reply, Err(RuntimeError::HasSandbox { pod }));
            }
        }
        self.table.pods.insert(pod, Slot::Joining { stops: Vec::new() });
        self.join(Joiner { wanted, reply });
    }

    /// What is left of a dead sandbox goes while the next one comes.
    fn leave_dead(&mut self, dead: Arc<Sandbox>, pod: PodUid) {
        let last = self.table.member_leaves(&dead);
        if last {
            self.table.sandboxes.remove(&dead.id);
        }
        self.work.spawn(async move {
            let gone = if last { dead.end().await } else { dead.let_go(&pod).await };
            if let Err(error) = gone {
                tracing::warn!(sandbox = dead.id, error = %Chain(&error), "cannot forget it");
            }
            Outcome::Told
        });
    }

    fn join(&mut self, joiner: Joiner) {
        let who = Who::from(&joiner.wanted);
        let key = Key::of(&who, &joiner.wanted.pod);
        match self.table.domains.get_mut(&key) {
            Some(Process::Starting { joiners } | Process::Ending { joiners, .. }) => {
                joiners.push(joiner);
            }
            Some(Process::Live(sandbox)) if !sandbox.is_over() => {
                let sandbox = Arc::clone(sandbox);
                self.join_live(sandbox, joiner);
            }
            // One that has just died makes way.
            Some(Process::Live(_)) | None => {
                let (common, zygotes) = (self.common.clone(), self.zygotes.clone());
                let starting = Process::Starting { joiners: vec![joiner] };
                self.table.domains.insert(key.clone(), starting);
                self.work.spawn(async move {
                    let started = Sandbox::start(common, &zygotes, who).await;
                    Outcome::Started { key, started }
                });
            }
        }
    }

    fn join_live(&mut self, sandbox: Arc<Sandbox>, joiner: Joiner) {
        if let Some(held) = self.table.sandboxes.get_mut(&sandbox.id) {
            held.members += 1;
        }
        let Joiner { wanted: PodSandbox { pod, network, .. }, reply } = joiner;
        self.work.spawn(async move {
            let result = sandbox.take_in(pod.clone(), network).await;
            Outcome::Joined { sandbox, pod, reply, joined: result }
        });
    }

    fn stop_pod(&mut self, pod: PodUid, reply: Reply<()>) {
        match self.table.pods.get_mut(&pod) {
            None => answer(reply, Ok(())),
            Some(Slot::Joining { stops: waiting } | Slot::Leaving { replies: waiting }) => {
                waiting.push(reply);
            }
            Some(Slot::In(sandbox)) => {
                let sandbox = Arc::clone(sandbox);
                self.leave(sandbox, pod, vec![reply]);
            }
        }
    }

    fn leave(&mut self, sandbox: Arc<Sandbox>, pod: PodUid, replies: Vec<Reply<()>>) {
        self.table.pods.insert(pod.clone(), Slot::Leaving { replies });
        if self.table.member_leaves(&sandbox) {
            let key = Key::of(&sandbox.who, &pod);
            self.end(key, sandbox, Some(pod));
        } else {
            self.work.spawn(async move {
                let left = sandbox.let_go(&pod).await;
                Outcome::Left { sandbox, pod, left }
            });
        }
    }

    fn end(&mut self, key: Key, sandbox: Arc<Sandbox>, pod: Option<PodUid>) {
        if self.table.is_live(&key, &sandbox) {
            self.table.domains.insert(
                key.clone(),
                Process::Ending { id: sandbox.id.clone(), joiners: Vec::new() },
            );
        }
        self.work.spawn(async move {
            let ended = sandbox.end().await;
            Outcome::Ended { key, sandbox, pod, ended }
        });
    }

    fn finish(&mut self, done: Result<Outcome, JoinError>) {
        match done {
            Ok(Outcome::Told) => {}
            Ok(Outcome::Started { key, started }) => self.started(key, started),
            Ok(Outcome::Joined { sandbox, pod, reply, joined }) => {
                self.joined(sandbox, pod, reply, joined);
            }
            Ok(Outcome::Left { sandbox, pod, left }) => self.left(&sandbox, pod, left),
            Ok(Outcome::Ended { key, sandbox, pod, ended }) => {
                self.ended(key, sandbox, pod, ended);
            }
            Err(error) => tracing::error!(%error, "a verb failed"),
        }
    }

    fn started(&mut self, key: Key, started: Result<(Arc<Sandbox>, Reading), RuntimeError>) {
        let Some(Process::Starting { joiners }) = self.table.domains.remove(&key) else {
            unreachable!("only this removes a process that starts");
        };
        match started {
            Ok((sandbox, reading)) => {
                let held = Held { sandbox: Arc::clone(&sandbox), members: 0 };
                self.table.sandboxes.insert(sandbox.id.clone(), held);
                let live = Process::Live(Arc::clone(&sandbox));
                self.table.domains.insert(key.clone(), live);
                self.watch(key, Arc::clone(&sandbox), reading);
                self.trim_journal();
                for joiner in joiners {
                    self.join_live(Arc::clone(&sandbox), joiner);
                }
            }
            Err(error) => {
                let mut error = Some(error);
                for Joiner { wanted, reply } in joiners {
                    answer(reply, Err(again(&mut error)));
                    self.forget_joining(&wanted.pod);
                }
            }
        }
    }

    /// Empties a journal that has grown long, unless a sandbox has ended whose
    /// pods have not left it. Done at each start, of which each is a line in
    /// the end. One that ends just now is told of by its zygote too.
    fn trim_journal(&mut self) {
        let held = self.table.sandboxes.values();
        let held: Vec<_> = held.map(|held| Arc::clone(&held.sandbox)).collect();
        let state = self.common.state.clone();
        self.work.spawn(async move {
            let lives = |sandbox: &Arc<Sandbox>| {
                let process = sandbox.process();
                !sandbox.is_over()
                    && process.is_some_and(|process| matches!(process.has_ended(), Ok(false)))
            };
            let trimmed =
                blocking(
                    move || {
                        if held.iter().all(lives) { state.trim_journal() } else { Ok(()) }
                    },
                );
            if let Err(error) = trimmed.await {
                tracing::warn!(%error, "cannot empty the journal");
            }
            Outcome::Told
        });
    }

    /// A pod that did not get in is not there, which is what its stops want.
    fn forget_joining(&mut self, pod: &PodUid) {
        if let Some(Slot::Joining { stops }) = self.table.pods.remove(pod) {
            for stop in stops {
                answer(stop, Ok(()));
            }
        }
    }

    fn joined(
        &mut self,
        sandbox: Arc<Sandbox>,
        pod: PodUid,
        reply: Reply<PodEvents>,
        joined: Result<PodEvents, RuntimeError>,
    ) {
        match joined {
            Ok(events) => {
                let slot = Slot::In(Arc::clone(&sandbox));
                match self.table.pods.insert(pod.clone(), slot) {
                    Some(Slot::Joining { stops }) if !stops.is_empty() => {
                        let meanwhile = RuntimeError::StoppedMeanwhile { pod: pod.clone() };
                        answer(reply, Err(meanwhile));
                        self.leave(sandbox, pod, stops);
                    }
                    _ => answer(reply, Ok(events)),
                }
            }
            Err(error) => {
                answer(reply, Err(error));
                self.forget_joining(&pod);
                if self.table.member_leaves(&sandbox) {
                    let key = Key::of(&sandbox.who, &pod);
                    self.end(key, sandbox, None);
                }
            }
        }
    }

    fn left(&mut self, sandbox: &Arc<Sandbox>, pod: PodUid, left: Result<(), RuntimeError>) {
        let Some(Slot::Leaving { replies }) = self.table.pods.remove(&pod) else {
            unreachable!("only this removes a pod that leaves");
        };
        match left {
            Ok(()) => replies.into_iter().for_each(|reply| answer(reply, Ok(()))),
            Err(error) => {
                // It is still there, and whoever asked may ask again.
                if let Some(held) = self.table.sandboxes.get_mut(&sandbox.id) {
                    held.members += 1;
                }
                self.table.pods.insert(pod, Slot::In(Arc::clone(sandbox)));
                let mut error = Some(error);
                for reply in replies {
                    answer(reply, Err(again(&mut error)));
                }
            }
        }
    }

    fn ended(
        &mut self,
        key: Key,
        sandbox: Arc<Sandbox>,
        pod: Option<PodUid>,
        ended: Result<(), RuntimeError>,
    ) {
        if ended.is_ok() {
            self.table.sandboxes.remove(&sandbox.id);
        }
        match pod {
            // Who waited for a stop is told as one who leaves is.
            Some(pod) => self.left(&sandbox, pod, ended),
            None => {
                if let Err(error) = ended {
                    tracing::error!(sandbox = sandbox.id, error = %Chain(&error), "cannot be ended");
                }
            }
        }
        if matches!(self.table.domains.get(&key), Some(Process::Ending { id, .. }) if *id == sandbox.id)
            && let Some(Process::Ending { joiners, .. }) = self.table.domains.remove(&key)
        {
            for joiner in joiners {
                self.join(joiner);
            }
        }
    }

    fn watch(&mut self, key: Key, sandbox: Arc<Sandbox>, reading: Reading) {
        let stop = self.stop.child_token();
        self.watches.spawn(async move {
            let id = sandbox.id.clone();
            watch(sandbox, reading, stop).await;
            (key, id)
        });
    }

    fn unwatch(&mut self, watched: Result<(Key, String), JoinError>) {
        match watched {
            // A dead one makes way for the next of its domain.
            Ok((key, id)) => {
                let live = self.table.domains.get(&key);
                if matches!(live, Some(Process::Live(sandbox)) if sandbox.id == id) {
                    self.table.domains.remove(&key);
                }
            }
            Err(error) => tracing::error!(%error, "a sandbox's watch failed"),
        }
    }
}

/// Kills what nobody knows, and empties the journal if nobody needs it.
async fn tidy(common: &Common, zygotes: Vec<&mut Zygote>, adoptions: &[Adoption]) {
    for zygote in zygotes {
        match zygote.list().await {
            Ok(listed) => kill_unknown(&listed, adoptions),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the zygote does not list its sandboxes");
            }
        }
    }
    if adoptions.iter().all(|one| one.reading.is_some()) {
        let state = common.state.clone();
        if let Err(error) = blocking(move || state.trim_journal()).await {
            tracing::warn!(%error, "cannot empty the journal");
        }
    }
}

/// Tells who asked, unless they have gone away.
fn answer<T>(reply: Reply<T>, result: Result<T, RuntimeError>) {
    // A caller that dropped its future wants no answer.
    let _ = reply.send(result);
}

/// The error for the first of several who wait, and its words for the others.
fn again(error: &mut Option<RuntimeError>) -> RuntimeError {
    match error.take() {
        Some(first) => {
            let message = Chain(&first).to_string();
            *error = Some(RuntimeError::Refused(Failure::Failed { message }));
            first
        }
        None => RuntimeError::Stopping,
    }
}
