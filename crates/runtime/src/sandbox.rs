//! One sandbox process: started or adopted, asked, watched, ended.
//!
//! ```text
//! start ──▶ alive ──watch──▶ dead (it ended by itself: every pod in it hears)
//!             └────end─────▶ gone (it was told to)
//! ```
//!
//! It holds one pod or, in a shared domain, many. Verbs are carried out by
//! whoever asks, news by [`watch`](crate::watch); both change the table of pods
//! and containers, which is why that is behind a lock. The lock is never held
//! across an await.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use krustlet_model::{ContainerId, PodUid};
use krustlet_protocol::{
    Caller, Incoming, PidFd, PodNetwork, SandboxEvent, SandboxReply, SandboxRequest, VERSION,
    WithSandbox,
    connection::{self, Answer, CallError},
    process, socket,
};
use tokio::sync::watch;

use crate::{
    PodEvents, RuntimeError,
    events::Feed,
    filter::{Filters, Guard, Looks},
    logs::LogFile,
    mounts::Handover,
    record::{self, PodRecord, SandboxRecord, State},
    table::Who,
    words,
    work::{blocking, on_disk},
    zygote::Zygotes,
};

/// Time for a forked process to listen; it takes half a millisecond.
const UP_LIMIT: Duration = Duration::from_secs(10);

/// Time for a sandbox to answer what needs no work. Its control thread is
/// never held up by a guest.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Time for a lost connection to be noticed and made again, or given up: more
/// than the watch takes for it.
const LINE_LIMIT: Duration = Duration::from_mins(1);

/// How much news is kept while nobody watches, in bytes: what thousands of
/// containers say that start or end at once. More is no sound sandbox's.
const EARLY_BYTES: usize = 16 << 20;

/// Time for a process that was told to end, before it is killed: it has
/// nothing to save.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Time for a killed process to be gone: the kernel takes its memory apart.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// What all sandboxes of an agent have in common.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) state: State,
    pub(crate) handover: Handover,
    /// Log files of a container, the current one included.
    pub(crate) log_files: usize,
    /// The directory of Services, if pods are led to them.
    pub(crate) services: Option<Arc<OwnedFd>>,
    pub(crate) looks: Arc<Looks>,
}

/// A sandbox process, living or dead.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) who: Who,
    pub(crate) common: Common,
    pub(crate) pid: i32,
    /// Of the protocol, as it says itself; 0 of one that was found dead.
    pub(crate) version: u32,
    /// `None` for one that was found dead.
    link: Option<Link>,
    table: Mutex<Table>,
    pub(crate) filters: Filters,
    /// Set before the process is told to end, so that its end is no death.
    ending: AtomicBool,
    dead: AtomicBool,
    /// The zygote's word of how it ended.
    pub(crate) wait_status: watch::Sender<Option<i32>>,
}

#[derive(Debug)]
struct Link {
    process: PidFd,
    line: watch::Sender<Line>,
}

/// Whether a process can be asked. Set by its [`watch`](crate::watch).
#[derive(Debug)]
enum Line {
    Up(Caller<WithSandbox>),
    /// The connection is lost, and another is being made.
    Lost,
    /// The process is gone, or nobody reads its answers any more.
    Down,
}

impl Link {
    fn new(caller: Caller<WithSandbox>, process: PidFd) -> Self {
        Self { process, line: watch::Sender::new(Line::Up(caller)) }
    }
}

/// The pods in a sandbox and their containers.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) pods: HashMap<PodUid, Feed>,
    pub(crate) containers: HashMap<ContainerId, Container>,
}

/// What the agent must know of a container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) pod: PodUid,
    pub(crate) log: LogFile,
    pub(crate) reached: Reached,
    /// Whether a switch of its log was found when the agent came back, so that
    /// the next news of one may be old.
    pub(crate) caught_up: bool,
}

/// How far a container has come, by what its pod was told. Only moves down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reached {
    Created,
    Running,
    Ended,
}

