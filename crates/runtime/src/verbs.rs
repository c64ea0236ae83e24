//! What is done to containers: the CRI's verbs, carried out on one sandbox.
//!
//! A sandbox opens no path, so everything it needs is opened here and goes
//! along with the request.

use std::{
    net::{TcpListener, UdpSocket},
    os::fd::OwnedFd,
    path::PathBuf,
    time::Duration,
};

use krustlet_model::{ContainerId, PodUid};
use krustlet_protocol::{
    ContainerSpec, DATAGRAMS, DescriptorName, ExecOutcome, Failure, Limits, PodNetwork,
    SandboxReply, SandboxRequest, connection::CallError, socket::memfd,
};

use crate::{
    RuntimeError,
    filter::Guard,
    logs::LogFile,
    mounts::{self, Use},
    record::ContainerRecord,
    sandbox::{ANSWER_LIMIT, Common, Container, Reached, Sandbox, close_log},
    stats::Stats,
    words,
    work::on_disk,
};

/// Time to load a container's code: mapping it takes milliseconds, reading it
/// from a slow disk for the first time much longer.
const LOAD_LIMIT: Duration = Duration::from_mins(1);

/// An exec ends with its program, its container or its sandbox; no clock ends it.
const NO_LIMIT: Duration = Duration::MAX;

/// Time for a pod to take a connection: its listener may have many waiting.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// A container to be made.
#[derive(Debug)]
pub struct Launch {
    /// What the sandbox is told. Preopens and listeners are in the order of the
    /// two lists below; `artifact` is a file name.
    pub spec: ContainerSpec,
    /// The directory with the artifact.
    pub artifact_directory: PathBuf,
    /// Where the log goes, `<restart>.log`; made if missing, with its directory.
    pub log: PathBuf,
    /// The host directory of each preopen.
    pub mounts: Vec<PathBuf>,
    /// Bound and listening.
    pub listeners: Vec<TcpListener>,
    /// Bound, in the order of the spec's datagram ports.
    pub datagrams: Vec<UdpSocket>,
    /// How many of these, the first ones, are where the guest would be bound
    /// itself. A sandbox that takes no sockets for datagrams does without them.
    pub own_datagrams: usize,
}

impl Launch {
    /// As a sandbox of a version takes it.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::OldSandbox`] if a port of the node leads to the container
    /// and the sandbox cannot hear it.
    fn for_version(mut self, version: u32) -> Result<Self, RuntimeError> {
        if version >= DATAGRAMS {
            return Ok(self);
        }
        if self.datagrams.len() > self.own_datagrams {
            return Err(RuntimeError::OldSandbox);
        }
        // Closed, so that the guest can be bound there.
        self.datagrams.clear();
        self.spec.datagram_ports.clear();
        Ok(self)
    }
}

/// The standard streams of an exec.
#[derive(Debug)]
pub struct ExecStreams {
    /// Read by the program.
    pub stdin: OwnedFd,
    /// Written by it.
    pub stdout: OwnedFd,
    /// Written by it.
    pub stderr: OwnedFd,
}

/// The two directions of a connection to a pod, best two pipes: each ends when it
/// is closed.
#[derive(Debug)]
pub struct VisitStreams {
    /// What is read here is sent to the pod.
    pub input: OwnedFd,
    /// What the pod sends is written here. When nobody reads it any more, the
    /// connection ends.
    pub output: OwnedFd,
}

type Given = Vec<(DescriptorName, OwnedFd)>;

impl Sandbox {
    pub(crate) async fn create(&self, launch: Launch) -> Result<(), RuntimeError> {
        let (id, pod) = (launch.spec.id.clone(), launch.spec.pod.clone());
        let log = LogFile::new(launch.log.clone());
        self.enlist(&id, &pod, &log)?;
        let made = self.make(launch, log.clone()).await;
        if let Err(RuntimeError::Call(_) | RuntimeError::WrongAnswer { .. }) = &made {
            // It may be made yet. This is read after that, whenever that is.
            let request = SandboxRequest::RemoveContainer { id: id.clone() };
            let removed = self.ask(request, Vec::new(), ANSWER_LIMIT).await;
            tracing::warn!(container = %id, ?removed, "creating it was not answered");
        }
        if made.is_err() {
            self.table().containers.remove(&id);
            let (common, of) = (self.common.clone(), self.id.clone());
            on_disk(move || {
                close_log(&log, common.log_files);
                let removed = common.state.remove_container(&of, &id);
                removed.map_err(|source| common.state_error(source))
            })
            .await?;
        }
        made
    }

    fn enlist(&self, id: &ContainerId, pod: &PodUid, log: &LogFile) -> Result<(), RuntimeError> {
        let mut table = self.table();
        // Checked under the lock: a death reports those it finds.
        if self.is_dead() {
            return Err(RuntimeError::Died);
        }
        if !table.pods.contains_key(pod) {
            return Err(RuntimeError::NoSandbox { pod: pod.clone() });
        }
        if table.containers.contains_key(id) {
            return Err(RuntimeError::Exists { id: id.clone() });
        }
        let container = Container {
            pod: pod.clone(),
            log: log.clone(),
            reached: Reached::Created,
            caught_up: false,
        };
        table.containers.insert(id.clone(), container);
        Ok(())
    }

