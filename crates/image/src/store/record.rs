//! What is written about each stored image: one small JSON file per reference.
//!
//! A record is the last thing written of an image and the first thing removed, so an
//! image without a record does not exist.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::holds::ContentKey;
use crate::access::Access;
use crate::digest::Digest;
use crate::image::ProgramConfig;

/// Version of the file. A reader that finds another one ignores the file, and the
/// image is pulled again.
const VERSION: u32 = 1;

/// One image under one reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    version: u32,
    /// The canonical reference.
    pub reference: String,
    /// Registry and repository.
    pub name: String,
    /// What the reference meant: the digest of the index, or of the manifest if there is none.
    pub digest: Digest,
    /// Size of the image's documents and layers as transferred.
    pub bytes: u64,
    pub pulled_at: Timestamp,
    /// The tag moved on, and only those that still use this image keep it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dangling: bool,
    /// Who may have it without the registry being asked.
    #[serde(default)]
    pub access: Access,
    pub config: ProgramConfig,
    pub content: StoredContent,
}

/// Where the content is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(crate) enum StoredContent {
    /// One Wasm blob.
    Module { blob: Digest, size: u64 },
    /// A root file system, by its manifest's digest.
    RootFs { root: Digest },
}

impl StoredContent {
    pub(crate) fn key(&self) -> ContentKey {
        match self {
            Self::Module { blob, .. } => ContentKey::Blob(blob.clone()),
            Self::RootFs { root } => ContentKey::Root(root.clone()),
        }
    }
}

/// What a pull found out; with a reference and a time it is a record.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub digest: Digest,
    pub bytes: u64,
    pub config: ProgramConfig,
    pub content: StoredContent,
}

impl Record {
    pub(crate) fn new(reference: String, name: String, fetched: Fetched, access: Access) -> Self {
        let Fetched { digest, bytes, config, content } = fetched;
        Self {
            version: VERSION,
            reference,
            name,
            digest,
            bytes,
            pulled_at: Timestamp::now(),
            dangling: false,
            access,
            config,
            content,
        }
    }

    /// Reads a record; none if it is damaged or of another version.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(bytes).ok()?;
        (record.version == VERSION).then_some(record)
    }

    /// The image's id: `repository@digest`.
    pub(crate) fn id(&self) -> String {
        format!("{}@{}", self.name, self.digest)
    }

    /// The same image under its id, kept only for those that use it.
    pub(crate) fn left_behind(&self) -> Self {
        Self { reference: self.id(), dangling: true, ..self.clone() }
    }
}
