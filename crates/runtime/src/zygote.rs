//! The zygote as the agent sees it: found or started, watched, replaced.
//!
//! ```text
//! a socket of this very build? ──connect, List──▶ adopted
//!          │ no, or no answer                        │
//!          ▼                                         ▼
//!        start ──Warm──▶ serves ◀──────────────── serves
//!          ▲                │ gone
//!          └── pause ───────┘
//! ```
//!
//! Zygotes of other builds are told to retire: they reap what is theirs and
//! end. A zygote's death harms no sandbox.
//!
//! There is one for each network namespace, started when it is first needed: a
//! process cannot leave the one it was born in.

use std::{
    collections::hash_map::DefaultHasher,
    env,
    ffi::OsString,
    fs::File,
    hash::{Hash, Hasher},
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use krustlet_model::Chain;
use krustlet_protocol::{
    Caller, DescriptorName, Incoming, PidFd, VERSION, WithZygote, ZygoteNews, ZygoteReply,
    ZygoteRequest,
    connection::{self, Answer, CallError},
    socket,
};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    NetworkKind, PodUser, RuntimeError, namespace::is_elsewhere, record::State, table::Who,
    work::blocking,
};

/// Time for a zygote to build its engine and lock itself; it takes a tenth of
/// a second, on the slowest boards a few.
const WARM_LIMIT: Duration = Duration::from_secs(30);

/// Time for a living zygote to answer; it does nothing that takes long.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Time for a zygote that cannot serve to say why and end: it lets go of its agent
/// first.
const WORDS_LIMIT: Duration = Duration::from_secs(2);

/// Time that a new sandbox waits for a zygote that is being replaced.
const WAIT_LIMIT: Duration = Duration::from_secs(15);

/// Pauses before a zygote that died is replaced: at once, then ever slower.
const PAUSES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
];

/// A zygote that lived this long is not one that dies at each start.
const SETTLED: Duration = Duration::from_mins(1);

/// The first number of the three descriptors a zygote is started with.
const FIRST: RawFd = 3;

/// Why no zygote could be started.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum StartError {
    #[error("no command to start a zygote with")]
    NoCommand,

    #[error("cannot prepare its files")]
    Files(#[source] io::Error),

    #[error("cannot run {}", .command.display())]
    Spawn {
        command: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("it ended before it was ready; its last words: {words:?}")]
    Ended { words: String },

    #[error("it was not ready within {limit:?}")]
    TooSlow { limit: Duration },
}

/// A living zygote and our connection to it.
#[derive(Debug)]
pub(crate) struct Zygote {
    pub(crate) caller: Caller<WithZygote>,
    incoming: Incoming<WithZygote>,
    process: PidFd,
    /// Set if we are its parent and must reap it.
    child: Option<Child>,
    /// What came before anybody listened.
    early: Vec<ZygoteNews>,
}

/// How zygotes are found and started.
#[derive(Clone, Debug)]
pub(crate) struct Nursery {
    command: Vec<OsString>,
    state: State,
    socket: PathBuf,
    /// The namespace that zygotes are born in; none for the agent's own.
    namespace: Option<PathBuf>,
}

impl Nursery {
    /// Names the zygote's socket after the protocol's version and the program
    /// file: the artifacts of another build would not load.
    pub(crate) fn new(
        command: Vec<OsString>,
        state: State,
        namespace: Option<PathBuf>,
    ) -> Result<Self, StartError> {
        let program = PathBuf::from(command.first().ok_or(StartError::NoCommand)?);
        let mut build = DefaultHasher::new();
        command.hash(&mut build);
        match std::fs::metadata(&program) {
            Ok(file) => (file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec())
                .hash(&mut build),
            Err(source) => return Err(StartError::Spawn { command: program, source }),
        }
        let kind = if namespace.is_some() { ".pods" } else { "" };
        let name = format!("{VERSION}-{:08x}{kind}.zygote.sock", build.finish() >> 32);
        let socket = state.root().join(name);
        Ok(Self { command, state, socket, namespace })
    }

    /// The namespace that zygotes are born in; none for the agent's own.
    pub(crate) fn namespace(&self) -> Option<&Path> {
        self.namespace.as_deref()
    }

