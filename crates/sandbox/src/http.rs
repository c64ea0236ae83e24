//! Serves requests with a component: `wasi:http/incoming-handler` of WASI 0.2, or
//! `wasi:http/handler` of 0.3.
//!
//! Instances are made as they are needed, for one request or for several in turn,
//! of 0.3 at once too, as the pod's annotations say: while nobody calls, no instance
//! lives for long. A guest may go on after it has answered, until the request's time
//! is over.
//!
//! ```text
//! listener ──▶ a thread's server: connection (speak.rs) ──▶ permit ──▶ an instance
//!              that waits for a request (places.rs), or a new one (instance.rs) ──▶ response
//! stop: no more connections ──▶ open requests finish ──▶ end
//! ```

mod instance;
mod places;
mod progress;
mod speak;
mod together;
mod watched;

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::Shutdown,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use krustlet_protocol::HttpLimits;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use wasmtime_wasi_http::WasiBody;

use self::{
    instance::Asked,
    places::Places,
    speak::{Arriving, RECEIVING, Times, speak},
    watched::{Unread, Watched},
};
use crate::{
    container::{Container, Stop},
    exit::{Ending, KILLED, STOPPED},
    guests::{out_of_time, stopped},
    held::Held,
    log,
    log::LogStream,
    net::{Connection, Lasting, Leaving, Listener, NetError, Served, Taken},
    ports::{http_port, listen},
    program::Handler,
    threads::{Place, Threads},
    ticker::{Charged, Metered, Ticker},
};

/// Connections open at once at most; most of them wait between requests.
const CONNECTIONS: usize = 4096;

/// Wait after a failed accept, unless a client alone gave up: descriptors are short,
/// and others must end first. And how long one that is to make room for another may
/// take before the next is, and after which one is looked for again where none could.
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
type Received = Watched<Arriving, Unread>;

/// What the client is told.
enum Reply {
    Guest(Response<WasiBody>),
    /// The guest gave an error for an answer.
    Refused,
    BadRequest,
    NoMemory,
}

/// What a container's requests are answered by on one thread.
struct Server {
    terms: Arc<Terms>,
    /// What the instances have, which may outlive their connection. None once there are
    /// to be no more.
    life: Mutex<Option<Life>>,
    /// Of those that could answer another request.
    places: Places<Asked>,
}

/// What holds for a container's requests on all threads.
struct Terms {
    container: Arc<Container>,
    connections: Arc<Served>,
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
}

/// Each instance has one. Not a `JoinSet`: what is left there of those that have ended
/// holds descriptors of their thread until somebody looks.
#[derive(Clone)]
struct Life {
    /// Says true when it is to end, or nothing any more.
    end: watch::Receiver<bool>,
    /// Nothing is sent: they are waited for by it.
    _alive: mpsc::Sender<Infallible>,
}

impl Deref for Server {
    type Target = Terms;

    fn deref(&self) -> &Terms {
        &self.terms
    }
}

/// Serves until the container is told to stop.
pub(crate) async fn serve(
    container: &Arc<Container>,
    handler: &Handler,
    limits: &HttpLimits,
    ticker: Arc<Ticker>,
    threads: &Threads,
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
    let open = container.stack.serve();
    let terms = Arc::new(Terms {
        container: Arc::clone(container),
        connections: Arc::clone(&open),
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
    });
    let end = watch::Sender::new(false);
    let (alive, mut all) = mpsc::channel(1);
    let life = Life { end: end.subscribe(), _alive: alive };
    let of_thread = |_| Arc::new(Server::new(Arc::clone(&terms), life.clone()));
    let servers: Vec<_> = (0..threads.count()).map(of_thread).collect();
    drop(life);
    container.entered();

    let leave = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    let begin = |connections: &mut JoinSet<()>, accepted: Connection| {
        let place = threads.place(threads.of_limit(container.usage.cpu_limit()));
        let server = &servers[place.index()];
        let accepted = if place.index() == 0 {
            Accepted::Here(accepted)
        } else {
            match accepted.leave() {
                Ok(leaving) => Accepted::Elsewhere(leaving),
                // It is gone.
                Err(_) => return,
            }
        };
        let handle = place.handle().clone();
        let connection = Arc::clone(server).connection(accepted, place, leave.subscribe());
        let connection = Metered::of_host(connection, Arc::clone(&container.usage));
        connections.spawn_on(connection, &handle);
    };
    let mut rests_until = None;
    let stop = loop {
        let is_full =
            connections.len() >= most_connections(container.stack.network().limits.sockets);
        let rest = rests_until.unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            // All may be dropped and asked again.
            stop = stopped(container) => break stop,
            Some(_) = connections.join_next() => {}
            () = sleep_until(rest), if rests_until.is_some() => rests_until = None,
            accepted = next(&mut listener, is_full.then_some(&*open)),
                if rests_until.is_none() => match accepted {
                Some(Ok(accepted)) => begin(&mut connections, accepted),
                Some(Err(NetError::ConnectionAborted)) | None => {}
                Some(Err(_)) => rests_until = Some(Instant::now() + ACCEPT_PAUSE),
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
            begin(&mut connections, accepted);
        }
    }
    drop(listener);
    let ending = if is_kill {
        Ending::stopped(KILLED)
    } else {
        let finished = async {
            leave.send_replace(true);
            while connections.join_next().await.is_some() {}
            for server in &servers {
                server.begin_no_more();
                server.places.end();
            }
            all.recv().await;
        };
        tokio::select! {
            biased;
            () = finished => Ending::stopped(STOPPED),
            () = out_of_time(container) => Ending::stopped(KILLED),
        }
    };
    connections.shutdown().await;
    for server in &servers {
        server.begin_no_more();
    }
    end.send_replace(true);
    all.recv().await;
    ending
}

