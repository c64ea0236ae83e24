//! The control thread: answers agents, tells them the news, ticks epochs.
//!
//! It never waits for a guest or an agent, so that no guest can keep it from
//! hearing a stop. What it knows of containers is in
//! [`table`](crate::table); guests run elsewhere ([`guests`](crate::guests)).

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, mpsc::Receiver},
    time::{Duration, Instant},
};

use krustlet_model::{ContainerId, PodUid};
use krustlet_protocol::{
    DescriptorName, ExitReport, Failure, Frame, MAX_SPEC, Packet, PodNetwork, SandboxEvent,
    SandboxMessage, SandboxReply, SandboxRequest, VERSION, socket,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
};

use crate::{
    connection::{Connection, Gone},
    container::{Stop, now},
    create::{Handed, create},
    door::Door,
    exec::Exec,
    exit::{Ending, KILLED, STOPPED},
    guests::{Guests, Order, panic_text},
    heap,
    net::{Directory, Stack},
    news::{News, RequestId, Teller, Wake},
    program::Programs,
    sandbox::HOST_FAILED,
    spare::Spare,
    table::Table,
    ticker::{Ticker, Ticks},
    visit::{self, Visit},
    warm::Warm,
    zygote::{nonblocking, refusal},
};

/// Time for the first agent to say something. One that asked for this process
/// does so within seconds, if it lives; without it nobody may know that there is
/// a process to end.
const ALONE: Duration = Duration::from_mins(1);

/// Agents that may be connected at once; see the zygote.
const CONNECTIONS: usize = 16;

/// Quiet after which memory that is free is given back. Most of it is what
/// messages were read into; a sandbox that only serves its guest keeps none.
const QUIET: Duration = Duration::from_secs(1);

/// Packets taken from one agent before the others get their turn.
const PACKETS: usize = 32;

/// See the module.
pub(crate) struct Control<'a> {
    warm: &'a Warm,
    door: Door,
    spare: Spare,
    status: File,
    connections: Vec<Connection>,
    next_connection: u64,
    wake: Arc<Wake>,
    teller: Teller,
    news: Receiver<News>,
    ticker: Arc<Ticker>,
    ticks: Ticks,
    /// Started with the first container.
    guests: Option<Guests>,
    programs: Programs,
    table: Table,
    /// What the sockets of pods go through.
    networks: HashMap<PodUid, Stack>,
    /// Where Services lead, as it was handed over last.
    services: Option<Directory>,
    /// `StopPod` requests that wait for the pod's last container.
    leaving: Vec<(PodUid, RequestId)>,
    /// Whether something was done since memory was given back.
    untidy: bool,
    /// When the process ends unless an agent has said something before; `None`
    /// once one has.
    alone_until: Option<Instant>,
    end: Option<i32>,
}

/// What a request comes to: an answer now, or one that comes with the news.
enum Answer {
    Now(SandboxReply),
    Later,
}

impl<'a> Control<'a> {
    /// # Errors
    ///
    /// When the control socket cannot be listened on.
    pub(crate) fn new(warm: &'a Warm, listener: OwnedFd, status: File) -> io::Result<Self> {
        let wake = Arc::new(Wake::new()?);
        let (teller, news) = Teller::new(Arc::clone(&wake));
        let ticker = Arc::new(Ticker::new(Arc::clone(&wake)));
        nonblocking(&listener)?;
        // Here and not in the agent: who listens is who SO_PEERPIDFD names.
        rustix::net::listen(&listener, 16)?;
        Ok(Self {
            warm,
            door: Door::new(listener),
            spare: Spare::new(),
            status,
            connections: Vec::new(),
            next_connection: 0,
            wake,
            teller,
            news,
            ticks: Ticks::new(Arc::clone(&ticker), warm.engine.clone()),
            ticker,
            guests: None,
            programs: Programs::default(),
            table: Table::default(),
            networks: HashMap::new(),
            services: None,
            leaving: Vec::new(),
            untidy: true,
            alone_until: Some(Instant::now() + ALONE),
            end: None,
        })
    }

    /// Serves until told to shut down; returns the process's exit code. A panic
    /// does not take the reports of the containers with it.
    pub(crate) fn run(mut self) -> i32 {
        let served = panic::catch_unwind(AssertUnwindSafe(|| self.work()));
        served.unwrap_or_else(|panic| {
            let ending = Ending::host_failed(&panic_text(&*panic));
            // Each step of it leaves the table whole; the worst is a second panic.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| self.end_all(&ending)));
            HOST_FAILED
        })
    }

