//! What stands where a cluster's API server would: the pods that were asked
//! for, the objects they refer to, their statuses, and everyone who watches.
//!
//! What was asked for is kept on disk, so that a new agent goes on with it;
//! what became of it is in the pods' own checkpoints.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, PodStatus, Secret};
use krustlet_model::{
    PodKey, PodUid,
    objects::{self, ObjectRef},
    services::Services,
    time::api_time,
};
use krustlet_pod::{
    WantedPods,
    outside::{
        About, DeleteFailure, EventSink, EventType, ObjectFailure, Objects, ServiceToken,
        StatusSink, TokenAsk,
    },
};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

use super::manifest::Bundle;
use crate::app::queries::Stopper;

/// News that a slow watcher may be behind before it is shown everything anew.
const NEWS: usize = 1024;

/// The pods of an agent without a cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct World {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Held for map operations and the write of a small file, never across an await.
    state: Mutex<State>,
    file: PathBuf,
    /// Whether no more pods are taken. Changed and read with `state` locked.
    is_closed: AtomicBool,
    sets: watch::Sender<WantedPods>,
    news: broadcast::Sender<News>,
    /// No service and no node: a cluster has those.
    services: watch::Sender<Option<Arc<Services>>>,
    node: watch::Sender<Option<Arc<Node>>>,
}

/// What is kept on disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    pods: BTreeMap<PodUid, Arc<Pod>>,
    config_maps: BTreeMap<ObjectKey, Arc<ConfigMap>>,
    secrets: BTreeMap<ObjectKey, Arc<Secret>>,
}

impl State {
    /// Drops the objects that no pod refers to any more: a secret is kept no
    /// longer than it is used.
    fn forget_objects(&mut self) {
        let mut refs = BTreeSet::new();
        for pod in self.pods.values() {
            refs.extend(objects::of_volumes(pod).into_keys());
            refs.extend(objects::of_environment(pod).into_keys());
            refs.extend(objects::of_image_pulls(pod));
        }
        let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
        for object in refs {
            match object {
                ObjectRef::ConfigMap { namespace, name } => {
                    config_maps.insert(PodKey::new(namespace, name).to_string());
                }
                ObjectRef::Secret { namespace, name } => {
                    secrets.insert(PodKey::new(namespace, name).to_string());
                }
            }
        }
        self.config_maps.retain(|key, _| config_maps.contains(key));
        self.secrets.retain(|key, _| secrets.contains(key));
    }
}

/// `namespace/name`, as a JSON map's key has to be one text.
type ObjectKey = String;

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum News {
    /// The newest state of a pod.
    Pod(Arc<Pod>),
    /// A pod that is no longer there.
    Gone(PodKey),
    /// An event, as `kubectl describe` would show it.
    Event {
        /// Which pod.
        pod: PodKey,
        /// Whether somebody should look.
        warning: bool,
        /// One CamelCase word.
        reason: String,
        /// A sentence.
        message: String,
    },
}

/// Why pods cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("pod {0} is there already: `krustlet stop` it first, or give the new one another name")]
    Exists(PodKey),
    #[error("the agent is about to end; try again")]
    Closed,
    #[error("cannot keep the pods on disk")]
    Write(#[source] io::Error),
}

