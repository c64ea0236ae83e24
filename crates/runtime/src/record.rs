//! What a new agent must find: the runtime's state directory.
//!
//! ```text
//! lock                           held by the one agent
//! VERSION-BUILD.zygote.sock      a zygote
//! zygote.log                     what zygotes and sandboxes say when they panic
//! exits                          journal: a line for each process a zygote reaped
//! ID.sock                        a sandbox
//! ID/record.json                 who it is
//! ID/status                      written by the sandbox: a line for each ended container
//! ID/pods/UID                    the pods in it, with their addresses
//! ID/containers/CONTAINER.json   their containers
//! ```
//!
//! Files are replaced whole, by renaming, but not flushed to the disk: they
//! describe living processes, which do not outlive the kernel that would lose
//! the writes. What must survive a loss of power is the pod's checkpoint.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom},
    net::IpAddr,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use krustlet_model::{ContainerId, PodUid};
use krustlet_protocol::{ExitReport, MAX_FOLDED, ZygoteMessage, socket};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Domain, NetworkKind, PodUser, table::Who, words};

/// The longest record or line that is believed, in bytes. An exit's message is
/// at most 4 KiB, six times that when escaped.
const MAX_LINE: u64 = 64 << 10;

/// Beyond this a status file or journal is emptied when nothing in it is
/// needed any more.
const MAX_LINES: u64 = 1 << 20;

/// Bytes of a status file that are read, the newest: what is needed of it is what a
/// sandbox could tell in one message.
const MAX_STATUS: u64 = MAX_FOLDED as u64;

/// Who a sandbox is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) pid: i32,
    /// In clock ticks since boot; see [`krustlet_protocol::process::start_time`].
    pub(crate) start_time: Option<u64>,
    /// The kernel's boot id: numbers of another boot mean nothing.
    pub(crate) boot: String,
    pub(crate) domain: Domain,
    pub(crate) user: PodUser,
    /// Agents before there was a choice had but the node's.
    #[serde(default)]
    pub(crate) network: NetworkKind,
}

impl SandboxRecord {
    pub(crate) fn who(self) -> Who {
        Who { domain: self.domain, user: self.user, network: self.network }
    }
}

/// A container that was made in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: ContainerId,
    pub(crate) pod: PodUid,
    pub(crate) log: PathBuf,
    /// In microseconds since the Unix epoch.
    pub(crate) created_at: i64,
}

/// A pod in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodRecord {
    pub(crate) pod: PodUid,
    /// Those that it was given; none if the agent died before they were written.
    pub(crate) addresses: Vec<IpAddr>,
}

/// What the directory tells of one sandbox.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: String,
    /// None if the agent died before it was written.
    pub(crate) record: Option<SandboxRecord>,
    pub(crate) pods: Vec<PodRecord>,
    pub(crate) containers: Vec<ContainerRecord>,
}

/// The state directory.
#[derive(Clone, Debug)]
pub(crate) struct State {
    root: PathBuf,
}