    fn work(&mut self) -> i32 {
        while self.end.is_none() {
            let Ok(ready) = self.wait() else {
                self.end_all(&Ending::host_failed("it cannot wait for work"));
                return HOST_FAILED;
            };
            self.ticks.woke(Instant::now());
            if ready.woken {
                self.wake.heard();
            }
            self.tidy(&ready);
            // Also when nothing woke us: news may come at any time.
            self.hear();
            if ready.knock || !ready.connections.is_empty() {
                self.attend(ready);
            }
            if self.alone_until.is_some_and(|end| end <= Instant::now()) {
                return HOST_FAILED;
            }
        }
        self.end.unwrap_or(HOST_FAILED)
    }

    fn wait(&self) -> io::Result<Ready> {
        let now = Instant::now();
        let mut fds = vec![
            PollFd::new(&self.wake, PollFlags::IN),
            PollFd::new(&self.door, self.door.interest(now)),
        ];
        fds.extend(self.connections.iter().map(|connection| {
            let more = if connection.is_behind() { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::new(connection, PollFlags::IN | more)
        }));
        let quiet = self.untidy.then_some(QUIET);
        let timeout = self.ticks.timeout(now).or(quiet);
        let alone = self.alone_until.map(|end| end.saturating_duration_since(now));
        let timeout = timeout.into_iter().chain(self.door.rest(now)).chain(alone);
        let timeout = timeout.min().map(timespec);
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let woken = ready.next().unwrap_or(false);
        let knock = ready.next().unwrap_or(false);
        let numbers = self.connections.iter().map(|connection| connection.number);
        let connections = numbers.zip(ready).filter_map(|(number, ready)| ready.then_some(number));
        Ok(Ready { woken, knock, connections: connections.collect() })
    }

    /// Gives free memory back once nothing has happened for a while.
    fn tidy(&mut self, ready: &Ready) {
        if ready.woken || ready.knock || !ready.connections.is_empty() {
            self.untidy = true;
        } else if self.untidy && self.ticks.timeout(Instant::now()).is_none() {
            self.untidy = false;
            heap::trim();
        }
    }

    /// Serves the agents that are there, and those that come. They have what was
    /// spared for them.
    fn attend(&mut self, ready: Ready) {
        self.spare.give_up();
        // First, as long as there surely is something free.
        if ready.knock {
            self.accept();
        }
        for number in ready.connections {
            self.serve(number);
        }
        self.spare.refill();
    }

    fn accept(&mut self) {
        // A failure is the agent's to notice; dropping one too many tells it.
        if let Ok(Some(socket)) = self.door.accept(Instant::now())
            && self.connections.len() < CONNECTIONS
        {
            self.next_connection += 1;
            self.connections.push(Connection::new(self.next_connection, socket));
        }
    }

    fn connection(&mut self, number: u64) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|connection| connection.number == number)
    }

    /// Ends a connection; its execs end with it, containers go on.
    fn let_go(&mut self, number: u64) {
        self.connections.retain(|connection| connection.number != number);
        self.leaving.retain(|(_, request)| request.connection != number);
    }

    fn serve(&mut self, number: u64) {
        for _ in 0..PACKETS {
            let Some(connection) = self.connection(number) else { return };
            match connection.flush().and_then(|()| connection.receive()) {
                Ok(Some(packet)) => self.answer(number, packet),
                Ok(None) => return,
                Err(Gone) => return self.let_go(number),
            }
        }
    }

    fn answer(&mut self, number: u64, packet: Packet) {
        let (frame, answer) = match socket::parse_frame::<SandboxRequest>(&packet) {
            Ok(Frame { id, descriptors, body }) => {
                self.alone_until = None;
                let request = RequestId { connection: number, frame: id };
                (id, self.carry_out(request, body, &descriptors, packet.fds))
            }
            Err(error) => match error.frame_id() {
                Some(id) => (id, unknown(&packet).unwrap_or_else(|| Err(refusal(&error)))),
                None => return self.let_go(number),
            },
        };
        match answer {
            Ok(Answer::Now(reply)) => self.reply(number, frame, reply),
            Ok(Answer::Later) => {}
            Err(failure) => self.reply(number, frame, SandboxReply::Failed(failure)),
        }
    }

    fn reply(&mut self, number: u64, frame: u64, reply: SandboxReply) {
        if let Some(connection) = self.connection(number)
            && connection.reply(frame, reply).is_err()
        {
            self.let_go(number);
        }
    }

    /// Answers with listening sockets.
    fn lend(&mut self, request: RequestId, lent: Vec<(u16, OwnedFd)>) {
        let RequestId { connection: number, frame } = request;
        let (ports, sockets): (_, Vec<_>) = lent.into_iter().unzip();
        let named = sockets.into_iter().map(|socket| (DescriptorName::Listener, socket));
        if let Some(connection) = self.connection(number)
            && connection
                .reply_with(frame, SandboxReply::Listeners { ports }, named.collect())
                .is_err()
        {
            self.let_go(number);
        }
    }

    fn carry_out(
        &mut self,
        request: RequestId,
        verb: SandboxRequest,
        names: &[DescriptorName],
        fds: Vec<OwnedFd>,
    ) -> Result<Answer, Failure> {
        let done = Ok(Answer::Now(SandboxReply::Done));
        match verb {
            SandboxRequest::Hello { version } => {
                if let Some(connection) = self.connection(request.connection) {
                    connection.version = version;
                }
                let pid = std::process::id();
                Ok(Answer::Now(SandboxReply::Hello { version: VERSION, pid }))
            }
            SandboxRequest::SetPodNetwork { pod } => {
                let (network, services) = if names.len() == 1 {
                    let [network] = exactly([DescriptorName::Network], names, fds)?;
                    (network, None)
                } else {
                    let wanted = [DescriptorName::Network, DescriptorName::Services];
                    let [network, services] = exactly(wanted, names, fds)?;
                    (network, Some(services))
                };
                let network = pod_network(network)?;
                let services = services.map(|files| self.directory(files));
                stack_of(&mut self.networks, &self.teller, pod).set(network, services);
                done
            }
            SandboxRequest::CreateContainer => {
                let handed = Handed::sort(names, fds)?;
                self.guests()?;
                let check = |spec: &krustlet_protocol::ContainerSpec| {
                    self.table.check_new(&spec.id)?;
                    Ok(stack_of(&mut self.networks, &self.teller, spec.pod.clone()).clone())
                };
                let container = create(self.warm, &mut self.programs, &self.teller, handed, check)?;
                self.table.insert(Arc::new(container));
                done
            }
            SandboxRequest::StartContainer { id } => {
                let container = self.table.start(&id)?;
                self.guests()?.order(Order::Start(container))?;
                done
            }
            SandboxRequest::UpdateContainer { id, limits } => {
                let container = self.table.container(&id)?;
                container.usage.set_limits(&limits).map_err(|used| Failure::Failed {
                    message: format!(
                        "attempting to set memory limit ({}) below current usage ({used})",
                        limits.memory_bytes.unwrap_or_default(),
                    ),
                })?;
                done
            }
            SandboxRequest::StopContainer { id, grace_ms } => {
                self.stop(&id, Duration::from_millis(grace_ms))?;
                done
            }
            SandboxRequest::RemoveContainer { id } => {
                self.table.remove(&id)?;
                done
            }
            SandboxRequest::ListContainers => {
                let containers = self.table.reports();
                Ok(Answer::Now(SandboxReply::Containers { containers }))
            }
            SandboxRequest::Stats => {
                let containers = self.table.stats();
                Ok(Answer::Now(SandboxReply::Stats { containers }))
            }
            SandboxRequest::Exec { id, args } => {
                let exec = self.exec(request, &id, args, names, fds)?;
                self.guests()?.order(Order::Exec(exec))?;
                Ok(Answer::Later)
            }
            SandboxRequest::NextLog { id } => {
                let [file] = exactly([DescriptorName::NextLog], names, fds)?;
                if !self.table.container(&id)?.log.hand_next(File::from(file)) {
                    let message = "it has enough log files in advance".into();
                    return Err(Failure::Failed { message });
                }
                done
            }
            SandboxRequest::Connect { pod, port } => {
                let wanted = [DescriptorName::Stdin, DescriptorName::Stdout];
                let [input, output] = exactly(wanted, names, fds)?;
                let stack = self.networks.get(&pod).cloned().ok_or_else(|| Failure::Failed {
                    message: format!("pod {pod} has no network here"),
                })?;
                let answer = visit::Answer::to(request);
                let visit = Visit { answer, stack, port, input, output };
                self.guests()?.order(Order::Visit(visit))?;
                Ok(Answer::Later)
            }
            SandboxRequest::Listeners { pod } => {
                let lent = self.networks.get(&pod).map(Stack::lend_listeners).transpose();
                let lent = lent.map_err(|error| Failure::Failed {
                    message: format!("cannot lend what pod {pod} listens on: {error}"),
                })?;
                let lent = lent.unwrap_or_default();
                self.lend(request, lent);
                Ok(Answer::Later)
            }
            SandboxRequest::StopPod { pod } => Ok(self.stop_pod(pod, request)),
            SandboxRequest::Shutdown => {
                self.reply(request.connection, request.frame, SandboxReply::Done);
                self.end_all(&Ending::stopped(KILLED));
                self.end = Some(0);
                Ok(Answer::Later)
            }
        }
    }

    /// The directory of Services, of which one descriptor is kept however many
    /// pods it was handed for.
    fn directory(&mut self, files: OwnedFd) -> Directory {
        match &self.services {
            Some(kept) if kept.is(&files) => kept.clone(),
            Some(_) | None => {
                let directory = Directory::new(files, self.teller.clone());
                self.services.insert(directory).clone()
            }
        }
    }

    /// The guests' thread, which a sandbox without containers does not have.
    fn guests(&mut self) -> Result<&Guests, Failure> {
        if self.guests.is_none() {
            let (teller, ticker) = (self.teller.clone(), Arc::clone(&self.ticker));
            let guests = Guests::start(teller, ticker, self.warm.cores);
            self.guests = Some(guests.map_err(|error| Failure::Failed {
                message: format!("cannot start the guests' thread: {error}"),
            })?);
        }
        self.guests
            .as_ref()
            .ok_or_else(|| Failure::Failed { message: "the guests' thread is gone".into() })
    }

    fn stop(&mut self, id: &ContainerId, grace: Duration) -> Result<(), Failure> {
        let container = Arc::clone(self.table.container(id)?);
        // A period too long to be counted has no end.
        let stop = match Instant::now().checked_add(grace) {
            Some(_) if grace.is_zero() => Stop::Now,
            Some(end) => Stop::By(end),
            None => Stop::By(Instant::now() + Duration::from_secs(u64::from(u32::MAX))),
        };
        container.stop(stop);
        if self.table.is_created(id)? {
            // No guest is there to end.
            let code = if grace.is_zero() { KILLED } else { STOPPED };
            let exit = Ending::stopped(code).report(None, now());
            self.ended(id.clone(), exit);
        }
        self.ticks.hurry();
        Ok(())
    }

    fn stop_pod(&mut self, pod: PodUid, request: RequestId) -> Answer {
        self.networks.remove(&pod);
        let unfinished = self.table.clear_pod(&pod);
        if unfinished.is_empty() {
            return Answer::Now(SandboxReply::Done);
        }
        for container in unfinished {
            container.stop(Stop::Now);
        }
        self.ticks.hurry();
        self.leaving.push((pod, request));
        Answer::Later
    }

    fn exec(
        &mut self,
        request: RequestId,
        id: &ContainerId,
        args: Vec<String>,
        names: &[DescriptorName],
        fds: Vec<OwnedFd>,
    ) -> Result<Exec, Failure> {
        let wanted = [DescriptorName::Stdin, DescriptorName::Stdout, DescriptorName::Stderr];
        let [stdin, stdout, stderr] = exactly(wanted, names, fds)?;
        let container = Arc::clone(self.table.running(id)?);
        let gone = || Failure::Failed { message: "the connection is gone".into() };
        let wanted = self.connection(request.connection).ok_or_else(gone)?.life();
        Ok(Exec { request, container, args, stdin, stdout, stderr, wanted })
    }

    /// Takes in what the other threads have told.
    fn hear(&mut self) {
        while let Ok(news) = self.news.try_recv() {
            match news {
                News::Running { id, at } => {
                    self.table.ran(&id, at);
                    self.tell(SandboxEvent::Running { id, at });
                }
                News::Exited { id, exit } => self.ended(id, exit),
                News::LogRotated { id } => self.tell(SandboxEvent::LogRotated { id }),
                News::Listening { pod } => self.tell(SandboxEvent::Listening { pod }),
                News::Complaint { what } => self.tell(SandboxEvent::Complained { what }),
                News::ExecEnded { request, outcome } => {
                    let RequestId { connection, frame } = request;
                    self.reply(connection, frame, SandboxReply::Exec(outcome));
                }
                News::Visited { request, made } => {
                    let RequestId { connection, frame } = request;
                    let reply = made.map_or_else(
                        |message| SandboxReply::Failed(Failure::Failed { message }),
                        |()| SandboxReply::Done,
                    );
                    self.reply(connection, frame, reply);
                }
                News::HostFailed { what } => {
                    self.end_all(&Ending::host_failed(&what));
                    self.end = Some(HOST_FAILED);
                }
            }
        }
    }

    fn ended(&mut self, id: ContainerId, exit: ExitReport) {
        if !self.table.ended(&id, &exit) {
            return;
        }
        // First what an agent that is not here will read.
        self.note(&id, &exit);
        self.tell(SandboxEvent::Exited { id, exit });
        let mut left = Vec::new();
        for (pod, request) in std::mem::take(&mut self.leaving) {
            if self.table.clear_pod(&pod).is_empty() {
                self.reply(request.connection, request.frame, SandboxReply::Done);
            } else {
                left.push((pod, request));
            }
        }
        self.leaving.extend(left);
    }

    /// One line in the status file, in one write.
    fn note(&mut self, id: &ContainerId, exit: &ExitReport) {
        if let Ok(mut line) = serde_json::to_vec(&(id, exit)) {
            line.push(b'\n');
            // A full disk: the event and the list still have it.
            let _ = self.status.write_all(&line);
        }
    }

    /// Reports an end for every container that has none, before the process's.
    fn end_all(&mut self, ending: &Ending) {
        for container in self.table.unfinished() {
            let exit = ending.clone().report(container.started_at(), now());
            self.ended(container.spec.id.clone(), exit);
        }
    }

    fn tell(&mut self, event: SandboxEvent) {
        let frame = Frame { id: 0, descriptors: Vec::new(), body: SandboxMessage::Event(event) };
        let Ok(bytes) = serde_json::to_vec(&frame) else { return };
        let mut gone = Vec::new();
        for connection in &mut self.connections {
            if connection.send(bytes.clone()).is_err() {
                gone.push(connection.number);
            }
        }
        for number in gone {
            self.let_go(number);
        }
    }
}

