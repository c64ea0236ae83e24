//! Whose certificates a container's guests believe if it says so itself, by the
//! variables that OpenSSL and Go read.
//!
//! `SSL_CERT_FILE` names what is believed in place of the system's bundle,
//! `SSL_CERT_DIR` directories, separated by colons, whose files are believed
//! besides. Source: Go, `crypto/x509/root_unix.go`. Go passes over what it cannot
//! read; here https fails then, and the log says why.
//!
//! ```text
//! request ──▶ roots ──looked a moment ago──────────────────────▶ what is known
//!               └──▶ look, on a thread that may block ──same──▶ what is known
//!                                                     ├─other─▶ new roots
//!                                                     └─error─▶ none, until the next look
//! ```
//!
//! New roots are another value than those before. Connections are kept for one
//! value ([`Outgoing`](super::Outgoing)), so that none outlives the word of those
//! who vouched for it.

#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{self, Arc, PoisonError},
    time::Duration,
};

use krustlet_model::Chain;
use krustlet_protocol::ContainerSpec;
use rustls::RootCertStore;
use tokio::{
    sync::Mutex,
    task::{JoinError, JoinHandle, spawn_blocking},
    time::Instant,
};

use super::roots::{self, LARGEST, Roots};
use crate::{
    directories::{Directories, FileError, Stamp},
    log::{Log, LogStream, Stream},
};

/// The two variables.
const FILE: &str = "SSL_CERT_FILE";
const DIRECTORIES: &str = "SSL_CERT_DIR";

/// How long it is not looked again: volumes change once a minute at most.
const HOLDS: Duration = Duration::from_secs(5);

/// Files in all directories together. Debian's `/etc/ssl/certs` has some 300.
const MOST_FILES: usize = 1024;

/// What a container says of whom its guests believe.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    file: Option<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Named {
    /// None if it says nothing. An empty value says nothing.
    fn of(env: &[(String, String)], working_directory: Option<&str>) -> Option<Self> {
        let value = |wanted: &str| {
            let (_, value) = env.iter().find(|(name, _)| name == wanted)?;
            (!value.is_empty()).then_some(value.as_str())
        };
        let start = Path::new("/").join(working_directory.unwrap_or_default());
        let file = value(FILE).map(|path| start.join(path));
        let directories = value(DIRECTORIES).into_iter().flat_map(|paths| paths.split(':'));
        let directories: Vec<_> =
            directories.filter(|path| !path.is_empty()).map(|path| start.join(path)).collect();
        (file.is_some() || !directories.is_empty()).then_some(Self { file, directories })
    }
}

/// Why nobody is believed.
#[derive(Debug, thiserror::Error)]
enum OwnError {
    #[error("{variable} names {}", .path.display())]
    Unusable {
        variable: &'static str,
        path: PathBuf,
        #[source]
        source: FileError,
    },
    #[error("{variable} names {}: there is no certificate in PEM", .path.display())]
    Empty { variable: &'static str, path: PathBuf },
    #[error("reading certificates failed in the sandbox")]
    Died(#[source] JoinError),
}

impl OwnError {
    fn is_missing(&self) -> bool {
        match self {
            Self::Unusable { source, .. } => source.is_missing(),
            Self::Empty { .. } | Self::Died(_) => false,
        }
    }

    /// What who wrote the pod can do.
    fn mend(&self) -> &'static str {
        match self {
            Self::Unusable { source, .. } if source.is_missing() => {
                "mount a volume that has it there, or leave the variable empty"
            }
            Self::Unusable { source: FileError::TooLarge | FileError::TooMany, .. } => {
                "there may be 8 MiB of certificates, and 1024 files in directories"
            }
            Self::Unusable { .. } => {
                "name certificates in a volume of the container, or leave the variable empty"
            }
            Self::Empty { .. } => "put the authority's certificate there",
            Self::Died(_) => "it is tried again",
        }
    }
}

/// See the module. One for each container that says whom it believes.
#[derive(Debug)]
pub(crate) struct OwnRoots {
    named: Arc<Named>,
    directories: Arc<Directories>,
    log: Arc<Log>,
    /// Held across the look, so that all who ask meanwhile wait for one.
    state: Mutex<State>,
    /// What the log was told last. It is not told the same again.
    said: sync::Mutex<String>,
}

#[derive(Debug, Default)]
struct State {
    known: Option<Known>,
    looked: Option<Instant>,
    /// Goes on when whoever began it is gone: where a volume stalls, one thread
    /// waits for it and not one for each request.
    looking: Option<JoinHandle<Result<Option<Known>, OwnError>>>,
}

/// What was found, and by what files.
#[derive(Debug)]
struct Known {
    stamps: Arc<[Stamp]>,
    roots: Arc<Roots>,
}

impl OwnRoots {
    /// None if the container leaves it to the system.
    pub(crate) fn of(
        spec: &ContainerSpec,
        directories: &Arc<Directories>,
        log: &Arc<Log>,
    ) -> Option<Arc<Self>> {
        let named = Named::of(&spec.env, spec.working_directory.as_deref())?;
        Some(Arc::new(Self::new(named, directories, log)))
    }

