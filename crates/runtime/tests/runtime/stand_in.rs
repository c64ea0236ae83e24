//! A zygote and a sandbox that speak the protocol and run no guest.
//!
//! Both are this test program, started as a process that runs one "test". What
//! a container does is told by an exec into it: see [`Sandbox::exec`].

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsString,
    fs::File,
    io::{self, Write},
    net::TcpListener,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
    sync::{Arc, Mutex, mpsc},
    thread,
};

use krustlet_model::ContainerId;
use krustlet_protocol::{
    ContainerReport, ContainerSpec, DATAGRAMS, DescriptorName, ExecOutcome, ExitReport, Failure,
    Frame, MAX_SPEC, NetworkReport, Packet, RunState, SandboxEvent, SandboxMessage, SandboxReply,
    SandboxRequest, StatsReport, VERSION, ZygoteMessage, ZygoteReply, ZygoteRequest,
    socket::{parse_frame, read_memfd, receive, send_any_length, send_frame},
};
use rustix::{
    event::{PollFd, PollFlags},
    fs::{Mode, OFlags},
};

/// The pod's port that everything it listens on is for.
pub(crate) const PORT: u16 = 80;

/// No stand-in outlives a test that failed by more than this many seconds.
const LIFETIME: libc::c_uint = 120;

/// The command that runs one "test" of this program as a process.
pub(crate) fn command(test: &str) -> Vec<OsString> {
    let program = std::env::current_exe().unwrap().into_os_string();
    let arguments = [test, "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    std::iter::once(program).chain(arguments.map(OsString::from)).collect()
}

/// Takes a descriptor that was handed over; `None` if the test is run by hand.
fn handed(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: asking for flags changes nothing.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open, and this process has just been started with it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).unwrap();
    Some(fd)
}

fn alarm() {
    // SAFETY: a plain number goes in.
    unsafe { libc::alarm(LIFETIME) };
}

fn end(code: i32) -> ! {
    // SAFETY: ends this process; nothing of the test harness is wanted.
    unsafe { libc::_exit(code) }
}

