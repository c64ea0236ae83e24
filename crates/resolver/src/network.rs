//! How servers are reached; what this crate asks of its user.

use std::{fmt::Debug, io, net::SocketAddr};

use futures::future::BoxFuture;
use krustlet_protocol::ServiceName;
use tokio::io::{AsyncRead, AsyncWrite};

/// Makes the sockets. One stands for the pod's sockets, another in tests for
/// the network itself.
pub trait Network: Debug + Send + Sync {
    /// A new datagram socket that sends to this server and hears nobody else.
    /// Its port must be one that others cannot guess: the system's choice.
    fn datagrams(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Datagrams>>>;

    /// A new connection to this server.
    fn stream(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Stream>>>;

    /// What the name of a Service stands for; None if there is no such Service.
    /// Asked only for names below [`Names::cluster_domain`](krustlet_protocol::Names).
    fn service(&self, namespace: &str, name: &str) -> io::Result<Option<ServiceName>>;
}

/// A datagram socket with one peer.
pub trait Datagrams: Send + Sync {
    /// Sends one.
    fn send<'a>(&'a self, bytes: &'a [u8]) -> BoxFuture<'a, io::Result<()>>;

    /// Waits for one and says how long it was; what does not fit is lost.
    /// Dropped, it has taken none.
    fn receive<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<usize>>;
}

/// A connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
