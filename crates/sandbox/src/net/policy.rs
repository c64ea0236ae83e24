//! Whether the cluster's policies, and the pod's own list, let something through.
//!
//! What the policies say is asked of the address that is really connected to; the
//! pod's list of the one that the guest names. `localhost` is asked about by
//! nobody: it is the pod's own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use krustlet_model::{policy::PodPolicy, services::Transport};
use krustlet_protocol::{Names, PodNetwork};
use tokio::time::Instant;

use super::{place::is_same, recent::push, refused::Rule, route::Route};

/// For whom something is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// A guest.
    Guest,
    /// The pod's resolver: which names are asked for is looked at elsewhere.
    Resolver,
}

/// Who wants to go somewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    pub(super) whom: For,
    /// To whom its answers may go, whatever the rules say.
    pub(super) answers: Option<&'a Answers>,
}

impl Asker<'_> {
    /// A guest that was asked nothing.
    pub(super) const GUEST: Self = Self { whom: For::Guest, answers: None };

    /// Whether the pod's list and the policies let it go by a route, or it answers
    /// somebody whom they let in.
    pub(super) fn may_go(
        self,
        network: &PodNetwork,
        learned: &Learned,
        transport: Transport,
        route: Route,
    ) -> bool {
        self.may_begin(network, learned, transport, route)
            || self.answers.is_some_and(|answers| answers.goes_on(route.real, Begun::There))
    }

    /// Whether they let it go there unasked.
    pub(super) fn may_begin(
        self,
        network: &PodNetwork,
        learned: &Learned,
        transport: Transport,
        route: Route,
    ) -> bool {
        self.is_listed(network, learned, route.asked) && lets_out(network, transport, route.real)
    }

    /// Which of the two it is that does not let it go where it asked.
    pub(super) fn refused_by(
        self,
        network: &PodNetwork,
        learned: &Learned,
        asked: SocketAddr,
    ) -> Rule {
        if self.is_listed(network, learned, asked) { Rule::Policy } else { Rule::List }
    }

    /// Whether the pod's list lets it ask for an address.
    pub(super) fn is_listed(
        self,
        network: &PodNetwork,
        learned: &Learned,
        asked: SocketAddr,
    ) -> bool {
        self.whom == For::Resolver || is_listed(network, learned, asked)
    }
}

/// Whether the pod's own list lets a guest go to an address as it names it.
pub(super) fn is_listed(network: &PodNetwork, learned: &Learned, to: SocketAddr) -> bool {
    let Some(list) = &network.outbound else { return true };
    is_own(network, to.ip())
        || list.iter().any(|entry| entry.covers(to.ip(), to.port()))
        || learned.has(to)
}

/// Whether the policies let a pod connect or send to a real address.
pub(super) fn lets_out(network: &PodNetwork, transport: Transport, to: SocketAddr) -> bool {
    is_own(network, to.ip()) || policy(network).is_none_or(|policy| policy.lets_out(transport, to))
}

/// Whether they let in who connects or sends to a port of the pod. From a loopback
/// comes only the node itself, which is let in at all its addresses: by a port of
/// its own that leads to the pod. Others do not connect from there, for the answer
/// never reaches them; datagrams that may be theirs are asked about by
/// [`lets_in_forged`].
pub(super) fn lets_in(network: &PodNetwork, transport: Transport, from: IpAddr, port: u16) -> bool {
    is_own(network, from) || from.is_loopback() || lets_in_forged(network, transport, from, port)
}

/// As [`lets_in`], where the source says nothing of who it is: he is let in if
/// anybody is who has such an address.
pub(super) fn lets_in_forged(
    network: &PodNetwork,
    transport: Transport,
    from: IpAddr,
    port: u16,
) -> bool {
    policy(network).is_none_or(|policy| policy.lets_in(transport, from, port))
}

fn policy(network: &PodNetwork) -> Option<&PodPolicy> {
    network.policy.as_ref()
}

