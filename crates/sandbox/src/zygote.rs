//! The zygote: forks sandboxes from one warm image, and reaps them.
//!
//! ```text
//! started by an agent ──▶ room, filters, engine, linkers ──▶ Warm ──▶ serves
//! serves ──RunSandbox──▶ fork ──▶ sandbox (`sandbox.rs`)
//!        ──SIGCHLD────▶ reap ──▶ journal, then every connected agent
//!        ──Retire─────▶ forks no more; ends with its last sandbox
//! ```
//!
//! One thread, no async runtime, no randomness and no guest: what is set up
//! here is the same in all sandboxes. It outlives the agent that started it,
//! and serves any number of agents over its socket. Names and files are left to
//! the agent; the zygote opens no path but the system's certificate authorities,
//! before it locks itself in.

use std::{
    collections::HashMap,
    fmt::Display,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    process::ExitCode,
    time::Instant,
};

use krustlet_protocol::{
    DescriptorName, Failure, Frame, Packet, VERSION, ZygoteMessage, ZygoteReply, ZygoteRequest,
    socket,
};
use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    process::{Pid, PidfdFlags, WaitOptions},
};

use crate::{
    control::timespec,
    door::Door,
    heap, outgoing, room,
    sandbox::{self, Birth},
    seccomp::Filters,
    warm::Warm,
};

/// The socket to the agent that started the zygote.
const AGENT: RawFd = 3;
/// The bound socket at which other agents find the zygote.
const LISTENER: RawFd = 4;
/// The file that gets a line for each end of a sandbox, opened `O_APPEND`.
const JOURNAL: RawFd = 5;

/// Agents that may be connected at once. There is one; during an upgrade two.
const AGENTS: usize = 16;

/// Packets taken from one agent before the others get their turn.
const PACKETS: usize = 32;

pub(crate) fn main() -> ExitCode {
    match Zygote::start().and_then(Zygote::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            ExitCode::FAILURE
        }
    }
}

/// Writes to stderr, which is the log of the agent that started the zygote.
#[expect(clippy::print_stderr, reason = "the zygote has no other log")]
pub(crate) fn say(what: &dyn Display) {
    eprintln!("zygote: {what}");
}

