//! The ports of a container: which it has, and those that the agent binds and
//! hands over.
//!
//! Where pods share the node's address two of them may want the same port: the
//! second waits, and says for what. So it is with a `hostPort`.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    num::NonZero,
    os::fd::OwnedFd,
    str::FromStr,
};

use k8s_openapi::api::core::v1::{Container, ContainerPort};
use krustlet_model::{admission::MOST_PORTS, services::Transport};
use krustlet_protocol::{GuestKind, ListenPort};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
};

use crate::place::Shared;

/// The port of a container that declares none; that of `wasmtime serve`.
pub const DEFAULT_PORT: u16 = 8080;

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ListenError {
    #[error("containerPort {given} is not a port number")]
    Invalid { given: i32 },

    #[error(
        "{}port {} of {} is in use on this node, whose address the pod shares; \
         choose another containerPort or stop what uses it",
        prefix(*.transport), .address.port(), .address.ip()
    )]
    InUse { transport: Transport, address: SocketAddr },

    #[error(
        "hostPort {} of {}, {}, is in use on this node; choose another one or stop what uses it",
        .at.address.port(), .at.address.ip(), .at.protocol()
    )]
    HostInUse { at: HostPort },

    #[error(
        "the container declares {given} {}ports that the node would have to listen on; it does so \
         for {} of a container at most",
        prefix(*.transport), MOST_PORTS
    )]
    TooMany { transport: Transport, given: usize },

    #[error("hostIP {given:?} is not an IP address")]
    InvalidIp { given: String },

    #[error("cannot listen on {address}")]
    Refused {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },

    #[error("the pod has no address yet")]
    NoAddress,

    #[error("{name} is {given:?}, which is not {wanted}")]
    Variable { name: &'static str, given: String, wanted: &'static str },
}

/// The variables that say to runwasi's shim where it is to serve an http guest, and
/// how many connections may wait: the code knows the second of these, the README
/// the last.
///
/// Source: runwasi, `crates/containerd-shim-wasmtime/src/http_proxy.rs`.
const SHIM_ADDRESS: &str = "WASMTIME_HTTP_PROXY_SOCKET_ADDR";
const SHIM_BACKLOGS: [&str; 2] = ["WASMTIME_HTTP_BACKLOG", "WASMTIME_HTTP_PROXY_BACKLOG"];

/// What a variable says, if it is set.
fn variable<T: FromStr>(
    env: &[(String, String)],
    name: &'static str,
    wanted: &'static str,
) -> Result<Option<T>, ListenError> {
    let Some((_, given)) = env.iter().find(|(set, _)| set == name) else { return Ok(None) };
    let invalid = |_| ListenError::Variable { name, given: given.clone(), wanted };
    given.parse().map(Some).map_err(invalid)
}

/// How many connections to an http guest may wait, if its variables say so.
///
/// # Errors
///
/// [`ListenError::Variable`].
pub fn http_backlog(env: &[(String, String)]) -> Result<Option<u32>, ListenError> {
    for name in SHIM_BACKLOGS {
        if let Some(backlog) = variable::<NonZero<u32>>(env, name, "a number from 1 on")? {
            return Ok(Some(backlog.get()));
        }
    }
    Ok(None)
}

/// The port an http guest is served on: the declared port named `http`, else
/// the only TCP port declared, else that of runwasi's variable, else 8080.
///
/// # Errors
///
/// [`ListenError::Invalid`] if the declared number is none of 1 to 65535; the
/// API server refuses that, a file may hold it. [`ListenError::Variable`].
pub fn http_port(container: &Container, env: &[(String, String)]) -> Result<u16, ListenError> {
    let declared = container.ports.as_deref().unwrap_or_default();
    let mut tcp = declared.iter().filter(|port| is_tcp(port));
    let named = tcp.clone().find(|port| port.name.as_deref() == Some("http"));
    match (named, tcp.next(), tcp.next()) {
        (Some(named), _, _) => number(named),
        (None, Some(only), None) => number(only),
        (None, None, _) | (None, Some(_), Some(_)) => {
            // The address is the pod's, whatever it says.
            let wanted = "an address and a port";
            let said = variable::<SocketAddr>(env, SHIM_ADDRESS, wanted)?;
            Ok(said.map(|said| said.port()).filter(|port| *port != 0).unwrap_or(DEFAULT_PORT))
        }
    }
}

