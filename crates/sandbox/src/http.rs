//! Serves requests with a `wasi:http/incoming-handler` component.
//!
//! Each request gets an instance of its own, which ends with it: while nobody
//! calls, no instance lives. A guest may go on after it has answered, until the
//! request's time is over.
//!
//! ```text
//! listener ──▶ connection (speak.rs) ──▶ permit ──▶ instance ──▶ response
//! stop: no more connections ──▶ open requests finish ──▶ end
//! ```

mod speak;

use std::{
    convert::Infallible,
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use krustlet_protocol::HttpLimits;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    task::{JoinSet, unconstrained},
    time::{Instant, sleep, timeout, timeout_at},
};
use wasmtime_wasi_http::{
    Error as HttpError, WasiBody, WasiHttpView,
    p2::{
        bindings::{
            ProxyPre,
            http::types::{ErrorCode, Scheme},
        },
        body::HyperOutgoingBody,
    },
};

use self::speak::{Times, speak};
use crate::{
    container::{Container, Stop},
    exit::{Ending, KILLED, STOPPED},
    guests::{out_of_time, stopped},
    log,
    log::LogStream,
    net::{Connection, Stream},
    ports::{http_port, listen},
    run::{Session, store},
    state::{Budgeted, ComponentState, REQUEST_HANDLES},
    ticker::{Metered, Ticker},
};

/// Connections open at once; most of them wait between requests. A process may
/// have 20,000 descriptors.
const CONNECTIONS: usize = 4096;

/// Wait after a failed accept: descriptors are short, and others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long after a request's time the rest of its answer may take to be sent;
/// nginx's `send_timeout`.
const SEND_TIME: Duration = Duration::from_mins(1);

struct Server {
    container: Arc<Container>,
    linked: ProxyPre<ComponentState>,
    ticker: Arc<Ticker>,
    permits: Arc<Semaphore>,
    /// Places for those who wait for a permit: each holds a request's head.
    queue: Semaphore,
    time: Duration,
    idle_time: Duration,
    /// Bytes of a request's body.
    max_body: Option<u64>,
    /// The instances at work. They may outlive their connection.
    requests: Mutex<JoinSet<()>>,
}

/// Serves until the container is told to stop.
pub(crate) async fn serve(
    container: &Arc<Container>,
    linked: &ProxyPre<ComponentState>,
    limits: &HttpLimits,
    ticker: Arc<Ticker>,
) -> Ending {
    let listener = http_port(container).and_then(|port| listen(container, port));
    let mut listener = match listener {
        Ok(listener) => listener,
        Err(why) => return Ending::not_started(&why),
    };
    let at_once = (limits.max_concurrent.max(1) as usize).min(Semaphore::MAX_PERMITS);
    let server = Arc::new(Server {
        container: Arc::clone(container),
        linked: linked.clone(),
        ticker,
        permits: Arc::new(Semaphore::new(at_once)),
        queue: Semaphore::new(at_once.saturating_mul(4).clamp(256, CONNECTIONS)),
        time: Duration::from_millis(limits.request_timeout_ms),
        idle_time: Duration::from_millis(limits.idle_timeout_ms),
        max_body: limits.max_body_bytes,
        requests: Mutex::default(),
    });
    container.entered();

    let leave = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    let stop = loop {
        tokio::select! {
            biased;
            // All may be dropped and asked again.
            stop = stopped(container) => break stop,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok(accepted) => {
                    let connection = Arc::clone(&server).connection(accepted, leave.subscribe());
                    connections.spawn(connection);
                    server.reap();
                }
                // A client gone already, or no descriptors left.
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
        }
    };
    drop(listener);
    let ending = if matches!(stop, Stop::Now | Stop::Ended) {
        Ending::stopped(KILLED)
    } else {
        let finished = async {
            leave.send_replace(true);
            while connections.join_next().await.is_some() {}
            // What is dropped here halfway is ended below.
            while poll_fn(|context| server.lock_requests().poll_join_next(context)).await.is_some()
            {
            }
        };
        tokio::select! {
            biased;
            () = finished => Ending::stopped(STOPPED),
            () = out_of_time(container) => Ending::stopped(KILLED),
        }
    };
    // First those who could begin requests. The requests own the server that
    // owns them, so they would go on for ever if they were not taken from it.
    connections.shutdown().await;
    let mut requests = std::mem::take(&mut *server.lock_requests());
    requests.shutdown().await;
    ending
}