    /// Where its zygote is found.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The zygote that an earlier agent of this build left, if it is in order.
    pub(crate) async fn adopt(&self) -> Option<Zygote> {
        let path = self.socket.clone();
        let socket = blocking(move || socket::connect(&path)).await.ok()?;
        let (caller, mut incoming) = connection::connection(socket).ok()?;
        let process = PidFd::of_peer(caller.socket()).ok()?;
        // That of the pods may have been made anew.
        let own = Path::new("/proc/self/ns/net");
        if is_elsewhere(&process, self.namespace().unwrap_or(own)) {
            tracing::warn!("the zygote found is of another network namespace; it is replaced");
            if let Err(error) = retire(caller, incoming).await {
                tracing::warn!(error = %Chain(&error), "cannot tell it to retire");
            }
            return None;
        }
        let mut early = Vec::new();
        match ask(&caller, &mut incoming, &mut early, ZygoteRequest::List).await {
            Ok(Answer { reply: ZygoteReply::Sandboxes { .. }, .. }) => {
                Some(Zygote { caller, incoming, process, child: None, early })
            }
            other => {
                tracing::warn!(answer = ?other, "the zygote found is out of order; it is replaced");
                // Its sandboxes live on; they are asked on their own sockets.
                let _ = process.kill();
                None
            }
        }
    }

    /// Starts a zygote and waits until it is ready.
    pub(crate) async fn start(&self) -> Result<Zygote, StartError> {
        let this = self.clone();
        let files = blocking(move || this.files()).await.map_err(StartError::Files)?;
        let mut child = self.spawn(&files)?;
        // The child has its own; ours would keep the connection open for ever.
        let Files { ours, theirs, said, .. } = files;
        drop(theirs);
        let (caller, incoming) = connection::connection(ours).map_err(StartError::Files)?;
        let process = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .ok_or(ErrorKind::NotFound)
            .map_err(io::Error::from)
            .and_then(PidFd::open)
            .map_err(StartError::Files)?;
        let mut zygote = Zygote { caller, incoming, process, child: None, early: Vec::new() };
        match timeout(WARM_LIMIT, zygote.incoming.next()).await {
            Ok(Ok(Some(ZygoteNews::Warm { version }))) => {
                tracing::info!(pid = child.id(), version, "the zygote is ready");
                zygote.child = Some(child);
                Ok(zygote)
            }
            Ok(Ok(Some(ZygoteNews::Exited { .. }) | None) | Err(_)) => {
                if timeout(WORDS_LIMIT, child.wait()).await.is_err() {
                    let _ = child.start_kill();
                    let _ = timeout(ANSWER_LIMIT, child.wait()).await;
                }
                Err(StartError::Ended { words: last_words(&self.state.zygote_log_path(), said) })
            }
            Err(_) => {
                let _ = child.start_kill();
                let _ = timeout(ANSWER_LIMIT, child.wait()).await;
                Err(StartError::TooSlow { limit: WARM_LIMIT })
            }
        }
    }

    /// Tells the zygotes of other builds to fork no more. `ours` are the sockets
    /// of this one's.
    pub(crate) async fn retire_others(state: State, ours: &[&Path]) {
        let all = match blocking(move || state.zygotes()).await {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(%error, "cannot look for other zygotes");
                return;
            }
        };
        for path in all.into_iter().filter(|path| !ours.contains(&path.as_path())) {
            let connecting = path.clone();
            let told = match blocking(move || socket::connect(&connecting)).await {
                Ok(socket) => retire_at(socket).await,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    // Nobody is there any more.
                    let _ = blocking(move || std::fs::remove_file(path)).await;
                    continue;
                }
                Err(error) => Err(CallError::Send(error)),
            };
            match told {
                Ok(()) => tracing::info!(socket = %path.display(), "an older zygote retires"),
                Err(error) => {
                    tracing::warn!(socket = %path.display(), error = %Chain(&error),
                        "cannot tell an older zygote to retire");
                }
            }
        }
    }

    fn files(&self) -> io::Result<Files> {
        let (ours, theirs) = socket::pair()?;
        let log = self.state.zygote_log()?;
        Ok(Files {
            ours,
            theirs,
            listener: socket::bind(&self.socket)?,
            journal: self.state.journal()?,
            said: log.metadata()?.len(),
            log,
            namespace: self.namespace.as_ref().map(File::open).transpose()?,
        })
    }

    fn spawn(&self, files: &Files) -> Result<Child, StartError> {
        let (program, arguments) = self.command.split_first().ok_or(StartError::NoCommand)?;
        let failed = |source| StartError::Spawn { command: PathBuf::from(program), source };
        let given = [&files.theirs, &files.listener, &files.journal].map(AsRawFd::as_raw_fd);
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(authorities().map(|path| (AUTHORITIES, path)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(files.log.try_clone().map_err(failed)?)
            .stderr(files.log.try_clone().map_err(failed)?);
        let namespace = files.namespace.as_ref().map(AsRawFd::as_raw_fd);
        // SAFETY: between fork and exec only system calls that allocate
        // nothing are made, on descriptors that stay open meanwhile.
        unsafe {
            command.pre_exec(move || {
                namespace.map_or(Ok(()), enter)?;
                place(given)
            });
        }
        command.spawn().map_err(failed)
    }
}

/// The variable that says where the system's certificate authorities are, if not where
/// most systems have them.
const AUTHORITIES: &str = "SSL_CERT_FILE";

/// Where it says that they are, as a zygote finds it, which is elsewhere than we are.
fn authorities() -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os(AUTHORITIES).filter(|path| !path.is_empty())?);
    // Without a directory of our own, it is the zygote that finds nothing.
    Some(std::path::absolute(&path).unwrap_or(path))
}

