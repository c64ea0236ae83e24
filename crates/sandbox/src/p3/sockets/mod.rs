//! `wasi:sockets` 0.3 over the pod's [`Stack`](crate::net::Stack): TCP, UDP and
//! names.
//!
//! As for [0.2](crate::sockets), wasmtime's own cannot be used. Waiting and
//! back-pressure are the component model's: a stream is asked when its other
//! end is, so nothing waits here in between.

mod names;
mod streams;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use wasmtime::component::{HasData, Linker, Resource, ResourceTableError};
use wasmtime_wasi::TrappableError;

use crate::{
    net::{Family, NetError},
    sockets::SocketsView,
    state::ComponentState,
};

mod generated {
    wasmtime::component::bindgen!({
        path: "wit/0.3",
        world: "krustlet:sandbox/sockets",
        imports: {
            "wasi:sockets/types.[method]tcp-socket.listen": store | trappable,
            "wasi:sockets/types.[method]tcp-socket.send": store | trappable,
            "wasi:sockets/types.[method]tcp-socket.receive": store | trappable,
            default: trappable,
        },
        trappable_error_type: {
            "wasi:sockets/types.error-code" => super::SocketError,
        },
        with: {
            "wasi:clocks": wasmtime_wasi::p3::bindings::clocks,
            "wasi:sockets/types.tcp-socket": super::tcp::TcpSocket,
            "wasi:sockets/types.udp-socket": super::udp::UdpSocket,
        },
        require_store_data_send: true,
    });
}
use generated::wasi::sockets::{
    ip_name_lookup,
    types::{self, ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress},
};

type SocketError = TrappableError<ErrorCode>;
type SocketResult<T> = Result<T, SocketError>;

/// Names [`SocketsView`] for the linker.
struct Sockets;

impl HasData for Sockets {
    type Data<'a> = SocketsView<'a>;
}

/// Adds TCP, UDP and names.
pub(super) fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    let view = ComponentState::sockets;
    types::add_to_linker::<_, Sockets>(linker, view)?;
    ip_name_lookup::add_to_linker::<_, Sockets>(linker, view)
}

impl types::Host for SocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }
}

/// A handle that is none, which only a defect of the host can give.
fn no_handle(error: ResourceTableError) -> SocketError {
    SocketError::trap(error)
}

impl SocketsView<'_> {
    fn get<T: Send + 'static>(&self, handle: &Resource<T>) -> SocketResult<&T> {
        self.table.get(handle).map_err(no_handle)
    }

    fn get_mut<T: Send + 'static>(&mut self, handle: &Resource<T>) -> SocketResult<&mut T> {
        self.table.get_mut(handle).map_err(no_handle)
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
            NetError::AddressNotBindable => Self::AddressNotBindable,
            NetError::AddressInUse => Self::AddressInUse,
            NetError::RemoteUnreachable => Self::RemoteUnreachable,
            NetError::ConnectionRefused => Self::ConnectionRefused,
            NetError::ConnectionReset => Self::ConnectionReset,
            NetError::ConnectionAborted => Self::ConnectionAborted,
            NetError::ConnectionBroken => Self::ConnectionBroken,
            NetError::DatagramTooLarge => Self::DatagramTooLarge,
            NetError::NewSocketLimit | NetError::WouldBlock | NetError::Unknown => {
                Self::Other(Some(error.to_string()))
            }
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

impl From<IpAddr> for IpAddress {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::Ipv4(ip.octets().into()),
            IpAddr::V6(ip) => Self::Ipv6(ip.segments().into()),
        }
    }
}

impl From<SocketAddr> for IpSocketAddress {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self::Ipv4(types::Ipv4SocketAddress {
                port: address.port(),
                address: address.ip().octets().into(),
            }),
            SocketAddr::V6(address) => Self::Ipv6(types::Ipv6SocketAddress {
                port: address.port(),
                flow_info: address.flowinfo(),
                address: address.ip().segments().into(),
                scope_id: address.scope_id(),
            }),
        }
    }
}

impl From<IpSocketAddress> for SocketAddr {
    fn from(address: IpSocketAddress) -> Self {
        match address {
            IpSocketAddress::Ipv4(types::Ipv4SocketAddress { port, address }) => {
                Self::V4(SocketAddrV4::new(Ipv4Addr::from(<[u8; 4]>::from(address)), port))
            }
            IpSocketAddress::Ipv6(types::Ipv6SocketAddress {
                port,
                flow_info,
                address,
                scope_id,
            }) => {
                let ip = Ipv6Addr::from(<[u16; 8]>::from(address));
                Self::V6(SocketAddrV6::new(ip, port, flow_info, scope_id))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_address_stays_what_it_is(
            v4: u32, v6: u128, port: u16, flow: u32, scope: u32
        ) {
            for address in [
                SocketAddr::new(Ipv4Addr::from_bits(v4).into(), port),
                SocketAddrV6::new(Ipv6Addr::from_bits(v6), port, flow, scope).into(),
            ] {
                prop_assert_eq!(SocketAddr::from(IpSocketAddress::from(address)), address);
            }
        }
    }
}
