//! Serves requests with a component: `wasi:http/incoming-handler` of WASI 0.2, or
//! `wasi:http/handler` of 0.3.
//!
//! Instances are made as they are needed, for one request or for several in turn,
//! of 0.3 at once too, as the pod's annotations say: while nobody calls, no instance
//! lives for long. A guest may go on after it has answered, until the request's time
//! is over.
//!
//! ```text
//! listener ──▶ connection (speak.rs) ──▶ permit ──▶ an instance that waits for a
//!                                          request (places.rs), or a new one
//!                                          (instance.rs) ──▶ response
//! stop: no more connections ──▶ open requests finish ──▶ end
//! ```

mod instance;
mod places;
mod speak;
mod together;
mod watched;

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::Shutdown,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use krustlet_protocol::HttpLimits;
use tokio::{
    sync::{Semaphore, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use wasmtime_wasi_http::WasiBody;

use self::{
    instance::Asked,
    places::Places,
    speak::{Times, speak},
    watched::{Unread, Watched},
};
use crate::{
    container::{Container, Stop},
    exit::{Ending, KILLED, STOPPED},
    guests::{out_of_time, stopped},
    log,
    log::LogStream,
    net::{Connection, NetError, Stream},
    ports::{http_port, listen},
    program::Handler,
    ticker::{Metered, Ticker},
};

/// Connections open at once; most of them wait between requests. A process may have
/// as many descriptors as the machine allows, 20,000 at least by default.
const CONNECTIONS: usize = 4096;

/// Wait after a failed accept, unless a client alone gave up: descriptors are short,
/// and others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long after a request's time the rest of its answer may take to be sent;
/// nginx's `send_timeout`.
const SEND_TIME: Duration = Duration::from_mins(1);

/// How long a connection is read on whose client may still be sending a body that
/// nobody wants; nginx's `lingering_timeout`.
const LINGER_TIME: Duration = Duration::from_secs(5);

/// Requests that an instance answers if nothing is said, of WASI 0.2 and 0.3, and at
/// once of 0.3. Source: wasmtime 48, `src/commands/serve.rs`.
const REUSE_P2: u32 = 1;
const REUSE_P3: u32 = 128;
const AT_ONCE_P3: u32 = 16;

/// A request's body as it comes.
type Received = Watched<Incoming, Unread>;

/// What the client is told.
enum Reply {
    Guest(Response<WasiBody>),
    /// The guest gave an error for an answer.
    Refused,
    BadRequest,
    NoMemory,
}

struct Server {
    container: Arc<Container>,
    handler: Handler,
    ticker: Arc<Ticker>,
    permits: Arc<Semaphore>,
    /// Places for those who wait for a permit: each holds a request's head.
    queue: Semaphore,
    /// Places for answers that wait for their clients when their instances have
    /// ended or go on with others: each holds a piece of its body.
    untaken: Arc<Semaphore>,
    time: Duration,
    idle_time: Duration,
    /// Bytes of a request's body.
    max_body: Option<u64>,
    /// Requests that an instance answers at most; not 0.
    reuse: u32,
    /// Those of them that one of WASI 0.3 answers at once at most; not 0.
    at_once_in_one: usize,
    idle_instance_time: Duration,
    /// The instances. They may outlive their connection.
    instances: Mutex<JoinSet<()>>,
    /// Of those that could answer another request.
    places: Places<Asked>,
}

/// Serves until the container is told to stop.
pub(crate) async fn serve(
    container: &Arc<Container>,
    handler: &Handler,
    limits: &HttpLimits,
    ticker: Arc<Ticker>,
) -> Ending {
    let listener = http_port(container).and_then(|port| listen(container, port, limits.backlog));
    let mut listener = match listener {
        Ok(listener) => listener,
        Err(why) => return Ending::not_started(&why),
    };
    let at_once = (limits.max_concurrent.max(1) as usize).min(Semaphore::MAX_PERMITS);
    let waiting = at_once.saturating_mul(4).clamp(256, CONNECTIONS);
    let reuse = match handler {
        Handler::P2(_) => REUSE_P2,
        Handler::P3(_) => REUSE_P3,
    };
    let server = Arc::new(Server {
        container: Arc::clone(container),
        handler: handler.clone(),
        ticker,
        permits: Arc::new(Semaphore::new(at_once)),
        queue: Semaphore::new(waiting),
        untaken: Arc::new(Semaphore::new(waiting)),
        time: Duration::from_millis(limits.request_timeout_ms),
        idle_time: Duration::from_millis(limits.idle_timeout_ms),
        max_body: limits.max_body_bytes,
        reuse: limits.max_instance_reuse.unwrap_or(reuse).max(1),
        at_once_in_one: limits.max_instance_concurrent_reuse.unwrap_or(AT_ONCE_P3).max(1) as usize,
        idle_instance_time: Duration::from_millis(limits.idle_instance_timeout_ms),
        instances: Mutex::default(),
        places: Places::new(),
    });
    container.entered();

    let leave = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    let begin = |accepted| {
        let connection = Arc::clone(&server).connection(accepted, leave.subscribe());
        Metered::of_host(connection, Arc::clone(&container.usage))
    };
    let mut rests_until = None;
    let stop = loop {
        let rest = rests_until.unwrap_or_else(Instant::now);
        let accepts = rests_until.is_none() && connections.len() < CONNECTIONS;
        tokio::select! {
            biased;
            // All may be dropped and asked again.
            stop = stopped(container) => break stop,
            Some(_) = connections.join_next() => {}
            () = sleep_until(rest), if rests_until.is_some() => rests_until = None,
            accepted = listener.accept(), if accepts => match accepted {
                Ok(accepted) => {
                    connections.spawn(begin(accepted));
                    server.reap();
                }
                Err(NetError::ConnectionAborted) => {}
                Err(_) => rests_until = Some(Instant::now() + ACCEPT_PAUSE),
            },
        }
    };
    let is_kill = matches!(stop, Stop::Now | Stop::Ended);
    if !is_kill {
        // Connections that wait would be reset with the listener. The runtime has
        // heard of them when it was waited for once.
        tokio::task::yield_now().await;
        while connections.len() < CONNECTIONS
            && let Some(Ok(accepted)) = listener.accept().now_or_never()
        {
            connections.spawn(begin(accepted));
        }
    }
    drop(listener);
    let ending = if is_kill {
        Ending::stopped(KILLED)
    } else {
        let finished = async {
            leave.send_replace(true);
            while connections.join_next().await.is_some() {}
            server.places.end();
            // What is dropped here halfway is ended below.
            while poll_fn(|context| server.lock_instances().poll_join_next(context)).await.is_some()
            {
            }
        };
        tokio::select! {
            biased;
            () = finished => Ending::stopped(STOPPED),
            () = out_of_time(container) => Ending::stopped(KILLED),
        }
    };
    // First those who could begin requests. The instances own the server that
    // owns them, so they would go on for ever if they were not taken from it.
    connections.shutdown().await;
    let mut instances = std::mem::take(&mut *server.lock_instances());
    instances.shutdown().await;
    ending
}

/// Reads on until the client has done. A connection that is closed over bytes that
/// nobody has read is reset, and with it goes the answer on its way (RFC 9112, 9.6).
async fn linger(connection: &Connection) {
    connection.shutdown(Shutdown::Write);
    let mut bytes = vec![0; 16 << 10];
    loop {
        poll_fn(|context| connection.poll_read_ready(context)).await;
        match connection.try_read(&mut bytes) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => {}
        }
    }
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
    fn lock_instances(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of instances that have ended.
    fn reap(&self) {
        let mut instances = self.lock_instances();
        while let Some(ended) = instances.try_join_next() {
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
        let accepted = Arc::new(accepted);
        let unread = Unread::default();
        // It waits for its turn as long as it may then take.
        let request = self.time.saturating_mul(2).saturating_add(SEND_TIME);
        let times = Times { idle: self.idle_time, request };
        speak(Stream(Arc::clone(&accepted)), times, leave, |request| {
            let unread = unread.clone();
            Arc::clone(&self).answer(request.map(|body| Watched::new(body, unread)))
        })
        .await;
        if unread.is_set() {
            let _ = timeout(LINGER_TIME, linger(&accepted)).await;
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Received>) -> Response<WasiBody> {
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
        self.begin(Asked { request, reply, permit, end });
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
            Ok(Ok(Reply::NoMemory)) => {
                failed(StatusCode::SERVICE_UNAVAILABLE, "no memory is left for the request\n")
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
