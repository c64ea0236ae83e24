//! Sockets of TCP that the agent bound for a container's port: in host mode, where
//! the pod shares the node's address, and for a `hostPort`.
//!
//! One listens only while something in the pod does, so that nobody is let in
//! before: to a port where nobody listens a connection is refused, not kept
//! waiting. Meanwhile it keeps its address from others.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener as Bound},
    os::fd::OwnedFd,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use krustlet_protocol::PodNetwork;
use rustix::net::{
    Shutdown,
    sockopt::{set_socket_reuseaddr, socket_acceptconn},
};
use tokio::net::{TcpListener, TcpStream};

use super::{
    hosted::Kept,
    listeners::{Listed, Listeners},
    place::Family,
    resting::{Idle, Owner, Resting},
};

/// Keeps a container's sockets usable; when it is dropped they are closed.
#[derive(Debug)]
pub(crate) struct Claim {
    first: Option<u16>,
    _owner: Owner<Bound>,
    datagrams: Option<Kept>,
}

/// Has a socket listen, by another handle of it: so it is not closed where the runtime
/// does not take it.
fn listen(socket: &Bound, backlog: i32) -> io::Result<TcpListener> {
    let socket = socket.try_clone()?;
    // Old connections do not keep it from its address.
    set_socket_reuseaddr(&socket, true)?;
    rustix::net::listen(&socket, backlog)?;
    TcpListener::from_std(socket)
}

/// Which of those that are for a port.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    All,
    Of(Family),
    /// Bound to this address.
    At(IpAddr),
}

impl Which {
    /// Those that stand for an address which a guest is bound to, wherever they are
    /// bound; none for a loopback of the pod's own. A pod in the node's network means
    /// what it says: another address than the wildcard is that one.
    pub(super) fn for_address(network: &PodNetwork, ip: IpAddr) -> Option<Self> {
        if network.shares_loopback && !ip.is_unspecified() {
            Some(Self::At(ip))
        } else if ip.is_loopback() {
            None
        } else {
            Some(Self::Of(Family::of(ip)))
        }
    }

    /// Whether it does not matter where they are bound.
    pub(super) fn is_anywhere(self) -> bool {
        match self {
            Self::All | Self::Of(_) => true,
            Self::At(_) => false,
        }
    }

    /// Whether one that is bound there is among them.
    pub(super) fn has(self, local: SocketAddr) -> bool {
        match self {
            Self::All => true,
            Self::Of(family) => Family::of(local.ip()) == family,
            Self::At(ip) => local.ip() == ip,
        }
    }
}

/// Those of one pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Handed(Resting<Bound>);

/// One that is listened on; at rest again when dropped.
#[derive(Debug)]
pub(super) struct Listening {
    /// Taken by the end only. Nobody else has it once it is not listed any more.
    listener: Option<Arc<TcpListener>>,
    listed: Option<Listed>,
    port: u16,
    owner: Weak<()>,
    home: Handed,
}

impl Handed {
    /// Takes sockets over, each with the container port it is for.
    ///
    /// # Errors
    ///
    /// What the system said about one of them.
    pub(super) fn add(&self, sockets: Vec<(u16, Bound)>) -> io::Result<Claim> {
        let owner = self.0.owner();
        let first = sockets.first().map(|(port, _)| *port);
        for (port, socket) in sockets {
            socket.set_nonblocking(true)?;
            rest(&socket);
            self.0.put(Idle { port, socket, owner: owner.mark() });
        }
        Ok(Claim { first, _owner: owner, datagrams: None })
    }

    /// Whether one is bound to this very address, or is for its port and family
    /// at all.
    pub(super) fn has(&self, address: SocketAddr, for_port: bool) -> bool {
        let family = Family::of(address.ip());
        let bound = |one: &Idle<Bound>| {
            one.local().is_some_and(|local| {
                let is_its = one.port == address.port() && Family::of(local.ip()) == family;
                for_port && is_its || local == address
            })
        };
        self.0.all().iter().any(bound)
    }

