//! Where what a guest sends to an address really goes: the one place that all
//! ways to connect and to send share.
//!
//! ```text
//! asked ── place::way ──▶ the pod's own loopback
//!             │
//!             ▼
//!          Services ──▶ nobody (refused, or silence)
//!             │ an endpoint, or the address itself
//!             ▼
//!          place::way once more, policy.rs ──▶ Route { asked, real }
//! ```

use std::net::{IpAddr, SocketAddr};

use krustlet_model::services::Transport;
use krustlet_protocol::PodNetwork;

use super::{
    NetError, Stack,
    place::{self, Way},
    policy::{Asker, For},
    refused::{NoWay, Rule},
    services::{Asked, Lead},
};

/// A way on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Where the guest wants to go, and believes to be: maybe a Service's address.
    pub(super) asked: SocketAddr,
    /// Where packets go and come from.
    pub(super) real: SocketAddr,
}

impl Route {
    /// Whether a Service leads there.
    pub(super) fn is_led(self) -> bool {
        self.asked != self.real
    }
}

/// A way that is wanted.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    transport: Transport,
    to: SocketAddr,
    /// The endpoint that is taken, if it is one still.
    before: Option<SocketAddr>,
    /// Endpoints that are not.
    but: &'a [SocketAddr],
}

/// Where a destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// On the pod's private loopback.
    Private(SocketAddr),
    /// On the network.
    Real(Route),
    /// A Service's that leads to nobody now.
    Nobody {
        asked: SocketAddr,
        /// Whether who goes there hears nothing; else that it is refused.
        is_silent: bool,
    },
}

impl Stack {
    /// Where a destination is, and whether a guest may go there. Of several
    /// endpoints of a Service it is `before`, if that is one of them.
    ///
    /// # Errors
    ///
    /// As [`place::way`], also for the endpoint of a Service;
    /// [`NetError::RemoteUnreachable`] if it is not known what Services there
    /// are.
    pub(super) fn destination(
        &self,
        asker: Asker<'_>,
        transport: Transport,
        to: SocketAddr,
        before: Option<SocketAddr>,
    ) -> Result<Destination, NetError> {
        let found = self.find(asker, Wanted { transport, to, before, but: &[] });
        found.map_err(|why| self.told(why))
    }

