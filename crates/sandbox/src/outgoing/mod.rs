//! Requests that guests send with `wasi:http`.
//!
//! ```text
//! guest ──▶ Outgoing::send ──▶ client (hyper-util: connections kept, HTTP/1.1 and 2)
//!                                └▶ connect.rs: name ─▶ addresses ─▶ Stack ─▶ TLS
//! answer ◀── body.rs (times) ◀──┘       error.rs: why not, in WASI's words
//! ```
//!
//! Every connection is a socket of the pod's [`Stack`], which checks the very
//! address that is connected to: a name that changes its mind after it was
//! looked up gains nothing. Nothing is made before the first request.

mod body;
mod connect;
mod error;
mod roots;
#[cfg(test)]
mod tests;

use std::{future::Future, sync::Arc, time::Duration};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::{sync::Semaphore, time::timeout};
use wasmtime_wasi_http::{Error as HttpError, RequestOptions, WasiBody, WasiHttpHooks};

pub(crate) use self::roots::remember;
use self::{body::Timed, connect::Connector, roots::Roots};
use crate::net::Stack;

/// How long a guest waits for a connection or an answer if it names no time of
/// its own, as with `wasmtime serve`.
const PATIENCE: Duration = Duration::from_mins(10);

/// Requests of one pod that are under way at once; more wait.
const REQUESTS: usize = 256;

/// Connections to one server that are kept while nobody uses them, and how
/// long. All of them count as sockets of the pod.
const IDLE_CONNECTIONS: usize = 8;
const IDLE_TIME: Duration = Duration::from_secs(30);

/// Bytes of an answer's head. What holds it is bounded by wasmtime (128 KiB of
/// fields, counted with what they take in memory).
const HEAD: usize = 64 << 10;

/// Sends a pod's requests. One for each pod.
#[derive(Debug)]
pub(crate) struct Outgoing {
    client: Client<Connector, WasiBody>,
    permits: Arc<Semaphore>,
}

tokio::task_local! {
    /// How long the request at hand waits for its connection.
    static CONNECT_TIME: Duration;
}

impl Outgoing {
    /// Takes what the system trusts from the zygote.
    pub(crate) fn new(stack: &Stack) -> Self {
        Self::trusting(stack, Roots::of_system())
    }

    fn trusting(stack: &Stack, roots: Roots) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .http1_max_buf_size(HEAD)
            .http2_max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX));
        let client = builder.build(Connector::new(stack, roots));
        Self { client, permits: Arc::new(Semaphore::new(REQUESTS)) }
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    ///
    /// In the words that guests know.
    pub(crate) async fn send(
        &self,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, HttpError> {
        let connect = options.connect_timeout.unwrap_or(PATIENCE);
        let first = options.first_byte_timeout.unwrap_or(PATIENCE);
        let between = options.between_bytes_timeout.unwrap_or(PATIENCE);
        // The semaphore is closed never: it lives as long as the client.
        let permit = timeout(connect, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Err(HttpError::ConnectionLimitReached) };
        let sent = CONNECT_TIME.scope(connect, self.client.request(request));
        // Two times in a row; the first of them the connector keeps.
        let answer = timeout(connect.saturating_add(first), sent).await;
        let answer = answer.map_err(|_| HttpError::ConnectionReadTimeout)?;
        let answer = answer.map_err(|failure| error::of_client(&failure))?;
        Ok(answer.map(|body| Timed::new(body, between, permit).boxed_unsync()))
    }
}

/// What wasmtime asks when a guest sends a request.
#[derive(Debug)]
pub(crate) struct Hooks {
    stack: Stack,
}

impl Hooks {
    pub(crate) fn new(stack: Stack) -> Self {
        Self { stack }
    }
}

type Done = Box<dyn Future<Output = Result<(), HttpError>> + Send>;
type Sent = Result<(Response<WasiBody>, Done), HttpError>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Done,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let stack = self.stack.clone();
        Box::new(async move {
            let answer = stack.outgoing().send(request, options.unwrap_or_default()).await?;
            // The client looks after the connection; nothing is left to do.
            Ok((answer, Box::new(std::future::ready(Ok(()))) as Done))
        })
    }
}