/// What a zygote is started with.
struct Files {
    ours: OwnedFd,
    theirs: OwnedFd,
    listener: OwnedFd,
    journal: OwnedFd,
    log: File,
    /// How long the log was before: what others said.
    said: u64,
    namespace: Option<File>,
}

/// Enters a network namespace. Runs in the child.
fn enter(namespace: RawFd) -> io::Result<()> {
    // SAFETY: plain numbers go in and out.
    if unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Puts descriptors at the numbers from [`FIRST`] on, open after exec. Runs in
/// the child.
fn place(given: [RawFd; 3]) -> io::Result<()> {
    let check = |result: libc::c_int| {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    };
    let mut free = [0; 3];
    for (to, from) in free.iter_mut().zip(given) {
        // First out of the way: one may stand where another is to go.
        // SAFETY: plain numbers go in and out.
        *to = check(unsafe { libc::fcntl(from, libc::F_DUPFD_CLOEXEC, FIRST + 3) })?;
    }
    for (number, from) in (FIRST..).zip(free) {
        // SAFETY: as above; what stood there is a close-on-exec descriptor of
        // the agent's or the standard library's, which ends with exec anyway.
        check(unsafe { libc::dup2(from, number) })?;
    }
    Ok(())
}

/// One exchange while nobody else reads; news is kept.
async fn ask(
    caller: &Caller<WithZygote>,
    incoming: &mut Incoming<WithZygote>,
    early: &mut Vec<ZygoteNews>,
    request: ZygoteRequest,
) -> Result<Answer<ZygoteReply>, CallError> {
    let mut call = std::pin::pin!(caller.call(request, Vec::new(), ANSWER_LIMIT));
    loop {
        tokio::select! {
            biased;
            // `next` is cancel-safe, and the call goes on in the next round.
            answer = &mut call => return answer,
            news = incoming.next() => match news {
                Ok(Some(news)) => early.push(news),
                // The call ends with the connection.
                Ok(None) | Err(_) => return call.await,
            },
        }
    }
}

async fn retire_at(socket: OwnedFd) -> Result<(), CallError> {
    let (caller, incoming) = connection::connection(socket).map_err(CallError::Send)?;
    retire(caller, incoming).await
}

async fn retire(
    caller: Caller<WithZygote>,
    mut incoming: Incoming<WithZygote>,
) -> Result<(), CallError> {
    ask(&caller, &mut incoming, &mut Vec::new(), ZygoteRequest::Retire).await.map(drop)
}

/// The end of what was written to a log since it had this length.
fn last_words(log: &Path, since: u64) -> String {
    const WORDS: u64 = 1024;
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(WORDS).max(since);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(WORDS).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_default()
}

/// How the rest of the runtime reaches whichever zygotes live.
#[derive(Clone, Debug)]
pub(crate) struct Zygotes {
    pub(crate) node: Line,
    /// None if there is no namespace for pods.
    pub(crate) pods: Option<Line>,
}

/// The way to the zygote of one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    callers: watch::Receiver<Option<Caller<WithZygote>>>,
    wanted: watch::Sender<bool>,
}

/// A new process.
#[derive(Debug)]
pub(crate) struct Forked {
    pub(crate) pid: i32,
    pub(crate) process: PidFd,
}

