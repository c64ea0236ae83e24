//! TCP: binding, connecting, listening.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use krustlet_model::services::Transport;
use krustlet_protocol::MAX_LISTENERS;
use rustix::net::sockopt;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{OwnedSemaphorePermit, mpsc},
};

use super::{
    Connection, NetError, Options, Permit, Stack,
    handed::{Listening, Which},
    listeners::Listed,
    permit::{Counters, Waiter},
    place::{self, Binding, Family},
    policy::{self, Asker, For},
    private::{Arrival, Reservation},
    refused::Rule,
    route::{Destination, Route},
};

/// How often another port is tried that is free both on the network and within
/// the pod.
const TRIES: usize = 16;

/// How long one waits for an answer who hears nothing: Linux's six repetitions
/// of the first packet (tcp(7), `tcp_syn_retries`).
const SILENCE: Duration = Duration::from_secs(127);

/// Endpoints of a Service that may refuse a connection before its client hears of
/// it. Some end at a time in a rollout, and are called until the sandbox hears of
/// that.
const REFUSING: usize = 3;

/// Refused connections that one call closes; then others have their turn.
const REFUSALS: usize = 16;

/// A socket bound to an address of the pod, as yet unconnected.
#[derive(Debug)]
pub(crate) struct BoundTcp {
    stack: Stack,
    /// As asked, with the port it got.
    address: SocketAddr,
    real: Option<TcpSocket>,
    private: Option<Reservation>,
}

/// A real socket, not bound yet.
fn socket(family: Family) -> Result<TcpSocket, NetError> {
    Ok(match family {
        Family::V4 => TcpSocket::new_v4()?,
        Family::V6 => {
            let socket = TcpSocket::new_v6()?;
            sockopt::set_ipv6_v6only(&socket, true)?;
            socket
        }
    })
}

/// Has the kernel choose the port only when it knows the other side, so that
/// one port serves many connections (ip(7), `IP_BIND_ADDRESS_NO_PORT`).
fn choose_port_late(socket: &TcpSocket) {
    /// Of the value, in bytes.
    const SIZE: libc::socklen_t = 4;
    let on: i32 = 1;
    // SAFETY: the pointer is to a value of the size given. A kernel that refuses
    // chooses a port at once, which is as good for a few connections.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            SIZE,
        );
    }
}

/// As [`socket`], to call others: on a machine without the family nobody is there.
fn caller(family: Family) -> Result<TcpSocket, NetError> {
    socket(family).map_err(|error| match error {
        NetError::NotSupported => NetError::RemoteUnreachable,
        error => error,
    })
}

fn bind_real(ip: IpAddr, port: u16) -> Result<TcpSocket, NetError> {
    bind_to(socket(Family::of(ip))?, ip, port)
}

fn bind_to(socket: TcpSocket, ip: IpAddr, port: u16) -> Result<TcpSocket, NetError> {
    // A port may be bound again while old connections of it fade away.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(ip, port))?;
    Ok(socket)
}

