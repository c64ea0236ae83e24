//! An instance of WASI 0.3, which answers several requests at once.
//!
//! It takes another only when all that it has wait for something: one that
//! computes would hold the others up, while a new instance shares the thread with
//! it. While a guest computes wasmtime asks nobody within `run_concurrent`, so
//! that what was handed meanwhile is given to others from outside.
//!
//! Our own, and not wasmtime-wasi-http's `ProxyHandler`, whose tasks are tokio's:
//! nobody could charge them for what they compute, or end them with their pod.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use futures::{StreamExt, stream::FuturesUnordered};
use http::{
    Method, Request, StatusCode, header,
    uri::{Authority, Scheme},
};
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Sleep, sleep, timeout_at},
};
use wasmtime::{
    Store,
    component::{Accessor, Func},
};
use wasmtime_wasi_http::{
    Error as HttpError, FieldMap, WasiBody, WasiHttpView,
    p3::{
        self,
        bindings::{Service, ServicePre},
    },
};

use super::{
    Reply, Server,
    instance::{Asked, Until, counted},
    places::Place,
    watched::{Told as _, Watched},
};
use crate::{held::Held, state::ComponentState};

/// Answers that have no body, whatever the guest gives (RFC 9110, 15.3.5, 15.4.5).
const BODILESS: [StatusCode; 2] = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];

/// What the inside of `run_concurrent` and the outside show each other.
#[derive(Default)]
struct Signs {
    /// A request was taken, and the guest has not waited for anything since.
    is_fresh: AtomicBool,
    /// The inside was asked: no guest holds the store.
    was_asked: AtomicBool,
}

/// Answers requests by `wasi:http/handler` until the instance is to end.
pub(super) async fn together(
    server: &Arc<Server>,
    store: &mut Store<ComponentState>,
    handler: &ServicePre<ComponentState>,
    first: Asked,
    place: Place,
    until: &Until,
) -> wasmtime::Result<()> {
    let service = handler.instantiate_async(&mut *store).await?;
    let function = *service.wasi_http_handler().func_handle().func();
    let signs = Signs::default();
    let inside = store.run_concurrent(async |accessor| {
        let answer = |asked| answer(server, accessor, &service, asked);
        let mut instance =
            Instance { server, accessor, function, place, until, signs: &signs, answer, taken: 0 };
        instance.run(first).await
    });
    let mut inside = pin!(inside);
    let ended = poll_fn(|context| {
        signs.was_asked.store(false, Relaxed);
        let mut polled = inside.as_mut().poll(context);
        if polled.is_pending() && signs.is_fresh.swap(false, Relaxed) {
            // All it has waits: it may take another.
            polled = inside.as_mut().poll(context);
        }
        if polled.is_pending() && !signs.was_asked.load(Relaxed) {
            server.leave(place);
        }
        polled
    });
    ended.await?
}

/// The instance, as seen from within `run_concurrent`.
struct Instance<'a, A> {
    server: &'a Arc<Server>,
    accessor: &'a Accessor<ComponentState>,
    /// `handle`, which a guest may say that it does not want to be called now.
    function: Func,
    place: Place,
    until: &'a Until,
    signs: &'a Signs,
    /// Answers a request.
    answer: A,
    /// Requests so far.
    taken: u32,
}

