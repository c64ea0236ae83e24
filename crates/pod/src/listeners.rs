//! The ports of a container: which it has, and those that the agent binds and
//! hands over.
//!
//! Where pods share the node's address two of them may want the same port: the
//! second waits, and says for what. So it is with a `hostPort`.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
};

use k8s_openapi::api::core::v1::{Container, ContainerPort};
use krustlet_network::Network;
use krustlet_protocol::{GuestKind, ListenPort};
use rustix::io::Errno;

/// The port of a container that declares none; that of `wasmtime serve`.
pub const DEFAULT_PORT: u16 = 8080;

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ListenError {
    #[error("containerPort {given} is not a port number")]
    Invalid { given: i32 },

    #[error(
        "port {} of {} is in use on this node, whose address the pod shares; \
         choose another containerPort or stop what uses it",
        .address.port(), .address.ip()
    )]
    InUse { address: SocketAddr },

    #[error(
        "hostPort {} of {} is in use on this node; choose another one or stop what uses it",
        .address.port(), .address.ip()
    )]
    HostInUse { address: SocketAddr },

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
}

/// The port an http guest is served on: the declared port named `http`, else
/// the only TCP port declared, else 8080.
///
/// # Errors
///
/// [`ListenError::Invalid`] if the declared number is none of 1 to 65535; the
/// API server refuses that, a file may hold it.
pub fn http_port(container: &Container) -> Result<u16, ListenError> {
    let declared = container.ports.as_deref().unwrap_or_default();
    let mut tcp = declared.iter().filter(|port| is_tcp(port));
    let named = tcp.clone().find(|port| port.name.as_deref() == Some("http"));
    match (named, tcp.next(), tcp.next()) {
        (Some(named), _, _) => number(named),
        (None, Some(only), None) => number(only),
        (None, None, _) | (None, Some(_), Some(_)) => Ok(DEFAULT_PORT),
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
/// As [`http_port`].
pub fn listen_ports(
    container: &Container,
    guest: &GuestKind,
) -> Result<Vec<ListenPort>, ListenError> {
    match guest {
        GuestKind::Http(_) => {
            Ok(vec![ListenPort { name: Some("http".to_owned()), port: http_port(container)? }])
        }
        GuestKind::Command => Ok(Vec::new()),
        GuestKind::Module { .. } => tcp_ports(container),
    }
}

/// The TCP ports that are declared, in their order and none twice.
fn tcp_ports(container: &Container) -> Result<Vec<ListenPort>, ListenError> {
    let mut ports: Vec<ListenPort> = Vec::new();
    for declared in container.ports.iter().flatten().filter(|port| is_tcp(port)) {
        let port = number(declared)?;
        if !ports.iter().any(|before| before.port == port) {
            ports.push(ListenPort { name: declared.name.clone(), port });
        }
    }
    Ok(ports)
}

/// The ports that a container takes of the address that its pod shares: an http
/// guest's one, and all that are declared of others.
fn taken_ports(container: &Container, guest: &GuestKind) -> Result<Vec<u16>, ListenError> {
    match guest {
        GuestKind::Http(_) => Ok(vec![http_port(container)?]),
        GuestKind::Command | GuestKind::Module { .. } => {
            Ok(tcp_ports(container)?.into_iter().map(|taken| taken.port).collect())
        }
    }
}

/// Where the node listens for a port of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// An address of the node, and the `hostPort`.
    pub address: SocketAddr,
    /// The `containerPort` that it leads to.
    pub port: u16,
}

/// The addresses at which the node listens for a container: for each TCP port
/// with a `hostPort` its `hostIP`, or each of the node's addresses if that is
/// none or stands for all.
///
/// # Errors
///
/// [`ListenError::Invalid`] for a number that is no port,
/// [`ListenError::InvalidIp`] for a `hostIP` that is no address.
pub fn host_addresses(
    container: &Container,
    node: &[IpAddr],
) -> Result<Vec<HostAddress>, ListenError> {
    let mut all = Vec::new();
    for declared in container.ports.iter().flatten().filter(|port| is_tcp(port)) {
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
        let addresses = asked.map_or_else(|| node.to_vec(), |ip| vec![ip]);
        all.extend(addresses.into_iter().map(|address| {
            let address = SocketAddr::new(address, host_port);
            HostAddress { address, port }
        }));
    }
    Ok(all)
}

fn is_tcp(port: &ContainerPort) -> bool {
    matches!(port.protocol.as_deref(), None | Some("TCP"))
}

/// Sockets to be handed over, and the container port that each is for.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) bound: Vec<TcpListener>,
    pub(crate) ports: Vec<u16>,
}

