//! Writing into a root file system that is being built, without ever leaving it.
//!
//! Each change is made relative to an open directory, and directories are opened by
//! the kernel as if the root were `/` (`openat2` with `RESOLVE_IN_ROOT`): links of lower
//! layers are followed inside, and there is no outside. Nobody else writes here meanwhile.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::path::contained_target;

/// Folders that can be written by the owner and read by the guest, whatever its user.
const DIRECTORY_MODE: u32 = 0o755;

/// Deepest nesting of directories that is walked: `PATH_MAX` allows no deeper path.
const DEPTH_LIMIT: usize = 2048;

/// A root file system under construction.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// Where the root is, as the kernel shows it.
    path: PathBuf,
    /// What the layer at hand has put, as true paths: whiteouts are for lower layers only.
    /// Ordered, so that what is below a path is found without looking at all of it.
    fresh: BTreeSet<PathBuf>,
    /// Directories in which nothing of lower layers is left. A layer that clears one again
    /// and again costs no more than one that does it once.
    cleared: HashSet<PathBuf>,
}

/// An open directory of the tree and its true path below the root.
#[derive(Debug)]
struct Place {
    directory: OwnedFd,
    path: PathBuf,
}

impl Tree {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        let path = path_of(root.as_fd())?;
        let tree = Self { root, path, fresh: BTreeSet::new(), cleared: HashSet::new() };
        // It is made private first; guests are other users.
        rustix::fs::chmod(&tree.path, Mode::from_raw_mode(DIRECTORY_MODE))?;
        Ok(tree)
    }

    /// Begins the next layer.
    pub(crate) fn next_layer(&mut self) {
        self.fresh.clear();
        self.cleared.clear();
    }

    /// Makes a directory, or keeps the one that is there.
    pub(crate) fn directory(&mut self, parent: &Path, name: &OsStr) -> io::Result<()> {
        let place = self.place(parent)?;
        let mode = Mode::from_raw_mode(DIRECTORY_MODE);
        if kind_at(&place, name)? != Some(FileType::Directory) {
            self.remove_at(&place, name)?;
            rustix::fs::mkdirat(&place.directory, name, mode)?;
        }
        self.fresh.insert(place.path.join(name));
        Ok(())
    }

    /// Makes a new file in place of whatever is there. All may read it, and run it if its
    /// owner may; there are no other rights, and no set-user-id bit.
    pub(crate) fn file(&mut self, parent: &Path, name: &OsStr, mode: u32) -> io::Result<File> {
        let place = self.place(parent)?;
        self.remove_at(&place, name)?;
        let mode = if mode & 0o100 == 0 { 0o644 } else { 0o755 };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let file = rustix::fs::openat(&place.directory, name, flags, mode)?;
        // The process' own mask has no say in an image.
        rustix::fs::fchmod(&file, mode)?;
        self.fresh.insert(place.path.join(name));
        Ok(File::from(file))
    }

    /// Makes a symbolic link that cannot lead out of the root.
    pub(crate) fn symlink(&mut self, parent: &Path, name: &OsStr, target: &[u8]) -> io::Result<()> {
        let place = self.place(parent)?;
        let depth = place.path.components().count();
        let target = contained_target(depth, target)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.remove_at(&place, name)?;
        rustix::fs::symlinkat(target, &place.directory, name)?;
        self.fresh.insert(place.path.join(name));
        Ok(())
    }

    /// Gives a regular file a second name.
    pub(crate) fn hard_link(
        &mut self,
        parent: &Path,
        name: &OsStr,
        target: &Path,
    ) -> io::Result<()> {
        let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
        let Some(target_name) = target.file_name() else {
            return Err(refused("it is a hard link to a directory"));
        };
        let from = self.existing(target.parent().unwrap_or(Path::new("")))?;
        match kind_at(&from, target_name)? {
            Some(FileType::RegularFile) => {}
            Some(_) => return Err(refused("it is a hard link to something that is not a file")),
            None => return Err(refused("it is a hard link to a file that is not there")),
        }
        let place = self.place(parent)?;
        // A link to itself would be deleted before it is made.
        if from.path.join(target_name) == place.path.join(name) {
            return Ok(());
        }
        self.remove_at(&place, name)?;
        // Without `AT_SYMLINK_FOLLOW`: the name that was checked is the one that is linked.
        rustix::fs::linkat(&from.directory, target_name, &place.directory, name, AtFlags::empty())?;
        self.fresh.insert(place.path.join(name));
        Ok(())
    }

    /// Deletes what lower layers have under a name.
    pub(crate) fn delete(&mut self, parent: &Path, name: &OsStr) -> io::Result<()> {
        let place = match self.existing(parent) {
            Ok(place) => place,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        self.remove_lower(&place, name, 0)
    }

    /// Deletes all that lower layers have in a directory.
    pub(crate) fn clear(&mut self, directory: &Path) -> io::Result<()> {
        let place = self.place(directory)?;
        self.clear_place(&place, 0)
    }

    /// Opens a directory, making what is missing on the way.
    fn place(&self, path: &Path) -> io::Result<Place> {
        match self.existing(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let mut place = self.existing(Path::new(""))?;
        let mut so_far = PathBuf::new();
        for part in path {
            so_far.push(part);
            place = match self.existing(&so_far) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    rustix::fs::mkdirat(
                        &place.directory,
                        part,
                        Mode::from_raw_mode(DIRECTORY_MODE),
                    )?;
                    self.existing(&so_far)?
                }
                result => result?,
            };
        }
        Ok(place)
    }

    fn existing(&self, path: &Path) -> io::Result<Place> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let directory = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), inside)?;
        let full = path_of(directory.as_fd())?;
        let path = full.strip_prefix(&self.path).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, "a directory is outside the image")
        })?;
        Ok(Place { directory, path: path.to_owned() })
    }

    fn remove_at(&mut self, place: &Place, name: &OsStr) -> io::Result<()> {
        match kind_at(place, name)? {
            None => Ok(()),
            Some(FileType::Directory) => {
                let full = place.path.join(name);
                while let Some(below) = self.first_fresh(&full).cloned() {
                    self.fresh.remove(&below);
                }
                // Does not follow links, and nobody else is writing here.
                std::fs::remove_dir_all(self.path.join(full))
            }
            Some(_) => Ok(rustix::fs::unlinkat(&place.directory, name, AtFlags::empty())?),
        }
    }

    /// Deletes below `name` what this layer did not put; the name itself is this layer's.
    fn clear_at(&mut self, place: &Place, name: &OsStr, depth: usize) -> io::Result<()> {
        if kind_at(place, name)? != Some(FileType::Directory) {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&place.directory, name, flags, Mode::empty())?;
        let place = Place { directory, path: place.path.join(name) };
        self.clear_place(&place, depth + 1)
    }

    fn clear_place(&mut self, place: &Place, depth: usize) -> io::Result<()> {
        if self.cleared.contains(&place.path) {
            return Ok(());
        }
        if depth > DEPTH_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "directories are nested too deep",
            ));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let readable = rustix::fs::openat(&place.directory, ".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::read_from(readable)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        for name in names {
            self.remove_lower(place, &name, depth)?;
        }
        self.cleared.insert(place.path.clone());
        Ok(())
    }

    /// Deletes what lower layers have under a name. What this layer has put there or
    /// below stays, with the directories that lead to it.
    fn remove_lower(&mut self, place: &Place, name: &OsStr, depth: usize) -> io::Result<()> {
        if self.first_fresh(&place.path.join(name)).is_some() {
            return self.clear_at(place, name, depth);
        }
        self.remove_at(place, name)
    }

    /// Something that this layer has put at a path or below it. Paths are ordered part by
    /// part, so that whatever is below a path follows it.
    fn first_fresh(&self, path: &Path) -> Option<&PathBuf> {
        let range = (Bound::Included(path), Bound::Unbounded);
        self.fresh.range::<Path, _>(range).next().filter(|found| found.starts_with(path))
    }
}

fn kind_at(place: &Place, name: &OsStr) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(&place.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn path_of(directory: BorrowedFd<'_>) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}
