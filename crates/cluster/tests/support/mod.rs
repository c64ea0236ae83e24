//! An API server for faults: it lists, watches, creates, patches and deletes as
//! much as a node needs, forgets and refuses on demand, and remembers what it
//! was asked. It lives in this process and has no sockets, so that time can be
//! paused. What a real API server does is tested against a real one elsewhere.

#![allow(dead_code, reason = "each test file uses its part")]

mod store;

use std::{
    collections::HashMap,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, Response, StatusCode, header::RETRY_AFTER},
};
use futures::stream;
use krustlet_cluster::Cluster;
use kube::client::Body as ClientBody;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, service_fn};

use store::Store;
pub(crate) use store::{Asked, Place};

/// How long a test waits for anything; with paused time no time at all.
const PATIENCE: Duration = Duration::from_hours(1);

/// How a request is answered instead of properly.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// With this HTTP status, and a Retry-After of so many seconds.
    Refuse(u16, Option<u64>),
    /// With a connection that breaks.
    Break,
}

#[derive(Debug)]
struct Planned {
    method: &'static str,
    part: String,
    times: usize,
    fault: Fault,
}

type Hook = Box<dyn Fn(Value) -> Value + Send>;

struct Inner {
    store: Mutex<Store>,
    faults: Mutex<Vec<Planned>>,
    hooks: Mutex<HashMap<&'static str, Hook>>,
    /// Grows with everything that happens.
    changed: watch::Sender<u64>,
    down: watch::Sender<bool>,
    /// Grows when all watches are to end.
    watches: watch::Sender<u64>,
    /// Requests wait while it is true.
    held: watch::Sender<bool>,
}

/// The server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Server(Arc<Inner>);

impl Server {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            store: Mutex::default(),
            faults: Mutex::default(),
            hooks: Mutex::default(),
            changed: watch::Sender::new(0),
            down: watch::Sender::new(false),
            watches: watch::Sender::new(0),
            held: watch::Sender::new(false),
        }))
    }

    /// A connection to it.
    pub(crate) fn cluster(&self) -> Cluster {
        let server = self.clone();
        let service = service_fn(move |request: Request<ClientBody>| {
            let server = server.clone();
            let answer: Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>> =
                Box::pin(async move { server.serve(request).await });
            answer
        });
        Cluster::from(kube::Client::new(service, "default"))
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.store.lock().unwrap()
    }

    fn happened(&self) {
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, resource: &str, object: Value) -> Value {
        let object = self.store().put(resource, object);
        self.happened();
        object
    }

    pub(crate) fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.store().remove(&Place::new(resource, namespace, name));
        self.happened();
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.store().get(&Place::new(resource, namespace, name)).cloned()
    }

    pub(crate) fn all(&self, resource: &str) -> Vec<Value> {
        self.store().all(resource)
    }

    /// Everything that was asked, oldest first.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.store().asked.clone()
    }

    /// How often something was asked whose path has this part.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        let matches = |asked: &&Asked| asked.method == method && asked.uri.contains(part);
        self.store().asked.iter().filter(matches).count()
    }

    /// How many lists (not watches) were asked of a resource.
    pub(crate) fn lists(&self, resource: &str) -> usize {
        self.count("GET", &format!("/{resource}?")) - self.watches(resource)
    }

    pub(crate) fn watches(&self, resource: &str) -> usize {
        let part = format!("/{resource}?");
        let matches =
            |asked: &&Asked| asked.uri.contains(&part) && asked.uri.contains("watch=true");
        self.store().asked.iter().filter(matches).count()
    }

    /// Answers the next requests of this method, whose path has this part, so.
    pub(crate) fn fail(&self, method: &'static str, part: &str, times: usize, fault: Fault) {
        let planned = Planned { method, part: part.to_owned(), times, fault };
        self.0.faults.lock().unwrap().push(planned);
    }

    /// Makes the answer to a creation of this resource.
    pub(crate) fn answer(
        &self,
        resource: &'static str,
        hook: impl Fn(Value) -> Value + Send + 'static,
    ) {
        self.0.hooks.lock().unwrap().insert(resource, Box::new(hook));
    }

    /// Goes away, with every watch, or comes back.
    pub(crate) fn set_down(&self, down: bool) {
        self.0.down.send_replace(down);
    }

    /// Lets writes wait, or go on.
    pub(crate) fn hold(&self, held: bool) {
        self.0.held.send_replace(held);
    }

    /// Ends every watch in the ordinary way.
    pub(crate) fn end_watches(&self) {
        self.0.watches.send_modify(|generation| *generation += 1);
    }

    /// Forgets every version but the newest.
    pub(crate) fn compact(&self) {
        self.store().compact();
    }

    /// Sends a line to every watch of a resource.
    pub(crate) fn say(&self, resource: &str, line: &Value) {
        self.store().say(resource, line);
        self.happened();
    }

    /// Waits until this holds.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.0.changed.subscribe();
        let wait = async {
            while !holds(self) {
                changed.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| {
            let asked: Vec<_> = self.asked().iter().rev().take(5).map(Asked::summary).collect();
            panic!("never: {what}; asked last: {asked:#?}")
        });
    }

    async fn serve(&self, request: Request<ClientBody>) -> Result<Response<Body>, BoxError> {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(Body::new(body), usize::MAX).await.unwrap();
        let asked = Asked {
            method: parts.method.to_string(),
            uri: parts.uri.to_string(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        };
        self.store().asked.push(asked.clone());
        self.happened();
        if *self.0.down.borrow() {
            return Err(Box::new(io::Error::from(io::ErrorKind::ConnectionRefused)));
        }
        if asked.method != "GET" {
            let mut held = self.0.held.subscribe();
            held.wait_for(|held| !held).await.unwrap();
        }
        if let Some(fault) = self.fault(&asked) {
            return match fault {
                Fault::Refuse(code, after) => Ok(refusal(code, after)),
                Fault::Break => Err(Box::new(io::Error::from(io::ErrorKind::ConnectionReset))),
            };
        }
        let answer = self.perform(&asked);
        self.happened();
        Ok(answer)
    }

    fn fault(&self, asked: &Asked) -> Option<Fault> {
        let mut faults = self.0.faults.lock().unwrap();
        let matches = |fault: &Planned| {
            fault.times > 0 && fault.method == asked.method && asked.uri.contains(&fault.part)
        };
        let planned = faults.iter_mut().find(|fault| matches(fault))?;
        planned.times -= 1;
        Some(planned.fault.clone())
    }

    fn perform(&self, asked: &Asked) -> Response<Body> {
        let (path, query) = asked.uri.split_once('?').unwrap_or((&asked.uri, ""));
        let (place, subresource) = Place::parse(path);
        if asked.method == "POST" {
            let key = subresource.as_deref().unwrap_or(&place.resource);
            if let Some(hook) = self.0.hooks.lock().unwrap().get(key) {
                return ok(&hook(asked.body.clone()));
            }
        }
        if place.name.is_empty() && query.contains("watch=true") {
            return self.watch(&place, query);
        }
        let answer = self.store().perform(&place, query, asked);
        match answer {
            Ok(object) => ok(&object),
            Err(422) if asked.method == "PATCH" => other_uid(),
            Err(409) if asked.method == "POST" => refuse(409, "AlreadyExists", None),
            Err(code) => refusal(code, None),
        }
    }

    fn watch(&self, place: &Place, query: &str) -> Response<Body> {
        let next = match self.store().first_line(query) {
            Ok(next) => Arc::new(AtomicUsize::new(next)),
            Err(code) => return refusal(code, None),
        };
        let ended = self.0.watches.subscribe();
        let down = self.0.down.subscribe();
        let changed = self.0.changed.subscribe();
        let (server, place, query) = (self.clone(), place.clone(), query.to_owned());
        let ends = (ended, down, changed);
        let lines = stream::unfold(ends, move |(mut ended, mut down, mut changed)| {
            let (server, place, query) = (server.clone(), place.clone(), query.clone());
            let from = next.clone();
            async move {
                loop {
                    changed.mark_unchanged();
                    let at = from.load(Ordering::Relaxed);
                    let found = server.store().line_after(at, &place, &query);
                    if let Some((at, line)) = found {
                        from.store(at, Ordering::Relaxed);
                        return Some((Ok(line), (ended, down, changed)));
                    }
                    let broken = tokio::select! {
                        biased;
                        _ = down.wait_for(|down| *down) => true,
                        _ = ended.changed() => return None,
                        _ = changed.changed() => false,
                    };
                    if broken {
                        let broken = io::Error::from(io::ErrorKind::ConnectionReset);
                        return Some((Err(broken), (ended, down, changed)));
                    }
                }
            }
        });
        Response::new(Body::from_stream(lines))
    }
}