/// Binds what a container's sandbox cannot bind itself: its ports at the addresses
/// that its pod shares, so that it waits for one that somebody has and may have low
/// ones, and the addresses at which the node listens for it. At an address of its
/// own the sandbox listens, when the guest is started.
///
/// # Errors
///
/// [`ListenError::InUse`] and [`ListenError::HostInUse`] if somebody listens there
/// already; otherwise what the system said.
pub(crate) fn sockets(
    network: &Network,
    shared: Option<&[IpAddr]>,
    container: &Container,
    guest: &GuestKind,
) -> Result<Sockets, ListenError> {
    let mut sockets = Sockets::default();
    let mut own = Vec::new();
    if let Some(shared) = shared {
        if shared.is_empty() {
            return Err(ListenError::NoAddress);
        }
        for port in taken_ports(container, guest)? {
            for address in shared.iter().map(|ip| SocketAddr::new(*ip, port)) {
                match listen(address) {
                    Ok(listener) => {
                        sockets.bound.push(listener);
                        sockets.ports.push(port);
                    }
                    Err(error) if is_no_loopback(address, &error) => {}
                    Err(error) => return Err(error),
                }
                own.push(address);
            }
        }
    }
    for HostAddress { address, port } in host_addresses(container, network.node_addresses())? {
        // Where the pod has the node's address, its own port may be the host's.
        if own.contains(&address) {
            continue;
        }
        let listener = TcpListener::bind(address).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::HostInUse { address },
            _ => ListenError::Refused { address, source },
        })?;
        sockets.bound.push(unblocked(listener, address)?);
        sockets.ports.push(port);
    }
    Ok(sockets)
}

/// Whether the machine has no such loopback, as where IPv6 is off.
fn is_no_loopback(address: SocketAddr, error: &ListenError) -> bool {
    let ListenError::Refused { source, .. } = error else { return false };
    let is_missing = source.kind() == io::ErrorKind::AddrNotAvailable
        || source.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error());
    address.is_ipv6() && address.ip().is_loopback() && is_missing
}

/// Listens on an address that the pod shares.
fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listener = TcpListener::bind(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address },
        _ => ListenError::Refused { address, source },
    })?;
    unblocked(listener, address)
}

