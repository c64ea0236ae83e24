//! From a reference's documents to content in the store, whatever they come from.
//!
//! The order is: documents, decision, layers, content. Nothing is visible before
//! all of it is checked, and nothing is fetched before its size is known to be allowed.

use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::access::Right;
use crate::digest::Digest;
use crate::format::{self, Compression, FormatError, Shape};
use crate::layout::{Layout, LayoutError};
use crate::limits::{DOCUMENT_LIMIT, PullLimits};
use crate::manifest::{Descriptor, Document, DocumentError, ImageConfig, Manifest};
use crate::preamble::{self, NotWasm};
use crate::registry::error::RequestError;
use crate::registry::fetch::{RawDocument, Session};
use crate::store::Store;
use crate::store::holds::{ContentKey, Lease};
use crate::store::record::{Fetched, StoredContent};
use crate::unpack::budget::Budget;
use crate::unpack::{self, Layer, UnpackError};

/// Why an image's content could not be made available. `image` is as it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ContentError {
    #[error("cannot pull image {image:?}")]
    Request {
        image: String,
        #[source]
        source: RequestError,
    },
    #[error("cannot import image {image:?}")]
    Layout {
        image: String,
        #[source]
        source: LayoutError,
    },
    #[error("image {image:?} cannot be read")]
    Document {
        image: String,
        #[source]
        source: DocumentError,
    },
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("{what} of image {image:?} has {bytes} bytes, more than the {limit} this node allows")]
    TooBig { image: String, what: &'static str, bytes: u64, limit: u64 },
    #[error("the program of image {image:?} cannot be run")]
    NotWasm {
        image: String,
        #[source]
        source: NotWasm,
    },
    #[error("layer {layer} of image {image:?} cannot be unpacked")]
    Unpack {
        image: String,
        /// Counted from 1, the lowest.
        layer: usize,
        #[source]
        source: UnpackError,
    },
    #[error("cannot store image {image:?}")]
    Store {
        image: String,
        #[source]
        source: Arc<io::Error>,
    },
}

impl ContentError {
    /// Whether the same request may succeed later, with nothing changed here.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Request { source, .. } => source.is_transient(),
            Self::Unpack { source, .. } => source.is_transient(),
            Self::Store { .. } => true,
            Self::Layout { .. }
            | Self::Document { .. }
            | Self::Format(_)
            | Self::TooBig { .. }
            | Self::NotWasm { .. } => false,
        }
    }
}

/// Where documents and blobs come from.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    Registry(Session<'a>),
    Layout(Layout),
}

impl Source<'_> {
    /// What was proved by what came from there.
    pub(crate) fn right(&self) -> Right {
        match self {
            Self::Registry(session) => session.right(),
            Self::Layout(_) => Right::Preloaded,
        }
    }
}

/// Brings one image into the store.
#[derive(Debug)]
pub(crate) struct Assembly<'a> {
    /// The image as it was asked for, for messages.
    pub image: &'a str,
    pub source: Source<'a>,
    pub store: &'a Store,
    pub limits: &'a PullLimits,
    /// Bytes of the documents and layers, whether or not they had to be fetched.
    pub bytes: u64,
    /// Bytes of layers that did have to be.
    pub transferred: u64,
}