    /// Listens on all that are for a port and wanted, with room for so many
    /// connections.
    ///
    /// # Errors
    ///
    /// What the system said of one of them; then all are at rest again.
    pub(super) fn listen(
        &self,
        port: u16,
        which: Which,
        backlog: i32,
    ) -> io::Result<Vec<Listening>> {
        let mut wanted = self.0.take(port, which).into_iter();
        let mut listening = Vec::new();
        while let Some(one) = wanted.next() {
            let listener = match listen(&one.socket, backlog) {
                Ok(listener) => Some(Arc::new(listener)),
                Err(error) => {
                    rest(&one.socket);
                    // Those that listen already put themselves back.
                    self.0.all().extend(std::iter::once(one).chain(wanted));
                    return Err(error);
                }
            };
            let Idle { port, owner, .. } = one;
            let (listed, home) = (None, self.clone());
            listening.push(Listening { listener, listed, port, owner, home });
        }
        Ok(listening)
    }

    /// Other descriptors of so many that nobody listens on now, each with the port it
    /// is for: what is attached to one stays with it.
    ///
    /// # Errors
    ///
    /// When there is no further descriptor.
    pub(super) fn lend(&self, most: usize) -> io::Result<Vec<(u16, OwnedFd)>> {
        let lend = |one: &Idle<Bound>| Ok((one.port, one.socket.try_clone()?.into()));
        self.0.all().iter().take(most).map(lend).collect()
    }
}

impl Claim {
    /// Those of datagrams belong to the same container.
    pub(super) fn with(mut self, datagrams: Kept) -> Self {
        self.datagrams = Some(datagrams);
        self
    }

    /// The container port that the first of them is for.
    pub(crate) fn first_port(&self) -> Option<u16> {
        self.first
    }
}

/// Stops listening; the socket keeps its address. (Linux, `inet_shutdown` of a
/// listening socket in `net/ipv4/af_inet.c`.)
fn rest(socket: &Bound) {
    let before = socket.local_addr();
    // Of one that does not listen all connections would be at their end as they are
    // accepted later (`inet_shutdown`: `sk_shutdown`).
    if socket_acceptconn(socket) == Ok(true) {
        let _ = rustix::net::shutdown(socket, Shutdown::Read);
    }
    // A port that the kernel had chosen is let go with it (`tcp_set_state`), which
    // the socket's address does not show. One that is kept cannot be bound again,
    // and where somebody was quicker listening will say so.
    if let Ok(before) = before {
        let _ = rustix::net::bind(socket, &before);
    }
    // Else whoever allows it too may bind to the address of one that does not
    // listen (`inet_bind_conflict` in `net/ipv4/inet_connection_sock.c`). If it
    // fails, listening will say so.
    let _ = set_socket_reuseaddr(socket, false);
}

