//! Datagram sockets that the agent bound for a container's port: on the node, for a
//! `hostPort` of UDP, and at the node's address where the pod shares it.
//!
//! ```text
//! peer ──▶ node's address:hostPort ──▶ Hearing ─┐
//! peer ──▶ pod's address:port ──────────────────┴─▶ the guest's socket
//!      ◀── by the way he came, from where he asked (peers.rs) ──┘
//! ```
//!
//! One is heard only while a guest's socket is bound to its port. What came before
//! is thrown away then: nobody heard it. In a pod that shares the node's address it
//! stands in for a socket of the pod's own, which could not be bound there; one at all
//! addresses makes room for a socket of a guest of the node's network at one of them.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket as Bound},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Instant,
};

use rustix::{io::Errno, net::sockopt::set_socket_reuseaddr};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    NetError,
    handed::Which,
    memory::SocketMemory,
    parcel::{self, Parcel},
    peers::{Came, Peers},
    place::Family,
    resting::{Idle, Owner, Resting},
};

/// Datagrams that may have come while nobody heard them; as many as fit into a
/// socket's buffer, of Linux's default size, and some more.
const STALE: usize = 1024;

/// Keeps a container's sockets usable; when it is dropped they are closed.
pub(super) type Kept = Owner<Bound>;

/// Where a socket is bound, and itself for the runtime: another handle of it, so that
/// it is not closed where the runtime does not take it.
fn hear(socket: &Bound) -> io::Result<(SocketAddr, UdpSocket)> {
    Ok((socket.local_addr()?, UdpSocket::from_std(socket.try_clone()?)?))
}

/// Those of one pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosted(Resting<Bound>);

/// One that is heard; idle again when dropped.
#[derive(Debug)]
struct Hearing {
    /// Taken by the end only.
    socket: Option<UdpSocket>,
    /// Where it was bound.
    at: SocketAddr,
    port: u16,
    owner: Weak<()>,
    home: Hosted,
}

/// Those that one socket of a guest hears, and who came by them.
#[derive(Debug)]
pub(super) struct Ways {
    heard: Vec<Hearing>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    peers: Peers,
    /// Which way is asked first.
    turn: usize,
}

impl Hosted {
    /// Takes sockets over, each with the container port it is for.
    ///
    /// # Errors
    ///
    /// What the system said about one of them.
    pub(super) fn add(&self, sockets: Vec<(u16, Bound)>) -> io::Result<Kept> {
        let kept = self.0.owner();
        for (port, socket) in sockets {
            socket.set_nonblocking(true)?;
            parcel::tell_destinations(&socket, Family::of(socket.local_addr()?.ip()))?;
            self.0.put(Idle { port, socket, owner: kept.mark() });
        }
        Ok(kept)
    }

    /// Binds a socket of the pod's own. Where one that nobody hears has its port at
    /// all addresses, what comes to this one is no more that one's.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub(super) fn make_room(&self, socket: &OwnedFd, at: SocketAddr) -> io::Result<()> {
        let error = match rustix::net::bind(socket, &at) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let idle = self.0.all();
        let is_around = |local: SocketAddr| {
            local.ip().is_unspecified()
                && local.port() == at.port()
                && local.is_ipv4() == at.is_ipv4()
        };
        let around: Vec<_> = idle
            .iter()
            .filter(|one| one.port == at.port())
            .map(|one| &one.socket)
            .filter(|one| one.local_addr().is_ok_and(is_around))
            .collect();
        if error != Errno::ADDRINUSE || around.is_empty() {
            return Err(error.into());
        }
        Ok(bind_beside(socket, at, &around)?)
    }

    /// Hears all that are for a port and wanted, for a pod whose sockets have this
    /// memory.
    ///
    /// # Errors
    ///
    /// What the system said about one of them; then all are idle again.
    pub(super) fn hear(
        &self,
        port: u16,
        which: Which,
        memory: &Arc<SocketMemory>,
    ) -> io::Result<Ways> {
        let mut wanted = self.0.take(port, which).into_iter();
        let mut ways = Ways::new(memory);
        while let Some(one) = wanted.next() {
            throw_away(&one.socket);
            match hear(&one.socket) {
                Ok((at, socket)) => {
                    let (port, owner) = (one.port, one.owner);
                    let (socket, home) = (Some(socket), self.clone());
                    ways.heard.push(Hearing { socket, at, port, owner, home });
                }
                Err(error) => {
                    // Those that are heard already put themselves back.
                    self.0.all().extend(std::iter::once(one).chain(wanted));
                    return Err(error);
                }
            }
        }
        Ok(ways)
    }
}

