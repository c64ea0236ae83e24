//! Making a datagram socket of a guest, or of the pod's resolver.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Mutex,
};

use futures::task::AtomicWaker;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::{
    super::{
        NetError, Options, Permit, Stack,
        hosted::Ways,
        pace::Turn,
        place::{self, Binding, Family},
        policy::{Answers, For},
    },
    UdpSocket,
};

/// As for TCP.
const TRIES: usize = 16;

/// `beside` are those that may be at that port already.
fn bind_real(
    ip: IpAddr,
    port: u16,
    beside: Option<&Ways>,
) -> Result<tokio::net::UdpSocket, NetError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if ip.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    let allow = |is_allowed| -> Result<(), NetError> {
        if let Some(beside) = beside
            && beside.allow_beside(port, is_allowed)?
        {
            sockopt::set_socket_reuseaddr(&socket, is_allowed)?;
        }
        Ok(())
    };
    allow(true)?;
    let bound = rustix::net::bind(&socket, &SocketAddr::new(ip, port));
    // Nobody else may be there besides.
    allow(false)?;
    bound?;
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
            place::datagrams(&network, address).inspect_err(|error| self.note(*error))?;
        let home = real;
        let hears_all = network.shares_loopback || home.is_none_or(|ip| !ip.is_unspecified());
        let family = Family::of(address.ip());
        let ways = if address.port() == 0 || address.ip().is_loopback() {
            Ways::default()
        } else {
            self.0.hosted.hear(address.port(), family)?
        };
        // Elsewhere nobody of the node's is at the pod's address.
        let beside = network.is_host.then_some(&ways);
        let mut tries = TRIES;
        let (real, private, port) = loop {
            let mut port = address.port();
            let real = match home.map(|ip| bind_real(ip, port, beside)).transpose() {
                // A machine without IPv6; the pod's own loopback has it.
                Err(NetError::NotSupported) if private.is_some() => None,
                real => real?,
            };
            if let Some(real) = &real {
                options.apply(real, family)?;
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
            break (real, private, port);
        };
        Ok(UdpSocket {
            stack: self.clone(),
            address: SocketAddr::new(address.ip(), port),
            real,
            home,
            hears_all,
            private,
            ways,
            remote: None,
            led: Mutex::default(),
            whom: For::Guest,
            answers: Answers::default(),
            permit,
            reading: Turn::default(),
            writing: Turn::default(),
            waiting: [(); 2].map(|()| AtomicWaker::new()),
        })
    }

    /// A socket at any port of the family, for the pod's resolver.
    ///
    /// # Errors
    ///
    /// As [`bind_udp`](Self::bind_udp); [`NetError::NewSocketLimit`].
    pub(crate) async fn udp(&self, family: Family) -> Result<UdpSocket, NetError> {
        let address = SocketAddr::new(family.wildcard(), 0);
        let socket = self.bind_udp(self.permit_or_room().await?, Options::default(), address)?;
        Ok(UdpSocket { whom: For::Resolver, ..socket })
    }
}
