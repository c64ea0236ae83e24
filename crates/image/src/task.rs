//! The image store's task: knows every image, runs each job once, answers everyone who waits.
//!
//! ```text
//! ensure ──here, and given──▶ answer
//!    └────otherwise───▶ pull (one per reference and logins) ──▶ record, answer all
//! remove, import ──▶ job (alone on its reference) ──▶ answer
//! last lease ends ──▶ forget what a tag left behind
//! ```
//!
//! Jobs do the work on disk and network; the task only keeps the index.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, Semaphore, mpsc, oneshot};
use tokio::task::{Id, JoinError, JoinSet, spawn_blocking};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::access::SecretRight;
use crate::assemble::flatten;
use crate::credential::Credential;
use crate::digest::Digest;
use crate::image::{Content, Image};
use crate::import::{self, ImportError};
use crate::index::{ImageSummary, Index};
use crate::pull::{self, Context, PullError, Stored, Wanted, lock_name};
use crate::reference::Reference;
use crate::remove::RemoveError;
use crate::request::{Asker, Ensured, ImageRequest, PullPolicy, PullReport};
use crate::store::holds::Lease;
use crate::store::record::{Record, StoredContent};
use crate::verification::{Claim, Verdict, judge};

/// What a [`crate::Images`] asks for.
#[derive(Debug)]
pub(crate) enum Request {
    Ensure { reference: Reference, request: ImageRequest, reply: Reply<Result<Ensured, PullError>> },
    List { reply: Reply<Vec<ImageSummary>> },
    Inspect { reference: Reference, reply: Reply<Option<Image>> },
    Remove { reference: Reference, reply: Reply<Result<(), RemoveError>> },
    Import { source: PathBuf, reference: Reference, reply: Reply<Result<Image, ImportError>> },
    Sweep,
}

type Reply<T> = oneshot::Sender<T>;

/// Pulls with the same key are one pull. Logins belong to it: what one pod may read is not
/// thereby another's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PullKey {
    reference: Reference,
    credentials: Vec<Credential>,
    asker: Asker,
}

/// Who waits for a job.
#[derive(Debug)]
enum Job {
    Pull(PullKey),
    Remove { reference: String, reply: Option<Reply<Result<(), RemoveError>>> },
    Import { reference: String, source: PathBuf, reply: Reply<Result<Image, ImportError>> },
    Learn { reference: String },
}

/// What a job came to.
#[derive(Debug)]
enum Done {
    Pull(Result<Pulled, PullError>),
    Remove(Result<(), RemoveError>),
    Import(Result<Stored, ImportError>),
    Learn(io::Result<Option<(Record, OwnedMutexGuard<()>)>>),
}

#[derive(Debug)]
struct Pulled {
    stored: Stored,
    took: Duration,
    waited: Duration,
}

/// Owns the image store. Runs until stopped, or until every [`crate::Images`] is gone.
#[derive(Debug)]
pub struct ImagesTask {
    context: Arc<Context>,
    index: Index,
    requests: mpsc::Receiver<Request>,
    jobs: JoinSet<Done>,
    running: HashMap<Id, Job>,
    /// Who waits for which pull.
    pulls: HashMap<PullKey, Vec<Reply<Result<Ensured, PullError>>>>,
    /// Pulls that may run at once.
    slots: Arc<Semaphore>,
    /// Whether those that use images have had the time to say so.
    may_forget: bool,
}

