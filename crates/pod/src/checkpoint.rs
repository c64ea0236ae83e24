//! What the next agent must know of a pod.
//!
//! ```text
//! <pods>/<uid>/checkpoint.json      replaced whole: written, renamed
//! <pods>/<uid>/volumes/…            the volumes'
//! ```
//!
//! A run's id and number are on disk before its guest is entered, and its end
//! is before the sandbox forgets it. So a run that was begun is never taken for
//! one that was not: a pod that must not run twice does not. For such a pod that
//! holds over a power failure too, at the price of waiting for the disk.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use krustlet_model::{
    PodUid,
    observed::PodObserved,
    restarts::{self, Backoff},
};
use krustlet_volume::MessagePlace;
use serde::{Deserialize, Serialize};

use crate::{place::Place, users::Allotted};

/// The format's version. A newer agent reads older ones; an older agent refuses
/// a newer one rather than to forget half of it.
const VERSION: u32 = 1;

/// The longest checkpoint that is believed, in bytes: a pod of the API server's
/// limit (1.5 MiB), its observation and its status.
const LONGEST: u64 = 8 << 20;

const FILE: &str = "checkpoint.json";

/// A pod, as one agent leaves it to the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    version: u32,
    /// The pod, without its status.
    pub pod: Pod,
    /// What was seen of it.
    pub observed: PodObserved,
    /// The last status that was reported; what must not go back is read there.
    pub status: Option<PodStatus>,
    /// The user it was given.
    pub user: Allotted,
    /// Where it is in the network; none before it has a sandbox, and after.
    #[serde(default)]
    pub place: Option<Place>,
    /// Whether it is over: nothing of it may start again.
    pub is_over: bool,
    /// What else is to be known of each container, in the order of
    /// [`PodObserved::containers`].
    pub containers: Vec<ContainerNote>,
}

impl Checkpoint {
    /// Whether it must outlive a power failure. What it says of a pod that is
    /// run again anyway need not: the pod starts afresh. But then so do its
    /// directories.
    fn is_durable(&self) -> bool {
        let volumes = self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        restarts::may_end_for_good(&self.pod)
            || self.observed.failure.is_some()
            || volumes.into_iter().any(|volume| volume.empty_dir.is_some())
    }
}

/// What a container's task keeps beside what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerNote {
    /// Its waits between restarts.
    pub backoff: Backoff,
    /// Whether its newest run has ended and the end was taken note of.
    pub has_ended: bool,
    /// Whether it was begun in the pod's newest sandbox.
    pub has_begun: bool,
    /// The wait from the end of its newest run to the next.
    pub pause: Duration,
    /// Where its newest run's termination message lies.
    #[serde(default)]
    pub message: MessagePlace,
}

/// Why checkpoints cannot be kept.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum CheckpointError {
    #[error("cannot write {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("{} is damaged", .path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },

    #[error("{} is of version {version}, written by a newer agent than this one", .path.display())]
    Newer { path: PathBuf, version: u32 },

    #[error("cannot remove {}", .path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Checkpoint {
    /// A checkpoint of this version. The pod's own status is left out.
    #[must_use]
    pub fn new(
        pod: &Pod,
        observed: PodObserved,
        status: Option<PodStatus>,
        user: Allotted,
        place: Option<Place>,
        is_over: bool,
        containers: Vec<ContainerNote>,
    ) -> Self {
        let pod = Pod { metadata: pod.metadata.clone(), spec: pod.spec.clone(), status: None };
        Self { version: VERSION, pod, observed, status, user, place, is_over, containers }
    }
}

/// The directories of all pods.
#[derive(Clone, Debug)]
pub struct PodDirectories {
    root: PathBuf,
}

impl PodDirectories {
    /// The directories below `root`, which is made when needed.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory of one pod.
    #[must_use]
    pub fn of(&self, uid: &PodUid) -> PathBuf {
        self.root.join(uid.as_str())
    }

    /// Replaces a pod's checkpoint. On disk when this returns. Blocks.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Write`]; the old one is whole then.
    pub fn save(&self, uid: &PodUid, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let directory = self.of(uid);
        let path = directory.join(FILE);
        write(&directory, &path, checkpoint)
            .map_err(|source| CheckpointError::Write { path, source })
    }