/// Connections at once of one server of a pod that may have so many sockets. A quarter
/// of these is left to whoever it calls, asks for names or is visited by.
fn most_connections(sockets: u32) -> usize {
    let most = sockets - sockets.div_ceil(4);
    (most.max(1) as usize).min(CONNECTIONS)
}

/// The next connection; none where that is to be asked again. Where the server is full
/// none is taken, and one that is idle is closed for it.
async fn next(
    listener: &mut Listener,
    full: Option<&Served>,
) -> Option<Result<Connection, NetError>> {
    if !is_there(listener).await {
        return None;
    }
    let Some(served) = full else { return Some(listener.accept().await) };
    served.close_one();
    // Whoever waits for this is told of its end.
    sleep(ACCEPT_PAUSE).await;
    None
}

/// Waits for the next connection. False if the pod had no socket for it for so long, and
/// none that could be closed: there may be one by now, of which nobody is told.
async fn is_there(listener: &mut Listener) -> bool {
    let mut pause = None;
    poll_fn(|context| {
        if listener.poll_ready(context).is_ready() {
            return Poll::Ready(true);
        }
        if !listener.lacks_room() {
            pause = None;
            return Poll::Pending;
        }
        let pause = pause.get_or_insert_with(|| Box::pin(sleep(ACCEPT_PAUSE)));
        pause.as_mut().poll(context).map(|()| false)
    })
    .await
}

