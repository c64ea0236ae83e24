//! Makes the connections that requests go through.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    Uri,
    uri::{Authority, Scheme},
};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection as Described},
    rt::TokioIo,
};
use krustlet_resolver::LookupError;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::{CONNECTING, Connecting, PATIENCE, Stage, race::first_of, roots::Roots};
use crate::net::{Kept, Lasting, NetError, WeakStack};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("the address of the request names no host")]
    NoHost,
    #[error("the address of the request names a port that there cannot be")]
    NoPort,
    #[error("cannot look up the host")]
    Lookup(#[from] LookupError),
    #[error("cannot connect")]
    Net(#[from] NetError),
    #[error("it took too long")]
    Timeout,
    #[error("this node's system trusts no certificate authority")]
    NoAuthorities,
    #[error("cannot agree on TLS")]
    Tls(#[source] io::Error),
    #[error("the pod is gone")]
    Gone,
}

/// Connects for the client, which owns it and is owned by the stack.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    stack: WeakStack,
    roots: Arc<Roots>,
}

impl Connector {
    pub(super) fn new(stack: WeakStack, roots: Arc<Roots>) -> Self {
        Self { stack, roots }
    }

    async fn connect(self, uri: Uri, end: Instant) -> Result<Link, ConnectError> {
        let stack = self.stack.upgrade().ok_or(ConnectError::Gone)?;
        let host = uri.host().ok_or(ConnectError::NoHost)?;
        let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
        let port = port_of(&uri, is_tls)?;
        // Where nobody is believed nobody is called.
        let tls = is_tls.then(|| self.roots.config()).transpose()?.map(TlsConnector::from);
        let addresses = stack.lookup(host).await?;
        let connection = Arc::new(first_of(&stack, &addresses, port, end).await?);
        let kept = stack.may_be_kept(&connection);
        let stream = Lasting::new(connection, Arc::clone(&kept));
        let Some(tls) = tls else { return Ok(Link::new(Box::new(stream), kept, false)) };
        let name = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        let name = ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::NoHost)?;
        let stream = tls.connect(name, stream).await.map_err(ConnectError::Tls)?;
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Link::new(Box::new(stream), kept, is_h2))
    }
}

/// The port that is named, or the scheme's if none is.
fn port_of(uri: &Uri, is_tls: bool) -> Result<u16, ConnectError> {
    if let Some(port) = uri.port_u16() {
        return Ok(port);
    }
    // What is no number of a port is passed over by the above. There may be colons in
    // a user's name and in an address of IPv6.
    let authority = uri.authority().map_or("", Authority::as_str);
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let named = host.rsplit(']').next().unwrap_or(host).rsplit_once(':');
    match named {
        Some((_, port)) if !port.is_empty() => Err(ConnectError::NoPort),
        Some(_) | None => Ok(if is_tls { 443 } else { 80 }),
    }
}

impl Service<Uri> for Connector {
    type Response = Link;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Link, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // Called while its request is polled, and maybe finished without it.
        let asked = CONNECTING.try_with(Connecting::clone).ok();
        let connector = self.clone();
        Box::pin(async move {
            let now = Instant::now();
            let end = now + asked.as_ref().map_or(PATIENCE, |asked| asked.time);
            let told = |stage: &mut Stage| {
                let is_own = matches!(stage, Stage::Connection(since) if *since == now);
                if is_own {
                    *stage = Stage::Answer(Instant::now());
                }
                is_own
            };
            if let Some(asked) = &asked {
                asked.stage.send_replace(Stage::Connection(now));
            }
            let mut connected = pin!(timeout_at(end, connector.connect(uri, end)));
            let connected = poll_fn(|context| {
                let connected = connected.as_mut().poll(context);
                // Without its request it is finished for others: that has been given
                // a connection of another's meanwhile.
                let is_for_nobody = CONNECTING.try_with(|_| ()).is_err();
                if let Some(asked) = &asked
                    && (connected.is_ready() || is_for_nobody)
                {
                    asked.stage.send_if_modified(told);
                }
                if let Poll::Ready(Ok(Ok(link))) = &connected
                    && is_for_nobody
                {
                    link.kept.expect_nobody();
                }
                connected
            });
            let connected = connected.await;
            connected.unwrap_or(Err(ConnectError::Timeout))
        })
    }
}

/// Bytes both ways, encrypted or not.
trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// A connection as the client wants it.
pub(super) struct Link {
    bytes: TokioIo<Box<dyn Bytes>>,
    kept: Arc<Kept>,
    is_h2: bool,
}

/// What the client says of each request: the connection it goes by.
#[derive(Clone, Debug)]
pub(super) struct By(pub(super) Arc<Kept>);

impl Link {
    fn new(bytes: Box<dyn Bytes>, kept: Arc<Kept>, is_h2: bool) -> Self {
        Self { bytes: TokioIo::new(bytes), kept, is_h2 }
    }
}

impl Described for Link {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(By(Arc::clone(&self.kept)));
        if self.is_h2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_read(context, buffer)
    }
}

impl Write for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_the_one_that_is_named_or_the_schemes_but_no_other() {
        for (uri, port) in [
            ("http://web.test/", Some(80)),
            ("http://web.test:8080/", Some(8080)),
            ("http://web.test:/", Some(80)),
            ("http://[fd00::1]/", Some(80)),
            ("http://[fd00::1]:8080/", Some(8080)),
            ("http://who:word@web.test/", Some(80)),
            ("http://who:word@web.test:8080/", Some(8080)),
            ("http://web.test:65536/", None),
            ("http://web.test:99999/", None),
            ("http://[fd00::1]:99999/", None),
        ] {
            let of = |is_tls| port_of(&uri.parse().unwrap(), is_tls).ok();
            assert_eq!(of(false), port, "{uri}");
            assert_eq!(of(true), port.map(|port| if port == 80 { 443 } else { port }), "{uri}");
        }
    }
}
