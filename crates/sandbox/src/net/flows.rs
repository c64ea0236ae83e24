//! Which endpoints a datagram socket's Services lead to: datagrams to one address
//! go to one endpoint while they go on, and what comes from there seems to come
//! from the Service. On machines with kube-proxy the kernel's connection
//! tracking does that.
//!
//! Pure, but for the clock's type.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{place::is_same, recent::push, route::Route};

/// How long a flow without datagrams is remembered. Source: Linux's
/// `nf_conntrack_udp_timeout_stream`.
const IDLE: Duration = Duration::from_mins(2);

/// How long a flow goes on before it is looked whether its endpoint is still the
/// Service's: kube-proxy tears flows to others down about as fast.
const LOOK: Duration = Duration::from_secs(1);

/// Flows of one socket; the one used longest ago is forgotten for another.
const FLOWS: usize = 32;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Flows(Vec<Flow>);

#[derive(Clone, Copy, Debug)]
struct Flow {
    route: Route,
    used: Instant,
    looked: Instant,
}

impl Flows {
    /// Where datagrams to an address went lately, and whether they may go on
    /// without a look at the Service.
    pub(super) fn to(&mut self, asked: SocketAddr, now: Instant) -> Option<(Route, bool)> {
        let flow = self.0.iter_mut().find(|flow| is_same(flow.route.asked, asked))?;
        if now.saturating_duration_since(flow.used) >= IDLE {
            return None;
        }
        flow.used = now;
        Some((flow.route, now.saturating_duration_since(flow.looked) < LOOK))
    }

    /// A datagram goes by this route, by what the Service says now. If none leads
    /// there any more, whoever is there is himself.
    pub(super) fn put(&mut self, route: Route, now: Instant) {
        self.0.retain(|flow| {
            !is_same(flow.route.asked, route.asked) && !is_same(flow.route.real, route.real)
        });
        if !route.is_led() {
            return;
        }
        push(&mut self.0, FLOWS, Flow { route, used: now, looked: now }, |flow| flow.used);
    }

    /// As if this time had passed.
    #[cfg(test)]
    pub(super) fn age(&mut self, by: Duration) {
        for flow in &mut self.0 {
            for time in [&mut flow.used, &mut flow.looked] {
                *time = time.checked_sub(by).expect("the machine was not started just now");
            }
        }
    }

    /// Nothing goes to this address any more.
    pub(super) fn end(&mut self, asked: SocketAddr) {
        self.0.retain(|flow| !is_same(flow.route.asked, asked));
    }

    /// Who sent something, as the guest knows him.
    pub(super) fn sender(&mut self, real: SocketAddr, now: impl FnOnce() -> Instant) -> SocketAddr {
        let Some(flow) = self.0.iter_mut().find(|flow| is_same(flow.route.real, real)) else {
            return real;
        };
        let now = now();
        if now.saturating_duration_since(flow.used) >= IDLE {
            return real;
        }
        flow.used = now;
        flow.route.asked
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 96, 0, number], 53))
    }

    fn real(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, number], 5353))
    }

    fn route(from: u8, to: u8) -> Route {
        Route { asked: asked(from), real: real(to) }
    }

    #[test]
    fn answers_seem_to_come_from_the_service_while_the_flow_goes_on() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut flows = Flows::default();
        flows.put(route(1, 1), start);
        assert_eq!(flows.sender(real(1), || after(100)), asked(1));
        assert_eq!(flows.sender(real(2), || after(100)), real(2));
        assert_eq!(flows.to(asked(1), after(200)), Some((route(1, 1), false)));
        assert_eq!(flows.sender(real(1), || after(319)), asked(1));
        assert_eq!(flows.sender(real(1), || after(500)), real(1));
        assert_eq!(flows.to(asked(1), after(500)), None);
    }

    #[test]
    fn whoever_is_sent_to_by_his_own_address_answers_from_there() {
        let now = Instant::now();
        let mut flows = Flows::default();
        flows.put(route(1, 1), now);
        flows.put(Route { asked: real(1), real: real(1) }, now);
        assert_eq!(flows.sender(real(1), || now), real(1));
        flows.put(route(2, 2), now);
        flows.end(asked(2));
        assert_eq!((flows.to(asked(2), now), flows.sender(real(2), || now)), (None, real(2)));
    }

    proptest! {
        #[test]
        fn flows_are_bounded_and_the_newest_are_known(
            steps in prop::collection::vec((0_u8..60, 0_u8..60, 0_u64..400), 1..200)
        ) {
            let mut flows = Flows::default();
            let mut now = Instant::now();
            for (from, to, passes) in steps {
                now += Duration::from_millis(passes);
                flows.put(route(from, to), now);
                prop_assert!(flows.0.len() <= FLOWS);
                prop_assert_eq!(flows.sender(real(to), || now), asked(from));
                prop_assert_eq!(flows.to(asked(from), now), Some((route(from, to), true)));
                let mut ends: Vec<_> = flows.0.iter().map(|flow| flow.route.real).collect();
                ends.sort();
                ends.dedup();
                prop_assert_eq!(ends.len(), flows.0.len(), "none has two names");
            }
        }
    }
}
