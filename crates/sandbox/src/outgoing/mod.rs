//! Requests that guests send with `wasi:http`.
//!
//! ```text
//! guest ──▶ Outgoing::send ──▶ client (hyper-util: connections kept, HTTP/1.1 and 2)
//!             │                  └▶ connect.rs: name ─▶ race.rs ─▶ Stack ─▶ TLS
//!             └ https, by whose word: roots.rs, own.rs
//! answer ◀── body.rs (times) ◀──┘       error.rs: why not, in WASI's words
//!                                        again.rs: lost, and sent a second time
//! ```
//!
//! What guests of WASI 0.2 write to bodies, of requests and answers, is counted
//! by [`written`](self::written).
//!
//! Every connection is a socket of the pod's [`Stack`], which checks the very
//! address that is connected to: a name that changes its mind after it was
//! looked up gains nothing. Nothing is made before the first request.

mod again;
mod body;
mod connect;
mod error;
mod own;
mod race;
mod roots;
#[cfg(test)]
mod tests;
pub(crate) mod written;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use http::{
    Extensions, Request, Response, Uri,
    uri::{Authority, Scheme},
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{
        self, Client,
        connect::{CaptureConnection, capture_connection},
    },
    rt::TokioTimer,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::yield_now,
    time::{Instant, sleep_until, timeout},
};
use wasmtime_wasi_http::{Error as HttpError, RequestOptions, WasiBody, WasiHttpHooks};

use self::{
    body::{LONGEST, Timed},
    connect::{By, Connector},
    roots::Roots,
};
pub(crate) use self::{own::OwnRoots, roots::remember};
use crate::{
    fields::{self, Trailed, count_all},
    held::Held,
    net::{Asking, Stack, WeakStack},
    state::Usage,
    threads,
    ticker::{Charged, Metered},
};

/// How long a guest waits for a connection or an answer if it names no time of
/// its own, as with `wasmtime serve`.
const PATIENCE: Duration = Duration::from_mins(10);

/// Requests of one pod that are under way at once, and how many more wait: each takes
/// some KiB that no limit counts.
const REQUESTS: usize = 256;
const WAITING: usize = 1024;

/// Connections to one server that are kept while nobody uses them, and how
/// long. All of them count as sockets of the pod.
const IDLE_CONNECTIONS: usize = 8;
const IDLE_TIME: Duration = Duration::from_secs(30);

/// How long a server of version 2 may say nothing while something is asked of it
/// before it is asked whether it is there, and how long it may take to say so: one
/// connection serves all requests, and the system gives one up that is cut off
/// only after a quarter of an hour.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_TIME: Duration = Duration::from_secs(20);

/// Bytes that may be on their way to a guest that does not read, and from it to
/// a server that does not, for each stream of version 2; and for a connection.
const WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Bytes of a body that WASI 0.3 takes from a guest at once. Two such pieces may
/// wait for whoever reads it.
const CHUNK: usize = 64 << 10;

/// Bytes of an answer's head. What holds it is counted as the container's.
const HEAD: usize = 64 << 10;

type Sender = Client<Connector, WasiBody>;

/// Sends a pod's requests. One for each pod.
#[derive(Debug)]
pub(crate) struct Outgoing {
    stack: WeakStack,
    /// Whom the system believes.
    roots: Arc<Roots>,
    /// One for each container: what a connection takes is charged to who uses it.
    callers: Mutex<Vec<Its<Whose>>>,
    /// Those for https of containers that say whom they believe: a connection is
    /// as good as the word of who vouched for it, and used by nobody else.
    own: Mutex<Vec<Its<OwnRoots>>>,
    permits: Arc<Semaphore>,
    /// Places for those who wait for one.
    waiting: Semaphore,
}

/// The caller of a container, on one thread: who asks and the connections that are
/// kept for him share one, so that he sees which of them have been closed.
#[derive(Debug)]
struct Its<T> {
    of: Weak<T>,
    thread: usize,
    caller: Caller,
}

impl<T> Its<T> {
    /// On this thread.
    fn new(of: &Arc<T>, caller: Caller) -> Self {
        Self { of: Arc::downgrade(of), thread: threads::current(), caller }
    }

    fn is_of(&self, whose: &Arc<T>) -> bool {
        self.of.as_ptr() == Arc::as_ptr(whose)
    }

    fn find<'a>(all: &'a [Self], whose: &Arc<T>) -> Option<&'a Caller> {
        let thread = threads::current();
        let is_it = |its: &&Self| its.thread == thread && its.is_of(whose);
        all.iter().find(is_it).map(|its| &its.caller)
    }
}

/// A client of one container, and whom it believes.
#[derive(Clone, Debug)]
struct Caller {
    stack: WeakStack,
    roots: Arc<Roots>,
    usage: Arc<Usage>,
    client: Sender,
}

/// Whose guests ask.
#[derive(Debug)]
pub(crate) struct Whose {
    /// Whom its container believes, if it says so itself.
    pub(crate) own: Option<Arc<OwnRoots>>,
    /// What is charged.
    pub(crate) usage: Arc<Usage>,
}

