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
        handed::Which,
        hosted::{Hosted, Ways},
        pace::Turn,
        parcel,
        place::{self, Binding, Family},
        policy::{Answers, For},
    },
    UdpSocket,
};

/// As for TCP.
const TRIES: usize = 16;

fn bind_real(hosted: &Hosted, ip: IpAddr, port: u16) -> Result<tokio::net::UdpSocket, NetError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if ip.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    hosted.make_room(&socket, SocketAddr::new(ip, port))?;
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
        let family = Family::of(address.ip());
        let ways = match Which::for_address(&network, address.ip()) {
            Some(which) if address.port() != 0 => {
                self.0.hosted.hear(address.port(), which, self.memory())?
            }
            Some(_) | None => Ways::new(self.memory()),
        };
        // Where the pod has the node's address what was bound there is its own.
        let is_stood_in = network.is_host && real.is_some_and(|own| ways.stand_in_at(own));
        if let Some(own) = ways.outlet(address.ip()).filter(|_| is_stood_in) {
            options.apply(own, family)?;
        }
        let home = real.filter(|_| !is_stood_in);
        let hears_all = network.shares_loopback || home.is_none_or(|ip| !ip.is_unspecified());
        let mut tries = TRIES;
        let (real, private, port) = loop {
            let mut port = address.port();
            let real = match home.map(|ip| bind_real(&self.0.hosted, ip, port)).transpose() {
                // A machine without IPv6; the pod's own loopback has it.
                Err(NetError::NotSupported) if private.is_some() => None,
                real => real?,
            };
            if let Some(real) = &real {
                options.apply(real, family)?;
                if network.is_host {
                    // Where it is bound others' links lead to it.
                    parcel::tell_destinations(real, family)?;
                }
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
        // At any port it is a client.
        let is_server = address.ip().is_unspecified() && address.port() != 0;
        if is_server && real.is_none() && ways.is_empty() {
            self.is_heard_within_alone(address);
        }
        Ok(UdpSocket {
            stack: self.clone(),
            address: SocketAddr::new(address.ip(), port),
            real,
            home,
            hears_all,
            private,
            ways,
            is_stood_in,
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
