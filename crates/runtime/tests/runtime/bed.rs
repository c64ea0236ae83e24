//! A runtime over stand-ins, in a directory of its own.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    net::{IpAddr, Ipv4Addr},
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use krustlet_model::{ContainerId, ContainerName, PodUid, policy::PodPolicy};
use krustlet_protocol::{
    ContainerSpec, ExecOutcome, GuestKind, Limits, LogLimits, PidFd, PodNetwork, Preopen,
    StatsReport, socket::connect,
};
use krustlet_runtime::{
    Adopted, Domain, ExecStreams, Launch, NetworkKind, PodEvent, PodEvents, PodSandbox, PodUser,
    Runtime, RuntimeConfig, RuntimeError, open,
};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::stand_in;

/// A test that hangs must fail here, by name, not in the runner's limit.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// What each pod is given.
pub(crate) const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2));

/// One agent after another over the same state directory.
pub(crate) struct Bed {
    pub(crate) home: TempDir,
    pub(crate) runtime: Runtime,
    stop: CancellationToken,
    task: JoinSet<()>,
}

impl Bed {
    pub(crate) async fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap()).await
    }

    /// One whose pods live in the network namespace of this process.
    pub(crate) async fn with_namespace() -> Self {
        let home = tempfile::tempdir().unwrap();
        symlink("/proc/self/ns/net", namespace(&home)).unwrap();
        Self::at(home).await
    }

    async fn at(home: TempDir) -> Self {
        fs::create_dir(home.path().join("code")).unwrap();
        fs::write(home.path().join("code/program"), "code").unwrap();
        let (runtime, task, stop, adopted) = Self::open(&home).await;
        assert!(adopted.is_empty());
        Self { home, runtime, stop, task }
    }

    async fn open(home: &TempDir) -> (Runtime, JoinSet<()>, CancellationToken, Vec<Adopted>) {
        let config = Self::config(home);
        let (runtime, task, adopted) = timeout(LIMIT, open(config)).await.unwrap().unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run(stop.clone()));
        (runtime, tasks, stop, adopted)
    }

    pub(crate) fn config(home: &TempDir) -> RuntimeConfig {
        let zygote = stand_in::command("stand_in::zygote");
        let mut config = RuntimeConfig::new(home.path().join("rt"), zygote);
        config.pod_namespace = Some(namespace(home)).filter(|path| path.is_symlink());
        config
    }

    /// The agent ends; zygote and sandboxes go on.
    pub(crate) async fn agent_leaves(mut self) -> Away {
        self.stop.cancel();
        timeout(LIMIT, self.task.join_next()).await.unwrap().unwrap().unwrap();
        Away { home: self.home }
    }

    /// Ends everything.
    pub(crate) async fn finish(self) {
        self.runtime.retire().await.unwrap();
        self.agent_leaves().await;
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) async fn run(&self, pod: &str) -> PodEvents {
        self.run_in(pod, Domain::Pod).await.unwrap()
    }

    pub(crate) async fn run_in(
        &self,
        pod: &str,
        domain: Domain,
    ) -> Result<PodEvents, RuntimeError> {
        let user = PodUser { uid: 1000, gid: 1000, groups: vec![] };
        let sandbox = PodSandbox {
            pod: PodUid::new(pod),
            domain,
            user,
            kind: if namespace(&self.home).is_symlink() {
                NetworkKind::Pods
            } else {
                NetworkKind::Node
            },
            network: PodNetwork { addresses: vec![ADDRESS], ..PodNetwork::default() },
        };
        timeout(LIMIT, self.runtime.run_pod_sandbox(sandbox)).await.unwrap()
    }

    pub(crate) fn launch(&self, pod: &str, digit: u8) -> Launch {
        let spec = ContainerSpec {
            id: id(digit),
            pod: PodUid::new(pod),
            name: ContainerName::new("main"),
            guest: GuestKind::Command,
            artifact: "program".into(),
            args: vec!["program".into()],
            env: vec![],
            working_directory: None,
            preopens: vec![],
            listeners: 0,
            listener_ports: vec![],
            datagram_ports: vec![],
            listen_ports: vec![],
            limits: Limits::default(),
            log: LogLimits { max_bytes: 1 << 20 },
        };
        Launch {
            spec,
            artifact_directory: self.path("code"),
            log: self.path("logs").join(pod).join(format!("{digit}.log")),
            mounts: vec![],
            listeners: vec![],
            datagrams: vec![],
            own_datagrams: 0,
        }
    }

    /// Says anew what a pod's sockets may do.
    pub(crate) async fn set_policy(&self, pod: &str, policy: Option<PodPolicy>) {
        let network = PodNetwork { addresses: vec![ADDRESS], policy, ..PodNetwork::default() };
        let pod = PodUid::new(pod);
        let set = self.runtime.set_pod_network(&pod, network);
        timeout(LIMIT, set).await.unwrap().unwrap();
    }

    /// Creates and starts a container and waits until it runs.
    pub(crate) async fn start(&self, pod: &str, digit: u8, events: &mut PodEvents) {
        self.runtime.create_container(self.launch(pod, digit)).await.unwrap();
        self.runtime.start_container(&PodUid::new(pod), &id(digit)).await.unwrap();
        let event = next(events).await.unwrap();
        assert!(
            matches!(&event, PodEvent::Running { id: of, .. } if *of == id(digit)),
            "{event:?}"
        );
    }

    pub(crate) async fn exec(
        &self,
        pod: &str,
        digit: u8,
        args: &[&str],
    ) -> Result<(ExecOutcome, String), RuntimeError> {
        let mut stdout = tempfile::tempfile().unwrap();
        let null =
            || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        let streams = ExecStreams {
            stdin: null(),
            stdout: stdout.try_clone().unwrap().into(),
            stderr: null(),
        };
        let args = args.iter().map(ToString::to_string).collect();
        let (pod, container) = (PodUid::new(pod), id(digit));
        let exec = self.runtime.exec(&pod, &container, args, streams);
        let outcome = timeout(LIMIT, exec).await.unwrap()?;
        let mut text = String::new();
        stdout.seek(SeekFrom::Start(0)).unwrap();
        stdout.read_to_string(&mut text).unwrap();
        Ok((outcome, text))
    }

    pub(crate) async fn pid(&self, pod: &str, digit: u8) -> String {
        self.exec(pod, digit, &["pid"]).await.unwrap().1
    }

    /// What each container of a pod uses; none if its sandbox does not answer.
    pub(crate) async fn stats(&self, pod: &str) -> Option<Vec<StatsReport>> {
        let all = timeout(LIMIT, self.runtime.stats()).await.unwrap();
        all.unwrap().remove(&PodUid::new(pod))
    }

    pub(crate) async fn stop_pod(&self, pod: &str) {
        timeout(LIMIT, self.runtime.stop_pod_sandbox(&PodUid::new(pod))).await.unwrap().unwrap();
    }

    /// Directories of sandboxes in the state directory.
    pub(crate) fn sandboxes(&self) -> Vec<PathBuf> {
        sandboxes(self.home.path())
    }
}