impl Zygotes {
    /// Has a sandbox forked.
    pub(crate) async fn fork(
        &self,
        id: String,
        who: &Who,
        control: OwnedFd,
        status: OwnedFd,
    ) -> Result<Forked, RuntimeError> {
        let line = match who.network {
            NetworkKind::Node => &self.node,
            NetworkKind::Pods => self.pods.as_ref().ok_or(RuntimeError::NoPodNamespace)?,
        };
        line.wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true));
        let mut zygotes = line.callers.clone();
        let caller = match timeout(WAIT_LIMIT, zygotes.wait_for(Option::is_some)).await {
            Ok(Ok(zygote)) => zygote.clone(),
            Ok(Err(_)) => return Err(RuntimeError::Stopping),
            Err(_) => None,
        };
        let caller = caller.ok_or(RuntimeError::NoZygote { limit: WAIT_LIMIT })?;
        let PodUser { uid, gid, groups } = who.user.clone();
        let request = ZygoteRequest::RunSandbox { id, uid, gid, groups };
        let given = vec![(DescriptorName::Control, control), (DescriptorName::Status, status)];
        let mut answer = caller
            .call(request, given, ANSWER_LIMIT)
            .await
            // Not the sandbox died here but the zygote, and another comes.
            .map_err(RuntimeError::Call)?;
        match (answer.reply, answer.fds.pop()) {
            (ZygoteReply::Forked { pid }, Some((DescriptorName::PidFd, fd))) => {
                Ok(Forked { pid, process: PidFd::from(fd) })
            }
            (ZygoteReply::Failed(failure), _) => Err(RuntimeError::Refused(failure)),
            (other, _) => Err(RuntimeError::WrongAnswer { answer: format!("{other:?}") }),
        }
    }

    /// Has the zygotes fork no more, and end once their sandboxes have.
    pub(crate) async fn retire(&self) -> Result<(), RuntimeError> {
        self.node.retire().await?;
        match &self.pods {
            Some(line) => line.retire().await,
            None => Ok(()),
        }
    }
}

impl Line {
    async fn retire(&self) -> Result<(), RuntimeError> {
        let Some(caller) = self.callers.borrow().clone() else {
            return Ok(());
        };
        match caller.call(ZygoteRequest::Retire, Vec::new(), ANSWER_LIMIT).await {
            // Gone is more than was asked for.
            Ok(_) | Err(CallError::Gone) => Ok(()),
            Err(error) => Err(RuntimeError::Call(error)),
        }
    }
}

/// A sandbox that a zygote has reaped.
pub(crate) type Reaped = (String, i32);

/// Whether every zygote that was needed so far lives.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    dead: Arc<AtomicUsize>,
    shown: watch::Sender<bool>,
}

impl Health {
    pub(crate) fn new() -> Self {
        Self { dead: Arc::default(), shown: watch::Sender::new(true) }
    }

    pub(crate) fn shown(&self) -> watch::Receiver<bool> {
        self.shown.subscribe()
    }

    /// One more is dead.
    fn fall(&self) {
        // Counted under the lock of what is shown: both keepers may speak.
        self.shown.send_modify(|well| {
            self.dead.fetch_add(1, Ordering::Relaxed);
            *well = false;
        });
    }

    /// One that was dead lives again.
    fn rise(&self) {
        self.shown.send_modify(|well| *well = self.dead.fetch_sub(1, Ordering::Relaxed) == 1);
    }
}

/// Keeps a zygote alive until stopped, and passes on what it reaps.
#[derive(Debug)]
pub(crate) struct Keeper {
    nursery: Nursery,
    /// None until it is needed.
    zygote: Option<Zygote>,
    wanted: watch::Receiver<bool>,
    publish: watch::Sender<Option<Caller<WithZygote>>>,
    health: Health,
    reaped: mpsc::Sender<Reaped>,
    /// Cancelled when the zygote is to end for good.
    retired: CancellationToken,
}

impl Keeper {
    /// A keeper of one that lives, or of one that is started when it is needed.
    pub(crate) fn new(
        nursery: Nursery,
        zygote: Option<Zygote>,
        health: Health,
        reaped: mpsc::Sender<Reaped>,
        retired: CancellationToken,
    ) -> (Self, Line) {
        let first = zygote.as_ref().map(|zygote| zygote.caller.clone());
        let (publish, callers) = watch::channel(first);
        let (asking, wanted) = watch::channel(false);
        let keeper = Self { nursery, zygote, wanted, publish, health, reaped, retired };
        (keeper, Line { callers, wanted: asking })
    }