/// Whether it is the pod itself. An address that it shares is not.
fn is_own(network: &PodNetwork, address: IpAddr) -> bool {
    !network.is_host && network.addresses.contains(&address.to_canonical())
}

/// Whether a guest may look a name up by its pod's list. Names that lead to the
/// pod itself may always be.
pub(super) fn may_look_up(network: &PodNetwork, names: &Names, name: &str) -> bool {
    let Some(list) = &network.outbound else { return true };
    let bare = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_itself = || {
        bare == "localhost"
            || bare.ends_with(".localhost")
            || names.hosts.iter().any(|line| {
                (line.address.is_loopback() || is_own(network, line.address))
                    && line.names.contains(&bare)
            })
    };
    // An address needs no looking up; whether it may be connected to is seen then.
    // With a dot at its end it is a name, which servers are asked for.
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    literal.parse::<IpAddr>().is_ok() || list.iter().any(|entry| entry.is_for(name)) || is_itself()
}

/// How long what a look-up found may be connected to: connections are made when
/// a name has been looked up, or soon after.
const LEARNED_TIME: Duration = Duration::from_mins(10);

/// Addresses that are remembered; those looked up longest ago are forgotten. Four
/// look-ups of the longest answers.
const MOST_LEARNED: usize = 1024;

/// Addresses that names of the pod's list led to, each with the port that may be
/// connected to, or all, and when they were looked up.
#[derive(Debug, Default)]
pub(super) struct Learned(Mutex<BTreeMap<(IpAddr, Option<u16>), Instant>>);

impl Learned {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(IpAddr, Option<u16>), Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what a name led to, for the entries that speak of it.
    /// The list is read while nobody can forget: what is learned is on the list
    /// that holds then.
    pub(super) fn learn<N: Deref<Target = PodNetwork>>(
        &self,
        network: impl FnOnce() -> N,
        name: &str,
        found: &[IpAddr],
    ) {
        let now = Instant::now();
        let mut known = self.lock();
        let network = network();
        let Some(list) = &network.outbound else { return };
        for entry in list.iter().filter(|entry| entry.is_for(name)) {
            for address in found {
                known.insert((address.to_canonical(), entry.port), now);
            }
        }
        if known.len() > MOST_LEARNED {
            known.retain(|_, at| now.duration_since(*at) < LEARNED_TIME);
        }
        while known.len() > MOST_LEARNED {
            let oldest = known.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key);
            oldest.map(|key| known.remove(&key));
        }
    }

    fn has(&self, to: SocketAddr) -> bool {
        let known = self.lock();
        [None, Some(to.port())].into_iter().any(|port| {
            let at = known.get(&(to.ip().to_canonical(), port));
            at.is_some_and(|at| at.elapsed() < LEARNED_TIME)
        })
    }

    /// Forgets all.
    pub(super) fn forget(&self) {
        *self.lock() = BTreeMap::new();
    }
}

/// How long a peer of datagrams is known without another one.
///
/// Source: Linux, `nf_conntrack_udp_timeout_stream` in
/// `Documentation/networking/nf_conntrack-sysctl.rst`.
const ANSWER_TIME: Duration = Duration::from_mins(2);

/// Peers that one socket remembers; of more, those heard of longest ago are
/// forgotten.
const MOST_ANSWERS: usize = 256;

/// Who began to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// The pod.
    Here,
    /// Its peer.
    There,
}

/// Peers of one datagram socket of which one direction was let through and the
/// other would not be: answers to what was let through are let through too, for a
/// time after each such datagram.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Vec<(SocketAddr, Begun, Instant)>>);

impl Answers {
    fn lock(&self) -> MutexGuard<'_, Vec<(SocketAddr, Begun, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something answers what was let through lately. An answer makes the
    /// time no longer: else a flow that is not let through any more had no end.
    pub(super) fn goes_on(&self, peer: SocketAddr, begun: Begun) -> bool {
        let now = Instant::now();
        self.lock().iter().any(|(known, by, last)| {
            is_same(*known, peer) && *by == begun && now.duration_since(*last) < ANSWER_TIME
        })
    }