impl State {
    /// Makes the directory, private to the agent's user.
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        // Who may enter may speak to zygote and sandboxes.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
        Ok(Self { root })
    }

    /// One that may not be there, to look at.
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Takes the lock, or `None` if another agent holds it. It is held until
    /// the file is closed, also by `kill -9`.
    pub(crate) fn lock(&self) -> io::Result<Option<File>> {
        let path = self.root.join("lock");
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    pub(crate) fn journal(&self) -> io::Result<OwnedFd> {
        Ok(append(&self.root.join("exits"))?.into())
    }

    /// How a process ended, by the word of the zygote that reaped it.
    pub(crate) fn journalled(&self, id: &str, pid: i32) -> io::Result<Option<i32>> {
        let mut found = None;
        for_each_line(&self.root.join("exits"), |line| {
            if let Ok(ZygoteMessage::Exited { id: of, pid: reaped, wait_status }) =
                serde_json::from_str(line)
                && of == id
                && reaped == pid
            {
                found = Some(wait_status);
            }
        })?;
        Ok(found)
    }

    /// Empties a journal that has grown long. Only while nobody needs it.
    pub(crate) fn trim_journal(&self) -> io::Result<()> {
        trim(&self.root.join("exits"))
    }

    pub(crate) fn socket(&self, id: &str) -> PathBuf {
        self.root.join(format!("{id}.sock"))
    }

    fn directory(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    fn status(&self, id: &str) -> PathBuf {
        self.directory(id).join("status")
    }

    fn container(&self, id: &str, container: &ContainerId) -> PathBuf {
        let name = format!("{}.json", container.digits());
        self.directory(id).join("containers").join(name)
    }

    /// Makes room for a new sandbox: its id, bound socket and status file.
    ///
    /// `wanted` is a number that grows with time, so that no id comes twice.
    pub(crate) fn prepare(&self, mut wanted: u64) -> io::Result<(String, OwnedFd, OwnedFd)> {
        let mut private = DirBuilder::new();
        private.mode(0o700);
        let id = loop {
            let id = format!("{wanted:x}");
            match private.create(self.directory(&id)) {
                Ok(()) => break id,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => wanted += 1,
                Err(error) => return Err(error),
            }
        };
        let directory = self.directory(&id);
        private.create(directory.join("pods"))?;
        private.create(directory.join("containers"))?;
        let status = append(&self.status(&id))?.into();
        Ok((id.clone(), socket::bind(&self.socket(&id))?, status))
    }

    pub(crate) fn put_record(&self, id: &str, record: &SandboxRecord) -> io::Result<()> {
        put(&self.directory(id).join("record.json"), record)
    }

    /// Not by a rename: what is in the directory is a pod, whatever its name.
    pub(crate) fn put_pod(&self, id: &str, record: &PodRecord) -> io::Result<()> {
        let path = self.directory(id).join("pods").join(record.pod.as_str());
        fs::write(path, serde_json::to_vec(&record.addresses)?)
    }

    pub(crate) fn remove_pod(&self, id: &str, pod: &PodUid) -> io::Result<()> {
        gone(fs::remove_file(self.directory(id).join("pods").join(pod.as_str())))
    }

    pub(crate) fn put_container(&self, id: &str, record: &ContainerRecord) -> io::Result<()> {
        put(&self.container(id, &record.id), record)
    }

    pub(crate) fn remove_container(&self, id: &str, container: &ContainerId) -> io::Result<()> {
        gone(fs::remove_file(self.container(id, container)))
    }

    /// The exits that a sandbox has written down of containers that are not forgotten:
    /// of each the first. It may write what it likes, and as much.
    pub(crate) fn exits(&self, id: &str) -> io::Result<HashMap<ContainerId, ExitReport>> {
        let known = list(&self.directory(id).join("containers"))?;
        let known: HashSet<_> =
            known.iter().filter_map(|name| name.strip_suffix(".json")).collect();
        let mut exits = HashMap::new();
        for_each_of_the_last_lines(&self.status(id), MAX_STATUS, |line| {
            // The last line may be half a line.
            if let Ok((of, exit)) = serde_json::from_str::<(ContainerId, ExitReport)>(line)
                && known.contains(of.digits())
            {
                exits.entry(of).or_insert_with(|| words::of_exit(exit));
            }
        })?;
        Ok(exits)
    }

    /// Empties a status file that has grown long. Only while every exit in it
    /// has been reported.
    pub(crate) fn trim_status(&self, id: &str) -> io::Result<()> {
        trim(&self.status(id))
    }

    /// Forgets a sandbox.
    pub(crate) fn remove(&self, id: &str) -> io::Result<()> {
        gone(fs::remove_file(self.socket(id)))?;
        gone(fs::remove_dir_all(self.directory(id)))
    }

    /// Every sandbox that an earlier agent left.
    pub(crate) fn found(&self) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let Ok(id) = entry.file_name().into_string() else {
                continue;
            };
            if !entry.file_type()?.is_dir() || u64::from_str_radix(&id, 16).is_err() {
                continue;
            }
            all.push(Found {
                record: get(&entry.path().join("record.json")),
                pods: pods(&entry.path().join("pods"))?,
                containers: list(&entry.path().join("containers"))?
                    .into_iter()
                    .filter_map(|name| get(&entry.path().join("containers").join(name)))
                    .collect(),
                id,
            });
        }
        // Ids grow with time: the newest last.
        all.sort_by_key(|found| u64::from_str_radix(&found.id, 16).unwrap_or_default());
        Ok(all)
    }

    /// The sockets of all zygotes.
    pub(crate) fn zygotes(&self) -> io::Result<Vec<PathBuf>> {
        let mut all = list(&self.root)?;
        all.retain(|name| name.ends_with(".zygote.sock"));
        Ok(all.into_iter().map(|name| self.root.join(name)).collect())
    }

    /// What zygotes and sandboxes say outside the protocol; begun anew when it
    /// has grown long.
    pub(crate) fn zygote_log(&self) -> io::Result<File> {
        let path = self.zygote_log_path();
        trim(&path)?;
        append(&path)
    }

    pub(crate) fn zygote_log_path(&self) -> PathBuf {
        self.root.join("zygote.log")
    }
}

