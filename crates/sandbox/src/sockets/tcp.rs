//! `wasi:sockets/tcp`: the order in which a socket's calls may come.
//!
//! ```text
//! unbound ──start-bind──▶ bind-in-progress ──finish-bind──▶ bound
//!    │                                                        ├──start-listen──▶ listen-in-progress
//!    └──────────────────start-connect──────────────────┐      │                        │finish-listen
//!                                                      ▼      ▼                        ▼
//!                         closed ◀── connect-in-progress ◀────┘                    listening
//!                                             │finish-connect                          │accept
//!                                             └──────────────▶ connected ◀─────────────┘
//! ```
//!
//! Source: WASI 0.2.12, `TcpSocketOperationalSemantics.md`.

use std::{
    future::{Future, poll_fn},
    net::{Shutdown, SocketAddr},
    os::fd::BorrowedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use wasmtime::component::Resource;
use wasmtime_wasi::{
    async_trait,
    p2::{
        DynInputStream, DynOutputStream, DynPollable, Pollable,
        bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network},
        subscribe,
    },
};

use super::{
    BACKLOG, SocketResult, SocketsView, bindings, bindings::tcp::ShutdownType, destination,
    nanoseconds, of_family, streams::Shared, unicast,
};
use crate::net::{
    BoundTcp, Connection, Family, Listener, NetError, Options, Permit, Setting, Stack,
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
    BindInProgress(BoundTcp),
    Bound(BoundTcp),
    ListenInProgress(Listener),
    Listening(Listener),
    /// With the address it was bound to.
    ConnectInProgress(Attempt, Option<SocketAddr>),
    Connected(Arc<Shared>),
    Closed,
}

enum Attempt {
    Going(Connecting),
    Over(Result<Connection, NetError>),
}

impl Attempt {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Self::Going(connecting) = self {
            match connecting.as_mut().poll(context) {
                Poll::Ready(result) => *self = Self::Over(result),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
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

    /// A started call must be finished before the next begins.
    fn idle(&self) -> Result<(), ErrorCode> {
        match self.state {
            State::BindInProgress(_)
            | State::ListenInProgress(_)
            | State::ConnectInProgress(..) => Err(ErrorCode::ConcurrencyConflict),
            State::Unbound
            | State::Bound(_)
            | State::Listening(_)
            | State::Connected(_)
            | State::Closed => Ok(()),
        }
    }

    fn take(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Closed)
    }

    fn start_bind(&mut self, address: SocketAddr) -> Result<(), ErrorCode> {
        self.idle()?;
        if !matches!(self.state, State::Unbound) {
            return Err(ErrorCode::InvalidState);
        }
        of_family(address, self.family)?;
        unicast(address)?;
        self.state = State::BindInProgress(self.stack.bind_tcp(address)?);
        Ok(())
    }

