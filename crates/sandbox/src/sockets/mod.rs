//! `wasi:sockets` 0.2 over the pod's [`Stack`]: TCP, UDP and names.
//!
//! wasmtime's own implementation can refuse an address but not change one, and
//! gives no way to a loopback that is the pod's own; so these are ours. The
//! handle of the network, and the types of addresses and errors, are
//! wasmtime's. What a socket does is [`net`](crate::net)'s; here is the order of
//! calls that WASI asks for, and its words for errors.

mod names;
mod streams;
mod tcp;
mod udp;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::{
    SocketError,
    bindings::sockets::network::{self, ErrorCode, IpAddressFamily},
};

use crate::{
    net::{Family, NetError, Stack},
    state::{ComponentState, HANDLES_PER_SOCKET, Usage},
};

mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "krustlet:sandbox/sockets",
        imports: { default: trappable },
        trappable_error_type: {
            "wasi:sockets/network.error-code" => wasmtime_wasi::p2::SocketError,
        },
        with: {
            "wasi:io": wasmtime_wasi::p2::bindings::io,
            "wasi:clocks": wasmtime_wasi::p2::bindings::clocks,
            "wasi:sockets/network": wasmtime_wasi::p2::bindings::sockets::network,
            "wasi:sockets/ip-name-lookup.resolve-address-stream": super::names::Addresses,
            "wasi:sockets/tcp.tcp-socket": super::tcp::TcpSocket,
            "wasi:sockets/udp.udp-socket": super::udp::UdpSocket,
            "wasi:sockets/udp.incoming-datagram-stream": super::udp::Incoming,
            "wasi:sockets/udp.outgoing-datagram-stream": super::udp::Outgoing,
        },
        require_store_data_send: true,
    });
}
use generated::wasi::sockets as bindings;

/// Connections that wait at a listener of which nothing was said; Rust's
/// standard library's number.
pub(crate) const BACKLOG: u32 = 128;

type SocketResult<T> = Result<T, SocketError>;

/// What the calls of one store see.
pub(crate) struct SocketsView<'a> {
    pub(crate) stack: &'a Stack,
    pub(crate) table: &'a mut ResourceTable,
    /// What its container uses.
    pub(crate) usage: &'a Arc<Usage>,
}

impl SocketsView<'_> {
    /// Whether there are handles for one more socket and all that belongs to it. A
    /// guest that has none left is told so; a call for which none is left ends it.
    fn has_room(&mut self) -> bool {
        let places: [_; HANDLES_PER_SOCKET] = std::array::from_fn(|_| self.table.push(()));
        let all = places.iter().all(Result::is_ok);
        for place in places.into_iter().flatten() {
            // It was put there above.
            let _ = self.table.delete(place);
        }
        all
    }
}

/// Names [`SocketsView`] for the linker.
struct Sockets;

impl HasData for Sockets {
    type Data<'a> = SocketsView<'a>;
}

/// Adds TCP, UDP and names, in the place of wasmtime's.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let view = ComponentState::sockets;
    bindings::tcp::add_to_linker::<_, Sockets>(linker, view)?;
    bindings::tcp_create_socket::add_to_linker::<_, Sockets>(linker, view)?;
    bindings::udp::add_to_linker::<_, Sockets>(linker, view)?;
    bindings::udp_create_socket::add_to_linker::<_, Sockets>(linker, view)?;
    bindings::ip_name_lookup::add_to_linker::<_, Sockets>(linker, view)?;
    linker.allow_shadowing(false);
    Ok(())
}

impl network::Host for SocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        let error = self.table.get(&error)?;
        Ok(error.downcast_ref::<NetError>().map(|error| (*error).into()))
    }
}

impl network::HostNetwork for SocketsView<'_> {
    fn drop(&mut self, network: Resource<network::Network>) -> wasmtime::Result<()> {
        self.table.delete(network)?;
        Ok(())
    }
}

