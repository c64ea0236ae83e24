//! The documents of an image: index, manifest and configuration.
//!
//! Only what is used is read, and what registries hold in practice is accepted:
//! OCI and Docker (schema 2) documents alike. What they mean for this node is
//! decided in [`crate::format`].

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;

/// OCI image manifest.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, schema 2.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What is asked for, newest kinds first.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// Most layers of one image. Docker's own limit is 127; Spin writes up to 500.
const LAYER_LIMIT: usize = 512;

/// Most entries of one index.
const ENTRY_LIMIT: usize = 512;

/// What a digest names: its kind and its exact size in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// What an entry of an index runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Platform {
    pub os: String,
    pub architecture: String,
}

/// One image.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// The same image for several platforms.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Index {
    pub manifests: Vec<Descriptor>,
}

/// Either of the two documents a reference may name.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// An image's configuration. Missing parts are empty: artifacts carry less than images.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ImageConfig {
    pub os: String,
    pub architecture: String,
    pub config: Option<ExecutionConfig>,
    pub rootfs: Option<RootFs>,
}

/// How a container of the image is run by default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ExecutionConfig {
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub env: Option<Vec<String>>,
    pub working_dir: Option<String>,
    pub user: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
}

/// The digests of the layers before compression.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RootFs {
    pub diff_ids: Vec<Digest>,
}

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum DocumentError {
    #[error("the {what} is not valid: {reason}")]
    Invalid { what: &'static str, reason: String },
    #[error("the manifest is of kind {media_type:?}, which is too old or unknown")]
    UnknownKind { media_type: String },
    #[error("the {what} has {count} entries, more than the {limit} allowed")]
    TooMany { what: &'static str, count: usize, limit: usize },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a manifest or index. `content_type` is what the sender called it, if
    /// anything; the document's own `mediaType` comes first, its shape last.
    pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, DocumentError> {
        let probe: Probe = json(bytes, "manifest")?;
        // A document that is both could be read as one thing here and another elsewhere.
        // Source: OCI image specification, CVE-2021-41190.
        if probe.manifests.is_some() && (probe.layers.is_some() || probe.config.is_some()) {
            let reason = "it is an index and a manifest at once".to_owned();
            return Err(DocumentError::Invalid { what: "manifest", reason });
        }
        let content_type = content_type.map(|kind| kind.split(';').next().unwrap_or(kind).trim());
        let named = probe.media_type.as_deref().or(content_type).unwrap_or_default();
        let is_index = match named {
            OCI_INDEX | DOCKER_LIST => true,
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            // Servers of plain files send these; then the shape decides.
            "" | "application/json" | "application/octet-stream" | "text/plain"
                if probe.manifests.is_some() || probe.layers.is_some() =>
            {
                probe.manifests.is_some()
            }
            other => {
                let media_type = other.chars().take(120).collect();
                return Err(DocumentError::UnknownKind { media_type });
            }
        };
        if is_index {
            let index: Index = json(bytes, "index")?;
            check_count("index", index.manifests.len(), ENTRY_LIMIT)?;
            Ok(Self::Index(index))
        } else {
            let manifest: Manifest = json(bytes, "manifest")?;
            check_count("manifest", manifest.layers.len(), LAYER_LIMIT)?;
            Ok(Self::Manifest(manifest))
        }
    }
}

impl ImageConfig {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        json(bytes, "image configuration")
    }
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &'static str) -> Result<T, DocumentError> {
    serde_json::from_slice(bytes).map_err(|error| DocumentError::Invalid {
        what,
        reason: error.to_string().chars().take(200).collect(),
    })
}

fn check_count(what: &'static str, count: usize, limit: usize) -> Result<(), DocumentError> {
    if count > limit { Err(DocumentError::TooMany { what, count, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_that_is_index_and_manifest_at_once_is_refused() {
        let text = br#"{"manifests":[],"layers":[],"config":{}}"#;
        assert!(matches!(Document::parse(text, None), Err(DocumentError::Invalid { .. })));
    }

    #[test]
    fn the_own_media_type_wins_over_the_senders() {
        let text = format!(r#"{{"mediaType":"{OCI_INDEX}","manifests":[]}}"#);
        let read = Document::parse(text.as_bytes(), Some(OCI_MANIFEST)).unwrap();
        assert!(matches!(read, Document::Index(_)));
        let read = Document::parse(br#"{"manifests":[]}"#, Some("application/json; charset=utf-8"));
        assert!(matches!(read.unwrap(), Document::Index(_)));
    }

    #[test]
    fn docker_schema_1_is_named_in_the_refusal() {
        let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        let error = Document::parse(br#"{"fsLayers":[]}"#, Some(kind)).unwrap_err();
        assert!(error.to_string().contains("prettyjws"), "{error}");
    }

    #[test]
    fn an_index_of_endless_length_is_refused() {
        let entry = format!(r#"{{"digest":"{}","size":1}}"#, Digest::of(b""));
        let text = format!(r#"{{"manifests":[{}]}}"#, vec![entry; 513].join(","));
        let error = Document::parse(text.as_bytes(), Some(OCI_INDEX)).unwrap_err();
        assert!(matches!(error, DocumentError::TooMany { count: 513, .. }), "{error}");
    }
}