fn poll(fds: &[BorrowedFd<'_>]) -> Vec<bool> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None)).unwrap();
    polled.iter().map(|fd| !fd.revents().is_empty()).collect()
}

#[test]
#[ignore = "a process that the other tests start"]
fn zygote() {
    if let (Some(agent), Some(listener), Some(journal)) = (handed(3), handed(4), handed(5)) {
        alarm();
        rustix::net::listen(&listener, 4).unwrap();
        Zygote { agents: vec![agent], listener, journal: journal.into() }.run();
    }
}

struct Zygote {
    agents: Vec<OwnedFd>,
    listener: OwnedFd,
    journal: File,
}

type Running = Arc<Mutex<HashMap<i32, String>>>;

impl Zygote {
    fn run(mut self) {
        let running = Running::default();
        let (woken, wake) = krustlet_protocol::socket::pair().unwrap();
        let wake = Arc::new(wake);
        let (reaped, reap) = mpsc::channel::<(i32, i32)>();
        let mut retiring = false;
        self.tell(&ZygoteMessage::Warm { version: VERSION });
        while !(retiring && running.lock().unwrap().is_empty()) {
            let ready = {
                let mut fds = vec![self.listener.as_fd(), woken.as_fd()];
                fds.extend(self.agents.iter().map(AsFd::as_fd));
                poll(&fds)
            };
            if ready[1] {
                receive(woken.as_fd()).unwrap();
                let (pid, wait_status) = reap.recv().unwrap();
                let id = running.lock().unwrap().remove(&pid).unwrap();
                let news = ZygoteMessage::Exited { id, pid, wait_status };
                writeln!(self.journal, "{}", serde_json::to_string(&news).unwrap()).unwrap();
                self.tell(&news);
            }
            let mut gone = Vec::new();
            for index in 0..self.agents.len() {
                if !ready.get(index + 2).copied().unwrap_or_default() {
                    continue;
                }
                let Ok(Some(packet)) = receive(self.agents[index].as_fd()) else {
                    gone.push(index);
                    continue;
                };
                let frame: Frame<ZygoteRequest> = parse_frame(&packet).unwrap();
                let (reply, fd) = match frame.body {
                    ZygoteRequest::RunSandbox { id, .. } => {
                        let child = spawn_sandbox(&packet);
                        let pid = i32::try_from(child.id()).unwrap();
                        running.lock().unwrap().insert(pid, id);
                        let process = krustlet_protocol::PidFd::open(pid).unwrap();
                        await_child(child, reaped.clone(), Arc::clone(&wake));
                        let fd = process.as_fd().try_clone_to_owned().unwrap();
                        (ZygoteReply::Forked { pid }, Some(fd))
                    }
                    ZygoteRequest::List => {
                        let running = running.lock().unwrap().clone();
                        let running = running.into_iter().map(|(pid, id)| (id, pid)).collect();
                        (ZygoteReply::Sandboxes { running }, None)
                    }
                    ZygoteRequest::Retire => {
                        retiring = true;
                        (ZygoteReply::Retiring, None)
                    }
                };
                let answer = Frame {
                    id: frame.id,
                    descriptors: fd.iter().map(|_| DescriptorName::PidFd).collect(),
                    body: ZygoteMessage::Reply(reply),
                };
                let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
                let _ = send_frame(self.agents[index].as_fd(), &answer, &fds);
            }
            for index in gone.into_iter().rev() {
                self.agents.remove(index);
            }
            if ready[0] {
                self.agents.push(rustix::net::accept(&self.listener).unwrap());
            }
        }
        end(0);
    }

    fn tell(&self, news: &ZygoteMessage) {
        for agent in &self.agents {
            let frame = Frame { id: 0, descriptors: vec![], body: news.clone() };
            let _ = send_frame(agent.as_fd(), &frame, &[]);
        }
    }
}

fn spawn_sandbox(packet: &Packet) -> Child {
    let [control, status] = [packet.fds[0].as_raw_fd(), packet.fds[1].as_raw_fd()];
    let words = command("stand_in::sandbox");
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    let place = move || {
        for (from, to) in [(control, 3), (status, 4)] {
            // SAFETY: plain numbers; descriptors below 10 are the zygote's own
            // and not needed in this child.
            if unsafe { libc::dup2(from, to) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // Out of the way of 3 and 4.
    assert!(control > 4 && status > 4);
    // SAFETY: only system calls that allocate nothing.
    unsafe { command.pre_exec(place) };
    command.spawn().unwrap()
}

fn await_child(mut child: Child, reaped: mpsc::Sender<(i32, i32)>, wake: Arc<OwnedFd>) {
    thread::spawn(move || {
        use std::os::unix::process::ExitStatusExt;
        let pid = i32::try_from(child.id()).unwrap();
        let status = child.wait().unwrap().into_raw();
        reaped.send((pid, status)).unwrap();
        krustlet_protocol::socket::send(wake.as_fd(), b"!", &[]).unwrap();
    });
}

/// The length of a socket's packet filter; 0 without one.
fn filter_length(listener: &TcpListener) -> libc::socklen_t {
    let mut length = 0;
    // SAFETY: with no room for a program only its length is written (socket(7)).
    let got = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            std::ptr::null_mut(),
            &raw mut length,
        )
    };
    assert_eq!(got, 0, "{}", io::Error::last_os_error());
    length
}

#[test]
#[ignore = "a process that the other tests start"]
fn sandbox() {
    if let (Some(control), Some(status)) = (handed(3), handed(4)) {
        alarm();
        rustix::net::listen(&control, 4).unwrap();
        Sandbox {
            control,
            status: status.into(),
            agents: vec![],
            containers: vec![],
            many: false,
            flood: false,
            leaves: false,
            asked: 0,
            version: VERSION,
            listeners: vec![],
            may_lend: true,
            refusals: 0,
            lend_asks: 0,
        }
        .run();
    }
}

struct Sandbox {
    control: OwnedFd,
    status: File,
    agents: Vec<OwnedFd>,
    containers: Vec<Container>,
    /// Whether it acts as if it had more containers than it can list.
    many: bool,
    /// Whether it says more than it should when it is asked for its list.
    flood: bool,
    /// Whether it lets its agents go instead of answering.
    leaves: bool,
    /// How often it was asked what its containers use.
    asked: u64,
    /// The protocol's that it speaks.
    version: u32,
    /// What its first container's pod listens on.
    listeners: Vec<TcpListener>,
    /// Whether it knows how to lend them.
    may_lend: bool,
    /// How often it has none to lend before it does.
    refusals: u32,
    /// How often it was asked for them.
    lend_asks: u32,
}

struct Container {
    spec: ContainerSpec,
    state: RunState,
    log: File,
    next: VecDeque<File>,
    /// What fills its next logs, each as soon as it holds that log.
    eager: VecDeque<String>,
    preopens: Vec<OwnedFd>,
}

impl Sandbox {
    fn run(mut self) -> ! {
        loop {
            let ready = {
                let mut fds = vec![self.control.as_fd()];
                fds.extend(self.agents.iter().map(AsFd::as_fd));
                poll(&fds)
            };
            let mut gone = Vec::new();
            for index in 0..self.agents.len() {
                if !ready[index + 1] {
                    continue;
                }
                let Ok(Some(packet)) = receive(self.agents[index].as_fd()) else {
                    gone.push(index);
                    continue;
                };
                let frame: Frame<SandboxRequest> = parse_frame(&packet).unwrap();
                let id = frame.id;
                let reply = self.answer(frame, packet.fds);
                if std::mem::take(&mut self.leaves) {
                    gone = (0..self.agents.len()).collect();
                    break;
                }
                let reply = reply.unwrap_or_else(SandboxReply::Failed);
                let lends = matches!(reply, SandboxReply::Listeners { .. });
                let body = SandboxMessage::Reply(reply);
                let mut frame = Frame { id, descriptors: vec![], body };
                let agent = self.agents[index].as_fd();
                if lends {
                    frame.descriptors = vec![DescriptorName::Listener; self.listeners.len()];
                    let lent: Vec<_> = self.listeners.iter().map(AsFd::as_fd).collect();
                    let _ = send_frame(agent, &frame, &lent);
                    continue;
                }
                let bytes = serde_json::to_vec(&frame).unwrap();
                let _ = send_any_length(agent, &bytes);
            }
            for index in gone.into_iter().rev() {
                self.agents.remove(index);
            }
            if ready[0] {
                self.agents.push(rustix::net::accept(&self.control).unwrap());
            }
        }
    }

    fn answer(
        &mut self,
        frame: Frame<SandboxRequest>,
        fds: Vec<OwnedFd>,
    ) -> Result<SandboxReply, Failure> {
        match frame.body {
            SandboxRequest::Hello { .. } => {
                Ok(SandboxReply::Hello { version: self.version, pid: std::process::id() })
            }
            SandboxRequest::CreateContainer => self.create(&frame.descriptors, fds),
            SandboxRequest::StartContainer { id } => {
                let at = 1_700_000_000_000_000;
                self.find(&id)?.state = RunState::Running { started_at: at };
                self.tell(SandboxEvent::Running { id, at });
                Ok(SandboxReply::Done)
            }
            // One of the version before.
            SandboxRequest::UpdateContainer { limits, .. } if limits.cpu_millis == Some(2) => {
                Err(Failure::UnknownVerb)
            }
            SandboxRequest::UpdateContainer { id, limits } => {
                self.find(&id)?.spec.limits = limits;
                Ok(SandboxReply::Done)
            }
            SandboxRequest::StopContainer { id, .. } => {
                self.find(&id)?;
                self.exit(&id, 143, true);
                Ok(SandboxReply::Done)
            }
            SandboxRequest::RemoveContainer { id } => {
                self.find(&id)?;
                self.containers.retain(|one| one.spec.id != id);
                Ok(SandboxReply::Done)
            }
            SandboxRequest::ListContainers if self.flood => loop {
                let exit = ExitReport {
                    exit_code: 1,
                    reason: "Error".into(),
                    message: "x".repeat(32 << 10),
                    started_at: None,
                    finished_at: 1,
                };
                let event = SandboxEvent::Exited { id: ContainerId::from_bytes([9; 32]), exit };
                self.tell(event);
            },
            SandboxRequest::ListContainers if self.many => {
                Err(Failure::Failed { message: "too many".into() })
            }
            SandboxRequest::ListContainers => {
                let report = |one: &Container| ContainerReport {
                    id: one.spec.id.clone(),
                    pod: one.spec.pod.clone(),
                    state: one.state.clone(),
                };
                Ok(SandboxReply::Containers {
                    containers: self.containers.iter().map(report).collect(),
                })
            }
            SandboxRequest::Stats => {
                self.asked += 1;
                let asked = self.asked;
                let report = |one: &Container| StatsReport {
                    id: one.spec.id.clone(),
                    pod: one.spec.pod.clone(),
                    memory_bytes: one.spec.limits.memory_bytes.unwrap_or(1),
                    // How often it was asked.
                    cpu_ns: asked,
                    log_dropped_bytes: 3,
                    network: NetworkReport::default(),
                };
                Ok(SandboxReply::Stats { containers: self.containers.iter().map(report).collect() })
            }
            SandboxRequest::Exec { id, args } => self.exec(&id, &args, fds),
            SandboxRequest::NextLog { id } => {
                let log = fds.into_iter().next().unwrap().into();
                let container = self.find(&id)?;
                container.next.push_back(log);
                match container.eager.pop_front() {
                    Some(text) if text == "leave" => self.leaves = true,
                    // Nobody hears of it.
                    Some(text) if text == "switch-and-leave" => {
                        self.leaves = true;
                        self.agents.clear();
                        self.rotate(&id, &text)?;
                    }
                    // Before it has answered.
                    Some(text) => {
                        self.rotate(&id, &text)?;
                    }
                    None => {}
                }
                Ok(SandboxReply::Done)
            }
            SandboxRequest::SetPodNetwork { .. } => Ok(SandboxReply::Done),
            SandboxRequest::Listeners { .. } => self.lend(),
            // One of the version before.
            SandboxRequest::Connect { port: 1, .. } => Err(Failure::UnknownVerb),
            SandboxRequest::Connect { port: 2, .. } => {
                Err(Failure::Failed { message: "nobody listens".into() })
            }
            SandboxRequest::Connect { .. } => {
                let [mut input, mut output] =
                    <[OwnedFd; 2]>::try_from(fds).unwrap().map(File::from);
                thread::spawn(move || io::copy(&mut input, &mut output));
                Ok(SandboxReply::Done)
            }
            SandboxRequest::StopPod { pod } => {
                self.containers.retain(|one| one.spec.pod != pod);
                Ok(SandboxReply::Done)
            }
            SandboxRequest::Shutdown => end(0),
        }
    }

    fn lend(&mut self) -> Result<SandboxReply, Failure> {
        self.lend_asks += 1;
        if !self.may_lend {
            return Err(Failure::UnknownVerb);
        }
        if let Some(left) = self.refusals.checked_sub(1) {
            self.refusals = left;
            return Err(Failure::Failed { message: "no further descriptor".into() });
        }
        let ports = self.listeners.iter().map(|_| PORT).collect();
        Ok(SandboxReply::Listeners { ports })
    }

    fn create(
        &mut self,
        names: &[DescriptorName],
        fds: Vec<OwnedFd>,
    ) -> Result<SandboxReply, Failure> {
        if self.version < DATAGRAMS && names.contains(&DescriptorName::Datagrams) {
            return Err(Failure::UnknownVerb);
        }
        let malformed = |why: &str| Failure::Malformed { why: why.into() };
        let mut fds = fds.into_iter();
        let mut take = || fds.next().ok_or(malformed("too few"));
        let spec = read_memfd(take()?, MAX_SPEC).unwrap();
        let spec: ContainerSpec = serde_json::from_slice(&spec).unwrap();
        let (code, log, next) = (take()?, take()?, take()?);
        rustix::fs::openat(&code, spec.artifact.as_str(), OFlags::RDONLY, Mode::empty())
            .map_err(|error| malformed(&error.to_string()))?;
        let mut wanted = vec![
            DescriptorName::Spec,
            DescriptorName::ArtifactDirectory,
            DescriptorName::Log,
            DescriptorName::NextLog,
        ];
        wanted.extend(spec.preopens.iter().map(|_| DescriptorName::Preopen));
        wanted.extend((0..spec.listeners).map(|_| DescriptorName::Listener));
        wanted.extend(spec.datagram_ports.iter().map(|_| DescriptorName::Datagrams));
        if names != wanted {
            return Err(malformed("other descriptors"));
        }
        let words = "x".repeat(1 << 20);
        match spec.args.first().map(String::as_str) {
            Some("unlinkable") => {
                return Err(Failure::Unlinkable { message: "no such import".into() });
            }
            Some("wordy") => return Err(Failure::Failed { message: words }),
            Some("odd") => {
                return Ok(SandboxReply::Exec(ExecOutcome { exit_code: 0, message: words }));
            }
            Some(_) | None => {}
        }
        let preopens = fds.by_ref().take(spec.preopens.len()).collect();
        let container = Container {
            spec,
            state: RunState::Created,
            log: log.into(),
            next: VecDeque::from([next.into()]),
            eager: VecDeque::new(),
            preopens,
        };
        self.containers.push(container);
        Ok(SandboxReply::Done)
    }

    /// What tests make containers do.
    fn exec(
        &mut self,
        id: &ContainerId,
        args: &[String],
        fds: Vec<OwnedFd>,
    ) -> Result<SandboxReply, Failure> {
        let mut stdout = File::from(fds.into_iter().nth(1).unwrap());
        let number = || args[1].parse::<i32>().unwrap();
        let mut exit_code = 0;
        match args[0].as_str() {
            "pid" => write!(stdout, "{}", std::process::id()).unwrap(),
            "version" => self.version = args[1].parse().unwrap(),
            "log" => writeln!(self.find(id)?.log, "{}", args[1]).unwrap(),
            "exit" => self.exit(id, number(), true),
            // Writes it down, and dies before it can tell.
            "exit-untold" => {
                self.exit(id, number(), false);
                end(9);
            }
            // Ends without telling, and lets its agents go.
            "leave" => {
                if let Some(code) = args.get(1) {
                    self.exit(id, code.parse().unwrap(), false);
                }
                self.leaves = true;
            }
            // Is there and answers no more.
            "leave-deaf" => {
                self.agents.clear();
                loop {
                    thread::park();
                }
            }
            // Listens, and says so.
            "listen" => {
                self.listeners.push(TcpListener::bind("127.0.0.1:0").unwrap());
                let pod = self.find(id)?.spec.pod.clone();
                self.tell(SandboxEvent::Listening { pod });
            }
            // Nobody hears of it.
            "listen-and-leave" => {
                self.listeners.push(TcpListener::bind("127.0.0.1:0").unwrap());
                self.leaves = true;
            }
            // How long the filters of what it listens on are, in steps.
            "filters" => {
                for listener in &self.listeners {
                    write!(stdout, "{} ", filter_length(listener)).unwrap();
                }
            }
            // As one of the version before.
            "lend-nothing" => self.may_lend = false,
            // Lends only when it is asked once more.
            "refuse-to-lend" => self.refusals = 1,
            "lend-asks" => write!(stdout, "{}", self.lend_asks).unwrap(),
            "die" => end(number()),
            "many" => self.many = true,
            "flood" => self.flood = true,
            "hang" => loop {
                thread::park();
            },
            "rotate" => {
                self.find(id)?.eager.extend(args[2..].iter().cloned());
                exit_code = i32::from(!self.rotate(id, &args[1])?);
            }
            "touch" => {
                let index = usize::try_from(number()).unwrap();
                let flags = OFlags::CREATE | OFlags::WRONLY;
                let directory = &self.find(id)?.preopens[index];
                let opened = rustix::fs::openat(directory, "touched", flags, Mode::RUSR);
                exit_code = opened.err().map_or(0, rustix::io::Errno::raw_os_error);
            }
            other => panic!("{other}"),
        }
        Ok(SandboxReply::Exec(ExecOutcome { exit_code, message: String::new() }))
    }

    /// Goes on with the next log; false if there is none.
    fn rotate(&mut self, id: &ContainerId, text: &str) -> Result<bool, Failure> {
        let container = self.find(id)?;
        let Some(next) = container.next.pop_front() else { return Ok(false) };
        container.log = next;
        self.tell(SandboxEvent::LogRotated { id: id.clone() });
        writeln!(self.find(id)?.log, "{text}").unwrap();
        Ok(true)
    }

    fn exit(&mut self, id: &ContainerId, exit_code: i32, told: bool) {
        let exit = ExitReport {
            exit_code,
            reason: "Error".into(),
            message: String::new(),
            started_at: None,
            finished_at: 1_700_000_001_000_000,
        };
        writeln!(self.status, "{}", serde_json::to_string(&(id, &exit)).unwrap()).unwrap();
        self.find(id).unwrap().state = RunState::Exited(exit.clone());
        if told {
            self.tell(SandboxEvent::Exited { id: id.clone(), exit });
        }
    }

    fn find(&mut self, id: &ContainerId) -> Result<&mut Container, Failure> {
        let missing = Failure::NotFound { id: id.to_string() };
        self.containers.iter_mut().find(|one| one.spec.id == *id).ok_or(missing)
    }

    fn tell(&self, event: SandboxEvent) {
        let frame = Frame { id: 0, descriptors: vec![], body: SandboxMessage::Event(event) };
        for agent in &self.agents {
            let _ = send_frame(agent.as_fd(), &frame, &[]);
        }
    }
}