impl Listening {
    /// Where it is bound.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.listener.as_ref()?.local_addr().ok()
    }

    /// Has it among those that the agent may ask for.
    pub(super) fn list(&mut self, listeners: &Listeners) {
        let listed = self.listener.as_ref().map(|listener| listeners.add(listener, self.port));
        self.listed = listed;
    }

    /// The container's port that it is for.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn poll_accept(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        match &self.listener {
            Some(listener) => listener.poll_accept(context),
            None => Poll::Pending,
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        drop(self.listed.take());
        let Some(listener) = self.listener.take().and_then(Arc::into_inner) else { return };
        // It fails only where the runtime is gone, and then nothing is needed.
        let Ok(socket) = listener.into_std() else { return };
        rest(&socket);
        self.home.0.put(Idle { port: self.port, socket, owner: self.owner.clone() });
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_socket_keeps_its_address_while_nobody_listens() {
        for port in [0, free_port()] {
            let socket = Bound::bind(("127.0.0.1", port)).unwrap();
            let address = socket.local_addr().unwrap();
            let handed = Handed::default();
            let claim = handed.add(vec![(80, socket)]).unwrap();
            assert!(handed.has(address, false) && !handed.has(address_of_port(80), false));
            assert!(handed.has(address_of_port(80), true));
            for _ in 0..3 {
                assert!(TcpStream::connect(address).is_err(), "nobody listens");
                if port != 0 {
                    let other = Bound::bind(address).unwrap_err();
                    assert_eq!(other.kind(), io::ErrorKind::AddrInUse);
                }
                assert!(handed.listen(81, Which::All, 8).unwrap().is_empty());
                let listening = handed.listen(80, Which::All, 8).unwrap();
                assert_eq!(listening[0].local(), Some(address));
                assert!(handed.listen(80, Which::All, 8).unwrap().is_empty(), "it is in use");
                TcpStream::connect(address).unwrap();
            }
            let last = handed.listen(80, Which::All, 8).unwrap();
            drop(claim);
            TcpStream::connect(address).unwrap();
            drop(last);
            assert!(!handed.has(address, false), "its container is gone");
        }
    }

    #[tokio::test]
    async fn what_comes_after_a_rest_has_not_ended() {
        let socket = Bound::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        // More than once, and also if it has stopped already, as one that was lent.
        rest(&socket);
        rest(&socket);
        let handed = Handed::default();
        let _claim = handed.add(vec![(80, socket)]).unwrap();
        let listening = handed.listen(80, Which::All, 8).unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let (accepted, _) =
            std::future::poll_fn(|context| listening[0].poll_accept(context)).await.unwrap();
        let nothing = accepted.into_std().unwrap().read(&mut [0]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn each_family_has_its_own() {
        let bound = ["127.0.0.1:0", "[::1]:0"].map(|at| Bound::bind(at).unwrap());
        let addresses = bound.each_ref().map(|socket| socket.local_addr().unwrap());
        let handed = Handed::default();
        let _claim = handed.add(bound.into_iter().map(|socket| (80, socket)).collect()).unwrap();
        let listen = |family| handed.listen(80, Which::Of(family), 8).unwrap();
        let six = listen(Family::V6);
        assert!(listen(Family::V6).is_empty());
        let four = listen(Family::V4);
        assert_eq!([&four, &six].map(|all| all[0].local()), addresses.map(Some));
        drop((four, six));
        assert_eq!(handed.listen(80, Which::All, 8).unwrap().len(), 2);
        let at = |ip: &str| handed.listen(80, Which::At(ip.parse().unwrap()), 8).unwrap();
        assert_eq!([at("::1"), at("127.0.0.1"), at("127.0.0.2")].map(|all| all.len()), [1, 1, 0]);
    }

    #[tokio::test]
    async fn where_one_cannot_be_listened_on_none_is_lost() {
        let (first, last) =
            (Bound::bind("127.0.0.1:0").unwrap(), Bound::bind("127.0.0.1:0").unwrap());
        // A connection cannot become a listener.
        let peer = Bound::bind("127.0.0.1:0").unwrap();
        let connection = TcpStream::connect(peer.local_addr().unwrap()).unwrap();
        let wrong = Bound::from(std::os::fd::OwnedFd::from(connection));
        let addresses = [&first, &last].map(|socket| socket.local_addr().unwrap());
        let handed = Handed::default();
        let _claim = handed.add(vec![(80, first), (80, last)]).unwrap();
        let owner = handed.0.all()[0].owner.clone();
        handed.0.all().insert(1, Idle { port: 80, socket: wrong, owner });
        handed.listen(80, Which::All, 8).unwrap_err();
        handed.0.all().retain(|one| addresses.contains(&one.socket.local_addr().unwrap()));
        assert!(TcpStream::connect(addresses[0]).is_err(), "it is at rest");
        let listening = handed.listen(80, Which::All, 8).unwrap();
        assert_eq!(listening.len(), 2);
        for address in addresses {
            TcpStream::connect(address).unwrap();
        }
    }

    #[test]
    fn one_that_the_runtime_does_not_take_is_at_rest_again() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let socket = Bound::bind(("127.0.0.1", free_port())).unwrap();
        let address = socket.local_addr().unwrap();
        let handed = Handed::default();
        let _claim = handed.add(vec![(80, socket)]).unwrap();
        // One that has ended takes no sockets.
        let ended = runtime();
        let handle = ended.handle().clone();
        drop(ended);
        let within = handle.enter();
        handed.listen(80, Which::All, 8).unwrap_err();
        drop(within);
        assert!(handed.has(address, false));
        assert!(TcpStream::connect(address).is_err(), "nobody listens");
        Bound::bind(address).expect_err("it is the pod's still");
        runtime().block_on(async {
            assert_eq!(handed.listen(80, Which::All, 8).unwrap().len(), 1);
        });
    }

    fn free_port() -> u16 {
        Bound::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn address_of_port(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }
}
