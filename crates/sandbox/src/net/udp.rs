//! UDP: datagrams on the network and within the pod.

mod binding;

use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Instant,
};

use futures::task::AtomicWaker;
use krustlet_model::services::Transport;
use krustlet_protocol::PodNetwork;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::SendFlags,
};

use tokio::io::Interest;

use super::{
    NetError, Permit, Stack,
    flows::Flows,
    hosted::{self, Ways},
    pace::{Flow, Turn},
    parcel::Parcel,
    peers::Came,
    place::{self, Family, is_same},
    policy::{self, Answers, Asker, Begun, For},
    private::{Mailbox, Reservation},
    refused::Rule,
    route::{Destination, Route},
};

/// The longest datagram in bytes, headers included.
pub(crate) const LONGEST: usize = u16::MAX as usize;

/// Unwanted datagrams that one call throws away; then others have their turn.
const DISCARDS: usize = 64;

/// A bound socket.
#[derive(Debug)]
pub(crate) struct UdpSocket {
    stack: Stack,
    /// As asked, with the port it got.
    address: SocketAddr,
    real: Option<tokio::net::UdpSocket>,
    /// The address that the system's socket was bound to.
    home: Option<IpAddr>,
    /// Whether anybody may send here, as far as policies let him. Else it is bound to
    /// the machine's addresses only to be answered, and hears nobody else from there.
    hears_all: bool,
    private: Option<(Reservation, Arc<Mailbox>)>,
    /// Those that were handed over for its port.
    ways: Ways,
    /// Whether they stand in for `real`.
    is_stood_in: bool,
    /// Where it is connected to.
    remote: Option<Remote>,
    led: Mutex<Led>,
    /// For whom it is.
    whom: For,
    /// Whose answers are let through.
    answers: Answers,
    permit: Permit,
    reading: Turn,
    writing: Turn,
    /// Who waits to receive and to send: what they wait for is another once it is
    /// connected elsewhere.
    waiting: [AtomicWaker; 2],
}

/// Where a socket is connected to, as its guest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remote {
    /// On the private loopback.
    Private(SocketAddr),
    /// On the network, and really there.
    Real(SocketAddr),
    /// At an address of a Service, which may lead elsewhere with each datagram.
    Service(SocketAddr),
}

impl Remote {
    fn address(self) -> SocketAddr {
        match self {
            Self::Private(address) | Self::Real(address) | Self::Service(address) => address,
        }
    }
}

/// Where datagrams really go.
#[derive(Debug, Default)]
pub(super) struct Led {
    pub(super) flows: Flows,
    /// What the system's socket is connected to.
    connected: Option<SocketAddr>,
}