/// A connection, and whether the thread that accepted it serves it.
enum Accepted {
    Here(Connection),
    Elsewhere(Leaving),
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

/// How a request that the guest did not answer is answered. In version 2 without a
/// body: that would wait for as long as its client takes none, of a hundred requests
/// on each connection.
fn failed(version: Version, status: StatusCode, text: &'static str) -> Response<WasiBody> {
    let text = if version == Version::HTTP_2 { "" } else { text };
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    let body = body.map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if text.is_empty() {
        return response;
    }
    let plain = header::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

impl Server {
    fn new(terms: Arc<Terms>, life: Life) -> Self {
        Self { terms, life: Mutex::new(Some(life)), places: Places::new() }
    }

    fn life(&self) -> MutexGuard<'_, Option<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is asked from now on is asked in vain.
    fn begin_no_more(&self) {
        self.life().take();
    }

    fn complain(&self, what: &str) {
        let stderr = LogStream::new(Arc::clone(&self.container.log), log::Stream::Stderr);
        stderr.push(what.as_bytes());
    }

    async fn connection(
        self: Arc<Self>,
        accepted: Accepted,
        _place: Place,
        leave: watch::Receiver<bool>,
    ) {
        let accepted = match accepted {
            Accepted::Here(connection) => connection,
            Accepted::Elsewhere(leaving) => match leaving.arrive() {
                Ok(connection) => connection,
                Err(error) => return self.complain(&format!("cannot serve a client: {error}\n")),
            },
        };
        // Answers are whole when they are written; waiting for more is no gain.
        if let Some(socket) = accepted.socket() {
            let _ = rustix::net::sockopt::set_tcp_nodelay(socket, true);
        }
        let accepted = Arc::new(accepted);
        let kept = self.connections.add(&accepted);
        let io = Lasting::new(Arc::clone(&accepted), Arc::clone(&kept));
        let unread = Unread::default();
        // It waits for its turn as long as it may then take.
        let request = self.time.saturating_mul(2).saturating_add(SEND_TIME);
        let times = Times { idle: self.idle_time, request };
        let charged = Charged::new(Arc::clone(&self.container.usage));
        speak(io, times, charged, leave, |request| {
            let (asking, unread) = (kept.asked(), unread.clone());
            let answer = Arc::clone(&self).answer(request.map(|body| Watched::new(body, unread)));
            async move { answer.await.map(|body| Held::new(body, asking)) }
        })
        .await;
        // It makes no room from now on.
        drop(kept);
        if unread.is_set() {
            let _ = timeout(LINGER_TIME, linger(&accepted)).await;
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Received>) -> Response<WasiBody> {
        let version = request.version();
        let answered = self.answered(request).await;
        answered.unwrap_or_else(|(status, text)| failed(version, status, text))
    }

    async fn answered(
        self: &Arc<Self>,
        request: Request<Received>,
    ) -> Result<Response<WasiBody>, (StatusCode, &'static str)> {
        if self.max_body.is_some_and(|most| request.body().size_hint().lower() > most) {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, "the request's body is too large\n"));
        }
        let room = self.room_to_wait(&request);
        let permit = self.permit(room).await;
        let permit =
            permit.ok_or((StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n"))?;
        let end = Instant::now() + self.time;
        let (reply, answered) = oneshot::channel();
        self.begin(Asked { request, reply, permit, end });
        let answer = timeout_at(end, answered).await;
        match answer {
            Ok(Ok(Reply::Guest(response))) => Ok(response),
            Ok(Ok(Reply::Refused)) => {
                Err((StatusCode::BAD_GATEWAY, "the program refused to answer\n"))
            }
            Ok(Ok(Reply::BadRequest)) => {
                Err((StatusCode::BAD_REQUEST, "the request names no host\n"))
            }
            Ok(Ok(Reply::NoMemory)) => {
                Err((StatusCode::SERVICE_UNAVAILABLE, "no memory is left for the request\n"))
            }
            // Its end of the channel went with the guest.
            Ok(Err(_)) if Instant::now() < end => {
                Err((StatusCode::INTERNAL_SERVER_ERROR, "the program failed\n"))
            }
            Ok(Err(_)) | Err(_) => {
                Err((StatusCode::GATEWAY_TIMEOUT, "the program took too long\n"))
            }
        }
    }

    /// The right to be answered at the same time as others. Waits for it no longer than
    /// one of these may take, and only where there is room for it.
    async fn permit(&self, room: Result<Option<Taken>, ()>) -> Option<OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.permits);
        let Some(_place) = self.queue.try_acquire().ok().zip(room.ok()) else {
            // As many as may wait do so already.
            return permits.try_acquire_owned().ok();
        };
        // The semaphore is closed never: it lives as long as the server.
        timeout(self.time, permits.acquire_owned()).await.ok().and_then(Result::ok)
    }

    /// The room for what may come of a request's body while it waits: in version 2 as
    /// much as its stream may have, in 1.1 no more than its connection has.
    fn room_to_wait(&self, request: &Request<Received>) -> Result<Option<Taken>, ()> {
        if request.version() != Version::HTTP_2 || request.body().is_end_stream() {
            return Ok(None);
        }
        self.container.stack.memory().hold(RECEIVING as usize).map(Some).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, task::yield_now};

    use super::*;
    use crate::net::{Options, test_listening};

    #[tokio::test(start_paused = true)]
    async fn a_client_is_let_in_when_a_connection_has_become_idle_while_it_waited() {
        // The listener, two clients, and one of their connections.
        let (stack, mut listener) = test_listening(4);
        let to = listener.address();
        let connect = || stack.connect_tcp(stack.permit().unwrap(), Options::default(), to);
        let _first = connect().await.unwrap();
        let connection = Arc::new(next(&mut listener, None).await.unwrap().unwrap());
        let served = stack.serve();
        let kept = served.add(&connection);
        let asking = kept.asked();
        let _second = connect().await.unwrap();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            loop {
                if let Some(accepted) = next(&mut listener, None).await {
                    return accepted;
                }
            }
        });
        yield_now().await;
        drop(asking);
        let mut reader = Lasting::new(connection, kept);
        let read = timeout(Duration::from_secs(20), reader.read(&mut [0])).await;
        assert_eq!(read.expect("nobody has closed it").unwrap(), 0);
        drop(reader);
        accepting.join_next().await.unwrap().unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_whose_pod_has_sockets_left_wakes_for_clients_alone() {
        let (_stack, mut listener) = test_listening(2);
        let waits = timeout(Duration::from_hours(1), next(&mut listener, None));
        assert!(waits.await.is_err());
    }

    #[test]
    fn who_is_turned_away_in_version_2_has_nothing_to_take() {
        for (version, is_empty) in [(Version::HTTP_11, false), (Version::HTTP_2, true)] {
            let answer = failed(version, StatusCode::SERVICE_UNAVAILABLE, "too many\n");
            assert_eq!(answer.status(), 503);
            assert_eq!(answer.body().is_end_stream(), is_empty, "{version:?}");
        }
    }

    #[test]
    fn a_server_leaves_a_quarter_of_its_pods_sockets_to_others() {
        let table = [(0, 1), (1, 1), (2, 1), (4, 3), (8, 6), (4096, 3072), (16_384, CONNECTIONS)];
        for (sockets, most) in table {
            assert_eq!(most_connections(sockets), most, "{sockets}");
        }
    }
}