    fn start_connect(&mut self, to: SocketAddr) -> Result<(), ErrorCode> {
        self.idle()?;
        if !matches!(self.state, State::Unbound | State::Bound(_)) {
            return Err(ErrorCode::InvalidState);
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
        let mut attempt = Attempt::Going(connecting);
        // It begins now, not when the guest first asks how far it is.
        let _ = attempt.poll(&mut noop());
        self.state = State::ConnectInProgress(attempt, from);
        Ok(())
    }

    fn finish_connect(&mut self) -> Result<Arc<Shared>, ErrorCode> {
        let State::ConnectInProgress(attempt, _) = &mut self.state else {
            return Err(ErrorCode::NotInProgress);
        };
        if attempt.poll(&mut noop()).is_pending() {
            return Err(ErrorCode::WouldBlock);
        }
        let State::ConnectInProgress(Attempt::Over(result), _) = self.take() else {
            return Err(ErrorCode::Unknown);
        };
        let shared = Shared::new(result?, self.stack.clone());
        self.state = State::Connected(Arc::clone(&shared));
        Ok(shared)
    }

    fn start_listen(&mut self) -> Result<(), ErrorCode> {
        self.idle()?;
        if !matches!(self.state, State::Bound(_)) {
            return Err(ErrorCode::InvalidState);
        }
        if let State::Bound(bound) = self.take() {
            let listener = bound.listen(self.permit.clone(), self.options, self.backlog)?;
            self.state = State::ListenInProgress(listener);
        }
        Ok(())
    }

    /// Whether there is something to accept. It is kept until it is.
    fn has_arrived(&mut self) -> Result<(), ErrorCode> {
        let State::Listening(listener) = &mut self.state else {
            return Err(ErrorCode::InvalidState);
        };
        match listener.poll_ready(&mut noop()) {
            Poll::Ready(()) => Ok(()),
            Poll::Pending => Err(ErrorCode::WouldBlock),
        }
    }

    fn accept(&mut self) -> Result<(Self, Arc<Shared>), ErrorCode> {
        let State::Listening(listener) = &mut self.state else {
            return Err(ErrorCode::InvalidState);
        };
        let Poll::Ready(accepted) = listener.poll_accept(&mut noop()) else {
            return Err(ErrorCode::WouldBlock);
        };
        let connection = accepted?;
        if let Some(socket) = connection.socket() {
            // The kernel has them inherited, but for a listener of the agent.
            let _ = self.options.apply(socket, self.family);
        }
        let permit = connection.permit();
        let shared = Shared::new(connection, self.stack.clone());
        let socket = Self {
            stack: self.stack.clone(),
            permit,
            family: self.family,
            options: self.options,
            backlog: BACKLOG,
            state: State::Connected(Arc::clone(&shared)),
        };
        Ok((socket, shared))
    }

    fn local(&self) -> Result<SocketAddr, ErrorCode> {
        match &self.state {
            State::Bound(bound) => Ok(bound.address()),
            State::ListenInProgress(listener) | State::Listening(listener) => {
                Ok(listener.address())
            }
            State::ConnectInProgress(_, Some(from)) => Ok(*from),
            State::Connected(shared) => Ok(shared.connection.local().map_err(NetError::from)?),
            State::Unbound
            | State::BindInProgress(_)
            | State::ConnectInProgress(_, None)
            | State::Closed => Err(ErrorCode::InvalidState),
        }
    }

    fn remote(&self) -> Result<SocketAddr, ErrorCode> {
        match &self.state {
            State::Connected(shared) => Ok(shared.connection.remote().map_err(NetError::from)?),
            _ => Err(ErrorCode::InvalidState),
        }
    }

    /// Its options and the system's socket, where there is one.
    fn options(&self) -> Result<(&Options, Option<BorrowedFd<'_>>), ErrorCode> {
        match &self.state {
            State::Connected(shared) => Ok((&self.options, shared.connection.socket())),
            State::Listening(listener) | State::ListenInProgress(listener) => {
                Ok((&self.options, listener.socket()))
            }
            State::Unbound | State::BindInProgress(_) | State::Bound(_) => {
                Ok((&self.options, None))
            }
            State::ConnectInProgress(..) | State::Closed => Err(ErrorCode::InvalidState),
        }
    }

    fn set(&mut self, setting: Setting) -> Result<(), ErrorCode> {
        let (options, socket) = self.options()?;
        let mut changed = *options;
        changed.set(setting, self.family, socket)?;
        self.options = changed;
        Ok(())
    }
}

#[async_trait]
impl Pollable for TcpSocket {
    async fn ready(&mut self) {
        match &mut self.state {
            State::ConnectInProgress(attempt, _) => poll_fn(|context| attempt.poll(context)).await,
            State::Listening(listener) => poll_fn(|context| listener.poll_ready(context)).await,
            // These end at once.
            State::Unbound
            | State::BindInProgress(_)
            | State::Bound(_)
            | State::ListenInProgress(_)
            | State::Connected(_)
            | State::Closed => {}
        }
    }
}

type Socket = Resource<TcpSocket>;
type Streams = (Resource<DynInputStream>, Resource<DynOutputStream>);

impl SocketsView<'_> {
    fn tcp(&self, socket: &Socket) -> SocketResult<&TcpSocket> {
        Ok(self.table.get(socket)?)
    }

    fn tcp_mut(&mut self, socket: &Socket) -> SocketResult<&mut TcpSocket> {
        Ok(self.table.get_mut(socket)?)
    }

