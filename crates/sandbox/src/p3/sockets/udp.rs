//! UDP sockets. Sending and connecting bind by themselves, receiving does not.

use std::{
    future::poll_fn,
    net::SocketAddr,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use wasmtime::component::{Accessor, Resource};

use super::{
    IpAddressFamily, IpSocketAddress, SocketResult, Sockets, SocketsView, no_handle, types,
};
use crate::{
    net::{self, Family, LONGEST_DATAGRAM, NetError, Options, Permit, Setting, Stack},
    sockets::{destination, of_family},
};

/// See the module.
#[expect(unreachable_pub, reason = "the bindings re-export it")]
pub struct UdpSocket {
    stack: Stack,
    permit: Permit,
    family: Family,
    options: Options,
    bound: Option<Arc<Bound>>,
}

/// A bound socket, as it and the calls that wait share it.
struct Bound {
    socket: Mutex<net::UdpSocket>,
    /// The socket remembers one that waits in each direction: the others wait
    /// for their turn, in the order they came.
    receiving: tokio::sync::Mutex<()>,
    sending: tokio::sync::Mutex<()>,
}

impl Bound {
    fn lock(&self) -> MutexGuard<'_, net::UdpSocket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn receive(&self) -> Result<(Vec<u8>, SocketAddr), NetError> {
        let _turn = self.receiving.lock().await;
        loop {
            poll_fn(|context| self.lock().poll_receive_ready(context)).await;
            // Nothing is held by those who wait, of whom there may be many.
            let mut buffer = vec![0; LONGEST_DATAGRAM];
            let received = self.lock().try_receive(&mut buffer);
            match received {
                Ok((length, from)) => return Ok((buffer[..length].to_vec(), from)),
                // It may have been ready all the time.
                Err(NetError::WouldBlock) => tokio::task::yield_now().await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn send(
        &self,
        stack: &Stack,
        bytes: &[u8],
        to: Option<SocketAddr>,
    ) -> Result<(), NetError> {
        match self.lock().try_send(bytes, to) {
            Err(NetError::WouldBlock) => {}
            done => return done,
        }
        let _memory = stack.memory().hold(bytes.len()).ok_or(NetError::OutOfMemory)?;
        let _turn = self.sending.lock().await;
        loop {
            poll_fn(|context| self.lock().poll_send_ready(context)).await;
            let sent = self.lock().try_send(bytes, to);
            match sent {
                Err(NetError::WouldBlock) => tokio::task::yield_now().await,
                done => return done,
            }
        }
    }
}

impl UdpSocket {
    fn new(stack: &Stack, family: Family) -> Result<Self, NetError> {
        let (permit, options) = (stack.permit()?, Options::default());
        Ok(Self { stack: stack.clone(), permit, family, options, bound: None })
    }

    fn bind(&mut self, address: SocketAddr) -> Result<(), NetError> {
        if self.bound.is_some() {
            return Err(NetError::InvalidState);
        }
        of_family(address, self.family)?;
        let socket = self.stack.bind_udp(self.permit.clone(), self.options, address)?;
        let (receiving, sending) = Default::default();
        self.bound = Some(Arc::new(Bound { socket: Mutex::new(socket), receiving, sending }));
        Ok(())
    }

    fn bound(&self) -> Result<&Arc<Bound>, NetError> {
        self.bound.as_ref().ok_or(NetError::InvalidState)
    }

    /// As [`bound`](Self::bound), at any port if it is not bound yet.
    fn bound_somewhere(&mut self) -> Result<&Arc<Bound>, NetError> {
        if self.bound.is_none() {
            self.bind(SocketAddr::new(self.family.wildcard(), 0))?;
        }
        self.bound()
    }

    fn connect(&mut self, to: SocketAddr) -> Result<(), NetError> {
        destination(to, self.family)?;
        self.bound_somewhere()?.lock().connect(Some(to))
    }

    fn disconnect(&mut self) -> Result<(), NetError> {
        let mut socket = self.bound()?.lock();
        if socket.remote().is_none() {
            return Err(NetError::InvalidState);
        }
        socket.connect(None)
    }

    /// What is to send a datagram, if it can be sent at all.
    fn sender(&mut self, length: usize, to: Option<SocketAddr>) -> Result<Arc<Bound>, NetError> {
        if length > LONGEST_DATAGRAM {
            return Err(NetError::DatagramTooLarge);
        }
        match to {
            Some(to) => destination(to, self.family)?,
            None if self.bound.is_none() => return Err(NetError::InvalidArgument),
            None => {}
        }
        self.bound_somewhere().cloned()
    }

    fn remote(&self) -> Result<SocketAddr, NetError> {
        self.bound()?.lock().remote().ok_or(NetError::InvalidState)
    }

    /// Does something with its options and the system's socket, where there is
    /// one.
    fn with<T>(&self, act: impl FnOnce(&Options, Option<BorrowedFd<'_>>) -> T) -> T {
        match &self.bound {
            Some(bound) => act(&self.options, bound.lock().socket()),
            None => act(&self.options, None),
        }
    }

    fn set(&mut self, setting: Setting) -> Result<(), NetError> {
        let family = self.family;
        self.options = self.with(|options, socket| {
            let mut changed = *options;
            changed.set(setting, family, socket).map(|()| changed)
        })?;
        Ok(())
    }
}

type Socket = Resource<UdpSocket>;

impl<T: Send> types::HostUdpSocketWithStore<T> for Sockets {
    async fn send(
        store: &Accessor<T, Self>,
        socket: Socket,
        data: Vec<u8>,
        to: Option<IpSocketAddress>,
    ) -> SocketResult<()> {
        let to = to.map(SocketAddr::from);
        let (stack, bound) = store.with(|mut store| {
            let mut view = store.get();
            let bound = view.get_mut(&socket)?.sender(data.len(), to)?;
            SocketResult::Ok((view.stack.clone(), bound))
        })?;
        Ok(bound.send(&stack, &data, to).await?)
    }

    async fn receive(
        store: &Accessor<T, Self>,
        socket: Socket,
    ) -> SocketResult<(Vec<u8>, IpSocketAddress)> {
        let bound = store
            .with(|mut store| SocketResult::Ok(Arc::clone(store.get().get(&socket)?.bound()?)))?;
        let (data, from) = bound.receive().await?;
        Ok((data, from.into()))
    }
}

impl types::HostUdpSocket for SocketsView<'_> {
    fn create(&mut self, family: IpAddressFamily) -> SocketResult<Socket> {
        let socket = UdpSocket::new(self.stack, family.into())?;
        self.table.push(socket).map_err(no_handle)
    }

    fn bind(&mut self, socket: Socket, address: IpSocketAddress) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.bind(address.into())?)
    }

    fn connect(&mut self, socket: Socket, to: IpSocketAddress) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.connect(to.into())?)
    }

    fn disconnect(&mut self, socket: Socket) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.disconnect()?)
    }

    fn get_local_address(&mut self, socket: Socket) -> SocketResult<IpSocketAddress> {
        let address = self.get(&socket)?.bound()?.lock().address();
        Ok(address.into())
    }

    fn get_remote_address(&mut self, socket: Socket) -> SocketResult<IpSocketAddress> {
        Ok(self.get(&socket)?.remote()?.into())
    }

    fn get_address_family(&mut self, socket: Socket) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family.into())
    }

    fn get_unicast_hop_limit(&mut self, socket: Socket) -> SocketResult<u8> {
        Ok(self.get(&socket)?.options.hop_limit())
    }

    fn set_unicast_hop_limit(&mut self, socket: Socket, limit: u8) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.set(Setting::HopLimit(limit))?)
    }

    fn get_receive_buffer_size(&mut self, socket: Socket) -> SocketResult<u64> {
        Ok(self.get(&socket)?.with(Options::receive_buffer))
    }

    fn set_receive_buffer_size(&mut self, socket: Socket, bytes: u64) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.set(Setting::ReceiveBuffer(bytes))?)
    }

    fn get_send_buffer_size(&mut self, socket: Socket) -> SocketResult<u64> {
        Ok(self.get(&socket)?.with(Options::send_buffer))
    }

    fn set_send_buffer_size(&mut self, socket: Socket, bytes: u64) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.set(Setting::SendBuffer(bytes))?)
    }

    fn drop(&mut self, socket: Socket) -> wasmtime::Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}