/// What [`Control::wait`] found.
struct Ready {
    woken: bool,
    knock: bool,
    connections: Vec<u64>,
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// What a pod's sockets go through, made for the first who asks.
fn stack_of<'a>(
    networks: &'a mut HashMap<PodUid, Stack>,
    teller: &Teller,
    pod: PodUid,
) -> &'a Stack {
    networks.entry(pod).or_insert_with_key(|pod| Stack::of(pod.clone(), teller.clone()))
}

fn pod_network(file: OwnedFd) -> Result<PodNetwork, Failure> {
    let malformed = |why: String| Failure::Malformed { why };
    let bytes = socket::read_memfd(file, MAX_SPEC)
        .map_err(|error| malformed(format!("cannot read the network: {error}")))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| malformed(format!("cannot understand the network: {error}")))
}

/// Takes descriptors of which the verb wants exactly these.
fn exactly<const N: usize>(
    wanted: [DescriptorName; N],
    names: &[DescriptorName],
    fds: Vec<OwnedFd>,
) -> Result<[OwnedFd; N], Failure> {
    let why = || format!("the verb takes the descriptors {wanted:?}, not {names:?}");
    if names != wanted {
        return Err(Failure::Malformed { why: why() });
    }
    fds.try_into().map_err(|_| Failure::Malformed { why: why() })
}