impl World {
    /// Goes on with what the file says; nothing if there is none.
    ///
    /// # Errors
    ///
    /// If the file is there and cannot be read: forgetting pods that run would
    /// leave them running.
    pub(crate) fn open(file: PathBuf, node: Node) -> io::Result<Self> {
        let state = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error),
        };
        let (sets, _) = watch::channel(set_of(&state));
        let shared = Shared {
            state: Mutex::new(state),
            file,
            is_closed: AtomicBool::new(false),
            sets,
            news: broadcast::Sender::new(NEWS),
            services: watch::Sender::new(Some(Arc::default())),
            node: watch::Sender::new(Some(Arc::new(node))),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The pods that are wanted.
    pub(crate) fn sets(&self) -> watch::Receiver<WantedPods> {
        self.shared.sets.subscribe()
    }

    /// Every pod now, and what happens from now on.
    pub(crate) fn watch(&self) -> (Vec<Arc<Pod>>, broadcast::Receiver<News>) {
        let state = self.state();
        // Subscribed under the lock: nothing happens in between.
        (state.pods.values().cloned().collect(), self.shared.news.subscribe())
    }

    /// Takes no more pods if there are none now, and says whether that is so. An
    /// agent that ends must do this first, lest nobody run a pod that it takes.
    pub(crate) fn close_if_empty(&self) -> bool {
        let state = self.state();
        let is_empty = state.pods.is_empty();
        self.shared.is_closed.fetch_or(is_empty, Ordering::Relaxed);
        is_empty
    }

    /// Whether it takes no more pods.
    pub(crate) fn is_closed(&self) -> bool {
        let _state = self.state();
        self.shared.is_closed.load(Ordering::Relaxed)
    }

    /// Takes no more pods. Those that are here are the next agent's.
    pub(crate) fn close(&self) {
        let _state = self.state();
        self.shared.is_closed.store(true, Ordering::Relaxed);
    }

    /// Takes a bundle whole or not at all. Pods of the same name that have
    /// ended make room.
    pub(crate) fn apply(&self, bundle: Bundle) -> Result<Vec<PodKey>, ApplyError> {
        let mut state = self.state();
        if self.shared.is_closed.load(Ordering::Relaxed) {
            return Err(ApplyError::Closed);
        }
        let mut next = state.clone();
        for object in bundle.config_maps {
            next.config_maps.insert(key_of(&object.metadata).to_string(), Arc::new(object));
        }
        for object in bundle.secrets {
            next.secrets.insert(key_of(&object.metadata).to_string(), Arc::new(object));
        }
        let mut keys = Vec::new();
        for mut pod in bundle.pods {
            let key = key_of(&pod.metadata);
            if next.pods.values().any(|old| key_of(&old.metadata) == key && !has_ended(old)) {
                return Err(ApplyError::Exists(key));
            }
            next.pods.retain(|_, old| key_of(&old.metadata) != key);
            let uid = Uuid::new_v4().to_string();
            pod.metadata.uid = Some(uid.clone());
            pod.metadata.creation_timestamp = Some(api_time(Timestamp::now()));
            pod.metadata.generation = Some(1);
            pod.status = None;
            next.pods.insert(PodUid::new(uid), Arc::new(pod));
            keys.push(key);
        }
        self.write(&next).map_err(ApplyError::Write)?;
        *state = next;
        self.shared.sets.send_replace(set_of(&state));
        Ok(keys)
    }

    /// Marks a pod as to be deleted, as the API server does. A second time may
    /// only shorten the grace period. None if there is no such pod.
    fn mark_deleted(&self, key: &PodKey, grace: Option<Duration>) -> Option<PodUid> {
        let mut state = self.state();
        let (uid, pod) = state.pods.iter_mut().find(|(_, pod)| key_of(&pod.metadata) == *key)?;
        let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let asked = grace.map(|grace| i64::try_from(grace.as_secs()).unwrap_or(i64::MAX));
        let seconds = asked.or(own).unwrap_or(30);
        let before = pod.metadata.deletion_grace_period_seconds;
        let (uid, metadata) = (uid.clone(), &mut Arc::make_mut(pod).metadata);
        metadata.deletion_grace_period_seconds =
            Some(before.map_or(seconds, |before| before.min(seconds)));
        metadata.deletion_timestamp.get_or_insert_with(|| api_time(Timestamp::now()));
        self.keep(&state);
        self.shared.sets.send_replace(set_of(&state));
        Some(uid)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic inside leaves the maps as they were before.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what cannot be refused any more; a full disk must not stop a pod
    /// from being stopped.
    fn keep(&self, state: &State) {
        if let Err(error) = self.write(state) {
            tracing::error!(%error, "cannot keep the pods on disk; a new agent would not know of this change");
        }
    }

    fn write(&self, state: &State) -> io::Result<()> {
        use std::{io::Write, os::unix::fs::OpenOptionsExt};

        let scratch = self.shared.file.with_extension("tmp");
        let bytes = serde_json::to_vec(state).map_err(io::Error::other)?;
        // Secrets are in it.
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&scratch)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&scratch, &self.shared.file)
    }

    fn tell(&self, news: News) {
        // Nobody may be watching.
        let _ = self.shared.news.send(news);
    }
}

