//! The pod's private loopback: which of its ports are taken, and by whom.
//!
//! `127.0.0.0/8` and `::1` of a pod are not the machine's: connections to them
//! are pipes within the sandbox, and the pod's containers meet there. A port is
//! taken as the kernel takes it: by an address and a number, where a wildcard
//! stands for all addresses of its family. (WASI's IPv6 sockets never take
//! IPv4 along.)

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    NetError,
    memory::SocketMemory,
    pipe::{self, PipeEnd},
    place::Family,
};

/// The ports that are given to who asks for none; Linux's
/// `net.ipv4.ip_local_port_range`.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// Datagrams that may wait at one socket. More are lost, as they may be.
const DATAGRAMS: usize = 256;

/// Bytes of them; Linux's `net.core.rmem_default`. Fewer where others of the pod
/// have taken its [`SocketMemory`].
const DATAGRAM_BYTES: usize = 212_992;

/// Connections of one pod that may wait to be accepted, at all listeners together.
/// Who made one may have let go of it, so that it counts for no socket, and may
/// have written what fits into it: [`LEAST`](super::memory::LEAST) beyond the
/// pod's [`SocketMemory`], which makes 16 MiB of all.
const ARRIVALS: usize = 4096;

/// And at one listener, whatever it asks for: one that never accepts leaves room
/// for others.
const ARRIVALS_OF_ONE: usize = ARRIVALS / 8;

/// Bytes that a datagram takes besides its own: its place in the queue, which
/// may be half empty, and what an allocation costs.
const LETTER: usize = 2 * size_of::<(SocketAddr, Vec<u8>)>() + 16;

/// Ports of one protocol, with what is behind each.
#[derive(Debug)]
struct Ports<T> {
    taken: BTreeMap<(u16, IpAddr), T>,
    /// Where the search for a free port goes on.
    next: u16,
}

impl<T> Default for Ports<T> {
    fn default() -> Self {
        Self { taken: BTreeMap::new(), next: *EPHEMERAL.start() }
    }
}

impl<T> Ports<T> {
    fn is_free(&self, ip: IpAddr, port: u16) -> bool {
        !self.at_port(port).any(|taken| {
            Family::of(taken) == Family::of(ip)
                && (taken == ip || taken.is_unspecified() || ip.is_unspecified())
        })
    }

    fn at_port(&self, port: u16) -> impl Iterator<Item = IpAddr> {
        let first = (port, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let last = (port, IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)));
        self.taken.range(first..=last).map(|((_, ip), _)| *ip)
    }

    /// Takes a port, any if it is 0.
    fn take(&mut self, ip: IpAddr, port: u16, value: T) -> Result<u16, NetError> {
        let port = match port {
            0 => self.any(ip)?,
            port if self.is_free(ip, port) => port,
            _ => return Err(NetError::AddressInUse),
        };
        self.taken.insert((port, ip), value);
        Ok(port)
    }

    fn any(&mut self, ip: IpAddr) -> Result<u16, NetError> {
        let (first, last) = (*EPHEMERAL.start(), *EPHEMERAL.end());
        for _ in EPHEMERAL {
            let port = self.next;
            self.next = if port == last { first } else { port + 1 };
            if self.is_free(ip, port) {
                return Ok(port);
            }
        }
        Err(NetError::AddressInUse)
    }

    /// What is behind an address: what was bound to it, or to all.
    fn find(&self, at: SocketAddr) -> Option<&T> {
        let wildcard = Family::of(at.ip()).wildcard();
        let exact = self.taken.get(&(at.port(), at.ip()));
        exact.or_else(|| self.taken.get(&(at.port(), wildcard)))
    }
}

/// A connection that waits to be accepted.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) end: PipeEnd,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    _place: OwnedSemaphorePermit,
}

/// Where connections wait to be accepted.
type Door = mpsc::Sender<Arrival>;

/// See the module.
#[derive(Debug)]
pub(super) struct Private {
    /// With the queue of whoever listens there.
    tcp: Mutex<Ports<Option<Door>>>,
    udp: Mutex<Ports<Arc<Mailbox>>>,
    /// Places for all who wait to be accepted.
    arrivals: Arc<Semaphore>,
    /// What is under way here, and besides.
    pub(super) memory: Arc<SocketMemory>,
}

