//! Bringing in an image from a file or a directory, without a registry.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::access::Right;
use crate::artifact::{self, Artifact, ArtifactError};
use crate::assemble::{Assembly, ContentError, Source, flatten};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::image::ProgramConfig;
use crate::layout::{Layout, LayoutError};
use crate::pull::{Context, Stored, known, lock_name, write};
use crate::reference::{Reference, ReferenceError};
use crate::store::Store;
use crate::store::holds::Lease;
use crate::store::record::{Fetched, Record, StoredContent};

/// Why an image could not be brought in.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ImportError {
    #[error("{given:?} is not an image reference")]
    InvalidReference {
        given: String,
        #[source]
        source: ReferenceError,
    },
    #[error("an image that is named by digest cannot be imported; name it by tag")]
    ByDigest,
    #[error("{} cannot be imported", path.display())]
    Artifact {
        path: PathBuf,
        #[source]
        source: ArtifactError,
    },
    #[error("{} cannot be imported", path.display())]
    Layout {
        path: PathBuf,
        #[source]
        source: LayoutError,
    },
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("{} changed while it was read", path.display())]
    Changed { path: PathBuf },
    #[error("{reference:?} is being removed, pulled or imported at the moment")]
    Busy { reference: String },
    #[error("the import of {} died", path.display())]
    Died { path: PathBuf },
    #[error("the agent is stopping")]
    Stopping,
}

/// Imports the file or OCI layout at `path`.
pub(crate) async fn import(
    context: &Context,
    path: &Path,
    reference: &Reference,
) -> Result<Stored, ImportError> {
    let image = reference.to_string();
    let guard = context.store.lock(&lock_name(&image)).await;
    let known = known(context, &image, reference).await?;
    let is_directory = tokio::fs::metadata(path).await.is_ok_and(|metadata| metadata.is_dir());
    let (fetched, lease, transferred) = if is_directory {
        layout(context, &image, path, reference).await?
    } else {
        file(context, &image, path).await?
    };
    let unchanged = known.as_ref().filter(|known| known.digest == fetched.digest);
    let mut access = unchanged.map(|known| known.access.clone()).unwrap_or_default();
    access.add(Right::Preloaded);
    let record = Record::new(image.clone(), reference.name(), fetched, access);
    let (record, left_behind) = write(context, &image, record, known).await?;
    Ok(Stored { record, left_behind, lease, transferred, guard })
}

async fn layout(
    context: &Context,
    image: &str,
    path: &Path,
    reference: &Reference,
) -> Result<(Fetched, Lease, u64), ImportError> {
    let (owned, tag, name) =
        (path.to_owned(), reference.tag().unwrap_or_default().to_owned(), image.to_owned());
    let opened = spawn_blocking(move || {
        Ok(Layout::open(&owned).and_then(|layout| Ok((layout.root(&tag, &name)?, layout))))
    });
    let (root, layout) = flatten(opened.await)
        .map_err(|source| store_error(image, source))?
        .map_err(|source| ImportError::Layout { path: path.to_owned(), source })?;
    let mut assembly = Assembly {
        image,
        source: Source::Layout(layout),
        store: &context.store,
        limits: &context.limits,
        bytes: 0,
        transferred: 0,
    };
    let (fetched, lease) = assembly.run(root).await?;
    Ok((fetched, lease, assembly.transferred))
}

async fn file(
    context: &Context,
    image: &str,
    path: &Path,
) -> Result<(Fetched, Lease, u64), ImportError> {
    let (owned, limit) = (path.to_owned(), context.limits.blob_bytes);
    let described = spawn_blocking(move || Ok(artifact::describe(&owned, limit))).await;
    let artifact = flatten(described)
        .map_err(|source| store_error(image, source))?
        .map_err(|source| ImportError::Artifact { path: path.to_owned(), source })?;
    let stored = StoredContent::Module { blob: artifact.layer.clone(), size: artifact.size };
    let key = stored.key();
    let lease = context.store.holds().take(&key);
    let _fetching = context.store.lock(&format!("{key:?}")).await;
    let fetched = Fetched {
        digest: Digest::of(&artifact.manifest),
        bytes: artifact.size + (artifact.config.len() + artifact.manifest.len()) as u64,
        config: ProgramConfig::default(),
        content: stored,
    };
    let size = artifact.size;
    if !context.store.is_present(&fetched.content) {
        let (store, owned) = (context.store.clone(), path.to_owned());
        let copied = spawn_blocking(move || copy(&store, &owned, &artifact));
        let is_same = flatten(copied.await).map_err(|source| store_error(image, source))?;
        if !is_same {
            return Err(ImportError::Changed { path: path.to_owned() });
        }
    }
    Ok((fetched, lease, size))
}

/// Copies the file into the store. False if it is no longer the file that was described.
fn copy(store: &Store, path: &Path, artifact: &Artifact) -> io::Result<bool> {
    let mut copy = store.temporary_file()?;
    io::copy(&mut File::open(path)?.take(artifact.size), copy.as_file_mut())?;
    let file = copy.as_file_mut();
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    let is_same = hasher.finish() == artifact.layer;
    if is_same {
        store.publish_blob(copy, &artifact.layer)?;
    }
    Ok(is_same)
}

fn store_error(image: &str, source: io::Error) -> ContentError {
    ContentError::Store { image: image.to_owned(), source: Arc::new(source) }
}