/// How a request that the guest did not answer is answered.
fn failed(status: StatusCode, text: &'static str) -> Response<HyperOutgoingBody> {
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    let body = body.map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

impl Server {
    fn lock_requests(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of requests that have ended.
    fn reap(&self) {
        let mut requests = self.lock_requests();
        while let Some(ended) = requests.try_join_next() {
            if let Err(error) = ended {
                self.complain(&format!("the sandbox failed in a request: {error}"));
            }
        }
    }

    fn complain(&self, what: &str) {
        let stderr = LogStream::new(Arc::clone(&self.container.log), log::Stream::Stderr);
        stderr.push(what.as_bytes());
    }

    async fn connection(self: Arc<Self>, accepted: Connection, leave: watch::Receiver<bool>) {
        // Answers are whole when they are written; waiting for more is no gain.
        if let Some(socket) = accepted.socket() {
            let _ = rustix::net::sockopt::set_tcp_nodelay(socket, true);
        }
        let io = Stream(Arc::new(accepted));
        // It waits for its turn as long as it may then take.
        let request = self.time.saturating_mul(2).saturating_add(SEND_TIME);
        let times = Times { idle: self.idle_time, request };
        speak(io, times, leave, |request| Arc::clone(&self).answer(request)).await;
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<HyperOutgoingBody> {
        if self.max_body.is_some_and(|most| request.body().size_hint().lower() > most) {
            return failed(StatusCode::PAYLOAD_TOO_LARGE, "the request's body is too large\n");
        }
        // Who waits for others does so no longer than one of them may take. The
        // semaphore is closed never: it lives as long as the server.
        let permit = match self.queue.try_acquire() {
            Ok(_place) => {
                let granted = timeout(self.time, Arc::clone(&self.permits).acquire_owned()).await;
                granted.ok().and_then(Result::ok)
            }
            // As many as may wait do so already.
            Err(_) => Arc::clone(&self.permits).try_acquire_owned().ok(),
        };
        let Some(permit) = permit else {
            return failed(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n");
        };
        let end = Instant::now() + self.time;
        let (reply, answered) = oneshot::channel();
        let guest = Arc::clone(&self).instance(request, reply, permit, end);
        let guest =
            Metered::new(guest, Arc::clone(&self.ticker), Arc::clone(&self.container.usage));
        self.lock_requests().spawn(async move {
            // Past its time a guest is dropped, and with it a body half sent.
            let _ = timeout_at(end, guest).await;
        });
        let answer = timeout_at(end, answered).await;
        self.reap();
        match answer {
            Ok(Ok(Reply::Guest(Ok(response)))) => response,
            Ok(Ok(Reply::Guest(Err(_)))) => {
                failed(StatusCode::BAD_GATEWAY, "the program refused to answer\n")
            }
            Ok(Ok(Reply::BadRequest)) => {
                failed(StatusCode::BAD_REQUEST, "the request names no host\n")
            }
            // Its end of the channel went with the guest.
            Ok(Err(_)) if Instant::now() < end => {
                failed(StatusCode::INTERNAL_SERVER_ERROR, "the program failed\n")
            }
            Ok(Err(_)) | Err(_) => {
                failed(StatusCode::GATEWAY_TIMEOUT, "the program took too long\n")
            }
        }
    }

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

    /// One request, to the end of its instance.
    async fn instance(
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
        let state = ComponentState::new(
            wasi.build(),
            self.container.budget(),
            self.container.stack.clone(),
            REQUEST_HANDLES,
        );
        let mut store = store(self.linked.engine(), state, || {});
        let request = self.bounded(request);
        let Ok(incoming) = store.data_mut().http().new_incoming_request(Scheme::Http, request)
        else {
            let _ = reply.send(Reply::BadRequest);
            return;
        };
        // The answer goes out as soon as the guest gives it; the guest may run on.
        let outparam = store.data_mut().http().new_response_outparam_from_callback(move |answer| {
            // Whoever asked may have left.
            let _ = reply.send(Reply::Guest(answer));
        });
        let called = async {
            let outparam = outparam?;
            let instance = self.linked.instantiate_async(&mut store).await?;
            let handler = instance.wasi_http_incoming_handler();
            handler.call_handle(&mut store, incoming, outparam).await
        };
        // It yields by its epochs.
        let called = unconstrained(called).await;
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

/// What the client is told.
enum Reply {
    Guest(Result<Response<HyperOutgoingBody>, ErrorCode>),
    BadRequest,
}
