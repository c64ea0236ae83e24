//! The HTTPS listener: TLS, who asks, whether they may, then the routes.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{StatusCode, header::AUTHORIZATION};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    access::{self, Reviews},
    everywhere,
    identity::{self, User},
    queries::PodQueries,
    routes,
};

/// Connections served at once; further ones wait in the kernel's queue. The
/// API server keeps a few; each `kubectl logs -f` may hold one more.
const MAX_CONNECTIONS: usize = 1000;

/// For a TLS handshake and for the headers of a request, so that idle
/// handshakes and slow headers do not hold the places above.
const HEADER_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of headers; the kubelet allows 1 MiB, which no client of it needs.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Why the server cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port is taken or the address is not this machine's.
    #[error("cannot listen on {address}: free the address or set another `port`")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Serves the kubelet's API until stopped.
pub struct HttpsTask {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    router: Router,
}

impl std::fmt::Debug for HttpsTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpsTask").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl HttpsTask {
    /// Listens as the node of this name; serving begins with [`HttpsTask::run`]. `::`
    /// and `0.0.0.0` stand for all addresses of both families.
    ///
    /// # Errors
    ///
    /// [`ServeError::Listen`] if the address cannot be had.
    pub async fn bind(
        address: SocketAddr,
        tls: ServerConfig,
        node: &str,
        pods: Arc<dyn PodQueries>,
        reviews: Arc<dyn Reviews>,
    ) -> Result<Self, ServeError> {
        let listener = everywhere::bind_at(address)
            .await
            .map_err(|source| ServeError::Listen { address, source })?;
        let router =
            routes::kubelet(pods, node).layer(middleware::from_fn_with_state(reviews, guard));
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(tls)), router })
    }

    /// Where it listens; tells the port when 0 was asked for.
    ///
    /// # Errors
    ///
    /// What the system says of the socket.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves. At the end open connections are closed.
    pub async fn run(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                // All are cancel-safe; no arm awaits in its body.
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    match accepted {
                        Ok((stream, _)) => {
                            let (acceptor, router) = (self.acceptor.clone(), self.router.clone());
                            connections.spawn(serve(stream, acceptor, router));
                        }
                        // Out of descriptors, or the peer has gone already.
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept a connection");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    let stream = match timeout(HEADER_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    let user = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(identity::user_of);
    // Every request of the connection is asked by the certificate's user.
    let router = router.layer(axum::Extension(user));
    // By what TLS agreed on: guessing from the first bytes would wait for them
    // without a limit.
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let mut http = auto::Builder::new(TokioExecutor::new());
    http = if is_http2 { http.http2_only() } else { http.http1_only() };
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(MAX_HEADER_BYTES);
    #[expect(clippy::cast_possible_truncation, reason = "64 KiB")]
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_concurrent_streams(100)
        .keep_alive_interval(Duration::from_secs(30));
    let served = http
        .serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Lets a request through if its user is known and may do it.
///
/// Source: kubelet, `InstallAuthFilter` in `pkg/kubelet/server/server.go`:
/// the texts are what its clients expect.
async fn guard(State(reviews): State<Arc<dyn Reviews>>, request: Request, next: Next) -> Response {
    let user = match credential(&request) {
        None => None,
        Some(Credential::Certificate(user)) => Some(user),
        Some(Credential::Bearer(token)) => reviews.token(token).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "a token could not be reviewed");
            None
        }),
    };
    let Some(user) = user else {
        return (StatusCode::UNAUTHORIZED, "Unauthorized").into_response();
    };
    let wanted = access::attributes(request.method(), request.uri().path());
    for attributes in &wanted {
        match reviews.access(user.clone(), attributes.clone()).await {
            Ok(true) => return next.run(request).await,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "a request could not be authorized");
                let text = format!("Authorization error (user={})", user.name);
                return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
            }
        }
    }
    let verb = wanted.first().map_or("get", |attributes| attributes.verb);
    let subresources: Vec<_> = wanted.iter().map(|attributes| attributes.subresource).collect();
    let text = format!(
        "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
        user.name,
        subresources.join(" ")
    );
    (StatusCode::FORBIDDEN, text).into_response()
}

/// What a client shows of itself.
enum Credential {
    /// A certificate that TLS has verified.
    Certificate(User),
    /// A token that the API server has to review.
    Bearer(String),
}

/// The certificate counts before a token. None if neither is there.
fn credential(request: &Request) -> Option<Credential> {
    if let Some(Some(user)) = request.extensions().get::<Option<User>>() {
        return Some(Credential::Certificate(user.clone()));
    }
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
        .then(|| Credential::Bearer(token.to_owned()))
}
