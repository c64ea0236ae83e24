//! UDP: datagrams on the network and within the pod.

use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    task::{Context, Poll},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt},
};

use tokio::io::Interest;

use super::{
    NetError, Options, Permit, Stack,
    permit::Counters,
    place::{self, Binding, Family, Way},
    private::{Mailbox, Reservation},
};

/// The longest datagram in bytes, headers included.
pub(crate) const LONGEST: usize = u16::MAX as usize;

/// As for TCP.
const TRIES: usize = 16;

/// Unwanted datagrams that one call throws away; then others have their turn.
const DISCARDS: usize = 64;

/// Whether two addresses are one socket's. Flow and scope, which those of IPv6
/// have besides, are no part of what a guest was told.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip(), one.port()) == (other.ip(), other.port())
}

/// A bound socket.
#[derive(Debug)]
pub(crate) struct UdpSocket {
    stack: Stack,
    /// As asked, with the port it got.
    address: SocketAddr,
    real: Option<tokio::net::UdpSocket>,
    private: Option<(Reservation, Arc<Mailbox>)>,
    /// Where it is connected to.
    remote: Option<Way>,
    permit: Permit,
}

fn bind_real(ip: IpAddr, port: u16) -> Result<tokio::net::UdpSocket, NetError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if ip.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &SocketAddr::new(ip, port))?;
    Ok(tokio::net::UdpSocket::from_std(std::net::UdpSocket::from(socket))?)
}

impl Stack {
    /// Binds to an address as a guest names it; port 0 is any. Nothing can be
    /// sent or received by a socket that is not bound.
    ///
    /// # Errors
    ///
    /// As [`place::binding`]; [`NetError::AddressInUse`].
    pub(crate) fn bind_udp(
        &self,
        permit: Permit,
        options: Options,
        address: SocketAddr,
    ) -> Result<UdpSocket, NetError> {
        let network = self.network();
        let Binding { real, private } =
            place::binding(&network, address.ip()).inspect_err(|error| self.note(*error))?;
        let mut tries = TRIES;
        loop {
            let mut port = address.port();
            let real = real.map(|ip| bind_real(ip, port)).transpose()?;
            if let Some(real) = &real {
                options.apply(real, Family::of(address.ip()))?;
                port = real.local_addr()?.port();
            }
            let private = private.map(|ip| self.0.private.mailbox(SocketAddr::new(ip, port)));
            let private = match private.transpose() {
                Ok(private) => private,
                // The port that the kernel chose is taken within the pod.
                Err(NetError::AddressInUse) if address.port() == 0 && tries > 0 => {
                    tries -= 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some((reservation, _)) = &private {
                port = reservation.at().port();
            }
            let address = SocketAddr::new(address.ip(), port);
            return Ok(UdpSocket {
                stack: self.clone(),
                address,
                real,
                private,
                remote: None,
                permit,
            });
        }
    }

    /// A socket at any port of the family, for the sandbox itself.
    ///
    /// # Errors
    ///
    /// As [`bind_udp`](Self::bind_udp); [`NetError::NewSocketLimit`].
    pub(crate) fn udp(&self, family: Family) -> Result<UdpSocket, NetError> {
        let address = SocketAddr::new(family.wildcard(), 0);
        self.bind_udp(self.permit()?, Options::default(), address)
    }
}

impl UdpSocket {
    /// The address, as it was asked for, with the port. Once connected, the one
    /// that is used.
    pub(crate) fn address(&self) -> SocketAddr {
        match self.remote {
            Some(Way::Real(_)) => {
                let real = self.real.as_ref().and_then(|real| real.local_addr().ok());
                real.unwrap_or(self.address)
            }
            Some(Way::Private(_)) => self.private_source(),
            None => self.address,
        }
    }

    /// Where it is connected to.
    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        self.remote.map(|way| match way {
            Way::Real(to) | Way::Private(to) => to,
        })
    }

    /// The system's socket, if there is one.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.real.as_ref().map(AsFd::as_fd)
    }

    /// As whom it sends on the private loopback: a wildcard is the loopback.
    fn private_source(&self) -> SocketAddr {
        let ip = self.address.ip();
        let ip = if ip.is_unspecified() { Family::of(ip).localhost() } else { ip };
        SocketAddr::new(ip, self.address.port())
    }

    /// Sends to and hears from this address only, or any again.
    ///
    /// # Errors
    ///
    /// As [`place::way`]; [`NetError::RemoteUnreachable`].
    pub(crate) fn connect(&mut self, to: Option<SocketAddr>) -> Result<(), NetError> {
        let way = to.map(|to| self.way(to)).transpose()?;
        if let Some(Way::Real(_)) = self.remote {
            self.disconnect_real()?;
        }
        self.remote = None;
        if let Some(Way::Real(to)) = way {
            let real = self.real.as_ref().ok_or(NetError::RemoteUnreachable)?;
            rustix::net::connect(real, &to)?;
        }
        self.remote = way;
        Ok(())
    }

    /// The kernel lets go of a port that it chose itself when a socket is
    /// disconnected (`__udp_disconnect` in `net/ipv4/udp.c`): it is bound again.
    fn disconnect_real(&self) -> Result<(), NetError> {
        let Some(real) = &self.real else { return Ok(()) };
        let before = real.local_addr()?;
        rustix::net::connect_unspec(real)?;
        if real.local_addr()?.port() != before.port() {
            rustix::net::bind(real, &before)?;
        }
        Ok(())
    }

