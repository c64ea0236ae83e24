//! Why a volume cannot be used.

use std::io;

/// Why a volume cannot be set up or mounted. The texts after the colon are
/// kubelet's where it has one.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum VolumeError {
    #[error("MountVolume.SetUp failed for volume {volume:?} : {kind} {name:?} not found")]
    NotFound { volume: String, kind: &'static str, name: String },

    #[error(
        "MountVolume.SetUp failed for volume {volume:?} : references non-existent {kind} key: {key}"
    )]
    MissingKey { volume: String, kind: &'static str, key: String },

    #[error("MountVolume.SetUp failed for volume {volume:?} : no token was issued yet")]
    MissingToken { volume: String },

    #[error(
        "MountVolume.SetUp failed for volume {volume:?} : {path:?} is not a path within the volume"
    )]
    InvalidPath { volume: String, path: String },

    #[error("MountVolume.SetUp failed for volume {volume:?} : {why}")]
    Field { volume: String, why: String },

    #[error("volume {volume:?} is of a kind that this node does not offer")]
    Unsupported { volume: String },

    #[error("MountVolume.SetUp failed for volume {volume:?} : cannot write its files")]
    Write {
        volume: String,
        #[source]
        source: io::Error,
    },

    #[error("cannot remove the volumes")]
    Remove(#[source] io::Error),

    #[error("container {container:?} mounts volume {volume:?}, which the pod does not have")]
    NoSuchVolume { container: String, volume: String },

    #[error(
        "failed to prepare subPath {path:?} for volumeMount {volume:?} of container {container:?}"
    )]
    SubPath {
        container: String,
        volume: String,
        path: String,
        #[source]
        source: io::Error,
    },

    #[error(
        "subPath {path:?} for volumeMount {volume:?} of container {container:?} is a file: \
         a WebAssembly guest is given directories only, so mount the whole volume instead"
    )]
    SubPathIsFile { container: String, volume: String, path: String },

    #[error("terminationMessagePath {path:?} of container {container:?} names no file")]
    MessagePath { container: String, path: String },

    #[error(
        "terminationMessagePath {path:?} of container {container:?}: {directory} is not empty, and \
         a WebAssembly guest is given directories, so that what is there would be hidden; choose \
         a path in a directory of its own, such as /dev/termination-log"
    )]
    MessageHides { container: String, path: String, directory: String },

    #[error(
        "terminationMessagePath {path:?} of container {container:?} lies in volume {volume:?}, \
         which it may not write to; choose another path, such as /dev/termination-log"
    )]
    MessageReadOnly { container: String, path: String, volume: String },

    #[error("cannot make the termination message file {path:?} of container {container:?}")]
    Message {
        container: String,
        path: String,
        #[source]
        source: io::Error,
    },

    #[error("cannot write the pod's hosts file and what lies beside it")]
    Etc(#[source] io::Error),
}

impl VolumeError {
    /// Whether the same attempt may succeed later, with nothing changed in
    /// the pod.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::MissingKey { .. }
            | Self::MissingToken { .. }
            | Self::Write { .. }
            | Self::Remove(_)
            | Self::SubPath { .. }
            | Self::Message { .. }
            | Self::Etc(_) => true,
            Self::InvalidPath { .. }
            | Self::Field { .. }
            | Self::Unsupported { .. }
            | Self::NoSuchVolume { .. }
            | Self::SubPathIsFile { .. }
            | Self::MessagePath { .. }
            | Self::MessageHides { .. }
            | Self::MessageReadOnly { .. } => false,
        }
    }
}
