//! What a new agent makes of the sandboxes it finds.
//!
//! | its record | its socket | it is |
//! |---|---|---|
//! | sound | accepts; same process; answers | alive: adopted (by its files, if its list is too long for a message) |
//! | sound | refuses, or it is of another boot | dead: its exits are gathered |
//! | sound | another process, or no answer | killed, then as dead |
//! | sound | accepts; not in the pods' namespace, though it should be | killed, then as dead: nothing leads to it |
//! | none or broken | any | killed and forgotten: nobody was told of it |
//!
//! The exits of a dead one come from its status file; for containers that are
//! not in it, from the journal; else they count as 137.

use std::{
    collections::HashMap,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use krustlet_model::{Chain, PodUid};
use krustlet_protocol::{
    Caller, ContainerReport, PidFd, RunState, SandboxEvent, SandboxReply, SandboxRequest,
    WithSandbox,
    connection::{self, CallError},
    process::start_time,
    socket,
};
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use crate::{
    NetworkKind, PodEvents, RuntimeError,
    events::Feed,
    logs::LogFile,
    namespace::is_elsewhere,
    record::{self, ContainerRecord, Found, PodRecord, SandboxRecord},
    sandbox::{Common, Container, Reached, Reading, Sandbox, ask_early, hello},
    watch::lost,
    words,
    work::blocking,
};

/// Sandboxes that are asked at once: enough that a few which hang do not hold
/// up the others, few enough for the descriptors they need.
const AT_ONCE: usize = 64;

/// The pauses after each try to reach a process that closes its connections.
const RECONNECTS: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(100), Duration::from_millis(500)];

/// A pod that an earlier agent left.
#[derive(Debug)]
pub struct Adopted {
    /// Whose.
    pub pod: PodUid,
    /// All its containers: by the sandbox's word if it lives, else all ended.
    pub containers: Vec<ContainerReport>,
    /// Whether its sandbox lives.
    pub alive: bool,
    /// The namespace that its sandbox was born in.
    pub network: NetworkKind,
    /// The addresses that it was given there; none if that is not known.
    pub addresses: Vec<IpAddr>,
    /// Its news from now on; ended at once if the sandbox is dead.
    pub events: PodEvents,
}

/// A sandbox that was found.
#[derive(Debug)]
pub(crate) struct Adoption {
    pub(crate) sandbox: Arc<Sandbox>,
    /// None for a dead one.
    pub(crate) reading: Option<Reading>,
    pub(crate) pods: Vec<Adopted>,
}

/// Looks at every sandbox in the state directory.
///
/// `namespace` is that of the pods, if this agent has one.
pub(crate) async fn adopt_all(
    common: &Common,
    namespace: Option<&Path>,
) -> std::io::Result<Vec<Adoption>> {
    let state = common.state.clone();
    let found = blocking(move || state.found()).await?;
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut looks = JoinSet::new();
    for one in found {
        let (common, permits) = (common.clone(), Arc::clone(&permits));
        let namespace = namespace.map(Path::to_owned);
        looks.spawn(async move {
            // Never closed, so that there is always one in the end.
            let _permit = permits.acquire_owned().await.ok();
            adopt(common, one, namespace.as_deref()).await
        });
    }
    let mut adoptions = Vec::new();
    while let Some(adopted) = looks.join_next().await {
        match adopted {
            Ok(adopted) => adoptions.extend(adopted),
            Err(error) => tracing::error!(%error, "an adoption failed"),
        }
    }
    Ok(one_for_each_pod(adoptions).await)
}