    fn way(&self, to: SocketAddr) -> Result<Way, NetError> {
        place::way(&self.stack.network(), to).inspect_err(|error| self.stack.note(*error))
    }

    /// Sends one datagram; to where it is connected, or to `to`.
    ///
    /// # Errors
    ///
    /// `WouldBlock`; [`NetError::InvalidArgument`] without a destination or with
    /// another than it is connected to; [`NetError::DatagramTooLarge`]; as
    /// [`place::way`]; what the network said.
    pub(crate) fn try_send(&self, bytes: &[u8], to: Option<SocketAddr>) -> Result<(), NetError> {
        if bytes.len() > LONGEST {
            return Err(NetError::DatagramTooLarge);
        }
        let way = match (self.remote, to) {
            (Some(way), None) => way,
            (Some(_), Some(to)) if self.is_wanted(to) => self.way(to)?,
            (None, Some(to)) => self.way(to)?,
            (Some(_), Some(_)) | (None, None) => return Err(NetError::InvalidArgument),
        };
        match way {
            Way::Private(to) => {
                let heard = self.stack.0.private.deliver(to, self.private_source(), bytes);
                // As the kernel tells a connected socket of a closed port.
                if heard || self.remote.is_none() {
                    Ok(())
                } else {
                    Err(NetError::ConnectionRefused)
                }
            }
            Way::Real(to) => {
                // A policy may have come since it was connected.
                self.way(to)?;
                let real = self.real.as_ref().ok_or(NetError::RemoteUnreachable)?;
                let attempt = || match self.remote {
                    Some(_) => rustix::net::send(real, bytes, SendFlags::empty()),
                    None => rustix::net::sendto(real, bytes, SendFlags::empty(), &to),
                };
                // At once first: see `can_send`.
                let sent = match attempt() {
                    Err(Errno::AGAIN) => real.try_io(Interest::WRITABLE, || Ok(attempt()?))?,
                    sent => sent?,
                };
                Counters::add(&self.permit.counters().sent, sent);
                Ok(())
            }
        }
    }

    /// Takes a datagram that is there, and says who sent it. What does not fit
    /// into `buffer` is lost.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, also after [`DISCARDS`] that came from elsewhere than where
    /// it is connected to: [`poll_receive_ready`](Self::poll_receive_ready) is
    /// ready then. What the network said, as [`NetError::ConnectionRefused`].
    pub(crate) fn try_receive(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), NetError> {
        if let Some((_, mailbox)) = &self.private {
            while let Some((from, bytes)) = mailbox.take() {
                if self.is_wanted(from) {
                    let length = bytes.len().min(buffer.len());
                    buffer[..length].copy_from_slice(&bytes[..length]);
                    return Ok((length, from));
                }
            }
        }
        let Some(real) = self.heard() else { return Err(NetError::WouldBlock) };
        for _ in 0..DISCARDS {
            let (length, from) = real.try_recv_from(buffer)?;
            // Some may have come before it was connected.
            if self.is_wanted(from) {
                Counters::add(&self.permit.counters().received, length);
                return Ok((length, from));
            }
        }
        Err(NetError::WouldBlock)
    }

    fn is_wanted(&self, from: SocketAddr) -> bool {
        self.remote().is_none_or(|remote| is_same(remote, from))
    }

    /// The system's socket, unless nothing that comes there is wanted.
    fn heard(&self) -> Option<&tokio::net::UdpSocket> {
        self.real.as_ref().filter(|_| !matches!(self.remote, Some(Way::Private(_))))
    }

    /// Ready when something may have come.
    pub(crate) fn poll_receive_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        let private = self.private.as_ref().map(|(_, mailbox)| mailbox.poll_ready(context));
        let real = self.heard().map(|real| real.poll_recv_ready(context));
        if private.is_some_and(|ready| ready.is_ready())
            || real.is_some_and(|ready| ready.is_ready())
        {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Ready when something may be sent.
    pub(crate) fn poll_send_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        match &self.real {
            Some(real) => real.poll_send_ready(context).map(drop),
            None => Poll::Ready(()),
        }
    }

    /// Whether something can be sent at once. (The runtime hears of a new socket
    /// only later that it is ready.)
    pub(crate) fn can_send(&self) -> bool {
        let Some(real) = &self.real else { return true };
        let mut fds = [PollFd::new(real, PollFlags::OUT)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
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
    use krustlet_protocol::PodNetwork;

    use super::*;

    /// A socket bound to the wildcard, and where it is really.
    fn bound() -> (UdpSocket, SocketAddr) {
        let stack = Stack::default();
        // Really there is no pod with this address; it is one that any machine has.
        let addresses = vec![Family::V4.localhost()];
        stack.set(PodNetwork { addresses, ..PodNetwork::default() });
        let socket = stack.udp(Family::V4).unwrap();
        let real = socket.real.as_ref().unwrap().local_addr().unwrap();
        (socket, real)
    }

    #[tokio::test]
    async fn a_flood_of_what_is_not_wanted_is_thrown_away_in_turns() {
        let (mut socket, real) = bound();
        let [flood, remote] = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.remote = Some(Way::Real(remote.local_addr().unwrap()));
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
    async fn who_is_connected_within_the_pod_does_not_hear_the_network() {
        let (mut socket, real) = bound();
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

    #[test]
    fn flow_and_scope_do_not_make_another_address() {
        let address = |port, flow, scope| {
            std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), port, flow, scope).into()
        };
        assert!(is_same(address(1, 2, 3), address(1, 0, 0)));
        assert!(!is_same(address(1, 0, 0), address(2, 0, 0)));
    }
}
