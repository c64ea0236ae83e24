//! Which directory a container gets for each of its mounts.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use crate::{
    error::VolumeError,
    objects,
    volumes::{VolumeOwner, Volumes},
};

/// A directory for a guest.
#[derive(Debug)]
pub struct VolumeMountDir {
    /// Where it lies. For a subPath it leads through a descriptor that this
    /// value holds, so that nobody can put another directory in its place.
    pub host: PathBuf,
    /// Where the guest sees it.
    pub guest: String,
    /// Whether the guest may write to it.
    pub writable: bool,
    /// The volume, and the path in it that it is.
    pub(crate) of: (String, String),
    pub(crate) _held: Option<OwnedFd>,
}

impl VolumeMountDir {
    /// One that is of no volume.
    pub(crate) fn own(host: PathBuf, guest: String, writable: bool) -> Self {
        Self { host, guest, writable, of: (String::new(), String::new()), _held: None }
    }
}

/// See [`Volumes::mounts`].
pub(crate) fn of_container(
    volumes: &Volumes,
    pod: &Pod,
    container: &Container,
    expand: &dyn Fn(&str) -> String,
) -> Result<Vec<VolumeMountDir>, VolumeError> {
    let mounts = container.volume_mounts.iter().flatten();
    mounts.map(|mount| one(volumes, pod, container, mount, expand)).collect()
}

fn one(
    volumes: &Volumes,
    pod: &Pod,
    container: &Container,
    mount: &VolumeMount,
    expand: &dyn Fn(&str) -> String,
) -> Result<VolumeMountDir, VolumeError> {
    let Some(volume) = objects::volumes(pod).iter().find(|volume| volume.name == mount.name) else {
        let (container, volume) = (container.name.clone(), mount.name.clone());
        return Err(VolumeError::NoSuchVolume { container, volume });
    };
    let directory = volumes.directory(&mount.name);
    let guest = mount.mount_path.clone();
    // What is made of objects is the agent's to write.
    let writable = volume.empty_dir.is_some() && mount.read_only != Some(true);
    let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => path.clone(),
        (_, Some(expression)) if !expression.is_empty() => expand(expression),
        _ => {
            let of = (mount.name.clone(), String::new());
            return Ok(VolumeMountDir { host: directory, guest, writable, of, _held: None });
        }
    };
    let failed = |source| VolumeError::SubPath {
        container: container.name.clone(),
        volume: mount.name.clone(),
        path: sub_path.clone(),
        source,
    };
    let make = volume.empty_dir.is_some().then(|| volumes.owner());
    let held = open_below(&directory, &sub_path, make).map_err(failed)?;
    let stat = rustix::fs::fstat(&held).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(VolumeError::SubPathIsFile {
            container: container.name.clone(),
            volume: mount.name.clone(),
            path: sub_path,
        });
    }
    let host = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    let of = (mount.name.clone(), sub_path);
    Ok(VolumeMountDir { host, guest, writable, of, _held: Some(held) })
}

/// Opens a path that must stay below a directory, whatever links the guests
/// of the pod put there. Missing directories are made where the pod may write,
/// as the kubelet does (`SafeMakeDir` in `pkg/volume/util/subpath`).
pub(crate) fn open_below(
    root: &Path,
    path: &str,
    make: Option<VolumeOwner>,
) -> io::Result<OwnedFd> {
    let outside = || io::Error::new(io::ErrorKind::InvalidInput, "it leaves the volume");
    let path = Path::new(path);
    if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(outside());
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let open =
        |at: &OwnedFd, path: &Path| rustix::fs::openat2(at, path, flags, Mode::empty(), resolve);
    match open(&at, path) {
        Ok(found) => return Ok(found),
        Err(rustix::io::Errno::XDEV | rustix::io::Errno::LOOP) => return Err(outside()),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(owner) = make else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it does not exist"));
    };
    // Part by part, each below the last: the made directory is the opened one.
    for part in path.components().filter(|part| matches!(part, Component::Normal(_))) {
        let part = Path::new(part.as_os_str());
        at = match open(&at, part) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o750))?;
                let new = open(&at, part)?;
                let (user, group) = (
                    rustix::process::Uid::from_raw(owner.uid),
                    rustix::process::Gid::from_raw(owner.gid),
                );
                rustix::fs::chownat(&new, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
                new
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(at)
}

#[cfg(test)]
mod tests;