impl Assembly<'_> {
    /// Fetches what `root` describes. The lease keeps the content until a record does.
    pub(crate) async fn run(
        &mut self,
        root: RawDocument,
    ) -> Result<(Fetched, Lease), ContentError> {
        let digest = root.digest.clone();
        let (manifest, manifest_digest) = self.manifest(root).await?;
        let config = self.config(&manifest).await?;
        let shape = format::shape(self.image, &manifest, &config)?;
        let (content, lease) = match shape {
            Shape::Module { layer } => self.module(layer).await?,
            Shape::RootFs { layers } => {
                let diff_ids = config.rootfs.clone().unwrap_or_default().diff_ids;
                self.root_fs(manifest_digest, layers, diff_ids).await?
            }
        };
        let config = format::program_config(config);
        Ok((Fetched { digest, bytes: self.bytes, config, content }, lease))
    }

    /// The manifest for this node, through an index if there is one.
    async fn manifest(
        &mut self,
        mut document: RawDocument,
    ) -> Result<(Manifest, Digest), ContentError> {
        // An index may point to an index once: tools wrap an image's index in a layout's.
        for _ in 0..3 {
            self.bytes += document.bytes.len() as u64;
            let parsed = Document::parse(&document.bytes, document.content_type.as_deref());
            let parsed = parsed.map_err(|source| self.document_error(source))?;
            let index = match parsed {
                Document::Manifest(manifest) => return Ok((manifest, document.digest)),
                Document::Index(index) => index,
            };
            let entry = format::choose(self.image, &index)?;
            document = self.document(entry).await?;
        }
        Err(FormatError::NestedIndex { image: self.image.to_owned() }.into())
    }

    /// How to run the image; empty for artifacts, which do not say.
    async fn config(&mut self, manifest: &Manifest) -> Result<ImageConfig, ContentError> {
        self.allow("the configuration", manifest.config.size, DOCUMENT_LIMIT)?;
        self.bytes += manifest.config.size;
        if !format::has_image_config(manifest) {
            return Ok(ImageConfig::default());
        }
        let file = self.fetch(&manifest.config).await?;
        let bytes = spawn_blocking(move || std::fs::read(file.path())).await;
        let bytes = self.stored(flatten(bytes))?;
        ImageConfig::parse(&bytes).map_err(|source| self.document_error(source))
    }

    async fn module(&mut self, layer: Descriptor) -> Result<(StoredContent, Lease), ContentError> {
        self.allow_layers(std::iter::once(&layer))?;
        let content = StoredContent::Module { blob: layer.digest.clone(), size: layer.size };
        let key = content.key();
        // Held before it is looked for: what is found then cannot be deleted.
        let lease = self.store.holds().take(&key);
        let _fetching = self.store.lock(&format!("{key:?}")).await;
        if !self.store.is_present(&content) {
            let file = self.fetch(&layer).await?;
            self.transferred += layer.size;
            let store = self.store.clone();
            let kind = spawn_blocking(move || {
                let kind = preamble::kind_of_file(file.path())?;
                if kind.is_ok() {
                    store.publish_blob(file, &layer.digest)?;
                }
                Ok(kind)
            });
            self.stored(flatten(kind.await))?
                .map_err(|source| ContentError::NotWasm { image: self.image.to_owned(), source })?;
        }
        Ok((content, lease))
    }

    async fn root_fs(
        &mut self,
        digest: Digest,
        layers: Vec<(Descriptor, Compression)>,
        diff_ids: Vec<Digest>,
    ) -> Result<(StoredContent, Lease), ContentError> {
        self.allow_layers(layers.iter().map(|(layer, _)| layer))?;
        let content = StoredContent::RootFs { root: digest.clone() };
        let key = ContentKey::Root(digest.clone());
        let lease = self.store.holds().take(&key);
        let _fetching = self.store.lock(&format!("{key:?}")).await;
        if self.store.is_present(&content) {
            return Ok((content, lease));
        }
        let mut files = Vec::new();
        for (layer, _) in &layers {
            files.push(self.fetch(layer).await?);
            self.transferred += layer.size;
        }
        let store = self.store.clone();
        let limits = self.limits.clone();
        let unpacked = spawn_blocking(move || {
            // Counts across layers, and lives on this thread only.
            let budget = Budget::new(limits.unpacked_bytes, limits.unpacked_entries);
            let directory = store.temporary_directory()?;
            let mut archives = Vec::new();
            for ((file, (_, compression)), diff_id) in files.iter().zip(&layers).zip(diff_ids) {
                let archive = File::open(file.path())?;
                archives.push(Layer { archive, compression: *compression, diff_id });
            }
            let unpacked = unpack::unpack(directory.path(), archives, &budget);
            if unpacked.is_ok() {
                store.publish_root(directory, &digest)?;
            }
            Ok(unpacked)
        });
        self.stored(flatten(unpacked.await))?.map_err(|(layer, source)| ContentError::Unpack {
            image: self.image.to_owned(),
            layer,
            source,
        })?;
        Ok((content, lease))
    }

    /// Fetches a manifest that an index names.
    async fn document(&mut self, entry: &Descriptor) -> Result<RawDocument, ContentError> {
        let image = || self.image.to_owned();
        self.allow("a manifest", entry.size, DOCUMENT_LIMIT)?;
        match &mut self.source {
            Source::Registry(session) => session
                .document("", Some(&entry.digest))
                .await
                .map_err(|source| ContentError::Request { image: image(), source }),
            Source::Layout(layout) => {
                let (layout, entry) = (layout.clone(), entry.clone());
                let read = spawn_blocking(move || Ok(layout.document(&entry))).await;
                self.stored(flatten(read))?
                    .map_err(|source| ContentError::Layout { image: image(), source })
            }
        }
    }

    /// Fetches a blob into a file that vanishes unless it is published.
    async fn fetch(&mut self, blob: &Descriptor) -> Result<tempfile::NamedTempFile, ContentError> {
        let store = self.store.clone();
        let file = self.stored(flatten(spawn_blocking(move || store.temporary_file()).await))?;
        let image = || self.image.to_owned();
        match &mut self.source {
            Source::Registry(session) => {
                let sink = file.reopen();
                let sink = sink.map_err(|source| ContentError::Store {
                    image: image(),
                    source: source.into(),
                })?;
                session
                    .blob(blob, sink)
                    .await
                    .map_err(|source| ContentError::Request { image: image(), source })?;
                Ok(file)
            }
            Source::Layout(layout) => {
                let (layout, blob) = (layout.clone(), blob.clone());
                let copied =
                    spawn_blocking(move || Ok(layout.blob(&blob, file.as_file()).map(|()| file)));
                self.stored(flatten(copied.await))?
                    .map_err(|source| ContentError::Layout { image: image(), source })
            }
        }
    }

    fn allow_layers<'b>(
        &mut self,
        layers: impl Iterator<Item = &'b Descriptor>,
    ) -> Result<(), ContentError> {
        for layer in layers {
            self.allow("a layer", layer.size, self.limits.blob_bytes)?;
            self.bytes = self.bytes.saturating_add(layer.size);
        }
        self.allow("all", self.bytes, self.limits.total_bytes)
    }

    fn allow(&self, what: &'static str, bytes: u64, limit: u64) -> Result<(), ContentError> {
        if bytes > limit {
            let image = self.image.to_owned();
            return Err(ContentError::TooBig { image, what, bytes, limit });
        }
        Ok(())
    }

    fn stored<T>(&self, result: io::Result<T>) -> Result<T, ContentError> {
        result.map_err(|source| ContentError::Store {
            image: self.image.to_owned(),
            source: Arc::new(source),
        })
    }

    fn document_error(&self, source: DocumentError) -> ContentError {
        ContentError::Document { image: self.image.to_owned(), source }
    }
}

/// A panic on the blocking thread is reported as the failure of its work.
pub(crate) fn flatten<T>(result: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    result.unwrap_or_else(|error| Err(io::Error::other(error)))
}
