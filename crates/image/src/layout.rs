//! An OCI image layout: a registry's content as a directory.
//!
//! Checked as strictly as what comes over the network. Blocks.
//! Source: OCI image specification, `image-layout.md`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::{Digest, DigestError, Hasher};
use crate::limits::DOCUMENT_LIMIT;
use crate::manifest::{Descriptor, Document, DocumentError, OCI_INDEX};
use crate::registry::fetch::RawDocument;

/// Names an entry of the layout's index.
const NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// A layout on disk.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    path: PathBuf,
}

/// Why a layout cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum LayoutError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("{} is not an OCI image layout", path.display())]
    NotALayout { path: PathBuf },
    #[error("the layout's index cannot be used")]
    Index(#[from] DocumentError),
    #[error("the layout holds no image")]
    Empty,
    #[error("the layout holds {count} images, and none is named {name:?}")]
    Ambiguous { count: usize, name: String },
    #[error("the layout's blob {expected} has the digest {actual}")]
    Mismatch { expected: Digest, actual: Digest },
    #[error("the layout's blob {digest} has not the {expected} bytes that its manifest says")]
    Size { digest: Digest, expected: u64 },
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Layout {
    /// Opens the layout at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, LayoutError> {
        let layout = Self { path: path.to_owned() };
        if !path.join("oci-layout").is_file() {
            return Err(LayoutError::NotALayout { path: path.to_owned() });
        }
        Ok(layout)
    }

    /// The image that a tag means: the only one, or the one of that name. Several entries
    /// without a name are one image for several platforms.
    pub(crate) fn root(&self, tag: &str, name: &str) -> Result<RawDocument, LayoutError> {
        let path = self.path.join("index.json");
        let bytes = read(&path, DOCUMENT_LIMIT)?;
        let Document::Index(index) = Document::parse(&bytes, Some(OCI_INDEX))? else {
            return Err(LayoutError::NotALayout { path: self.path.clone() });
        };
        let named = |entry: &&Descriptor| {
            let given = entry.annotations.as_ref().and_then(|all| all.get(NAME_ANNOTATION));
            given.is_some_and(|given| given == tag || given == name)
        };
        let entries = &index.manifests;
        let has_platforms = entries.iter().all(|entry| entry.platform.is_some());
        match (entries.iter().find(named), entries.as_slice()) {
            (_, []) => Err(LayoutError::Empty),
            (Some(entry), _) | (None, [entry]) => self.document(entry),
            (None, _) if has_platforms => Ok(RawDocument {
                digest: Digest::of(&bytes),
                bytes,
                content_type: Some(OCI_INDEX.to_owned()),
            }),
            (None, many) => Err(LayoutError::Ambiguous { count: many.len(), name: tag.to_owned() }),
        }
    }

    /// Reads a manifest or index.
    pub(crate) fn document(&self, entry: &Descriptor) -> Result<RawDocument, LayoutError> {
        let bytes = read(&self.blob_path(&entry.digest), DOCUMENT_LIMIT)?;
        let mut hasher = Hasher::new(entry.digest.algorithm());
        hasher.update(&bytes);
        check(entry, bytes.len() as u64, hasher)?;
        let content_type = Some(entry.media_type.clone()).filter(|kind| !kind.is_empty());
        Ok(RawDocument { digest: entry.digest.clone(), bytes, content_type })
    }

    /// Copies a blob into `file`.
    pub(crate) fn blob(&self, blob: &Descriptor, mut file: &File) -> Result<(), LayoutError> {
        let path = self.blob_path(&blob.digest);
        let failed = |source| LayoutError::Read { path: path.clone(), source: Arc::new(source) };
        let mut from = File::open(&path).map_err(failed)?.take(blob.size.saturating_add(1));
        let mut hasher = Hasher::new(blob.digest.algorithm());
        let mut buffer = vec![0; 256 << 10];
        let mut size = 0;
        loop {
            let count = from.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(failed)?;
            size += count as u64;
        }
        check(blob, size, hasher)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, LayoutError> {
    let failed = |source| LayoutError::Read { path: path.to_owned(), source: Arc::new(source) };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

fn check(blob: &Descriptor, size: u64, hasher: Hasher) -> Result<(), LayoutError> {
    if size != blob.size {
        return Err(LayoutError::Size { digest: blob.digest.clone(), expected: blob.size });
    }
    let actual = hasher.finish();
    if actual == blob.digest {
        Ok(())
    } else {
        Err(LayoutError::Mismatch { expected: blob.digest.clone(), actual })
    }
}
