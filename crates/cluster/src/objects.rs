//! ConfigMaps and Secrets that pods refer to.
//!
//! An object is watched while somebody asks for it, so that asking again is free
//! and a change is seen at once: pods ask at each of their turns, at least once
//! a minute. A watch that ends is not resumed by itself but by the next question:
//! once the last pod that refers to an object is gone, the node may no longer
//! read it, and must not try. While the API server is away the last known object
//! stands. Objects that are immutable are read once.
//!
//! Source: kubelet, `pkg/kubelet/util/manager/watch_based_manager.go`.

use std::{collections::HashMap, fmt::Debug, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Resource;
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Cluster, RequestError,
    feed::{Change, Feed},
};

/// Questions that may wait for the task: the objects of a node full of pods.
const QUEUE: usize = 256;

/// Objects watched at once. A connection carries 100 streams and those of this
/// module share theirs with the pods' watch and two or three others.
const MOST_WATCHES: usize = 80;

/// How long an object beyond that is believed before it is read again.
/// Source: kubelet, `syncFrequency`, the time to live of its object cache.
const BELIEVED: Duration = Duration::from_mins(1);

/// An object nobody asks for this long is forgotten. Pods ask every minute.
/// Source: kubelet, `maxIdleTime` of its object watches.
const IDLE: Duration = Duration::from_mins(5);

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between tries while the authorizer has not heard of a pod yet; it learns of
/// it by a watch of its own, mostly within milliseconds.
const GRAPH_LAG: [Duration; 4] = [
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ObjectError {
    #[error("cannot read {kind} {namespace}/{name}")]
    Request {
        kind: String,
        namespace: String,
        name: String,
        #[source]
        source: Arc<RequestError>,
    },

    #[error("reading {kind} {namespace}/{name} took longer than {limit:?}")]
    TimedOut { kind: String, namespace: String, name: String, limit: Duration },

    #[error("the agent is stopping")]
    Stopping,
}

impl ObjectError {
    /// Whether asking again may help, with nothing changed here.
    ///
    /// True for a refusal (403) too: right after a pod was bound the API server
    /// may not know yet that its objects are this node's to read.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Request { source, .. } => source.is_transient() || source.code() == Some(403),
            Self::TimedOut { .. } | Self::Stopping => true,
        }
    }
}

/// Answers questions for objects. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Objects {
    config_maps: mpsc::Sender<Ask<ConfigMap>>,
    secrets: mpsc::Sender<Ask<Secret>>,
}

/// Follows the objects that are asked for.
#[derive(Debug)]
pub struct ObjectsTask {
    config_maps: Store<ConfigMap>,
    secrets: Store<Secret>,
}

/// The objects of one cluster.
#[must_use]
pub fn objects(cluster: &Cluster) -> (Objects, ObjectsTask) {
    let (config_maps, asked_config_maps) = mpsc::channel(QUEUE);
    let (secrets, asked_secrets) = mpsc::channel(QUEUE);
    let task = ObjectsTask {
        config_maps: Store::new(cluster, asked_config_maps, MOST_WATCHES / 2),
        secrets: Store::new(cluster, asked_secrets, MOST_WATCHES / 2),
    };
    (Objects { config_maps, secrets }, task)
}

impl Objects {
    /// The ConfigMap as it is now; None if there is none.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] if the API server neither says nor ever said what it is.
    pub async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ConfigMap>>, ObjectError> {
        ask(&self.config_maps, namespace, name).await
    }

    /// The Secret as it is now; None if there is none.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] if the API server neither says nor ever said what it is.
    pub async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Secret>>, ObjectError> {
        ask(&self.secrets, namespace, name).await
    }
}

impl ObjectsTask {
    /// Follows objects until stopped.
    pub async fn run(self, stop: CancellationToken) {
        tokio::join!(self.config_maps.run(stop.clone()), self.secrets.run(stop));
    }
}

/// What is known of an object.
#[derive(Debug)]
enum Seen<K> {
    /// The server has not said; what it said before, if ever.
    Pending(Option<Known<K>>),
    /// This it is.
    Known(Known<K>),
    /// The server would not say; what it said before, if ever.
    Failed(Arc<RequestError>, Option<Known<K>>),
}

/// An object, or the knowledge that there is none.
type Known<K> = Option<Arc<K>>;

impl<K> Seen<K> {
    fn last(&self) -> Option<Known<K>> {
        match self {
            Self::Known(known) => Some(known.clone()),
            Self::Pending(last) | Self::Failed(_, last) => last.clone(),
        }
    }
}

type Id = (String, String);

#[derive(Debug)]
struct Ask<K> {
    id: Id,
    reply: oneshot::Sender<watch::Receiver<Seen<K>>>,
}

async fn ask<K>(
    asks: &mpsc::Sender<Ask<K>>,
    namespace: &str,
    name: &str,
) -> Result<Known<K>, ObjectError>
where
    K: Followed,
{
    let kind = || K::kind(&()).into_owned();
    let mut lag = GRAPH_LAG.iter();
    let patient = async {
        loop {
            let (reply, answer) = oneshot::channel();
            let ask = Ask { id: (namespace.to_owned(), name.to_owned()), reply };
            asks.send(ask).await.map_err(|_| ObjectError::Stopping)?;
            let mut seen = answer.await.map_err(|_| ObjectError::Stopping)?;
            let (error, last) = {
                // Borrowed in this block only: it must not live to the sleep.
                let seen = seen
                    .wait_for(|seen| !matches!(seen, Seen::Pending(_)))
                    .await
                    .map_err(|_| ObjectError::Stopping)?;
                match &*seen {
                    Seen::Known(known) => return Ok(known.clone()),
                    Seen::Pending(_) => continue,
                    Seen::Failed(error, last) => (Arc::clone(error), last.clone()),
                }
            };
            let refused = error.code() == Some(403);
            if refused && let Some(wait) = lag.next() {
                sleep(*wait).await;
                continue;
            }
            return match last {
                // A server that is away takes nothing from the pods.
                Some(known) if !refused => Ok(known),
                Some(_) | None => Err(ObjectError::Request {
                    kind: kind(),
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    source: error,
                }),
            };
        }
    };
    timeout(PATIENCE, patient).await.unwrap_or_else(|_| {
        Err(ObjectError::TimedOut {
            kind: kind(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            limit: PATIENCE,
        })
    })
}

/// A kind of object that is followed one by one.
trait Followed:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Whether it never changes.
    fn is_immutable(&self) -> bool;
}

