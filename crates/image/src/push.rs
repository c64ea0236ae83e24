//! Pushing a program to a registry, as a CNCF Wasm artifact.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::artifact::{self, Artifact, ArtifactError};
use crate::assemble::flatten;
use crate::credential::{self, Credential};
use crate::digest::Digest;
use crate::docker_config::DockerConfigError;
use crate::manifest::OCI_MANIFEST;
use crate::pull::Context;
use crate::reference::{Reference, ReferenceError};
use crate::registry::error::RequestError;
use crate::registry::http::{Access, Http, Purpose};
use crate::registry::upload::{self, BlobSource};

/// What was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The canonical reference.
    pub reference: String,
    /// `repository@sha256:…`: what to put into a manifest that is to stay the same.
    pub id: String,
    /// The digest in `id`.
    pub digest: String,
    /// Size of the image in bytes.
    pub bytes: u64,
}

/// Why a program could not be pushed.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum PushError {
    #[error("{given:?} is not an image reference")]
    InvalidReference {
        given: String,
        #[source]
        source: ReferenceError,
    },
    #[error("the digest of an image follows from its content; push to a tag")]
    ByDigest,
    #[error("{} cannot be pushed", path.display())]
    Artifact {
        path: PathBuf,
        #[source]
        source: ArtifactError,
    },
    #[error("cannot log in to push {reference:?}")]
    DockerConfig {
        reference: String,
        #[source]
        source: DockerConfigError,
    },
    #[error("cannot push {reference:?}")]
    Request {
        reference: String,
        #[source]
        source: RequestError,
    },
    #[error("{reference:?} was not pushed after {limit:?}")]
    TimedOut { reference: String, limit: Duration },
}

impl PushError {
    /// Whether the same request may succeed later, with nothing changed here.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Request { source, .. } => source.is_transient(),
            Self::DockerConfig { .. } | Self::TimedOut { .. } => true,
            Self::InvalidReference { .. } | Self::ByDigest | Self::Artifact { .. } => false,
        }
    }
}

/// Pushes the program at `path`. Mirrors play no part.
pub(crate) async fn push(
    context: &Context,
    path: &Path,
    reference: &Reference,
    credentials: &[Credential],
) -> Result<Pushed, PushError> {
    if reference.digest().is_some() {
        return Err(PushError::ByDigest);
    }
    let (owned, limit) = (path.to_owned(), context.limits.blob_bytes);
    let described = spawn_blocking(move || Ok(artifact::describe(&owned, limit))).await;
    let artifact = flatten(described)
        .unwrap_or_else(|error: io::Error| Err(ArtifactError::Read(Arc::new(error))))
        .map_err(|source| PushError::Artifact { path: path.to_owned(), source })?;
    let name = reference.to_string();
    let failed = |source| PushError::Request { reference: name.clone(), source };
    let credentials = context
        .credentials(reference, credentials)
        .await
        .map_err(|source| PushError::DockerConfig { reference: name.clone(), source })?;
    let endpoint = context.rules.origin(reference).map_err(RequestError::from).map_err(failed)?;
    let fitting = credential::matching(&credentials, reference.registry(), reference.repository());
    let mut logins: Vec<_> = fitting.into_iter().cloned().map(Some).collect();
    if logins.is_empty() {
        logins.push(None);
    }

    let limit = context.limits.total;
    let work = async {
        let mut result = Ok(());
        for login in logins {
            let mut access = Access::new(endpoint.clone(), Purpose::Push, login);
            result = send(&context.http, &mut access, path, reference, &artifact).await;
            if !matches!(result, Err(RequestError::Denied { .. })) {
                break;
            }
        }
        result
    };
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| PushError::TimedOut { reference: name.clone(), limit })?
        .map_err(failed)?;

    let digest = Digest::of(&artifact.manifest);
    Ok(Pushed {
        reference: name,
        id: reference.with_digest(digest.clone()).to_string(),
        digest: digest.to_string(),
        bytes: artifact.size + (artifact.config.len() + artifact.manifest.len()) as u64,
    })
}

async fn send(
    http: &Http,
    access: &mut Access,
    path: &Path,
    reference: &Reference,
    artifact: &Artifact,
) -> Result<(), RequestError> {
    let config = BlobSource::Bytes(&artifact.config);
    upload::blob(http, access, &Digest::of(&artifact.config), config).await?;
    let layer = BlobSource::File { path, size: artifact.size };
    upload::blob(http, access, &artifact.layer, layer).await?;
    // Last: a registry refuses a manifest whose blobs it lacks.
    upload::manifest(http, access, reference, OCI_MANIFEST, &artifact.manifest).await
}
