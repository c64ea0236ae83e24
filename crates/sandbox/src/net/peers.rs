//! Who sent to a datagram socket by which way, so that answers go back by it.
//!
//! Of each generation at most so many are remembered; when the young one is full, or
//! as old as a peer may be, the old one is forgotten, and who is heard of again is
//! young again. So a flood of others costs no more than that, and not for long, and
//! who is talked to now stays known.
//!
//! Pure, but for the clock's type and the count of the memory that it takes.

use std::{
    collections::HashMap,
    mem,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    sync::Arc,
    time::{Duration, Instant},
};

use super::memory::{SocketMemory, Taken};

/// How long a peer is known of whom nothing is heard. What is sent to him makes it no
/// longer: else one datagram, of a forged source, let a pod send there for good.
///
/// Source: Linux, `nf_conntrack_udp_timeout_stream` in
/// `Documentation/networking/nf_conntrack-sysctl.rst`.
const IDLE: Duration = Duration::from_mins(2);

/// Places that the table of a full generation has. A server that answers more clients
/// at once than find room there is a rare one.
const PLACES: usize = 1024;

/// Peers of one generation: as many as fill that table (`HashMap` keeps an eighth of its
/// places free).
const GENERATION: usize = PLACES / 8 * 7;

/// Bytes of such a table, each place with the byte that says whether it is taken. Some
/// 80 KiB, which who sends from very many addresses can have a socket take.
const BYTES: usize = PLACES * (size_of::<((IpAddr, u16), Known)>() + 1);

/// Peers of a generation that are remembered in any case: those of a table of 16 places.
/// Two of these take less than the [`LEAST`](super::memory::LEAST) of a socket.
const FEW: usize = 14;

/// How somebody came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Came {
    /// Who, as the system knows him.
    pub(super) from: SocketAddr,
    /// By which of the node's sockets that were handed over; none if by the pod's
    /// own.
    pub(super) by: Option<usize>,
    /// To which address of the machine.
    pub(super) to: Option<IpAddr>,
}

/// What is remembered of one: how he came, and when last.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Of an address of IPv6, else 0.
    scope: u32,
    by: Option<usize>,
    to: Option<IpAddr>,
    last: Instant,
}

#[derive(Debug, Default)]
struct Generation {
    known: HashMap<(IpAddr, u16), Known>,
    /// When the first of them came.
    began: Option<Instant>,
    /// What a full table takes, once there are more than a few.
    room: Option<Taken>,
}

impl Generation {
    /// Whether there is room for one more. The table grows here and nowhere else.
    fn has_room(&mut self, memory: &Arc<SocketMemory>) -> bool {
        if self.known.capacity() == 0 {
            self.known.reserve(FEW);
        }
        if self.known.len() == self.known.capacity() && self.room.is_none() {
            self.room = memory.hold(BYTES);
            if self.room.is_some() {
                self.known.reserve(GENERATION.saturating_sub(self.known.len()));
            }
        }
        self.known.len() < self.known.capacity()
    }

