//! Events: what `kubectl describe` tells people about a pod or the node.
//!
//! Recording never waits; when the queue is full the event is dropped and
//! counted. Events are sent one after the other, so that they arrive in their
//! order, and no faster than [`EventRate`] says. [`correlate`] decides which are told at all, and which only count up
//! an earlier one. Written as core/v1 by component `kubelet`, as the kubelet
//! does: tools look for that.

mod correlate;
mod pace;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, Node, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use krustlet_model::{Chain, ContainerName, observed::ContainerKind};
use kube::{
    Resource,
    api::{Patch, PatchParams, PostParams},
    core::Request,
};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Cluster, RequestError, request::LIMIT, retry::Backoff};

use correlate::{Correlator, Say, Told};
pub use pace::EventRate;
use pace::Pace;

/// Events that may wait, as for a server that is away or because there is a
/// bound on the rate: those of a thousand pods that start at once. (The kubelet
/// keeps 1000: client-go, `maxQueuedEvents` in `tools/record/event.go`.)
const QUEUE: usize = 4096;

/// Bytes of the longest message; a trap's backtrace has as many.
const LONGEST_MESSAGE: usize = 4096;

/// Bytes of an event's name that are its object's; the rest is a time.
const LONGEST_NAME: usize = 230;

/// How long an event is kept back. On a small machine the requests of a pod's
/// events cost its status, which people and controllers wait for, as much time
/// again; nobody waits for an event.
const COURTESY: Duration = Duration::from_millis(200);

/// How long events that wait are still sent once the agent stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct About {
    kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
    resource_version: Option<String>,
    field_path: Option<String>,
}

impl About {
    /// A pod as a whole.
    #[must_use]
    pub fn pod(pod: &Pod) -> Self {
        Self {
            kind: "Pod",
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: None,
        }
    }

    /// One container of a pod.
    #[must_use]
    pub fn container(pod: &Pod, kind: ContainerKind, name: &ContainerName) -> Self {
        let list = match kind {
            ContainerKind::Init | ContainerKind::Sidecar => "initContainers",
            ContainerKind::App => "containers",
        };
        Self { field_path: Some(format!("spec.{list}{{{name}}}")), ..Self::pod(pod) }
    }

    /// One ephemeral container of a pod.
    #[must_use]
    pub fn ephemeral(pod: &Pod, name: &str) -> Self {
        let field_path = Some(format!("spec.ephemeralContainers{{{name}}}"));
        Self { field_path, ..Self::pod(pod) }
    }

    /// A node.
    #[must_use]
    pub fn node(node: &Node) -> Self {
        Self {
            kind: "Node",
            namespace: String::new(),
            name: node.metadata.name.clone().unwrap_or_default(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            resource_version: None,
            field_path: None,
        }
    }

    /// Events of what has no namespace live in `default`.
    fn event_namespace(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }
}

/// Whether an event tells of something wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// As it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// An event as it was recorded.
#[derive(Clone, Debug)]
struct Recorded {
    about: About,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
    /// When it may be sent.
    from: Instant,
}

/// Takes events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Recorded>,
    dropped: Arc<AtomicU64>,
}

/// Sends events.
#[derive(Debug)]
pub struct EventsTask {
    cluster: Cluster,
    host: String,
    queue: mpsc::Receiver<Recorded>,
    dropped: Arc<AtomicU64>,
    correlator: Correlator,
    pace: Pace,
}

/// The events of the node of this name, sent no faster than `rate`.
#[must_use]
pub fn events(cluster: &Cluster, node_name: &str, rate: EventRate) -> (Events, EventsTask) {
    let (queue, recorded) = mpsc::channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let task = EventsTask {
        cluster: cluster.clone(),
        host: node_name.to_owned(),
        queue: recorded,
        dropped: Arc::clone(&dropped),
        correlator: Correlator::default(),
        pace: Pace::new(rate, Instant::now()),
    };
    (Events { queue, dropped }, task)
}