/// The sandbox serves it from an event loop.
fn unblocked(listener: TcpListener, address: SocketAddr) -> Result<TcpListener, ListenError> {
    listener.set_nonblocking(true).map_err(|source| ListenError::Refused { address, source })?;
    Ok(listener)
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
        http_port(&container).map_err(|error| error.to_string())
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
            let ports = listen_ports(&container, &guest).unwrap();
            ports.into_iter().map(|port| (port.name, port.port)).collect::<Vec<_>>()
        };
        let module = ports(GuestKind::Module { export: "_start".into() });
        assert_eq!(module, [(Some("admin".to_owned()), 9000), (None, 8080)]);
        assert_eq!(ports(GuestKind::Command), []);
    }

    #[test]
    fn a_host_port_is_listened_on_where_it_says() {
        let node = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let found = |ports: serde_json::Value| {
            let container =
                serde_json::from_value(json!({"name": "main", "ports": ports})).unwrap();
            let all = host_addresses(&container, &node).map_err(|error| error.to_string())?;
            Ok::<_, String>(
                all.iter().map(|one| format!("{} {}", one.address, one.port)).collect::<Vec<_>>(),
            )
        };
        assert_eq!(found(json!([{"containerPort": 80}])).unwrap(), Vec::<String>::new());
        for ip in ["", "0.0.0.0", "::"] {
            assert_eq!(
                found(json!([{"containerPort": 80, "hostPort": 8000, "hostIP": ip}])).unwrap(),
                ["192.0.2.1:8000 80", "[2001:db8::1]:8000 80"],
            );
        }
        assert_eq!(
            found(json!([{"containerPort": 80, "hostPort": 8000, "hostIP": "127.0.0.1"}])).unwrap(),
            ["127.0.0.1:8000 80"],
        );
        let wrong = json!([{"containerPort": 80, "hostPort": 8000, "hostIP": "host"}]);
        assert_eq!(found(wrong).unwrap_err(), "hostIP \"host\" is not an IP address");
    }

    #[test]
    fn a_host_port_in_use_is_named() {
        let node: IpAddr = Ipv4Addr::LOCALHOST.into();
        let network = Network::host(vec![node]);
        let first = TcpListener::bind((node, 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        let container = serde_json::from_value(
            json!({"name": "main", "ports": [{"containerPort": 80, "hostPort": port}]}),
        )
        .unwrap();
        let guest = GuestKind::Command;
        let error = sockets(&network, None, &container, &guest).unwrap_err();
        assert!(matches!(error, ListenError::HostInUse { .. }), "{error}");
        drop(first);
        let sockets = sockets(&network, None, &container, &guest).unwrap();
        assert_eq!((sockets.ports, sockets.bound.len()), (vec![80], 1));
    }

    #[test]
    fn ports_of_all_guests_are_taken_of_an_address_that_pods_share() {
        let addresses: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let network = Network::host(addresses.to_vec());
        // One that the system has just had free at both.
        let free = || {
            let four = TcpListener::bind((addresses[0], 0)).unwrap();
            let port = four.local_addr().unwrap().port();
            TcpListener::bind((addresses[1], port)).is_ok().then_some(port)
        };
        let mut ports = std::iter::repeat_with(free).flatten();
        let one = ports.next().unwrap();
        let other = ports.find(|port| *port != one).unwrap();
        let container: Container = serde_json::from_value(json!({"name": "main", "ports": [
            {"containerPort": one, "name": "http"},
            {"containerPort": other},
            {"containerPort": 53, "protocol": "UDP"},
        ]}))
        .unwrap();
        let shared = Some(&addresses[..]);
        let module = GuestKind::Module { export: "_start".into() };
        let http = GuestKind::Http(HttpLimits::default());
        for (guest, taken) in [
            (&module, vec![one, one, other, other]),
            (&GuestKind::Command, vec![one, one, other, other]),
            (&http, vec![one, one]),
        ] {
            let found = sockets(&network, shared, &container, guest).unwrap();
            assert_eq!(found.ports, taken, "{guest:?}");
            for (bound, (port, ip)) in
                found.bound.iter().zip(taken.iter().zip(addresses.iter().cycle()))
            {
                assert_eq!(bound.local_addr().unwrap(), SocketAddr::new(*ip, *port));
            }
            let error = sockets(&network, shared, &container, guest).unwrap_err();
            assert!(matches!(error, ListenError::InUse { .. }), "{guest:?}: {error}");
        }
        // A hostPort of its own is not a second listener.
        let with_host_port = serde_json::from_value(json!({
            "name": "main", "ports": [{"containerPort": one, "hostPort": one}],
        }));
        let found = sockets(&network, shared, &with_host_port.unwrap(), &http).unwrap();
        assert_eq!(found.ports, [one, one]);
        // An address of its own is the sandbox's to bind.
        for guest in [module, GuestKind::Command, http] {
            assert!(sockets(&network, None, &container, &guest).unwrap().bound.is_empty());
        }
    }
}
