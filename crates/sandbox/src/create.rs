//! Makes a container of a request and the descriptors that came with it.
//!
//! Done on the control thread: its time is the loading of the program, which maps
//! the compiled file and reads its tables, for the first container of a program
//! only. With the file in the system's memory that takes 0.03 ms for a small
//! program, 0.3 ms for one of Go (8 MB of code) and 4 to 6 ms for the largest
//! that was tried (214 MB of code). Until then nobody hears a stop; a thread for
//! it would cost every sandbox more than that is worth.

use std::{
    fs::File,
    io,
    net::{TcpListener, UdpSocket},
    os::fd::OwnedFd,
};

use krustlet_protocol::{ContainerSpec, DescriptorName, Failure, MAX_SPEC, socket};

use crate::{
    container::{Container, Parts},
    log::Log,
    net::Stack,
    news::Teller,
    program::Programs,
    warm::Warm,
};

/// The descriptors of `CreateContainer`, by what they are for.
#[derive(Debug)]
pub(crate) struct Handed {
    spec: OwnedFd,
    artifact: OwnedFd,
    log: OwnedFd,
    next_log: Option<OwnedFd>,
    preopens: Vec<OwnedFd>,
    listeners: Vec<OwnedFd>,
    datagrams: Vec<OwnedFd>,
}

impl Handed {
    /// Sorts descriptors by their names.
    ///
    /// # Errors
    ///
    /// [`Failure::Malformed`] when one is missing, too many, or of no use here.
    pub(crate) fn sort(names: &[DescriptorName], fds: Vec<OwnedFd>) -> Result<Self, Failure> {
        let (mut spec, mut artifact, mut log, mut next_log) = (None, None, None, None);
        let (mut preopens, mut listeners, mut datagrams) = (Vec::new(), Vec::new(), Vec::new());
        for (name, fd) in names.iter().zip(fds) {
            let single = match name {
                DescriptorName::Spec => &mut spec,
                DescriptorName::ArtifactDirectory => &mut artifact,
                DescriptorName::Log => &mut log,
                DescriptorName::NextLog => &mut next_log,
                DescriptorName::Preopen => {
                    preopens.push(fd);
                    continue;
                }
                DescriptorName::Listener => {
                    listeners.push(fd);
                    continue;
                }
                DescriptorName::Datagrams => {
                    datagrams.push(fd);
                    continue;
                }
                DescriptorName::Control
                | DescriptorName::Status
                | DescriptorName::Stdin
                | DescriptorName::Stdout
                | DescriptorName::Stderr
                | DescriptorName::PidFd
                | DescriptorName::Network
                | DescriptorName::Services => {
                    return Err(malformed(format!("create-container has no use for a {name:?}")));
                }
            };
            if single.replace(fd).is_some() {
                return Err(malformed(format!("two descriptors named {name:?}")));
            }
        }
        let need = |fd: Option<OwnedFd>, name| {
            fd.ok_or_else(|| malformed(format!("create-container needs a {name:?}")))
        };
        Ok(Self {
            spec: need(spec, DescriptorName::Spec)?,
            artifact: need(artifact, DescriptorName::ArtifactDirectory)?,
            log: need(log, DescriptorName::Log)?,
            next_log,
            preopens,
            listeners,
            datagrams,
        })
    }
}

fn malformed(why: String) -> Failure {
    Failure::Malformed { why }
}

