//! A zygote and its sandboxes, as an agent has them.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fs::{self, File},
    net::{TcpListener, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use krustlet_model::{ContainerId, ContainerName, PodUid};
use krustlet_protocol::{
    ContainerSpec, DescriptorName, ExitReport, Failure, Frame, GuestKind, Limits, ListenPort,
    LogLimits, PodNetwork, Preopen, SandboxEvent, SandboxMessage, SandboxReply, SandboxRequest,
    ZygoteMessage, ZygoteReply, ZygoteRequest, socket,
};
use rustix::{
    event::{PollFd, PollFlags},
    fs::{CWD, OFlags},
    mount::OpenTreeFlags,
    process::{
        Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, pidfd_open, pidfd_send_signal,
        setrlimit,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tempfile::TempDir;

use crate::code::{ARTIFACT, compiled};

/// No answer takes this long.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The first user of sandboxes in these tests.
const FIRST_UID: u32 = 200_000;

/// A zygote of its own for a test; retired when dropped.
pub(crate) struct Zygote {
    process: RefCell<Child>,
    pub(crate) state: TempDir,
    pub(crate) socket: OwnedFd,
    next: Cell<u32>,
}

impl Zygote {
    pub(crate) fn start() -> Self {
        Self::start_with(0, None)
    }

    /// A zygote that some user has started.
    pub(crate) fn start_as(uid: u32) -> Self {
        Self::start_with(uid, None)
    }

    /// A zygote whose sandboxes may have so many descriptors each.
    pub(crate) fn start_within(descriptors: u64) -> Self {
        Self::start_with(0, Some(descriptors))
    }

    fn start_with(uid: u32, descriptors: Option<u64>) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root, as the node does");
        let state = krustlet_testkit::directory();
        let (ours, theirs) = socket::pair().unwrap();
        let listener = socket::bind(&state.path().join("zygote.sock")).unwrap();
        let journal = append(&state.path().join("journal"));
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("zygote")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .uid(uid)
            .gid(uid);
        let handed = [OwnedFd::from(journal), listener, theirs];
        // As many as there may be, as with an agent.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: descriptors.or(maximum), maximum };
        // SAFETY: only calls that are allowed after a fork.
        unsafe {
            command.pre_exec(move || {
                setrlimit(Resource::Nofile, limit)?;
                // Up first, out of the way of the numbers they are to have.
                let [journal, listener, agent] = [0, 1, 2]
                    .map(|which: usize| libc::fcntl(handed[which].as_raw_fd(), libc::F_DUPFD, 100));
                for (number, fd) in [(3, agent), (4, listener), (5, journal)] {
                    if libc::dup2(fd, number) == -1 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let process = command.spawn().unwrap();
        // The command still holds what it handed over.
        drop(command);
        let warm: Frame<ZygoteMessage> = receive(&ours).0;
        assert!(matches!(warm.body, ZygoteMessage::Warm { .. }), "{warm:?}");
        Self { process: RefCell::new(process), state, socket: ours, next: Cell::new(FIRST_UID) }
    }

    /// Asks, and returns the answer; news are skipped.
    pub(crate) fn ask(
        &self,
        body: ZygoteRequest,
        fds: &[(DescriptorName, OwnedFd)],
    ) -> (ZygoteReply, Vec<OwnedFd>) {
        ask_on(&self.socket, body, fds)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process.borrow());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// A second agent's connection.
    pub(crate) fn connect(&self) -> OwnedFd {
        socket::connect(&self.state.path().join("zygote.sock")).unwrap()
    }

    pub(crate) fn sandbox(&self) -> Sandbox {
        let uid = self.next.replace(self.next.get() + 1);
        let (reply, sandbox) = self.fork(uid);
        sandbox.unwrap_or_else(|| panic!("not forked: {reply:?}"))
    }

    pub(crate) fn fork(&self, uid: u32) -> (ZygoteReply, Option<Sandbox>) {
        let id = format!("s{uid}");
        let path = self.state.path().join(format!("{id}.sock"));
        let status = self.state.path().join(format!("{id}.status"));
        let control = socket::bind(&path).unwrap();
        let groups = vec![uid + 1];
        let request = ZygoteRequest::RunSandbox { id, uid, gid: uid, groups };
        let fds =
            [(DescriptorName::Control, control), (DescriptorName::Status, append(&status).into())];
        let (reply, mut fds) = self.ask(request, &fds);
        let ZygoteReply::Forked { pid } = reply else { return (reply, None) };
        let files = krustlet_testkit::directory();
        let socket = connect_soon(&path);
        let sandbox = Sandbox {
            pid,
            uid,
            pidfd: fds.remove(0),
            path,
            status,
            files,
            connection: Connection::new(socket),
            next: Cell::new(0),
        };
        (reply, Some(sandbox))
    }

    /// What the journal has about a process: its wait status.
    pub(crate) fn journalled(&self, pid: i32) -> Option<i32> {
        let journal = fs::read_to_string(self.state.path().join("journal")).unwrap();
        journal.lines().find_map(|line| match serde_json::from_str(line).unwrap() {
            ZygoteMessage::Exited { pid: of, wait_status, .. } if of == pid => Some(wait_status),
            _ => None,
        })
    }

    /// Waits until the process has ended.
    pub(crate) fn ended(&self) {
        let end = Instant::now() + LIMIT;
        while self.process.borrow_mut().try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the zygote does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        let mut process = self.process.borrow_mut();
        // Sandboxes outlive a zygote by design; a test must leave none.
        let path = self.state.path().join("zygote.sock");
        if let Ok(socket) = socket::connect(&path)
            && let (ZygoteReply::Sandboxes { running }, _) =
                ask_on::<_, ZygoteReply>(&socket, ZygoteRequest::List, &[])
        {
            let ends: Vec<OwnedFd> = running
                .into_iter()
                .filter_map(|(_, pid)| {
                    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
                    pidfd_send_signal(&process, Signal::KILL).ok()?;
                    Some(process)
                })
                .collect();
            // The next test may want the addresses and ports that they have.
            for process in ends {
                readable(&process, LIMIT);
            }
        }
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// One sandbox, and the files of its containers.
pub(crate) struct Sandbox {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) path: PathBuf,
    pub(crate) status: PathBuf,
    pub(crate) files: TempDir,
    pub(crate) connection: Connection,
    next: Cell<u32>,
}

/// What a container is made of, with the usual as default.
pub(crate) struct Make {
    pub(crate) code: PathBuf,
    pub(crate) guest: GuestKind,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_directory: Option<String>,
    /// Host directory, guest path, writable.
    pub(crate) mounts: Vec<(PathBuf, String, bool)>,
    pub(crate) listener: Option<TcpListener>,
    /// The pod's port that the listener is for, if it is not the one that it is bound
    /// to.
    pub(crate) listener_port: Option<u16>,
    /// The node's sockets, and the port of each in the pod.
    pub(crate) datagrams: Vec<(u16, UdpSocket)>,
    pub(crate) listen_ports: Vec<ListenPort>,
    pub(crate) memory: Option<u64>,
    /// Thousandths of a core.
    pub(crate) cpu: Option<u64>,
    pub(crate) log_bytes: u64,
    pub(crate) pod: String,
}

impl Make {
    fn of(guest: &str, kind: GuestKind, args: &[&str]) -> Self {
        Self {
            code: compiled(guest),
            guest: kind,
            args: args.iter().map(ToString::to_string).collect(),
            env: Vec::new(),
            working_directory: None,
            mounts: Vec::new(),
            listener: None,
            listener_port: None,
            datagrams: Vec::new(),
            listen_ports: Vec::new(),
            memory: None,
            cpu: None,
            log_bytes: 10 << 20,
            pod: "pod".into(),
        }
    }

    /// A core module.
    pub(crate) fn module(guest: &str, args: &[&str]) -> Self {
        Self::of(guest, GuestKind::Module { export: "_start".into() }, args)
    }

    /// A command component.
    pub(crate) fn command(guest: &str, args: &[&str]) -> Self {
        Self::of(guest, GuestKind::Command, args)
    }

    /// Code of another origin than the guests' folder.
    pub(crate) fn code(mut self, directory: PathBuf) -> Self {
        self.code = directory;
        self
    }
}

impl Sandbox {
    /// A new connection, as of a new agent.
    pub(crate) fn reconnect(&mut self) {
        self.connection = Connection::new(socket::connect(&self.path).unwrap());
    }

    pub(crate) fn ask(&self, body: SandboxRequest) -> SandboxReply {
        self.connection.ask(body, &[])
    }

    pub(crate) fn log(&self, id: &ContainerId) -> PathBuf {
        self.files.path().join(id.digits())
    }

    /// Says what a pod's sockets may do.
    pub(crate) fn network(&self, pod: &str, network: &PodNetwork) {
        let file = socket::memfd(&serde_json::to_vec(network).unwrap()).unwrap();
        let request = SandboxRequest::SetPodNetwork { pod: PodUid::new(pod) };
        let reply = self.connection.ask(request, &[(DescriptorName::Network, file)]);
        assert_eq!(reply, SandboxReply::Done);
    }

    /// As [`network`](Self::network), and hands it the Services.
    pub(crate) fn led_network(&self, pod: &str, network: &PodNetwork, services: &Path) {
        let file = socket::memfd(&serde_json::to_vec(network).unwrap()).unwrap();
        let request = SandboxRequest::SetPodNetwork { pod: PodUid::new(pod) };
        let given =
            [(DescriptorName::Network, file), (DescriptorName::Services, detached(services))];
        assert_eq!(self.connection.ask(request, &given), SandboxReply::Done);
    }

    /// Creates a container; its id, or why not.
    pub(crate) fn create(&self, make: Make) -> Result<ContainerId, Failure> {
        let number = self.next.replace(self.next.get() + 1);
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        let id = ContainerId::from_bytes(bytes);
        let spec = ContainerSpec {
            id: id.clone(),
            pod: PodUid::new(&make.pod),
            name: ContainerName::new("main"),
            guest: make.guest,
            artifact: ARTIFACT.into(),
            args: make.args,
            env: make.env,
            working_directory: make.working_directory,
            preopens: make
                .mounts
                .iter()
                .map(|(_, guest_path, writable)| Preopen {
                    guest_path: guest_path.clone(),
                    writable: *writable,
                })
                .collect(),
            listeners: u16::from(make.listener.is_some()),
            listener_ports: make.listener_port.into_iter().collect(),
            datagram_ports: make.datagrams.iter().map(|(port, _)| *port).collect(),
            listen_ports: make.listen_ports,
            limits: Limits { memory_bytes: make.memory, cpu_millis: make.cpu },
            log: LogLimits { max_bytes: make.log_bytes },
        };
        let log = self.log(&id);
        let mut fds = vec![
            (DescriptorName::Spec, socket::memfd(&serde_json::to_vec(&spec).unwrap()).unwrap()),
            (DescriptorName::ArtifactDirectory, detached(&make.code)),
            (DescriptorName::Log, append(&log).into()),
            (DescriptorName::NextLog, append(&log.with_extension("next")).into()),
        ];
        fds.extend(make.mounts.iter().map(|(path, ..)| (DescriptorName::Preopen, detached(path))));
        fds.extend(make.listener.map(|listener| (DescriptorName::Listener, listener.into())));
        let datagrams = make.datagrams.into_iter();
        fds.extend(datagrams.map(|(_, socket)| (DescriptorName::Datagrams, socket.into())));
        match self.connection.ask(SandboxRequest::CreateContainer, &fds) {
            SandboxReply::Done => Ok(id),
            SandboxReply::Failed(failure) => Err(failure),
            other => panic!("create: {other:?}"),
        }
    }

    /// Creates and starts a container.
    pub(crate) fn start(&self, make: Make) -> ContainerId {
        let id = self.create(make).unwrap();
        assert_eq!(self.ask(SandboxRequest::StartContainer { id: id.clone() }), SandboxReply::Done);
        id
    }

    /// Runs a container to its end.
    pub(crate) fn run(&self, make: Make) -> (ContainerId, ExitReport) {
        let id = self.start(make);
        let exit = self.exit(&id);
        (id, exit)
    }

    pub(crate) fn running(&self, id: &ContainerId) -> i64 {
        self.connection.event(|event| match event {
            SandboxEvent::Running { id: of, at } if of == id => Some(*at),
            _ => None,
        })
    }

    pub(crate) fn exit(&self, id: &ContainerId) -> ExitReport {
        self.connection.event(|event| match event {
            SandboxEvent::Exited { id: of, exit } if of == id => Some(exit.clone()),
            _ => None,
        })
    }

    /// What a pod listens on, as the agent is lent it.
    pub(crate) fn listeners(&self, pod: &str) -> Vec<(u16, OwnedFd)> {
        let request = SandboxRequest::Listeners { pod: PodUid::new(pod) };
        let id = self.connection.send(request, &[]);
        let (reply, sockets) = self.connection.answer_with(id).expect("the sandbox is there");
        let SandboxReply::Listeners { ports } = reply else { panic!("{reply:?}") };
        assert_eq!(ports.len(), sockets.len());
        ports.into_iter().zip(sockets).collect()
    }

    /// Waits until the sandbox says that a pod listens.
    pub(crate) fn listening(&self, pod: &str) {
        self.connection.event(|event| match event {
            SandboxEvent::Listening { pod: of } => (*of == PodUid::new(pod)).then_some(()),
            _ => None,
        });
    }

    /// What the sandbox says is not as it should be.
    pub(crate) fn complaint(&self) -> String {
        self.connection.event(|event| match event {
            SandboxEvent::Complained { what } => Some(what.clone()),
            _ => None,
        })
    }

    pub(crate) fn stop(&self, id: &ContainerId, grace_ms: u64) {
        let stop = SandboxRequest::StopContainer { id: id.clone(), grace_ms };
        assert_eq!(self.ask(stop), SandboxReply::Done);
    }

    /// The text of a container's log, without times and tags.
    pub(crate) fn output(&self, id: &ContainerId) -> String {
        text_of(&self.log(id))
    }

    /// A directory that the sandbox's user may write to.
    pub(crate) fn volume(&self) -> TempDir {
        let directory = krustlet_testkit::directory();
        std::os::unix::fs::chown(directory.path(), Some(self.uid), Some(self.uid)).unwrap();
        directory
    }

    /// Has the sandbox do what an attacker would; `None` when that kills it.
    pub(crate) fn attack(&self, attack: &str, argument: &str) -> Option<String> {
        #[derive(Serialize)]
        struct Attack<'a> {
            attack: &'a str,
            argument: &'a str,
        }
        self.connection.attack(Attack { attack, argument })
    }

    /// Waits for the end of the process.
    pub(crate) fn ended(&self) {
        assert!(readable(&self.pidfd, LIMIT), "the sandbox does not end");
    }
}

/// A connection to a sandbox.
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    events: RefCell<VecDeque<SandboxEvent>>,
    next: Cell<u64>,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, events: RefCell::default(), next: Cell::new(1) }
    }

    /// Sends a request; the number that its answer will have.
    pub(crate) fn send(&self, body: impl Serialize, fds: &[(DescriptorName, OwnedFd)]) -> u64 {
        let id = self.next.replace(self.next.get() + 1);
        let frame = Frame { id, descriptors: fds.iter().map(|(name, _)| *name).collect(), body };
        let lent: Vec<_> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
        socket::send_frame(self.socket.as_fd(), &frame, &lent).unwrap();
        id
    }

    /// Waits for an answer; events that come before it are kept.
    pub(crate) fn answer(&self, id: u64) -> Option<SandboxReply> {
        self.answer_with(id).map(|(reply, _)| reply)
    }

    /// As [`answer`](Self::answer), with the open files that came with it.
    fn answer_with(&self, id: u64) -> Option<(SandboxReply, Vec<OwnedFd>)> {
        loop {
            let (frame, fds) = try_receive::<SandboxMessage>(&self.socket)?;
            match frame.body {
                SandboxMessage::Reply(reply) => {
                    assert_eq!(frame.id, id);
                    return Some((reply, fds));
                }
                SandboxMessage::Event(event) => self.events.borrow_mut().push_back(event),
            }
        }
    }

    pub(crate) fn ask(
        &self,
        body: SandboxRequest,
        fds: &[(DescriptorName, OwnedFd)],
    ) -> SandboxReply {
        let id = self.send(body, fds);
        self.answer(id).expect("the sandbox is there")
    }

    fn attack(&self, attack: impl Serialize) -> Option<String> {
        let id = self.send(attack, &[]);
        match self.answer(id)? {
            SandboxReply::Failed(Failure::Failed { message }) => Some(message),
            other => panic!("attack: {other:?}"),
        }
    }

    /// Waits for an event; others are kept.
    pub(crate) fn event<T>(&self, wanted: impl Fn(&SandboxEvent) -> Option<T>) -> T {
        let mut seen = 0;
        loop {
            if let Some(event) = self.events.borrow().get(seen) {
                seen += 1;
                if let Some(found) = wanted(event) {
                    return found;
                }
                continue;
            }
            let frame: Frame<SandboxMessage> = receive(&self.socket).0;
            match frame.body {
                SandboxMessage::Event(event) => self.events.borrow_mut().push_back(event),
                SandboxMessage::Reply(reply) => panic!("not asked for: {reply:?}"),
            }
        }
    }
}

/// Asks on a connection to a zygote.
pub(crate) fn ask_on<Q: Serialize, A: From<ZygoteReply>>(
    to: &OwnedFd,
    body: Q,
    fds: &[(DescriptorName, OwnedFd)],
) -> (A, Vec<OwnedFd>) {
    let frame = Frame { id: 7, descriptors: fds.iter().map(|(name, _)| *name).collect(), body };
    let lent: Vec<_> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
    socket::send_frame(to.as_fd(), &frame, &lent).unwrap();
    loop {
        let (frame, fds) = receive::<ZygoteMessage>(to);
        if let ZygoteMessage::Reply(reply) = frame.body {
            assert_eq!(frame.id, 7);
            return (reply.into(), fds);
        }
    }
}

/// The next message.
pub(crate) fn receive<T: DeserializeOwned>(from: &OwnedFd) -> (Frame<T>, Vec<OwnedFd>) {
    try_receive(from).expect("the other side is there")
}

fn try_receive<T: DeserializeOwned>(from: &OwnedFd) -> Option<(Frame<T>, Vec<OwnedFd>)> {
    assert!(readable(from, LIMIT), "no message within {LIMIT:?}");
    let packet = socket::receive(from.as_fd()).unwrap()?.unfold().unwrap();
    Some((socket::parse_frame(&packet).unwrap(), packet.fds))
}

pub(crate) fn readable(fd: &OwnedFd, limit: Duration) -> bool {
    let limit = rustix::event::Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: 0 };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&limit)).unwrap() > 0
}

/// A sandbox listens a moment after it was forked.
fn connect_soon(path: &Path) -> OwnedFd {
    let end = Instant::now() + LIMIT;
    loop {
        match socket::connect(path) {
            Ok(socket) => return socket,
            Err(error) => assert!(Instant::now() < end, "{}: {error}", path.display()),
        }
        std::thread::yield_now();
    }
}

/// A mount of a directory that is nowhere in the tree, as the agent hands it over.
pub(crate) fn detached(path: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).unwrap()
}

pub(crate) fn append(path: &Path) -> File {
    File::options().create(true).append(true).open(path).unwrap()
}

/// The text of a log file, without times and tags.
pub(crate) fn text_of(log: &Path) -> String {
    let log = fs::read_to_string(log).unwrap();
    log.lines()
        .map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n")
        .collect()
}

/// A pipe: the reading and the writing end.
pub(crate) fn pipe() -> (File, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors, which are new and owned by nobody else.
    let (read, write) = unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), OFlags::CLOEXEC.bits().cast_signed()), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    };
    (read.into(), write)
}