    /// As [`destination`](Self::destination) of a connection that these endpoints
    /// of a Service refused just now; if there is no other, it is nobody.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) fn other_destination(
        &self,
        asker: Asker<'_>,
        to: SocketAddr,
        but: &[SocketAddr],
    ) -> Result<Destination, NetError> {
        let found = self.find(asker, Wanted { transport: Transport::Tcp, to, before: None, but });
        found.map_err(|why| self.told(why))
    }

    fn find(&self, by: Asker<'_>, wanted: Wanted<'_>) -> Result<Destination, NoWay> {
        let Wanted { transport, to, .. } = wanted;
        let network = self.network();
        let asked = match self.way(by, &network, to)? {
            Way::Private(to) => return Ok(Destination::Private(to)),
            Way::Real(to) => to,
        };
        let lead = self.lead(&network.addresses, Wanted { to: asked, ..wanted })?;
        let real = match lead {
            Lead::Itself => asked,
            Lead::Endpoint(endpoint) => endpoint,
            Lead::Refused | Lead::Silence => {
                if !by.is_listed(&network, &self.0.learned, asked) {
                    return Err(NoWay::Refused(Rule::List));
                }
                return Ok(Destination::Nobody { asked, is_silent: lead == Lead::Silence });
            }
        };
        let route = Route { asked, real };
        self.may_go(by, transport, route)?;
        Ok(Destination::Real(route))
    }

    /// As [`place::way`]. The name servers that the node gives are machines that it
    /// trusts itself, some of them at link-local addresses: NodeLocal DNSCache,
    /// clouds' own. Look-ups go there, and nothing else of the pod.
    fn way(&self, by: Asker<'_>, network: &PodNetwork, to: SocketAddr) -> Result<Way, NetError> {
        match by.whom {
            For::Guest => place::way(network, &[], to),
            For::Resolver => place::way(network, &self.names().node_servers, to),
        }
    }

    fn lead(&self, from: &[IpAddr], wanted: Wanted<'_>) -> Result<Lead, NetError> {
        let Wanted { transport, to, before, but } = wanted;
        // The node's loopback, for who shares it, is no Service's.
        let directory = self.services().filter(|_| !to.ip().is_loopback());
        let Some(directory) = directory else { return Ok(Lead::Itself) };
        let asked = Asked { transport, to, from, before, but };
        // The agent has heard why.
        self.0.affinity.lead(&directory, asked).map_err(|_| NetError::RemoteUnreachable)
    }

    /// Whether a guest may go, or go on, by a route under the rules as they are
    /// now.
    ///
    /// # Errors
    ///
    /// As [`place::way`]; [`NoWay::Refused`] where a Service leads to what is no
    /// machine on the network.
    pub(super) fn may_go(
        &self,
        asker: Asker<'_>,
        transport: Transport,
        route: Route,
    ) -> Result<(), NoWay> {
        let network = self.network();
        for to in [route.asked, route.real] {
            // No Service leads into the pod's own loopback.
            if self.way(asker, &network, to)? != Way::Real(to) {
                return Err(NoWay::Refused(Rule::Destination));
            }
        }
        let learned = &self.0.learned;
        if asker.may_go(&network, learned, transport, route) {
            return Ok(());
        }
        Err(NoWay::Refused(asker.refused_by(&network, learned, route.asked)))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use krustlet_model::outbound::Outbound;
    use krustlet_protocol::{Destinations, PodNetwork, services::COMPLETE};

    use super::*;
    use crate::net::services::tests::{directory, port, write};

    fn stack(home: &Path) -> Stack {
        let address = |text: &str| text.parse().unwrap();
        let stack = Stack::default();
        let refused = Destinations { address: address("169.254.0.0"), prefix: 16, port: None };
        let network = PodNetwork {
            addresses: vec![address("10.1.0.7")],
            refused: vec![refused],
            ..PodNetwork::default()
        };
        let (directory, _) = directory(home);
        stack.set(network, Some(directory));
        stack
    }

    fn lead_to(home: &Path, endpoint: &str) {
        write(home, "10.96.0.7", port(Transport::Tcp, &[endpoint.parse().unwrap()]));
    }

    #[test]
    fn a_service_leads_nowhere_that_the_pod_may_not_go_itself() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let stack = stack(home);
        fs::write(home.join(COMPLETE), "").unwrap();
        let asked: SocketAddr = "10.96.0.7:80".parse().unwrap();
        let destination = || stack.destination(Asker::GUEST, Transport::Tcp, asked, None);
        lead_to(home, "10.1.0.9:8080");
        let real = "10.1.0.9:8080".parse().unwrap();
        assert_eq!(destination(), Ok(Destination::Real(Route { asked, real })));
        let before = stack.report().refusals.destination;
        for secret in ["169.254.169.254:80", "127.0.0.1:80", "224.0.0.1:80", "255.255.255.255:80"] {
            lead_to(home, secret);
            assert_eq!(destination(), Err(NetError::AccessDenied), "{secret}");
        }
        assert_eq!(stack.report().refusals.destination, before + 4);
        // A route that was good is bad under other rules.
        let network = PodNetwork {
            addresses: vec!["10.1.0.7".parse().unwrap()],
            refused: vec![Destinations { address: real.ip(), prefix: 32, port: None }],
            ..PodNetwork::default()
        };
        stack.set(network, None);
        assert_eq!(
            stack.may_go(Asker::GUEST, Transport::Tcp, Route { asked, real }),
            Err(NoWay::Refused(Rule::Destination))
        );
    }

    #[test]
    fn what_is_refused_stays_so_whatever_the_list_says() {
        let home = tempfile::tempdir().unwrap();
        let stack = stack(home.path());
        let outbound = Outbound::read("169.254.0.0/16, 192.0.2.1").unwrap();
        stack.set(PodNetwork { outbound: Some(outbound), ..(*stack.network()).clone() }, None);
        let destination =
            |to: &str| stack.destination(Asker::GUEST, Transport::Tcp, to.parse().unwrap(), None);
        assert_eq!(destination("169.254.169.254:80"), Err(NetError::AccessDenied));
        assert!(destination("192.0.2.1:80").is_ok());
    }

    #[test]
    fn nothing_is_gone_to_while_it_is_not_known_what_is_a_services() {
        let home = tempfile::tempdir().unwrap();
        let stack = stack(home.path());
        let asked: SocketAddr = "10.96.0.7:80".parse().unwrap();
        let destination = || stack.destination(Asker::GUEST, Transport::Tcp, asked, None);
        assert_eq!(destination(), Err(NetError::RemoteUnreachable));
        fs::write(home.path().join(COMPLETE), "").unwrap();
        assert_eq!(destination(), Ok(Destination::Real(Route { asked, real: asked })));
        fs::write(home.path().join("addresses/10.96.0.7"), "damaged").unwrap();
        assert_eq!(destination(), Err(NetError::RemoteUnreachable));
        // The pod's own loopback is no Service's.
        let inside = "127.0.0.1:80".parse().unwrap();
        let private = stack.destination(Asker::GUEST, Transport::Tcp, inside, None);
        assert_eq!(private, Ok(Destination::Private(inside)));
    }
}
