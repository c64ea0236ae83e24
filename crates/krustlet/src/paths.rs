//! Where the agent keeps things, and the lock that makes it the only one there.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// The layout of a root directory.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    directory: PathBuf,
}

/// Held by the one agent of a root directory, for as long as it lives: the
/// kernel lets go of it whatever way the agent ends.
#[derive(Debug)]
pub(crate) struct RootLock {
    _file: File,
}

impl Root {
    /// The directory asked for, or the user's default one.
    pub(crate) fn new(asked: Option<PathBuf>) -> Self {
        Self { directory: asked.unwrap_or_else(default_directory) }
    }

    /// Makes the directories that do not exist, for their owner only.
    ///
    /// # Errors
    ///
    /// What the system says of the path.
    pub(crate) fn create(&self) -> io::Result<()> {
        for directory in [self.path().to_owned(), self.runtime(), self.pods()] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        Ok(())
    }

    /// Takes the lock. None if another agent holds it.
    ///
    /// # Errors
    ///
    /// What the system says of the file.
    pub(crate) fn lock(&self) -> io::Result<Option<RootLock>> {
        let mut options = File::options();
        let path = self.path().join("lock");
        let file = options.create(true).append(true).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(RootLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// Sockets and records of zygotes and sandboxes.
    pub(crate) fn runtime(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// The local API.
    pub(crate) fn socket(&self) -> PathBuf {
        self.runtime().join("agent.sock")
    }

    /// The network namespace of pods that have addresses of their own.
    pub(crate) fn pod_namespace(&self) -> PathBuf {
        self.runtime().join("netns")
    }

    /// Where the addresses and names of Services lead, for sandboxes.
    pub(crate) fn services(&self) -> PathBuf {
        self.runtime().join("services")
    }

    /// Checkpoints and volumes of pods.
    pub(crate) fn pods(&self) -> PathBuf {
        self.directory.join("pods")
    }

    /// Images.
    pub(crate) fn images(&self) -> PathBuf {
        self.directory.join("images")
    }

    /// Compiled code.
    pub(crate) fn artifacts(&self) -> PathBuf {
        self.directory.join("artifacts")
    }

    /// Logs of standalone pods; a node's lie where its configuration says.
    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// The pods that `krustlet run` was asked for.
    pub(crate) fn standalone(&self) -> PathBuf {
        self.directory.join("standalone.json")
    }

    /// The log of an agent in the background.
    pub(crate) fn agent_log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// The self-signed serving certificate.
    pub(crate) fn certificates(&self) -> PathBuf {
        self.directory.join("pki")
    }
}

/// `/var/lib/krustlet` for root, the user's state directory for others.
fn default_directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/krustlet");
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(home)
        .unwrap_or_else(std::env::temp_dir)
        .join("krustlet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_directory_has_one_agent() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(Some(directory.path().join("root")));
        root.create().unwrap();
        let held = root.lock().unwrap();
        assert!(held.is_some());
        assert!(root.lock().unwrap().is_none());
        drop(held);
        assert!(root.lock().unwrap().is_some());
    }
}
