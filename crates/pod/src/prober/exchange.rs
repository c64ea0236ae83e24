//! A request and its answer over a connection of their own.
//!
//! Version 2 is spoken where a server of `https` chooses it, as by Go's client; its
//! tasks end with the answer.

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures::future::BoxFuture;
use http::{
    HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, LOCATION},
    uri::Scheme,
};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::{Body as _, Bytes, Incoming},
    client::conn::{http1, http2},
    rt::Executor,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};

/// Bytes of a body that is taken though it leads elsewhere. Source:
/// `maxBodySlurpSize` in Go's `net/http`, `client.go`.
const SHORT_BODY: u64 = 2 << 10;

/// Bytes of an answer's head. Servers rarely send more than a few kilobytes.
const LONGEST_HEAD: usize = 64 << 10;

/// Bytes of an answer's body that may wait in version 2, of a stream and of a connection:
/// what there is without a word (RFC 9113, 6.9.2).
const WINDOW: u32 = 65_535;

/// The body of a probe's request.
pub(super) type Nothing = Empty<Bytes>;

/// An answer's head; its body is still to come.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) location: Option<String>,
    body: Incoming,
    connection: Connection,
    /// Without it the connection would be closed.
    _held: Box<dyn Send>,
}

/// What brings bytes, until it ends. What it failed of, the exchange is told.
type Connection = Option<BoxFuture<'static, ()>>;

/// Runs what a connection of version 2 does beside, as long as somebody has it.
#[derive(Clone)]
struct Beside(Weak<Mutex<JoinSet<()>>>);

impl<F> Executor<F> for Beside
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, work: F) {
        if let Some(tasks) = self.0.upgrade() {
            let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.spawn(async move { drop(work.await) });
        }
    }
}

/// Sends a request, and waits for the head of its answer.
pub(super) async fn by_version_1<S>(
    stream: S,
    request: Request<Nothing>,
) -> Result<Answer, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .max_buf_size(LONGEST_HEAD)
        .handshake(TokioIo::new(stream))
        .await?;
    let response = sender.send_request(request);
    let (response, connection) = answered(connection, response).await?;
    Ok(Answer::new(response, connection, Box::new(sender)))
}

/// Waits for the head of an answer, which needs the connection to go on.
async fn answered<T, E>(
    connection: impl Future<Output = T> + Send + 'static,
    response: impl Future<Output = Result<Response<Incoming>, E>>,
) -> Result<(Response<Incoming>, Connection), E> {
    let mut connection: Connection = Some(Box::pin(async move { drop(connection.await) }));
    let response = beside(&mut connection, response).await?;
    Ok((response, connection))
}

/// The same request as version 2 has it: the host is no header line, and connections
/// are not spoken of.
///
/// # Errors
///
/// The host cannot be one.
pub(super) fn for_version_2(
    mut request: Request<Nothing>,
    authority: &HeaderValue,
) -> Result<Request<Nothing>, http::Error> {
    let mut uri = Uri::builder().scheme(Scheme::HTTPS).authority(authority.as_bytes());
    if let Some(path) = request.uri().path_and_query() {
        uri = uri.path_and_query(path.clone());
    }
    *request.uri_mut() = uri.build()?;
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(CONNECTION);
    Ok(request)
}

/// As [`by_version_1`].
pub(super) async fn by_version_2<S>(
    stream: S,
    request: Request<Nothing>,
) -> Result<Answer, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tasks = Arc::<Mutex<JoinSet<()>>>::default();
    let (mut sender, connection) = http2::Builder::new(Beside(Arc::downgrade(&tasks)))
        .max_header_list_size(u32::try_from(LONGEST_HEAD).unwrap_or(u32::MAX))
        // hyper's own are megabytes, which a guest could have the agent hold.
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(TokioIo::new(stream))
        .await?;
    let response = sender.send_request(request);
    let (response, connection) = answered(connection, response).await?;
    Ok(Answer::new(response, connection, Box::new((sender, tasks))))
}

/// Waits for `work`, which needs the connection to go on. Cancel-safe if that is.
async fn beside<T>(connection: &mut Connection, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        let Some(going_on) = connection else { return work.await };
        // Both are only polled on.
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = going_on => *connection = None,
        }
    }
}

impl Answer {
    fn new(response: Response<Incoming>, connection: Connection, kept: Box<dyn Send>) -> Self {
        let (head, body) = response.into_parts();
        let location = head.headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.map(str::to_owned);
        Self { status: head.status, location, body, connection, _held: kept }
    }

    /// Reads the body, or the first bytes of it.
    pub(super) async fn start_of_body(&mut self, longest: usize) -> Result<String, hyper::Error> {
        let body = &mut self.body;
        let read = async {
            let mut bytes = Vec::new();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    bytes.extend_from_slice(&data);
                }
                if bytes.len() >= longest {
                    bytes.truncate(longest);
                    break;
                }
            }
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        beside(&mut self.connection, read).await
    }

    /// Takes a short body, as Go's client does before it goes elsewhere. What
    /// becomes of it is of no interest.
    pub(super) async fn leave(mut self) {
        if self.body.size_hint().exact().is_none_or(|bytes| bytes <= SHORT_BODY) {
            let longest = usize::try_from(SHORT_BODY).unwrap_or(usize::MAX);
            drop(self.start_of_body(longest).await);
        }
    }
}
