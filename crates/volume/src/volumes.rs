//! The volumes of one pod on disk.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::core::v1::{Container, EmptyDirVolumeSource, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use krustlet_model::quantity;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    atomic,
    error::VolumeError,
    etc::{self, EtcFiles},
    message::{self, MessageFile, MessagePlace, MessageRun},
    mounts::{self, VolumeMountDir},
    objects,
    payload::{Sources, payload},
    remove,
    usage::{UsageError, disk_usage},
};

/// Who must be able to use a pod's files: the user its sandbox runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeOwner {
    /// User.
    pub uid: u32,
    /// Group; the pod's `fsGroup` if it has one.
    pub gid: u32,
}

impl VolumeOwner {
    /// The agent's own user, for agents that are not root.
    #[must_use]
    pub fn current() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    pub(crate) fn owns(self, metadata: &fs::Metadata) -> bool {
        metadata.uid() == self.uid && metadata.gid() == self.gid
    }

    /// Makes this the owner of a file or directory, if it is not.
    pub(crate) fn give(self, path: &Path) -> io::Result<()> {
        if self.owns(&fs::symlink_metadata(path)?) {
            return Ok(());
        }
        chown(path, Some(self.uid), Some(self.gid))
    }
}

/// The volumes of one pod, below its directory.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
    /// The runs' own files; see [`message`](crate::message).
    runs: PathBuf,
    /// See [`etc`](crate::etc).
    etc: PathBuf,
    owner: VolumeOwner,
}

impl Volumes {
    /// The volumes of the pod with this directory. Nothing is made yet.
    #[must_use]
    pub fn new(pod_directory: &Path, owner: VolumeOwner) -> Self {
        let [root, runs, etc] =
            ["volumes", "containers", "etc"].map(|name| pod_directory.join(name));
        Self { root, runs, etc, owner }
    }

    /// Makes every volume hold what it should. May be called again: volumes of
    /// objects are then brought up to date, an emptyDir is left as it is.
    /// Returns whether anything changed. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// The first volume that cannot be set up, in the order of the spec; the
    /// ones before it are done.
    pub fn set_up(&self, sources: &Sources<'_>) -> Result<bool, VolumeError> {
        let mut changed = false;
        for volume in objects::volumes(sources.pod) {
            let failed = |source| VolumeError::Write { volume: volume.name.clone(), source };
            fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.root).map_err(failed)?;
            let directory = self.directory(&volume.name);
            changed |= match (payload(volume, sources)?, &volume.empty_dir) {
                (Some(files), _) => {
                    atomic::write(&directory, &files, self.owner).map_err(failed)?
                }
                (None, Some(source)) => self.empty_dir(&directory, source).map_err(failed)?,
                (None, None) => false,
            };
        }
        Ok(changed)
    }

    /// The directories that a container's mounts lead to, in the order of the
    /// spec. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`VolumeError`] names the mount at fault.
    pub fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        sub_path: &dyn Fn(&str) -> String,
    ) -> Result<Vec<VolumeMountDir>, VolumeError> {
        mounts::of_container(self, pod, container, sub_path)
    }

    /// Makes the file of a run for its termination message. What earlier runs
    /// of the container left is removed. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`VolumeError`] says where the message may be written instead.
    pub fn make_message(
        &self,
        run: &MessageRun<'_>,
        image_root: Option<&Path>,
        mounts: &[VolumeMountDir],
    ) -> Result<MessageFile, VolumeError> {
        message::make(self, run, image_root, mounts)
    }

    /// Writes files that a container is to find in `/etc`, all of the pod's the same;
    /// none if it has something there, and then nobody asks for them. Blocks on the
    /// disk.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Etc`] with what the system said; why there are no files.
    pub fn make_etc<E: From<VolumeError>>(
        &self,
        files: impl FnOnce() -> Result<EtcFiles, E>,
        image_root: Option<&Path>,
        mounts: &[VolumeMountDir],
    ) -> Result<Option<VolumeMountDir>, E> {
        etc::make(self, files, image_root, mounts)
    }

    /// The end of a run's message: at most `limit` bytes; none if there is no
    /// such file. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// What the system says; also if the guest has put something else in the
    /// place of the file.
    pub fn message(
        &self,
        run: &MessageRun<'_>,
        place: &MessagePlace,
        limit: u64,
    ) -> io::Result<Vec<u8>> {
        message::read(self, run, place, limit)
    }

    /// Removes everything; does nothing if nothing is there. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Remove`] with what the system said.
    pub fn tear_down(&self) -> Result<(), VolumeError> {
        for own in [&self.runs, &self.etc] {
            remove::tree(own).map_err(VolumeError::Remove)?;
        }
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(VolumeError::Remove)?,
        };
        for entry in entries {
            let path = entry.map_err(VolumeError::Remove)?.path();
            if is_mount_point(&path).map_err(VolumeError::Remove)? {
                unmount(&path, UnmountFlags::DETACH)
                    .map_err(|error| VolumeError::Remove(error.into()))?;
            }
        }
        remove::tree(&self.root).map_err(VolumeError::Remove)
    }

    /// The bytes that a volume has on the disk. Blocks.
    ///
    /// # Errors
    ///
    /// As [`disk_usage`].
    pub fn used(&self, volume: &str) -> Result<u64, UsageError> {
        disk_usage(&self.directory(volume))
    }

    pub(crate) fn etc(&self) -> &Path {
        &self.etc
    }

    pub(crate) fn directory(&self, volume: &str) -> PathBuf {
        self.root.join(volume)
    }

    /// What the runs of a container have of their own.
    pub(crate) fn runs(&self, container: &str) -> PathBuf {
        self.runs.join(container)
    }

    pub(crate) fn owner(&self) -> VolumeOwner {
        self.owner
    }

    /// Everyone of the pod may write, as in the kubelet's; what is above is the
    /// agent's alone. Source: `perm` in `pkg/volume/emptydir/empty_dir.go`.
    fn empty_dir(&self, path: &Path, source: &EmptyDirVolumeSource) -> io::Result<bool> {
        match fs::DirBuilder::new().mode(0o777).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !is_in_memory(source) || is_mount_point(path)? {
                    return Ok(false);
                }
            }
            result => result?,
        }
        if is_in_memory(source) {
            mount_memory(path, source.size_limit.as_ref())?;
        }
        self.owner.give(path)?;
        // The group stays with what is made inside, as with fsGroup.
        fs::set_permissions(path, fs::Permissions::from_mode(0o2777))?;
        Ok(true)
    }
}

fn is_in_memory(source: &EmptyDirVolumeSource) -> bool {
    source.medium.as_deref() == Some("Memory")
}

fn mount_memory(path: &Path, limit: Option<&Quantity>) -> io::Result<()> {
    let size = limit.and_then(|limit| quantity::bytes(limit).ok()).filter(|bytes| *bytes > 0);
    // Without a limit the kernel's own counts: half of the memory.
    let options = size.map_or_else(String::new, |bytes| format!("size={bytes}"));
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount(c"tmpfs", path, c"tmpfs", flags, options.as_c_str())?)
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let (Some(parent), own) = (path.parent(), fs::symlink_metadata(path)?) else { return Ok(true) };
    Ok(own.is_dir() && own.dev() != fs::metadata(parent)?.dev())
}