fn number(port: &ContainerPort) -> Result<u16, ListenError> {
    match u16::try_from(port.container_port) {
        Ok(port) if port > 0 => Ok(port),
        Ok(_) | Err(_) => Err(ListenError::Invalid { given: port.container_port }),
    }
}

/// The ports on which a sandbox listens for a guest: an http guest's one; all
/// TCP ports that are declared, in their order and none twice, for a module,
/// which cannot listen itself; none for a command, which can.
///
/// # Errors
///
/// As [`http_port`]; [`ListenError::TooMany`].
pub fn listen_ports(
    container: &Container,
    guest: &GuestKind,
    env: &[(String, String)],
) -> Result<Vec<ListenPort>, ListenError> {
    match guest {
        GuestKind::Http(_) => {
            let port = http_port(container, env)?;
            Ok(vec![ListenPort { name: Some("http".to_owned()), port }])
        }
        GuestKind::Command => Ok(Vec::new()),
        GuestKind::Module { .. } => declared_ports(container, Transport::Tcp),
    }
}

/// The ports of a protocol that are declared, in their order and none twice: somebody
/// is to listen on each.
fn declared_ports(
    container: &Container,
    wanted: Transport,
) -> Result<Vec<ListenPort>, ListenError> {
    let (mut ports, mut known) = (Vec::new(), HashSet::new());
    let declared = container.ports.iter().flatten();
    for declared in declared.filter(|port| transport(port) == Some(wanted)) {
        let port = number(declared)?;
        if known.insert(port) {
            ports.push(ListenPort { name: declared.name.clone(), port });
        }
    }
    match ports.len() {
        given if given > MOST_PORTS => Err(ListenError::TooMany { transport: wanted, given }),
        _ => Ok(ports),
    }
}

/// How a port of a protocol is called; what is not said is TCP.
fn prefix(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "",
        Transport::Udp => "UDP ",
    }
}

/// The ports that a container takes of the address that its pod shares: an http
/// guest's one, and all that are declared of others; those of UDP only for a
/// command, for others have no datagrams.
fn taken_ports(
    container: &Container,
    guest: &GuestKind,
    listen_ports: &[ListenPort],
) -> Result<Vec<(Transport, u16)>, ListenError> {
    let of = |transport, ports: &[ListenPort]| -> Vec<_> {
        ports.iter().map(|port| (transport, port.port)).collect()
    };
    match guest {
        GuestKind::Http(_) | GuestKind::Module { .. } => Ok(of(Transport::Tcp, listen_ports)),
        GuestKind::Command => {
            let mut taken = of(Transport::Tcp, &declared_ports(container, Transport::Tcp)?);
            taken.extend(of(Transport::Udp, &declared_ports(container, Transport::Udp)?));
            Ok(taken)
        }
    }
}

/// A port of the node that leads to one of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Connections or datagrams.
    pub transport: Transport,
    /// The `hostPort` at one address of the node, or at all of a family.
    pub address: SocketAddr,
    /// The `containerPort` that it leads to.
    pub port: u16,
}

impl HostPort {
    /// The API's word.
    fn protocol(&self) -> &'static str {
        match self.transport {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        }
    }

    /// Whether what comes to an address of the pod's for the same port comes here too.
    fn has(&self, transport: Transport, own: SocketAddr) -> bool {
        let is_there = self.address.ip().is_unspecified()
            && self.address.is_ipv4() == own.is_ipv4()
            || self.address.ip() == own.ip();
        self.transport == transport
            && is_there
            && (self.address.port(), self.port) == (own.port(), own.port())
    }
}