    /// Ends when stopped; the zygote goes on.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Self { nursery, zygote, mut wanted, publish, health, reaped, retired } = self;
        let mut deaths = 0_usize;
        let mut zygote = if let Some(zygote) = zygote {
            zygote
        } else {
            tokio::select! {
                biased;
                // All are cancel-safe; a zygote that is being started is found
                // by the next agent.
                () = stop.cancelled() => return,
                () = retired.cancelled() => return,
                zygote = first(&nursery, &mut wanted, &mut deaths) => zygote,
            }
        };
        loop {
            publish.send_replace(Some(zygote.caller.clone()));
            let since = tokio::time::Instant::now();
            tokio::select! {
                biased;
                // Dropping `watch` loses no news but what the journal has too.
                () = stop.cancelled() => return,
                () = watch_one(&mut zygote, &reaped) => {}
            }
            publish.send_replace(None);
            // One that only let us go, because we read too slowly, stays the
            // parent of its sandboxes.
            if !zygote.process.has_ended().unwrap_or(true)
                && let Some(again) = nursery.adopt().await
            {
                zygote = Zygote { child: zygote.child, ..again };
                continue;
            }
            health.fall();
            zygote.bury().await;
            if retired.is_cancelled() {
                return;
            }
            deaths = if since.elapsed() > SETTLED { 0 } else { deaths };
            tracing::warn!("the zygote is gone; another is started");
            zygote = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = retired.cancelled() => return,
                zygote = replace(&nursery, &mut deaths) => zygote,
            };
            health.rise();
        }
    }
}

/// Starts a zygote once one is needed.
async fn first(
    nursery: &Nursery,
    wanted: &mut watch::Receiver<bool>,
    deaths: &mut usize,
) -> Zygote {
    if wanted.wait_for(|wanted| *wanted).await.is_err() {
        // Nobody can ask any more: the runtime ends.
        std::future::pending::<()>().await;
    }
    replace(nursery, deaths).await
}

/// Starts zygotes until one is ready.
async fn replace(nursery: &Nursery, deaths: &mut usize) -> Zygote {
    loop {
        sleep(PAUSES[(*deaths).min(PAUSES.len() - 1)]).await;
        *deaths += 1;
        match nursery.start().await {
            Ok(zygote) => return zygote,
            Err(error) => tracing::error!(error = %Chain(&error), "cannot start a zygote"),
        }
    }
}

/// Passes on news until the connection ends.
async fn watch_one(zygote: &mut Zygote, reaped: &mpsc::Sender<Reaped>) {
    for news in std::mem::take(&mut zygote.early) {
        pass_on(news, reaped).await;
    }
    loop {
        match zygote.incoming.next().await {
            Ok(Some(news)) => pass_on(news, reaped).await,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the connection to the zygote failed");
                return;
            }
        }
    }
}

async fn pass_on(news: ZygoteNews, reaped: &mpsc::Sender<Reaped>) {
    match news {
        ZygoteNews::Warm { .. } => {}
        // Fails only when the runtime stops.
        ZygoteNews::Exited { id, wait_status, .. } => {
            let _ = reaped.send((id, wait_status)).await;
        }
    }
}

impl Zygote {
    /// The sandboxes it has, by id.
    pub(crate) async fn list(&mut self) -> Result<Vec<(String, i32)>, CallError> {
        let Self { caller, incoming, early, .. } = self;
        match ask(caller, incoming, early, ZygoteRequest::List).await?.reply {
            ZygoteReply::Sandboxes { running } => Ok(running),
            other => {
                tracing::warn!(?other, "the zygote does not list its sandboxes");
                Ok(Vec::new())
            }
        }
    }

    /// Makes sure that it is gone, and reaps it if it is ours.
    async fn bury(&mut self) {
        // A zygote that lost its connection and lives would fork for nobody.
        if let Err(error) = self.process.kill() {
            tracing::warn!(%error, "cannot kill the old zygote");
        }
        if let Some(child) = &mut self.child {
            match timeout(ANSWER_LIMIT, child.wait()).await {
                Ok(Ok(status)) => tracing::info!(%status, "the zygote ended"),
                Ok(Err(error)) => tracing::warn!(%error, "cannot wait for the old zygote"),
                Err(_) => tracing::warn!("the old zygote does not end"),
            }
        }
    }
}
