//! The agent's side: who wants which program compiled, and who waits for it.
//!
//! [`Artifacts`] asks; [`ArtifactsTask`] owns. For each program there is at most
//! one piece of work: look on disk, else compile, then tell everyone who waits.
//! Work on small and on large programs queues apart.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{OnceCell, Semaphore, mpsc, oneshot};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{CompileError, OpenError};
use crate::inspect::Inspection;
use crate::limits::CompileLimits;
use crate::process::{Compiler, Job};
use crate::report::Fault;
use crate::setbacks::Setbacks;
use crate::store::{ARTIFACT, Known, ModuleDigest, Stamp, Store};

/// Requests that may queue up before [`Artifacts::artifact`] waits: the pods of
/// one full node, each starting at once (kubelet's default `maxPods` is 110).
const QUEUE: usize = 128;

/// What the artifacts need to know.
#[derive(Clone, Debug)]
pub struct ArtifactsConfig {
    /// Where compiled code is kept. Made if missing, and closed to others.
    pub root: PathBuf,
    /// The program that runs [`compile_main`](crate::compile_main), and the
    /// arguments before its own: `/proc/self/exe compile`.
    pub command: Vec<OsString>,
    /// What one compilation may use.
    pub limits: CompileLimits,
}

/// Compiled code, ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// A directory of its own, readable by every user who is handed it.
    pub directory: PathBuf,
    /// The code's file name in it.
    pub file: String,
    /// What the program is, wants and offers.
    pub inspection: Inspection,
}

/// Asks for compiled code. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Artifacts {
    requests: mpsc::Sender<Request>,
}

/// Does the work. Runs until stopped, or until every [`Artifacts`] is gone.
#[derive(Debug)]
pub struct ArtifactsTask {
    requests: mpsc::Receiver<Request>,
    workshop: Arc<Workshop>,
    work: JoinSet<Made>,
    /// Which piece of work makes what.
    modules: HashMap<Id, ModuleDigest>,
    /// Who waits for what.
    waiting: HashMap<ModuleDigest, Vec<oneshot::Sender<ArtifactResult>>>,
    /// What was checked since the agent started. As many as there are programs
    /// on the node; the image store bounds those.
    ready: HashMap<ModuleDigest, Ready>,
    /// What failed of late, for reasons that may pass.
    setbacks: Setbacks,
}

type ArtifactResult = Result<Artifact, CompileError>;
type Made = Result<Ready, CompileError>;

#[derive(Clone, Debug)]
struct Ready {
    artifact: Artifact,
    stamp: Stamp,
}

#[derive(Debug)]
enum Request {
    Artifact { program: PathBuf, digest: ModuleDigest, reply: oneshot::Sender<ArtifactResult> },
    Remove { digest: ModuleDigest, reply: oneshot::Sender<()> },
}

/// Opens the directory of compiled code. Nothing is compiled before the task
/// runs.
///
/// # Errors
///
/// If the directory cannot be prepared, or no command is given.
pub fn open(config: ArtifactsConfig) -> Result<(Artifacts, ArtifactsTask), OpenError> {
    let ArtifactsConfig { root, command, limits } = config;
    let small = Semaphore::new(usize::from(limits.small_at_once.max(1)));
    let compiler = Compiler::new(command, limits).ok_or(OpenError::NoCommand)?;
    let store =
        Store::open(root.clone()).map_err(|source| OpenError::Directory { path: root, source })?;
    let workshop =
        Workshop { store, compiler, fingerprint: OnceCell::new(), small, large: Semaphore::new(1) };
    let (sender, requests) = mpsc::channel(QUEUE);
    let task = ArtifactsTask {
        requests,
        workshop: Arc::new(workshop),
        work: JoinSet::new(),
        modules: HashMap::new(),
        waiting: HashMap::new(),
        ready: HashMap::new(),
        setbacks: Setbacks::default(),
    };
    Ok((Artifacts { requests: sender }, task))
}

impl Artifacts {
    /// Returns the code of a program, compiling it if this node has not yet.
    ///
    /// `program` is a WebAssembly module or component whose SHA-256 is `digest`
    /// (`sha256:<64 hexadecimal digits>`). Giving up waiting does not stop the
    /// work: the next pod will ask again.
    ///
    /// # Errors
    ///
    /// [`CompileError::Program`] if the program is at fault, which is remembered
    /// and said again at once the next time; otherwise what kept the node from
    /// compiling it now. If finding that out took much, it is said again for a
    /// while, longer each time, until it is tried anew.
    pub async fn artifact(&self, program: &Path, digest: &str) -> Result<Artifact, CompileError> {
        let digest = parse(digest)?;
        let (reply, answer) = oneshot::channel();
        let request = Request::Artifact { program: program.to_owned(), digest, reply };
        self.requests.send(request).await.map_err(|_| CompileError::Stopping)?;
        answer.await.map_err(|_| CompileError::Stopping)?
    }

