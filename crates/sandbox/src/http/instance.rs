//! An instance, from the request that it is made for to its end.
//!
//! ```text
//! made ──▶ answering ──▶ waiting for another ──idle time, or its number is full──▶ end
//!             ▲ └─trap, time over──▶ end │
//!             └───────────request────────┘
//! ```
//!
//! Of WASI 0.2 it answers one request after the other; how one of 0.3 answers
//! several at once is in [`together`](super::together).

use std::{
    future::poll_fn,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
};

use futures::FutureExt;
use http::Request;
use http_body_util::{BodyExt, Limited};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot, watch},
    task::{spawn, unconstrained},
    time::{Instant, sleep_until, timeout},
};
use wasmtime::Store;
use wasmtime_wasi_http::{
    Error as HttpError, WasiBody, WasiHttpView,
    p2::bindings::{Proxy, ProxyPre, http::types::Scheme},
};

use super::{Life, Received, Reply, Server, places::Place, together::together};
use crate::{
    exit::Ending,
    fields::{Trailed, count_all},
    guests::panic_text,
    held::Held,
    log,
    log::LogStream,
    program::Handler,
    run::{Session, store},
    state::{Budgeted, ComponentState, REQUEST_HANDLES},
    ticker::Metered,
};

/// A request on its way to an instance.
pub(super) struct Asked {
    pub(super) request: Request<Received>,
    pub(super) reply: oneshot::Sender<Reply>,
    /// The right to be answered at the same time as others.
    pub(super) permit: OwnedSemaphorePermit,
    /// Until when it is to be answered whole.
    pub(super) end: Instant,
}

/// What an answer keeps as long as it waits for its client.
type Kept = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

/// Until when an instance may go on; none while nothing is asked of it.
pub(super) type Until = watch::Sender<Option<Instant>>;

/// Waits until an instance's time is over.
async fn is_over(until: &Until) {
    let mut changes = until.subscribe();
    loop {
        let end = *changes.borrow_and_update();
        tokio::select! {
            biased;
            // Both may be dropped and asked again. Closed never: it is borrowed.
            _ = changes.changed() => {}
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => return,
        }
    }
}

impl Server {
    /// Has a request answered: by an instance that waits for one, or by a new one.
    #[expect(clippy::disallowed_methods, reason = "its `Life` ends it, and is waited for")]
    pub(super) fn begin(self: &Arc<Self>, asked: Asked) {
        if let Err(asked) = self.places.hand(asked) {
            // Nobody waits for an answer once there are to be no more.
            if let Some(life) = self.life().clone() {
                spawn(Arc::clone(self).instance(asked, life));
            }
        }
    }

    /// Lives as long as an instance does.
    async fn instance(self: Arc<Self>, first: Asked, mut life: Life) {
        let (place, until) = (self.places.place(), Until::new(Some(first.end)));
        let guest = self.live(first, place, &until);
        let usage = Arc::clone(&self.container.usage);
        let guest = Metered::new(guest, Arc::clone(&self.ticker), usage);
        tokio::select! {
            biased;
            // A server that is gone says so too.
            _ = life.end.wait_for(|is_over| *is_over) => {}
            // Past its time a guest is dropped, and with it a body half sent.
            () = is_over(&until) => {}
            // Of one that panics nothing is used again.
            ended = AssertUnwindSafe(guest).catch_unwind() => if let Err(panic) = ended {
                let what = panic_text(&*panic);
                self.complain(&format!("the sandbox failed in a request: {what}\n"));
            },
        }
        self.leave(place);
    }

    /// An instance waits no more; what it was handed and has not seen is another's.
    pub(super) fn leave(self: &Arc<Self>, place: Place) {
        if let Some(asked) = self.places.withdraw(place) {
            self.begin(asked);
        }
    }

