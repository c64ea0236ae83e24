//! The one network namespace of a node's pods, kept by a bind mount that
//! outlives the agent and every process in it.
//!
//! A namespace belongs to a thread. What is done in the pods' is done on a
//! thread that is thrown away afterwards, so that no thread of the agent's ever
//! runs there by mistake.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rustix::{
    mount::UnmountFlags,
    thread::{LinkNameSpaceType, UnshareFlags},
};

/// `NS_GET_NSTYPE` of `linux/nsfs.h`: which kind of namespace a file is.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// The namespace of the thread that opens it.
const OWN: &str = "/proc/thread-self/ns/net";

/// Why there is no namespace.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum NamespaceError {
    #[error("cannot make {}", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("cannot make a network namespace")]
    Make(#[source] io::Error),

    #[error("cannot keep the network namespace at {}", .path.display())]
    Keep {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The pods' namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Namespace {
    path: PathBuf,
    file: Arc<File>,
}

impl Namespace {
    /// The namespace that is kept at `path`; if there is none, that in which
    /// pods of an earlier agent live (`living`, asked only then); or a new one. A
    /// file that is there without being one (the machine was started anew) is put
    /// to use. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`] names the step; all need `CAP_SYS_ADMIN`.
    pub fn open(
        path: PathBuf,
        living: impl FnOnce() -> Option<File>,
    ) -> Result<Self, NamespaceError> {
        if let Some(file) = found(&path) {
            tracing::debug!(path = %path.display(), "the pods' network namespace is there");
            return Ok(Self { path, file: Arc::new(file) });
        }
        if let Some(file) = living().filter(is_others) {
            let kept = Self { path, file: Arc::new(file) };
            kept.bind()?;
            tracing::warn!(
                path = %kept.path.display(),
                "the pods' network namespace was not kept any more; found it again where pods live"
            );
            return Ok(kept);
        }
        let file = on_a_thread(|| {
            // SAFETY: this thread ends with the closure, and a network
            // namespace is no memory.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            File::open(OWN)
        })
        .map_err(NamespaceError::Make)?;
        let made = Self { path, file: Arc::new(file) };
        made.bind()?;
        tracing::info!(path = %made.path.display(), "made the pods' network namespace");
        Ok(made)
    }

    /// Where it is kept; who opens this may enter it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file back at its path if it is not there any more; whether it
    /// had to. Blocks.
    ///
    /// # Errors
    ///
    /// [`NamespaceError`] if it cannot be put back.
    pub fn keep(&self) -> Result<bool, NamespaceError> {
        let is_same = |file: File| identity(&file) == identity(&self.file);
        if found(&self.path).is_some_and(is_same) {
            return Ok(false);
        }
        self.bind()?;
        Ok(true)
    }

    fn bind(&self) -> Result<(), NamespaceError> {
        let path = &self.path;
        let mut options = File::options();
        match options.write(true).create_new(true).mode(0o600).open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(source) => return Err(NamespaceError::File { path: path.clone(), source }),
        }
        let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::mount::mount_bind(source, path)
            .map_err(|error| NamespaceError::Keep { path: path.clone(), source: error.into() })
    }

    /// Does something in the namespace, on a thread of its own. Blocks.
    ///
    /// # Errors
    ///
    /// What the system says of entering it, or what the work returns.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_a_thread(|| {
            rustix::thread::move_into_link_name_space(
                self.file.as_fd(),
                Some(LinkNameSpaceType::Network),
            )?;
            work()
        })
    }

    /// Lets it go, with its links: for an agent that leaves nothing behind.
    /// Processes in it keep it alive, but nothing leads there any more once
    /// they are gone. Blocks.
    ///
    /// # Errors
    ///
    /// What the system says of the path.
    pub fn remove(&self) -> io::Result<()> {
        match rustix::mount::unmount(&self.path, UnmountFlags::DETACH) {
            // Not a mount any more, or not there at all.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The network namespace at a path, if that is one.
fn found(path: &Path) -> Option<File> {
    File::open(path).ok().filter(is_namespace)
}

fn is_namespace(file: &File) -> bool {
    // SAFETY: the request takes no argument.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    // A plain file knows no such request.
    kind == libc::CLONE_NEWNET
}

/// Whether it is a network namespace and not this thread's own: what is made
/// for pods must never be made of the node's.
fn is_others(file: &File) -> bool {
    let own = File::open(OWN).ok();
    is_namespace(file) && own.is_some_and(|own| identity(&own) != identity(file))
}

fn identity(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|file| (file.dev(), file.ino()))
}

/// Runs work on a new thread and waits for its end.
pub(crate) fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let name = "krustlet-netns".to_owned();
        let running = thread::Builder::new().name(name).spawn_scoped(scope, work)?;
        running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