/// A pod may be found in two sandboxes, if the agent died while it replaced a
/// dead one: the living one has it, else the newer.
async fn one_for_each_pod(mut adoptions: Vec<Adoption>) -> Vec<Adoption> {
    adoptions
        .sort_by_key(|one| (one.reading.is_some(), one.sandbox.id.len(), one.sandbox.id.clone()));
    let mut owners = HashMap::new();
    for adoption in &adoptions {
        for pod in &adoption.pods {
            owners.insert(pod.pod.clone(), adoption.sandbox.id.clone());
        }
    }
    let mut kept = Vec::new();
    for mut adoption in adoptions {
        let id = adoption.sandbox.id.clone();
        adoption.pods.retain(|pod| owners.get(&pod.pod) == Some(&id));
        if adoption.pods.is_empty() {
            tracing::info!(sandbox = id, "left without a pod; it is killed");
            if let Some(process) = adoption.sandbox.process() {
                let _ = process.kill();
            }
            drop(adoption.reading);
            if let Err(error) = adoption.sandbox.end().await {
                tracing::warn!(sandbox = id, error = %Chain(&error), "cannot be ended");
            }
        } else {
            kept.push(adoption);
        }
    }
    kept
}

async fn adopt(common: Common, found: Found, namespace: Option<&Path>) -> Option<Adoption> {
    let Some(record) = found.record.clone() else {
        forget(&common, &found.id).await;
        return None;
    };
    match reach(&common, &found.id, &record, namespace).await {
        Some(living) => Some(living.adopt(common, found, record).await),
        None => Some(dead(common, found, record).await),
    }
}

/// A sandbox that has answered.
struct Living {
    caller: Caller<WithSandbox>,
    version: u32,
    process: PidFd,
    reading: Reading,
    /// None if there are more than it can list in one message.
    reports: Option<Vec<ContainerReport>>,
}

impl Sandbox {
    /// Connects to the process once more and asks what became of its containers;
    /// `None` if it does not answer. It may have let the agent go, which did not
    /// read for too long.
    pub(crate) async fn reach_again(&self) -> Option<(Reading, Vec<ContainerReport>)> {
        let process = self.process()?;
        for pause in RECONNECTS {
            if process.has_ended().unwrap_or(true) {
                return None;
            }
            let path = self.common.state.socket(&self.id);
            // Nobody listens: it is about to be gone.
            let socket = blocking(move || socket::connect(&path)).await.ok()?;
            match self.greet_again(socket).await {
                Ok((caller, reading, reports)) => {
                    self.line_up(caller);
                    return Some((reading, reports));
                }
                Err(error) => {
                    tracing::debug!(sandbox = self.id, error = %Chain(&error), "not reached again");
                    // One that had its time and said nothing will not say more.
                    if matches!(error, RuntimeError::Call(CallError::TimedOut { .. })) {
                        return None;
                    }
                }
            }
            sleep(pause).await;
        }
        None
    }

    async fn greet_again(
        &self,
        socket: OwnedFd,
    ) -> Result<(Caller<WithSandbox>, Reading, Vec<ContainerReport>), RuntimeError> {
        let (caller, mut incoming) =
            connection::connection(socket).map_err(RuntimeError::Process)?;
        let peer = PidFd::of_peer(caller.socket()).map_err(RuntimeError::Process)?;
        // A number that has not ended is nobody else's.
        if peer.pid().map_err(RuntimeError::Process)? != Some(self.pid) {
            return Err(RuntimeError::Died);
        }
        let mut early = Vec::new();
        hello(&caller, &mut incoming, &mut early).await?;
        let list = SandboxRequest::ListContainers;
        match ask_early(&caller, &mut incoming, &mut early, list).await? {
            SandboxReply::Containers { containers } => {
                // The logs themselves tell, as after an adoption.
                early.retain(|news| !matches!(news, SandboxEvent::LogRotated { .. }));
                Ok((caller, Reading { incoming, early }, containers))
            }
            other => Err(RuntimeError::WrongAnswer { answer: words::of(&other) }),
        }
    }
}