    /// Removes everything of a pod, the checkpoint last, so that a removal that
    /// was broken off is begun again. Blocks.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Remove`]; one that is not there is no error.
    pub fn remove(&self, uid: &PodUid) -> Result<(), CheckpointError> {
        let directory = self.of(uid);
        let remove = || {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                if entry.file_name() == FILE {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            fs::remove_dir_all(&directory)
        };
        match remove() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|source| CheckpointError::Remove { path: directory, source }),
        }
    }

    /// Every pod that has a directory, with its checkpoint if there is one: a
    /// pod whose agent died before the first was written has none, and none of
    /// its guests was entered. Blocks.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] if the directory cannot be read. A checkpoint that
    /// is damaged is an error of that pod alone.
    pub fn load(&self) -> Result<Vec<(PodUid, Loaded)>, CheckpointError> {
        let read = |source| CheckpointError::Read { path: self.root.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root).map_err(read)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(read)? {
            let Ok(name) = entry.map_err(read)?.file_name().into_string() else { continue };
            let uid = PodUid::new(name);
            let loaded = load(&self.of(&uid).join(FILE));
            found.push((uid, loaded));
        }
        Ok(found)
    }
}

/// What was found in a pod's directory.
pub type Loaded = Result<Option<Checkpoint>, CheckpointError>;

fn write(directory: &Path, path: &Path, checkpoint: &Checkpoint) -> io::Result<()> {
    // Secrets that a pod's spec holds in plain text are nobody else's.
    fs::DirBuilder::new().recursive(true).mode(0o711).create(directory)?;
    let new = directory.join("checkpoint.new");
    let mut options = File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(checkpoint)?)?;
    let is_durable = checkpoint.is_durable();
    if is_durable {
        file.sync_all()?;
    }
    fs::rename(&new, path)?;
    if is_durable {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// What every version's checkpoint has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn load(path: &Path) -> Loaded {
    let read = |source| CheckpointError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).map_err(read)?;
    let damaged = |source| CheckpointError::Damaged { path: path.to_owned(), source };
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version > VERSION {
        return Err(CheckpointError::Newer { path: path.to_owned(), version });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::outside::{Domain, NetworkKind, PodUser};

    fn checkpoint() -> Checkpoint {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "main"}]},
            "status": {"phase": "Running"},
        }))
        .unwrap();
        let observed = PodObserved {
            started_at: Timestamp::UNIX_EPOCH,
            failure: None,
            sandbox_ready: true,
            had_sandbox: true,
            pod_ips: vec![],
            host_ips: vec![],
            containers: vec![],
            terminating: false,
            resize: krustlet_model::observed::ResizeObserved::default(),
        };
        let user = Allotted {
            domain: Domain::Namespace("n".into()),
            from_range: true,
            user: PodUser { uid: 7, gid: 7, groups: vec![] },
            volume_group: 7,
        };
        let place =
            Place { kind: NetworkKind::Pods, addresses: vec!["10.244.1.2".parse().unwrap()] };
        let note = ContainerNote {
            backoff: Backoff::restarts(),
            has_ended: true,
            has_begun: true,
            pause: Duration::from_secs(10),
            message: MessagePlace::Own,
        };
        Checkpoint::new(&pod, observed, None, user, Some(place), false, vec![note])
    }

    #[test]
    fn what_was_saved_is_found() {
        let home = tempfile::tempdir().unwrap();
        let directories = PodDirectories::new(home.path().join("pods"));
        assert!(directories.load().unwrap().is_empty());
        let uid = PodUid::new("u");
        let saved = checkpoint();
        assert_eq!(saved.pod.status, None);
        directories.save(&uid, &saved).unwrap();
        directories.save(&uid, &saved).unwrap();
        fs::create_dir_all(directories.of(&PodUid::new("bare")).join("volumes")).unwrap();

        let mut found = directories.load().unwrap();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let [(_, bare), (_, whole)] = &found[..] else { panic!("{found:?}") };
        assert!(matches!(bare, Ok(None)));
        assert_eq!(whole.as_ref().unwrap().as_ref(), Some(&saved));

        fs::create_dir_all(directories.of(&uid).join("volumes/v")).unwrap();
        directories.remove(&uid).unwrap();
        directories.remove(&uid).unwrap();
        assert_eq!(directories.load().unwrap().len(), 1);
    }

    #[test]
    fn half_a_checkpoint_is_no_checkpoint() {
        let home = tempfile::tempdir().unwrap();
        let directories = PodDirectories::new(home.path().to_owned());
        let uid = PodUid::new("u");
        directories.save(&uid, &checkpoint()).unwrap();
        let path = directories.of(&uid).join(FILE);
        let whole = fs::read(&path).unwrap();

        // Killed while it wrote: the old one stands.
        fs::write(directories.of(&uid).join("checkpoint.new"), &whole[..9]).unwrap();
        assert!(matches!(directories.load().unwrap()[0].1, Ok(Some(_))));

        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(matches!(directories.load().unwrap()[0].1, Err(CheckpointError::Damaged { .. })));
        let newer = String::from_utf8(whole).unwrap().replace("\"version\":1", "\"version\":2");
        fs::write(&path, newer).unwrap();
        assert!(matches!(
            directories.load().unwrap()[0].1,
            Err(CheckpointError::Newer { version: 2, .. }),
        ));
    }
}