    async fn live(self: &Arc<Self>, first: Asked, place: Place, until: &Until) {
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
        let at_once = match &self.handler {
            Handler::P2(_) => 1,
            Handler::P3(_) => self.at_once_in_one,
        };
        let most = Some(REQUEST_HANDLES.saturating_mul(at_once));
        let state = ComponentState::of(wasi.build(), &self.container, most);
        let mut store = store(self.handler.engine(), state, || {});
        // It yields by its epochs.
        let ended = match &self.handler {
            Handler::P2(handler) => {
                unconstrained(self.in_turn(&mut store, handler, first, place, until)).await
            }
            Handler::P3(handler) => {
                unconstrained(together(self, &mut store, handler, first, place, until)).await
            }
        };
        if let Err(error) = ended {
            let denied = store.data_mut().budget().denied();
            let ending = Ending::of(Err(error), denied, true);
            let is_in_time = until.borrow().is_none_or(|end| Instant::now() < end);
            if ending.code != 0 && is_in_time {
                self.complain(&format!("a request failed: {}\n", ending.message));
            }
        }
    }

    /// Answers one request after the other by `wasi:http/incoming-handler`.
    async fn in_turn(
        self: &Arc<Self>,
        store: &mut Store<ComponentState>,
        handler: &ProxyPre<ComponentState>,
        first: Asked,
        place: Place,
        until: &Until,
    ) -> wasmtime::Result<()> {
        let instance = handler.instantiate_async(&mut *store).await?;
        let mut asked = first;
        let mut left = self.reuse;
        loop {
            let Asked { request, reply, permit, end } = asked;
            until.send_replace(Some(end));
            let kept = Kept::default();
            let request = self.bounded(request);
            answer(store, &instance, request, reply, Arc::clone(&kept)).await?;
            self.let_go(permit, &kept);
            left -= 1;
            if left == 0 {
                return Ok(());
            }
            until.send_replace(None);
            match self.next(place).await {
                Some(next) => asked = next,
                None => return Ok(()),
            }
        }
    }

    /// The next request may have its turn, though the end of this answer may still
    /// wait for its client; but only so many do, and each further one keeps its turn.
    fn let_go(&self, permit: OwnedSemaphorePermit, kept: &Kept) {
        if Arc::strong_count(kept) > 1 {
            let place = Arc::clone(&self.untaken).try_acquire_owned().unwrap_or(permit);
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
        }
    }

    /// The next request for an instance that has none; nothing if it is to end.
    async fn next(&self, place: Place) -> Option<Asked> {
        let next = poll_fn(|context| self.places.poll(place, context));
        match timeout(self.idle_instance_time, next).await {
            Ok(next) => next,
            // It may have been handed one in the same moment.
            Err(_) => self.places.withdraw(place),
        }
    }

    /// A request whose body ends with an error when it is too large.
    pub(super) fn bounded(&self, request: Request<Received>) -> Request<WasiBody> {
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
}

/// A request whose fields are counted, which a guest may keep. None if its container
/// has no memory left for them.
pub(super) fn counted(
    state: &mut ComponentState,
    mut request: Request<WasiBody>,
) -> Option<Request<WasiBody>> {
    let usage = state.usage();
    count_all(request.headers_mut(), |bytes| usage.charge(bytes))?;
    Some(request.map(|body| Trailed::new(body, usage).boxed_unsync()))
}

/// Calls `wasi:http/incoming-handler`.
async fn answer(
    store: &mut Store<ComponentState>,
    instance: &Proxy,
    request: Request<WasiBody>,
    reply: oneshot::Sender<Reply>,
    kept: Kept,
) -> wasmtime::Result<()> {
    let Some(request) = counted(store.data_mut(), request) else {
        let _ = reply.send(Reply::NoMemory);
        return Ok(());
    };
    let Ok(request) = store.data_mut().http().new_incoming_request(Scheme::Http, request) else {
        let _ = reply.send(Reply::BadRequest);
        return Ok(());
    };
    // The answer goes out as soon as the guest gives it; the guest may run on.
    let out = store.data_mut().http().new_response_outparam_from_callback(move |answer| {
        let answer = answer.map(|answer| answer.map(|body| Held::new(body, kept).boxed_unsync()));
        // Whoever asked may have left.
        let _ = reply.send(answer.map_or(Reply::Refused, Reply::Guest));
    })?;
    instance.wasi_http_incoming_handler().call_handle(store, request, out).await
}
