//! A container's files as its guests would open them: by the paths that they
//! know, in the directories that they were given, and nowhere else.
//!
//! Symbolic links are followed as far as they stay in their directory, and
//! nothing is waited for but the disk: what is no regular file is not opened.
//! The calls block.

use std::{
    ffi::OsStr,
    fs::{File, Metadata},
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Dir, Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// Tries of a look-up that something renamed on the machine disturbs, which
/// happens to paths with `..` only. cap-std, which opens files for guests, tries
/// as often.
const TRIES: usize = 4;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("no volume of the container is there")]
    NoVolume,
    #[error("a link leads out of its volume")]
    Escape,
    #[error("that is no regular file")]
    NoFile,
    #[error("it is too large")]
    TooLarge,
    #[error("it has too many files")]
    TooMany,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl FileError {
    /// Whether nothing is there.
    pub(crate) fn is_missing(&self) -> bool {
        match self {
            Self::NoVolume => true,
            Self::Io(error) => error.kind() == io::ErrorKind::NotFound,
            Self::Escape | Self::NoFile | Self::TooLarge | Self::TooMany => false,
        }
    }
}

impl From<Errno> for FileError {
    fn from(error: Errno) -> Self {
        if error == Errno::XDEV { Self::Escape } else { Self::Io(error.into()) }
    }
}