/// Why the zygote cannot serve.
#[derive(Debug, thiserror::Error)]
enum ZygoteError {
    #[error("descriptor {number} is not open; the zygote is started by an agent, not by hand")]
    NotHanded { number: RawFd },
    #[error("cannot {step}: {source}")]
    System { step: &'static str, source: io::Error },
    #[error("{0}: {source}", source = .0.source)]
    Room(room::RoomError),
    #[error("{0}")]
    Filters(#[from] crate::seccomp::FilterError),
    #[error("cannot make the engine: {0:#}")]
    Engine(wasmtime::Error),
}

fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, ZygoteError> {
    result.map_err(|source| ZygoteError::System { step, source: source.into() })
}

struct Zygote {
    door: Door,
    signals: OwnedFd,
    journal: File,
    /// `/dev/null`: the standard streams of sandboxes.
    nothing: OwnedFd,
    agents: Vec<OwnedFd>,
    /// Ids by process.
    sandboxes: HashMap<i32, String>,
    walls: room::Walls,
    warm: Warm,
    filters: Filters,
    retiring: bool,
}

impl Zygote {
    fn start() -> Result<Self, ZygoteError> {
        let (agent, listener, journal) = (handed(AGENT)?, handed(LISTENER)?, handed(JOURNAL)?);
        close_from(JOURNAL + 1);
        step("leave the session", rustix::process::setsid().map(drop).or_else(leads_already))?;
        step("be named", rustix::thread::set_name(c"krustlet-zygote"))?;
        let nothing =
            step("open /dev/null", File::options().read(true).write(true).open("/dev/null"))?;
        let nothing = OwnedFd::from(nothing);
        step("close stdin", redirect(libc::STDIN_FILENO, &nothing))?;
        step("close stdout", redirect(libc::STDOUT_FILENO, &nothing))?;
        // New files of guests: 0644, as in containers.
        rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
        heap::one();
        step("unblock the agent's socket", nonblocking(&agent))?;
        step("unblock the listener", nonblocking(&listener))?;
        // Here and not in the agent: who listens is who SO_PEERPIDFD names.
        step("listen", rustix::net::listen(&listener, 16))?;
        let signals = step("watch for ended sandboxes", child_signals())?;
        // Guests use TLS with whom the system trusts; in the room are no files.
        step("read the system's certificate authorities", outgoing::remember())?;

        let walls = room::enter().map_err(ZygoteError::Room)?;
        if walls != room::Walls::Users {
            say(&walls);
        }
        let filters = Filters::new()?;
        filters.lock_zygote()?;
        let warm = Warm::new().map_err(ZygoteError::Engine)?;

        let mut zygote = Self {
            door: Door::new(listener),
            signals,
            journal: File::from(journal),
            nothing,
            agents: vec![agent],
            sandboxes: HashMap::new(),
            walls,
            warm,
            filters,
            retiring: false,
        };
        heap::seal();
        zygote.tell_all(&ZygoteMessage::Warm { version: VERSION });
        Ok(zygote)
    }

    /// Serves until it is retired and the last sandbox has ended.
    fn run(mut self) -> Result<(), ZygoteError> {
        while !(self.retiring && self.sandboxes.is_empty()) {
            let (reap, accept, agents) = step("wait", self.wait())?;
            // From the last to the first, because serving may remove one; and
            // before the rest, which may remove any.
            for agent in agents.into_iter().rev() {
                self.serve(agent);
            }
            if reap {
                self.reap();
            }
            if accept {
                self.accept();
            }
        }
        Ok(())
    }

    /// Waits for work: whether to reap, whether to accept, which agents spoke.
    fn wait(&self) -> io::Result<(bool, bool, Vec<usize>)> {
        let now = Instant::now();
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.door, self.door.interest(now)),
        ];
        fds.extend(self.agents.iter().map(|agent| PollFd::new(agent, PollFlags::IN)));
        let timeout = self.door.rest(now).map(timespec);
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, timeout.as_ref()))?;
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let reap = ready.next().unwrap_or(false);
        let accept = ready.next().unwrap_or(false);
        let agents = ready.enumerate().filter_map(|(index, ready)| ready.then_some(index));
        Ok((reap, accept, agents.collect()))
    }

    fn accept(&mut self) {
        match self.door.accept(Instant::now()) {
            Ok(None) => {}
            Ok(Some(agent)) if self.agents.len() < AGENTS => self.agents.push(agent),
            // Closing it tells the newcomer.
            Ok(Some(_)) => say(&"too many agents are connected"),
            Err(error) => say(&format_args!("cannot accept an agent: {error}")),
        }
    }

    fn serve(&mut self, agent: usize) {
        for _ in 0..PACKETS {
            match socket::receive(self.agents[agent].as_fd()) {
                Ok(Some(packet)) => {
                    if !self.answer(agent, packet) {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The agent ended, or is none: its sandboxes go on.
                Ok(None) | Err(_) => {
                    self.agents.remove(agent);
                    return;
                }
            }
        }
    }

    /// Carries out one request; false when the agent is gone.
    fn answer(&mut self, agent: usize, packet: Packet) -> bool {
        let (id, done) = match socket::parse_frame::<ZygoteRequest>(&packet) {
            Ok(frame) => (frame.id, self.carry_out(frame, packet.fds)),
            Err(error) => {
                let Some(id) = error.frame_id() else {
                    self.agents.remove(agent);
                    return false;
                };
                (id, Err(refusal(&error)))
            }
        };
        let (reply, pidfd) = match done {
            Ok((reply, pidfd)) => (reply, pidfd),
            Err(failure) => (ZygoteReply::Failed(failure), None),
        };
        let names = pidfd.iter().map(|_| DescriptorName::PidFd).collect();
        let frame = Frame { id, descriptors: names, body: ZygoteMessage::Reply(reply) };
        let to = self.agents[agent].as_fd();
        let sent = match &pidfd {
            Some(pidfd) => socket::send_frame(to, &frame, &[pidfd.as_fd()]),
            // A list may be long. Agents of another version are not here: the
            // name of the listener has it.
            None => serde_json::to_vec(&frame)
                .map_err(io::Error::from)
                .and_then(|bytes| socket::send_any_length(to, &bytes)),
        };
        // An agent that does not read is let go: the journal keeps the news.
        if sent.is_err() {
            self.agents.remove(agent);
            return false;
        }
        true
    }

    fn carry_out(
        &mut self,
        frame: Frame<ZygoteRequest>,
        fds: Vec<OwnedFd>,
    ) -> Result<(ZygoteReply, Option<OwnedFd>), Failure> {
        match frame.body {
            ZygoteRequest::RunSandbox { id, uid, gid, groups } => {
                if self.retiring {
                    return Err(Failure::Failed { message: "this zygote retires".into() });
                }
                let [control, status] = fds.try_into().map_err(|_| handed_wrong())?;
                if frame.descriptors != [DescriptorName::Control, DescriptorName::Status] {
                    return Err(handed_wrong());
                }
                if uid == 0 || gid == 0 || groups.contains(&0) {
                    let why = "a sandbox may not have root's user or group".into();
                    return Err(Failure::Malformed { why });
                }
                // Who has the zygote's user may send it signals. Without root
                // there is no other user to be.
                if self.walls == room::Walls::Users && uid == room::ZYGOTE_ID {
                    let why = "a sandbox may not have the zygote's user".into();
                    return Err(Failure::Malformed { why });
                }
                let birth = Birth { uid, gid, groups, walls: self.walls, control, status };
                let (pid, pidfd) = self.fork(id, birth).map_err(|error| Failure::Failed {
                    message: format!("cannot fork a sandbox: {error}"),
                })?;
                Ok((ZygoteReply::Forked { pid }, Some(pidfd)))
            }
            ZygoteRequest::List => {
                let running = self.sandboxes.iter().map(|(&pid, id)| (id.clone(), pid));
                Ok((ZygoteReply::Sandboxes { running: running.collect() }, None))
            }
            ZygoteRequest::Retire => {
                self.retiring = true;
                Ok((ZygoteReply::Retiring, None))
            }
        }
    }

    fn fork(&mut self, id: String, birth: Birth) -> io::Result<(i32, OwnedFd)> {
        // SAFETY: this process has one thread, so no lock is held by another.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => sandbox::main(&self.warm, &self.filters, self.nothing.as_fd(), birth),
            pid => {
                self.sandboxes.insert(pid, id);
                let named = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
                // It cannot name another: only this process reaps, and not yet.
                Ok((pid, rustix::process::pidfd_open(named, PidfdFlags::empty())?))
            }
        }
    }

    fn reap(&mut self) {
        // Signals of one kind do not queue: empty the descriptor, ask for all.
        let mut signals = [0; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.signals, &mut signals).is_ok() {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let Some(id) = self.sandboxes.remove(&pid) else { continue };
            let news = ZygoteMessage::Exited { id, pid, wait_status: status.as_raw() };
            // First what an agent that is not here will read.
            if let Err(error) = self.note(&news) {
                say(&format_args!("cannot write the journal: {error}"));
            }
            self.tell_all(&news);
        }
    }

    /// One line in the journal, in one write, so that lines never mix.
    fn note(&mut self, news: &ZygoteMessage) -> io::Result<()> {
        let mut line = serde_json::to_vec(news)?;
        line.push(b'\n');
        self.journal.write_all(&line)
    }

    fn tell_all(&mut self, news: &ZygoteMessage) {
        let frame = Frame { id: 0, descriptors: Vec::new(), body: news };
        self.agents.retain(|agent| socket::send_frame(agent.as_fd(), &frame, &[]).is_ok());
    }
}