    async fn make(&self, launch: Launch, log: LogFile) -> Result<(), RuntimeError> {
        let launch = launch.for_version(self.version)?;
        let (common, of) = (self.common.clone(), self.id.clone());
        let given = on_disk(move || {
            let record = ContainerRecord {
                id: launch.spec.id.clone(),
                pod: launch.spec.pod.clone(),
                log: launch.log.clone(),
                created_at: jiff::Timestamp::now().as_microsecond(),
            };
            let given = open_all(launch, &log, &common)?;
            let put = common.state.put_container(&of, &record);
            put.map_err(|source| common.state_error(source))?;
            Ok(given)
        })
        .await?;
        self.done(SandboxRequest::CreateContainer, given, LOAD_LIMIT).await
    }

    pub(crate) async fn start_container(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.known(&id)?;
        let request = SandboxRequest::StartContainer { id };
        match self.ask_once(request.clone(), Vec::new(), ANSWER_LIMIT).await {
            // It may have been started before the connection was lost, and is
            // then started by no second request.
            Err(RuntimeError::Call(CallError::Gone)) => {
                match self.ask_once(request, Vec::new(), ANSWER_LIMIT).await {
                    Ok(_) | Err(RuntimeError::Refused(Failure::Failed { .. })) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Ok(SandboxReply::Done) => Ok(()),
            Ok(other) => Err(wrong(&other)),
            Err(error) => Err(error),
        }
    }

    /// Changes what a container may use.
    pub(crate) async fn update_container(
        &self,
        id: ContainerId,
        limits: Limits,
    ) -> Result<(), RuntimeError> {
        self.known(&id)?;
        let request = SandboxRequest::UpdateContainer { id, limits };
        match self.done(request, Vec::new(), ANSWER_LIMIT).await {
            Err(RuntimeError::Refused(Failure::UnknownVerb)) => Err(RuntimeError::OldSandbox),
            other => other,
        }
    }

    /// Returns when the request is taken; one that has ended need not be told.
    pub(crate) async fn stop_container(
        &self,
        id: ContainerId,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        if self.known(&id)? == Reached::Ended || self.is_dead() {
            return Ok(());
        }
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let request = SandboxRequest::StopContainer { id, grace_ms };
        match self.done(request, Vec::new(), ANSWER_LIMIT).await {
            Err(RuntimeError::Died) => Ok(()),
            other => other,
        }
    }

    /// Forgets an ended container. One that is not known is forgotten already.
    pub(crate) async fn remove_container(&self, id: ContainerId) -> Result<(), RuntimeError> {
        if self.known(&id).is_err() {
            return Ok(());
        }
        if !self.is_dead() {
            let request = SandboxRequest::RemoveContainer { id: id.clone() };
            match self.done(request, Vec::new(), ANSWER_LIMIT).await {
                Ok(())
                | Err(RuntimeError::Died | RuntimeError::Refused(Failure::NotFound { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        let (removed, all_told) = {
            let mut table = self.table();
            let removed = table.containers.remove(&id);
            let told = table.containers.values().all(|one| one.reached != Reached::Ended);
            (removed, told)
        };
        let (common, of) = (self.common.clone(), self.id.clone());
        on_disk(move || {
            if let Some(container) = removed {
                close_log(&container.log, common.log_files);
            }
            let removed = common.state.remove_container(&of, &id);
            let tidied = removed.and_then(|()| {
                // Every exit in it has been taken note of and removed.
                if all_told { common.state.trim_status(&of) } else { Ok(()) }
            });
            tidied.map_err(|source| common.state_error(source))
        })
        .await
    }

    pub(crate) async fn exec(
        &self,
        id: ContainerId,
        args: Vec<String>,
        streams: ExecStreams,
    ) -> Result<ExecOutcome, RuntimeError> {
        self.known(&id)?;
        let given = vec![
            (DescriptorName::Stdin, streams.stdin),
            (DescriptorName::Stdout, streams.stdout),
            (DescriptorName::Stderr, streams.stderr),
        ];
        match self.ask(SandboxRequest::Exec { id, args }, given, NO_LIMIT).await? {
            SandboxReply::Exec(outcome) => Ok(outcome),
            other => Err(wrong(&other)),
        }
    }

    /// Connects to a port of the pod's loopback.
    pub(crate) async fn connect(
        &self,
        pod: PodUid,
        port: u16,
        streams: VisitStreams,
    ) -> Result<(), RuntimeError> {
        let given =
            vec![(DescriptorName::Stdin, streams.input), (DescriptorName::Stdout, streams.output)];
        match self.done(SandboxRequest::Connect { pod, port }, given, CONNECT_LIMIT).await {
            Err(RuntimeError::Refused(Failure::UnknownVerb)) => Err(RuntimeError::OldSandbox),
            other => other,
        }
    }

    /// What its pods use. What it says of others, it has not to say.
    pub(crate) async fn stats(&self, pods: Vec<PodUid>) -> Result<Stats, RuntimeError> {
        match self.ask(SandboxRequest::Stats, Vec::new(), ANSWER_LIMIT).await? {
            SandboxReply::Stats { containers } => {
                let mut all: Stats = pods.into_iter().map(|pod| (pod, Vec::new())).collect();
                for report in containers {
                    if let Some(of_pod) = all.get_mut(&report.pod) {
                        of_pod.push(report);
                    }
                }
                Ok(all)
            }
            other => Err(wrong(&other)),
        }
    }

    /// Hands a sandbox the log to go on with after the next one.
    pub(crate) async fn hand_log(&self, id: ContainerId, log: OwnedFd) -> Result<(), RuntimeError> {
        let given = vec![(DescriptorName::NextLog, log)];
        self.done(SandboxRequest::NextLog { id }, given, ANSWER_LIMIT).await
    }

    /// Says anew what a pod's sockets may do. What it listens on is filtered by that
    /// soon afterwards.
    pub(crate) async fn set_network(
        &self,
        pod: &PodUid,
        network: PodNetwork,
    ) -> Result<(), RuntimeError> {
        let guard = Guard::of(&network);
        self.tell_network(pod, network).await?;
        self.filters.set(pod, guard);
        Ok(())
    }

    /// Says what a pod's sockets may do, and hands it the Services if it is led
    /// to them.
    ///
    /// A sandbox of the version before does not know the verb: it makes no
    /// socket, so that there is nothing to be said.
    pub(crate) async fn tell_network(
        &self,
        pod: &PodUid,
        network: PodNetwork,
    ) -> Result<(), RuntimeError> {
        let text =
            serde_json::to_vec(&network).map_err(|error| RuntimeError::Spec(error.into()))?;
        let text = memfd(&text).map_err(RuntimeError::Spec)?;
        let mut given = vec![(DescriptorName::Network, text)];
        if let Some(services) = &self.common.services {
            let services = services.try_clone().map_err(RuntimeError::Spec)?;
            given.push((DescriptorName::Services, services));
        }
        let request = SandboxRequest::SetPodNetwork { pod: pod.clone() };
        match self.done(request, given, ANSWER_LIMIT).await {
            Err(RuntimeError::Refused(Failure::UnknownVerb)) => Ok(()),
            other => other,
        }
    }

    fn known(&self, id: &ContainerId) -> Result<Reached, RuntimeError> {
        let found = self.table().containers.get(id).map(|container| container.reached);
        found.ok_or_else(|| RuntimeError::NoContainer { id: id.clone() })
    }

    async fn done(
        &self,
        request: SandboxRequest,
        given: Given,
        limit: Duration,
    ) -> Result<(), RuntimeError> {
        match self.ask(request, given, limit).await? {
            SandboxReply::Done => Ok(()),
            other => Err(wrong(&other)),
        }
    }
}

fn wrong(answer: &SandboxReply) -> RuntimeError {
    RuntimeError::WrongAnswer { answer: words::of(answer) }
}

/// Opens what a container needs, in the order that the protocol sets. Blocks.
fn open_all(launch: Launch, log: &LogFile, common: &Common) -> Result<Given, RuntimeError> {
    let Launch { spec, artifact_directory, log: path, mounts, listeners, datagrams, .. } = launch;
    fits("directories", mounts.len(), spec.preopens.len())?;
    fits("listeners", listeners.len(), usize::from(spec.listeners))?;
    fits("sockets for datagrams", datagrams.len(), spec.datagram_ports.len())?;

    let text = serde_json::to_vec(&spec).map_err(|error| RuntimeError::Spec(error.into()))?;
    let text = memfd(&text).map_err(RuntimeError::Spec)?;
    let code = mounts::open(&artifact_directory, Use::Code, common.handover)?;
    let (current, next) = log.open().map_err(|source| RuntimeError::Log { path, source })?;
    let mut given = vec![
        (DescriptorName::Spec, text),
        (DescriptorName::ArtifactDirectory, code),
        (DescriptorName::Log, current),
        (DescriptorName::NextLog, next),
    ];
    for (directory, preopen) in mounts.iter().zip(&spec.preopens) {
        let purpose = if preopen.writable { Use::Write } else { Use::Read };
        let mount = mounts::open(directory, purpose, common.handover)?;
        given.push((DescriptorName::Preopen, mount));
    }
    given.extend(listeners.into_iter().map(|one| (DescriptorName::Listener, one.into())));
    given.extend(datagrams.into_iter().map(|one| (DescriptorName::Datagrams, one.into())));
    Ok(given)
}

fn fits(what: &'static str, given: usize, named: usize) -> Result<(), RuntimeError> {
    if given == named { Ok(()) } else { Err(RuntimeError::Mismatch { what, given, named }) }
}
