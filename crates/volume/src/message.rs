//! The file that a run writes its termination message to.
//!
//! A kubelet mounts one file over `terminationMessagePath`. A guest is given
//! directories only, so it depends on what lies where the file is to be:
//!
//! | its directory is | the file lies |
//! |---|---|
//! | nowhere, or missing or empty in the image or a read-only volume | in a directory of the run's own, which the guest sees there |
//! | `/dev` of the image | the same: container runtimes mount over it too |
//! | in a volume that the container may write | in the volume |
//! | any other | refused: the rest of the directory would be hidden |
//!
//! A directory of the run's own is the agent's, and the file in it the pod's,
//! so that the guest can write the file and nothing else. In a volume guests can
//! do what they like; what is made or read there stays below the volume.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{FileType, Gid, Mode, OFlags, Uid},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    error::VolumeError,
    mounts::{VolumeMountDir, open_below},
    remove,
    volumes::Volumes,
};

/// Directories that are expected to be mounted over.
const MOUNTED_OVER: &str = "/dev";

/// A run of a container.
#[derive(Clone, Copy, Debug)]
pub struct MessageRun<'a> {
    /// The container's name.
    pub container: &'a str,
    /// Which of its runs.
    pub restart: u32,
    /// `terminationMessagePath`, absolute.
    pub path: &'a str,
}

/// Where a run's message lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessagePlace {
    /// In a directory of the run's own.
    #[default]
    Own,
    /// In a volume of the pod.
    Volume {
        /// Its name.
        volume: String,
        /// Below the volume's directory.
        path: String,
    },
}

/// A file for a message.
#[derive(Debug)]
pub struct MessageFile {
    /// Where it lies; [`Volumes::message`] wants it back.
    pub place: MessagePlace,
    /// A directory that the guest is to be given for it.
    pub directory: Option<VolumeMountDir>,
}

/// The absolute path without `.`, `..` and double slashes: directory and name.
fn split(path: &str) -> Option<(PathBuf, String)> {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    // Paths of the API are text.
    let name = clean.file_name()?.to_str()?.to_owned();
    clean.pop();
    Some((clean, name))
}

/// What covers a directory of the guest's: the image's root or a mount.
struct Cover<'a> {
    host: &'a Path,
    /// The directory below it.
    rest: PathBuf,
    mount: Option<&'a VolumeMountDir>,
}

/// The mount that lies deepest above a directory, or at it.
fn cover<'a>(
    directory: &Path,
    image_root: Option<&'a Path>,
    mounts: &'a [VolumeMountDir],
) -> Option<Cover<'a>> {
    let below = |mount: &'a VolumeMountDir| {
        let rest = directory.strip_prefix(&mount.guest).ok()?.to_owned();
        Some(Cover { host: &mount.host, rest, mount: Some(mount) })
    };
    let deepest =
        mounts.iter().filter_map(below).min_by_key(|cover| cover.rest.components().count());
    let root = || {
        let rest = directory.strip_prefix("/").unwrap_or(directory).to_owned();
        Some(Cover { host: image_root?, rest, mount: None })
    };
    deepest.or_else(root)
}

/// Whether something lies at a directory of the guest's that would be hidden by
/// another in its place.
pub(crate) fn is_covered(
    directory: &Path,
    image_root: Option<&Path>,
    mounts: &[VolumeMountDir],
) -> io::Result<bool> {
    match cover(directory, image_root, mounts) {
        Some(Cover { rest, .. }) if rest.as_os_str().is_empty() => Ok(true),
        Some(Cover { host, rest, .. }) => Ok(!is_free(host, &rest)?),
        None => Ok(false),
    }
}

