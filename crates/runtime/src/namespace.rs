//! Which network namespaces the processes of pods are in.
//!
//! The namespace of pods is kept by a mount, which can be lost: with the mounts
//! of a service that is restarted, or by hand. The processes in it still have
//! it, and show it.

use std::{collections::BTreeMap, fs::File, io::ErrorKind, os::unix::fs::MetadataExt, path::Path};

use krustlet_protocol::{PidFd, process::start_time};

use crate::{
    NetworkKind,
    record::{SandboxRecord, State, boot},
};

/// The network namespace in which sandboxes of pods with addresses of their own
/// live, by what an agent left in its state directory; if there are several,
/// that of most of them. None if there is no such sandbox. Blocks.
#[must_use]
pub fn namespace_of_pods(state: &Path) -> Option<File> {
    let found = match State::at(state.to_owned()).found() {
        Ok(found) => found,
        // The first agent of this directory.
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %state.display(), %error, "cannot look for pods that live");
            return None;
        }
    };
    let mut all: BTreeMap<_, (usize, File)> = BTreeMap::new();
    let records = found.into_iter().filter_map(|found| found.record);
    for record in records.filter(|record| record.network == NetworkKind::Pods) {
        if let Some(file) = of_living(&record)
            && let Some(identity) = identity(&file)
        {
            all.entry(identity).or_insert((0, file)).0 += 1;
        }
    }
    all.into_values().max_by_key(|(count, _)| *count).map(|(_, file)| file)
}

/// The namespace of a recorded process, if that lives and may be looked at.
fn of_living(record: &SandboxRecord) -> Option<File> {
    if record.boot != boot() {
        return None;
    }
    let process = PidFd::open(record.pid).ok()?;
    // Looked at once it is open: then the number was that process's.
    if record.start_time.is_none() || start_time(record.pid) != record.start_time {
        return None;
    }
    let path = format!("/proc/{}/ns/net", record.pid);
    let file = File::open(&path)
        .inspect_err(|error| tracing::warn!(path, %error, "cannot see where a pod lives"))
        .ok()?;
    // And still is, so that the file is no other's.
    (!process.has_ended().ok()?).then_some(file)
}

/// Whether a process is known to be of another network namespace than the one
/// that `path` shows. Not every agent may look at other users' processes.
pub(crate) fn is_elsewhere(process: &PidFd, path: &Path) -> bool {
    let shown = |path: &Path| identity(&File::open(path).ok()?);
    let Ok(Some(pid)) = process.pid() else { return false };
    let theirs = shown(Path::new(&format!("/proc/{pid}/ns/net")));
    let (Some(ours), Some(theirs)) = (shown(path), theirs) else { return false };
    ours != theirs
}

fn identity(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        process::{Child, Command},
    };

    use super::*;
    use crate::{Domain, PodUser};

    /// A process that lives until the test has ended.
    struct Living(Child);

    impl Living {
        fn new() -> Self {
            Self(Command::new("sleep").arg("600").spawn().unwrap())
        }

        fn record(&self, network: NetworkKind) -> SandboxRecord {
            let pid = i32::try_from(self.0.id()).unwrap();
            SandboxRecord {
                pid,
                start_time: start_time(pid),
                boot: boot(),
                domain: Domain::Pod,
                user: PodUser { uid: 1000, gid: 1000, groups: vec![] },
                network,
            }
        }
    }

    impl Drop for Living {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn only_pods_that_live_show_their_namespace() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("run");
        assert!(namespace_of_pods(&root).is_none(), "there was no agent yet");
        let state = State::open(root.clone()).unwrap();
        let (id, _socket, _status) = state.prepare(1).unwrap();
        let living = Living::new();
        let pods = living.record(NetworkKind::Pods);
        let others = [
            living.record(NetworkKind::Node),
            SandboxRecord { boot: "another".into(), ..pods.clone() },
            SandboxRecord { start_time: pods.start_time.map(|time| time + 1), ..pods.clone() },
            SandboxRecord { start_time: None, ..pods.clone() },
        ];
        for other in others {
            state.put_record(&id, &other).unwrap();
            assert!(namespace_of_pods(&root).is_none(), "{other:?}");
        }
        state.put_record(&id, &pods).unwrap();
        let file = namespace_of_pods(&root).expect("it lives");
        let ours = fs::metadata("/proc/self/ns/net").unwrap();
        assert_eq!(identity(&file), Some((ours.dev(), ours.ino())));
        drop(living);
        assert!(namespace_of_pods(&root).is_none());
    }
}
