//! One request, from its instance's birth to its end.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    Request, Response, header,
    uri::{Authority, Scheme},
};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    task::unconstrained,
    time::Instant,
};
use wasmtime::Store;
use wasmtime_wasi_http::{
    Error as HttpError, FieldMap, WasiBody, WasiHttpView,
    p2::bindings::{ProxyPre, http::types::Scheme as P2Scheme},
    p3::{self, bindings::ServicePre},
};

use super::Server;
use crate::{
    exit::Ending,
    held::Held,
    log,
    log::LogStream,
    program::Handler,
    run::{Session, store},
    state::{Budgeted, ComponentState, REQUEST_HANDLES},
};

/// What the client is told.
pub(super) enum Reply {
    Guest(Response<WasiBody>),
    /// The guest gave an error for an answer.
    Refused,
    BadRequest,
}

impl Server {
    /// A request whose body ends with an error when it is too large.
    fn bounded(&self, request: Request<Incoming>) -> Request<WasiBody> {
        let Some(most) = self.max_body else {
            return request.map(|body| body.map_err(HttpError::from).boxed_unsync());
        };
        let bytes = usize::try_from(most).unwrap_or(usize::MAX);
        request.map(|body| {
            let told = move |error: Box<dyn std::error::Error + Send + Sync>| match error
                .downcast::<hyper::Error>(
            ) {
                Ok(error) => HttpError::from(*error),
                Err(_) => HttpError::HttpRequestBodySize(Some(most)),
            };
            Limited::new(body, bytes).map_err(told).boxed_unsync()
        })
    }

    /// Answers a request by an instance of its own, until that has ended.
    pub(super) async fn instance(
        self: Arc<Self>,
        request: Request<Incoming>,
        reply: oneshot::Sender<Reply>,
        permit: OwnedSemaphorePermit,
        end: Instant,
    ) {
        let stream = |stream| Box::new(LogStream::new(Arc::clone(&self.container.log), stream));
        let session = Session {
            args: self.container.spec.args.clone(),
            stdin: None,
            stdout: stream(log::Stream::Stdout),
            stderr: stream(log::Stream::Stderr),
            listens: false,
        };
        let mut wasi = match session.wasi(&self.container) {
            Ok(wasi) => wasi,
            Err(error) => return self.complain(&format!("cannot make an instance: {error:#}")),
        };
        let state = ComponentState::new(wasi.build(), &self.container, REQUEST_HANDLES);
        let mut store = store(self.handler.engine(), state, || {});
        let request = self.bounded(request);
        // It yields by its epochs.
        let called = match &self.handler {
            Handler::P2(handler) => unconstrained(p2(&mut store, handler, request, reply)).await,
            Handler::P3(handler) => unconstrained(p3(&mut store, handler, request, reply)).await,
        };
        if let Err(error) = called {
            let denied = store.data_mut().budget().denied();
            let ending = Ending::of(Err(error), denied, true);
            if ending.code != 0 && Instant::now() < end {
                self.complain(&format!("a request failed: {}\n", ending.message));
            }
        }
        drop(permit);
    }
}

/// Calls `wasi:http/incoming-handler`.
async fn p2(
    store: &mut Store<ComponentState>,
    handler: &ProxyPre<ComponentState>,
    request: Request<WasiBody>,
    reply: oneshot::Sender<Reply>,
) -> wasmtime::Result<()> {
    let Ok(request) = store.data_mut().http().new_incoming_request(P2Scheme::Http, request) else {
        let _ = reply.send(Reply::BadRequest);
        return Ok(());
    };
    // The answer goes out as soon as the guest gives it; the guest may run on.
    let out = store.data_mut().http().new_response_outparam_from_callback(move |answer| {
        // Whoever asked may have left.
        let _ = reply.send(answer.map_or(Reply::Refused, Reply::Guest));
    })?;
    let instance = handler.instantiate_async(&mut *store).await?;
    instance.wasi_http_incoming_handler().call_handle(store, request, out).await
}

/// Calls `wasi:http/handler`. The answer's body is made while it is sent, and
/// the guest may run on after that.
async fn p3(
    store: &mut Store<ComponentState>,
    handler: &ServicePre<ComponentState>,
    request: Request<WasiBody>,
    reply: oneshot::Sender<Reply>,
) -> wasmtime::Result<()> {
    let Some(request) = p3_request(store, request) else {
        let _ = reply.send(Reply::BadRequest);
        return Ok(());
    };
    let service = handler.instantiate_async(&mut *store).await?;
    let answered = store.run_concurrent(async |accessor| -> wasmtime::Result<()> {
        let Ok(answer) = service.handle(accessor, request).await? else {
            let _ = reply.send(Reply::Refused);
            return Ok(());
        };
        let (told, sent) = oneshot::channel();
        // An answer that nobody wants any more was not sent.
        let sent = async move { sent.await.unwrap_or(Err(HttpError::ConnectionTerminated)) };
        let answer = accessor.with(|mut store| answer.into_http(&mut store, sent))?;
        let (kept, gone) = oneshot::channel::<()>();
        let answer = answer.map(|body| Held::new(Watched::new(body, told), kept).boxed_unsync());
        if reply.send(Reply::Guest(answer)).is_ok() {
            // Nothing is ever sent: this is its end.
            let _ = gone.await;
        }
        poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
        Ok(())
    });
    answered.await?
}

/// A request as the guest gets it; none without a host.
fn p3_request(
    store: &mut Store<ComponentState>,
    request: Request<WasiBody>,
) -> Option<p3::Request> {
    let (parts, body) = request.into_parts();
    let authority = match parts.uri.authority() {
        Some(authority) => authority.clone(),
        None => Authority::try_from(parts.headers.get(header::HOST)?.as_bytes()).ok()?,
    };
    let path = parts.uri.path_and_query().cloned();
    let headers = FieldMap::new_immutable(store.data_mut().http().hooks, parts.headers);
    let scheme = Some(Scheme::HTTP);
    let (request, _done) =
        p3::Request::new(parts.method, scheme, Some(authority), path, headers, None, body);
    Some(request)
}

/// A body that tells whether all of it was taken.
struct Watched {
    body: WasiBody,
    is_over: bool,
    told: Option<oneshot::Sender<Result<(), HttpError>>>,
}

impl Watched {
    fn new(body: WasiBody, told: oneshot::Sender<Result<(), HttpError>>) -> Self {
        Self { body, is_over: false, told: Some(told) }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.is_over |= frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Who has been told the length does not ask for the end.
        let is_over = self.is_over || self.body.is_end_stream();
        let how = if is_over { Ok(()) } else { Err(HttpError::ConnectionTerminated) };
        if let Some(told) = self.told.take() {
            let _ = told.send(how);
        }
    }
}