/// Whether a uid can be a file name here. The API server's always can.
pub(crate) fn is_file_name(pod: &PodUid) -> bool {
    let name = pod.as_str();
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=128).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(fits)
}

/// The kernel's name for this boot.
pub(crate) fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).open(path)
}

fn put<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(&new, path)
}

/// `None` for what is not there or is not what it should be: left half-way by
/// an agent that was killed.
fn get<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_LINE).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn list(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

fn pods(directory: &Path) -> io::Result<Vec<PodRecord>> {
    let read = |name: String| {
        let addresses = get(&directory.join(&name)).unwrap_or_default();
        PodRecord { pod: PodUid::new(name), addresses }
    };
    Ok(list(directory)?.into_iter().map(read).collect())
}

fn for_each_line(path: &Path, each: impl FnMut(&str)) -> io::Result<()> {
    for_each_of_the_last_lines(path, u64::MAX, each)
}

/// Only the last `limit` bytes are read. The first line of these may be the end of one.
fn for_each_of_the_last_lines(
    path: &Path,
    limit: u64,
    mut each: impl FnMut(&str),
) -> io::Result<()> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    // It may grow meanwhile, for as long as it likes.
    let mut reader = BufReader::new(file.take(limit));
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        // What is no text is no line of ours.
        if let Ok(text) = std::str::from_utf8(&line) {
            each(text);
        }
    }
}

