//! One pull, from reference to record.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;

use crate::assemble::{Assembly, ContentError, Source, flatten};
use crate::credential::Credential;
use crate::docker_config::{self, DockerConfigError};
use crate::limits::PullLimits;
use crate::reference::{Reference, ReferenceError};
use crate::registry::fetch::Session;
use crate::registry::http::Http;
use crate::registry::rules::RegistryRules;
use crate::store::Store;
use crate::store::holds::Lease;
use crate::store::record::{Fetched, Record};

/// Why an image could not be made available. `image` is as it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum PullError {
    #[error("{given:?} is not an image reference")]
    InvalidReference {
        given: String,
        #[source]
        source: ReferenceError,
    },
    #[error("image {image:?} is not present with pull policy of Never")]
    NeverPulled { image: String },
    #[error("cannot log in to pull image {image:?}")]
    DockerConfig {
        image: String,
        #[source]
        source: DockerConfigError,
    },
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("image {image:?} was not there after {limit:?}")]
    TimedOut { image: String, limit: Duration },
    #[error("the download of image {image:?} died")]
    Died { image: String },
    #[error("the agent is stopping")]
    Stopping,
}

impl PullError {
    /// Whether the same request may succeed later, with nothing changed here.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Content(error) => error.is_transient(),
            Self::DockerConfig { .. } | Self::TimedOut { .. } | Self::Stopping => true,
            // Whether somebody brings the image is not for a pull to say; a panic would come back.
            Self::InvalidReference { .. } | Self::NeverPulled { .. } | Self::Died { .. } => false,
        }
    }

    /// The waiting reason users see in `kubectl get pods`.
    ///
    /// Source: kubelet, `pkg/kubelet/images/types.go`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidReference { .. } => "InvalidImageName",
            Self::NeverPulled { .. } => "ErrImageNeverPull",
            Self::Content(ContentError::Request { source, .. }) if source.is_unavailable() => {
                "RegistryUnavailable"
            }
            Self::Content(_)
            | Self::DockerConfig { .. }
            | Self::TimedOut { .. }
            | Self::Died { .. }
            | Self::Stopping => "ErrImagePull",
        }
    }
}

/// What every job of the store works with.
#[derive(Debug)]
pub(crate) struct Context {
    pub store: Store,
    pub http: Http,
    pub rules: RegistryRules,
    pub limits: PullLimits,
    pub docker_config: Option<PathBuf>,
}

impl Context {
    /// The given credentials, then those of the Docker configuration.
    pub(crate) async fn credentials(
        &self,
        reference: &Reference,
        given: &[Credential],
    ) -> Result<Vec<Credential>, DockerConfigError> {
        let mut all = given.to_vec();
        if let Some(path) = &self.docker_config {
            all.extend(docker_config::credentials(path, reference.registry()).await?);
        }
        Ok(all)
    }
}

/// What a pull or import came to. Its guard keeps other jobs from the same reference until
/// the index knows of it.
#[derive(Debug)]
pub(crate) struct Stored {
    pub record: Record,
    /// The image that the reference meant before, if its tag moved.
    pub left_behind: Option<Record>,
    pub lease: Lease,
    /// Bytes of layers that were fetched.
    pub transferred: u64,
    pub guard: OwnedMutexGuard<()>,
}

/// Pulls an image. `known` is what the reference meant so far.
pub(crate) async fn pull(
    context: &Context,
    image: &str,
    reference: &Reference,
    credentials: &[Credential],
    known: Option<&Record>,
) -> Result<Stored, PullError> {
    let limit = context.limits.total;
    let work = pull_unbounded(context, image, reference, credentials, known);
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| PullError::TimedOut { image: image.to_owned(), limit })?
}

async fn pull_unbounded(
    context: &Context,
    image: &str,
    reference: &Reference,
    credentials: &[Credential],
    known: Option<&Record>,
) -> Result<Stored, PullError> {
    let guard = context.store.lock(&format!("reference {reference}")).await;
    let credentials = context
        .credentials(reference, credentials)
        .await
        .map_err(|source| PullError::DockerConfig { image: image.to_owned(), source })?;
    let failed = |source| ContentError::Request { image: image.to_owned(), source };
    let mut session =
        Session::new(&context.http, &context.rules, reference, &credentials).map_err(failed)?;
    let root = session
        .document(reference.tag().unwrap_or_default(), reference.digest())
        .await
        .map_err(failed)?;
    let mut assembly = Assembly {
        image,
        source: Source::Registry(session),
        store: &context.store,
        limits: &context.limits,
        bytes: 0,
        transferred: 0,
    };

    // Nothing else has to be asked if the tag still means what it meant.
    let unchanged = known.filter(|known| known.digest == root.digest);
    let (fetched, lease) = match unchanged {
        Some(known) => {
            let lease = context.store.holds().take(&known.content.key());
            if context.store.is_present(&known.content) {
                let Record { digest, bytes, config, content, .. } = known.clone();
                (Fetched { digest, bytes, config, content }, lease)
            } else {
                assembly.run(root).await?
            }
        }
        None => assembly.run(root).await?,
    };
    let record = Record::new(reference.to_string(), reference.name(), fetched);
    let transferred = assembly.transferred;
    let (record, left_behind) = write(context, image, record, known.cloned()).await?;
    Ok(Stored { record, left_behind, lease, transferred, guard })
}

/// Makes the image exist. What the reference meant before goes on under its digest, as long as
/// somebody uses it.
pub(crate) async fn write(
    context: &Context,
    image: &str,
    record: Record,
    known: Option<Record>,
) -> Result<(Record, Option<Record>), ContentError> {
    let left_behind = known
        .filter(|known| known.digest != record.digest && known.reference != known.id())
        .map(|known| known.left_behind());
    let store = context.store.clone();
    let written = spawn_blocking(move || {
        // First the old under its new name: at no time is an image in use without a record.
        if let Some(old) = &left_behind {
            store.write_record(old)?;
        }
        store.write_record(&record)?;
        Ok((record, left_behind))
    });
    flatten(written.await).map_err(|source: io::Error| ContentError::Store {
        image: image.to_owned(),
        source: Arc::new(source),
    })
}