/// What a frame that cannot be read is answered with.
pub(crate) fn refusal(error: &socket::ParseError) -> Failure {
    match error {
        socket::ParseError::Unknown { .. } => Failure::UnknownVerb,
        // Who sends names as many as he hands over; the rest found no room here.
        socket::ParseError::Descriptors { named, came, .. } if came < named => {
            Failure::Failed { message: format!("{error}: this process can open no more") }
        }
        socket::ParseError::NotAFrame(_) | socket::ParseError::Descriptors { .. } => {
            Failure::Malformed { why: error.to_string() }
        }
    }
}

fn handed_wrong() -> Failure {
    Failure::Malformed { why: "run-sandbox takes a control socket and a status file".into() }
}

/// Takes a descriptor that the agent has left open for us.
fn handed(number: RawFd) -> Result<OwnedFd, ZygoteError> {
    // SAFETY: asking for flags changes nothing.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(ZygoteError::NotHanded { number });
    }
    // SAFETY: it is open, and nothing else in this process knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A session leader cannot make a new session, and need not.
fn leads_already(error: Errno) -> Result<(), Errno> {
    if error == Errno::PERM { Ok(()) } else { Err(error) }
}

/// Has a standard stream go elsewhere.
pub(crate) fn redirect(stream: RawFd, to: &impl AsFd) -> io::Result<()> {
    // SAFETY: no value owns the numbers of the standard streams.
    if unsafe { libc::dup2(to.as_fd().as_raw_fd(), stream) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: RawFd) {
    close_between(first, RawFd::MAX);
}

/// Closes the descriptors from `first` to `last`, both included.
pub(crate) fn close_between(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: the callers name only descriptors that no value of theirs owns.
    unsafe { libc::close_range(first.cast_unsigned(), last.cast_unsigned(), 0) };
}

pub(crate) fn nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// Turns SIGCHLD into something to poll.
fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is made by sigemptyset before it is read, and the
    // descriptor is new.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Undoes [`child_signals`] in a sandbox.
pub(crate) fn unblock_signals() {
    // SAFETY: the set is made by sigemptyset before it is read.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// The numbers of what a sandbox keeps, lowest first.
pub(crate) fn numbers(kept: &[BorrowedFd<'_>]) -> Vec<RawFd> {
    let mut numbers: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_thousands_of_sandboxes_arrives() {
        const COUNT: i32 = 10_000;
        let nothing = || File::options().read(true).write(true).open("/dev/null").unwrap();
        let home = tempfile::tempdir().unwrap();
        let (theirs, ours) = socket::pair().unwrap();
        let mut zygote = Zygote {
            door: Door::new(socket::bind(&home.path().join("zygote.sock")).unwrap()),
            signals: nothing().into(),
            journal: nothing(),
            nothing: nothing().into(),
            agents: vec![theirs],
            sandboxes: (1..=COUNT).map(|pid| (pid, format!("{pid:016x}"))).collect(),
            walls: room::Walls::FiltersOnly,
            warm: Warm::new().unwrap(),
            filters: Filters::new().unwrap(),
            retiring: false,
        };
        let list = Frame { id: 3, descriptors: Vec::new(), body: ZygoteRequest::List };
        let packet = Packet { bytes: serde_json::to_vec(&list).unwrap(), fds: Vec::new() };
        assert!(zygote.answer(0, packet), "the agent was let go");
        let packet = socket::receive(ours.as_fd()).unwrap().unwrap().unfold().unwrap();
        let frame: Frame<ZygoteMessage> = socket::parse_frame(&packet).unwrap();
        let ZygoteMessage::Reply(ZygoteReply::Sandboxes { mut running }) = frame.body else {
            panic!("another answer")
        };
        running.sort_by_key(|(_, pid)| *pid);
        assert!(running.iter().map(|(_, pid)| *pid).eq(1..=COUNT), "{} of {COUNT}", running.len());
    }
}