fn set_of(state: &State) -> WantedPods {
    WantedPods { synced: true, pods: Arc::new(state.pods.clone()) }
}

fn key_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> PodKey {
    PodKey::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// Whether a pod's phase is one that it never leaves.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

impl Stopper for World {
    fn stop(&self, key: PodKey, grace: Option<Duration>) -> BoxFuture<'static, bool> {
        let mut sets = self.sets();
        let found = self.mark_deleted(&key, grace);
        async move {
            let Some(uid) = found else { return false };
            // The sender lives as long as the agent.
            let _ = sets.wait_for(|set| !set.pods.contains_key(&uid)).await;
            true
        }
        .boxed()
    }
}

impl StatusSink for World {
    fn report(&self, pod: &Arc<Pod>, status: PodStatus) {
        let mut state = self.state();
        let uid = PodUid::new(pod.metadata.uid.clone().unwrap_or_default());
        let Some(kept) = state.pods.get_mut(&uid) else { return };
        let ended = has_ended(kept);
        Arc::make_mut(kept).status = Some(status);
        let pod = Arc::clone(kept);
        // Only the end is worth a write: the pods' checkpoints have the rest.
        if !ended && has_ended(&pod) {
            self.keep(&state);
        }
        self.tell(News::Pod(pod));
    }

    fn delete(&self, pod: &Arc<Pod>) -> BoxFuture<'static, Result<(), DeleteFailure>> {
        let uid = PodUid::new(pod.metadata.uid.clone().unwrap_or_default());
        let mut state = self.state();
        if state.pods.remove(&uid).is_some() {
            state.forget_objects();
            self.keep(&state);
            self.shared.sets.send_replace(set_of(&state));
            self.tell(News::Gone(key_of(&pod.metadata)));
        }
        async { Ok(()) }.boxed()
    }
}

impl EventSink for World {
    fn record(&self, about: About<'_>, kind: EventType, reason: &str, message: String) {
        let (About::Pod(pod) | About::Container(pod, ..) | About::Ephemeral(pod, _)) = about;
        self.tell(News::Event {
            pod: key_of(&pod.metadata),
            warning: kind == EventType::Warning,
            reason: reason.to_owned(),
            message,
        });
    }
}