impl Default for Private {
    fn default() -> Self {
        let (tcp, udp, memory) = (Mutex::default(), Mutex::default(), Arc::default());
        Self { tcp, udp, arrivals: Arc::new(Semaphore::new(ARRIVALS)), memory }
    }
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Tcp,
    Udp,
}

/// A port that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    private: Arc<Private>,
    protocol: Protocol,
    at: SocketAddr,
}

fn lock<T>(ports: &Mutex<Ports<T>>) -> MutexGuard<'_, Ports<T>> {
    ports.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Private {
    /// Takes a TCP port, any if it is 0.
    ///
    /// # Errors
    ///
    /// [`NetError::AddressInUse`].
    pub(super) fn reserve(self: &Arc<Self>, at: SocketAddr) -> Result<Reservation, NetError> {
        let port = lock(&self.tcp).take(at.ip(), at.port(), None)?;
        let at = SocketAddr::new(at.ip(), port);
        Ok(Reservation { private: Arc::clone(self), protocol: Protocol::Tcp, at })
    }

    /// Takes a UDP port, any if it is 0, and what comes there.
    ///
    /// # Errors
    ///
    /// [`NetError::AddressInUse`].
    pub(super) fn mailbox(
        self: &Arc<Self>,
        at: SocketAddr,
    ) -> Result<(Reservation, Arc<Mailbox>), NetError> {
        let letters = Letters::default();
        let mailbox =
            Arc::new(Mailbox { letters: Mutex::new(letters), memory: Arc::clone(&self.memory) });
        let port = lock(&self.udp).take(at.ip(), at.port(), Arc::clone(&mailbox))?;
        let at = SocketAddr::new(at.ip(), port);
        let reservation = Reservation { private: Arc::clone(self), protocol: Protocol::Udp, at };
        Ok((reservation, mailbox))
    }

    /// The queue of whoever listens at an address.
    fn door(&self, at: SocketAddr) -> Option<Door> {
        lock(&self.tcp).find(at)?.clone()
    }

    /// Connects to whoever listens at an address. Waits while the listener has as
    /// many waiting as it wants, or all of the pod as many as they may.
    ///
    /// # Errors
    ///
    /// [`NetError::ConnectionRefused`] if nobody listens there, or any more.
    pub(super) async fn connect(
        &self,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<PipeEnd, NetError> {
        let door = self.door(to).ok_or(NetError::ConnectionRefused)?;
        // First the listener's place: who waits for that holds none of the pod's.
        let own = door.reserve().await.map_err(|_| NetError::ConnectionRefused)?;
        let place = tokio::select! {
            biased;
            // The semaphore is closed never: it lives as long as this. Both may be
            // dropped.
            () = door.closed() => return Err(NetError::ConnectionRefused),
            place = Arc::clone(&self.arrivals).acquire_owned() => {
                place.map_err(|_| NetError::ConnectionRefused)?
            }
        };
        let (end, other) = pipe::pair(&self.memory);
        own.send(Arrival { end: other, from, to, _place: place });
        Ok(end)
    }

    /// Hands a datagram over; false if nobody is there.
    pub(super) fn deliver(&self, to: SocketAddr, from: SocketAddr, bytes: &[u8]) -> bool {
        let mailbox = lock(&self.udp).find(to).cloned();
        mailbox.is_some_and(|mailbox| {
            mailbox.put(from, bytes);
            true
        })
    }
}

impl Reservation {
    pub(super) fn at(&self) -> SocketAddr {
        self.at
    }

    /// Listens there, with room for so many connections, or as many as one
    /// listener may have.
    pub(super) fn listen(&self, backlog: usize) -> mpsc::Receiver<Arrival> {
        let (sender, receiver) = mpsc::channel(backlog.clamp(1, ARRIVALS_OF_ONE));
        let key = (self.at.port(), self.at.ip());
        lock(&self.private.tcp).taken.insert(key, Some(sender));
        receiver
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let key = (self.at.port(), self.at.ip());
        match self.protocol {
            Protocol::Tcp => drop(lock(&self.private.tcp).taken.remove(&key)),
            Protocol::Udp => drop(lock(&self.private.udp).taken.remove(&key)),
        }
    }
}

/// Datagrams that wait for their socket.
#[derive(Debug)]
pub(super) struct Mailbox {
    letters: Mutex<Letters>,
    memory: Arc<SocketMemory>,
}

#[derive(Debug, Default)]
struct Letters {
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    bytes: usize,
    reader: Option<Waker>,
}

impl Mailbox {
    fn letters(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, from: SocketAddr, bytes: &[u8]) {
        let mut letters = self.letters();
        let is_full =
            letters.waiting.len() >= DATAGRAMS || letters.bytes + bytes.len() > DATAGRAM_BYTES;
        if is_full || !self.memory.take_all(bytes.len() + LETTER) {
            return;
        }
        letters.bytes += bytes.len();
        letters.waiting.push_back((from, bytes.to_vec()));
        if let Some(waker) = letters.reader.take() {
            waker.wake();
        }
    }

    pub(super) fn take(&self) -> Option<(SocketAddr, Vec<u8>)> {
        let mut letters = self.letters();
        let (from, bytes) = letters.waiting.pop_front()?;
        letters.bytes -= bytes.len();
        self.memory.give(bytes.len() + LETTER);
        if letters.waiting.is_empty() {
            // A socket that rests keeps no room.
            letters.waiting = VecDeque::new();
        }
        Some((from, bytes))
    }

    /// Ready when something waits.
    pub(super) fn poll_ready(&self, context: &Context<'_>) -> Poll<()> {
        let mut letters = self.letters();
        if !letters.waiting.is_empty() {
            return Poll::Ready(());
        }
        letters.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        while self.take().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::{super::memory::LEAST, *};

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_wildcard_takes_a_port_of_all_addresses_of_its_family() {
        let private = Arc::new(Private::default());
        let all = private.reserve(at("0.0.0.0:80")).unwrap();
        let in_use = |text| private.reserve(at(text)).unwrap_err();
        assert_eq!(in_use("127.0.0.1:80"), NetError::AddressInUse);
        let other_family = private.reserve(at("[::1]:80")).unwrap();
        drop(all);
        let one = private.reserve(at("127.0.0.1:80")).unwrap();
        let other = private.reserve(at("127.0.0.2:80")).unwrap();
        assert_eq!(in_use("0.0.0.0:80"), NetError::AddressInUse);
        drop((one, other, other_family));
        private.reserve(at("0.0.0.0:80")).unwrap();
    }

    #[tokio::test]
    async fn what_listens_at_the_very_address_comes_before_a_wildcard_of_another_protocol() {
        let private = Arc::new(Private::default());
        let (_udp, mailbox) = private.mailbox(at("0.0.0.0:53")).unwrap();
        assert!(private.door(at("127.0.0.1:53")).is_none(), "only datagrams come there");
        assert!(private.deliver(at("127.0.0.9:53"), at("127.0.0.1:9"), b"x"));
        assert!(!private.deliver(at("[::1]:53"), at("[::1]:9"), b"x"));
        assert_eq!(mailbox.take(), Some((at("127.0.0.1:9"), b"x".to_vec())));
        let tcp = private.reserve(at("127.0.0.1:53")).unwrap();
        assert!(private.door(at("127.0.0.1:53")).is_none(), "it does not listen yet");
        let queue = tcp.listen(1);
        assert!(private.door(at("127.0.0.1:53")).is_some());
        assert!(private.door(at("127.0.0.2:53")).is_none());
        drop(queue);
        assert!(private.door(at("127.0.0.1:53")).unwrap().is_closed());
    }

    #[test]
    fn a_mailbox_is_bounded() {
        let private = Arc::new(Private::default());
        let (taken, mailbox) = private.mailbox(at("127.0.0.1:0")).unwrap();
        let to = taken.at();
        for _ in 0..2 * DATAGRAMS {
            assert!(private.deliver(to, to, &vec![0; 60_000]));
        }
        let mut bytes = 0;
        while let Some((_, datagram)) = mailbox.take() {
            bytes += datagram.len();
        }
        assert!(bytes <= DATAGRAM_BYTES && bytes > 0, "{bytes}");
    }

    #[test]
    fn all_mailboxes_of_a_pod_have_a_bound_together() {
        // Few large ones, and many that are little more than their envelope.
        for (count, length) in [(200, 1000), (2000, 0)] {
            let private = Arc::new(Private::default());
            let mailboxes: Vec<_> =
                (0..count).map(|_| private.mailbox(at("127.0.0.1:0")).unwrap()).collect();
            for (taken, _) in &mailboxes {
                for _ in 0..DATAGRAMS {
                    private.deliver(taken.at(), taken.at(), &vec![0; length]);
                }
            }
            let used = private.memory.used();
            assert!(used <= SocketMemory::MOST && used > SocketMemory::MOST / 2, "{used}");
            let (_, first) = &mailboxes[0];
            let mut kept = 0;
            while first.take().is_some() {
                kept += 1;
            }
            assert!((DATAGRAM_BYTES / 1000..=DATAGRAMS).contains(&kept), "{kept}");
            let (taken, last) = &mailboxes[count - 1];
            while last.take().is_some() {}
            assert!(private.deliver(taken.at(), taken.at(), b"there is room again"));
            assert!(last.take().is_some());
            drop(mailboxes);
            assert_eq!(private.memory.used(), 0);
        }
    }

    /// Connects again and again, writes, and lets go, until it has to wait.
    fn connect_many(private: &Private, to: SocketAddr) -> usize {
        let mut count = 0;
        let from = at("127.0.0.1:9");
        while let Some(Ok(end)) = private.connect(from, to).now_or_never() {
            end.try_write(&[0; 2 * LEAST]).unwrap();
            count += 1;
        }
        count
    }

    #[test]
    fn connections_that_wait_to_be_accepted_have_a_bound_together() {
        let private = Arc::new(Private::default());
        let listens = || {
            let taken = private.reserve(at("127.0.0.1:0")).unwrap();
            let queue = taken.listen(usize::MAX);
            (taken, queue)
        };
        let mut listeners: Vec<_> =
            (0..2 * ARRIVALS / ARRIVALS_OF_ONE).map(|_| listens()).collect();
        let mut all = 0;
        for (taken, _) in &listeners {
            let count = connect_many(&private, taken.at());
            assert!(count <= ARRIVALS_OF_ONE, "{count}");
            all += count;
        }
        assert_eq!(all, ARRIVALS);
        let used = private.memory.used();
        assert!(used <= SocketMemory::MOST + ARRIVALS * LEAST, "{used}");
        // Who waits connects when another is accepted, and hears of a listener that
        // is gone.
        let (last, queue) = listeners.pop().unwrap();
        let (first, other) = (at("127.0.0.1:9"), listeners[0].0.at());
        assert!(private.connect(first, other).now_or_never().is_none(), "it has its share");
        let mut waits = Box::pin(private.connect(first, last.at()));
        assert!((&mut waits).now_or_never().is_none());
        drop(listeners[0].1.try_recv().unwrap());
        assert!((&mut waits).now_or_never().is_some_and(|end| end.is_ok()));
        let mut waits = Box::pin(private.connect(first, last.at()));
        assert!((&mut waits).now_or_never().is_none());
        drop(queue);
        let refused = waits.now_or_never().unwrap().unwrap_err();
        assert_eq!(refused, NetError::ConnectionRefused);
        drop((last, listeners));
        assert_eq!(private.memory.used(), 0);
        assert_eq!(private.arrivals.available_permits(), ARRIVALS);
    }

    proptest! {
        #[test]
        fn no_port_has_two_owners(
            asked in prop::collection::vec((0_usize..5, 0_u16..4, any::<bool>()), 0..60)
        ) {
            let ips = ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1"];
            let private = Arc::new(Private::default());
            let mut held: Vec<Reservation> = Vec::new();
            for (ip, port, lets_go) in asked {
                let ip: IpAddr = ips[ip].parse().unwrap();
                let clash = |one: &Reservation| {
                    one.at().port() == port
                        && one.at().is_ipv4() == ip.is_ipv4()
                        && (one.at().ip() == ip || ip.is_unspecified() || one.at().ip().is_unspecified())
                };
                match private.reserve(SocketAddr::new(ip, port)) {
                    Ok(one) => {
                        prop_assert!(port == 0 || !held.iter().any(clash));
                        prop_assert!(one.at().port() != 0);
                        held.push(one);
                    }
                    Err(_) => prop_assert!(held.iter().any(clash)),
                }
                if lets_go && !held.is_empty() {
                    held.remove(0);
                }
            }
        }
    }
}