impl Events {
    /// Records an event. Never waits. `reason` is one CamelCase word; a message
    /// beyond 4 KiB is cut.
    pub fn record(&self, about: &About, kind: EventType, reason: &str, mut message: String) {
        message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
        let event = Recorded {
            about: about.clone(),
            kind,
            reason: reason.to_owned(),
            message,
            at: Timestamp::now(),
            from: Instant::now() + COURTESY,
        };
        if self.queue.try_send(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events were dropped since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl EventsTask {
    /// Sends until stopped, and then for at most two seconds what still waits.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut reported = 0;
        let mut held = None;
        loop {
            // Cancel-safe: an event that is not received stays in the queue.
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                event = self.queue.recv() => match event {
                    Some(event) => event,
                    None => return,
                },
            };
            let dropped = self.dropped.load(Ordering::Relaxed);
            if dropped > reported {
                tracing::warn!(
                    dropped = dropped - reported,
                    "events were dropped: the queue is full"
                );
                reported = dropped;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    held = Some(event);
                    break;
                }
                () = sleep_until(event.from.max(self.pace.next())) => {}
            }
            tokio::select! {
                biased;
                // Maybe it was told already; its name is the same then.
                () = stop.cancelled() => {
                    held = Some(event);
                    break;
                }
                () = self.tell(event.clone()) => {}
            }
        }
        self.queue.close();
        let rest = async {
            if let Some(event) = held {
                self.tell(event).await;
            }
            while let Ok(event) = self.queue.try_recv() {
                self.tell(event).await;
            }
        };
        if timeout(DRAIN_LIMIT, rest).await.is_err() {
            tracing::warn!("stopped before every event was sent");
        }
    }

    /// Sends one event, trying as long as the server is away.
    async fn tell(&mut self, event: Recorded) {
        let Some(mut say) = self.correlator.decide(&event, Instant::now()) else {
            return;
        };
        self.pace.sent(Instant::now());
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            let (told, result) = match &say {
                Say::New { message, .. } => self.create(&event, message).await,
                Say::Again { told, message, .. } => self.count_up(&event, told, message).await,
            };
            match result {
                Ok(()) => {
                    self.correlator.told(say.into_key(), told, Instant::now());
                    return;
                }
                // It expired at the server; tell it anew.
                Err(error) if error.code() == Some(404) && matches!(say, Say::Again { .. }) => {
                    say = say.anew();
                }
                Err(error) if error.is_transient() => {
                    tracing::debug!(error = %Chain(&error), "cannot send an event; trying again");
                    sleep(backoff.wait(error.retry_after())).await;
                }
                Err(error) => {
                    // As for a namespace that is being removed.
                    tracing::debug!(
                        reason = event.reason,
                        object = event.about.name,
                        error = %Chain(&error),
                        "the API server will not have an event"
                    );
                    return;
                }
            }
        }
    }

    async fn create(&self, event: &Recorded, message: &str) -> (Told, Result<(), RequestError>) {
        let told = Told { name: name(event), count: 1 };
        let result = async {
            let body = serde_json::to_vec(&self.object(event, &told, message))
                .map_err(kube::core::request::Error::SerializeBody)?;
            let request = path(event).create(&PostParams::default(), body)?;
            self.cluster.call::<serde::de::IgnoredAny>(request, LIMIT).await.map(drop)
        };
        let result = result.await;
        (told, result)
    }

    async fn count_up(
        &self,
        event: &Recorded,
        before: &Told,
        message: &str,
    ) -> (Told, Result<(), RequestError>) {
        let told = Told { name: before.name.clone(), count: before.count.saturating_add(1) };
        let result = async {
            let patch = Patch::Merge(json!({
                "count": told.count,
                "message": message,
                "lastTimestamp": Time(event.at),
            }));
            let request = path(event).patch(&told.name, &PatchParams::default(), &patch)?;
            self.cluster.call::<serde::de::IgnoredAny>(request, LIMIT).await.map(drop)
        };
        let result = result.await;
        (told, result)
    }

    fn object(&self, event: &Recorded, told: &Told, message: &str) -> Event {
        let about = &event.about;
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Event {
            metadata: ObjectMeta {
                name: Some(told.name.clone()),
                namespace: Some(about.event_namespace().to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some(about.kind.to_owned()),
                namespace: some(&about.namespace),
                name: some(&about.name),
                uid: some(&about.uid),
                resource_version: about.resource_version.clone(),
                field_path: about.field_path.clone(),
            },
            type_: Some(event.kind.as_str().to_owned()),
            reason: Some(event.reason.clone()),
            message: Some(message.to_owned()),
            count: Some(told.count),
            first_timestamp: Some(Time(event.at)),
            last_timestamp: Some(Time(event.at)),
            source: Some(EventSource {
                component: Some("kubelet".to_owned()),
                host: Some(self.host.clone()),
            }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(self.host.clone()),
            ..Event::default()
        }
    }
}

fn path(event: &Recorded) -> Request {
    Request::new(Event::url_path(&(), Some(event.about.event_namespace())))
}

/// The object's name and the time in hexadecimal, as client-go has it.
fn name(event: &Recorded) -> String {
    let name = &event.about.name;
    let name = &name[..name.floor_char_boundary(LONGEST_NAME)];
    format!("{name}.{:x}", event.at.as_nanosecond())
}
