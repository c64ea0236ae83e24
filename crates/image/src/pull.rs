//! One pull, from reference to record.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;

use crate::access::{Right, SecretRight};
use crate::assemble::{Assembly, ContentError, Source, flatten};
use crate::credential::{self, Credential};
use crate::digest::Digest;
use crate::docker_config::{self, DockerConfigError};
use crate::limits::PullLimits;
use crate::reference::{Reference, ReferenceError};
use crate::registry::fetch::Session;
use crate::registry::http::Http;
use crate::registry::rules::RegistryRules;
use crate::request::Asker;
use crate::store::Store;
use crate::store::holds::Lease;
use crate::store::record::{Fetched, Record};
use crate::verification::VerificationPolicy;

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
    pub verification: VerificationPolicy,
}

impl Context {
    /// The Secrets among the credentials that would be shown to a place that has the image.
    pub(crate) fn secrets(
        &self,
        reference: &Reference,
        credentials: &[Credential],
    ) -> Vec<SecretRight> {
        // A mirror without an address is told when it is asked.
        let places = self.rules.endpoints(reference).unwrap_or_default();
        let fitting = places
            .iter()
            .flat_map(|place| credential::matching(credentials, &place.host, &place.repository));
        fitting.filter_map(Credential::secret_right).collect()
    }

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

/// One image to be pulled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// As it was asked for, for messages.
    pub image: &'a str,
    pub reference: &'a Reference,
    pub credentials: &'a [Credential],
    pub asker: Asker,
    /// The same image as it is here already, maybe under another tag.
    pub here: Option<&'a Record>,
}

/// Pulls an image. What is here already is not fetched again, but the registry is asked for the manifest, so
/// that a pull that succeeds proves that its credentials may have the image.
pub(crate) async fn pull(context: &Context, wanted: Wanted<'_>) -> Result<Stored, PullError> {
    let limit = context.limits.total;
    let Had { record, known, lease, transferred, guard } =
        tokio::time::timeout(limit, fetch(context, wanted))
            .await
            .map_err(|_| PullError::TimedOut { image: wanted.image.to_owned(), limit })??;
    // Not broken off: what is half written then would appear after the answer.
    let (record, left_behind) = write(context, wanted.image, record, known).await?;
    Ok(Stored { record, left_behind, lease, transferred, guard })
}

/// An image whose content is here and which no record names yet.
struct Had {
    record: Record,
    /// What the reference meant until now.
    known: Option<Record>,
    lease: Lease,
    transferred: u64,
    guard: OwnedMutexGuard<()>,
}

/// The name of the lock on a reference.
pub(crate) fn lock_name(reference: &str) -> String {
    format!("reference {reference}")
}

async fn fetch(context: &Context, wanted: Wanted<'_>) -> Result<Had, PullError> {
    let Wanted { image, reference, credentials, asker, here } = wanted;
    let guard = context.store.lock(&lock_name(&reference.to_string())).await;
    let known = known(context, image, reference).await?;
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
    let unchanged = known.as_ref().filter(|known| known.digest == root.digest);
    let mut access = unchanged.map(|known| known.access.clone()).unwrap_or_default();
    let (fetched, lease) = match unchanged.or(here.filter(|here| here.digest == root.digest)) {
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
    access.add(match asker {
        Asker::Pod => assembly.source.right(),
        Asker::Operator => Right::Preloaded,
    });
    let record = Record::new(reference.to_string(), reference.name(), fetched, access);
    let transferred = assembly.transferred;
    Ok(Had { record, known, lease, transferred, guard })
}

/// What a reference means so far. The caller has it for itself.
pub(crate) async fn known(
    context: &Context,
    image: &str,
    reference: &Reference,
) -> Result<Option<Record>, ContentError> {
    let (store, name) = (context.store.clone(), reference.to_string());
    let read = spawn_blocking(move || store.read_record(&name)).await;
    flatten(read).map_err(|source: io::Error| ContentError::Store {
        image: image.to_owned(),
        source: Arc::new(source),
    })
}

/// Remembers a right to the image that a reference means, if that is still the one with `digest`.
pub(crate) async fn learn(
    context: &Context,
    reference: &str,
    digest: &Digest,
    right: SecretRight,
) -> io::Result<Option<(Record, OwnedMutexGuard<()>)>> {
    let guard = context.store.lock(&lock_name(reference)).await;
    let (store, reference, digest) = (context.store.clone(), reference.to_owned(), digest.clone());
    let written = spawn_blocking(move || {
        let known = store.read_record(&reference)?;
        let Some(mut record) = known.filter(|known| known.digest == digest) else {
            return Ok(None);
        };
        record.access.add(Right::Secret(right));
        store.write_record(&record)?;
        Ok(Some(record))
    });
    Ok(flatten(written.await)?.map(|record| (record, guard)))
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
        // First the old under its new name: at no time is an image in use without a record. One that was
        // pulled under that name stays as it is.
        let left_behind = match left_behind {
            Some(old) if store.read_record(&old.reference)?.is_none() => {
                store.write_record(&old)?;
                Some(old)
            }
            Some(_) | None => None,
        };
        store.write_record(&record)?;
        Ok((record, left_behind))
    });
    flatten(written.await).map_err(|source: io::Error| ContentError::Store {
        image: image.to_owned(),
        source: Arc::new(source),
    })
}