impl Objects for World {
    fn config_map(
        &self,
        namespace: String,
        name: String,
    ) -> BoxFuture<'static, Result<Option<Arc<ConfigMap>>, ObjectFailure>> {
        let found =
            self.state().config_maps.get(&PodKey::new(namespace, name).to_string()).cloned();
        async move { Ok(found) }.boxed()
    }

    fn secret(
        &self,
        namespace: String,
        name: String,
    ) -> BoxFuture<'static, Result<Option<Arc<Secret>>, ObjectFailure>> {
        let found = self.state().secrets.get(&PodKey::new(namespace, name).to_string()).cloned();
        async move { Ok(found) }.boxed()
    }

    fn token(&self, ask: TokenAsk) -> BoxFuture<'static, Result<ServiceToken, ObjectFailure>> {
        let message = format!(
            "pod {} asks for a service account token, which only a cluster can issue",
            ask.pod
        );
        async move { Err(ObjectFailure { message, is_refused: false }) }.boxed()
    }

    fn forget_tokens(&self, _: &PodUid) {}

    fn services(&self) -> watch::Receiver<Option<Arc<Services>>> {
        self.shared.services.subscribe()
    }

    fn node(&self) -> watch::Receiver<Option<Arc<Node>>> {
        self.shared.node.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bundle(name: &str) -> Bundle {
        let pod = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"containers": [{"name": "app", "image": "hello"}]},
        }));
        Bundle { pods: vec![pod.unwrap()], ..Bundle::default() }
    }

    fn world(directory: &tempfile::TempDir) -> World {
        World::open(directory.path().join("standalone.json"), Node::default()).unwrap()
    }

    fn pods(world: &World) -> Vec<Arc<Pod>> {
        world.watch().0
    }

    fn end(world: &World) {
        let pod = pods(world).remove(0);
        let status = PodStatus { phase: Some("Succeeded".into()), ..PodStatus::default() };
        world.report(&pod, status);
    }

    #[test]
    fn a_name_is_taken_until_its_pod_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let world = world(&directory);
        world.apply(bundle("web")).unwrap();
        assert!(matches!(world.apply(bundle("web")), Err(ApplyError::Exists(_))));
        end(&world);
        world.apply(bundle("web")).unwrap();
        assert_eq!(pods(&world).len(), 1);
    }

    #[test]
    fn an_agent_that_ends_takes_no_pod() {
        let directory = tempfile::tempdir().unwrap();
        let world = world(&directory);
        world.apply(bundle("web")).unwrap();
        assert!(!world.close_if_empty(), "it has one");
        world.apply(bundle("other")).unwrap();
        world.close();
        assert!(matches!(world.apply(bundle("third")), Err(ApplyError::Closed)));
        assert_eq!(pods(&world).len(), 2);
        let empty = World::open(directory.path().join("none.json"), Node::default()).unwrap();
        assert!(empty.close_if_empty());
        assert!(matches!(empty.apply(bundle("web")), Err(ApplyError::Closed)));
    }

    #[test]
    fn a_new_agent_goes_on_with_what_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let before = world(&directory);
        before.apply(bundle("web")).unwrap();
        let uid = pods(&before)[0].metadata.uid.clone();
        end(&before);
        let after = world(&directory);
        assert_eq!(pods(&after)[0].metadata.uid, uid);
        assert!(has_ended(&pods(&after)[0]), "a finished pod is not run again");
    }

    #[test]
    fn a_grace_period_only_shrinks() {
        let directory = tempfile::tempdir().unwrap();
        let world = world(&directory);
        world.apply(bundle("web")).unwrap();
        let key = PodKey::new("default", "web");
        let grace = || pods(&world)[0].metadata.deletion_grace_period_seconds;
        assert!(world.mark_deleted(&key, Some(Duration::from_secs(5))).is_some());
        world.mark_deleted(&key, Some(Duration::from_secs(9)));
        assert_eq!(grace(), Some(5));
        world.mark_deleted(&key, Some(Duration::from_secs(1)));
        assert_eq!(grace(), Some(1));
        assert!(world.mark_deleted(&PodKey::new("default", "none"), None).is_none());
    }

    #[tokio::test]
    async fn a_secret_goes_with_the_last_pod_that_uses_it() {
        let directory = tempfile::tempdir().unwrap();
        let world = world(&directory);
        let mut both = bundle("web");
        let spec = both.pods[0].spec.as_mut().unwrap();
        spec.volumes =
            serde_json::from_value(json!([{"name": "v", "secret": {"secretName": "word"}}]))
                .unwrap();
        let secret = json!({"metadata": {"namespace": "default", "name": "word"}});
        both.secrets.push(serde_json::from_value(secret).unwrap());
        world.apply(both).unwrap();
        let found = || world.secret("default".into(), "word".into());
        assert!(found().await.unwrap().is_some());
        world.delete(&pods(&world)[0]).await.unwrap();
        assert!(found().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn watchers_are_told_of_statuses_events_and_ends() {
        let directory = tempfile::tempdir().unwrap();
        let world = world(&directory);
        world.apply(bundle("web")).unwrap();
        let (pods, mut news) = world.watch();
        world.record(About::Pod(&pods[0]), EventType::Normal, "Started", "it runs".into());
        end(&world);
        world.delete(&pods[0]).await.unwrap();
        assert!(matches!(news.recv().await, Ok(News::Event { reason, .. }) if reason == "Started"));
        assert!(matches!(news.recv().await, Ok(News::Pod(pod)) if has_ended(&pod)));
        assert!(matches!(news.recv().await, Ok(News::Gone(key)) if key.name == "web"));
    }
}