fn ok(object: &Value) -> Response<Body> {
    Response::new(Body::from(object.to_string()))
}

fn refusal(code: u16, after: Option<u64>) -> Response<Body> {
    let reason = match code {
        409 => "Conflict",
        410 => "Expired",
        _ => "",
    };
    refuse(code, reason, after)
}

/// As the API server says that a patch was meant for another object.
fn other_uid() -> Response<Body> {
    let status = json!({
        "kind": "Status", "status": "Failure", "message": "is invalid", "reason": "Invalid",
        "details": { "causes": [{ "field": "metadata.uid", "message": "field is immutable" }] },
        "code": 422,
    });
    let mut response = Response::new(Body::from(status.to_string()));
    *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    response
}

fn refuse(code: u16, reason: &str, after: Option<u64>) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": format!("refused with {code}"), "reason": reason, "code": code,
    });
    let mut response = Response::new(Body::from(status.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    if let Some(after) = after {
        response.headers_mut().insert(RETRY_AFTER, after.into());
    }
    response
}

/// Tasks of the crate, running until the test stops them.
pub(crate) struct Running {
    tasks: JoinSet<()>,
    pub(crate) stop: CancellationToken,
}

impl Running {
    pub(crate) fn new() -> Self {
        Self { tasks: JoinSet::new(), stop: CancellationToken::new() }
    }

    pub(crate) fn start<F>(&mut self, run: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(run(self.stop.clone()));
    }

    /// Stops everything and waits for its end.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        let ended = async {
            while let Some(task) = self.tasks.join_next().await {
                task.unwrap();
            }
        };
        timeout(PATIENCE, ended).await.expect("the tasks stop when told");
    }
}

/// Waits for a future with the same patience.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}