    /// Forgets a program: its code, or why it has none. Running guests keep what
    /// they have loaded. Code that is being made at this moment stays.
    ///
    /// Does nothing if there is nothing, or once the agent stops.
    pub async fn remove(&self, digest: &str) {
        let Ok(digest) = parse(digest) else { return };
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Remove { digest, reply }).await.is_ok() {
            // An error: the agent stops, and the code is found again later.
            let _ = answer.await;
        }
    }
}

fn parse(digest: &str) -> Result<ModuleDigest, CompileError> {
    digest.parse().map_err(|()| CompileError::InvalidDigest { digest: digest.to_owned() })
}

impl ArtifactsTask {
    /// Serves requests. Dropping the work at the end kills the compilers, and
    /// dropping the replies tells every waiter that the agent is stopping.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                // All three are cancel-safe, and no arm awaits in its body.
                () = stop.cancelled() => break,
                request = self.requests.recv() => match request {
                    Some(Request::Artifact { program, digest, reply }) => {
                        self.accept(program, digest, reply);
                    }
                    Some(Request::Remove { digest, reply }) => {
                        self.remove(&digest);
                        let _ = reply.send(());
                    }
                    None => break,
                },
                Some(done) = self.work.join_next_with_id() => self.finish(done),
            }
        }
    }

    fn accept(
        &mut self,
        program: PathBuf,
        digest: ModuleDigest,
        reply: oneshot::Sender<ArtifactResult>,
    ) {
        if let Some(ready) = self.ready.get(&digest) {
            // Looking at one inode that is in memory: cheaper than asking a
            // thread to, and on the way of every pod's start.
            if Stamp::now(&ready.artifact.directory).is_ok_and(|now| now == ready.stamp) {
                let _ = reply.send(Ok(ready.artifact.clone()));
                return;
            }
            self.ready.remove(&digest);
        }
        if let Some(error) = self.setbacks.stands(&digest, Instant::now()) {
            let _ = reply.send(Err(error.clone()));
            return;
        }
        let waiting = self.waiting.entry(digest.clone()).or_default();
        waiting.push(reply);
        if waiting.len() == 1 {
            let workshop = Arc::clone(&self.workshop);
            let work = self.work.spawn(workshop.make(program, digest.clone()));
            self.modules.insert(work.id(), digest);
        }
    }

    /// Takes the directory away before the next request is looked at, so that no
    /// one is given what is about to vanish. A rename and a few unlinks.
    fn remove(&mut self, digest: &ModuleDigest) {
        self.ready.remove(digest);
        self.setbacks.forget(digest);
        if let Err(error) = self.workshop.store.remove(digest) {
            tracing::warn!(%digest, %error, "cannot remove compiled code");
        }
    }

    fn finish(&mut self, done: Result<(Id, Made), JoinError>) {
        let (id, made) = match done {
            Ok((id, made)) => (id, made),
            Err(error) => {
                let message = format!("its task died: {error}");
                (error.id(), Err(CompileError::Broken { message }))
            }
        };
        let Some(digest) = self.modules.remove(&id) else { return };
        for reply in self.waiting.remove(&digest).unwrap_or_default() {
            // Whoever has gone does not care.
            let _ = reply.send(made.clone().map(|ready| ready.artifact));
        }
        self.setbacks.note(&digest, made.as_ref().err(), Instant::now());
        if let Ok(ready) = made {
            self.ready.insert(digest, ready);
        }
    }
}

/// What every piece of work uses.
#[derive(Debug)]
struct Workshop {
    store: Store,
    compiler: Compiler,
    /// Asked of the child once: an engine in the agent would cost it megabytes.
    fingerprint: OnceCell<String>,
    small: Semaphore,
    large: Semaphore,
}