/// Whether a socket takes a datagram now.
fn takes(socket: &tokio::net::UdpSocket) -> bool {
    let look = || -> std::io::Result<()> {
        let mut fds = [PollFd::new(socket, PollFlags::OUT)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut fds, Some(&at_once))? {
            0 => Err(std::io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    };
    // At once first: the runtime hears of a new socket only later that it is
    // ready. It goes on taking one for ready until it is told otherwise.
    look().is_ok() || socket.try_io(Interest::WRITABLE, look).is_ok()
}

impl UdpSocket {
    /// The address, as it was asked for, with the port. Once connected, the one
    /// that is used.
    pub(crate) fn address(&self) -> SocketAddr {
        match self.remote {
            Some(Remote::Real(_) | Remote::Service(_)) => {
                let real = self.remote().and_then(|remote| self.outlet(remote.ip()));
                real.and_then(|real| real.local_addr().ok()).unwrap_or(self.address)
            }
            Some(Remote::Private(_)) => self.private_source(),
            None => self.address,
        }
    }

    /// Where it is connected to, as the guest knows it.
    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        self.remote.map(Remote::address)
    }

    /// The system's socket, if there is one.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.outlet(self.address.ip()).map(AsFd::as_fd)
    }

    /// The system's socket by which what goes to an address leaves unasked.
    fn outlet(&self, to: IpAddr) -> Option<&tokio::net::UdpSocket> {
        let handed = || if self.is_stood_in { self.ways.outlet(to) } else { None };
        self.real.as_ref().or_else(handed)
    }

    /// As whom it sends on the private loopback: a wildcard is the loopback.
    fn private_source(&self) -> SocketAddr {
        let ip = self.address.ip();
        let ip = if ip.is_unspecified() { Family::of(ip).localhost() } else { ip };
        SocketAddr::new(ip, self.address.port())
    }

    /// Sends to and hears from this address only, or any again. Who waits looks
    /// again.
    ///
    /// # Errors
    ///
    /// As [`Stack::destination`]; [`NetError::RemoteUnreachable`].
    pub(crate) fn connect(&mut self, to: Option<SocketAddr>) -> Result<(), NetError> {
        let connected = self.connect_to(to);
        self.waiting.iter().for_each(AtomicWaker::wake);
        connected
    }

    fn connect_to(&mut self, to: Option<SocketAddr>) -> Result<(), NetError> {
        let destination = |to| self.stack.destination(self.asker(), Transport::Udp, to, None);
        let destination = to.map(destination).transpose()?;
        let was_connected = std::mem::take(&mut *self.led()).connected.is_some();
        if was_connected {
            self.disconnect_real()?;
        }
        self.remote = None;
        self.remote = match destination {
            None => None,
            Some(Destination::Private(to)) => Some(Remote::Private(to)),
            Some(Destination::Real(route)) => {
                let mut led = self.led();
                led.flows.put(route, Instant::now());
                self.connect_real(&mut led, route.real)?;
                self.goes_out(route);
                let asked = route.asked;
                Some(if route.is_led() { Remote::Service(asked) } else { Remote::Real(asked) })
            }
            Some(Destination::Nobody { asked, .. }) => {
                // Somebody may be there later.
                self.outlet(asked.ip()).ok_or(NetError::RemoteUnreachable)?;
                Some(Remote::Service(asked))
            }
        };
        Ok(())
    }

    pub(super) fn led(&self) -> MutexGuard<'_, Led> {
        self.led.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects the system's socket, if it is not connected there.
    fn connect_real(&self, led: &mut Led, to: SocketAddr) -> Result<(), NetError> {
        if led.connected != Some(to) {
            let real = self.outlet(to.ip()).ok_or(NetError::RemoteUnreachable)?;
            let failed = |error| self.stack.on_the_way(real.local_addr(), to, error);
            rustix::net::connect(real, &to).map_err(failed)?;
            led.connected = Some(to);
        }
        Ok(())
    }

    /// The kernel lets go of a port that it chose itself when a socket is
    /// disconnected (`__udp_disconnect` in `net/ipv4/udp.c`): it is bound again, where
    /// it was. While it was connected the wildcard had become one address.
    fn disconnect_real(&self) -> Result<(), NetError> {
        self.ways.disconnect()?;
        let (Some(real), Some(home)) = (&self.real, self.home) else { return Ok(()) };
        let port = real.local_addr()?.port();
        rustix::net::connect_unspec(real)?;
        if real.local_addr()?.port() != port {
            rustix::net::bind(real, &SocketAddr::new(home, port))?;
        }
        Ok(())
    }

    fn may_go(&self, route: Route) -> Result<(), NetError> {
        let may_go = self.stack.may_go(self.asker(), Transport::Udp, route);
        may_go.map_err(|why| self.stack.told(why))
    }

    /// As [`may_go`](Self::may_go), where no is not the last word.
    fn may_go_on(&self, route: Route) -> bool {
        self.stack.may_go(self.asker(), Transport::Udp, route).is_ok()
    }

    fn asker(&self) -> Asker<'_> {
        Asker { whom: self.whom, answers: Some(&self.answers) }
    }

    /// Something goes by a route: its answers are let in, if it was not one itself.
    fn goes_out(&self, route: Route) {
        let (network, learned) = (self.stack.network(), &self.stack.0.learned);
        if !self.may_begin(&network, route.real.ip(), false)
            && self.asker().may_begin(&network, learned, Transport::Udp, route)
        {
            self.answers.begin(route.real, Begun::Here);
        }
    }

    /// Whether the socket is not there for somebody, unless he answers it. The machine
    /// itself is no stranger wherever it is, nor is he to whom it is connected.
    fn is_stranger(&self, from: IpAddr, is_forged: bool) -> bool {
        let is_machine = from.is_loopback() && !is_forged;
        !self.hears_all && self.remote.is_none() && !is_machine
    }

    /// Whether somebody may send here unasked, also if his address may be forged.
    fn may_begin(&self, network: &PodNetwork, from: IpAddr, is_forged: bool) -> bool {
        let lets_in = if is_forged { policy::lets_in_forged } else { policy::lets_in };
        !self.is_stranger(from, is_forged)
            && lets_in(network, Transport::Udp, from, self.address.port())
    }

    /// Whether what came is let in: by the policies, or as an answer. It may be
    /// answered then.
    fn lets_in(&self, parcel: &Parcel) -> bool {
        let (real, network) = (parcel.from, self.stack.network());
        if !self.may_begin(&network, real.ip(), parcel.may_be_forged()) {
            return self.answers.goes_on(real, Begun::Here);
        }
        let learned = &self.stack.0.learned;
        let is_listed = self.whom == For::Resolver || policy::is_listed(&network, learned, real);
        if !is_listed || !policy::lets_out(&network, Transport::Udp, real) {
            self.answers.begin(real, Begun::There);
        }
        true
    }

    /// Where a datagram to an address goes now.
    fn lead(&self, led: &mut Led, to: SocketAddr) -> Result<Destination, NetError> {
        let (to, now) = (place::canonical(to), Instant::now());
        let before = match led.flows.to(to, now) {
            // A policy may have come since it began, and others of the Service may
            // be let through.
            Some((route, _)) if !self.may_go_on(route) => {
                led.flows.end(to);
                None
            }
            Some((route, true)) => return Ok(Destination::Real(route)),
            known => known.map(|(route, _)| route.real),
        };
        let destination = self.stack.destination(self.asker(), Transport::Udp, to, before)?;
        match destination {
            Destination::Real(route) => led.flows.put(route, now),
            Destination::Nobody { asked, .. } => led.flows.end(asked),
            Destination::Private(_) => {}
        }
        Ok(destination)
    }

    /// Sends one datagram; to where it is connected, or to `to`.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, also if the pod has sent what it may for now;
    /// [`NetError::InvalidArgument`] without a destination or with
    /// another than it is connected to; [`NetError::DatagramTooLarge`]; as
    /// [`Stack::destination`]; what the network said.
    pub(crate) fn try_send(&self, bytes: &[u8], to: Option<SocketAddr>) -> Result<(), NetError> {
        if bytes.len() > LONGEST {
            return Err(NetError::DatagramTooLarge);
        }
        let to = match (self.remote(), to) {
            (Some(remote), None) => remote,
            (Some(remote), Some(to)) if is_same(remote, place::canonical(to)) => remote,
            (None, Some(to)) => to,
            (Some(_), Some(_)) | (None, None) => return Err(NetError::InvalidArgument),
        };
        // Who is connected within the pod means that loopback and not the node's.
        let by_way = if self.is_within() { None } else { self.ways.to(place::canonical(to)) };
        if let Some(came) = by_way {
            return self.answer(came, bytes);
        }
        let mut led = self.led();
        let destination = match self.remote {
            Some(Remote::Private(to)) => Destination::Private(to),
            Some(Remote::Real(to)) => {
                let route = Route { asked: to, real: to };
                // A policy may have come since it was connected.
                self.may_go(route)?;
                Destination::Real(route)
            }
            Some(Remote::Service(_)) | None => self.lead(&mut led, to)?,
        };
        match destination {
            Destination::Private(to) => {
                let heard = self.stack.0.private.deliver(to, self.private_source(), bytes);
                // As the kernel tells a connected socket of a closed port.
                if heard || self.remote.is_none() {
                    Ok(())
                } else {
                    Err(NetError::ConnectionRefused)
                }
            }
            Destination::Real(route) => {
                let real = self.outlet(route.real.ip()).ok_or(NetError::RemoteUnreachable)?;
                if self.sent().may_move(&self.writing, 1) == 0 {
                    return Err(NetError::WouldBlock);
                }
                if self.remote.is_some() {
                    self.connect_real(&mut led, route.real)?;
                }
                self.goes_out(route);
                let attempt = || match self.remote {
                    Some(_) => rustix::net::send(real, bytes, SendFlags::empty()),
                    None => rustix::net::sendto(real, bytes, SendFlags::empty(), &route.real),
                };
                // At once first: see `can_send`.
                let sent = match attempt() {
                    Err(Errno::AGAIN) => real.try_io(Interest::WRITABLE, || Ok(attempt()?)),
                    sent => sent.map_err(std::io::Error::from),
                };
                let failed = |error| self.stack.on_the_way(real.local_addr(), route.real, error);
                let sent = sent.map_err(failed)?;
                self.sent().moved(&self.writing, sent);
                Ok(())
            }
            // As with a closed port; and who is not connected is never told.
            Destination::Nobody { is_silent: false, .. } if self.remote.is_some() => {
                Err(NetError::ConnectionRefused)
            }
            Destination::Nobody { .. } => Ok(()),
        }
    }

    /// Sends one datagram back by the way that its peer came. As an answer it goes
    /// where a pod may not begin to go: see [`place::may_answer`].
    fn answer(&self, came: Came, bytes: &[u8]) -> Result<(), NetError> {
        let (network, learned) = (self.stack.network(), &self.stack.0.learned);
        place::may_answer(&network, came.from, came.to)
            .map_err(|error| self.stack.told(error.into()))?;
        let route = Route { asked: came.from, real: came.from };
        if !self.asker().may_go(&network, learned, Transport::Udp, route) {
            self.stack.refused(self.asker().refused_by(&network, learned, route.asked));
            return Err(NetError::AccessDenied);
        }
        if self.sent().may_move(&self.writing, 1) == 0 {
            return Err(NetError::WouldBlock);
        }
        let sent = self.ways.answer(self.real.as_ref(), came, bytes)?;
        self.sent().moved(&self.writing, sent);
        Ok(())
    }

    /// Takes a datagram that is there, and says who sent it. What does not fit
    /// into `buffer` is lost.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, also if the pod has received what it may for now, and after
    /// [`DISCARDS`] that came from elsewhere than where
    /// it is connected to: [`poll_receive_ready`](Self::poll_receive_ready) is
    /// ready then. What the network said, as [`NetError::ConnectionRefused`].
    pub(crate) fn try_receive(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), NetError> {
        if let Some((_, mailbox)) = &self.private {
            while let Some((from, bytes)) = mailbox.take() {
                if let Some(from) = self.sender(from) {
                    self.ways.came_otherwise(from);
                    let length = bytes.len().min(buffer.len());
                    buffer[..length].copy_from_slice(&bytes[..length]);
                    return Ok((length, from));
                }
            }
        }
        if self.is_within() || self.real.is_none() && self.ways.is_empty() {
            return Err(NetError::WouldBlock);
        }
        if self.received().may_move(&self.reading, 1) == 0 {
            return Err(NetError::WouldBlock);
        }
        for _ in 0..DISCARDS {
            let (parcel, by) = self.arrived(buffer)?;
            let Parcel { length, from: real, to, .. } = parcel;
            // Some may have come before it was connected.
            let Some(from) = self.sender(real) else { continue };
            if self.lets_in(&parcel) {
                if from == real {
                    self.remember(Came { from, by, to });
                }
                self.received().moved(&self.reading, length);
                return Ok((length, from));
            }
            if !self.is_stranger(real.ip(), parcel.may_be_forged()) {
                self.stack.refused(Rule::Policy);
            }
        }
        Err(NetError::WouldBlock)
    }

    /// What has come from the network, by one way or another in turns.
    fn arrived(&self, buffer: &mut [u8]) -> Result<(Parcel, Option<usize>), NetError> {
        for way in self.ways.turns() {
            let arrived = match (way, &self.real) {
                (Some(index), _) => self.ways.receive(index, buffer),
                (None, Some(own)) => hosted::receive(own, buffer),
                (None, None) => continue,
            };
            if arrived != Err(NetError::WouldBlock) {
                self.ways.had_its_turn(way);
                return arrived.map(|parcel| (parcel, way));
            }
        }
        Err(NetError::WouldBlock)
    }

    /// Remembers who is to be answered by the way that he came: by a socket of the
    /// node's, or from the node's loopback to an address that the pod shares, where
    /// its own answers would go to the pod's loopback.
    fn remember(&self, came: Came) {
        let is_of_another_loopback =
            came.from.ip().is_loopback() && !self.stack.network().shares_loopback;
        if came.by.is_some() || is_of_another_loopback {
            self.ways.came(came);
        } else if !self.ways.is_empty() {
            self.ways.came_otherwise(came.from);
        }
    }

    fn received(&self) -> &Flow {
        &self.permit.counters().received
    }

    fn sent(&self) -> &Flow {
        &self.permit.counters().sent
    }

    /// Who sent something, as the guest knows him. None if it wants nothing from
    /// there.
    fn sender(&self, from: SocketAddr) -> Option<SocketAddr> {
        match self.remote {
            Some(Remote::Private(remote) | Remote::Real(remote)) => {
                is_same(remote, from).then_some(from)
            }
            Some(Remote::Service(asked)) => {
                self.led().connected.filter(|real| is_same(*real, from)).map(|_| asked)
            }
            None => Some(self.led().flows.sender(from, Instant::now)),
        }
    }

    /// Whether it is connected within the pod: nothing is wanted that comes from the
    /// network, by whichever socket.
    fn is_within(&self) -> bool {
        matches!(self.remote, Some(Remote::Private(_)))
    }

    /// Ready when something may have come from the network.
    fn poll_heard(&self, context: &mut Context<'_>) -> Poll<()> {
        // What went wrong is found by whoever receives.
        let own = self.real.as_ref().is_some_and(|real| real.poll_recv_ready(context).is_ready());
        if self.ways.poll_receive(context).is_ready() || own {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Ready when something may have come.
    pub(crate) fn poll_receive_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        self.waiting[0].register(context.waker());
        let private = self.private.as_ref().map(|(_, mailbox)| mailbox.poll_ready(context));
        let is_heard = !self.is_within() && self.poll_heard(context).is_ready();
        let is_turn = || self.received().poll_turn(&self.reading, context).is_ready();
        if private.is_some_and(|ready| ready.is_ready()) || is_heard && is_turn() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Ready when something may be sent.
    pub(crate) fn poll_send_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        self.waiting[1].register(context.waker());
        ready!(self.ways.poll_send(context));
        if let Some(real) = &self.real {
            // As there.
            let _ = ready!(real.poll_send_ready(context));
        }
        if self.sends_freely() {
            Poll::Ready(())
        } else {
            self.sent().poll_turn(&self.writing, context)
        }
    }

    /// Whether what it sends stays within the pod. Where it will be sent is mostly not
    /// known yet; to a neighbour on the loopback it would go at once.
    fn sends_freely(&self) -> bool {
        let has_network = self.real.is_some() || !self.ways.is_empty();
        !has_network || self.is_within()
    }

    /// Whether something can be sent at once; if not,
    /// [`poll_send_ready`](Self::poll_send_ready) is not ready either.
    pub(crate) fn can_send(&self) -> bool {
        if !self.sends_freely() && self.sent().may_move(&self.writing, 1) == 0 {
            return false;
        }
        self.real.as_ref().is_none_or(takes) && self.ways.can_send(takes)
    }

    /// Sends one datagram, when it can be.
    ///
    /// # Errors
    ///
    /// As [`try_send`](Self::try_send), but for `WouldBlock`.
    pub(crate) async fn send(&self, bytes: &[u8], to: Option<SocketAddr>) -> Result<(), NetError> {
        loop {
            match self.try_send(bytes, to) {
                Err(NetError::WouldBlock) => poll_fn(|c| self.poll_send_ready(c)).await,
                done => return done,
            }
        }
    }

    /// The next datagram.
    ///
    /// # Errors
    ///
    /// As [`try_receive`](Self::try_receive), but for `WouldBlock`.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), NetError> {
        loop {
            match self.try_receive(buffer) {
                Err(NetError::WouldBlock) => {
                    poll_fn(|c| self.poll_receive_ready(c)).await;
                    // It may have been ready all the time.
                    tokio::task::yield_now().await;
                }
                done => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use krustlet_protocol::PodNetwork;
    use tokio::{task::JoinSet, time::timeout};

    use super::*;

    /// A socket bound to the wildcard, and where it is really.
    async fn bound() -> (UdpSocket, SocketAddr) {
        let stack = Stack::default();
        // Really there is no pod with this address; it is one that any machine has.
        let addresses = vec![Family::V4.localhost()];
        stack.set(PodNetwork { addresses, ..PodNetwork::default() }, None);
        let socket = stack.udp(Family::V4).await.unwrap();
        let real = socket.real.as_ref().unwrap().local_addr().unwrap();
        (socket, real)
    }

    #[tokio::test(start_paused = true)]
    async fn datagrams_come_as_fast_as_the_pod_may_receive() {
        let (socket, real) = bound().await;
        let mut network = (*socket.stack.network()).clone();
        network.limits.ingress_bits = Some(80_000);
        socket.stack.set(network, None);
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..5 {
            peer.send_to(&[0; 1000], real).unwrap();
        }
        let (begin, mut buffer) = (tokio::time::Instant::now(), [0; 1000]);
        for _ in 0..5 {
            assert_eq!(socket.receive(&mut buffer).await.unwrap().0, 1000);
        }
        // The first is what the bucket held, the second a debt for the others to
        // wait for, of 100 ms each.
        assert!(begin.elapsed() >= std::time::Duration::from_millis(300), "{:?}", begin.elapsed());
        assert!(socket.try_receive(&mut buffer).is_err());
        assert_eq!(socket.stack.report().received_bytes, 5000);
    }

    #[tokio::test]
    async fn a_flood_of_what_is_not_wanted_is_thrown_away_in_turns() {
        let (mut socket, real) = bound().await;
        let [flood, remote] = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.remote = Some(Remote::Real(remote.local_addr().unwrap()));
        for _ in 0..DISCARDS * 2 {
            flood.send_to(b"x", real).unwrap();
        }
        remote.send_to(b"wanted", real).unwrap();
        poll_fn(|context| socket.poll_receive_ready(context)).await;
        let mut buffer = [0; 8];
        for _ in 0..2 {
            assert_eq!(socket.try_receive(&mut buffer).unwrap_err(), NetError::WouldBlock);
            let noop = &mut Context::from_waker(std::task::Waker::noop());
            assert!(socket.poll_receive_ready(noop).is_ready(), "there is more");
        }
        assert_eq!(socket.receive(&mut buffer).await.unwrap().0, 6);
    }

    #[tokio::test]
    async fn who_waits_hears_what_comes_from_where_the_socket_is_connected_anew() {
        let (mut socket, real) = bound().await;
        socket.connect(Some("127.0.0.1:53".parse().unwrap())).unwrap();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        // As calls of WASI 0.3 share it.
        let socket = Arc::new(Mutex::new(socket));
        let shared = Arc::clone(&socket);
        let mut waits = JoinSet::new();
        waits.spawn(async move {
            let mut buffer = [0; 8];
            loop {
                poll_fn(|context| shared.lock().unwrap().poll_receive_ready(context)).await;
                let received = shared.lock().unwrap().try_receive(&mut buffer);
                if received != Err(NetError::WouldBlock) {
                    return received;
                }
                tokio::task::yield_now().await;
            }
        });
        tokio::task::yield_now().await;
        socket.lock().unwrap().connect(None).unwrap();
        peer.send_to(b"wanted", real).unwrap();
        let heard = timeout(Duration::from_secs(20), waits.join_next()).await.expect("it is woken");
        assert_eq!(heard.unwrap().unwrap(), Ok((6, peer.local_addr().unwrap())));
    }

    #[tokio::test]
    async fn who_is_connected_within_the_pod_does_not_hear_the_network() {
        let (mut socket, real) = bound().await;
        let inside = "127.0.0.1:53".parse().unwrap();
        socket.connect(Some(inside)).unwrap();
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", real).unwrap();
        // The runtime has heard of it by then.
        poll_fn(|context| socket.real.as_ref().unwrap().poll_recv_ready(context)).await.unwrap();
        let noop = &mut Context::from_waker(std::task::Waker::noop());
        assert!(socket.poll_receive_ready(noop).is_pending());
        let to = SocketAddr::new(inside.ip(), socket.address().port());
        socket.stack.0.private.deliver(to, inside, b"wanted");
        assert_eq!(socket.receive(&mut [0; 8]).await.unwrap(), (6, inside));
    }

    #[tokio::test]
    async fn who_is_connected_within_the_pod_has_nothing_to_do_with_the_nodes_loopback() {
        for is_handed in [false, true] {
            let (mut socket, mut real) = bound().await;
            let mut claim = None;
            if is_handed {
                let (stack, own) = (socket.stack.clone(), socket.address());
                drop(socket);
                let node = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                real = node.local_addr().unwrap();
                claim = Some(stack.hand(Vec::new(), vec![(own.port(), node)]).unwrap());
                let permit = stack.permit().unwrap();
                socket = stack.bind_udp(permit, super::super::Options::default(), own).unwrap();
            }
            // Of one address, on two loopbacks.
            let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            peer.set_nonblocking(true).unwrap();
            let at = peer.local_addr().unwrap();
            let mut buffer = [0; 8];
            peer.send_to(b"node", real).unwrap();
            assert_eq!(socket.receive(&mut buffer).await.unwrap(), (4, at));
            socket.connect(Some(at)).unwrap();
            assert_eq!(socket.try_send(b"pod", None), Err(NetError::ConnectionRefused));
            peer.send_to(b"node", real).unwrap();
            // The runtime has heard of it by then.
            poll_fn(|context| socket.poll_heard(context)).await;
            let noop = &mut Context::from_waker(std::task::Waker::noop());
            assert!(socket.poll_receive_ready(noop).is_pending(), "{is_handed}");
            assert_eq!(socket.try_receive(&mut buffer), Err(NetError::WouldBlock));
            let to = SocketAddr::new(at.ip(), socket.address().port());
            assert!(socket.stack.0.private.deliver(to, at, b"pod"));
            assert_eq!(socket.receive(&mut buffer).await.unwrap(), (3, at));
            let nothing = peer.recv_from(&mut buffer).unwrap_err();
            assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
            // Once it is connected no more it hears both again.
            socket.connect(None).unwrap();
            assert_eq!(socket.receive(&mut buffer).await.unwrap(), (4, at));
            drop(claim);
        }
    }
}