impl<A, F> Instance<'_, A>
where
    A: Fn(Asked) -> F,
    F: Future<Output = wasmtime::Result<Answered>>,
{
    async fn run(&mut self, first: Asked) -> wasmtime::Result<()> {
        let mut open = FuturesUnordered::new();
        open.push(self.take(first));
        // Of the last request, until what it left behind is done.
        let mut kept = None;
        let mut takes_more = true;
        let mut idle: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|context| {
            self.signs.was_asked.store(true, Relaxed);
            loop {
                while let Poll::Ready(Some(answered)) = open.poll_next_unpin(context) {
                    let answered = answered?;
                    takes_more &= answered.is_in_time;
                    kept = Some(answered.permit);
                }
                if !open.is_empty() {
                    kept = None;
                }
                match self.next(&mut takes_more, open.len(), context) {
                    Some(asked) => {
                        idle = None;
                        open.push(self.take(asked));
                        continue;
                    }
                    None if !open.is_empty() => return Poll::Pending,
                    None => {}
                }
                ready!(self.accessor.poll_no_interesting_tasks(context));
                kept = None;
                if !takes_more {
                    return Poll::Ready(Ok(()));
                }
                self.until.send_if_modified(|until| until.take().is_some());
                let time = self.server.idle_instance_time;
                ready!(idle.get_or_insert_with(|| Box::pin(sleep(time))).as_mut().poll(context));
                takes_more = false;
            }
        })
        .await
    }

    fn take(&mut self, asked: Asked) -> F {
        self.taken += 1;
        self.signs.is_fresh.store(true, Relaxed);
        self.until.send_modify(|until| *until = (*until).max(Some(asked.end)));
        (self.answer)(asked)
    }

    /// Another request, if it is to take one now and there is one.
    fn next(&self, takes_more: &mut bool, open: usize, context: &mut Context<'_>) -> Option<Asked> {
        *takes_more &= self.taken < self.server.reuse;
        let may_take = *takes_more
            && open < self.server.at_once_in_one
            && (open == 0 || !self.signs.is_fresh.load(Relaxed))
            && self.accessor.poll_ready_for_concurrent_call(self.function, context).is_ready();
        if !may_take {
            self.server.leave(self.place);
            return None;
        }
        match self.server.places.poll(self.place, context) {
            Poll::Ready(Some(asked)) => Some(asked),
            Poll::Ready(None) => {
                *takes_more = false;
                None
            }
            Poll::Pending => None,
        }
    }
}

/// What is left of a request.
struct Answered {
    permit: OwnedSemaphorePermit,
    /// Else the guest may still be at it.
    is_in_time: bool,
}

/// Answers a request. The answer's body is made while it is sent, and the guest may
/// run on after that.
async fn answer(
    server: &Server,
    accessor: &Accessor<ComponentState>,
    service: &Service,
    asked: Asked,
) -> wasmtime::Result<Answered> {
    let Asked { request, reply, permit, end } = asked;
    let is_head = request.method() == Method::HEAD;
    let request = server.bounded(request);
    let Some(request) = accessor.with(|mut store| counted(store.data_mut(), request)) else {
        let _ = reply.send(Reply::NoMemory);
        return Ok(Answered { permit, is_in_time: true });
    };
    let Some(request) = accessor.with(|mut store| guests(store.data_mut(), request)) else {
        let _ = reply.send(Reply::BadRequest);
        return Ok(Answered { permit, is_in_time: true });
    };
    let answering = async {
        let Ok(answer) = service.handle(accessor, request).await? else {
            let _ = reply.send(Reply::Refused);
            return Ok(());
        };
        let (told, sent) = oneshot::channel();
        // An answer that nobody wants any more was not sent.
        let sent = async move { sent.await.unwrap_or(Err(HttpError::ConnectionTerminated)) };
        let answer = accessor.with(|mut store| answer.into_http(&mut store, sent))?;
        // Where none is due nobody asks for the body, and it is sent for all that.
        let is_due = !is_head && !BODILESS.contains(&answer.status());
        let (kept, gone) = oneshot::channel::<()>();
        let answer = answer.map(|body| {
            if is_due {
                Held::new(Watched::new(body, told), kept).boxed_unsync()
            } else {
                told.tell(true);
                Held::new(body, kept).boxed_unsync()
            }
        });
        if reply.send(Reply::Guest(answer)).is_ok() {
            // Nothing is ever sent: this is its end.
            let _ = gone.await;
        }
        Ok(())
    };
    match timeout_at(end, answering).await {
        Ok(answered) => answered.map(|()| Answered { permit, is_in_time: true }),
        Err(_) => Ok(Answered { permit, is_in_time: false }),
    }
}

/// A request as the guest gets it; none without a host.
fn guests(state: &mut ComponentState, request: Request<WasiBody>) -> Option<p3::Request> {
    let (parts, body) = request.into_parts();
    let authority = match parts.uri.authority() {
        Some(authority) => authority.clone(),
        None => Authority::try_from(parts.headers.get(header::HOST)?.as_bytes()).ok()?,
    };
    let path = parts.uri.path_and_query().cloned();
    let headers = FieldMap::new_immutable(state.http().hooks, parts.headers);
    let scheme = Some(Scheme::HTTP);
    let (request, _done) =
        p3::Request::new(parts.method, scheme, Some(authority), path, headers, None, body);
    Some(request)
}
