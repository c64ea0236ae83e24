//! `wasi:sockets/udp`: the order in which a socket's calls may come.
//!
//! ```text
//! unbound ──start-bind──▶ bind-in-progress ──finish-bind──▶ bound ──stream──▶ a pair of streams
//! ```

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use wasmtime::component::Resource;
use wasmtime_wasi::{
    async_trait,
    p2::{
        DynPollable, Pollable, SocketError,
        bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network},
        subscribe,
    },
};

use super::{
    SocketResult, SocketsView, bindings,
    bindings::udp::{IncomingDatagram, OutgoingDatagram},
    destination, of_family,
};
use crate::net::{self, Family, LONGEST_DATAGRAM, NetError, Options, Permit, Setting, Stack};

/// Datagrams of one call; wasmtime's number.
const MOST: usize = 16;

/// Bytes of datagrams after which one call takes no more.
const MOST_BYTES: usize = 64 << 10;

/// See the module.
#[expect(unreachable_pub, reason = "the bindings re-export it")]
pub struct UdpSocket {
    stack: Stack,
    permit: Permit,
    family: Family,
    options: Options,
    state: State,
}

enum State {
    Unbound,
    BindInProgress(Shared),
    Bound(Shared),
}

/// A socket, as it and its streams share it.
#[derive(Clone)]
struct Shared(Arc<Mutex<net::UdpSocket>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, net::UdpSocket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What comes in.
#[expect(unreachable_pub, reason = "the bindings re-export it")]
pub struct Incoming(Shared);

/// What goes out.
#[expect(unreachable_pub, reason = "the bindings re-export it")]
pub struct Outgoing {
    socket: Shared,
    family: Family,
    /// Datagrams that the next `send` may have.
    permitted: usize,
}

impl UdpSocket {
    fn start_bind(&mut self, address: SocketAddr) -> Result<(), ErrorCode> {
        match self.state {
            State::Unbound => {}
            State::BindInProgress(_) => return Err(ErrorCode::ConcurrencyConflict),
            State::Bound(_) => return Err(ErrorCode::InvalidState),
        }
        of_family(address, self.family)?;
        let socket = self.stack.bind_udp(self.permit.clone(), self.options, address)?;
        self.state = State::BindInProgress(Shared(Arc::new(Mutex::new(socket))));
        Ok(())
    }

    fn bound(&self) -> Result<&Shared, ErrorCode> {
        match &self.state {
            State::Bound(socket) => Ok(socket),
            State::Unbound | State::BindInProgress(_) => Err(ErrorCode::InvalidState),
        }
    }

    fn set(&mut self, setting: Setting) -> Result<(), ErrorCode> {
        let mut options = self.options;
        match &self.state {
            State::Bound(socket) | State::BindInProgress(socket) => {
                options.set(setting, self.family, socket.lock().socket())?;
            }
            State::Unbound => options.set(setting, self.family, None)?,
        }
        self.options = options;
        Ok(())
    }

    /// Reads an option with the system's socket, where there is one.
    fn get<T>(&self, read: impl FnOnce(&Options, Option<std::os::fd::BorrowedFd<'_>>) -> T) -> T {
        match &self.state {
            State::Bound(socket) | State::BindInProgress(socket) => {
                read(&self.options, socket.lock().socket())
            }
            State::Unbound => read(&self.options, None),
        }
    }
}

#[async_trait]
impl Pollable for UdpSocket {
    async fn ready(&mut self) {
        // Nothing that is asked of the socket itself waits.
    }
}

#[async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        poll_fn(|context| self.0.lock().poll_receive_ready(context)).await;
    }
}

#[async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {
        poll_fn(|context| self.socket.lock().poll_send_ready(context)).await;
    }
}

impl SocketsView<'_> {
    fn udp(&self, socket: &Resource<UdpSocket>) -> SocketResult<&UdpSocket> {
        Ok(self.table.get(socket)?)
    }

    fn udp_mut(&mut self, socket: &Resource<UdpSocket>) -> SocketResult<&mut UdpSocket> {
        Ok(self.table.get_mut(socket)?)
    }
}

impl bindings::udp_create_socket::Host for SocketsView<'_> {
    fn create_udp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        if !self.has_room() {
            return Err(ErrorCode::NewSocketLimit.into());
        }
        let socket = UdpSocket {
            stack: self.stack.clone(),
            permit: self.stack.permit()?,
            family: family.into(),
            options: Options::default(),
            state: State::Unbound,
        };
        Ok(self.table.push(socket)?)
    }
}

