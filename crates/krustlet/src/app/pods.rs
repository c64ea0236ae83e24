//! Starts the pods' tasks on top of the core.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use krustlet_cluster::PodSet;
use krustlet_model::policy::Policies;
use krustlet_network::Network;
use krustlet_pod::{
    LogPlaces, NamesConfig, Outside, PodsConfig, WantedPods,
    outside::{EventSink, Objects, StatusSink},
    prober::{self, NetProber},
};
use rustix::process::{Resource, getrlimit};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    core::Core,
    queries::{Queries, Stopper},
};
use crate::paths::Root;

/// What differs between a node and a standalone agent.
pub(crate) struct PodsSetup {
    /// Where checkpoints and volumes are kept.
    pub(crate) root: Root,
    /// Where logs are kept.
    pub(crate) logs: PathBuf,
    /// Where links for log collectors are kept, if anywhere.
    pub(crate) links: Option<PathBuf>,
    /// Bytes of one log file.
    pub(crate) log_max_bytes: u64,
    /// What the node adds to its pods' names.
    pub(crate) names: NamesConfig,
    /// The most pods, as far as bounds go by it.
    pub(crate) max_pods: u32,
    /// The most sockets of a pod, if the usual number is not meant.
    pub(crate) max_sockets: Option<u32>,
    /// The pods' network.
    pub(crate) network: Network,
    /// What the cluster's policies say.
    pub(crate) policies: watch::Receiver<Policies>,
    /// What pods refer to.
    pub(crate) objects: Arc<dyn Objects>,
    /// Where statuses go.
    pub(crate) status: Arc<dyn StatusSink>,
    /// Where events go.
    pub(crate) events: Arc<dyn EventSink>,
    /// Who removes pods that are to stop; nobody on a node: there they end, and
    /// the cluster deletes them.
    pub(crate) stopper: Option<Arc<dyn Stopper>>,
}

/// Starts the pods' task and gives what the server asks.
///
/// # Errors
///
/// If what an earlier agent left cannot be read.
pub(crate) async fn start(
    core: &mut Core,
    setup: PodsSetup,
    wanted: watch::Receiver<WantedPods>,
) -> Result<Queries> {
    let places = LogPlaces { pods: setup.logs, links: setup.links };
    let mut config = PodsConfig::new(setup.root.path().to_owned(), places);
    config.log_max_bytes = setup.log_max_bytes;
    config.names = setup.names;
    config.sockets.sockets = setup.max_sockets.unwrap_or(config.sockets.sockets);
    // Raised when the core was opened.
    let descriptors = getrlimit(Resource::Nofile).current;
    let probes_at_once = prober::share(descriptors, setup.max_pods);
    let outside = Outside {
        runtime: Arc::new(core.runtime.clone()),
        network: setup.network,
        policies: setup.policies,
        programs: core.programs(),
        objects: setup.objects,
        status: setup.status,
        events: setup.events,
        prober: Arc::new(NetProber::new(probes_at_once)),
    };
    let adopted = std::mem::take(&mut core.adopted);
    let (pods, task) = krustlet_pod::open(config, outside, adopted, wanted)
        .await
        .context("cannot go on with the pods that are here")?;
    core.supervisor.start("pods", |stop| task.run(stop));
    Ok(Queries { pods, stopper: setup.stopper })
}

/// Passes the cluster's sets on in the pods' words.
#[derive(Debug)]
pub(crate) struct SetsTask {
    sets: watch::Receiver<PodSet>,
    wanted: watch::Sender<WantedPods>,
}

/// The pods that the cluster wants here.
pub(crate) fn wanted(sets: watch::Receiver<PodSet>) -> (watch::Receiver<WantedPods>, SetsTask) {
    let (wanted, shown) =
        watch::channel(WantedPods { synced: false, pods: Arc::new(BTreeMap::new()) });
    (shown, SetsTask { sets, wanted })
}

impl SetsTask {
    /// Passes on until stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let PodSet { synced, pods } = self.sets.borrow_and_update().clone();
            self.wanted.send_replace(WantedPods { synced, pods });
            tokio::select! {
                biased;
                // Both are cancel-safe.
                () = stop.cancelled() => return,
                changed = self.sets.changed() => {
                    if changed.is_err() {
                        return stop.cancelled().await;
                    }
                }
            }
        }
    }
}