    /// Something was let through by its own right, and may be answered.
    pub(super) fn begin(&self, peer: SocketAddr, begun: Begun) {
        let now = Instant::now();
        let mut flows = self.lock();
        flows.retain(|(known, by, last)| {
            !(is_same(*known, peer) && *by == begun) && now.duration_since(*last) < ANSWER_TIME
        });
        push(&mut flows, MOST_ANSWERS, (peer, begun, now), |(.., last)| *last);
    }
}

#[cfg(test)]
mod tests {
    use krustlet_model::outbound::Outbound;
    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> Vec<Outbound> {
        Outbound::read(text).unwrap()
    }

    fn pod(text: &str) -> PodNetwork {
        PodNetwork {
            addresses: vec!["10.0.0.1".parse().unwrap()],
            outbound: Some(list(text)),
            ..PodNetwork::default()
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_what_is_on_the_list_is_connected_to() {
        let (network, learned) =
            (pod("api.example:443, *.wild.example, 10.7.0.0/16:5432"), Learned::default());
        let goes = |to: &str| {
            let route = Route { asked: at(to), real: at("192.0.2.9:9") };
            Asker::GUEST.may_go(&network, &learned, Transport::Tcp, route)
        };
        assert!(goes("10.7.1.1:5432") && goes("[::ffff:10.7.1.1]:5432"));
        assert!(goes("10.0.0.1:80"), "the pod's own");
        for refused in ["10.7.1.1:80", "192.0.2.1:443", "192.0.2.2:1"] {
            assert!(!goes(refused), "{refused}");
        }
        let resolver = Asker { whom: For::Resolver, ..Asker::GUEST };
        let server = Route { asked: at("192.0.2.53:53"), real: at("192.0.2.53:53") };
        assert!(resolver.may_go(&network, &learned, Transport::Udp, server));
        learned.learn(|| &network, "API.example.", &[at("192.0.2.1:0").ip()]);
        learned.learn(|| &network, "a.wild.example", &[at("192.0.2.2:0").ip()]);
        learned.learn(|| &network, "other.example", &[at("192.0.2.3:0").ip()]);
        assert!(goes("192.0.2.1:443") && goes("192.0.2.2:1") && goes("192.0.2.2:9"));
        assert!(!goes("192.0.2.1:80") && !goes("192.0.2.3:443"));
        learned.forget();
        assert!(!goes("192.0.2.1:443"));
    }

    #[test]
    fn a_service_is_listed_by_its_own_address_and_let_out_by_its_endpoints() {
        let mut network = pod("10.96.0.7");
        let learned = Learned::default();
        let route = Route { asked: at("10.96.0.7:80"), real: at("10.1.0.9:8080") };
        let may_go = |network: &PodNetwork, asker: Asker<'_>| {
            asker.may_go(network, &learned, Transport::Udp, route)
        };
        assert!(may_go(&network, Asker::GUEST));
        network.policy = Some(PodPolicy::closed());
        assert!(!may_go(&network, Asker::GUEST));
        let answers = Answers::default();
        let asker = Asker { answers: Some(&answers), ..Asker::GUEST };
        assert!(!may_go(&network, asker));
        answers.begin(route.real, Begun::There);
        assert!(may_go(&network, asker));
    }

    #[test]
    fn names_that_lead_to_the_pod_itself_may_be_looked_up() {
        let network = pod("api.example");
        let line = |address: &str, name: &str| krustlet_protocol::Host {
            address: address.parse().unwrap(),
            names: vec![name.to_owned()],
        };
        let hosts = vec![line("10.0.0.1", "me"), line("10.0.0.2", "other")];
        let names = Names { hosts, ..Names::default() };
        for name in ["api.example", "me", "ME.", "localhost", "a.localhost", "192.0.2.1", "[::1]"] {
            assert!(may_look_up(&network, &names, name), "{name}");
        }
        for name in ["other", "example", "x.api.example", "", "192.0.2.1."] {
            assert!(!may_look_up(&network, &names, name), "{name}");
        }
        assert!(may_look_up(&PodNetwork::default(), &names, "anything.example"));
    }

    #[test]
    fn a_look_up_under_way_teaches_nothing_that_another_list_lacks() {
        let (network, learned) = (pod("b.example"), Learned::default());
        // Asked for when the list was another one.
        learned.learn(|| &network, "a.example", &[at("192.0.2.1:0").ip()]);
        let open = PodNetwork::default();
        learned.learn(|| &open, "a.example", &[at("192.0.2.1:0").ip()]);
        assert!(!learned.has(at("192.0.2.1:1")));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_looked_up_holds_for_a_time() {
        let (network, learned) = (pod("a.example"), Learned::default());
        learned.learn(|| &network, "a.example", &[at("192.0.2.1:0").ip()]);
        tokio::time::advance(LEARNED_TIME.saturating_sub(Duration::from_secs(1))).await;
        assert!(learned.has(at("192.0.2.1:1")));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!learned.has(at("192.0.2.1:1")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_may_answer_for_a_time_and_begins_nothing_by_that() {
        let answers = Answers::default();
        let peer = at("192.0.2.1:53");
        for _ in 0..3 {
            answers.begin(peer, Begun::Here);
            tokio::time::advance(ANSWER_TIME.saturating_sub(Duration::from_secs(1))).await;
            assert!(answers.goes_on(peer, Begun::Here));
            assert!(!answers.goes_on(peer, Begun::There), "it answers, and nobody answers it");
        }
        assert!(!answers.goes_on(at("192.0.2.1:54"), Begun::Here));
        answers.begin(peer, Begun::There);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!answers.goes_on(peer, Begun::Here), "its answers did not make it longer");
        assert!(answers.goes_on(peer, Begun::There));
    }

    #[test]
    fn a_shared_address_is_not_the_pod_itself() {
        let mut network = pod("");
        network.policy = Some(PodPolicy::closed());
        assert!(lets_out(&network, Transport::Tcp, at("10.0.0.1:1")));
        assert!(lets_in(&network, Transport::Tcp, at("10.0.0.1:1").ip(), 1));
        network.is_host = true;
        assert!(!lets_out(&network, Transport::Tcp, at("10.0.0.1:1")));
        assert!(!lets_in(&network, Transport::Tcp, at("10.0.0.1:1").ip(), 1));
    }

    #[test]
    fn the_nodes_own_loopback_is_let_in() {
        let mut network = pod("");
        network.policy = Some(PodPolicy::closed());
        for (from, is_in) in [("127.0.0.1:1", true), ("[::1]:1", true), ("192.0.2.1:1", false)] {
            for transport in [Transport::Tcp, Transport::Udp] {
                assert_eq!(lets_in(&network, transport, at(from).ip(), 1), is_in, "{from}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_remembered_is_bounded(
            ports in prop::collection::vec(1_u16..2000, 0..900),
            answers in prop::collection::vec(any::<u32>(), 0..1500),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let flows = Answers::default();
                for port in ports {
                    let peer = SocketAddr::new("192.0.2.1".parse().unwrap(), port);
                    flows.begin(peer, Begun::There);
                    prop_assert!(flows.goes_on(peer, Begun::There));
                    prop_assert!(flows.lock().len() <= MOST_ANSWERS);
                }
                let (network, learned) = (pod("a.example, *.example:1"), Learned::default());
                let answers = answers.into_iter().map(|bits| IpAddr::from(bits.to_be_bytes()));
                for some in answers.collect::<Vec<_>>().chunks(100) {
                    tokio::time::advance(Duration::from_millis(1)).await;
                    learned.learn(|| &network, "a.example", some);
                    prop_assert!(learned.lock().len() <= MOST_LEARNED);
                    prop_assert!(learned.has(SocketAddr::new(some[0], 7)));
                }
                Ok(())
            })?;
        }
    }
}
