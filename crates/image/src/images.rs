//! The handle through which images are asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::credential::Credential;
use crate::image::Image;
use crate::import::ImportError;
use crate::index::ImageSummary;
use crate::limits::PullLimits;
use crate::pull::{Context, PullError};
use crate::push::{self, PushError, Pushed};
use crate::reference::Reference;
use crate::registry::http::Http;
use crate::registry::rules::RegistryRules;
use crate::remove::RemoveError;
use crate::request::{Ensured, ImageRequest};
use crate::store::{OpenError, Store};
use crate::task::{ImagesTask, Request};
use crate::verification::VerificationPolicy;

/// Requests that may queue up before a caller waits: the pods of one full node, each
/// starting at once (kubelet's default `maxPods` is 110).
const QUEUE: usize = 128;

/// Where images are kept and how they are fetched.
#[derive(Clone, Debug)]
pub struct ImagesConfig {
    /// The store's own directory, on a local disk. Made if it is missing, for the owner only.
    pub root: PathBuf,
    /// Docker's `config.json`, read for each pull.
    pub docker_config: Option<PathBuf>,
    /// Mirrors, plain HTTP, private certificate authorities.
    pub registries: RegistryRules,
    /// Sizes, times and repetitions.
    pub limits: PullLimits,
    /// Which images that are here pods get without their credentials being verified.
    pub verification: VerificationPolicy,
}

/// Asks for images. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Images {
    context: Arc<Context>,
    requests: mpsc::Sender<Request>,
}

/// Opens the store. One process at a time may have it open.
///
/// Blocks while it sweeps what a crash left.
///
/// # Errors
///
/// [`OpenError`] if another process has the store, the disk fails, or the configuration of registries is wrong.
pub fn open(config: ImagesConfig) -> Result<(Images, ImagesTask), OpenError> {
    let ImagesConfig { root, docker_config, registries: rules, limits, verification } = config;
    rules.check().map_err(|error| OpenError::Rules { what: error.to_string() })?;
    let http = Http::new(&rules, &limits)?;
    let (store, records) = Store::open(&root)?;
    let context = Arc::new(Context { store, http, rules, limits, docker_config, verification });
    let (sender, requests) = mpsc::channel(QUEUE);
    let task = ImagesTask::new(Arc::clone(&context), records, requests);
    Ok((Images { context, requests: sender }, task))
}

impl Images {
    /// Returns the image, pulling it if the policy says so. Callers that want the same image with the same
    /// credentials share one download; it goes on if a caller stops waiting. A pod that wants an image that is
    /// here, and whose right to it is not known, has to get it from the registry like one that is not here.
    ///
    /// # Errors
    ///
    /// [`PullError::Stopping`] once the agent stops; otherwise what the registry or the disk
    /// reported. A failure is not remembered: the next call asks again.
    pub async fn ensure(&self, request: ImageRequest) -> Result<Ensured, PullError> {
        let reference: Reference = request.reference.parse().map_err(|source| {
            PullError::InvalidReference { given: request.reference.clone(), source }
        })?;
        self.ask(|reply| Request::Ensure { reference, request, reply })
            .await
            .unwrap_or(Err(PullError::Stopping))
    }

    /// All images, in no particular order. Empty once the agent stops.
    pub async fn list(&self) -> Vec<ImageSummary> {
        self.ask(|reply| Request::List { reply }).await.unwrap_or_default()
    }

    /// The image of a reference or id (`repository@digest`), if it is here. It is held by the
    /// answer: so a caller that comes back after a restart takes hold of what it uses.
    pub async fn inspect(&self, reference: &str) -> Option<Image> {
        let reference = reference.parse().ok()?;
        self.ask(|reply| Request::Inspect { reference, reply }).await.flatten()
    }

    /// Removes a reference, and its content if no other reference has it.
    ///
    /// # Errors
    ///
    /// [`RemoveError::InUse`] while somebody holds the image or it is being pulled.
    pub async fn remove(&self, reference: &str) -> Result<(), RemoveError> {
        let unknown = || RemoveError::NotFound { reference: reference.to_owned() };
        let parsed: Reference = reference.parse().map_err(|_| unknown())?;
        self.ask(|reply| Request::Remove { reference: parsed, reply })
            .await
            .unwrap_or(Err(RemoveError::Stopping))
    }

    /// Brings in a `.wasm` file, or an OCI image layout directory, under a reference.
    ///
    /// # Errors
    ///
    /// [`ImportError`] if it is not WebAssembly, or not what its digests say.
    pub async fn import(&self, source: &Path, reference: &str) -> Result<Image, ImportError> {
        let parsed: Reference = reference.parse().map_err(|source| {
            ImportError::InvalidReference { given: reference.to_owned(), source }
        })?;
        if parsed.digest().is_some() {
            return Err(ImportError::ByDigest);
        }
        let source = source.to_owned();
        self.ask(|reply| Request::Import { source, reference: parsed, reply })
            .await
            .unwrap_or(Err(ImportError::Stopping))
    }

    /// Pushes a `.wasm` file to a registry, as a CNCF Wasm artifact. `credentials` are tried
    /// before those of the Docker configuration. Works without the task.
    ///
    /// # Errors
    ///
    /// [`PushError`] if the file is not WebAssembly, or the registry does not take it.
    pub async fn push(
        &self,
        file: &Path,
        reference: &str,
        credentials: &[Credential],
    ) -> Result<Pushed, PushError> {
        let parsed = reference.parse().map_err(|source| PushError::InvalidReference {
            given: reference.to_owned(),
            source,
        })?;
        push::push(&self.context, file, &parsed, credentials).await
    }

    /// Allows the store to delete images whose tag has moved on, as soon as nobody holds them.
    /// To be called once after start, when all that use images have taken hold of them again.
    pub async fn sweep(&self) {
        // Nothing is left to sweep for a task that has ended.
        let _ = self.requests.send(Request::Sweep).await;
    }

    /// None once the task has ended.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.ok()?;
        answer.await.ok()
    }
}