impl ImagesTask {
    pub(crate) fn new(
        context: Arc<Context>,
        records: Vec<Record>,
        requests: mpsc::Receiver<Request>,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(context.limits.parallel.max(1)));
        Self {
            context,
            index: Index::new(records),
            requests,
            jobs: JoinSet::new(),
            running: HashMap::new(),
            pulls: HashMap::new(),
            slots,
            may_forget: false,
        }
    }

    /// Serves requests. Dropping the jobs at the end cancels them, and dropping the replies
    /// tells every waiter that the agent is stopping. What a cancelled pull left is
    /// swept at the next open.
    pub async fn run(mut self, stop: CancellationToken) {
        let holds = Arc::clone(self.context.store.holds());
        loop {
            tokio::select! {
                biased;
                // All are cancel-safe (`notified` keeps its permit), and no arm awaits in its body.
                () = stop.cancelled() => break,
                request = self.requests.recv() => match request {
                    Some(request) => self.accept(request),
                    None => break,
                },
                Some(done) = self.jobs.join_next_with_id() => self.finish(done),
                () = holds.freed.notified() => self.forget(),
            }
        }
    }

    fn accept(&mut self, request: Request) {
        // Whoever asked and is gone misses nothing by an answer that is not delivered.
        match request {
            Request::Ensure { reference, request, reply } => self.ensure(reference, request, reply),
            Request::List { reply } => {
                let holds = self.context.store.holds();
                let _ = reply.send(self.index.list(|key| holds.is_held(key)));
            }
            Request::Inspect { reference, reply } => {
                let _ = reply.send(self.present(&reference));
            }
            Request::Remove { reference, reply } => self.remove(&reference, reply),
            Request::Import { source, reference, reply } => self.import(source, reference, reply),
            Request::Sweep => {
                self.may_forget = true;
                self.forget();
            }
        }
    }

    /// The image, if its content is really there. The lease comes before the look.
    fn present(&self, reference: &Reference) -> Option<Image> {
        let record = self.index.find(reference)?;
        let lease = self.context.store.holds().take(&record.content.key());
        // One `stat`: cheaper than a thread to do it on, and the store is on a local disk.
        self.context.store.is_present(&record.content).then(|| {
            let mut image = image_of(&self.context, record, lease);
            image.reference = reference.to_string();
            image
        })
    }

    fn ensure(
        &mut self,
        reference: Reference,
        request: ImageRequest,
        reply: Reply<Result<Ensured, PullError>>,
    ) {
        let ImageRequest { asker, reference: image, policy, credentials } = request;
        let is_removed = self.is_busy(&reference.to_string());
        let present = match policy {
            PullPolicy::Always => None,
            // An image that is just being deleted is not there any more.
            PullPolicy::IfNotPresent | PullPolicy::Never if is_removed => None,
            PullPolicy::IfNotPresent | PullPolicy::Never => self.present(&reference),
        };
        // An image that may not be had answers as one that is not here: who may not have it does not learn
        // that it is here.
        let present = present.filter(|_| match asker {
            Asker::Operator => true,
            Asker::Pod => self.gives(&image, &reference, &credentials),
        });
        match (present, policy) {
            (Some(image), _) => {
                let _ = reply.send(Ok(Ensured { image, pull: None }));
            }
            (None, PullPolicy::Never) => {
                let _ = reply.send(Err(PullError::NeverPulled { image }));
            }
            (None, PullPolicy::Always | PullPolicy::IfNotPresent) => {
                self.pull(&image, PullKey { reference, credentials, asker }, reply);
            }
        }
    }

    /// Whether a pod gets an image that is here. `image` is its name as the pod has it.
    fn gives(&mut self, image: &str, reference: &Reference, credentials: &[Credential]) -> bool {
        let Some(record) = self.index.find(reference) else { return false };
        let secrets = self.context.secrets(reference, credentials);
        let claim = Claim { given: image, reference, secrets: &secrets };
        let verdict = judge(&self.context.verification, claim, &self.index.access(record));
        match verdict {
            Verdict::Given => true,
            Verdict::GivenAndLearned(right) => {
                let (name, digest) = (record.reference.clone(), record.digest.clone());
                self.learn(name, digest, right);
                true
            }
            Verdict::Unproven => {
                tracing::debug!(image, "nothing is known of this pod's right to the image");
                false
            }
        }
    }

    /// Has a right remembered. If that fails, it is found out again.
    fn learn(&mut self, reference: String, digest: Digest, right: SecretRight) {
        let (context, name) = (Arc::clone(&self.context), reference.clone());
        let abort = self
            .jobs
            .spawn(async move { Done::Learn(pull::learn(&context, &name, &digest, right).await) });
        self.running.insert(abort.id(), Job::Learn { reference });
    }

    fn pull(&mut self, image: &str, key: PullKey, reply: Reply<Result<Ensured, PullError>>) {
        if let Some(waiting) = self.pulls.get_mut(&key) {
            waiting.push(reply);
            return;
        }
        self.pulls.insert(key.clone(), vec![reply]);
        let here = self.index.find(&key.reference).cloned();
        let (context, slots) = (Arc::clone(&self.context), Arc::clone(&self.slots));
        let (image, job) = (image.to_owned(), Job::Pull(key.clone()));
        let abort = self.jobs.spawn(async move {
            let asked = Instant::now();
            // Never closed: it lives as long as the task.
            let Ok(_slot) = slots.acquire_owned().await else {
                return Done::Pull(Err(PullError::Stopping));
            };
            let waited = asked.elapsed();
            let started = Instant::now();
            let PullKey { reference, credentials, asker } = &key;
            let here = here.as_ref();
            let question = Wanted { image: &image, reference, credentials, asker: *asker, here };
            let stored = pull::pull(&context, question).await;
            Done::Pull(stored.map(|stored| Pulled { stored, took: started.elapsed(), waited }))
        });
        self.running.insert(abort.id(), job);
    }

    /// Whether a removal or import has the reference for itself.
    fn is_busy(&self, reference: &str) -> bool {
        self.running.values().any(|job| match job {
            Job::Pull(_) | Job::Learn { .. } => false,
            Job::Remove { reference: other, .. } | Job::Import { reference: other, .. } => {
                other == reference
            }
        })
    }

    fn is_pulled(&self, reference: &str) -> bool {
        self.pulls.keys().any(|key| key.reference.to_string() == reference)
    }

    fn remove(&mut self, reference: &Reference, reply: Reply<Result<(), RemoveError>>) {
        let Some(record) = self.index.find(reference).cloned() else {
            let _ = reply.send(Err(RemoveError::NotFound { reference: reference.to_string() }));
            return;
        };
        let name = record.reference.clone();
        let is_held = self.context.store.holds().is_held(&record.content.key());
        if is_held || self.is_busy(&name) || self.is_pulled(&name) {
            let _ = reply.send(Err(RemoveError::InUse { reference: name }));
            return;
        }
        self.start_removal(name, Some(reply));
    }

    fn start_removal(&mut self, reference: String, reply: Option<Reply<Result<(), RemoveError>>>) {
        // Whoever pulls it from now on waits until it is gone: what a pull writes is not removed by this.
        let Some(guard) = self.context.store.try_lock(&lock_name(&reference)) else {
            if let Some(reply) = reply {
                let _ = reply.send(Err(RemoveError::InUse { reference }));
            }
            return;
        };
        let Some((record, is_last)) = self.index.remove(&reference) else { return };
        let store = self.context.store.clone();
        let job = Job::Remove { reference: reference.clone(), reply };
        let abort = self.jobs.spawn(async move {
            let removed = spawn_blocking(move || {
                // The record first: from here on the image does not exist.
                store.remove_record(&record.reference)?;
                if is_last {
                    store.discard(&record.content.key())?;
                }
                Ok(())
            });
            let removed = flatten(removed.await);
            drop(guard);
            Done::Remove(removed.map_err(|source| RemoveError::Io { reference, source }))
        });
        self.running.insert(abort.id(), job);
    }

    fn import(
        &mut self,
        source: PathBuf,
        reference: Reference,
        reply: Reply<Result<Image, ImportError>>,
    ) {
        let name = reference.to_string();
        if self.is_busy(&name) || self.is_pulled(&name) {
            let _ = reply.send(Err(ImportError::Busy { reference: name }));
            return;
        }
        let context = Arc::clone(&self.context);
        let job = Job::Import { reference: name, source: source.clone(), reply };
        let abort = self.jobs.spawn(async move {
            Done::Import(import::import(&context, &source, &reference).await)
        });
        self.running.insert(abort.id(), job);
    }

    /// Deletes what tags left behind and nobody holds.
    fn forget(&mut self) {
        if !self.may_forget {
            return;
        }
        let holds = Arc::clone(self.context.store.holds());
        for reference in self.index.forgotten(|key| holds.is_held(key)) {
            if !self.is_busy(&reference) && !self.is_pulled(&reference) {
                tracing::debug!(image = reference, "forgetting an image that its tag left behind");
                self.start_removal(reference, None);
            }
        }
    }

    fn finish(&mut self, done: Result<(Id, Done), JoinError>) {
        let id = match &done {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(job) = self.running.remove(&id) else { return };
        match (job, done.map(|(_, done)| done)) {
            (Job::Pull(key), Ok(Done::Pull(result))) => self.finish_pull(&key, result),
            (Job::Remove { reference, reply }, Ok(Done::Remove(result))) => {
                finish_removal(&reference, reply, result);
            }
            (Job::Import { reply, .. }, Ok(Done::Import(result))) => {
                let image = result.map(|stored| self.keep(stored).0);
                let _ = reply.send(image);
            }
            (Job::Learn { .. }, Ok(Done::Learn(Ok(learned)))) => {
                if let Some((record, _guard)) = learned {
                    self.index.insert(record);
                }
            }
            (Job::Learn { reference }, Ok(Done::Learn(Err(error)))) => {
                tracing::warn!(image = reference, %error, "cannot remember who may have an image");
            }
            (Job::Learn { reference }, _) => {
                tracing::warn!(image = reference, "remembering who may have an image failed");
            }
            (Job::Pull(key), _) => {
                let image = key.reference.to_string();
                self.finish_pull(&key, Err(PullError::Died { image }));
            }
            (Job::Remove { reference, reply }, _) => {
                let died = RemoveError::Died { reference: reference.clone() };
                finish_removal(&reference, reply, Err(died));
            }
            (Job::Import { source, reply, .. }, _) => {
                let _ = reply.send(Err(ImportError::Died { path: source }));
            }
        }
        self.forget();
    }

    fn finish_pull(&mut self, key: &PullKey, result: Result<Pulled, PullError>) {
        let waiting = self.pulls.remove(key).unwrap_or_default();
        let result = result.map(|Pulled { stored, took, waited }| {
            let (image, bytes) = self.keep(stored);
            Ensured { image, pull: Some(PullReport { took, waited, bytes }) }
        });
        for reply in waiting {
            let _ = reply.send(result.clone());
        }
    }

    /// Takes what a job stored into the index.
    fn keep(&mut self, stored: Stored) -> (Image, u64) {
        let Stored { record, left_behind, lease, transferred, guard: _guard } = stored;
        let image = image_of(&self.context, &record, lease);
        self.index.insert(record);
        if let Some(old) = left_behind {
            self.index.insert(old);
        }
        (image, transferred)
    }
}

fn finish_removal(
    reference: &str,
    reply: Option<Reply<Result<(), RemoveError>>>,
    result: Result<(), RemoveError>,
) {
    match (reply, result) {
        (Some(reply), result) => {
            let _ = reply.send(result);
        }
        (None, Ok(())) => {}
        // Nobody waits for this one; what is left is swept at the next open.
        (None, Err(error)) => {
            tracing::warn!(
                image = reference,
                error = &error as &dyn std::error::Error,
                "cannot forget an image"
            );
        }
    }
}

fn image_of(context: &Context, record: &Record, lease: Lease) -> Image {
    let path = context.store.path(&record.content.key());
    let kept = match &record.content {
        StoredContent::Module { blob, .. } => Content::Module { path, digest: blob.to_string() },
        StoredContent::RootFs { .. } => Content::RootFs { path },
    };
    Image {
        reference: record.reference.clone(),
        id: record.id(),
        digest: record.digest.to_string(),
        bytes: record.bytes,
        config: record.config.clone(),
        content: kept,
        lease,
    }
}
