//! Directories as a sandbox gets them: detached mounts, each a root of its own.
//!
//! A plain descriptor of a directory would let an escaped process walk `..`
//! out of it. A detached mount (`open_tree` with `OPEN_TREE_CLONE`) has nothing
//! above it, and the kernel holds it read-only whatever the process tries. It
//! is in no mount table and ends with its last descriptor. What is mounted
//! below the directory does not come along.

use std::{
    io::{self, ErrorKind},
    mem::size_of,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    mount::OpenTreeFlags,
};

/// How directories are handed to sandboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handover {
    /// As detached mounts; needs `CAP_SYS_ADMIN` in the mount namespace.
    #[default]
    Detached,
    /// As plain descriptors, for an agent without privilege. Weaker: only the
    /// Wasm host, not the kernel, keeps a guest inside and from writing.
    Plain,
}

/// What a sandbox may do with a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Map compiled code from it. Read-only.
    Code,
    /// Give it to a guest to read.
    Read,
    /// Give it to a guest to read and write.
    Write,
}

/// Why a directory could not be handed over.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum MountError {
    #[error("cannot open directory {}", .path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error(
        "not permitted to make a detached mount of {}; the agent needs CAP_SYS_ADMIN for that",
        .path.display()
    )]
    NotPermitted { path: PathBuf },

    #[error("cannot restrict the detached mount of {}", .path.display())]
    Restrict {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Opens a directory for a sandbox. Symbolic links in the path are followed.
pub(crate) fn open(path: &Path, purpose: Use, how: Handover) -> Result<OwnedFd, MountError> {
    match how {
        Handover::Plain => plain(path),
        Handover::Detached => detached(path, purpose),
    }
}

fn plain(path: &Path) -> Result<OwnedFd, MountError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| MountError::Open { path: path.to_owned(), source: error.into() })
}

fn detached(path: &Path, purpose: Use) -> Result<OwnedFd, MountError> {
    // Opened first, so that a file in place of a directory is told from all else.
    let directory = plain(path)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(&directory, "", flags).map_err(|error| {
        let source = io::Error::from(error);
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::PermissionDenied => MountError::NotPermitted { path },
            _ => MountError::Open { path, source },
        }
    })?;
    restrict(&mount, purpose)
        .map_err(|source| MountError::Restrict { path: path.to_owned(), source })?;
    Ok(mount)
}

/// `struct mount_attr` of `include/uapi/linux/mount.h`, as of its first size.
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

// `MOUNT_ATTR_*` of the same header.
const READ_ONLY: u64 = 1;
const NO_SET_UID: u64 = 2;
const NO_DEVICES: u64 = 4;
const NO_EXECUTE: u64 = 8;

fn restrict(mount: &OwnedFd, purpose: Use) -> io::Result<()> {
    let set = NO_SET_UID
        | NO_DEVICES
        | match purpose {
            // Code is mapped executable, which "no execute" would forbid.
            Use::Code => READ_ONLY,
            Use::Read => READ_ONLY | NO_EXECUTE,
            Use::Write => NO_EXECUTE,
        };
    let attributes = MountAttributes { set, ..MountAttributes::default() };
    // SAFETY: the path is a C string, the structure lives for the call and its
    // size is given; the kernel only reads both.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::io::Errno;

    use super::*;

    fn create(directory: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::CREATE | OFlags::WRONLY;
        rustix::fs::openat(directory, name, flags, Mode::RUSR)
    }

    #[test]
    fn a_directory_for_reading_cannot_be_written_even_by_root() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("there"), "x").unwrap();
        for purpose in [Use::Read, Use::Code] {
            let mount = open(home.path(), purpose, Handover::Detached).unwrap();
            assert_eq!(create(&mount, "new").unwrap_err(), Errno::ROFS);
            rustix::fs::openat(&mount, "there", OFlags::RDONLY, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn a_directory_for_writing_is_the_same_directory() {
        let home = tempfile::tempdir().unwrap();
        let mount = open(home.path(), Use::Write, Handover::Detached).unwrap();
        create(&mount, "new").unwrap();
        assert!(home.path().join("new").exists());
    }

    #[test]
    fn nothing_is_above_a_detached_mount() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("inner")).unwrap();
        fs::write(home.path().join("secret"), "x").unwrap();
        let mount = open(&home.path().join("inner"), Use::Write, Handover::Detached).unwrap();
        let walk = |path| rustix::fs::openat(&mount, path, OFlags::RDONLY, Mode::empty());
        assert_eq!(walk("../secret").unwrap_err(), Errno::NOENT);
        assert_eq!(walk("../../../etc/passwd").unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn a_file_is_no_directory() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "x").unwrap();
        for how in [Handover::Plain, Handover::Detached] {
            let error = open(&file, Use::Read, how).unwrap_err();
            assert!(matches!(error, MountError::Open { .. }), "{error}");
        }
    }
}