impl bindings::udp::Host for SocketsView<'_> {}

impl bindings::udp::HostUdpSocket for SocketsView<'_> {
    fn start_bind(
        &mut self,
        socket: Resource<UdpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        Ok(self.udp_mut(&socket)?.start_bind(address.into())?)
    }

    fn finish_bind(&mut self, socket: Resource<UdpSocket>) -> SocketResult<()> {
        let socket = self.udp_mut(&socket)?;
        let State::BindInProgress(shared) = &socket.state else {
            return Err(ErrorCode::NotInProgress.into());
        };
        socket.state = State::Bound(shared.clone());
        Ok(())
    }

    fn stream(
        &mut self,
        socket: Resource<UdpSocket>,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<(Resource<Incoming>, Resource<Outgoing>)> {
        let mut children = self.table.iter_children(&socket)?;
        if children.any(|child| child.is::<Incoming>() || child.is::<Outgoing>()) {
            let why = "streams of this socket are in use still";
            return Err(SocketError::trap(wasmtime::Error::msg(why)));
        }
        drop(children);
        let udp = self.udp(&socket)?;
        let (family, shared) = (udp.family, udp.bound()?.clone());
        let remote = remote.map(SocketAddr::from);
        if let Some(remote) = remote {
            destination(remote, family)?;
        }
        shared.lock().connect(remote)?;
        let outgoing = Outgoing { socket: shared.clone(), family, permitted: 0 };
        let incoming = self.table.push_child(Incoming(shared), &socket)?;
        Ok((incoming, self.table.push_child(outgoing, &socket)?))
    }

    fn local_address(&mut self, socket: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let address = self.udp(&socket)?.bound()?.lock().address();
        Ok(address.into())
    }

    fn remote_address(&mut self, socket: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let remote = self.udp(&socket)?.bound()?.lock().remote();
        Ok(remote.ok_or(ErrorCode::InvalidState)?.into())
    }

    fn address_family(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family.into())
    }

    fn unicast_hop_limit(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u8> {
        Ok(self.udp(&socket)?.options.hop_limit())
    }

    fn set_unicast_hop_limit(
        &mut self,
        socket: Resource<UdpSocket>,
        limit: u8,
    ) -> SocketResult<()> {
        Ok(self.udp_mut(&socket)?.set(Setting::HopLimit(limit))?)
    }

    fn receive_buffer_size(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.udp(&socket)?.get(Options::receive_buffer))
    }

    fn set_receive_buffer_size(
        &mut self,
        socket: Resource<UdpSocket>,
        bytes: u64,
    ) -> SocketResult<()> {
        Ok(self.udp_mut(&socket)?.set(Setting::ReceiveBuffer(bytes))?)
    }

    fn send_buffer_size(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.udp(&socket)?.get(Options::send_buffer))
    }

    fn set_send_buffer_size(
        &mut self,
        socket: Resource<UdpSocket>,
        bytes: u64,
    ) -> SocketResult<()> {
        Ok(self.udp_mut(&socket)?.set(Setting::SendBuffer(bytes))?)
    }

    fn subscribe(
        &mut self,
        socket: Resource<UdpSocket>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, socket)
    }

    fn drop(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}

impl bindings::udp::HostIncomingDatagramStream for SocketsView<'_> {
    fn receive(
        &mut self,
        stream: Resource<Incoming>,
        most: u64,
    ) -> SocketResult<Vec<IncomingDatagram>> {
        let socket = self.table.get(&stream)?.0.lock();
        let most = usize::try_from(most).unwrap_or(MOST).min(MOST);
        let (mut datagrams, mut bytes) = (Vec::new(), 0);
        if most == 0 {
            return Ok(datagrams);
        }
        let mut buffer = vec![0; LONGEST_DATAGRAM];
        while datagrams.len() < most && bytes < MOST_BYTES {
            match socket.try_receive(&mut buffer) {
                Ok((length, from)) => {
                    bytes += length;
                    let data = buffer[..length].to_vec();
                    datagrams.push(IncomingDatagram { data, remote_address: from.into() });
                }
                Err(NetError::WouldBlock) => break,
                Err(error) if datagrams.is_empty() => return Err(error.into()),
                // The next call is told of it, or of what comes then.
                Err(_) => break,
            }
        }
        Ok(datagrams)
    }

    fn subscribe(&mut self, stream: Resource<Incoming>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, stream)
    }

    fn drop(&mut self, stream: Resource<Incoming>) -> wasmtime::Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}

