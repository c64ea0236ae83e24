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

use super::{Family, NetError, Stack, UdpSocket, WeakStack, policy};

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
            self.note(NetError::AccessDenied);
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
        resolver.lookup(name, names, Families::of(&network.addresses)).await
    }
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