impl Followed for ConfigMap {
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl Followed for Secret {
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

/// One object that is asked for.
#[derive(Debug)]
struct Entry<K> {
    seen: watch::Sender<Seen<K>>,
    /// Stops following it.
    follower: Option<AbortHandle>,
    /// Until when the last word stands although nobody follows. None: not at all.
    believed_until: Option<Instant>,
    asked_at: Instant,
}

/// Why nobody follows an object any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// Its watch ended; the next question begins another.
    Unwatched,
    /// There were too many watches; it was read once.
    ReadOnce,
    /// It never changes.
    Immutable,
}

/// Every object of one kind that is asked for.
#[derive(Debug)]
struct Store<K> {
    cluster: Cluster,
    asks: mpsc::Receiver<Ask<K>>,
    entries: HashMap<Id, Entry<K>>,
    followers: JoinSet<(Id, Ended)>,
    most_watches: usize,
}

impl<K: Followed> Store<K> {
    fn new(cluster: &Cluster, asks: mpsc::Receiver<Ask<K>>, most_watches: usize) -> Self {
        Self {
            cluster: cluster.clone(),
            asks,
            entries: HashMap::new(),
            followers: JoinSet::new(),
            most_watches,
        }
    }

    /// Serves questions. Dropping the followers at the end ends their watches.
    async fn run(mut self, stop: CancellationToken) {
        let mut sweep = interval(IDLE / 5);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // All are cancel-safe, and no arm awaits in its body.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.answer(ask),
                    None => return,
                },
                Some(ended) = self.followers.join_next() => {
                    // An aborted follower's entry is gone already.
                    if let Ok((id, ended)) = ended {
                        self.unfollowed(&id, ended);
                    }
                }
                _ = sweep.tick() => self.forget_idle(),
            }
        }
    }

    fn answer(&mut self, ask: Ask<K>) {
        let now = Instant::now();
        let entry = self.entries.entry(ask.id.clone()).or_insert_with(|| Entry {
            seen: watch::Sender::new(Seen::Pending(None)),
            follower: None,
            believed_until: None,
            asked_at: now,
        });
        entry.asked_at = now;
        let believed = entry.believed_until.is_some_and(|until| now < until);
        if entry.follower.is_none() && !believed {
            entry.seen.send_modify(|seen| *seen = Seen::Pending(seen.last()));
            let follow = Follow {
                feed: Feed::new(
                    &self.cluster,
                    Some(&ask.id.0),
                    Some(format!("metadata.name={}", ask.id.1)),
                ),
                seen: entry.seen.clone(),
                once: self.followers.len() >= self.most_watches,
            };
            let id = ask.id;
            entry.believed_until = None;
            entry.follower = Some(self.followers.spawn(async move { (id, follow.run().await) }));
        }
        // Whoever gave up waiting need not know.
        let _ = ask.reply.send(entry.seen.subscribe());
    }

    fn unfollowed(&mut self, id: &Id, ended: Ended) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.follower = None;
            entry.believed_until = match ended {
                Ended::Unwatched => None,
                Ended::ReadOnce => Some(Instant::now() + BELIEVED),
                // As long as it is asked for; then it is forgotten.
                Ended::Immutable => Some(Instant::now() + Duration::from_hours(24)),
            };
        }
    }

    fn forget_idle(&mut self) {
        let now = Instant::now();
        self.entries.retain(|_, entry| {
            let keep = now.duration_since(entry.asked_at) < IDLE;
            if !keep && let Some(follower) = &entry.follower {
                follower.abort();
            }
            keep
        });
    }
}

/// Follows one object until its watch ends.
struct Follow<K> {
    feed: Feed<K>,
    seen: watch::Sender<Seen<K>>,
    once: bool,
}

impl<K: Followed> Follow<K> {
    async fn run(mut self) -> Ended {
        loop {
            match self.feed.next().await {
                Change::Replaced(objects) => {
                    let known = objects.into_iter().next();
                    if let Some(ended) = self.know(known) {
                        return ended;
                    }
                    if self.once {
                        return Ended::ReadOnce;
                    }
                }
                Change::Applied(object) => {
                    if let Some(ended) = self.know(Some(object)) {
                        return ended;
                    }
                }
                Change::Removed(_) => {
                    self.know(None);
                }
                Change::Ended => return Ended::Unwatched,
                Change::Interrupted(error) => {
                    let error = Arc::new(error);
                    self.seen.send_modify(|seen| *seen = Seen::Failed(error, seen.last()));
                    return Ended::Unwatched;
                }
            }
        }
    }

    fn know(&mut self, object: Option<K>) -> Option<Ended> {
        let immutable = object.as_ref().is_some_and(Followed::is_immutable);
        let object = object.map(|mut object| {
            object.meta_mut().managed_fields = None;
            Arc::new(object)
        });
        self.seen.send_replace(Seen::Known(object));
        immutable.then_some(Ended::Immutable)
    }
}