tokio::task_local! {
    /// How long the request at hand waits for its connection, and how far it is.
    static CONNECTING: Connecting;
}

/// What a request tells its connector, and hears from it.
#[derive(Clone, Debug)]
struct Connecting {
    time: Duration,
    stage: watch::Sender<Stage>,
}

/// What is left of the times that a guest set, for both attempts together.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// To have a connection.
    connect: Duration,
    /// To have an answer then.
    first: Duration,
}

/// What a request waits for, and since when.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Its connection is being made.
    Connection(Instant),
    /// It has one, or shares one that others have.
    Answer(Instant),
}

/// What a request has as long as it is under way: until both bodies are gone, of
/// which one may outlive the other.
#[derive(Debug)]
struct UnderWay {
    _permit: OwnedSemaphorePermit,
    /// On which connection.
    by: Mutex<Option<Asking>>,
}

impl UnderWay {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: permit, by: Mutex::default() }
    }

    /// Takes note of the connection that it was given, maybe not the first.
    fn goes_by(&self, connection: &CaptureConnection) {
        let mut extras = Extensions::new();
        if let Some(connected) = &*connection.connection_metadata() {
            connected.get_extras(&mut extras);
        }
        let Some(By(kept)) = extras.remove() else { return };
        let mut by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        if by.as_ref().is_none_or(|by| !by.is_by(&kept)) {
            *by = Some(kept.asked());
        }
    }

    /// Whether that had served others before.
    fn was_kept(&self) -> bool {
        let by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        by.as_ref().is_some_and(|by| !by.is_first())
    }
}

impl Outgoing {
    /// Takes what the system trusts from the zygote.
    pub(crate) fn new(stack: &Stack) -> Self {
        Self::trusting(stack, Roots::of_system())
    }

    fn trusting(stack: &Stack, roots: Roots) -> Self {
        let stack = stack.downgrade();
        let permits = Arc::new(Semaphore::new(REQUESTS));
        let (callers, own) = Default::default();
        let waiting = Semaphore::new(WAITING);
        Self { stack, roots: Arc::new(roots), callers, own, permits, waiting }
    }

    /// What sends for a container to those whom the system believes, and to those of
    /// whom nothing has to be believed.
    fn usual_caller(&self, whose: &Arc<Whose>) -> Caller {
        let mut all = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|its| its.of.strong_count() > 0);
        if let Some(known) = Its::find(&all, whose) {
            return known.clone();
        }
        let (roots, usage) = (Arc::clone(&self.roots), Arc::clone(&whose.usage));
        let caller = Caller::new(self.stack.clone(), roots, usage);
        all.push(Its::new(whose, caller.clone()));
        caller
    }

    /// What sends to a server for a container. None if it is not known whom that
    /// believes.
    async fn caller(&self, uri: &Uri, whose: &Arc<Whose>) -> Option<Caller> {
        let Some(own) = whose.own.as_ref().filter(|_| uri.scheme() == Some(&Scheme::HTTPS)) else {
            return Some(self.usual_caller(whose));
        };
        let roots = own.roots().await;
        let mut all = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        // With a client go the connections that it keeps.
        all.retain(|one| {
            if one.is_of(own) {
                roots.as_ref().is_some_and(|roots| Arc::ptr_eq(&one.caller.roots, roots))
            } else {
                one.of.strong_count() > 0
            }
        });
        let roots = roots?;
        if let Some(known) = Its::find(&all, own) {
            return Some(known.clone());
        }
        let caller = Caller::new(self.stack.clone(), roots, Arc::clone(&whose.usage));
        all.push(Its::new(own, caller.clone()));
        Some(caller)
    }

    /// The right to be under way. None if too many wait for it.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.permits);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return Some(permit);
        }
        let _place = self.waiting.try_acquire().ok()?;
        // The semaphore is closed never: it lives as long as the client.
        permits.acquire_owned().await.ok()
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
        whose: &Arc<Whose>,
    ) -> Result<Response<WasiBody>, HttpError> {
        let connect = options.connect_timeout.unwrap_or(PATIENCE).min(LONGEST);
        let first = options.first_byte_timeout.unwrap_or(PATIENCE).min(LONGEST);
        let between = options.between_bytes_timeout.unwrap_or(PATIENCE);
        let permit = timeout(connect, self.permit()).await.ok().flatten();
        let permit = permit.ok_or(HttpError::ConnectionLimitReached)?;
        let begun = Instant::now();
        let caller = timeout(connect, self.caller(request.uri(), whose)).await;
        let caller = caller.map_err(|_| HttpError::ConnectionTimeout)?;
        let caller = caller.ok_or(HttpError::ConfigurationError)?;
        let mut times = Times { connect: connect.saturating_sub(begun.elapsed()), first };
        let server = request.uri().authority().cloned();
        let under_way = Arc::new(UnderWay::new(permit));
        // So that the client sees first which connections have been closed: not every
        // request that was written to one of these may be sent again.
        yield_now().await;
        let (lent, again) = again::lend(request);
        let mut answer = caller.attempt(lent, &under_way, &mut times).await;
        if let Some(Err(failure)) = &answer
            && let Some(lost) = error::loss(failure)
            && let Some(request) = again.after(lost, under_way.was_kept())
        {
            // What is kept may be as dead as the one that was lost.
            let caller = Caller::new(caller.stack, caller.roots, caller.usage);
            answer = caller.attempt(request, &under_way, &mut times).await;
        }
        let answer = answer.ok_or(HttpError::ConnectionReadTimeout)?;
        let mut answer = answer.map_err(|failure| {
            let error = error::of_client(&failure);
            if matches!(error, HttpError::TlsCertificateError)
                && let Some(own) = &whose.own
            {
                own.refused(server.as_ref().map_or("", Authority::as_str), &failure);
            }
            error
        })?;
        answer.extensions_mut().remove::<By>();
        Ok(answer.map(|body| Timed::new(body, between, under_way).boxed_unsync()))
    }
}