/// The reading end of a sandbox and what was read before anybody watched.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) incoming: Incoming<WithSandbox>,
    pub(crate) early: Vec<SandboxEvent>,
}

impl Sandbox {
    /// Starts a process for a domain.
    pub(crate) async fn start(
        common: Common,
        zygotes: &Zygotes,
        who: Who,
    ) -> Result<(Arc<Self>, Reading), RuntimeError> {
        let state = common.state.clone();
        let (id, control, status) = blocking(move || state.prepare(now_micros()))
            .await
            .map_err(|source| common.state_error(source))?;
        match zygotes.fork(id.clone(), &who, control, status).await {
            Ok(forked) => {
                let process = forked.process;
                let pid = forked.pid;
                match Self::greet(&common, &id, (pid, &process), &who).await {
                    Ok((caller, reading, version)) => {
                        let link = Some(Link::new(caller, process));
                        let sandbox = Self::new(id, who, common, (pid, version), link);
                        Ok((Arc::new(sandbox), reading))
                    }
                    Err(error) => {
                        // Nobody will ever know of it.
                        let _ = process.kill();
                        common.forget(&id).await;
                        Err(error)
                    }
                }
            }
            Err(error) => {
                common.disown(&id).await;
                Err(error)
            }
        }
    }

    async fn greet(
        common: &Common,
        id: &str,
        (pid, process): (i32, &PidFd),
        who: &Who,
    ) -> Result<(Caller<WithSandbox>, Reading, u32), RuntimeError> {
        let record = SandboxRecord {
            pid,
            start_time: process::start_time(pid),
            boot: record::boot(),
            domain: who.domain.clone(),
            user: who.user.clone(),
            network: who.network,
        };
        let (state, of) = (common.state.clone(), id.to_owned());
        let watched = process.try_clone().map_err(RuntimeError::Process)?;
        let common = common.clone();
        let socket = on_disk(move || {
            state.put_record(&of, &record).map_err(|source| common.state_error(source))?;
            connect_when_up(&state, &of, &watched)
        })
        .await?;
        let (caller, mut incoming) =
            connection::connection(socket).map_err(RuntimeError::Process)?;
        let mut early = Vec::new();
        let version = hello(&caller, &mut incoming, &mut early).await?;
        Ok((caller, Reading { incoming, early }, version))
    }

    /// One that an earlier agent left, and that has answered.
    pub(crate) fn adopted(
        found: (String, SandboxRecord),
        common: Common,
        (caller, version): (Caller<WithSandbox>, u32),
        process: PidFd,
    ) -> Self {
        let (id, record) = found;
        let link = Some(Link::new(caller, process));
        let pid = record.pid;
        Self::new(id, record.who(), common, (pid, version), link)
    }

    /// One that an earlier agent left, and that has ended.
    pub(crate) fn found_dead(id: String, record: SandboxRecord, common: Common) -> Self {
        let pid = record.pid;
        let sandbox = Self::new(id, record.who(), common, (pid, 0), None);
        sandbox.dead.store(true, Ordering::Release);
        sandbox
    }