    fn push_streams(&mut self, socket: &Socket, shared: &Arc<Shared>) -> SocketResult<Streams> {
        let (input, output) = shared.streams();
        let input: DynInputStream = Box::new(input);
        let output: DynOutputStream = Box::new(output);
        Ok((self.table.push_child(input, socket)?, self.table.push_child(output, socket)?))
    }
}

impl bindings::tcp_create_socket::Host for SocketsView<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Socket> {
        if !self.has_room() {
            return Err(ErrorCode::NewSocketLimit.into());
        }
        let socket = TcpSocket::new(self.stack, family.into())?;
        Ok(self.table.push(socket)?)
    }
}

impl bindings::tcp::Host for SocketsView<'_> {}

impl bindings::tcp::HostTcpSocket for SocketsView<'_> {
    fn start_bind(
        &mut self,
        socket: Socket,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        Ok(self.tcp_mut(&socket)?.start_bind(address.into())?)
    }

    fn finish_bind(&mut self, socket: Socket) -> SocketResult<()> {
        let socket = self.tcp_mut(&socket)?;
        match socket.take() {
            State::BindInProgress(bound) => socket.state = State::Bound(bound),
            other => {
                socket.state = other;
                return Err(ErrorCode::NotInProgress.into());
            }
        }
        Ok(())
    }

    fn start_connect(
        &mut self,
        socket: Socket,
        network: Resource<Network>,
        to: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        Ok(self.tcp_mut(&socket)?.start_connect(to.into())?)
    }

    fn finish_connect(&mut self, socket: Socket) -> SocketResult<Streams> {
        let shared = self.tcp_mut(&socket)?.finish_connect()?;
        self.push_streams(&socket, &shared)
    }

    fn start_listen(&mut self, socket: Socket) -> SocketResult<()> {
        Ok(self.tcp_mut(&socket)?.start_listen()?)
    }

    fn finish_listen(&mut self, socket: Socket) -> SocketResult<()> {
        let socket = self.tcp_mut(&socket)?;
        match socket.take() {
            State::ListenInProgress(listener) => socket.state = State::Listening(listener),
            other => {
                socket.state = other;
                return Err(ErrorCode::NotInProgress.into());
            }
        }
        Ok(())
    }

    fn accept(
        &mut self,
        socket: Socket,
    ) -> SocketResult<(Socket, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        self.tcp_mut(&socket)?.has_arrived()?;
        if !self.has_room() {
            return Err(ErrorCode::NewSocketLimit.into());
        }
        let (accepted, shared) = self.tcp_mut(&socket)?.accept()?;
        let accepted = self.table.push(accepted)?;
        let (input, output) = self.push_streams(&accepted, &shared)?;
        Ok((accepted, input, output))
    }

    fn local_address(&mut self, socket: Socket) -> SocketResult<IpSocketAddress> {
        Ok(self.tcp(&socket)?.local()?.into())
    }

    fn remote_address(&mut self, socket: Socket) -> SocketResult<IpSocketAddress> {
        Ok(self.tcp(&socket)?.remote()?.into())
    }

    fn is_listening(&mut self, socket: Socket) -> wasmtime::Result<bool> {
        Ok(matches!(self.table.get(&socket)?.state, State::Listening(_)))
    }

    fn address_family(&mut self, socket: Socket) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family.into())
    }

    fn set_listen_backlog_size(&mut self, socket: Socket, size: u64) -> SocketResult<()> {
        let socket = self.tcp_mut(&socket)?;
        if size == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        match socket.state {
            State::ConnectInProgress(..) | State::Connected(_) | State::Closed => {
                return Err(ErrorCode::InvalidState.into());
            }
            State::Unbound
            | State::BindInProgress(_)
            | State::Bound(_)
            | State::ListenInProgress(_)
            // A hint that comes too late.
            | State::Listening(_) => {}
        }
        socket.backlog = u32::try_from(size).unwrap_or(u32::MAX);
        Ok(())
    }

    fn keep_alive_enabled(&mut self, socket: Socket) -> SocketResult<bool> {
        Ok(self.tcp(&socket)?.options()?.0.keep_alive())
    }

    fn set_keep_alive_enabled(&mut self, socket: Socket, on: bool) -> SocketResult<()> {
        Ok(self.tcp_mut(&socket)?.set(Setting::KeepAlive(on))?)
    }

    fn keep_alive_idle_time(&mut self, socket: Socket) -> SocketResult<u64> {
        Ok(nanoseconds(self.tcp(&socket)?.options()?.0.idle()))
    }

    fn set_keep_alive_idle_time(&mut self, socket: Socket, nanos: u64) -> SocketResult<()> {
        Ok(self.tcp_mut(&socket)?.set(Setting::Idle(Duration::from_nanos(nanos)))?)
    }

    fn keep_alive_interval(&mut self, socket: Socket) -> SocketResult<u64> {
        Ok(nanoseconds(self.tcp(&socket)?.options()?.0.interval()))
    }

    fn set_keep_alive_interval(&mut self, socket: Socket, nanos: u64) -> SocketResult<()> {
        Ok(self.tcp_mut(&socket)?.set(Setting::Interval(Duration::from_nanos(nanos)))?)
    }

    fn keep_alive_count(&mut self, socket: Socket) -> SocketResult<u32> {
        Ok(self.tcp(&socket)?.options()?.0.count())
    }

    fn set_keep_alive_count(&mut self, socket: Socket, count: u32) -> SocketResult<()> {
        Ok(self.tcp_mut(&socket)?.set(Setting::Count(count))?)
    }

    fn hop_limit(&mut self, socket: Socket) -> SocketResult<u8> {
        Ok(self.tcp(&socket)?.options()?.0.hop_limit())
    }

    fn set_hop_limit(&mut self, socket: Socket, limit: u8) -> SocketResult<()> {
        Ok(self.tcp_mut(&socket)?.set(Setting::HopLimit(limit))?)
    }

    fn receive_buffer_size(&mut self, socket: Socket) -> SocketResult<u64> {
        let (options, socket) = self.tcp(&socket)?.options()?;
        Ok(options.receive_buffer(socket))
    }

    fn set_receive_buffer_size(&mut self, socket: Socket, bytes: u64) -> SocketResult<()> {
        Ok(self.tcp_mut(&socket)?.set(Setting::ReceiveBuffer(bytes))?)
    }

    fn send_buffer_size(&mut self, socket: Socket) -> SocketResult<u64> {
        let (options, socket) = self.tcp(&socket)?.options()?;
        Ok(options.send_buffer(socket))
    }

    fn set_send_buffer_size(&mut self, socket: Socket, bytes: u64) -> SocketResult<()> {
        Ok(self.tcp_mut(&socket)?.set(Setting::SendBuffer(bytes))?)
    }

    fn subscribe(&mut self, socket: Socket) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, socket)
    }

    fn shutdown(&mut self, socket: Socket, what: ShutdownType) -> SocketResult<()> {
        let State::Connected(shared) = &self.tcp(&socket)?.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        shared.shutdown(match what {
            ShutdownType::Receive => Shutdown::Read,
            ShutdownType::Send => Shutdown::Write,
            ShutdownType::Both => Shutdown::Both,
        });
        Ok(())
    }

    fn drop(&mut self, socket: Socket) -> wasmtime::Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bindings::{tcp::HostTcpSocket as _, tcp_create_socket::Host as _};
    use krustlet_protocol::{Limits, PodNetwork};
    use rustix::net::sockopt;
    use wasmtime::component::ResourceTable;

    use super::*;
    use crate::state::{HANDLES_PER_SOCKET, Usage};

    type View<'a> = SocketsView<'a>;

    /// An option that is a number: how it is set, how it is read, and a value that
    /// is taken as it is.
    type Number = (
        fn(&mut View<'_>, Socket, u64) -> SocketResult<()>,
        fn(&mut View<'_>, Socket) -> SocketResult<u64>,
        u64,
    );

    const NUMBERS: [Number; 6] = [
        (
            |view, socket, nanos| view.set_keep_alive_idle_time(socket, nanos),
            |view, socket| view.keep_alive_idle_time(socket),
            77_000_000_000,
        ),
        (
            |view, socket, nanos| view.set_keep_alive_interval(socket, nanos),
            |view, socket| view.keep_alive_interval(socket),
            7_000_000_000,
        ),
        (
            |view, socket, count| view.set_keep_alive_count(socket, count.try_into().unwrap()),
            |view, socket| Ok(view.keep_alive_count(socket)?.into()),
            5,
        ),
        (
            |view, socket, limit| view.set_hop_limit(socket, limit.try_into().unwrap()),
            |view, socket| Ok(view.hop_limit(socket)?.into()),
            9,
        ),
        (
            |view, socket, bytes| view.set_receive_buffer_size(socket, bytes),
            |view, socket| view.receive_buffer_size(socket),
            20_000,
        ),
        (
            |view, socket, bytes| view.set_send_buffer_size(socket, bytes),
            |view, socket| view.send_buffer_size(socket),
            30_000,
        ),
    ];

    fn stack() -> Stack {
        let stack = Stack::default();
        // Really there is no pod with this address; it is one that any machine has.
        let addresses = vec![Family::V4.localhost()];
        stack.set(PodNetwork { addresses, ..PodNetwork::default() }, None);
        stack
    }

    /// What a guest is told instead.
    fn refused<T: std::fmt::Debug>(result: SocketResult<T>) -> ErrorCode {
        result.unwrap_err().downcast().unwrap()
    }

    /// Sets every option, which keeps each value and none that is 0.
    fn takes_all(view: &mut View<'_>, socket: &Socket) {
        let it = || Resource::new_borrow(socket.rep());
        for (set, get, value) in NUMBERS {
            let before = get(view, it()).unwrap();
            assert_eq!(refused(set(view, it(), 0)), ErrorCode::InvalidArgument, "{value}");
            assert_eq!(get(view, it()).unwrap(), before);
            set(view, it(), value).unwrap();
            assert_eq!(get(view, it()).unwrap(), value);
        }
        for on in [false, true] {
            view.set_keep_alive_enabled(it(), on).unwrap();
            assert_eq!(view.keep_alive_enabled(it()).unwrap(), on);
        }
        let backlog = view.set_listen_backlog_size(it(), 0);
        assert_eq!(refused(backlog), ErrorCode::InvalidArgument);
        view.set_listen_backlog_size(it(), 7).unwrap();
    }

    fn has_all(view: &mut View<'_>, socket: &Socket) {
        let it = || Resource::new_borrow(socket.rep());
        for (_, get, value) in NUMBERS {
            assert_eq!(get(view, it()).unwrap(), value);
        }
        assert!(view.keep_alive_enabled(it()).unwrap());
    }

    /// Binds to any port of the wildcard.
    fn bind(view: &mut View<'_>, socket: &Socket) {
        let address = SocketAddr::new(Family::V4.wildcard(), 0);
        view.tcp_mut(socket).unwrap().start_bind(address).unwrap();
        view.finish_bind(Resource::new_borrow(socket.rep())).unwrap();
    }

    fn listen(view: &mut View<'_>, socket: &Socket) {
        view.start_listen(Resource::new_borrow(socket.rep())).unwrap();
        view.finish_listen(Resource::new_borrow(socket.rep())).unwrap();
    }

    /// The next connection of a listener, from a client that stays.
    async fn accepted(view: &mut View<'_>, socket: &Socket) -> (Socket, std::net::TcpStream) {
        let it = || Resource::new_borrow(socket.rep());
        let port = SocketAddr::from(view.local_address(it()).unwrap()).port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        view.tcp_mut(socket).unwrap().ready().await;
        (view.accept(it()).unwrap().0, client)
    }

    /// That the system's socket has them.
    fn are_real(view: &View<'_>, socket: &Socket) {
        let (_, real) = view.tcp(socket).unwrap().options().unwrap();
        let real = real.unwrap();
        assert!(sockopt::socket_keepalive(real).unwrap());
        assert_eq!(sockopt::tcp_keepidle(real).unwrap(), Duration::from_secs(77));
        assert_eq!(sockopt::tcp_keepintvl(real).unwrap(), Duration::from_secs(7));
        assert_eq!(sockopt::tcp_keepcnt(real).unwrap(), 5);
        assert_eq!(sockopt::ip_ttl(real).unwrap(), 9);
        // The system tells twice what it was told.
        assert_eq!(sockopt::socket_recv_buffer_size(real).unwrap(), 40_000);
        assert_eq!(sockopt::socket_send_buffer_size(real).unwrap(), 60_000);
    }

    #[tokio::test]
    async fn options_are_kept_whenever_they_are_set() {
        let (stack, mut table) = (stack(), ResourceTable::new());
        let usage = Arc::new(Usage::new(&Limits::default()));
        let view = &mut SocketsView { stack: &stack, table: &mut table, usage: &usage };
        // Unbound, bound, or when it listens already.
        for set_when in 0..3 {
            let socket = view.create_tcp_socket(IpAddressFamily::Ipv4).unwrap();
            for state in 0..3 {
                match state {
                    0 => {}
                    1 => bind(view, &socket),
                    _ => listen(view, &socket),
                }
                if state == set_when {
                    takes_all(view, &socket);
                }
            }
            has_all(view, &socket);
            are_real(view, &socket);
            // They are its connections' too.
            let (connection, _client) = accepted(view, &socket).await;
            has_all(view, &connection);
            are_real(view, &connection);
        }
    }

    #[tokio::test]
    async fn a_guest_without_handles_is_told_so_and_gets_the_connection_later() {
        let (stack, mut table) = (stack(), ResourceTable::new());
        let usage = Arc::new(Usage::new(&Limits::default()));
        let view = &mut SocketsView { stack: &stack, table: &mut table, usage: &usage };
        let listener = view.create_tcp_socket(IpAddressFamily::Ipv4).unwrap();
        bind(view, &listener);
        listen(view, &listener);
        let it = || Resource::new_borrow(listener.rep());
        // There is room for it and for one connection with all its handles.
        view.table.set_max_capacity(1 + HANDLES_PER_SOCKET);
        let other = view.table.push(()).unwrap();
        let nobody = view.accept(it()).map(drop);
        assert_eq!(refused(nobody), ErrorCode::WouldBlock, "no connection is there");
        let port = SocketAddr::from(view.local_address(it()).unwrap()).port();
        let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        view.tcp_mut(&listener).unwrap().ready().await;
        for _ in 0..2 {
            let full = view.accept(it()).map(drop);
            assert_eq!(refused(full), ErrorCode::NewSocketLimit);
        }
        for new in [
            view.create_tcp_socket(IpAddressFamily::Ipv4).map(drop),
            bindings::udp_create_socket::Host::create_udp_socket(view, IpAddressFamily::Ipv4)
                .map(drop),
        ] {
            assert_eq!(refused(new), ErrorCode::NewSocketLimit);
        }
        view.table.delete(other).unwrap();
        let (connection, input, output) = view.accept(it()).unwrap();
        // What it waits by has its place.
        let waits = [
            subscribe(view.table, connection).map(drop),
            subscribe(view.table, input).map(drop),
            subscribe(view.table, output).map(drop),
        ];
        assert!(waits.iter().all(Result::is_ok), "{waits:?}");
    }

    #[tokio::test]
    async fn a_connection_takes_options_but_has_no_queue_and_a_failed_one_takes_none() {
        let (stack, mut table) = (stack(), ResourceTable::new());
        let usage = Arc::new(Usage::new(&Limits::default()));
        let view = &mut SocketsView { stack: &stack, table: &mut table, usage: &usage };
        let listener = view.create_tcp_socket(IpAddressFamily::Ipv4).unwrap();
        bind(view, &listener);
        listen(view, &listener);
        let (connection, _client) = accepted(view, &listener).await;
        let it = || Resource::new_borrow(connection.rep());
        for (set, get, value) in NUMBERS {
            set(view, it(), value).unwrap();
            assert_eq!(get(view, it()).unwrap(), value);
        }
        view.set_keep_alive_enabled(it(), true).unwrap();
        are_real(view, &connection);
        let backlog = view.set_listen_backlog_size(it(), 1);
        assert_eq!(refused(backlog), ErrorCode::InvalidState);

        let failed = view.create_tcp_socket(IpAddressFamily::Ipv4).unwrap();
        let it = || Resource::new_borrow(failed.rep());
        // Within the pod, where nobody listens.
        let nobody = "127.0.0.1:1".parse().unwrap();
        view.tcp_mut(&failed).unwrap().start_connect(nobody).unwrap();
        view.tcp_mut(&failed).unwrap().ready().await;
        let refusal = view.finish_connect(it()).map(drop);
        assert_eq!(refused(refusal), ErrorCode::ConnectionRefused);
        for (set, get, value) in NUMBERS {
            assert_eq!(refused(set(view, it(), value)), ErrorCode::InvalidState);
            assert_eq!(refused(get(view, it())), ErrorCode::InvalidState);
        }
        assert_eq!(refused(view.keep_alive_enabled(it())), ErrorCode::InvalidState);
    }
}