impl Caller {
    /// One without connections. All that it makes are to servers that these vouch
    /// for.
    fn new(stack: WeakStack, roots: Arc<Roots>, usage: Arc<Usage>) -> Self {
        let mut builder = Client::builder(Charged::new(Arc::clone(&usage)));
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .http1_max_buf_size(HEAD)
            .http2_initial_stream_window_size(WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_send_buf_size(WINDOW as usize)
            .http2_keep_alive_interval(PING_AFTER)
            .http2_keep_alive_timeout(PING_TIME)
            .http2_max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX));
        let client = builder.build(Connector::new(stack.clone(), Arc::clone(&roots)));
        Self { stack, roots, usage, client }
    }

    /// Sends a request once, and takes what passes from its times. None if they end
    /// before there is an answer.
    async fn attempt(
        &self,
        request: Request<WasiBody>,
        under_way: &Arc<UnderWay>,
        times: &mut Times,
    ) -> Option<Result<Response<Incoming>, legacy::Error>> {
        let Times { connect, first } = *times;
        let begun = Instant::now();
        let mut request = request.map(|body| Held::new(body, Arc::clone(under_way)).boxed_unsync());
        let connection = capture_connection(&mut request);
        let stage = watch::Sender::new(Stage::Answer(begun));
        let mut told = stage.subscribe();
        let connecting = Connecting { time: connect, stage };
        let mut sent = pin!(CONNECTING.scope(connecting, self.client.request(request)));
        let mut sent = pin!(poll_fn(|context| {
            let answer = sent.as_mut().poll(context);
            // Before others run, who may close what is idle.
            under_way.goes_by(&connection);
            answer
        }));
        loop {
            let end = match *told.borrow_and_update() {
                // Until then the connector gives up by itself.
                Stage::Connection(since) => since + connect + first,
                Stage::Answer(since) => since + first,
            };
            tokio::select! {
                biased;
                answer = sent.as_mut() => {
                    let connected = match *told.borrow() {
                        Stage::Connection(_) => Instant::now(),
                        Stage::Answer(since) => since,
                    };
                    times.connect = connect.saturating_sub(connected - begun);
                    times.first = first.saturating_sub(connected.elapsed());
                    return Some(answer);
                }
                Ok(()) = told.changed() => {}
                () = sleep_until(end) => return None,
            }
        }
    }
}

/// What wasmtime asks when a guest sends a request.
#[derive(Debug)]
pub(crate) struct Hooks {
    stack: Stack,
    whose: Arc<Whose>,
}

impl Hooks {
    /// Those of a container in a pod.
    pub(crate) fn new(stack: Stack, whose: Arc<Whose>) -> Self {
        Self { stack, whose }
    }

    pub(crate) fn stack(&self) -> &Stack {
        &self.stack
    }
}

type Done = Box<dyn Future<Output = Result<(), HttpError>> + Send>;
type Sent = Result<(Response<WasiBody>, Done), HttpError>;

impl WasiHttpHooks for Hooks {
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        written::BUFFERED
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        written::CHUNK
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Done,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let (stack, whose) = (self.stack.clone(), Arc::clone(&self.whose));
        let usage = Arc::clone(&whose.usage);
        let sends = async move {
            let options = options.unwrap_or_default();
            let mut answer = stack.outgoing().send(request, options, &whose).await?;
            let usage = Arc::clone(&whose.usage);
            let counted = count_all(answer.headers_mut(), |bytes| usage.charge(bytes));
            counted.ok_or_else(fields::no_memory)?;
            let answer = answer.map(|body| Trailed::new(body, usage).boxed_unsync());
            // The client looks after the connection; nothing is left to do.
            Ok((answer, Box::new(std::future::ready(Ok(()))) as Done))
        };
        Box::new(Metered::of_host(sends, usage))
    }
}