async fn reach(
    common: &Common,
    id: &str,
    record: &SandboxRecord,
    namespace: Option<&Path>,
) -> Option<Living> {
    if record.boot != record::boot() {
        return None;
    }
    let path = common.state.socket(id);
    let Ok(socket) = blocking(move || socket::connect(&path)).await else {
        // Alive it may be all the same: forked, but not yet listening when the
        // agent died. Nothing runs in it.
        kill_by_number(record);
        return None;
    };
    let (caller, mut incoming) = connection::connection(socket).ok()?;
    let process = PidFd::of_peer(caller.socket()).ok()?;
    if process.pid().ok().flatten() != Some(record.pid)
        || start_time(record.pid) != record.start_time
    {
        tracing::error!(sandbox = id, "another process is at its socket; it is killed");
        let _ = process.kill();
        return None;
    }
    if record.network == NetworkKind::Pods
        && namespace.is_some_and(|path| is_elsewhere(&process, path))
    {
        tracing::error!(
            sandbox = id,
            "nothing leads to its network namespace any more; it is killed, so that its pods get \
             another"
        );
        let _ = process.kill();
        let _ = tokio::time::timeout(crate::sandbox::ANSWER_LIMIT, process.ended()).await;
        return None;
    }
    let mut early = Vec::new();
    let asked = async {
        let version = hello(&caller, &mut incoming, &mut early).await?;
        let list = SandboxRequest::ListContainers;
        Ok::<_, RuntimeError>((version, ask_early(&caller, &mut incoming, &mut early, list).await?))
    };
    match asked.await {
        Ok((version, SandboxReply::Containers { containers })) => {
            let reading = Reading { incoming, early };
            Some(Living { caller, version, process, reading, reports: Some(containers) })
        }
        Ok((version, SandboxReply::Failed(failure))) => {
            tracing::warn!(sandbox = id, %failure, "does not list its containers; its files do");
            let reading = Reading { incoming, early };
            Some(Living { caller, version, process, reading, reports: None })
        }
        other => {
            let answer = words::of(&other);
            tracing::error!(sandbox = id, answer, "does not answer as it should; it is killed");
            let _ = process.kill();
            let _ = tokio::time::timeout(crate::sandbox::ANSWER_LIMIT, process.ended()).await;
            None
        }
    }
}

impl Living {
    async fn adopt(self, common: Common, found: Found, record: SandboxRecord) -> Adoption {
        let Self { caller, version, process, reading, reports } = self;
        let reports = match reports {
            Some(reports) => reports,
            None => written(&common, &found).await,
        };
        // Those whose creation was not finished are nowhere but on disk.
        let (there, gone): (Vec<_>, Vec<_>) = found
            .containers
            .into_iter()
            .partition(|one| reports.iter().any(|report| report.id == one.id));
        let (state, id) = (common.state.clone(), found.id.clone());
        let removed =
            blocking(move || gone.iter().try_for_each(|one| state.remove_container(&id, &one.id)));
        if let Err(error) = removed.await {
            tracing::warn!(sandbox = found.id, %error, "cannot forget containers");
        }
        let sandbox = Sandbox::adopted((found.id, record), common, (caller, version), process);
        Adoption::new(sandbox, Some(reading), found.pods, there, reports)
    }
}

/// What the files tell of a living sandbox's containers: those that have not
/// ended run since they were made, but for the moment in between.
async fn written(common: &Common, found: &Found) -> Vec<ContainerReport> {
    let (state, id) = (common.state.clone(), found.id.clone());
    let mut exits = blocking(move || state.exits(&id)).await.unwrap_or_else(|error| {
        tracing::warn!(sandbox = found.id, %error, "cannot read its status file");
        HashMap::new()
    });
    let report = |one: &ContainerRecord| ContainerReport {
        id: one.id.clone(),
        pod: one.pod.clone(),
        state: match exits.remove(&one.id) {
            Some(exit) => RunState::Exited(exit),
            None => RunState::Running { started_at: one.created_at },
        },
    };
    found.containers.iter().map(report).collect()
}