    /// Whether whoever came before it has been silent for too long by now.
    fn is_over(&self, now: Instant) -> bool {
        self.began.is_some_and(|began| now.saturating_duration_since(began) >= IDLE)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Peers {
    young: Generation,
    old: Generation,
    memory: Arc<SocketMemory>,
}

impl Peers {
    /// Those of a socket of a pod. If its sockets have all the memory that they may,
    /// fewer are remembered.
    pub(super) fn new(memory: &Arc<SocketMemory>) -> Self {
        let (young, old) = Default::default();
        Self { young, old, memory: Arc::clone(memory) }
    }

    /// Somebody has sent something.
    pub(super) fn came(&mut self, came: Came, now: Instant) {
        if self.young.is_over(now) {
            self.turn();
        }
        let key = (came.from.ip(), came.from.port());
        self.old.known.remove(&key);
        let scope = match came.from {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(from) => from.scope_id(),
        };
        let known = Known { scope, by: came.by, to: came.to, last: now };
        // To insert what is there already would have a full table grow.
        if let Some(young) = self.young.known.get_mut(&key) {
            *young = known;
            return;
        }
        if !self.young.has_room(&self.memory) {
            self.turn();
            self.young.known.reserve(FEW);
        }
        self.young.known.insert(key, known);
        self.young.began.get_or_insert(now);
    }

    fn turn(&mut self) {
        self.old = mem::take(&mut self.young);
    }

    /// He came another way that needs no remembering.
    pub(super) fn forget(&mut self, peer: SocketAddr) {
        let key = (peer.ip(), peer.port());
        self.young.known.remove(&key);
        self.old.known.remove(&key);
    }

    /// How he came last, if he is to be answered that way now.
    pub(super) fn answers(&mut self, peer: SocketAddr, now: Instant) -> Option<Came> {
        let key = (peer.ip(), peer.port());
        let Known { scope, by, to, last } =
            *self.young.known.get(&key).or_else(|| self.old.known.get(&key))?;
        if now.saturating_duration_since(last) >= IDLE {
            self.forget(peer);
            return None;
        }
        let from = match peer.ip() {
            IpAddr::V4(_) => peer,
            IpAddr::V6(ip) => SocketAddrV6::new(ip, peer.port(), 0, scope).into(),
        };
        Some(Came { from, by, to })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peers() -> Peers {
        Peers::new(&Arc::default())
    }

    fn came(port: u16, by: usize) -> Came {
        let from = SocketAddr::new("192.0.2.1".parse().unwrap(), port);
        Came { from, by: Some(by), to: None }
    }

    #[test]
    fn who_comes_another_way_is_answered_there() {
        let (mut peers, now) = (peers(), Instant::now());
        let peer = came(1, 0).from;
        assert_eq!(peers.answers(peer, now), None);
        peers.came(came(1, 0), now);
        peers.came(came(1, 1), now);
        assert_eq!(peers.answers(peer, now), Some(came(1, 1)));
        peers.forget(peer);
        assert_eq!(peers.answers(peer, now), None);
    }

    #[test]
    fn a_peer_is_known_while_he_is_heard_of_and_answers_make_it_no_longer() {
        let (mut peers, mut now) = (peers(), Instant::now());
        let peer = came(1, 0).from;
        let nearly = IDLE.saturating_sub(Duration::from_secs(1));
        for _ in 0..3 {
            peers.came(came(1, 0), now);
            now += nearly;
            assert_eq!(peers.answers(peer, now), Some(came(1, 0)));
        }
        assert_eq!(peers.answers(peer, now + nearly), None);
    }

    #[test]
    fn a_neighbour_is_answered_by_the_link_he_came_by() {
        let (mut peers, now) = (peers(), Instant::now());
        let at = |scope| SocketAddrV6::new("fe80::1".parse().unwrap(), 1, 0, scope).into();
        let came = Came { from: at(7), by: Some(0), to: None };
        peers.came(came, now);
        assert_eq!(peers.answers(at(0), now), Some(came));
    }

    #[test]
    fn a_flood_takes_memory_of_the_pods_sockets_and_gives_it_back() {
        const { assert!(2 * (FEW + 2) * (BYTES / PLACES) <= super::super::memory::LEAST) };
        let memory = Arc::<SocketMemory>::default();
        let (mut peers, mut now) = (Peers::new(&memory), Instant::now());
        let flood = |peers: &mut Peers, now| {
            for port in 1..5000 {
                for _ in 0..2 {
                    peers.came(came(port, 0), now);
                }
                let Generation { known, room, .. } = &peers.young;
                assert_eq!(room.is_some(), known.len() > FEW);
                // What is taken is what the table has.
                assert!(known.capacity() <= GENERATION);
            }
        };
        for port in 0..u16::try_from(FEW).unwrap() {
            peers.came(came(port, 0), now);
        }
        assert_eq!(memory.used(), 0, "they are few");
        flood(&mut peers, now);
        assert_eq!(memory.used(), 2 * BYTES);
        // One peer is heard of all the time, the others never again.
        for _ in 0..2 {
            now += IDLE;
            peers.came(came(1, 0), now);
        }
        assert_eq!(memory.used(), 0);
        assert_eq!(peers.young.known.len() + peers.old.known.len(), 1);
        flood(&mut peers, now);
        drop(peers);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn where_a_pods_sockets_have_all_their_memory_fewer_peers_are_known() {
        let memory = Arc::<SocketMemory>::default();
        let all = memory.hold(SocketMemory::MOST).unwrap();
        let (mut peers, now) = (Peers::new(&memory), Instant::now());
        let few = u16::try_from(FEW).unwrap();
        for port in 1..2000 {
            peers.came(came(port, 0), now);
            assert!(peers.young.known.len() <= FEW && peers.old.known.len() <= FEW);
            for known in port.saturating_sub(few - 1).max(1)..=port {
                let at = came(known, 0).from;
                assert_eq!(peers.answers(at, now), Some(came(known, 0)), "{port}: {known}");
            }
        }
        drop(all);
        for port in 1..200 {
            peers.came(came(port, 0), now);
        }
        assert!(peers.young.known.len() > FEW, "there is room again");
    }

    proptest! {
        #[test]
        fn peers_are_bounded_and_the_newest_are_known(
            ports in prop::collection::vec(1_u16..5000, 0..6000),
        ) {
            let (mut peers, now) = (peers(), Instant::now());
            for port in &ports {
                peers.came(came(*port, 0), now);
                let known = [&peers.young, &peers.old].map(|all| all.known.len());
                prop_assert!(known.into_iter().all(|count| count <= GENERATION));
            }
            for port in ports.iter().rev().take(GENERATION) {
                let key = (came(*port, 0).from.ip(), *port);
                let (young, old) = (&peers.young.known, &peers.old.known);
                prop_assert!(young.contains_key(&key) || old.contains_key(&key), "{port}");
            }
        }
    }
}
