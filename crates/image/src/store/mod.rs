//! Images on disk: content by digest, one record per reference.
//!
//! ```text
//! <root>/blobs/<algorithm>/<hex>   one Wasm program, read-only
//! <root>/roots/<algorithm>/<hex>   an unpacked root file system
//! <root>/records/<hash>.json       what a reference means; written last
//! <root>/tmp/                      everything unfinished; emptied at open
//! <root>/lock                      held by the one process that owns the store
//! ```
//!
//! Everything appears by fsync and rename, so that a crash at any point leaves either
//! the old state or the new. All functions block; callers are on blocking threads.
//! Which records exist in memory, and who waits for what, is the task's matter
//! ([`crate::task`]).

pub(crate) mod holds;
pub(crate) mod record;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{FlockOperation, flock};
use tempfile::{NamedTempFile, TempDir};
use tokio::sync::OwnedMutexGuard;

use self::holds::{ContentKey, Holds};
use self::record::{Record, StoredContent};
use crate::digest::{Algorithm, Digest};

/// Largest record read, in bytes. Its parts come from documents of at most 4 MiB.
const RECORD_LIMIT: u64 = 16 << 20;

/// Why the image store could not be opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum OpenError {
    #[error("the image store {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error("cannot open the image store at {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the certificate authority file {}", path.display())]
    Authority {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{what}")]
    Rules { what: String },
    #[error("cannot set up the HTTP client")]
    Client {
        #[source]
        source: reqwest::Error,
    },
}

/// The folders of one store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    holds: Arc<Holds>,
    /// One lock per thing being fetched, so that it is fetched once.
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Keeps other processes out until dropped.
    _lock: File,
}