/// By what a file is told from one that took its place, and from itself before
/// it was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<Metadata> for Stamp {
    fn from(file: Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// The directories of one container.
#[derive(Debug)]
pub(crate) struct Directories(Vec<Given>);

/// One directory, and the path by which guests know it.
#[derive(Debug)]
struct Given {
    path: PathBuf,
    directory: OwnedFd,
}

impl Directories {
    /// Each with the path by which guests know it.
    pub(crate) fn new<'a>(given: impl Iterator<Item = (&'a str, OwnedFd)>) -> Self {
        let given = given
            .map(|(path, directory)| Given { path: Path::new("/").join(path), directory })
            .collect();
        Self(given)
    }

    /// In the order in which they were given.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &OwnedFd> {
        self.0.iter().map(|given| &given.directory)
    }

    /// Looks at a file without opening it.
    ///
    /// # Errors
    ///
    /// If there is no regular file.
    pub(crate) fn look(&self, path: &Path) -> Result<Stamp, FileError> {
        let file = File::from(self.open(path, OFlags::PATH)?).metadata()?;
        if file.is_file() { Ok(file.into()) } else { Err(FileError::NoFile) }
    }

    /// Reads a file of so many bytes at most.
    ///
    /// # Errors
    ///
    /// If there is no regular file, or it is longer.
    pub(crate) fn read(&self, path: &Path, most: u64) -> Result<Vec<u8>, FileError> {
        // To open a device may do something, and a pipe never ends.
        self.look(path)?;
        let how = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(self.open(path, how)?);
        if !file.metadata()?.is_file() {
            return Err(FileError::NoFile);
        }
        let mut text = Vec::new();
        file.take(most.saturating_add(1)).read_to_end(&mut text)?;
        if text.len() as u64 > most { Err(FileError::TooLarge) } else { Ok(text) }
    }

    /// The paths of what is in a directory, so many at most, in their order.
    ///
    /// # Errors
    ///
    /// If there is no directory, or it has more.
    pub(crate) fn list(&self, path: &Path, most: usize) -> Result<Vec<PathBuf>, FileError> {
        let mut paths = Vec::new();
        for entry in Dir::new(self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if paths.len() == most {
                return Err(FileError::TooMany);
            }
            paths.push(path.join(OsStr::from_bytes(name)));
        }
        paths.sort();
        Ok(paths)
    }

    fn open(&self, path: &Path, how: OFlags) -> Result<OwnedFd, FileError> {
        let (directory, rest) = self.find(path).ok_or(FileError::NoVolume)?;
        let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let how = how | OFlags::CLOEXEC;
        let open = || rustix::fs::openat2(directory.as_fd(), rest, how, Mode::empty(), resolve);
        let mut opened = open();
        for _ in 1..TRIES {
            if opened.as_ref().err() != Some(&Errno::AGAIN) {
                break;
            }
            opened = open();
        }
        Ok(opened?)
    }

    /// The directory that a path is in, and what is left of the path: of several
    /// the one with the longest path, as wasi-libc finds them.
    fn find<'a>(&self, path: &'a Path) -> Option<(&OwnedFd, &'a Path)> {
        let rest = |given: &Given| path.strip_prefix(&given.path).ok();
        let within = self.0.iter().filter_map(|given| Some((given, rest(given)?)));
        let (given, rest) = within.max_by_key(|(given, _)| given.path.components().count())?;
        Some((&given.directory, rest))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::{CWD, FileType};
    use tempfile::TempDir;

    use super::*;

    fn given(directories: &[(&str, &Path)]) -> Directories {
        let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
        Directories::new(directories.iter().map(|(guest, path)| (*guest, open(path))))
    }

    fn text(directories: &Directories, path: &str) -> Result<String, FileError> {
        let text = directories.read(Path::new(path), 100)?;
        Ok(String::from_utf8(text).unwrap())
    }

    #[test]
    fn a_path_is_that_of_the_directory_nearest_to_it() {
        let [root, deep, near] = [(); 3].map(|()| TempDir::new().unwrap());
        fs::create_dir_all(root.path().join("etc/ca")).unwrap();
        fs::write(root.path().join("etc/ca/file"), "of the root").unwrap();
        fs::write(root.path().join("etc/other"), "beside it").unwrap();
        fs::write(deep.path().join("file"), "of the volume").unwrap();
        let all =
            given(&[("/", root.path()), ("/etc/ca", deep.path()), ("/etc/ca-not", near.path())]);
        assert_eq!(text(&all, "/etc/ca/file").unwrap(), "of the volume");
        assert_eq!(text(&all, "//etc/./ca//file").unwrap(), "of the volume");
        assert_eq!(text(&all, "/etc/other").unwrap(), "beside it");
        assert!(text(&all, "/etc/ca-not/file").unwrap_err().is_missing());
        assert_eq!(all.list(Path::new("/etc/ca"), 1).unwrap(), [Path::new("/etc/ca/file")]);
        let few = given(&[("/etc/ca", deep.path())]);
        assert!(matches!(text(&few, "/etc/other"), Err(FileError::NoVolume)));
    }

    #[test]
    fn links_are_followed_within_their_directory_only() {
        let [outside, volume] = [(); 2].map(|()| TempDir::new().unwrap());
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let at = |name: &str| volume.path().join(name);
        // As kubelets lay volumes out.
        fs::create_dir(at("..one")).unwrap();
        fs::write(at("..one/ca.crt"), "first").unwrap();
        symlink("..one", at("..data")).unwrap();
        symlink("..data/ca.crt", at("ca.crt")).unwrap();
        symlink(outside.path().join("secret"), at("absolute")).unwrap();
        let up = Path::new("..").join(outside.path().file_name().unwrap()).join("secret");
        symlink(up, at("relative")).unwrap();
        symlink("round", at("round")).unwrap();
        let all = given(&[("/ca", volume.path())]);
        assert_eq!(text(&all, "/ca/ca.crt").unwrap(), "first");
        let before = all.look(Path::new("/ca/ca.crt")).unwrap();
        fs::create_dir(at("..two")).unwrap();
        fs::write(at("..two/ca.crt"), "other").unwrap();
        symlink("..two", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert_eq!(text(&all, "/ca/ca.crt").unwrap(), "other");
        assert_ne!(all.look(Path::new("/ca/ca.crt")).unwrap(), before);
        let up = format!("/ca/../{}/secret", outside.path().file_name().unwrap().display());
        for path in ["/ca/absolute", "/ca/relative", &up] {
            let refused = text(&all, path);
            assert!(matches!(refused, Err(FileError::Escape)), "{path}: {refused:?}");
        }
        assert!(matches!(text(&all, "/ca/round"), Err(FileError::Io(_))));
    }

    #[test]
    fn what_is_no_file_or_too_large_is_not_read() {
        let volume = TempDir::new().unwrap();
        let at = |name: &str| volume.path().join(name);
        // Nobody writes to it: to open it, or to read from it, would never end.
        rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::create_dir(at("directory")).unwrap();
        fs::write(at("large"), [b'x'; 101]).unwrap();
        fs::write(at("fits"), [b'x'; 100]).unwrap();
        let all = given(&[("/v", volume.path())]);
        for path in ["/v/pipe", "/v/directory", "/v"] {
            let refused = text(&all, path);
            assert!(matches!(refused, Err(FileError::NoFile)), "{path}: {refused:?}");
        }
        assert!(matches!(text(&all, "/v/large"), Err(FileError::TooLarge)));
        assert_eq!(text(&all, "/v/fits").unwrap().len(), 100);
        let few = all.list(Path::new("/v"), 3);
        assert!(matches!(few, Err(FileError::TooMany)), "{few:?}");
        assert_eq!(all.list(Path::new("/v/"), 4).unwrap().len(), 4);
        assert!(all.list(Path::new("/v/fits"), 4).is_err());
    }
}