/// Verbs that are not part of the protocol; see [`attacks`](crate::attacks).
#[cfg(feature = "test-attacks")]
fn unknown(packet: &Packet) -> Option<Result<Answer, Failure>> {
    let message = crate::attacks::answer(&packet.bytes)?;
    Some(Err(Failure::Failed { message }))
}
#[cfg(not(feature = "test-attacks"))]
fn unknown(_: &Packet) -> Option<Result<Answer, Failure>> {
    None
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_sandbox_that_no_agent_ever_speaks_to_ends() {
        let warm = Warm::new().unwrap();
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("control.sock");
        let born = |alone_until| {
            let listener = socket::bind(&path).unwrap();
            let status = tempfile::tempfile().unwrap();
            let mut control = Control::new(&warm, listener, status).unwrap();
            control.alone_until = Some(alone_until);
            control
        };
        let soon = Instant::now() + Duration::from_millis(10);
        // To connect is not enough: that may be a client of something else.
        let control = born(soon);
        let _silent = socket::connect(&path).unwrap();
        assert_eq!(control.run(), HOST_FAILED);

        // One that was told something ends when it is told to.
        let mut control = born(Instant::now() + Duration::from_hours(1));
        let agent = socket::connect(&path).unwrap();
        control.accept();
        for (id, body) in [(1, SandboxRequest::Stats), (2, SandboxRequest::Shutdown)] {
            let frame = Frame { id, descriptors: vec![], body };
            socket::send_frame(agent.as_fd(), &frame, &[]).unwrap();
            control.serve(1);
            assert_eq!(control.alone_until, None);
        }
        assert_eq!(control.run(), 0);
    }
}
