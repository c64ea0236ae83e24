//! The port of an http guest.
//!
//! The agent binds and hands the listening socket over, for a sandbox may open
//! none. Pods share the node's address for now, so that two of them may want
//! the same port: the second waits, and says for what.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
};

use k8s_openapi::api::core::v1::{Container, ContainerPort};

/// The port of a container that declares none; that of `wasmtime serve`.
pub const DEFAULT_PORT: u16 = 8080;

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ListenError {
    #[error("containerPort {given} is not a port number")]
    Invalid { given: i32 },

    #[error(
        "port {} of {} is in use on this node, whose pods share its address; \
         choose another containerPort or stop what uses it",
        .address.port(), .address.ip()
    )]
    InUse { address: SocketAddr },

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
    let chosen = match (named, tcp.next(), tcp.next()) {
        (Some(named), _, _) => named,
        (None, Some(only), None) => only,
        (None, None, _) | (None, Some(_), Some(_)) => return Ok(DEFAULT_PORT),
    };
    match u16::try_from(chosen.container_port) {
        Ok(port) if port > 0 => Ok(port),
        Ok(_) | Err(_) => Err(ListenError::Invalid { given: chosen.container_port }),
    }
}

fn is_tcp(port: &ContainerPort) -> bool {
    matches!(port.protocol.as_deref(), None | Some("TCP"))
}

/// Listens on a port of the pod's address.
///
/// # Errors
///
/// [`ListenError::InUse`] if somebody does so already; otherwise what the
/// system said.
pub fn listen(address: IpAddr, port: u16) -> Result<TcpListener, ListenError> {
    let address = SocketAddr::new(address, port);
    let listener = TcpListener::bind(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address },
        _ => ListenError::Refused { address, source },
    })?;
    // The sandbox serves it from an event loop.
    listener.set_nonblocking(true).map_err(|source| ListenError::Refused { address, source })?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

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
    fn a_port_in_use_is_named() {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let first = listen(address, 0).unwrap();
        let port = first.local_addr().unwrap().port();
        let error = listen(address, port).unwrap_err();
        assert!(matches!(error, ListenError::InUse { .. }), "{error}");
        drop(first);
        listen(address, port).unwrap();
    }
}