impl bindings::udp::HostOutgoingDatagramStream for SocketsView<'_> {
    fn check_send(&mut self, stream: Resource<Outgoing>) -> SocketResult<u64> {
        let stream = self.table.get_mut(&stream)?;
        let ready = stream.socket.lock().can_send();
        stream.permitted = if ready { MOST } else { 0 };
        Ok(stream.permitted as u64)
    }

    fn send(
        &mut self,
        stream: Resource<Outgoing>,
        datagrams: Vec<OutgoingDatagram>,
    ) -> SocketResult<u64> {
        let stream = self.table.get_mut(&stream)?;
        if datagrams.is_empty() {
            return Ok(0);
        }
        if datagrams.len() > std::mem::take(&mut stream.permitted) {
            let why = "more datagrams were sent than were permitted";
            return Err(SocketError::trap(wasmtime::Error::msg(why)));
        }
        let socket = stream.socket.lock();
        let mut sent = 0;
        for datagram in datagrams {
            let to = datagram.remote_address.map(SocketAddr::from);
            let checked = to.map_or(Ok(()), |to| destination(to, stream.family));
            match checked.and_then(|()| socket.try_send(&datagram.data, to)) {
                Ok(()) => sent += 1,
                Err(NetError::WouldBlock) => break,
                Err(error) if sent == 0 => return Err(error.into()),
                Err(_) => break,
            }
        }
        Ok(sent)
    }

    fn subscribe(&mut self, stream: Resource<Outgoing>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, stream)
    }

    fn drop(&mut self, stream: Resource<Outgoing>) -> wasmtime::Result<()> {
        self.table.delete(stream)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bindings::{udp::HostUdpSocket as _, udp_create_socket::Host as _};
    use krustlet_protocol::{Limits, PodNetwork};
    use rustix::net::sockopt;
    use wasmtime::component::ResourceTable;

    use super::*;
    use crate::state::Usage;

    #[tokio::test]
    async fn options_are_kept_whenever_they_are_set() {
        let (stack, mut table) = (Stack::default(), ResourceTable::new());
        // Really there is no pod with this address; it is one that any machine has.
        let addresses = vec![Family::V4.localhost()];
        stack.set(PodNetwork { addresses, ..PodNetwork::default() }, None);
        let usage = Arc::new(Usage::new(&Limits::default()));
        let view = &mut SocketsView { stack: &stack, table: &mut table, usage: &usage };
        for is_bound_before in [false, true] {
            let socket = view.create_udp_socket(IpAddressFamily::Ipv4).unwrap();
            let it = || Resource::new_borrow(socket.rep());
            let bind = |view: &mut SocketsView<'_>| {
                let address = SocketAddr::new(Family::V4.wildcard(), 0);
                view.udp_mut(&socket).unwrap().start_bind(address).unwrap();
                view.finish_bind(it()).unwrap();
            };
            if is_bound_before {
                bind(view);
            }
            let zeros = [
                view.set_unicast_hop_limit(it(), 0),
                view.set_receive_buffer_size(it(), 0),
                view.set_send_buffer_size(it(), 0),
            ];
            for zero in zeros {
                assert_eq!(zero.unwrap_err().downcast().unwrap(), ErrorCode::InvalidArgument);
            }
            assert_eq!(view.unicast_hop_limit(it()).unwrap(), 64);
            view.set_unicast_hop_limit(it(), 9).unwrap();
            view.set_receive_buffer_size(it(), 20_000).unwrap();
            view.set_send_buffer_size(it(), 30_000).unwrap();
            if !is_bound_before {
                bind(view);
            }
            assert_eq!(view.unicast_hop_limit(it()).unwrap(), 9);
            assert_eq!(view.receive_buffer_size(it()).unwrap(), 20_000);
            assert_eq!(view.send_buffer_size(it()).unwrap(), 30_000);
            let bound = view.udp(&socket).unwrap().bound().unwrap().lock();
            let real = bound.socket().unwrap();
            assert_eq!(sockopt::ip_ttl(real).unwrap(), 9);
            // The system tells twice what it was told.
            assert_eq!(sockopt::socket_recv_buffer_size(real).unwrap(), 40_000);
            assert_eq!(sockopt::socket_send_buffer_size(real).unwrap(), 60_000);
        }
    }
}