/// Between two agents.
pub(crate) struct Away {
    pub(crate) home: TempDir,
}

impl Away {
    pub(crate) async fn agent_returns(self) -> (Bed, Vec<Adopted>) {
        let (runtime, task, stop, adopted) = Bed::open(&self.home).await;
        (Bed { home: self.home, runtime, stop, task }, adopted)
    }

    /// The pods' namespace is another one from now on.
    pub(crate) fn replace_namespace(&self, path: &str) {
        fs::remove_file(namespace(&self.home)).unwrap();
        symlink(path, namespace(&self.home)).unwrap();
    }

    /// Kills the one sandbox there is and waits until it is gone.
    pub(crate) async fn kill_sandbox(&self) {
        kill_sandbox(self.home.path()).await;
    }
}

pub(crate) async fn kill_sandbox(home: &Path) {
    use std::os::fd::AsFd;
    let all = sandboxes(home);
    assert_eq!(all.len(), 1, "{all:?}");
    let socket = connect(&all[0].with_extension("sock")).unwrap();
    let process = PidFd::of_peer(socket.as_fd()).unwrap();
    process.kill().unwrap();
    // Reaped, so that the zygote has written its journal or is about to.
    timeout(LIMIT, process.exit_status_within(LIMIT)).await.unwrap().unwrap();
}

fn sandboxes(home: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.join("rt")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_dir()).collect()
}

/// Shows the pods' namespace, if they have one.
fn namespace(home: &TempDir) -> PathBuf {
    home.path().join("netns")
}

pub(crate) fn id(digit: u8) -> ContainerId {
    ContainerId::from_bytes([digit; 32])
}

pub(crate) fn preopen(writable: bool) -> Preopen {
    Preopen { guest_path: "/data".into(), writable }
}

pub(crate) async fn next(events: &mut PodEvents) -> Option<PodEvent> {
    timeout(LIMIT, events.recv()).await.expect("an event within the limit")
}

/// Waits for a container's exit code.
pub(crate) async fn exit_code(events: &mut PodEvents, digit: u8) -> i32 {
    match next(events).await {
        Some(PodEvent::Exited { id: of, exit }) if of == id(digit) => exit.exit_code,
        other => panic!("{other:?}"),
    }
}

/// Waits for the sandbox's death, and that nothing comes after it.
pub(crate) async fn death(events: &mut PodEvents) -> i32 {
    match next(events).await {
        Some(PodEvent::SandboxDied { exit_code, .. }) => {
            assert_eq!(next(events).await, None);
            exit_code
        }
        other => panic!("{other:?}"),
    }
}