async fn dead(common: Common, found: Found, record: SandboxRecord) -> Adoption {
    let (state, id, pid) = (common.state.clone(), found.id.clone(), record.pid);
    let known = blocking(move || Ok((state.exits(&id)?, state.journalled(&id, pid)?))).await;
    let (mut exits, wait_status) = known.unwrap_or_else(|error| {
        tracing::warn!(sandbox = found.id, %error, "cannot read how it ended");
        (HashMap::new(), None)
    });
    let now = Timestamp::now();
    let reports = found
        .containers
        .iter()
        .map(|one| ContainerReport {
            id: one.id.clone(),
            pod: one.pod.clone(),
            state: RunState::Exited(
                exits.remove(&one.id).unwrap_or_else(|| lost(wait_status, now)),
            ),
        })
        .collect();
    let sandbox = Sandbox::found_dead(found.id, record, common);
    Adoption::new(sandbox, None, found.pods, found.containers, reports)
}

impl Adoption {
    fn new(
        sandbox: Sandbox,
        mut reading: Option<Reading>,
        pods: Vec<PodRecord>,
        records: Vec<ContainerRecord>,
        mut reports: Vec<ContainerReport>,
    ) -> Self {
        let mut adopted = Vec::new();
        {
            let mut table = sandbox.table();
            for record in records {
                let told = reports.iter().find(|report| report.id == record.id);
                let reached = match told.map(|report| &report.state) {
                    Some(RunState::Created) => Reached::Created,
                    Some(RunState::Running { .. }) => Reached::Running,
                    Some(RunState::Exited(_)) | None => Reached::Ended,
                };
                let container = Container {
                    pod: record.pod,
                    log: LogFile::new(record.log),
                    reached,
                    caught_up: false,
                };
                table.containers.insert(record.id, container);
            }
            let network = sandbox.who.network;
            for PodRecord { pod, addresses } in pods {
                let (feed, events) = Feed::new();
                // Without a feed the events end, as they do after a death.
                if reading.is_some() {
                    table.pods.insert(pod.clone(), feed);
                }
                let containers = reports.extract_if(.., |report| report.pod == pod).collect();
                let alive = reading.is_some();
                adopted.push(Adopted { pod, containers, alive, network, addresses, events });
            }
        }
        // What the reports say too is passed over by the watcher; rotations
        // are looked for in the files.
        if let Some(reading) = &mut reading {
            reading.early.retain(|news| !matches!(news, SandboxEvent::LogRotated { .. }));
        }
        Self { sandbox: Arc::new(sandbox), reading, pods: adopted }
    }
}

/// Kills and forgets a sandbox of which there is no record.
async fn forget(common: &Common, id: &str) {
    let (state, of) = (common.state.clone(), id.to_owned());
    let forgotten = blocking(move || {
        if let Ok(socket) = socket::connect(&state.socket(&of)) {
            PidFd::of_peer(socket.as_fd())?.kill()?;
        }
        state.remove(&of)
    });
    if let Err(error) = forgotten.await {
        tracing::warn!(sandbox = id, %error, "cannot forget what nobody was told of");
    }
}

fn kill_by_number(record: &SandboxRecord) {
    // Looked at again once open: then the number cannot be another's.
    if let Ok(process) = PidFd::open(record.pid)
        && record.start_time.is_some()
        && start_time(record.pid) == record.start_time
    {
        let _ = process.kill();
    }
}

/// Kills the sandboxes that a zygote has and nobody knows: forked when the
/// agent died, before it had written down their number.
pub(crate) fn kill_unknown(listed: &[(String, i32)], known: &[Adoption]) {
    for (id, pid) in listed {
        if known.iter().any(|adoption| adoption.sandbox.id == *id) {
            continue;
        }
        // The zygote is its parent and reaps it; it has just said that it has
        // not, and a number comes round again only after thousands of others.
        if let Ok(process) = PidFd::open(*pid) {
            tracing::info!(sandbox = id, pid, "forked for an agent that died; it is killed");
            let _ = process.kill();
        }
    }
}