impl Stack {
    /// Binds to an address as a guest names it; port 0 is any.
    ///
    /// # Errors
    ///
    /// As [`place::binding`]; [`NetError::AddressInUse`].
    pub(crate) fn bind_tcp(&self, address: SocketAddr) -> Result<BoundTcp, NetError> {
        let network = self.network();
        let Binding { real, private } =
            place::binding(&network, address.ip()).inspect_err(|error| self.note(*error))?;
        let mut last = NetError::AddressInUse;
        for _ in 0..TRIES {
            // In host mode the agent binds what a container declares: what it has
            // bound for a port stands for the pod's own.
            let which = Which::for_address(&network, address.ip());
            let for_port = network.is_host && which.is_some_and(Which::is_anywhere);
            let handed = |ip| self.0.handed.has(SocketAddr::new(ip, address.port()), for_port);
            let bound = self.bind_both(real.filter(|ip| !handed(*ip)), private, address)?;
            match bound {
                Ok(bound) => return Ok(bound),
                // The port that the kernel chose is taken within the pod.
                Err(error) if address.port() == 0 => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The inner error is the private side's.
    fn bind_both(
        &self,
        real: Option<IpAddr>,
        private: Option<IpAddr>,
        address: SocketAddr,
    ) -> Result<Result<BoundTcp, NetError>, NetError> {
        let mut port = address.port();
        let real = real.map(|ip| bind_real(ip, port)).transpose()?;
        if let Some(real) = &real {
            port = real.local_addr()?.port();
        }
        let private = private.map(|ip| self.0.private.reserve(SocketAddr::new(ip, port)));
        let private = match private.transpose() {
            Ok(private) => private,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(private) = &private {
            port = private.at().port();
        }
        let address = SocketAddr::new(address.ip(), port);
        Ok(Ok(BoundTcp { stack: self.clone(), address, real, private }))
    }

    /// Connects from any port.
    ///
    /// # Errors
    ///
    /// As [`Stack::destination`]; what the network said.
    pub(crate) async fn connect_tcp(
        &self,
        permit: Permit,
        options: Options,
        to: SocketAddr,
    ) -> Result<Connection, NetError> {
        self.connect_tcp_for(Asker::GUEST, permit, options, to).await
    }

    async fn connect_tcp_for(
        &self,
        asker: Asker<'_>,
        permit: Permit,
        options: Options,
        to: SocketAddr,
    ) -> Result<Connection, NetError> {
        let mut refusing = Vec::new();
        loop {
            let route = match self.other_destination(asker, to, &refusing)? {
                Destination::Private(to) => {
                    let from = Family::of(to.ip()).localhost();
                    let port = self.0.private.reserve(SocketAddr::new(from, 0))?;
                    return self.connect_private(permit, port.at(), to, Some(port)).await;
                }
                Destination::Real(route) => route,
                Destination::Nobody { is_silent, .. } => return Err(no_answer(is_silent).await),
            };
            match self.connect_to(permit.clone(), options, route).await {
                Err(NetError::ConnectionRefused) if route.is_led() && refusing.len() < REFUSING => {
                    refusing.push(route.real);
                }
                connected => return connected,
            }
        }
    }

    /// Connects on the network, from any port.
    async fn connect_to(
        &self,
        permit: Permit,
        options: Options,
        route: Route,
    ) -> Result<Connection, NetError> {
        let family = Family::of(route.real.ip());
        let from = place::source(&self.network(), family).ok_or(NetError::RemoteUnreachable)?;
        let socket = caller(family)?;
        match from {
            place::Source::Own(from) => {
                choose_port_late(&socket);
                socket.bind(SocketAddr::new(from, 0))?;
            }
            place::Source::Machine => {}
        }
        self.connect_real(permit, options, socket, (route, None)).await
    }

    /// What a bound socket calls from. One at the wildcard of a pod that is at home on
    /// the loopback listens there, and calls from the machine's address: it is bound
    /// anew, to the same port.
    fn rebound(&self, real: Option<TcpSocket>, address: SocketAddr) -> Result<TcpSocket, NetError> {
        let (network, ip) = (self.network(), address.ip());
        let family = Family::of(ip);
        let is_machines = place::source(&network, family) == Some(place::Source::Machine);
        if !ip.is_unspecified() || network.shares_loopback || !is_machines {
            return real.ok_or(NetError::RemoteUnreachable);
        }
        drop(real);
        bind_to(caller(family)?, ip, address.port())
    }

    /// Connects for the agent to a port of the pod's loopback, its own or the one
    /// that it shares, as a kubelet's port-forward does: by IPv4, and by IPv6 where
    /// nobody listens there. No rule of the pod's is asked; it counts as one of its
    /// sockets.
    ///
    /// # Errors
    ///
    /// [`NetError::ConnectionRefused`]; as [`Stack::permit_or_room`]; what the
    /// system said.
    ///
    /// Source: containerd, `portForward` in `internal/cri/server/sandbox_portforward_linux.go`.
    pub(crate) async fn visit(&self, port: u16) -> Result<Connection, NetError> {
        let permit = self.permit_or_room().await?;
        match self.visit_by(Family::V4, permit.clone(), port).await {
            // What comes of the other family says nothing of this one.
            Err(first) => self.visit_by(Family::V6, permit, port).await.map_err(|_| first),
            connected => connected,
        }
    }

    async fn visit_by(
        &self,
        family: Family,
        permit: Permit,
        port: u16,
    ) -> Result<Connection, NetError> {
        let to = SocketAddr::new(family.localhost(), port);
        if self.network().shares_loopback {
            let route = Route { asked: to, real: to };
            return self.connect_to(permit, Options::default(), route).await;
        }
        let from = self.0.private.reserve(SocketAddr::new(family.localhost(), 0))?;
        self.connect_private(permit, from.at(), to, Some(from)).await
    }

    async fn connect_real(
        &self,
        permit: Permit,
        options: Options,
        socket: TcpSocket,
        (route, port): (Route, Option<Reservation>),
    ) -> Result<Connection, NetError> {
        options.apply(&socket, Family::of(route.real.ip()))?;
        let from = socket.local_addr();
        let failed = |error| match self.on_the_way(from, route.real, error) {
            // No port is left for this destination (connect(2)).
            NetError::AddressNotBindable => NetError::AddressInUse,
            error => error,
        };
        let connected = socket.connect(route.real).await.map_err(failed);
        Counters::add(&self.0.counters.opened, usize::from(connected.is_ok()));
        let connection = Connection::tcp(connected?, permit, port);
        Ok(if route.is_led() { connection.led_by(route.asked) } else { connection })
    }

    async fn connect_private(
        &self,
        permit: Permit,
        from: SocketAddr,
        to: SocketAddr,
        port: Option<Reservation>,
    ) -> Result<Connection, NetError> {
        let end = self.0.private.connect(from, to).await?;
        Ok(Connection::private(end, [from, to], permit, port))
    }
}

/// What becomes of a connection to a Service that leads to nobody.
async fn no_answer(is_silent: bool) -> NetError {
    if !is_silent {
        return NetError::ConnectionRefused;
    }
    tokio::time::sleep(SILENCE).await;
    NetError::Timeout
}

impl BoundTcp {
    /// The address, as it was asked for, with the port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connects from here.
    ///
    /// # Errors
    ///
    /// As [`Stack::connect_tcp`].
    pub(crate) async fn connect(
        self,
        permit: Permit,
        options: Options,
        to: SocketAddr,
    ) -> Result<Connection, NetError> {
        let Self { stack, address, real, private } = self;
        match stack.destination(Asker::GUEST, Transport::Tcp, to, None)? {
            Destination::Private(to) => {
                // A wildcard is the loopback there, as routes would have it.
                let ip = address.ip();
                let from = if ip.is_unspecified() { Family::of(ip).localhost() } else { ip };
                let from = SocketAddr::new(from, address.port());
                stack.connect_private(permit, from, to, private).await
            }
            Destination::Real(route) => {
                let socket = stack.rebound(real, address)?;
                stack.connect_real(permit, options, socket, (route, private)).await
            }
            Destination::Nobody { is_silent, .. } => Err(no_answer(is_silent).await),
        }
    }

    /// Listens here, with room for so many connections that wait.
    ///
    /// # Errors
    ///
    /// [`NetError::AddressInUse`]; what the system said.
    pub(crate) fn listen(
        self,
        permit: Permit,
        options: Options,
        backlog: u32,
    ) -> Result<Listener, NetError> {
        self.listen_by(Right::Guests(permit), options, backlog)
    }

    fn listen_by(self, right: Right, options: Options, backlog: u32) -> Result<Listener, NetError> {
        let Self { stack, address, real, private } = self;
        let backlog = backlog.clamp(1, MOST_BACKLOG);
        let mut sources = Vec::new();
        let network = stack.network();
        if let Some(which) = Which::for_address(&network, address.ip()) {
            let wanted = i32::try_from(backlog).unwrap_or(i32::MAX);
            let handed = stack.0.handed.listen(address.port(), which, wanted)?;
            sources.extend(stack.listed_handed(handed));
        }
        if let Some(real) = real {
            options.apply(&real, Family::of(address.ip()))?;
            sources.push(stack.listed(real.listen(backlog)?, address.port()));
        }
        if let Some(private) = private {
            let arrivals = private.listen(backlog as usize);
            sources.push(Source::Private(arrivals, private));
        }
        let is_within = sources.iter().all(|source| matches!(source, Source::Private(..)));
        if is_within && address.ip().is_unspecified() && matches!(right, Right::Guests(_)) {
            stack.is_heard_within_alone(address);
        }
        // What was handed over for it was there when it was bound, and another has
        // been quicker.
        if sources.is_empty() {
            return Err(NetError::AddressInUse);
        }
        Ok(Listener {
            stack,
            address,
            sources,
            turn: 0,
            arrived: None,
            has_made_room: false,
            waiter: Arc::default(),
            rights: vec![right],
        })
    }
}

/// Connections that may wait at one listener; Linux's `net.core.somaxconn`.
pub(crate) const MOST_BACKLOG: u32 = 4096;

/// Accepts what comes to one address of the pod, from wherever it comes.
#[derive(Debug)]
pub(crate) struct Listener {
    stack: Stack,
    address: SocketAddr,
    sources: Vec<Source>,
    /// Which source is asked first.
    turn: usize,
    /// Whether a connection was closed for the one that is waited for.
    has_made_room: bool,
    waiter: Arc<Waiter>,
    /// What was found ready and not taken yet.
    arrived: Option<Result<Connection, NetError>>,
    /// One for each address that it listens at.
    rights: Vec<Right>,
}

/// By what somebody may listen.
#[derive(Debug)]
enum Right {
    /// A guest does; it is one of the pod's sockets.
    Guests(#[expect(dead_code, reason = "held")] Permit),
    /// The sandbox does for a guest, before that has any.
    Ours(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit),
}

#[derive(Debug)]
enum Source {
    Real(#[expect(dead_code, reason = "held")] Listed, Arc<TcpListener>),
    Handed(Listening),
    Private(mpsc::Receiver<Arrival>, #[expect(dead_code, reason = "held")] Reservation),
}

impl Listener {
    /// The address, as it was asked for, with the port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The system's socket that options are to be set on.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.sources.iter().find_map(|source| match source {
            Source::Real(_, listener) => Some(listener.as_fd()),
            Source::Handed(_) | Source::Private(..) => None,
        })
    }

    /// Takes another's sources along, so that one listener has them all. It has the
    /// rights of both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.sources.extend(other.sources);
        self.rights.extend(other.rights);
        self
    }

    /// The next connection.
    ///
    /// # Errors
    ///
    /// [`NetError::ConnectionAborted`] for one that was given up before; what
    /// the system said. The next may still come.
    pub(crate) async fn accept(&mut self) -> Result<Connection, NetError> {
        std::future::poll_fn(|context| self.poll_accept(context)).await
    }

    /// As [`accept`](Self::accept).
    pub(crate) fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Connection, NetError>> {
        ready!(self.poll_ready(context));
        match self.arrived.take() {
            Some(arrived) => Poll::Ready(arrived),
            None => Poll::Pending,
        }
    }

    /// Ready when [`poll_accept`](Self::poll_accept) would be.
    pub(crate) fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.arrived.is_none() {
            let next = ready!(self.poll_next(context));
            self.arrived = Some(next);
        }
        Poll::Ready(())
    }

    /// Whether it waits for a socket, and no connection was closed for it: whoever asks
    /// again may find one that is idle by then, of which nobody is told.
    pub(crate) fn lacks_room(&self) -> bool {
        !self.has_made_room && self.waiter.is_waiting()
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Connection, NetError>> {
        // First the permit: a connection that may not be had is left waiting in
        // the system's queue.
        let network = self.stack.network();
        let most = || self.stack.network().limits.sockets;
        if !self.waiter.is_waiting() {
            // Woken: what was closed for it somebody else may have taken.
            self.has_made_room = false;
        }
        let Poll::Ready(permit) =
            Permit::poll_new(&self.stack.0.counters, most, &self.waiter, context)
        else {
            // Once for each time that it is woken: whoever looks often closes no more
            // for it.
            if !self.has_made_room {
                self.has_made_room = self.stack.make_room();
            }
            return Poll::Pending;
        };
        self.has_made_room = false;
        let mut refusals = 0;
        let count = self.sources.len();
        let mut offset = 0;
        while offset < count {
            let index = (self.turn + offset) % count;
            let (found, port) = match &mut self.sources[index] {
                Source::Real(_, listener) => (listener.poll_accept(context), self.address.port()),
                // Policies speak of the container's port.
                Source::Handed(listener) => (listener.poll_accept(context), listener.port()),
                Source::Private(arrivals, _) => match arrivals.poll_recv(context) {
                    Poll::Ready(Some(Arrival { end, from, to, .. })) => {
                        self.turn = index + 1;
                        let ends = [to, from];
                        return Poll::Ready(Ok(Connection::private(end, ends, permit, None)));
                    }
                    // Never closed: its other end is in the pod's ports.
                    Poll::Ready(None) | Poll::Pending => {
                        offset += 1;
                        continue;
                    }
                },
            };
            let Poll::Ready(accepted) = found else {
                offset += 1;
                continue;
            };
            match accepted {
                Ok((stream, from))
                    if !policy::lets_in(&network, Transport::Tcp, from.ip(), port) =>
                {
                    drop(stream);
                    self.stack.refused(Rule::Policy);
                    refusals += 1;
                    if refusals == REFUSALS {
                        // Whoever is not let in holds up no other source.
                        self.turn = index + 1;
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Ok((stream, _)) => {
                    self.turn = index + 1;
                    Counters::add(&self.stack.0.counters.accepted, 1);
                    return Poll::Ready(Ok(Connection::tcp(stream, permit, None)));
                }
                Err(error) => {
                    self.turn = index + 1;
                    return Poll::Ready(Err(after_accept(error.into())));
                }
            }
        }
        Poll::Pending
    }
}

/// Linux hands on what befell a connection while it waited (accept(2)).
fn after_accept(error: NetError) -> NetError {
    match error {
        NetError::ConnectionReset
        | NetError::RemoteUnreachable
        | NetError::NotSupported
        | NetError::Timeout => NetError::ConnectionAborted,
        error => error,
    }
}

/// What the agent may ask for.
impl Stack {
    /// One that listens for a port, which the agent is told of if policies bound who
    /// may come in.
    fn listed(&self, listener: TcpListener, port: u16) -> Source {
        let listener = Arc::new(listener);
        let listed = self.0.listeners.add(&listener, port);
        // After that: who changes the policies asks for it, or it is told of.
        if self.network().policy.as_ref().is_some_and(|policy| policy.ingress.is_some()) {
            self.0.listeners.ring();
        }
        Source::Real(listed, listener)
    }

    /// As [`listed`](Self::listed), of those that were handed over. The agent is told
    /// of them always: they may have what was attached to them under other policies.
    fn listed_handed(&self, handed: Vec<Listening>) -> Vec<Source> {
        if handed.is_empty() {
            return Vec::new();
        }
        let list = |mut listening: Listening| {
            listening.list(&self.0.listeners);
            Source::Handed(listening)
        };
        let sources = handed.into_iter().map(list).collect();
        self.0.listeners.ring();
        sources
    }

    /// What the pod listens on and what was handed over for it: other descriptors,
    /// each with the pod's port. Of too many the last are left out, those at rest
    /// first: of each the agent is told when it is listened on.
    ///
    /// # Errors
    ///
    /// When there is no further descriptor.
    pub(crate) fn lend_listeners(&self) -> io::Result<Vec<(u16, OwnedFd)>> {
        self.0.listeners.asked();
        let mut lent = self.0.listeners.lend(MAX_LISTENERS)?;
        lent.extend(self.0.handed.lend(MAX_LISTENERS - lent.len())?);
        Ok(lent)
    }
}

/// A listener on every address of the pod, loopbacks included.
impl Stack {
    /// Listens for a guest at a port on all of the pod's addresses and its loopback;
    /// where sockets were handed over for the port, on those. It counts as none of
    /// the pod's sockets.
    ///
    /// # Errors
    ///
    /// [`NetError::AddressInUse`], with the address; [`NetError::NewSocketLimit`] if
    /// the sandbox listens at too many ports for the pod; what the system said.
    pub(crate) fn listen_everywhere(
        &self,
        port: u16,
        backlog: u32,
    ) -> Result<Listener, (SocketAddr, NetError)> {
        let mut all: Option<Listener> = None;
        for family in [Family::V4, Family::V6] {
            let address = SocketAddr::new(family.wildcard(), port);
            let shown = place::own(&self.network(), family);
            let failed = |error| (SocketAddr::new(shown.unwrap_or(address.ip()), port), error);
            let listener = self.listening_place().and_then(|place| {
                let bound = self.bind_tcp(address)?;
                bound.listen_by(Right::Ours(place), Options::default(), backlog)
            });
            let listener = match listener {
                // In the node's own network, of a machine without IPv6.
                Err(NetError::NotSupported) if all.is_some() && shown.is_none() => continue,
                listener => listener.map_err(failed)?,
            };
            all = Some(match all {
                Some(others) => others.and(listener),
                None => listener,
            });
        }
        all.ok_or((SocketAddr::new(Family::V4.wildcard(), port), NetError::AccessDenied))
    }

    /// Listens only where sockets were handed over for a port: all that a pod
    /// without a network of its own can do. None if there are none.
    ///
    /// # Errors
    ///
    /// As [`listen_everywhere`](Self::listen_everywhere).
    pub(crate) fn listen_handed(
        &self,
        port: u16,
        backlog: u32,
    ) -> Result<Option<Listener>, NetError> {
        let backlog = i32::try_from(backlog.clamp(1, MOST_BACKLOG)).unwrap_or(i32::MAX);
        let handed = self.0.handed.listen(port, Which::All, backlog)?;
        let Some(address) = handed.first().and_then(Listening::local) else { return Ok(None) };
        let place = self.listening_place()?;
        let sources = self.listed_handed(handed);
        let (stack, turn, arrived) = (self.clone(), 0, None);
        Ok(Some(Listener {
            stack,
            address,
            sources,
            turn,
            arrived,
            has_made_room: false,
            waiter: Arc::default(),
            rights: vec![Right::Ours(place)],
        }))
    }

    /// Connects for the pod's resolver.
    ///
    /// # Errors
    ///
    /// As [`connect_tcp`](Self::connect_tcp); [`NetError::NewSocketLimit`].
    pub(crate) async fn connect(&self, to: SocketAddr) -> Result<super::Stream, NetError> {
        let permit = self.permit_or_room().await?;
        let resolver = Asker { whom: For::Resolver, ..Asker::GUEST };
        let connection = self.connect_tcp_for(resolver, permit, Options::default(), to).await?;
        Ok(super::Stream(Arc::new(connection)))
    }
}

#[cfg(test)]
mod tests {
    use krustlet_protocol::PodNetwork;
    use tokio::time::timeout;

    use super::{
        super::{Kept, LISTENING, test_listening},
        *,
    };

    #[tokio::test]
    async fn a_handed_socket_serves_one_listener_and_the_next_is_told_so() {
        let stack = Stack::default();
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let addresses = vec![address.ip()];
        stack.set(PodNetwork { addresses, is_host: true, ..PodNetwork::default() }, None);
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _claim = stack.hand(vec![(80, socket)], Vec::new()).unwrap();
        let bound = [(); 2].map(|()| stack.bind_tcp(address).unwrap());
        let listen = |bound: BoundTcp| bound.listen(stack.permit().unwrap(), Options::default(), 8);
        let [first, second] = bound.map(listen);
        let first = first.unwrap();
        assert_eq!(second.unwrap_err(), NetError::AddressInUse);
        let again = stack.bind_tcp(address);
        drop(first);
        // While it listened the address was the system's to give.
        again.unwrap_err();
        listen(stack.bind_tcp(address).unwrap()).unwrap();
    }

    #[tokio::test]
    async fn what_is_listened_on_is_lent_before_what_is_at_rest() {
        let stack = Stack::default();
        let addresses = vec!["127.0.0.1".parse().unwrap()];
        stack.set(PodNetwork { addresses, ..PodNetwork::default() }, None);
        let at_rest = |_| (80, std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let handed = (0..=MAX_LISTENERS).map(at_rest).collect();
        let _claim = stack.hand(handed, Vec::new()).unwrap();
        let _listener = stack.listen_everywhere(0, 8).unwrap();
        let lent = stack.lend_listeners().unwrap();
        let listens =
            |(_, socket): &(u16, OwnedFd)| rustix::net::sockopt::socket_acceptconn(socket).unwrap();
        assert!(listens(&lent[0]), "{lent:?}");
        assert_eq!(lent.len(), MAX_LISTENERS);
    }

    async fn connect(stack: &Stack, listener: &Listener) -> Connection {
        let permit = stack.permit().unwrap();
        stack.connect_tcp(permit, Options::default(), listener.address()).await.unwrap()
    }

    #[tokio::test]
    async fn who_waits_to_accept_does_so_as_soon_as_the_pod_may_have_more_sockets() {
        let (stack, mut listener) = test_listening(2);
        let _client = connect(&stack, &listener).await;
        let raises = async {
            let mut network = (*stack.network()).clone();
            network.limits.sockets = 3;
            stack.set(network, None);
        };
        let accepts = timeout(Duration::from_secs(20), listener.accept());
        let (accepted, ()) = tokio::join!(accepts, raises);
        accepted.expect("nobody woke it").unwrap();
    }

    #[tokio::test]
    async fn a_guests_listeners_count_and_those_for_guests_do_not() {
        let (stack, first) = test_listening(8);
        let bound = stack.bind_tcp("[::1]:0".parse().unwrap()).unwrap();
        let second = bound.listen(stack.permit().unwrap(), Options::default(), 8).unwrap();
        let both = first.and(second);
        assert_eq!(stack.report().sockets, 2);
        drop(both);
        assert_eq!(stack.report().sockets, 0);
        // One of this machine.
        let addresses = vec!["127.0.0.1".parse().unwrap()];
        stack.set(PodNetwork { addresses, ..(*stack.network()).clone() }, None);
        let ours = stack.listen_everywhere(0, 8).unwrap();
        assert_eq!(stack.report().sockets, 0);
        // But there is an end to them, too.
        let places = Arc::clone(&stack.0.listening.0);
        let most = u32::try_from(LISTENING - 3).unwrap();
        let taken = Arc::clone(&places).try_acquire_many_owned(most).unwrap();
        let (_, error) = stack.listen_everywhere(0, 8).unwrap_err();
        assert_eq!(error, NetError::NewSocketLimit);
        drop((ours, taken));
        assert_eq!(places.available_permits(), LISTENING);
    }

    #[tokio::test]
    async fn a_listener_whose_room_somebody_else_has_taken_makes_it_again() {
        let (stack, mut listener) = test_listening(5);
        let kept = [(); 2].map(|()| stack.permit().unwrap());
        // Two that are kept and idle.
        let mut idle = kept.map(|permit| {
            let address = listener.address();
            let (end, other) = super::super::pipe::pair(stack.memory());
            let connection = Arc::new(Connection::private(end, [address; 2], permit, None));
            let kept = stack.may_be_kept(&connection);
            drop(kept.asked());
            Some((connection, kept, other))
        });
        let _guest = [(); 2].map(|()| stack.permit().unwrap());
        let noop = &mut Context::from_waker(std::task::Waker::noop());
        let is_closed = |one: &Option<(Arc<Connection>, Arc<Kept>, _)>| {
            one.as_ref().is_some_and(|(_, kept, _)| kept.goes())
        };
        for _ in 0..3 {
            assert!(listener.poll_ready(noop).is_pending());
            assert!(is_closed(&idle[0]) && !is_closed(&idle[1]), "one is enough for one wait");
            assert!(!listener.lacks_room(), "it is told when that one is gone");
        }
        // Its client lets go of it, and a guest is quicker.
        idle[0] = None;
        let _quicker = stack.permit().unwrap();
        assert!(listener.poll_ready(noop).is_pending());
        assert!(is_closed(&idle[1]));
        idle[1] = None;
        let _quickest = stack.permit().unwrap();
        assert!(listener.poll_ready(noop).is_pending());
        assert!(listener.lacks_room(), "there is no other");
    }
}