/// See [`Volumes::make_message`].
pub(crate) fn make(
    volumes: &Volumes,
    run: &MessageRun<'_>,
    image_root: Option<&Path>,
    mounts: &[VolumeMountDir],
) -> Result<MessageFile, VolumeError> {
    let (container, path) = (run.container.to_owned(), run.path.to_owned());
    let Some((directory, name)) = split(run.path) else {
        return Err(VolumeError::MessagePath { container, path });
    };
    let failed = |source| VolumeError::Message {
        container: run.container.to_owned(),
        path: run.path.to_owned(),
        source,
    };
    remove::tree(&volumes.runs(run.container)).map_err(failed)?;
    let covered = cover(&directory, image_root, mounts);
    if let Some(Cover { rest, mount: Some(mount), .. }) = &covered
        && mount.writable
    {
        let (volume, sub_path) = &mount.of;
        let place = Path::new(sub_path).join(rest);
        in_volume(volumes, volume, &place, &name).map_err(failed)?;
        let path = place.join(&name).to_string_lossy().into_owned();
        let place = MessagePlace::Volume { volume: volume.clone(), path };
        return Ok(MessageFile { place, directory: None });
    }
    if let Some(Cover { host, rest, mount }) = covered
        && (rest.as_os_str().is_empty() || directory != Path::new(MOUNTED_OVER))
    {
        let is_free = !rest.as_os_str().is_empty() && is_free(host, &rest).map_err(failed)?;
        match mount {
            _ if is_free => {}
            Some(mount) => {
                return Err(VolumeError::MessageReadOnly {
                    container,
                    path,
                    volume: mount.of.0.clone(),
                });
            }
            None => {
                let directory = directory.display().to_string();
                return Err(VolumeError::MessageHides { container, path, directory });
            }
        }
    }
    let own = own(volumes, run);
    in_own(volumes, &own, &name).map_err(failed)?;
    let directory = VolumeMountDir::own(own, directory.display().to_string(), true);
    Ok(MessageFile { place: MessagePlace::Own, directory: Some(directory) })
}

/// See [`Volumes::message`].
pub(crate) fn read(
    volumes: &Volumes,
    run: &MessageRun<'_>,
    place: &MessagePlace,
    limit: u64,
) -> io::Result<Vec<u8>> {
    let found = match place {
        MessagePlace::Own => {
            let Some((_, name)) = split(run.path) else { return Ok(Vec::new()) };
            open(&own(volumes, run), Path::new(""), &name, OFlags::RDONLY)
        }
        MessagePlace::Volume { volume, path } => {
            let path = Path::new(path);
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let parent = path.parent().unwrap_or(Path::new(""));
            open(&volumes.directory(volume), parent, name, OFlags::RDONLY)
        }
    };
    let mut file = match found {
        Ok(file) => File::from(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    // It may grow meanwhile: another container may write to the volume.
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn own(volumes: &Volumes, run: &MessageRun<'_>) -> PathBuf {
    volumes.runs(run.container).join(run.restart.to_string())
}

fn in_own(volumes: &Volumes, directory: &Path, name: &str) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let path = directory.join(name);
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o644).open(&path)?;
    volumes.owner().give(&path)
}

/// Makes the file in a volume, or empties the one that is there.
fn in_volume(volumes: &Volumes, volume: &str, parent: &Path, name: &str) -> io::Result<()> {
    let root = volumes.directory(volume);
    let parent = parent.to_str().unwrap_or_default();
    let owner = volumes.owner();
    if !parent.is_empty() {
        drop(open_below(&root, parent, Some(owner))?);
    }
    let file = open(&root, Path::new(parent), name, OFlags::WRONLY | OFlags::CREATE)?;
    rustix::fs::ftruncate(&file, 0)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    Ok(())
}

/// Opens a regular file that lies below a directory, whatever guests put there:
/// no way out of it, no link in place of the file, nothing that one would wait
/// for.
fn open(root: &Path, parent: &Path, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let parent = parent.to_str().unwrap_or_default();
    let at = open_below(root, if parent.is_empty() { "." } else { parent }, None)?;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&at, name, flags, Mode::from_raw_mode(0o644))?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// Whether a directory below another is missing or empty.
fn is_free(root: &Path, rest: &Path) -> io::Result<bool> {
    let rest = rest.to_str().unwrap_or_default();
    let found = match open_below(root, rest, None) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        // A file stands in the way, or a link leads out.
        Err(_) => return Ok(false),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = match rustix::fs::openat(&found, ".", flags, Mode::empty()) {
        Ok(listed) => listed,
        Err(Errno::NOTDIR) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    for entry in rustix::fs::Dir::read_from(&listed)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
