//! Unpacking an image's layers into a root file system.
//!
//! Layers come from strangers. Names that climb are refused, links are kept
//! inside ([`tree`]), devices are refused, and what comes out is bounded
//! ([`budget`]). Owners and extended attributes are dropped: a guest sees neither.
//! Each layer's archive has been checked against its digest before; what it unpacks
//! to is checked here against the `diff_id` of the image's configuration.
//! Blocks; runs on a blocking thread.

pub(crate) mod budget;
pub(crate) mod path;
mod tree;

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tar::EntryType;

pub use self::budget::Overrun;
use self::budget::{Budget, Meter};
use self::path::Name;
pub use self::path::PathError;
use self::tree::Tree;
use crate::digest::Digest;
use crate::format::Compression;

/// Bytes moved at a time.
const BUFFER: usize = 256 << 10;

/// One layer's archive on disk.
#[derive(Debug)]
pub(crate) struct Layer {
    pub archive: File,
    pub compression: Compression,
    /// The digest of the archive before compression.
    pub diff_id: Digest,
}

/// Why layers cannot be unpacked. `Read` and `Write` tell a broken archive from a full disk.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum UnpackError {
    #[error("the archive has a forbidden name {name:?}")]
    Name {
        name: String,
        #[source]
        source: PathError,
    },
    #[error(
        "the archive holds {name:?}, which is a {kind}; only files, directories and links are allowed"
    )]
    Kind { name: String, kind: &'static str },
    #[error("the archive is too large to unpack")]
    TooBig {
        #[source]
        source: Overrun,
    },
    #[error("the archive is damaged")]
    Read {
        #[source]
        source: Arc<io::Error>,
    },
    #[error("cannot unpack {name:?}")]
    Write {
        name: String,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("the layer unpacks to {actual}, but the image's configuration says {expected}")]
    DiffId { expected: Digest, actual: Digest },
}

impl UnpackError {
    /// Whether the same image may be unpacked later: the disk's failure, not the image's.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            // What the archive asks for and the tree refuses is marked so in `tree`.
            Self::Write { source, .. } => source.kind() != io::ErrorKind::InvalidData,
            Self::Name { .. }
            | Self::Kind { .. }
            | Self::TooBig { .. }
            | Self::Read { .. }
            | Self::DiffId { .. } => false,
        }
    }
}

/// Unpacks `layers`, lowest first, into the empty directory `root`. An error names its
/// layer, counted from 1.
pub(crate) fn unpack(
    root: &Path,
    layers: Vec<Layer>,
    budget: &Budget,
) -> Result<(), (usize, UnpackError)> {
    let mut tree = Tree::open(root).map_err(|source| (1, cannot_write(b".", source)))?;
    for (layer, number) in layers.into_iter().zip(1..) {
        tree.next_layer();
        unpack_layer(&mut tree, layer, budget).map_err(|error| (number, error))?;
    }
    Ok(())
}

fn unpack_layer(tree: &mut Tree, layer: Layer, budget: &Budget) -> Result<(), UnpackError> {
    let Layer { archive, compression, diff_id } = layer;
    let damaged = |source| UnpackError::Read { source: Arc::new(source) };
    let archive = BufReader::with_capacity(BUFFER, archive);
    let stream: Box<dyn Read> = match compression {
        Compression::None => Box::new(archive),
        // Several members may follow each other; all of them are the archive.
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(archive)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(archive).map_err(damaged)?),
    };
    let meter = Meter::new(budget, diff_id.algorithm());
    // The meter knows better than the archive reader why a read failed.
    let failed = |source: io::Error| match meter.overrun() {
        Some(source) => UnpackError::TooBig { source },
        None => damaged(source),
    };

    let mut archive = tar::Archive::new(meter.wrap(stream));
    let mut entries = archive.entries().map_err(failed)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        meter.expect_header();
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(failed)?;
        budget.spend_entry().map_err(|source| UnpackError::TooBig { source })?;
        meter.expect_content();
        put(tree, &mut entry, &mut buffer, &failed)?;
        // What an entry has beyond its kind's need is read here, not as the next header.
        io::copy(&mut entry, &mut io::sink()).map_err(failed)?;
    }
    // The digest is of everything, also of what follows the archive's end.
    meter.expect_content();
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(failed)?;
    let actual = meter.digest();
    if actual == diff_id { Ok(()) } else { Err(UnpackError::DiffId { expected: diff_id, actual }) }
}

fn put<R: Read>(
    tree: &mut Tree,
    entry: &mut tar::Entry<'_, R>,
    buffer: &mut [u8],
    failed: &dyn Fn(io::Error) -> UnpackError,
) -> Result<(), UnpackError> {
    let bytes = entry.path_bytes().into_owned();
    let bad_name = |source| UnpackError::Name { name: shown(&bytes), source };
    let write = |source| cannot_write(&bytes, source);
    let kind = entry.header().entry_type();
    if kind == EntryType::XGlobalHeader {
        return Ok(());
    }
    let forbidden = |kind| UnpackError::Kind { name: shown(&bytes), kind };
    // Its holes cost nothing to send and are endless to read, so not even a skipped
    // one is looked into. Layers are not written with them.
    if kind == EntryType::GNUSparse {
        return Err(forbidden("sparse file"));
    }
    let (parent, name) = match path::name(&bytes).map_err(bad_name)? {
        Name::Put { parent, name } => (parent, name),
        Name::Delete { parent, name } => return tree.delete(&parent, &name).map_err(write),
        Name::Clear { directory } => return tree.clear(&directory).map_err(write),
        Name::Root | Name::Ignore => return Ok(()),
    };
    match kind {
        EntryType::Directory => tree.directory(&parent, &name).map_err(write),
        EntryType::Regular | EntryType::Continuous => {
            let mode = entry.header().mode().map_err(failed)?;
            let modified = entry.header().mtime().map_err(failed)?;
            let size = entry.size();
            let mut file = tree.file(&parent, &name, mode).map_err(write)?;
            let mut copied = 0;
            loop {
                let count = entry.read(buffer).map_err(failed)?;
                if count == 0 {
                    break;
                }
                file.write_all(&buffer[..count]).map_err(write)?;
                copied += count as u64;
            }
            if copied != size {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            // A date the file system cannot hold is not worth refusing an image.
            if let Some(time) = UNIX_EPOCH.checked_add(Duration::from_secs(modified)) {
                let _ = file.set_modified(time);
            }
            Ok(())
        }
        EntryType::Symlink => {
            let target = link_target(entry);
            tree.symlink(&parent, &name, &target).map_err(write)
        }
        EntryType::Link => {
            let target = link_target(entry);
            let target = path::plain_path(&target)
                .map_err(|source| UnpackError::Name { name: shown(&target), source })?;
            tree.hard_link(&parent, &name, &target).map_err(write)
        }
        EntryType::Char | EntryType::Block => Err(forbidden("device")),
        EntryType::Fifo => Err(forbidden("pipe")),
        _ => Err(forbidden("thing of unknown kind")),
    }
}

fn link_target<R: Read>(entry: &tar::Entry<'_, R>) -> Vec<u8> {
    entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default()
}

fn cannot_write(name: &[u8], source: io::Error) -> UnpackError {
    UnpackError::Write { name: shown(name), source: Arc::new(source) }
}

/// A name from an archive, fit for a message.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(120).collect()
}

#[cfg(test)]
mod tests;