/// Reads the spec, loads and links the program, and puts it all together.
///
/// `check` sees the spec before anything is loaded, and says which network is
/// the pod's.
///
/// # Errors
///
/// As [`Programs::get`]; [`Failure::Malformed`] when spec and descriptors do
/// not fit each other.
pub(crate) fn create(
    warm: &Warm,
    programs: &mut Programs,
    teller: &Teller,
    handed: Handed,
    check: impl FnOnce(&ContainerSpec) -> Result<Stack, Failure>,
) -> Result<Container, Failure> {
    let bytes = socket::read_memfd(handed.spec, MAX_SPEC)
        .map_err(|error| malformed(format!("cannot read the spec: {error}")))?;
    let spec: ContainerSpec = serde_json::from_slice(&bytes)
        .map_err(|error| malformed(format!("cannot understand the spec: {error}")))?;
    let stack = check(&spec)?;
    fits("preopens", spec.preopens.len(), handed.preopens.len())?;
    fits("listeners", usize::from(spec.listeners), handed.listeners.len())?;
    let bound = bound_for(&spec, handed.listeners)?;
    fits("sockets for datagrams", spec.datagram_ports.len(), handed.datagrams.len())?;
    let datagrams = handed.datagrams.into_iter().map(UdpSocket::from);
    let datagrams: Vec<_> = spec.datagram_ports.iter().copied().zip(datagrams).collect();

    let program = programs.get(warm, &handed.artifact, &spec.artifact, &spec.guest)?;
    let log = Log::new(
        spec.id.clone(),
        teller.clone(),
        File::from(handed.log),
        handed.next_log.map(File::from),
        spec.log.max_bytes,
    )
    .map_err(|error| Failure::Failed { message: format!("cannot use the log: {error}") })?;
    let (preopens, teller) = (handed.preopens, teller.clone());
    let claim = if bound.is_empty() && datagrams.is_empty() {
        None
    } else {
        Some(stack.hand(bound, datagrams).map_err(unusable)?)
    };
    let container = Container::new(Parts { spec, program, log, preopens, stack, claim, teller });
    // Directories that cannot be opened are a fault of the start: say so now.
    container.wasi().map_err(|error| Failure::Failed {
        message: format!("cannot open the directories of the container: {error:#}"),
    })?;
    Ok(container)
}

fn fits(what: &str, said: usize, came: usize) -> Result<(), Failure> {
    if said == came {
        return Ok(());
    }
    Err(malformed(format!("the spec has {said} {what}, and {came} descriptors came for them")))
}

/// The sockets, each with the container port it is for.
fn bound_for(spec: &ContainerSpec, fds: Vec<OwnedFd>) -> Result<Vec<(u16, TcpListener)>, Failure> {
    if !spec.listener_ports.is_empty() {
        fits("ports of listeners", spec.listener_ports.len(), fds.len())?;
        return Ok(spec
            .listener_ports
            .iter()
            .copied()
            .zip(fds.into_iter().map(Into::into))
            .collect());
    }
    let own_port = |fd| {
        let socket = TcpListener::from(fd);
        Ok((socket.local_addr().map_err(unusable)?.port(), socket))
    };
    fds.into_iter().map(own_port).collect()
}

fn unusable(error: io::Error) -> Failure {
    Failure::Failed { message: format!("cannot use a socket that was handed over: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fds(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect()
    }

    #[test]
    fn descriptors_are_sorted_by_name() {
        use DescriptorName::{ArtifactDirectory, Datagrams, Listener, Log, NextLog, Preopen, Spec};
        let names = [Preopen, Spec, ArtifactDirectory, Listener, Log, Preopen, NextLog, Datagrams];
        let handed = Handed::sort(&names, fds(8)).unwrap();
        assert_eq!((handed.preopens.len(), handed.listeners.len()), (2, 1));
        assert_eq!(handed.datagrams.len(), 1);
        assert!(handed.next_log.is_some());
        assert!(Handed::sort(&[Spec, ArtifactDirectory, Log], fds(3)).is_ok());
    }

    #[test]
    fn descriptors_that_do_not_fit_the_verb_are_refused() {
        use DescriptorName::{ArtifactDirectory, Log, PidFd, Spec};
        for names in [
            &[Spec, Log][..],
            &[Spec, Spec, ArtifactDirectory, Log],
            &[Spec, ArtifactDirectory, Log, PidFd],
        ] {
            let refused = Handed::sort(names, fds(names.len())).unwrap_err();
            assert!(matches!(refused, Failure::Malformed { .. }));
        }
    }
}