/// The ports of the node that lead to a container: each at its `hostIP`, or at all
/// addresses of both families if that is none or stands for all.
///
/// # Errors
///
/// [`ListenError::Invalid`] for a number that is no port,
/// [`ListenError::InvalidIp`] for a `hostIP` that is no address.
///
/// Source: scheduler, `DefaultBindAllHostIP` in
/// `staging/src/k8s.io/kube-scheduler/framework/types.go`.
pub fn host_ports(container: &Container) -> Result<Vec<HostPort>, ListenError> {
    let mut all = Vec::new();
    for declared in container.ports.iter().flatten() {
        // A pod with others is not admitted.
        let Some(transport) = transport(declared) else { continue };
        let Some(given) = declared.host_port.filter(|port| *port != 0) else { continue };
        let host_port = u16::try_from(given).map_err(|_| ListenError::Invalid { given })?;
        let port = number(declared)?;
        let asked = match declared.host_ip.as_deref().unwrap_or_default() {
            "" => None,
            text => {
                let invalid = |_| ListenError::InvalidIp { given: text.to_owned() };
                Some(text.parse::<IpAddr>().map_err(invalid)?).filter(|ip| !ip.is_unspecified())
            }
        };
        let everywhere = || vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let addresses = asked.map_or_else(everywhere, |ip| vec![ip]);
        all.extend(addresses.into_iter().map(|ip| {
            let address = SocketAddr::new(ip, host_port);
            HostPort { transport, address, port }
        }));
    }
    Ok(all)
}

fn transport(port: &ContainerPort) -> Option<Transport> {
    Transport::parse(port.protocol.as_deref().filter(|word| !word.is_empty()))
}

fn is_tcp(port: &ContainerPort) -> bool {
    transport(port) == Some(Transport::Tcp)
}

/// Sockets to be handed over, and the container port that each is for.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) bound: Vec<TcpListener>,
    pub(crate) ports: Vec<u16>,
    pub(crate) datagrams: Vec<UdpSocket>,
    pub(crate) datagram_ports: Vec<u16>,
    /// How many of those, the first ones, are at the pod's own addresses.
    pub(crate) own_datagrams: usize,
}

impl Sockets {
    /// Binds one more, for a port of the container.
    fn add(&mut self, transport: Transport, address: SocketAddr, port: u16) -> io::Result<()> {
        match transport {
            Transport::Tcp => {
                self.bound.push(listen(address)?);
                self.ports.push(port);
            }
            Transport::Udp => {
                self.datagrams.push(bind(address, SocketType::DGRAM)?.into());
                self.datagram_ports.push(port);
            }
        }
        Ok(())
    }
}

/// Binds what a container's sandbox cannot bind itself: its ports at the addresses
/// that its pod shares, so that it waits for one that somebody has and may have low
/// ones, and the node's ports that lead to it. At an address of its own the sandbox
/// listens, when the guest is started.
///
/// # Errors
///
/// [`ListenError::InUse`] and [`ListenError::HostInUse`] if somebody is there
/// already; [`ListenError::TooMany`] before any is bound; otherwise what the system
/// said.
pub(crate) fn sockets(
    shared: Option<&Shared>,
    host_ports: &[HostPort],
    container: &Container,
    guest: &GuestKind,
    listen_ports: &[ListenPort],
) -> Result<Sockets, ListenError> {
    let mut sockets = Sockets::default();
    if let Some(shared) = shared {
        if shared.tcp.is_empty() {
            return Err(ListenError::NoAddress);
        }
        for (transport, port) in taken_ports(container, guest, listen_ports)? {
            let at = match transport {
                Transport::Tcp => &shared.tcp,
                Transport::Udp => &shared.udp,
            };
            for address in at.iter().map(|ip| SocketAddr::new(*ip, port)) {
                // Where the pod has the node's address, its own port may be the host's.
                if host_ports.iter().any(|host| host.has(transport, address)) {
                    continue;
                }
                match sockets.add(transport, address, port) {
                    Ok(()) => {}
                    Err(error) if is_missing(address, &error) => {}
                    Err(source) => {
                        let in_use = ListenError::InUse { transport, address };
                        return Err(refused(address, source, in_use));
                    }
                }
            }
        }
    }
    sockets.own_datagrams = sockets.datagrams.len();
    for at in host_ports {
        let HostPort { transport, address, port } = *at;
        match sockets.add(transport, address, port) {
            Ok(()) => {}
            // An address that was named has to be there.
            Err(error) if address.ip().is_unspecified() && is_missing(address, &error) => {}
            Err(source) => {
                return Err(refused(address, source, ListenError::HostInUse { at: *at }));
            }
        }
    }
    Ok(sockets)
}

