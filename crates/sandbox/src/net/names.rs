//! How the pod's resolver reaches its servers: by the pod's own sockets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures::future::BoxFuture;
use krustlet_model::services::ServiceKey;
use krustlet_protocol::{Names, PodNetwork, ServiceName};
use krustlet_resolver::{Datagrams, Families, LookupError, Network, Resolver, Stream as AnyStream};

use super::{Family, NetError, Stack, UdpSocket, WeakStack, place, policy, refused::Rule};

impl Stack {
    /// The addresses of a name, by the pod's hosts and servers. The resolver is
    /// made by the first look-up.
    ///
    /// # Errors
    ///
    /// [`LookupError`].
    pub(crate) async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        let (network, names) = (self.network(), self.names());
        if !policy::may_look_up(&network, &names, name) {
            self.refused(Rule::List);
            return Err(LookupError::Denied);
        }
        let found = self.found(&network, &names, name).await?;
        if network.outbound.is_some() {
            self.0.learned.learn(|| self.network(), name, &found);
        }
        Ok(found)
    }

    async fn found(
        &self,
        network: &PodNetwork,
        names: &Names,
        name: &str,
    ) -> Result<Vec<IpAddr>, LookupError> {
        let resolver = self.0.resolver.get_or_init(|| {
            let sockets = Arc::new(Sockets(self.downgrade()));
            Resolver::new(sockets, network.limits.lookups)
        });
        // What it may do may have changed while the resolver was made.
        resolver.bound(self.network().limits.lookups);
        resolver.lookup(name, names, families(network)).await
    }
}

/// Kinds of addresses that the pod can call, that of its first address first.
fn families(network: &PodNetwork) -> Families {
    let calls = |family| place::source(network, family).is_some();
    let (v4, v6) = (calls(Family::V4), calls(Family::V6));
    Families { v4, v6, ..Families::of(&network.addresses) }
}

/// The stack, which owns the resolver that owns this.
#[derive(Debug)]
struct Sockets(WeakStack);

impl Sockets {
    fn stack(&self) -> io::Result<Stack> {
        self.0.upgrade().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Network for Sockets {
    fn datagrams(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Datagrams>>> {
        Box::pin(async move {
            let mut socket = self.stack()?.udp(Family::of(server.ip())).await?;
            socket.connect(Some(server))?;
            Ok(Box::new(socket) as Box<dyn Datagrams>)
        })
    }

    fn stream(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn AnyStream>>> {
        Box::pin(
            async move { Ok(Box::new(self.stack()?.connect(server).await?) as Box<dyn AnyStream>) },
        )
    }

    fn service(&self, namespace: &str, name: &str) -> io::Result<Option<ServiceName>> {
        let directory = self.stack()?.services().ok_or(io::ErrorKind::NotFound)?;
        directory.name(&ServiceKey::new(namespace, name)).map_err(io::Error::other)
    }
}

impl Datagrams for UdpSocket {
    fn send<'a>(&'a self, bytes: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { Self::send(self, bytes, None).await.map_err(io::Error::from) })
    }

    fn receive<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<usize>> {
        Box::pin(async move {
            let received: Result<_, NetError> = Self::receive(self, buffer).await;
            Ok(received?.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join_all;
    use krustlet_model::policy::PodPolicy;
    use krustlet_protocol::SocketLimits;
    use tokio::{task::yield_now, time::timeout};

    use super::*;
    use crate::net::Options;

    #[test]
    fn names_that_are_not_told_stay_as_they_were() {
        let network = |names| PodNetwork {
            addresses: vec![Family::V4.localhost()],
            names,
            ..PodNetwork::default()
        };
        let names = Names { servers: vec!["192.0.2.53:53".parse().unwrap()], ..Names::default() };
        let stack = Stack::default();
        stack.set(network(None), None);
        assert_eq!(*stack.names(), Names::default());
        stack.set(network(Some(names.clone())), None);
        stack.set(PodNetwork { policy: Some(PodPolicy::closed()), ..network(None) }, None);
        assert_eq!(*stack.names(), names);
        assert_eq!(stack.network().policy, Some(PodPolicy::closed()), "the rest is as told");
    }

    #[tokio::test]
    async fn a_pod_that_may_look_up_more_names_does_so_at_once() {
        /// Of one look-up: both kinds of addresses.
        const QUESTIONS: usize = 2;
        let server: SocketAddr = "127.0.0.1:53".parse().unwrap();
        let network = |lookups| PodNetwork {
            // One that any machine has.
            addresses: vec![Family::V4.localhost()],
            limits: SocketLimits { lookups, ..SocketLimits::default() },
            names: Some(Names {
                servers: vec![server],
                timeout_ms: 60_000,
                attempts: 1,
                ..Names::default()
            }),
            ..PodNetwork::default()
        };
        let stack = Stack::default();
        stack.set(network(1), None);
        // Somebody within the pod who hears and does not answer.
        let asked = stack.bind_udp(stack.permit().unwrap(), Options::default(), server).unwrap();
        let names = ["one.test", "two.test", "three.test"];
        let lookups = join_all(names.map(|name| stack.lookup(name)));
        let mut buffer = [0; 512];
        let heard = async {
            for _ in 0..QUESTIONS {
                asked.receive(&mut buffer).await.unwrap();
            }
            for _ in 0..100 {
                yield_now().await;
            }
            assert_eq!(asked.try_receive(&mut buffer).unwrap_err(), NetError::WouldBlock);
            stack.set(network(3), None);
            for _ in QUESTIONS..names.len() * QUESTIONS {
                asked.receive(&mut buffer).await.unwrap();
            }
        };
        tokio::select! {
            biased;
            found = lookups => panic!("nobody has answered: {found:?}"),
            heard = timeout(Duration::from_secs(20), heard) => heard.expect("the others wait"),
        }
    }
}
