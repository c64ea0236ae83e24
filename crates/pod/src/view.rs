//! What others may see of the pods.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::Pod;
use krustlet_model::{ContainerId, ContainerName, PodKey, PodUid};
use krustlet_protocol::StatsReport;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::logs;

/// A pod as it stands.
#[derive(Clone, Debug)]
pub struct PodView {
    /// Its namespace and name.
    pub key: PodKey,
    /// Its uid.
    pub uid: PodUid,
    /// The pod with the newest status, be it reported or not.
    pub pod: Arc<Pod>,
    /// Its containers: init containers first, each in the order of the spec.
    pub containers: Vec<ContainerView>,
    /// Whether nothing of it runs or will run.
    pub is_over: bool,
}

/// What each running container of a pod uses.
pub type PodStats = Vec<(ContainerName, StatsReport)>;

/// A container as it stands.
#[derive(Clone, Debug)]
pub struct ContainerView {
    /// Its name.
    pub name: ContainerName,
    /// Its newest run, if there was one.
    pub id: Option<ContainerId>,
    /// Whether its guest runs.
    pub is_running: bool,
    /// Why it waits, if it does.
    pub waiting: Option<String>,
    /// The log of its newest run that has one; one that is being loaded has not.
    pub log: Option<PathBuf>,
    /// How often the container had been restarted when that run began.
    pub log_restarts: Option<u32>,
    /// The log of the run whose end the status shows as the last one.
    pub previous_log: Option<PathBuf>,
    /// Cancelled when the run of [`log`](Self::log) has ended.
    pub ended: CancellationToken,
}

impl ContainerView {
    /// The log of the run that began after so many restarts. None before that
    /// run has a log; that of a run older than the one before the newest is
    /// removed.
    #[must_use]
    pub fn log_after(&self, restarts: u32) -> Option<PathBuf> {
        let newest = self.log_restarts?;
        (restarts <= newest).then_some(())?;
        Some(self.log.as_ref()?.with_file_name(logs::file_name(restarts)))
    }
}

impl PodView {
    /// The container of this name; without a name the first app container.
    #[must_use]
    pub fn container(&self, name: Option<&str>) -> Option<&ContainerView> {
        let first = || {
            let spec = self.pod.spec.as_ref()?;
            spec.containers.first().map(|container| container.name.as_str())
        };
        let name = name.or_else(first)?;
        self.containers.iter().find(|container| container.name.as_str() == name)
    }

    pub(crate) fn has_running(&self) -> bool {
        self.containers.iter().any(|container| container.is_running)
    }

    /// Says which of its running containers uses what.
    pub(crate) fn named(&self, reports: Vec<StatsReport>) -> PodStats {
        let named = reports.into_iter().filter_map(|report| {
            let of = self.containers.iter().find(|container| {
                container.is_running && container.id.as_ref() == Some(&report.id)
            })?;
            Some((of.name.clone(), report))
        });
        named.collect()
    }
}

/// The views of all pods. Locked for map operations only.
#[derive(Debug, Default)]
pub(crate) struct Views {
    pods: Mutex<BTreeMap<PodUid, Arc<PodView>>>,
    changed: watch::Sender<()>,
}

impl Views {
    pub(crate) fn put(&self, view: Arc<PodView>) {
        self.with(|pods| pods.insert(view.uid.clone(), view));
        self.changed.send_replace(());
    }

    pub(crate) fn remove(&self, uid: &PodUid) {
        self.with(|pods| pods.remove(uid));
        self.changed.send_replace(());
    }

    pub(crate) fn all(&self) -> Vec<Arc<PodView>> {
        self.with(|pods| pods.values().cloned().collect())
    }

    /// The pod of this name. Of two, the one that is not over; else any.
    pub(crate) fn get(&self, key: &PodKey) -> Option<Arc<PodView>> {
        self.with(|pods| {
            let mut of_name = pods.values().filter(|view| view.key == *key);
            let first = of_name.next()?;
            let live = std::iter::once(first).chain(of_name).find(|view| !view.is_over);
            Some(Arc::clone(live.unwrap_or(first)))
        })
    }

    pub(crate) fn by_uid(&self, uid: &PodUid) -> Option<Arc<PodView>> {
        self.with(|pods| pods.get(uid).cloned())
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<PodUid, Arc<PodView>>) -> T) -> T {
        // A map operation that panicked leaves a map.
        change(&mut self.pods.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_log_is_found_by_its_restarts() {
        let mut view = ContainerView {
            name: ContainerName::new("main"),
            id: None,
            is_running: true,
            waiting: None,
            log: None,
            log_restarts: None,
            previous_log: None,
            ended: CancellationToken::new(),
        };
        assert_eq!(view.log_after(0), None, "it has not run");
        view.log = Some("/logs/main/2.log".into());
        view.log_restarts = Some(2);
        assert_eq!(view.log_after(2), view.log);
        assert_eq!(view.log_after(1), Some("/logs/main/1.log".into()));
        assert_eq!(view.log_after(3), None, "it has not begun");
    }
}