impl Store {
    /// Opens the store, sweeps what a crash left, and returns the images that are whole.
    pub(crate) fn open(root: &Path) -> Result<(Self, Vec<Record>), OpenError> {
        let io = |source| OpenError::Io { path: root.to_owned(), source };
        for folder in
            ["blobs/sha256", "blobs/sha512", "roots/sha256", "roots/sha512", "records", "tmp"]
        {
            // Images may be private, and some come with credentials: for the owner only.
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(root.join(folder))
                .map_err(io)?;
        }
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join("lock"))
            .map_err(io)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(OpenError::InUse { path: root.to_owned() });
            }
            Err(errno) => return Err(io(errno.into())),
        }
        let store = Self(Arc::new(Inner {
            root: root.to_owned(),
            holds: Arc::default(),
            locks: Mutex::default(),
            _lock: lock,
        }));
        store.sweep_unfinished().map_err(io)?;
        let records = store.read_records().map_err(io)?;
        store.sweep_unnamed(&records).map_err(io)?;
        Ok((store, records))
    }

    pub(crate) fn holds(&self) -> &Arc<Holds> {
        &self.0.holds
    }

    /// Waits for the only right to fetch what `name` names.
    pub(crate) async fn lock(&self, name: &str) -> OwnedMutexGuard<()> {
        self.lock_of(name).lock_owned().await
    }

    fn lock_of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = locks.get(name).and_then(Weak::upgrade).unwrap_or_default();
        locks.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// Takes the only right to `name` if nobody has it or waits for it.
    pub(crate) fn try_lock(&self, name: &str) -> Option<OwnedMutexGuard<()>> {
        self.lock_of(name).try_lock_owned().ok()
    }

    /// Where content of a key is, once it is there.
    pub(crate) fn path(&self, key: &ContentKey) -> PathBuf {
        let (kind, digest) = match key {
            ContentKey::Blob(digest) => ("blobs", digest),
            ContentKey::Root(digest) => ("roots", digest),
        };
        self.0.root.join(kind).join(digest.algorithm().name()).join(digest.hex())
    }

    /// Whether the content is there. A blob has to have its full size.
    pub(crate) fn is_present(&self, content: &StoredContent) -> bool {
        let path = self.path(&content.key());
        match content {
            StoredContent::Module { size, .. } => {
                fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == *size)
            }
            StoredContent::RootFs { .. } => fs::metadata(path).is_ok_and(|file| file.is_dir()),
        }
    }

    /// A new file that vanishes unless it is published.
    pub(crate) fn temporary_file(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(self.0.root.join("tmp"))
    }

    /// A new directory that vanishes unless it is published.
    pub(crate) fn temporary_directory(&self) -> io::Result<TempDir> {
        TempDir::new_in(self.0.root.join("tmp"))
    }

    /// Makes a verified file visible under its digest.
    pub(crate) fn publish_blob(&self, file: NamedTempFile, digest: &Digest) -> io::Result<()> {
        let path = self.path(&ContentKey::Blob(digest.clone()));
        // Nobody, the owner included, is to change what a digest names.
        file.as_file().set_permissions(Permissions::from_mode(0o444))?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        sync_parent(&path)
    }

    /// Makes an unpacked root file system visible under its manifest's digest.
    pub(crate) fn publish_root(&self, directory: TempDir, digest: &Digest) -> io::Result<()> {
        let path = self.path(&ContentKey::Root(digest.clone()));
        // One call for the whole tree, however many files it has.
        rustix::fs::syncfs(File::open(directory.path())?)?;
        // What stands there lost its record, or has none yet after a crash.
        self.clear(&path)?;
        fs::rename(directory.keep(), &path)?;
        sync_parent(&path)
    }

    /// Makes the image exist under its reference.
    pub(crate) fn write_record(&self, record: &Record) -> io::Result<()> {
        let path = self.record_path(&record.reference);
        let mut file = self.temporary_file()?;
        serde_json::to_writer(&mut file, record)?;
        file.flush()?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        sync_parent(&path)
    }

    /// What a reference means, as it is on disk: to be asked by who has the reference for itself. None if
    /// it means nothing, or its record cannot be read.
    pub(crate) fn read_record(&self, reference: &str) -> io::Result<Option<Record>> {
        match read_record_file(&self.record_path(reference)) {
            Ok(record) => Ok(record.filter(|record| record.reference == reference)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ends the image of a reference. Its content may stay, see [`Store::discard`].
    pub(crate) fn remove_record(&self, reference: &str) -> io::Result<()> {
        let path = self.record_path(reference);
        match fs::remove_file(&path) {
            Ok(()) => sync_parent(&path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes content, unless someone holds it. Returns whether it is gone.
    pub(crate) fn discard(&self, key: &ContentKey) -> io::Result<bool> {
        // Renaming is quick and takes it out of sight; deleting a tree is not quick.
        let trash = self.temporary_directory()?;
        let moved = self.0.holds.if_free(key, || {
            match fs::rename(self.path(key), trash.path().join("content")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        });
        match moved {
            None => Ok(false),
            Some(Err(error)) => Err(error),
            Some(Ok(())) => trash.close().map(|()| true),
        }
    }

    fn record_path(&self, reference: &str) -> PathBuf {
        // References hold characters and lengths that file names do not.
        let name = Digest::of(reference.as_bytes());
        self.0.root.join("records").join(format!("{}.json", name.hex()))
    }

    fn sweep_unfinished(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.0.root.join("tmp"))? {
            remove(&entry?.path())?;
        }
        Ok(())
    }

    fn read_records(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.0.root.join("records"))? {
            let path = entry?.path();
            let whole = read_record_file(&path)?.filter(|record| {
                self.is_present(&record.content) && path == self.record_path(&record.reference)
            });
            if let Some(record) = whole {
                records.push(record);
            } else {
                tracing::warn!(record = %path.display(), "forgetting an image that is damaged on disk");
                remove(&path)?;
            }
        }
        Ok(records)
    }

    /// Deletes content that no record names: its pull did not get as far as the record.
    fn sweep_unnamed(&self, records: &[Record]) -> io::Result<()> {
        let named: HashSet<_> =
            records.iter().map(|record| self.path(&record.content.key())).collect();
        for kind in ["blobs", "roots"] {
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                for entry in fs::read_dir(self.0.root.join(kind).join(algorithm.name()))? {
                    let path = entry?.path();
                    if !named.contains(&path) {
                        remove(&path)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves whatever is at `path` out of sight and deletes it.
    fn clear(&self, path: &Path) -> io::Result<()> {
        let trash = self.temporary_directory()?;
        match fs::rename(path, trash.path().join("content")) {
            Ok(()) => trash.close(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn read_record_file(path: &Path) -> io::Result<Option<Record>> {
    let is_small = fs::metadata(path)?.len() <= RECORD_LIMIT;
    Ok(if is_small { Record::parse(&fs::read(path)?) } else { None })
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

/// A rename lasts only once its directory is on disk.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