/// Binds a socket beside others that allow it for the moment. Whoever allows it too
/// could come in between, and nobody else could then bind there.
///
/// (Linux, `udp_lib_lport_inuse` in `net/ipv4/udp.c`, looks at `SO_REUSEADDR` of both
/// when one is bound, and never again.)
fn bind_beside(socket: &OwnedFd, at: SocketAddr, others: &[&Bound]) -> rustix::io::Result<()> {
    let allow = |is_allowed| {
        others.iter().try_for_each(|one| set_socket_reuseaddr(one, is_allowed))?;
        set_socket_reuseaddr(socket, is_allowed)
    };
    let bound = allow(true).and_then(|()| rustix::net::bind(socket, &at));
    allow(false)?;
    bound
}

/// Connects a socket no more that was bound there. The kernel lets go of a port that
/// it chose itself (`__udp_disconnect` in `net/ipv4/udp.c`).
fn disconnect(socket: impl AsFd, at: SocketAddr) -> io::Result<()> {
    match rustix::net::getpeername(&socket) {
        Err(Errno::NOTCONN) | Ok(None) => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(Some(_)) => {}
    }
    rustix::net::connect_unspec(&socket)?;
    let now = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    if now.port() != at.port() {
        rustix::net::bind(&socket, &at)?;
    }
    Ok(())
}

/// Whether the system said that nothing leaves from the address that is to send: it is
/// the machine's no more, or nothing leads from there to the peer. (Linux,
/// `ip_route_output_key_hash_rcu` in `net/ipv4/route.c`, and `ip6_datagram_send_ctl` in
/// `net/ipv6/datagram.c`.)
fn is_no_way(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::INVAL | Errno::ADDRNOTAVAIL | Errno::NETUNREACH))
}

/// Takes a datagram that came to a socket.
///
/// # Errors
///
/// As [`parcel::receive`].
pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Parcel, NetError> {
    Ok(socket.try_io(Interest::READABLE, || parcel::receive(socket, buffer))?)
}

/// Empties a socket's buffer.
fn throw_away(socket: &Bound) {
    for _ in 0..STALE {
        match socket.recv_from(&mut [0; 1]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // One that the network told while it was connected comes before the rest.
            Ok(_) | Err(_) => {}
        }
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        let Some(socket) = self.socket.take() else { return };
        // It fails only where the runtime is gone, and then nothing is needed.
        let Ok(socket) = socket.into_std() else { return };
        // It may have stood in for one that was connected. If that fails the next who
        // hears it hears only that peer.
        let _ = disconnect(&socket, self.at);
        self.home.0.put(Idle { port: self.port, socket, owner: self.owner.clone() });
    }
}

