//! TCP sockets: the order in which their calls may come.
//!
//! ```text
//! unbound ──bind──▶ bound ──listen──▶ listening ──stream──▶ sockets that are connected
//!    └────┬───────────┘  (listen and connect bind by themselves)
//!      connect
//!         ▼
//!     connecting ──▶ connected ──send, receive: once each──▶ streams
//!         └──▶ closed
//! ```
//!
//! Source: WASI 0.3.0, `wasi:sockets/types`, `tcp-socket`.

use std::{
    future::Future,
    iter,
    net::SocketAddr,
    os::fd::BorrowedFd,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::oneshot;
use wasmtime::component::{Access, Accessor, FutureReader, Resource, StreamReader};

use super::{
    ErrorCode, IpAddressFamily, IpSocketAddress, SocketError, SocketResult, Sockets, SocketsView,
    no_handle,
    streams::{Accepting, Receiving, Sending},
    types,
};
use crate::{
    net::{BoundTcp, Connection, Family, Listener, NetError, Options, Permit, Setting, Stack},
    sockets::{BACKLOG, destination, nanoseconds, of_family, unicast},
};

type Connecting = Pin<Box<dyn Future<Output = Result<Connection, NetError>> + Send>>;

/// See the module.
#[expect(unreachable_pub, reason = "the bindings re-export it")]
pub struct TcpSocket {
    stack: Stack,
    permit: Permit,
    family: Family,
    options: Options,
    backlog: u32,
    state: State,
}

enum State {
    Unbound,
    Bound(BoundTcp),
    Listening(Arc<Listening>),
    /// With the address it was bound to.
    Connecting(Option<SocketAddr>),
    Connected(Connected),
    Closed,
}

/// A connection, as its socket and its two streams share it.
struct Connected {
    connection: Arc<Connection>,
    /// Each stream is there once.
    receives: bool,
    sends: bool,
}

impl Connected {
    fn new(connection: Connection) -> Self {
        Self { connection: Arc::new(connection), receives: false, sends: false }
    }
}

/// A listener, as its socket and its stream share it.
pub(super) struct Listening {
    listener: Mutex<Listener>,
    address: SocketAddr,
    stack: Stack,
    family: Family,
    /// What those have who connect.
    options: Mutex<Options>,
}

impl Listening {
    fn lock(&self) -> MutexGuard<'_, Listener> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn options(&self) -> MutexGuard<'_, Options> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        self.lock().poll_ready(context)
    }

    /// The next that connects.
    pub(super) fn poll_accept(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Result<TcpSocket, NetError>> {
        let accepted = self.lock().poll_accept(context);
        accepted.map_ok(|connection| {
            let options = *self.options();
            if let Some(socket) = connection.socket() {
                // The kernel has them inherited, but for a listener of the agent.
                let _ = options.apply(socket, self.family);
            }
            TcpSocket {
                stack: self.stack.clone(),
                permit: connection.permit(),
                family: self.family,
                options,
                backlog: BACKLOG,
                state: State::Connected(Connected::new(connection)),
            }
        })
    }
}

impl TcpSocket {
    fn new(stack: &Stack, family: Family) -> Result<Self, NetError> {
        Ok(Self {
            stack: stack.clone(),
            permit: stack.permit()?,
            family,
            options: Options::default(),
            backlog: BACKLOG,
            state: State::Unbound,
        })
    }

    fn take(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Closed)
    }

    fn bind(&mut self, address: SocketAddr) -> Result<(), NetError> {
        if !matches!(self.state, State::Unbound) {
            return Err(NetError::InvalidState);
        }
        of_family(address, self.family)?;
        unicast(address)?;
        self.state = State::Bound(self.stack.bind_tcp(address)?);
        Ok(())
    }

    fn listen(&mut self) -> Result<Arc<Listening>, NetError> {
        if matches!(self.state, State::Unbound) {
            self.bind(SocketAddr::new(self.family.wildcard(), 0))?;
        }
        if !matches!(self.state, State::Bound(_)) {
            return Err(NetError::InvalidState);
        }
        let State::Bound(bound) = self.take() else { return Err(NetError::InvalidState) };
        let listener = bound.listen(self.permit.clone(), self.options, self.backlog)?;
        let listening = Arc::new(Listening {
            address: listener.address(),
            listener: Mutex::new(listener),
            stack: self.stack.clone(),
            family: self.family,
            options: Mutex::new(self.options),
        });
        self.state = State::Listening(Arc::clone(&listening));
        Ok(listening)
    }

    fn start_connect(&mut self, to: SocketAddr) -> Result<Connecting, NetError> {
        if !matches!(self.state, State::Unbound | State::Bound(_)) {
            return Err(NetError::InvalidState);
        }
        destination(to, self.family)?;
        unicast(to)?;
        let (stack, permit, options) = (self.stack.clone(), self.permit.clone(), self.options);
        let (connecting, from): (Connecting, _) = match self.take() {
            State::Bound(bound) => {
                let from = bound.address();
                (Box::pin(bound.connect(permit, options, to)), Some(from))
            }
            _ => (Box::pin(async move { stack.connect_tcp(permit, options, to).await }), None),
        };
        self.state = State::Connecting(from);
        Ok(connecting)
    }

    fn finish_connect(&mut self, result: Result<Connection, NetError>) -> Result<(), NetError> {
        // After a failure it can only be dropped.
        self.state = State::Closed;
        self.state = State::Connected(Connected::new(result?));
        Ok(())
    }

    fn connected(&mut self) -> Result<&mut Connected, NetError> {
        match &mut self.state {
            State::Connected(connected) => Ok(connected),
            _ => Err(NetError::InvalidState),
        }
    }

    /// The connection, to be read from: the first time.
    fn receive(&mut self) -> Result<Arc<Connection>, NetError> {
        let connected = self.connected()?;
        if std::mem::replace(&mut connected.receives, true) {
            return Err(NetError::InvalidState);
        }
        Ok(Arc::clone(&connected.connection))
    }

    /// The connection, to be written to: the first time.
    fn send(&mut self) -> Result<Arc<Connection>, NetError> {
        let connected = self.connected()?;
        if std::mem::replace(&mut connected.sends, true) {
            return Err(NetError::InvalidState);
        }
        Ok(Arc::clone(&connected.connection))
    }

    fn local(&self) -> Result<SocketAddr, NetError> {
        match &self.state {
            State::Bound(bound) => Ok(bound.address()),
            State::Listening(listening) => Ok(listening.address),
            State::Connecting(Some(from)) => Ok(*from),
            State::Connected(connected) => Ok(connected.connection.local()?),
            State::Unbound | State::Connecting(None) | State::Closed => Err(NetError::InvalidState),
        }
    }

    fn remote(&self) -> Result<SocketAddr, NetError> {
        match &self.state {
            State::Connected(connected) => Ok(connected.connection.remote()?),
            _ => Err(NetError::InvalidState),
        }
    }

    /// Does something with its options and the system's socket, where there is
    /// one.
    fn with<T>(
        &self,
        act: impl FnOnce(&Options, Option<BorrowedFd<'_>>) -> T,
    ) -> Result<T, NetError> {
        match &self.state {
            State::Unbound | State::Bound(_) => Ok(act(&self.options, None)),
            State::Listening(listening) => {
                let listener = listening.lock();
                Ok(act(&self.options, listener.socket()))
            }
            State::Connected(connected) => Ok(act(&self.options, connected.connection.socket())),
            State::Connecting(_) | State::Closed => Err(NetError::InvalidState),
        }
    }

    fn set(&mut self, setting: Setting) -> Result<(), NetError> {
        let family = self.family;
        self.options = self.with(|options, socket| {
            let mut changed = *options;
            changed.set(setting, family, socket).map(|()| changed)
        })??;
        if let State::Listening(listening) = &self.state {
            *listening.options() = self.options;
        }
        Ok(())
    }

    fn set_backlog(&mut self, size: u64) -> Result<(), NetError> {
        if size == 0 {
            return Err(NetError::InvalidArgument);
        }
        match self.state {
            State::Connecting(_) | State::Connected(_) | State::Closed => {
                return Err(NetError::InvalidState);
            }
            // For one that listens it is a hint that comes too late.
            State::Unbound | State::Bound(_) | State::Listening(_) => {}
        }
        self.backlog = u32::try_from(size).unwrap_or(u32::MAX);
        Ok(())
    }
}

type Socket = Resource<TcpSocket>;
type Outcome = FutureReader<Result<(), ErrorCode>>;

/// A future that tells what is known already.
fn told<T: Send, D: wasmtime::component::HasData>(
    store: &mut Access<'_, T, D>,
    how: NetError,
) -> wasmtime::Result<Outcome> {
    FutureReader::new(store, async move { wasmtime::error::Ok(Err(ErrorCode::from(how))) })
}

impl<T: Send> types::HostTcpSocketWithStore<T> for Sockets {
    async fn connect(
        store: &Accessor<T, Self>,
        socket: Socket,
        to: IpSocketAddress,
    ) -> SocketResult<()> {
        let connecting = store.with(|mut store| {
            SocketResult::Ok(store.get().get_mut(&socket)?.start_connect(to.into())?)
        })?;
        let connected = connecting.await;
        store.with(|mut store| Ok(store.get().get_mut(&socket)?.finish_connect(connected)?))
    }

    fn listen(
        mut store: Access<'_, T, Self>,
        socket: Socket,
    ) -> SocketResult<StreamReader<Socket>> {
        let view = store.getter();
        let listening = store.get().get_mut(&socket)?.listen()?;
        StreamReader::new(&mut store, Accepting::new(listening, view)).map_err(SocketError::trap)
    }

    fn send(
        mut store: Access<'_, T, Self>,
        socket: Socket,
        mut data: StreamReader<u8>,
    ) -> wasmtime::Result<Outcome> {
        match store.get().table.get_mut(&socket)?.send() {
            Ok(connection) => {
                let (tell, told) = oneshot::channel();
                data.pipe(&mut store, Sending::new(connection, tell))?;
                FutureReader::new(&mut store, told)
            }
            Err(error) => {
                data.close(&mut store)?;
                told(&mut store, error)
            }
        }
    }

    fn receive(
        mut store: Access<'_, T, Self>,
        socket: Socket,
    ) -> wasmtime::Result<(StreamReader<u8>, Outcome)> {
        match store.get().table.get_mut(&socket)?.receive() {
            Ok(connection) => {
                let (tell, told) = oneshot::channel();
                let memory = Arc::clone(store.get().stack.memory());
                let receiving = Receiving::new(connection, memory, tell);
                let stream = StreamReader::new(&mut store, receiving)?;
                Ok((stream, FutureReader::new(&mut store, told)?))
            }
            Err(error) => {
                let stream = StreamReader::new(&mut store, iter::empty())?;
                Ok((stream, told(&mut store, error)?))
            }
        }
    }
}

impl types::HostTcpSocket for SocketsView<'_> {
    fn create(&mut self, family: IpAddressFamily) -> SocketResult<Socket> {
        let socket = TcpSocket::new(self.stack, family.into())?;
        self.table.push(socket).map_err(no_handle)
    }

    fn bind(&mut self, socket: Socket, address: IpSocketAddress) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.bind(address.into())?)
    }

    fn get_local_address(&mut self, socket: Socket) -> SocketResult<IpSocketAddress> {
        Ok(self.get(&socket)?.local()?.into())
    }

    fn get_remote_address(&mut self, socket: Socket) -> SocketResult<IpSocketAddress> {
        Ok(self.get(&socket)?.remote()?.into())
    }

    fn get_is_listening(&mut self, socket: Socket) -> wasmtime::Result<bool> {
        Ok(matches!(self.table.get(&socket)?.state, State::Listening(_)))
    }

    fn get_address_family(&mut self, socket: Socket) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family.into())
    }

    fn set_listen_backlog_size(&mut self, socket: Socket, size: u64) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.set_backlog(size)?)
    }

    fn get_keep_alive_enabled(&mut self, socket: Socket) -> SocketResult<bool> {
        Ok(self.get(&socket)?.with(|options, _| options.keep_alive())?)
    }

    fn set_keep_alive_enabled(&mut self, socket: Socket, on: bool) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.set(Setting::KeepAlive(on))?)
    }

    fn get_keep_alive_idle_time(&mut self, socket: Socket) -> SocketResult<u64> {
        Ok(self.get(&socket)?.with(|options, _| nanoseconds(options.idle()))?)
    }

    fn set_keep_alive_idle_time(&mut self, socket: Socket, nanos: u64) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.set(Setting::Idle(Duration::from_nanos(nanos)))?)
    }

    fn get_keep_alive_interval(&mut self, socket: Socket) -> SocketResult<u64> {
        Ok(self.get(&socket)?.with(|options, _| nanoseconds(options.interval()))?)
    }

    fn set_keep_alive_interval(&mut self, socket: Socket, nanos: u64) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.set(Setting::Interval(Duration::from_nanos(nanos)))?)
    }

    fn get_keep_alive_count(&mut self, socket: Socket) -> SocketResult<u32> {
        Ok(self.get(&socket)?.with(|options, _| options.count())?)
    }

    fn set_keep_alive_count(&mut self, socket: Socket, count: u32) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.set(Setting::Count(count))?)
    }

    fn get_hop_limit(&mut self, socket: Socket) -> SocketResult<u8> {
        Ok(self.get(&socket)?.with(|options, _| options.hop_limit())?)
    }

    fn set_hop_limit(&mut self, socket: Socket, limit: u8) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.set(Setting::HopLimit(limit))?)
    }

    fn get_receive_buffer_size(&mut self, socket: Socket) -> SocketResult<u64> {
        Ok(self.get(&socket)?.with(Options::receive_buffer)?)
    }

    fn set_receive_buffer_size(&mut self, socket: Socket, bytes: u64) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.set(Setting::ReceiveBuffer(bytes))?)
    }

    fn get_send_buffer_size(&mut self, socket: Socket) -> SocketResult<u64> {
        Ok(self.get(&socket)?.with(Options::send_buffer)?)
    }

    fn set_send_buffer_size(&mut self, socket: Socket, bytes: u64) -> SocketResult<()> {
        Ok(self.get_mut(&socket)?.set(Setting::SendBuffer(bytes))?)
    }

    fn drop(&mut self, socket: Socket) -> wasmtime::Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}