impl From<NetError> for ErrorCode {
    fn from(error: NetError) -> Self {
        match error {
            NetError::AccessDenied => Self::AccessDenied,
            NetError::NotSupported => Self::NotSupported,
            NetError::InvalidArgument => Self::InvalidArgument,
            NetError::OutOfMemory => Self::OutOfMemory,
            NetError::Timeout => Self::Timeout,
            NetError::InvalidState => Self::InvalidState,
            NetError::NewSocketLimit => Self::NewSocketLimit,
            NetError::AddressNotBindable => Self::AddressNotBindable,
            NetError::AddressInUse => Self::AddressInUse,
            NetError::RemoteUnreachable => Self::RemoteUnreachable,
            NetError::ConnectionRefused => Self::ConnectionRefused,
            NetError::ConnectionReset => Self::ConnectionReset,
            NetError::ConnectionAborted => Self::ConnectionAborted,
            NetError::DatagramTooLarge => Self::DatagramTooLarge,
            NetError::WouldBlock => Self::WouldBlock,
            // Streams say that they are closed.
            NetError::ConnectionBroken | NetError::Unknown => Self::Unknown,
        }
    }
}

impl From<NetError> for SocketError {
    fn from(error: NetError) -> Self {
        ErrorCode::from(error).into()
    }
}

impl From<IpAddressFamily> for Family {
    fn from(family: IpAddressFamily) -> Self {
        match family {
            IpAddressFamily::Ipv4 => Self::V4,
            IpAddressFamily::Ipv6 => Self::V6,
        }
    }
}

impl From<Family> for IpAddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Ipv4,
            Family::V6 => Self::Ipv6,
        }
    }
}

/// Whether a socket of the family can have this address at either end. IPv4
/// addresses in IPv6's clothes are not WASI's way to write them.
pub(crate) fn of_family(address: SocketAddr, family: Family) -> Result<(), NetError> {
    let dressed = |ip: Ipv6Addr| {
        let compatible = matches!(ip.segments(), [0, 0, 0, 0, 0, 0, _, _]);
        ip.to_ipv4_mapped().is_some() || compatible && !ip.is_unspecified() && !ip.is_loopback()
    };
    match (family, address.ip()) {
        (Family::V4, IpAddr::V4(_)) => Ok(()),
        (Family::V6, IpAddr::V6(ip)) if !dressed(ip) => Ok(()),
        (Family::V4 | Family::V6, _) => Err(NetError::InvalidArgument),
    }
}

/// Whether there can be one machine at it.
pub(crate) fn unicast(address: SocketAddr) -> Result<(), NetError> {
    let broadcast = address.ip() == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    if address.ip().is_multicast() || broadcast {
        return Err(NetError::InvalidArgument);
    }
    Ok(())
}

/// Whether something can be sent to it.
pub(crate) fn destination(address: SocketAddr, family: Family) -> Result<(), NetError> {
    of_family(address, family)?;
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err(NetError::InvalidArgument);
    }
    Ok(())
}

/// A time in WASI's unit.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_must_fit_the_socket() {
        let of = |text: &str, family| of_family(text.parse().unwrap(), family).is_ok();
        assert!(of("10.0.0.1:0", Family::V4) && of("[fd00::1]:0", Family::V6));
        assert!(of("[::]:1", Family::V6) && of("[::1]:1", Family::V6));
        assert!(!of("10.0.0.1:0", Family::V6) && !of("[fd00::1]:0", Family::V4));
        assert!(!of("[::ffff:10.0.0.1]:1", Family::V6) && !of("[::10.0.0.1]:1", Family::V6));
        assert!(unicast("224.0.0.1:1".parse().unwrap()).is_err());
        assert!(unicast("255.255.255.255:1".parse().unwrap()).is_err());
        assert!(destination("0.0.0.0:1".parse().unwrap(), Family::V4).is_err());
        assert!(destination("10.0.0.1:0".parse().unwrap(), Family::V4).is_err());
    }
}
