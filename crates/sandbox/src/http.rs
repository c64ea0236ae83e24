//! Serves requests with a component: `wasi:http/incoming-handler` of WASI 0.2, or
//! `wasi:http/handler` of 0.3.
//!
//! Each request gets an instance of its own, which ends with it: while nobody
//! calls, no instance lives. A guest may go on after it has answered, until the
//! request's time is over.
//!
//! ```text
//! listener ──▶ connection (speak.rs) ──▶ permit ──▶ instance.rs ──▶ response
//! stop: no more connections ──▶ open requests finish ──▶ end
//! ```

mod instance;
mod speak;

use std::{
    convert::Infallible,
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use krustlet_protocol::HttpLimits;
use tokio::{
    sync::{Semaphore, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use wasmtime_wasi_http::WasiBody;

use self::{
    instance::Reply,
    speak::{Times, speak},
};
use crate::{
    container::{Container, Stop},
    exit::{Ending, KILLED, STOPPED},
    guests::{out_of_time, stopped},
    log,
    log::LogStream,
    net::{Connection, Stream},
    ports::{http_port, listen},
    program::Handler,
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
    handler: Handler,
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
    handler: &Handler,
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
        handler: handler.clone(),
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
                    let usage = Arc::clone(&container.usage);
                    connections.spawn(Metered::of_host(connection, usage));
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
fn failed(status: StatusCode, text: &'static str) -> Response<WasiBody> {
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

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<WasiBody> {
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
            Ok(Ok(Reply::Guest(response))) => response,
            Ok(Ok(Reply::Refused)) => {
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
}