fn refused(address: SocketAddr, source: io::Error, in_use: ListenError) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => in_use,
        _ => ListenError::Refused { address, source },
    }
}

/// Whether the machine has no such loopback or wildcard, as where IPv6 is off.
fn is_missing(address: SocketAddr, error: &io::Error) -> bool {
    let is_missing = error.kind() == io::ErrorKind::AddrNotAvailable
        || Errno::from_io_error(error) == Some(Errno::AFNOSUPPORT);
    let is_general = address.ip().is_loopback() || address.ip().is_unspecified();
    address.is_ipv6() && is_general && is_missing
}

/// Listens at an address: a socket that only is bound keeps others from nothing
/// (`inet_csk_bind_conflict` in `net/ipv4/inet_connection_sock.c`). Where somebody
/// listens at one address of the port nobody does at all of them, and the other way
/// round.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    /// As std's; nobody is taken from the queue before the sandbox listens anew.
    const BACKLOG: i32 = 128;
    let socket = bind(address, SocketType::STREAM)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// A bound socket, for an event loop. IPv6 does not take IPv4 along.
fn bind(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Old connections do not keep it from its address.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use krustlet_protocol::HttpLimits;
    use serde_json::json;

    use super::*;

    fn port_of(ports: serde_json::Value) -> Result<u16, String> {
        let container: Container =
            serde_json::from_value(json!({"name": "main", "ports": ports})).unwrap();
        http_port(&container, &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_said_to_runwasi_holds_where_nothing_is_declared() {
        let port = |ports: serde_json::Value, given: &str| {
            let container: Container =
                serde_json::from_value(json!({"name": "main", "ports": ports})).unwrap();
            let env =
                [("A".to_owned(), "b".to_owned()), (SHIM_ADDRESS.to_owned(), given.to_owned())];
            http_port(&container, &env).map_err(|error| error.to_string())
        };
        for (given, wanted) in [("0.0.0.0:9090", 9090), ("[::]:9091", 9091), ("0.0.0.0:0", 8080)] {
            assert_eq!(port(json!([]), given), Ok(wanted));
            assert_eq!(port(json!([{"containerPort": 81}]), given), Ok(81));
            assert_eq!(
                port(json!([{"containerPort": 81}, {"containerPort": 82}]), given),
                Ok(wanted)
            );
        }
        let error = port(json!([]), "9090").unwrap_err();
        let wanted = format!("{SHIM_ADDRESS} is \"9090\", which is not an address and a port");
        assert_eq!(error, wanted);

        let backlog = |name: &str, given: &str| {
            let env = [(name.to_owned(), given.to_owned())];
            http_backlog(&env).map_err(|error| error.to_string())
        };
        for name in SHIM_BACKLOGS {
            assert_eq!(backlog(name, "100"), Ok(Some(100)));
            let error = backlog(name, "0").unwrap_err();
            assert_eq!(error, format!("{name} is \"0\", which is not a number from 1 on"));
        }
        assert_eq!(backlog("OTHER", "100"), Ok(None));
    }

    #[test]
    fn the_port_follows_the_declared_ones() {
        assert_eq!(port_of(json!([])), Ok(8080));
        assert_eq!(port_of(json!([{"containerPort": 81}])), Ok(81));
        assert_eq!(port_of(json!([{"containerPort": 81, "protocol": "UDP"}])), Ok(8080));
        assert_eq!(port_of(json!([{"containerPort": 81}, {"containerPort": 82}])), Ok(8080));
        assert_eq!(
            port_of(json!([{"containerPort": 81}, {"containerPort": 82, "name": "http"}])),
            Ok(82),
        );
        assert_eq!(
            port_of(json!([{"containerPort": 70000}])),
            Err("containerPort 70000 is not a port number".to_owned()),
        );
    }

    #[test]
    fn a_module_finds_its_tcp_ports_and_a_command_none() {
        let container: Container = serde_json::from_value(json!({"name": "main", "ports": [
            {"containerPort": 9000, "name": "admin"},
            {"containerPort": 53, "protocol": "UDP"},
            {"containerPort": 8080},
            {"containerPort": 9000, "hostIP": "10.0.0.1"},
        ]}))
        .unwrap();
        let ports = |guest: GuestKind| {
            let ports = listen_ports(&container, &guest, &[]).unwrap();
            ports.into_iter().map(|port| (port.name, port.port)).collect::<Vec<_>>()
        };
        let module = ports(GuestKind::Module { export: "_start".into() });
        assert_eq!(module, [(Some("admin".to_owned()), 9000), (None, 8080)]);
        assert_eq!(ports(GuestKind::Command), []);
    }

    #[test]
    fn the_node_listens_on_no_more_ports_than_it_can() {
        let container = |number: u16, protocol: &str| -> Container {
            let port = |n| json!({"containerPort": n, "protocol": protocol});
            // Twice each: the API server takes that.
            let ports: Vec<_> = (1..=number).chain(1..=number).map(port).collect();
            serde_json::from_value(json!({"name": "main", "ports": ports})).unwrap()
        };
        let module = GuestKind::Module { export: "_start".into() };
        let found = listen_ports(&container(512, "TCP"), &module, &[]).unwrap();
        assert_eq!(found.len(), 512);
        let error = listen_ports(&container(30_000, "TCP"), &module, &[]).unwrap_err();
        assert!(matches!(error, ListenError::TooMany { given: 30_000, .. }), "{error}");
        // Of a command they are taken only where its pod shares its address.
        let many = container(30_000, "UDP");
        let taken = |shared: Option<&Shared>| {
            sockets(shared, &[], &many, &GuestKind::Command, &[]).map(|found| found.datagrams.len())
        };
        assert_eq!(taken(None).unwrap(), 0);
        let error = taken(Some(&loopbacks())).unwrap_err();
        assert!(error.to_string().contains("30000 UDP ports"), "{error}");
    }

    #[test]
    fn a_host_port_is_at_its_host_ip_or_at_all_addresses() {
        let found = |ports: serde_json::Value| {
            let container =
                serde_json::from_value(json!({"name": "main", "ports": ports})).unwrap();
            let all = host_ports(&container).map_err(|error| error.to_string())?;
            let text = |one: &HostPort| format!("{} {} {}", one.protocol(), one.address, one.port);
            Ok::<_, String>(all.iter().map(text).collect::<Vec<_>>())
        };
        assert_eq!(found(json!([{"containerPort": 80}])).unwrap(), Vec::<String>::new());
        for ip in ["", "0.0.0.0", "::"] {
            assert_eq!(
                found(json!([{"containerPort": 80, "hostPort": 8000, "hostIP": ip}])).unwrap(),
                ["TCP 0.0.0.0:8000 80", "TCP [::]:8000 80"],
            );
        }
        let port = |protocol: &str| {
            let ip = "127.0.0.1";
            json!([{"containerPort": 80, "hostPort": 8000, "hostIP": ip, "protocol": protocol}])
        };
        for (protocol, named) in [("", "TCP"), ("TCP", "TCP"), ("UDP", "UDP")] {
            let wanted = format!("{named} 127.0.0.1:8000 80");
            assert_eq!(found(port(protocol)).unwrap(), [wanted]);
        }
        let wrong = json!([{"containerPort": 80, "hostPort": 8000, "hostIP": "host"}]);
        assert_eq!(found(wrong).unwrap_err(), "hostIP \"host\" is not an IP address");
    }

    /// One that the system has just had free at all addresses.
    fn free_port() -> u16 {
        let at_all = |ip: IpAddr, port| {
            let address = SocketAddr::new(ip, port);
            Some((listen(address).ok()?, bind(address, SocketType::DGRAM).ok()?))
        };
        std::iter::repeat_with(|| {
            let (four, _) = at_all(Ipv4Addr::UNSPECIFIED.into(), 0)?;
            let port = four.local_addr().unwrap().port();
            drop(four);
            at_all(Ipv4Addr::UNSPECIFIED.into(), port)?;
            at_all(Ipv6Addr::UNSPECIFIED.into(), port).map(|_| port)
        })
        .flatten()
        .next()
        .unwrap()
    }

    fn with_host_port(host: u16, ip: &str, protocol: &str) -> Container {
        let port = json!({
            "containerPort": 80, "hostPort": host, "hostIP": ip, "protocol": protocol,
        });
        serde_json::from_value(json!({"name": "main", "ports": [port]})).unwrap()
    }

    fn hosted(container: &Container) -> Result<Sockets, ListenError> {
        sockets(None, &host_ports(container).unwrap(), container, &GuestKind::Command, &[])
    }

    #[test]
    fn a_host_port_that_somebody_has_is_told() {
        let port = free_port();
        for protocol in ["TCP", "UDP"] {
            for [first, second] in [["", ""], ["", "127.0.0.1"], ["127.0.0.1", ""], ["::1", ""]] {
                let taken = hosted(&with_host_port(port, first, protocol)).unwrap();
                let wanted = with_host_port(port, second, protocol);
                let error = hosted(&wanted).unwrap_err();
                assert!(matches!(error, ListenError::HostInUse { .. }), "{error}");
                let text = error.to_string();
                assert!(text.starts_with(&format!("hostPort {port} of ")), "{text}");
                assert!(text.contains(&format!(", {protocol}, is in use")), "{text}");
                drop(taken);
                let found = hosted(&wanted).unwrap();
                let count = if second.is_empty() { 2 } else { 1 };
                let ports = if protocol == "TCP" { &found.ports } else { &found.datagram_ports };
                assert_eq!(*ports, vec![80; count]);
                assert_eq!(found.own_datagrams, 0, "they are the node's");
                assert_eq!(found.bound.len() + found.datagrams.len(), count);
            }
        }
    }

    #[test]
    fn one_number_is_many_host_ports() {
        let port = free_port();
        let all =
            [("127.0.0.1", "TCP"), ("127.0.0.2", "TCP"), ("127.0.0.2", "UDP"), ("::1", "TCP")];
        let all = all.map(|(ip, protocol)| hosted(&with_host_port(port, ip, protocol)).unwrap());
        assert_eq!(all.each_ref().map(|one| one.bound.len()), [1, 1, 0, 1]);
    }

    /// As a pod shares it whose node's addresses are the loopbacks.
    fn loopbacks() -> Shared {
        let tcp = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        Shared { udp: tcp.clone(), tcp }
    }

    #[test]
    fn datagrams_of_the_nodes_network_are_heard_at_all_addresses() {
        let udp = vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let shared = Shared { udp, ..loopbacks() };
        let port = free_port();
        let container = serde_json::from_value(json!({"name": "main", "ports": [
            {"containerPort": port, "protocol": "UDP"},
            {"containerPort": port},
        ]}));
        let container: Container = container.unwrap();
        let take = || sockets(Some(&shared), &[], &container, &GuestKind::Command, &[]);
        let found = take().unwrap();
        let text = |at: SocketAddr| at.ip().to_string();
        let datagrams = found.datagrams.iter().map(|one| text(one.local_addr().unwrap()));
        assert_eq!(datagrams.collect::<Vec<_>>(), ["0.0.0.0", "::"]);
        let bound = found.bound.iter().map(|one| text(one.local_addr().unwrap()));
        assert_eq!(bound.collect::<Vec<_>>(), ["127.0.0.1", "::1"]);
        drop(found.bound);
        let told = take().unwrap_err().to_string();
        assert!(told.starts_with(&format!("UDP port {port} of 0.0.0.0 is in use")), "{told}");
    }

    #[test]
    fn a_pod_that_shares_the_nodes_address_may_have_its_own_port_as_the_nodes() {
        let shared = loopbacks();
        let port = free_port();
        for (ip, addresses) in [
            ("", vec!["0.0.0.0", "::"]),
            ("127.0.0.1", vec!["::1", "127.0.0.1"]),
            ("127.0.0.9", vec!["127.0.0.1", "::1", "127.0.0.9"]),
        ] {
            let container = serde_json::from_value(json!({"name": "main", "ports": [
                {"containerPort": port, "hostPort": port, "hostIP": ip},
            ]}));
            let container: Container = container.unwrap();
            let ports = host_ports(&container).unwrap();
            let found =
                sockets(Some(&shared), &ports, &container, &GuestKind::Command, &[]).unwrap();
            let at = found.bound.iter().map(|one| one.local_addr().unwrap().ip().to_string());
            assert_eq!(at.collect::<Vec<_>>(), addresses, "{ip}");
            assert_eq!(found.ports, vec![port; addresses.len()]);
        }
    }

    #[test]
    fn ports_of_all_guests_are_taken_of_an_address_that_pods_share() {
        let shared = loopbacks();
        let addresses = &shared.tcp;
        let mut ports = std::iter::repeat_with(free_port);
        let one = ports.next().unwrap();
        let other = ports.find(|port| *port != one).unwrap();
        let datagrams = ports.next().unwrap();
        let container: Container = serde_json::from_value(json!({"name": "main", "ports": [
            {"containerPort": one, "name": "http"},
            {"containerPort": other},
            {"containerPort": datagrams, "protocol": "UDP"},
        ]}))
        .unwrap();
        let shared = Some(&shared);
        let module = GuestKind::Module { export: "_start".into() };
        let http = GuestKind::Http(HttpLimits::default());
        for (guest, taken) in [
            (&module, vec![one, one, other, other]),
            (&GuestKind::Command, vec![one, one, other, other]),
            (&http, vec![one, one]),
        ] {
            let listen = listen_ports(&container, guest, &[]).unwrap();
            let bind = || sockets(shared, &[], &container, guest, &listen);
            let found = bind().unwrap();
            assert_eq!(found.ports, taken, "{guest:?}");
            for (bound, (port, ip)) in
                found.bound.iter().zip(taken.iter().zip(addresses.iter().cycle()))
            {
                assert_eq!(bound.local_addr().unwrap(), SocketAddr::new(*ip, *port));
            }
            let error = bind().unwrap_err();
            assert!(matches!(error, ListenError::InUse { .. }), "{guest:?}: {error}");
            // Of datagrams, if it can have any.
            let has_udp = matches!(guest, GuestKind::Command);
            assert_eq!(found.datagram_ports, if has_udp { vec![datagrams; 2] } else { vec![] });
            assert_eq!(found.own_datagrams, found.datagrams.len());
            drop(found.bound);
            let free = bind();
            if has_udp {
                let error = free.unwrap_err();
                let text = format!("UDP port {datagrams} of 127.0.0.1 is in use on this node");
                assert!(error.to_string().starts_with(&text), "{error}");
            } else {
                free.unwrap();
            }
        }
        // An address of its own is the sandbox's to bind.
        for guest in [module, GuestKind::Command, http] {
            assert!(sockets(None, &[], &container, &guest, &[]).unwrap().bound.is_empty());
        }
    }
}