impl Ways {
    /// None yet.
    pub(super) fn new(memory: &Arc<SocketMemory>) -> Self {
        let state = State { peers: Peers::new(memory), turn: 0 };
        Self { heard: Vec::new(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heard.is_empty()
    }

    fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        self.heard.iter().filter_map(|hearing| hearing.socket.as_ref())
    }

    fn socket(&self, index: usize) -> Option<&UdpSocket> {
        self.heard.get(index)?.socket.as_ref()
    }

    /// The one by which what goes to an address leaves, where these stand in for the
    /// pod's own socket: from the loopback if it goes there, else not.
    pub(super) fn outlet(&self, to: IpAddr) -> Option<&UdpSocket> {
        let leads = |ip: IpAddr| ip.is_unspecified() || ip.is_loopback() == to.is_loopback();
        let best = self.at_their_port().find(|(ip, _)| leads(*ip));
        best.or_else(|| self.at_their_port().next()).map(|(_, socket)| socket)
    }

    /// Whether these are where a socket of the pod's own would be bound.
    pub(super) fn stand_in_at(&self, own: IpAddr) -> bool {
        self.at_their_port().any(|(ip, _)| ip.is_unspecified() || ip == own)
    }

    /// Those that have the port that they are for, and where.
    fn at_their_port(&self) -> impl Iterator<Item = (IpAddr, &UdpSocket)> {
        self.heard.iter().filter_map(|hearing| {
            let socket = hearing.socket.as_ref()?;
            let local = socket.local_addr().ok()?;
            (local.port() == hearing.port).then_some((local.ip(), socket))
        })
    }

    /// Connects none of them any more.
    pub(super) fn disconnect(&self) -> io::Result<()> {
        let all = self.heard.iter().map(|hearing| hearing.at);
        for (socket, at) in self.sockets().zip(all) {
            disconnect(socket, at)?;
        }
        Ok(())
    }

    /// The order in which ways are asked this time: the pod's own, and these.
    pub(super) fn turns(&self) -> impl Iterator<Item = Option<usize>> + use<> {
        let count = self.heard.len() + 1;
        let first = self.state().turn % count;
        (0..count).map(move |offset| ((first + offset) % count).checked_sub(1))
    }

    /// The next time others than this one are asked first.
    pub(super) fn had_its_turn(&self, way: Option<usize>) {
        if !self.is_empty() {
            self.state().turn = way.map_or(0, |index| index + 1) + 1;
        }
    }

    /// Takes a datagram that came by one of these.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is none; what the system said.
    pub(super) fn receive(&self, index: usize, buffer: &mut [u8]) -> Result<Parcel, NetError> {
        receive(self.socket(index).ok_or(NetError::WouldBlock)?, buffer)
    }

    /// Sends an answer by the way its peer came; `own` is the pod's own. Where nothing
    /// leaves by that any more the peer is forgotten.
    ///
    /// # Errors
    ///
    /// `WouldBlock`; what the system said.
    pub(super) fn answer(
        &self,
        own: Option<&UdpSocket>,
        came: Came,
        bytes: &[u8],
    ) -> Result<usize, NetError> {
        let Came { from, by, to } = came;
        let socket = by.map_or(own, |index| self.socket(index));
        let socket = socket.ok_or(NetError::RemoteUnreachable)?;
        let attempt = || parcel::send(socket, bytes, from, to);
        // At once first: the runtime hears of a new socket only later that it is
        // ready.
        let sent = match attempt() {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => {
                socket.try_io(Interest::WRITABLE, attempt)
            }
            sent => sent,
        };
        if sent.as_ref().is_err_and(is_no_way) {
            self.came_otherwise(from);
        }
        Ok(sent?)
    }

    /// Ready when something may have come by one of these.
    pub(super) fn poll_receive(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut is_ready = false;
        for socket in self.sockets() {
            // What went wrong is found by whoever receives.
            is_ready |= socket.poll_recv_ready(context).is_ready();
        }
        if is_ready { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready when each of these takes something.
    pub(super) fn poll_send(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut is_ready = true;
        for socket in self.sockets() {
            // As there.
            is_ready &= socket.poll_send_ready(context).is_ready();
        }
        if is_ready { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether each of these takes something now.
    pub(super) fn can_send(&self, takes: impl Fn(&UdpSocket) -> bool) -> bool {
        self.sockets().all(takes)
    }

    /// Somebody was let in who came this way.
    pub(super) fn came(&self, came: Came) {
        self.state().peers.came(came, Instant::now());
    }

    /// Somebody came as everybody does who is not remembered here.
    pub(super) fn came_otherwise(&self, peer: SocketAddr) {
        self.state().peers.forget(peer);
    }

    /// How somebody came, if he is to be answered that way.
    pub(super) fn to(&self, peer: SocketAddr) -> Option<Came> {
        self.state().peers.answers(peer, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr, time::Duration};

    use krustlet_protocol::PodNetwork;
    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::{
        super::{NetError, Options, Stack},
        *,
    };

    /// A pod at an address that any machine has.
    fn stack(is_host: bool) -> Stack {
        let (stack, addresses) = (Stack::default(), vec![Family::V4.localhost()]);
        stack.set(PodNetwork { addresses, is_host, ..PodNetwork::default() }, None);
        stack
    }

    /// A socket of the node's at all its addresses, and its port.
    fn of_the_node() -> (Bound, u16) {
        let socket = Bound::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    fn free_port() -> u16 {
        let (_socket, port) = of_the_node();
        port
    }

    fn bind(stack: &Stack, port: u16) -> Result<super::super::UdpSocket, NetError> {
        let address = SocketAddr::new(Family::V4.wildcard(), port);
        stack.bind_udp(stack.permit().unwrap(), Options::default(), address)
    }

    fn client() -> Bound {
        let client = Bound::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }

    #[tokio::test]
    async fn nothing_is_heard_that_came_before_and_answers_go_out_where_they_were_asked_for() {
        let (stack, (socket, port)) = (stack(false), of_the_node());
        let (own, client, same) = (free_port(), client(), socket.try_clone().unwrap());
        let claim = stack.hand(Vec::new(), vec![(own, socket)]).unwrap();
        let at = |last| SocketAddr::from(([127, 0, 0, last], port));
        for turn in 0..2 {
            client.send_to(b"early", at(1)).unwrap();
            let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
            let there = rustix::event::poll(&mut [PollFd::new(&same, PollFlags::IN)], Some(&limit));
            assert_eq!(there, Ok(1));
            let guest = bind(&stack, own).unwrap();
            let other = bind(&stack, free_port()).unwrap();
            for last in [1, 9] {
                let mut buffer = [0; 8];
                client.send_to(&[last], at(last)).unwrap();
                let (length, from) = guest.receive(&mut buffer).await.unwrap();
                assert_eq!((&buffer[..length], from), (&[last][..], client.local_addr().unwrap()));
                guest.send(b"answer", Some(from)).await.unwrap();
                assert_eq!(client.recv_from(&mut buffer).unwrap(), (6, at(last)), "{turn}");
            }
            assert_eq!(other.try_receive(&mut [0; 8]).unwrap_err(), NetError::WouldBlock);
        }
        let told = stack.report();
        assert_eq!((told.received_bytes, told.sent_bytes, told.sockets), (4, 24, 0));
        Bound::bind(at(1)).expect_err("its container is there still");
        drop((claim, same));
        Bound::bind(at(1)).expect("its container is gone");
    }

    #[tokio::test]
    async fn who_was_heard_of_last_within_the_pod_is_answered_there() {
        let (stack, (socket, port)) = (stack(false), of_the_node());
        let (own, client) = (free_port(), client());
        let _claim = stack.hand(Vec::new(), vec![(own, socket)]).unwrap();
        let guest = bind(&stack, own).unwrap();
        // Of one address, on two loopbacks.
        let peer = client.local_addr().unwrap();
        let permit = stack.permit().unwrap();
        let inside = stack.bind_udp(permit, Options::default(), peer).unwrap();
        let mut buffer = [0; 8];
        client.send_to(b"node", SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        assert_eq!(guest.receive(&mut buffer).await.unwrap(), (4, peer));
        guest.try_send(b"node", Some(peer)).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap().0, 4);
        inside.try_send(b"pod", Some(SocketAddr::from(([127, 0, 0, 1], own)))).unwrap();
        assert_eq!(guest.receive(&mut buffer).await.unwrap(), (3, peer));
        guest.try_send(b"pod", Some(peer)).unwrap();
        assert_eq!(inside.receive(&mut buffer).await.unwrap().0, 3);
    }

    #[test]
    fn a_port_that_could_not_be_heard_is_kept() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let (hosted, (socket, port)) = (Hosted::default(), of_the_node());
        let at = socket.local_addr().unwrap();
        let _kept = hosted.add(vec![(port, socket)]).unwrap();
        // One that has ended takes no sockets.
        let ended = runtime();
        let handle = ended.handle().clone();
        drop(ended);
        let within = handle.enter();
        hosted.hear(port, Which::All, &Arc::default()).unwrap_err();
        drop(within);
        Bound::bind(at).expect_err("it is the pod's still");
        runtime().block_on(async {
            let ways = hosted.hear(port, Which::All, &Arc::default()).unwrap();
            assert_eq!(ways.sockets().count(), 1);
        });
    }

    #[tokio::test]
    async fn an_error_of_before_leaves_nothing_to_be_heard() {
        let socket = Bound::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = socket.local_addr().unwrap();
        rustix::net::connect(&socket, &SocketAddr::from(([127, 0, 0, 1], free_port()))).unwrap();
        socket.send(b"to nobody").unwrap();
        let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
        let told = rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::ERR)], Some(&limit));
        assert_eq!(told, Ok(1));
        disconnect(&socket, at).unwrap();
        client().send_to(b"early", at).unwrap();
        let hosted = Hosted::default();
        let _kept = hosted.add(vec![(at.port(), socket)]).unwrap();
        let ways = hosted.hear(at.port(), Which::All, &Arc::default()).unwrap();
        let client = client();
        client.send_to(b"wanted", at).unwrap();
        poll_fn(|context| ways.poll_receive(context)).await;
        let mut buffer = [0; 8];
        let Parcel { length, from, .. } = ways.receive(0, &mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"wanted"[..], client.local_addr().unwrap()));
    }

    #[tokio::test]
    async fn who_asked_at_an_address_that_is_gone_is_answered_as_others_are() {
        let hosted = Hosted::default();
        let (socket, port) = of_the_node();
        let _kept = hosted.add(vec![(port, socket)]).unwrap();
        let ways = hosted.hear(port, Which::All, &Arc::default()).unwrap();
        let client = client();
        let from = client.local_addr().unwrap();
        // Of a range for documents (RFC 5737).
        for (to, is_known) in [("127.0.0.9", true), ("198.51.100.7", false)] {
            let came = Came { from, by: Some(0), to: Some(to.parse().unwrap()) };
            ways.came(came);
            assert_eq!(ways.to(from), Some(came));
            assert_eq!(ways.answer(None, came, b"answer").is_ok(), is_known, "{to}");
            assert_eq!(ways.to(from), Some(came).filter(|_| is_known), "{to}");
        }
    }

    #[tokio::test]
    async fn what_stands_in_for_a_pods_own_socket_is_nobody_elses() {
        let (stack, (socket, port)) = (stack(true), of_the_node());
        let _claim = stack.hand(Vec::new(), vec![(port, socket)]).unwrap();
        let (guest, client) = (bind(&stack, port).unwrap(), client());
        for last in [1, 9] {
            let (at, mut buffer) = (SocketAddr::from(([127, 0, 0, last], port)), [0; 8]);
            Bound::bind(at).expect_err("it is the pod's");
            client.send_to(b"who?", at).unwrap();
            let (length, from) = guest.receive(&mut buffer).await.unwrap();
            guest.send(&buffer[..length], Some(from)).await.unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (4, at));
        }
        assert_eq!(bind(&stack, port).unwrap_err(), NetError::AddressInUse);
    }

    #[tokio::test]
    async fn what_stands_in_sends_unasked_and_is_connected_until_the_next() {
        let (stack, client, other) = (stack(true), client(), client());
        let network = PodNetwork { shares_loopback: true, ..(*stack.network()).clone() };
        stack.set(network, None);
        let (socket, port) = of_the_node();
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let _claim = stack.hand(Vec::new(), vec![(port, socket)]).unwrap();
        let (to, mut buffer) = (client.local_addr().unwrap(), [0; 8]);
        for _ in 0..2 {
            let mut guest = bind(&stack, at.port()).unwrap();
            guest.send(b"unasked", Some(to)).await.unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (7, at));
            other.send_to(b"other", at).unwrap();
            assert_eq!(guest.receive(&mut buffer).await.unwrap(), (5, other.local_addr().unwrap()));
            guest.connect(Some(to)).unwrap();
            assert_eq!(guest.address(), at);
            guest.send(b"asked", None).await.unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (5, at));
            other.send_to(b"x", at).unwrap();
            client.send_to(b"answer", at).unwrap();
            assert_eq!(guest.receive(&mut buffer).await.unwrap(), (6, to));
        }
    }

    #[tokio::test]
    async fn who_means_one_address_of_the_node_has_it_beside_the_one_at_all() {
        let stack = stack(true);
        let network = PodNetwork { shares_loopback: true, ..(*stack.network()).clone() };
        stack.set(network, None);
        let (socket, port) = of_the_node();
        let _claim = stack.hand(Vec::new(), vec![(port, socket)]).unwrap();
        let (client, mut buffer) = (client(), [0; 8]);
        let at = |last| SocketAddr::from(([127, 0, 0, last], port));
        let one = |last| stack.bind_udp(stack.permit().unwrap(), Options::default(), at(last));
        let guests = [1, 9].map(|last| (at(last), one(last).unwrap()));
        for (at, guest) in &guests {
            client.send_to(b"who?", at).unwrap();
            let (length, from) = guest.receive(&mut buffer).await.unwrap();
            guest.send(&buffer[..length], Some(from)).await.unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (4, *at));
        }
        // As ever, nobody else is there, not even who would share it.
        assert_eq!(one(1).unwrap_err(), NetError::AddressInUse);
        for last in [1, 2] {
            let family = rustix::net::AddressFamily::INET;
            let other = rustix::net::socket(family, rustix::net::SocketType::DGRAM, None).unwrap();
            set_socket_reuseaddr(&other, true).unwrap();
            assert_eq!(rustix::net::bind(&other, &at(last)), Err(Errno::ADDRINUSE));
        }
        drop(guests);
        // All are one guest's.
        let _all = bind(&stack, port).unwrap();
        assert_eq!(one(1).unwrap_err(), NetError::AddressInUse);
    }
}
