//! Who sent to a datagram socket by which way, so that answers go back by it.
//!
//! Of each generation at most so many are remembered; when the young one is full
//! the old one is forgotten, and who is heard of again is young again. So a flood
//! of others costs no more than that, and who is talked to now stays known.
//!
//! Pure, but for the clock's type.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// How long a peer is known of whom nothing is heard and to whom nothing is sent.
///
/// Source: Linux, `nf_conntrack_udp_timeout_stream` in
/// `Documentation/networking/nf_conntrack-sysctl.rst`.
const IDLE: Duration = Duration::from_mins(2);

/// Peers of one generation. A server that answers more clients at once than that
/// is a rare one; they take some 100 KiB.
const GENERATION: usize = 1024;

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

type Generation = HashMap<(IpAddr, u16), (Came, Instant)>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Peers {
    young: Generation,
    old: Generation,
}

impl Peers {
    /// Somebody has sent something.
    pub(super) fn came(&mut self, came: Came, now: Instant) {
        let key = (came.from.ip(), came.from.port());
        self.old.remove(&key);
        if self.young.len() >= GENERATION && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, (came, now));
    }

    /// He came another way that needs no remembering.
    pub(super) fn forget(&mut self, peer: SocketAddr) {
        let key = (peer.ip(), peer.port());
        self.young.remove(&key);
        self.old.remove(&key);
    }

    /// How he came last, if he is to be answered that way now.
    pub(super) fn answers(&mut self, peer: SocketAddr, now: Instant) -> Option<Came> {
        let key = (peer.ip(), peer.port());
        let (came, last) = *self.young.get(&key).or_else(|| self.old.get(&key))?;
        if now.saturating_duration_since(last) >= IDLE {
            self.forget(peer);
            return None;
        }
        self.came(came, now);
        Some(came)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn came(port: u16, by: usize) -> Came {
        let from = SocketAddr::new("192.0.2.1".parse().unwrap(), port);
        Came { from, by: Some(by), to: None }
    }

    #[test]
    fn who_comes_another_way_is_answered_there() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        let peer = came(1, 0).from;
        assert_eq!(peers.answers(peer, now), None);
        peers.came(came(1, 0), now);
        peers.came(came(1, 1), now);
        assert_eq!(peers.answers(peer, now), Some(came(1, 1)));
        peers.forget(peer);
        assert_eq!(peers.answers(peer, now), None);
    }

    #[test]
    fn a_peer_is_known_while_there_are_datagrams_either_way() {
        let (mut peers, mut now) = (Peers::default(), Instant::now());
        let peer = came(1, 0).from;
        peers.came(came(1, 0), now);
        for _ in 0..3 {
            now += IDLE.saturating_sub(Duration::from_secs(1));
            assert_eq!(peers.answers(peer, now), Some(came(1, 0)));
        }
        assert_eq!(peers.answers(peer, now + IDLE), None);
    }

    proptest! {
        #[test]
        fn peers_are_bounded_and_the_newest_are_known(
            ports in prop::collection::vec(1_u16..5000, 0..6000),
        ) {
            let (mut peers, now) = (Peers::default(), Instant::now());
            for port in &ports {
                peers.came(came(*port, 0), now);
                prop_assert!(peers.young.len() <= GENERATION && peers.old.len() <= GENERATION);
            }
            for port in ports.iter().rev().take(GENERATION) {
                let key = (came(*port, 0).from.ip(), *port);
                let is_known = peers.young.contains_key(&key) || peers.old.contains_key(&key);
                prop_assert!(is_known, "{port}");
            }
        }
    }
}