    fn new(
        id: String,
        who: Who,
        common: Common,
        (pid, version): (i32, u32),
        link: Option<Link>,
    ) -> Self {
        Self {
            id,
            who,
            common,
            pid,
            version,
            link,
            table: Mutex::default(),
            filters: Filters::default(),
            ending: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            wait_status: watch::Sender::new(None),
        }
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that is done under the lock can panic half-way.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the process has ended or is about to.
    pub(crate) fn is_over(&self) -> bool {
        self.dead.load(Ordering::Acquire) || self.ending.load(Ordering::Acquire)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    pub(crate) fn mark_dead(&self) {
        self.dead.store(true, Ordering::Release);
    }

    pub(crate) fn process(&self) -> Option<&PidFd> {
        self.link.as_ref().map(|link| &link.process)
    }

    /// Asks the process something. If the connection is lost meanwhile and made
    /// again, what was handed nothing is asked again.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Call`] with [`CallError::Gone`] when the connection was
    /// lost and the process lives: it may have done what it was asked, or not.
    pub(crate) async fn ask(
        &self,
        request: SandboxRequest,
        given: Vec<(krustlet_protocol::DescriptorName, std::os::fd::OwnedFd)>,
        limit: Duration,
    ) -> Result<SandboxReply, RuntimeError> {
        if !given.is_empty() {
            return self.ask_once(request, given, limit).await;
        }
        self.ask_with_files(request, limit).await.map(|answer| answer.reply)
    }

    /// As [`Sandbox::ask`], for a request that is handed nothing and whose answer may
    /// come with open files.
    pub(crate) async fn ask_with_files(
        &self,
        request: SandboxRequest,
        limit: Duration,
    ) -> Result<Answer<SandboxReply>, RuntimeError> {
        match self.call(request.clone(), Vec::new(), limit).await {
            Err(RuntimeError::Call(CallError::Gone)) => self.call(request, Vec::new(), limit).await,
            other => other,
        }
    }

    /// As [`Sandbox::ask`], but never a second time.
    pub(crate) async fn ask_once(
        &self,
        request: SandboxRequest,
        given: Vec<(krustlet_protocol::DescriptorName, std::os::fd::OwnedFd)>,
        limit: Duration,
    ) -> Result<SandboxReply, RuntimeError> {
        self.call(request, given, limit).await.map(|answer| answer.reply)
    }

    async fn call(
        &self,
        request: SandboxRequest,
        given: Vec<(krustlet_protocol::DescriptorName, std::os::fd::OwnedFd)>,
        limit: Duration,
    ) -> Result<Answer<SandboxReply>, RuntimeError> {
        let Some(Link { line, .. }) = &self.link else { return Err(RuntimeError::Died) };
        if self.is_dead() {
            return Err(RuntimeError::Died);
        }
        let mut line = line.subscribe();
        let patience = limit.min(LINE_LIMIT);
        let caller = settled(&mut line, patience).await?;
        // The next change of the line tells of this connection's loss.
        match caller.call(request, given, limit).await {
            Ok(Answer { reply, fds }) => match words::of_reply(reply) {
                SandboxReply::Failed(failure) => Err(RuntimeError::Refused(failure)),
                reply => Ok(Answer { reply, fds }),
            },
            Err(CallError::Gone) => {
                // The watch has not noticed yet, or is at it.
                let noticed = tokio::time::timeout(patience, line.changed()).await;
                if !matches!(noticed, Ok(Ok(()))) {
                    return Err(RuntimeError::Died);
                }
                settled(&mut line, patience).await?;
                Err(RuntimeError::Call(CallError::Gone))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The connection is lost; those who ask wait for what comes of it.
    pub(crate) fn line_lost(&self) {
        self.set_line(Line::Lost);
    }

    /// There is a connection again.
    pub(crate) fn line_up(&self, caller: Caller<WithSandbox>) {
        self.set_line(Line::Up(caller));
    }

    /// Nobody will answer any more.
    pub(crate) fn line_down(&self) {
        self.set_line(Line::Down);
    }

    fn set_line(&self, line: Line) {
        if let Some(link) = &self.link {
            link.line.send_replace(line);
        }
    }

    /// Takes a pod in, says what its sockets may do, and opens its events.
    pub(crate) async fn take_in(
        &self,
        pod: PodUid,
        network: PodNetwork,
    ) -> Result<PodEvents, RuntimeError> {
        let (state, id) = (self.common.state.clone(), self.id.clone());
        let record = PodRecord { pod: pod.clone(), addresses: network.addresses.clone() };
        blocking(move || state.put_pod(&id, &record))
            .await
            .map_err(|source| self.common.state_error(source))?;
        let guard = Guard::of(&network);
        self.tell_network(&pod, network).await?;
        let (feed, events) = Feed::new();
        let mut table = self.table();
        // Checked under the lock: a death announces itself to whom it finds.
        if self.is_dead() {
            return Err(RuntimeError::Died);
        }
        self.filters.enter(&pod, guard);
        table.pods.insert(pod, feed);
        Ok(events)
    }

    /// Ends a pod's share; the process goes on for the others.
    pub(crate) async fn let_go(&self, pod: &PodUid) -> Result<(), RuntimeError> {
        let containers = self.drop_pod(pod);
        if !self.is_dead() {
            let request = SandboxRequest::StopPod { pod: pod.clone() };
            match self.ask(request, Vec::new(), ANSWER_LIMIT).await {
                Ok(_) | Err(RuntimeError::Died) => {}
                Err(error) => return Err(error),
            }
        }
        let (common, id, pod) = (self.common.clone(), self.id.clone(), pod.clone());
        on_disk(move || {
            let state = &common.state;
            let removed = containers.iter().try_for_each(|(container, log)| {
                close_log(log, common.log_files);
                state.remove_container(&id, container)
            });
            removed
                .and_then(|()| state.remove_pod(&id, &pod))
                .map_err(|source| common.state_error(source))
        })
        .await
    }

    /// Takes a pod out of the table, which ends its events.
    fn drop_pod(&self, pod: &PodUid) -> Vec<(ContainerId, LogFile)> {
        let mut table = self.table();
        table.pods.remove(pod);
        self.filters.remove(pod);
        let of_pod = table.containers.extract_if(|_, container| container.pod == *pod);
        of_pod.map(|(id, container)| (id, container.log)).collect()
    }

    /// Ends the process and forgets it. Returns when it is gone.
    pub(crate) async fn end(&self) -> Result<(), RuntimeError> {
        self.ending.store(true, Ordering::Release);
        let pods: Vec<_> = self.table().pods.keys().cloned().collect();
        let mut logs = Vec::new();
        for pod in pods {
            logs.extend(self.drop_pod(&pod));
        }
        // Those of pods that nobody claimed after an adoption.
        logs.extend(self.table().containers.drain().map(|(id, one)| (id, one.log)));
        if let Some(Link { process, .. }) = &self.link {
            if !self.is_dead() {
                // Whatever it answers, its end decides.
                let told = self.ask(SandboxRequest::Shutdown, Vec::new(), END_LIMIT).await;
                tracing::debug!(sandbox = self.id, ?told, "told to end");
            }
            if tokio::time::timeout(END_LIMIT, process.ended()).await.is_err() {
                tracing::warn!(sandbox = self.id, pid = self.pid, "does not end; it is killed");
            }
            // Harmless if it has ended.
            process.kill().map_err(RuntimeError::Process)?;
            tokio::time::timeout(KILL_LIMIT, process.ended())
                .await
                .unwrap_or_else(|elapsed| Err(elapsed.into()))
                .map_err(RuntimeError::Process)?;
        }
        let (common, id) = (self.common.clone(), self.id.clone());
        on_disk(move || {
            for (_, log) in &logs {
                close_log(log, common.log_files);
            }
            common.state.remove(&id).map_err(|source| common.state_error(source))
        })
        .await
    }
}

/// The caller of a line that is not being made again.
async fn settled(
    line: &mut watch::Receiver<Line>,
    limit: Duration,
) -> Result<Caller<WithSandbox>, RuntimeError> {
    let known = line.wait_for(|line| !matches!(line, Line::Lost));
    match tokio::time::timeout(limit, known).await {
        Ok(Ok(line)) => match &*line {
            Line::Up(caller) => Ok(caller.clone()),
            Line::Lost | Line::Down => Err(RuntimeError::Died),
        },
        Ok(Err(_)) => Err(RuntimeError::Died),
        Err(_) => Err(RuntimeError::Call(CallError::TimedOut { limit })),
    }
}

/// Whether the process at a descriptor can be asked: it is who it should be. Says
/// its version.
pub(crate) async fn hello(
    caller: &Caller<WithSandbox>,
    incoming: &mut Incoming<WithSandbox>,
    early: &mut Vec<SandboxEvent>,
) -> Result<u32, RuntimeError> {
    let request = SandboxRequest::Hello { version: VERSION };
    match ask_early(caller, incoming, early, request).await? {
        SandboxReply::Hello { version, .. } => Ok(version),
        other => Err(RuntimeError::WrongAnswer { answer: words::of(&other) }),
    }
}

/// One exchange while nobody watches yet; news is kept.
pub(crate) async fn ask_early(
    caller: &Caller<WithSandbox>,
    incoming: &mut Incoming<WithSandbox>,
    early: &mut Vec<SandboxEvent>,
    request: SandboxRequest,
) -> Result<SandboxReply, RuntimeError> {
    let mut room = EARLY_BYTES.saturating_sub(early.iter().map(size).sum());
    let mut call = std::pin::pin!(caller.call(request, Vec::new(), ANSWER_LIMIT));
    loop {
        tokio::select! {
            biased;
            // `next` is cancel-safe, and the call goes on in the next round.
            answer = &mut call => return Ok(words::of_reply(answer?.reply)),
            news = incoming.next() => match news {
                Ok(Some(news)) => {
                    room = room.checked_sub(size(&news)).ok_or(RuntimeError::TooMuchNews)?;
                    early.push(news);
                }
                // The call ends with the connection.
                Ok(None) | Err(_) => return Ok(words::of_reply(call.await?.reply)),
            },
        }
    }
}

/// What news takes in memory, in bytes.
fn size(news: &SandboxEvent) -> usize {
    let text = match news {
        SandboxEvent::Exited { exit, .. } => exit.reason.len() + exit.message.len(),
        SandboxEvent::Complained { what } => what.len(),
        SandboxEvent::Listening { pod } => pod.as_str().len(),
        SandboxEvent::Running { .. } | SandboxEvent::LogRotated { .. } => 0,
    };
    size_of::<SandboxEvent>() + text
}

impl Common {
    pub(crate) fn state_error(&self, source: std::io::Error) -> RuntimeError {
        RuntimeError::State { path: self.state.root().to_owned(), source }
    }

    /// Removes what is left of a sandbox that nobody was told of.
    async fn forget(&self, id: &str) {
        let (state, of) = (self.state.clone(), id.to_owned());
        if let Err(error) = blocking(move || state.remove(&of)).await {
            tracing::warn!(sandbox = id, %error, "cannot remove what is left of it");
        }
    }

    /// As [`Common::forget`], when it is not known whether there is a process:
    /// the zygote died with the request.
    async fn disown(&self, id: &str) {
        let (state, of) = (self.state.clone(), id.to_owned());
        let killed = blocking(move || {
            use std::os::fd::AsFd;
            let socket = socket::connect(&state.socket(&of))?;
            PidFd::of_peer(socket.as_fd())?.kill()
        });
        if killed.await.is_ok() {
            tracing::warn!(sandbox = id, "killed; its zygote died before it told of it");
        }
        self.forget(id).await;
    }
}

pub(crate) fn close_log(log: &LogFile, log_files: usize) {
    if let Err(error) = log.close(log_files, jiff::Timestamp::now()) {
        // The container is over all the same.
        tracing::warn!(?log, %error, "cannot tidy up after a log");
    }
}

/// Connects once the process listens. Blocks.
///
/// The process has no way to say that it listens but to listen; it does so
/// within a millisecond.
fn connect_when_up(
    state: &State,
    id: &str,
    process: &PidFd,
) -> Result<std::os::fd::OwnedFd, RuntimeError> {
    let path = state.socket(id);
    let deadline = Instant::now() + UP_LIMIT;
    let mut pause = Duration::from_micros(50);
    loop {
        match socket::connect(&path) {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(RuntimeError::Process(error)),
        }
        if process.has_ended().map_err(RuntimeError::Process)? {
            return Err(RuntimeError::Died);
        }
        if Instant::now() > deadline {
            return Err(RuntimeError::NotUp { limit: UP_LIMIT });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn now_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