    fn new(named: Named, directories: &Arc<Directories>, log: &Arc<Log>) -> Self {
        Self {
            named: Arc::new(named),
            directories: Arc::clone(directories),
            log: Arc::clone(log),
            state: Mutex::default(),
            said: sync::Mutex::default(),
        }
    }

    /// Who is believed now. None if that cannot be said; the log says why.
    pub(super) async fn roots(&self) -> Option<Arc<Roots>> {
        let mut state = self.state.lock().await;
        let State { known, looked, looking } = &mut *state;
        let is_new = looked.is_some_and(|at| at.elapsed() < HOLDS);
        if looking.is_some() || !is_new {
            let task = looking.get_or_insert_with(|| {
                let (named, directories) = (Arc::clone(&self.named), Arc::clone(&self.directories));
                let before = known.as_ref().map(|known| Arc::clone(&known.stamps));
                spawn_blocking(move || look(&named, &directories, before.as_deref()))
            });
            let found = task.await.unwrap_or_else(|error| Err(OwnError::Died(error)));
            *looking = None;
            *looked = Some(Instant::now());
            match found {
                Ok(None) => {}
                Ok(other) => {
                    *known = other;
                    self.said().clear();
                }
                Err(error) => {
                    *known = None;
                    let mend = error.mend();
                    self.complain(format!("https requests fail: {}; {mend}\n", Chain(&error)));
                }
            }
        }
        known.as_ref().map(|known| Arc::clone(&known.roots))
    }

    /// Tells the log that nobody who is believed vouches for a server.
    pub(super) fn refused(&self, server: &str, why: &(dyn std::error::Error + 'static)) {
        let named: Vec<_> = self.named.file.iter().chain(&self.named.directories).collect();
        self.complain(format!(
            "the certificate of {server} is refused: {}; trusted are the authorities in {named:?}\n",
            Chain(why)
        ));
    }

    fn complain(&self, what: String) {
        let mut said = self.said();
        if *said != what {
            let stderr = LogStream::new(Arc::clone(&self.log), Stream::Stderr);
            stderr.push(what.as_bytes());
            *said = what;
        }
    }

    fn said(&self) -> sync::MutexGuard<'_, String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks whether files are others than `before`, and reads them if so. Blocks.
fn look(
    named: &Named,
    directories: &Directories,
    before: Option<&[Stamp]>,
) -> Result<Option<Known>, OwnError> {
    let looked = look_once(named, directories, before);
    if looked.as_ref().is_err_and(OwnError::is_missing) {
        // What a link led to went away while it was followed: a volume changed.
        return look_once(named, directories, before);
    }
    looked
}

fn look_once(
    named: &Named,
    directories: &Directories,
    before: Option<&[Stamp]>,
) -> Result<Option<Known>, OwnError> {
    let found = survey(named, directories)?;
    // Of before they are read: what changes meanwhile is seen the next time.
    let stamps: Arc<[Stamp]> = found.iter().map(|one| one.stamp).collect();
    if before == Some(&*stamps) {
        return Ok(None);
    }
    let roots = Arc::new(read(&found, named, directories)?);
    Ok(Some(Known { stamps, roots }))
}

/// A file that may hold certificates.
struct Found {
    /// What led there.
    variable: &'static str,
    path: PathBuf,
    stamp: Stamp,
}

fn survey(named: &Named, directories: &Directories) -> Result<Vec<Found>, OwnError> {
    let mut found = Vec::new();
    if let Some(path) = &named.file {
        let stamp = directories.look(path).map_err(|source| unusable(FILE, path, source))?;
        found.push(Found { variable: FILE, path: path.clone(), stamp });
    }
    let mut seen: HashSet<_> = found.iter().map(|one| one.stamp).collect();
    let mut left = MOST_FILES;
    for directory in &named.directories {
        let paths = directories
            .list(directory, left)
            .map_err(|source| unusable(DIRECTORIES, directory, source))?;
        left -= paths.len();
        for path in paths {
            // What is no file, or a link to nothing, is passed over, as by Go.
            if let Ok(stamp) = directories.look(&path)
                && seen.insert(stamp)
            {
                found.push(Found { variable: DIRECTORIES, path, stamp });
            }
        }
    }
    Ok(found)
}

fn read(found: &[Found], named: &Named, directories: &Directories) -> Result<Roots, OwnError> {
    let mut store = RootCertStore::empty();
    if named.file.is_none() {
        roots::add_system(&mut store);
    }
    let mut left = LARGEST;
    for one in found {
        let (variable, path) = (one.variable, &one.path);
        let text = match directories.read(path, left) {
            Ok(text) => text,
            Err(source) if variable == FILE || matches!(source, FileError::TooLarge) => {
                return Err(unusable(variable, path, source));
            }
            // Directories hold other files too, which are nobody's concern.
            Err(_) => continue,
        };
        left -= text.len() as u64;
        if roots::add(&mut store, &text) == 0 && variable == FILE {
            return Err(OwnError::Empty { variable, path: path.clone() });
        }
    }
    Roots::of(store).ok_or_else(|| OwnError::Empty {
        variable: DIRECTORIES,
        path: named.directories.first().cloned().unwrap_or_default(),
    })
}

fn unusable(variable: &'static str, path: &Path, source: FileError) -> OwnError {
    OwnError::Unusable { variable, path: path.to_owned(), source }
}