fn trim(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        // Written with O_APPEND: the writers go on at the new end.
        Ok(found) if found.len() > MAX_LINES => {
            OpenOptions::new().write(true).open(path)?.set_len(0)
        }
        Ok(_) => Ok(()),
        Err(error) => gone(Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn state() -> (tempfile::TempDir, State) {
        let home = tempfile::tempdir().unwrap();
        let state = State::open(home.path().join("rt")).unwrap();
        (home, state)
    }

    fn exit(code: i32) -> ExitReport {
        ExitReport {
            exit_code: code,
            reason: "Error".into(),
            message: String::new(),
            started_at: None,
            finished_at: 1,
        }
    }

    /// Has a container of a sandbox be known.
    fn keep(state: &State, sandbox: &str, id: &ContainerId) {
        let record = ContainerRecord {
            id: id.clone(),
            pod: PodUid::new("a"),
            log: "/x/0.log".into(),
            created_at: 5,
        };
        state.put_container(sandbox, &record).unwrap();
    }

    #[test]
    fn what_was_put_is_found() {
        let (_home, state) = state();
        let (id, _socket, _status) = state.prepare(0x1f).unwrap();
        let (other, _, _) = state.prepare(0x1f).unwrap();
        assert_eq!((id.as_str(), other.as_str()), ("1f", "20"));

        let pod = PodUid::new("a-b");
        let record = SandboxRecord {
            pid: 3,
            start_time: Some(4),
            boot: boot(),
            domain: Domain::Namespace("n".into()),
            user: PodUser { uid: 1, gid: 2, groups: vec![3] },
            network: NetworkKind::Pods,
        };
        let container = ContainerRecord {
            id: ContainerId::from_bytes([7; 32]),
            pod: pod.clone(),
            log: "/x/0.log".into(),
            created_at: 5,
        };
        state.put_record(&id, &record).unwrap();
        let addresses = vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let in_it = PodRecord { pod: pod.clone(), addresses };
        state.put_pod(&id, &in_it).unwrap();
        state.put_container(&id, &container).unwrap();

        let found = state.found().unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].record, Some(record));
        assert_eq!(found[0].pods, std::slice::from_ref(&in_it));
        assert_eq!(found[0].containers, std::slice::from_ref(&container));
        assert_eq!(found[1].record, None);

        state.remove_container(&id, &container.id).unwrap();
        state.remove_pod(&id, &pod).unwrap();
        state.remove(&other).unwrap();
        state.remove(&other).unwrap();
        let found = state.found().unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].pods.is_empty() && found[0].containers.is_empty());
    }

    #[test]
    fn a_record_of_an_agent_without_pod_networks_is_of_the_nodes() {
        let text = r#"{"pid":3,"start_time":4,"boot":"b","domain":"pod",
            "user":{"uid":1,"gid":2,"groups":[]}}"#;
        let record: SandboxRecord = serde_json::from_str(text).unwrap();
        assert_eq!(record.network, NetworkKind::Node);
    }

    #[test]
    fn half_a_line_at_the_end_is_passed_over() {
        let (_home, state) = state();
        let (id, _socket, status) = state.prepare(1).unwrap();
        let container = ContainerId::from_bytes([1; 32]);
        let line = serde_json::to_string(&(&container, exit(3))).unwrap();
        let mut status = File::from(status);
        write!(status, "{line}\nnonsense\n{}", &line[..line.len() / 2]).unwrap();
        keep(&state, &id, &container);
        assert_eq!(state.exits(&id).unwrap(), HashMap::from([(container, exit(3))]));
    }

    #[test]
    fn what_a_sandbox_writes_without_end_is_not_read_without_end() {
        let (_home, state) = state();
        let (id, _socket, status) = state.prepare(1).unwrap();
        let mut status = File::from(status);
        let mut write = |digit: u8, exit: &ExitReport| {
            let container = ContainerId::from_bytes([digit; 32]);
            writeln!(status, "{}", serde_json::to_string(&(&container, exit)).unwrap()).unwrap();
            container
        };
        let known = write(1, &ExitReport { message: "x".repeat(32 << 10), ..exit(3) });
        keep(&state, &id, &known);
        for digit in [1, 2, 3].repeat(1000) {
            write(digit, &exit(4));
        }
        let exits = state.exits(&id).unwrap();
        assert_eq!(exits.len(), 1, "of one that is known, and one end");
        assert_eq!((exits[&known].exit_code, exits[&known].message.len()), (3, 4096));

        // Far away from what was written first; what is not written takes no room.
        let status = state.status(&id);
        OpenOptions::new().write(true).open(status).unwrap().set_len(MAX_STATUS * 2).unwrap();
        let newest = ContainerId::from_bytes([2; 32]);
        keep(&state, &id, &newest);
        write(9, &exit(5));
        write(2, &exit(6));
        assert_eq!(state.exits(&id).unwrap(), HashMap::from([(newest, exit(6))]));
    }

    #[test]
    fn the_journal_tells_a_process_from_one_with_its_number() {
        let (_home, state) = state();
        assert_eq!(state.journalled("a", 1).unwrap(), None);
        let mut journal = File::from(state.journal().unwrap());
        for (id, pid, wait_status) in [("a", 1, 9), ("b", 1, 0), ("a", 2, 256)] {
            let line = ZygoteMessage::Exited { id: id.into(), pid, wait_status };
            writeln!(journal, "{}", serde_json::to_string(&line).unwrap()).unwrap();
        }
        assert_eq!(state.journalled("a", 1).unwrap(), Some(9));
        assert_eq!(state.journalled("a", 2).unwrap(), Some(256));
        assert_eq!(state.journalled("b", 2).unwrap(), None);
    }

    #[test]
    fn one_agent_holds_the_lock() {
        let (_home, state) = state();
        let held = state.lock().unwrap();
        assert!(held.is_some());
        assert!(state.lock().unwrap().is_none());
        drop(held);
        assert!(state.lock().unwrap().is_some());
    }

    proptest! {
        #[test]
        fn a_uid_never_leaves_its_directory(uid in ".{0,40}") {
            if is_file_name(&PodUid::new(uid.clone())) {
                let joined = Path::new("/state/pods").join(&uid);
                prop_assert_eq!(joined.parent(), Some(Path::new("/state/pods")));
                prop_assert!(uid != ".." && uid != ".");
            }
        }
    }
}