impl Workshop {
    async fn make(self: Arc<Self>, program: PathBuf, digest: ModuleDigest) -> Made {
        let fingerprint = Arc::clone(&self).fingerprint().await?;
        if let Some(known) = Arc::clone(&self).known(&fingerprint, &digest).await? {
            return known;
        }
        let path = program.clone();
        let (module, module_bytes) = blocking(move || {
            let file = File::open(&path)?;
            let bytes = file.metadata()?.len();
            Ok((file, bytes))
        })
        .await?
        .map_err(CompileError::file(format!("open {}", program.display())))?;
        let limits = self.compiler.limits();
        if module_bytes > limits.module_bytes {
            let fault = Fault::TooLarge { limit: limits.module_bytes };
            return Err(CompileError::Program { digest: digest.to_string(), fault });
        }

        let lane = if limits.is_large(module_bytes) { &self.large } else { &self.small };
        let _turn = lane.acquire().await.map_err(|_| CompileError::Stopping)?;
        let workshop = Arc::clone(&self);
        let (draft, output) = blocking(move || {
            let draft = workshop.store.draft()?;
            let output = draft.output()?;
            Ok((draft, output))
        })
        .await?
        .map_err(CompileError::file("make a file for compiled code"))?;

        let begun = Instant::now();
        let job = Job { digest: digest.clone(), module, module_bytes, output };
        let inspection = match self.compiler.compile(job).await {
            Ok(inspection) => inspection,
            Err(CompileError::Program { digest: name, fault }) => {
                Arc::clone(&self).remember(fingerprint, digest, fault.clone()).await?;
                return Err(CompileError::Program { digest: name, fault });
            }
            Err(error) => return Err(error),
        };
        tracing::info!(%digest, module_bytes, took = ?begun.elapsed(), "compiled a program");

        let workshop = Arc::clone(&self);
        let known =
            blocking(move || workshop.store.publish(draft, &fingerprint, &digest, inspection))
                .await?
                .map_err(CompileError::file("publish compiled code"))?;
        match known {
            Known::Artifact { directory, inspection, stamp } => {
                Ok(ready(directory, inspection, stamp))
            }
            Known::Failure { .. } | Known::Nothing => {
                Err(CompileError::Broken { message: "what was published is not there".to_owned() })
            }
        }
    }

    async fn fingerprint(self: Arc<Self>) -> Result<String, CompileError> {
        let asked = self.fingerprint.get_or_try_init(|| async {
            let fingerprint = self.compiler.fingerprint().await?;
            let (workshop, current) = (Arc::clone(&self), fingerprint.clone());
            if let Err(error) = blocking(move || workshop.store.keep_only(&current)).await? {
                tracing::warn!(%error, "cannot clear away code of other engines");
            }
            Ok(fingerprint)
        });
        asked.await.cloned()
    }

    /// What earlier work left; [`None`] if the program must be compiled.
    async fn known(
        self: Arc<Self>,
        fingerprint: &str,
        digest: &ModuleDigest,
    ) -> Result<Option<Made>, CompileError> {
        let workshop = Arc::clone(&self);
        let (name, module) = (fingerprint.to_owned(), digest.clone());
        let known = blocking(move || workshop.store.load(&name, &module))
            .await?
            .map_err(CompileError::file(format!("read the compiled code of {digest}")))?;
        Ok(match known {
            Known::Artifact { directory, inspection, stamp } => {
                Some(Ok(ready(directory, inspection, stamp)))
            }
            // Other limits may be enough, or may change what is said.
            Known::Failure { limits, fault } if limits == *self.compiler.limits() => {
                Some(Err(CompileError::Program { digest: digest.to_string(), fault }))
            }
            Known::Failure { .. } | Known::Nothing => None,
        })
    }

    /// Keeps a failure for the next time. Not being able to is not worth failing
    /// for: the work is then done, and fails, once more.
    async fn remember(
        self: Arc<Self>,
        fingerprint: String,
        digest: ModuleDigest,
        fault: Fault,
    ) -> Result<(), CompileError> {
        let kept = blocking(move || {
            let limits = self.compiler.limits();
            self.store.publish_failure(&fingerprint, &digest, limits, &fault)
        })
        .await?;
        if let Err(error) = kept {
            tracing::warn!(%error, "cannot remember why a program does not compile");
        }
        Ok(())
    }
}

fn ready(directory: PathBuf, inspection: Inspection, stamp: Stamp) -> Ready {
    Ready { artifact: Artifact { directory, file: ARTIFACT.to_owned(), inspection }, stamp }
}

/// Does file work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<io::Result<T>, CompileError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is being shut down.
        Err(_) => Err(CompileError::Stopping),
    }
}
