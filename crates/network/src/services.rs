//! The built-in way to Services: files that sandboxes read when a guest
//! connects.
//!
//! ```text
//! Services, EndpointSlices, the Node's zone ──▶ table.rs: what the files should hold
//!                                                  │ what differs
//!                                                  ▼
//!                              files.rs: run/services, each file by a rename
//! ```
//!
//! What an earlier agent wrote stays until all Services and EndpointSlices have
//! been read once: guests go on with it. What is in the files is
//! `krustlet_protocol::services`'s matter, and which endpoints a port leads to
//! `krustlet_model::services`'s.

mod files;
mod room;
mod table;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Node;
use krustlet_model::{
    Chain,
    services::{Here, Services, Slices},
};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{files::Files, table::Table};

/// Changes that follow each other are written together: a rollout of many pods
/// changes the same Services again and again. What is long in the writing is written
/// less often, so that it keeps no processor busy, at most as late as by kube-proxy.
const SETTLE: Duration = Duration::from_millis(50);
const MOST_SETTLE: Duration = Duration::from_secs(1);

/// How long changes are gathered after a write that took so long.
fn settle(took: Duration) -> Duration {
    took.saturating_mul(3).clamp(SETTLE, MOST_SETTLE)
}

/// Before files that could not be written are tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The zone of a Node.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What the files are made of.
#[derive(Debug)]
pub struct ServiceSources {
    /// The node's name.
    pub node: String,
    /// Its addresses, for the ports that Services have at nodes.
    pub addresses: Vec<IpAddr>,
    /// The Node, for its zone.
    pub seen: watch::Receiver<Option<Arc<Node>>>,
    /// All Services; None until they were read once.
    pub services: watch::Receiver<Option<Arc<Services>>>,
    /// All EndpointSlices; None until they were read once.
    pub slices: watch::Receiver<Option<Arc<Slices>>>,
}

/// Whether the files say all there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServicesState {
    /// Never yet, for this reason.
    Waiting(String),
    /// They do, or did when the cluster was last heard of.
    Written,
}

/// Keeps the files.
#[derive(Debug)]
pub struct ServicesTask {
    directory: PathBuf,
    files: Files,
    state: watch::Sender<ServicesState>,
}

/// Why Services cannot be led to.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}", .path.display())]
pub struct ServicesError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Makes the directory, or goes on with an earlier agent's. It can be handed to
/// sandboxes from then on. Blocks.
///
/// # Errors
///
/// [`ServicesError`] if it cannot be used.
pub fn open(
    directory: PathBuf,
) -> Result<(watch::Receiver<ServicesState>, ServicesTask), ServicesError> {
    let files = Files::open(directory.clone())
        .map_err(|source| ServicesError { path: directory.clone(), source })?;
    let state = if files.are_complete() {
        ServicesState::Written
    } else {
        ServicesState::Waiting("the Services of the cluster are not known yet".to_owned())
    };
    let (state, shown) = watch::channel(state);
    Ok((shown, ServicesTask { directory, files, state }))
}

/// Removes what an earlier agent wrote, for an agent that does not lead pods to
/// Services: nobody would keep it true. Blocks.
///
/// # Errors
///
/// [`ServicesError`] if it cannot be removed.
pub fn forget(directory: &Path) -> Result<(), ServicesError> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ServicesError { path: directory.to_owned(), source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

impl ServicesTask {
    /// Writes until stopped.
    pub async fn run(self, mut sources: ServiceSources, stop: CancellationToken) {
        let Self { directory, mut files, state } = self;
        let mut table = Table::default();
        let mut retry = None;
        let mut took = Duration::ZERO;
        let (node, addresses) = (sources.node.clone(), sources.addresses.clone());
        let mut here = Here { node, addresses, zone: String::new() };
        loop {
            // While the Node is not known it is where it was.
            if let Some(node) = sources.seen.borrow_and_update().as_deref() {
                here.zone = zone(node);
            }
            let from = here.clone();
            let services = sources.services.borrow_and_update().clone();
            let slices = sources.slices.borrow_and_update().clone();
            if let (Some(services), Some(slices)) = (services, slices) {
                let written;
                let begun = Instant::now();
                // Given and taken back: it is at work elsewhere meanwhile.
                (table, files, written) = match spawn_blocking(move || {
                    table.update(&services, &slices, &from);
                    let written = files.write(&mut table);
                    (table, files, written)
                })
                .await
                {
                    Ok(done) => done,
                    // It panicked; the agent ends in order.
                    Err(error) => {
                        tracing::error!(%error, "the files of Services cannot be kept");
                        return;
                    }
                };
                took = begun.elapsed();
                retry = match written {
                    Ok(()) => {
                        state.send_if_modified(|shown| {
                            let is_new = *shown != ServicesState::Written;
                            *shown = ServicesState::Written;
                            is_new
                        });
                        None
                    }
                    Err(error) => {
                        let directory = directory.display();
                        let error = Chain(&error).to_string();
                        tracing::error!(%directory, error, "cannot write where Services lead to");
                        Some(Instant::now() + RETRY)
                    }
                };
            }
            let again = async {
                match retry {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // All are cancel-safe. No sender ends before this task.
                () = stop.cancelled() => return,
                Ok(()) = sources.services.changed() => {}
                Ok(()) = sources.slices.changed() => {}
                Ok(()) = zone_changed(&mut sources.seen, &here.zone) => {}
                () = again => {}
                else => return stop.cancelled().await,
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep(settle(took)) => {}
            }
        }
    }
}

/// Waits until the Node is in another zone: it changes each few seconds.
async fn zone_changed(
    seen: &mut watch::Receiver<Option<Arc<Node>>>,
    before: &str,
) -> Result<(), watch::error::RecvError> {
    seen.wait_for(|node| node.as_ref().is_some_and(|node| zone(node) != before)).await.map(drop)
}

fn zone(node: &Node) -> String {
    let labels = node.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(ZONE)).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read, Write},
        os::unix::fs::{MetadataExt, OpenOptionsExt},
    };

    use krustlet_model::services::Slice;
    use krustlet_protocol::{
        ServiceAddress,
        services::{COMPLETE, MAX_SERVICE},
    };
    use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
    use serde_json::json;
    use tokio::time::timeout;

    use super::{files::UNFINISHED, *};

    /// Longer than any test needs.
    const LIMIT: Duration = Duration::from_mins(1);

    fn service() -> Arc<Services> {
        let service = json!({
            "metadata": {"namespace": "n", "name": "s"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]},
        });
        Arc::new(vec![serde_json::from_value(service).unwrap()])
    }

    fn slices(zones: &[(&str, &str)]) -> Arc<Slices> {
        let endpoints: Vec<_> = zones
            .iter()
            .map(|(address, zone)| {
                json!({"addresses": [address], "hints": {"forZones": [{"name": zone}]}})
            })
            .collect();
        let slice = serde_json::from_value(json!({
            "metadata": {
                "namespace": "n", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"},
            },
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": 8080}],
        }));
        let slice = Slice::of(&slice.unwrap()).unwrap();
        Arc::new(Slices::from([(slice.service.clone(), vec![Arc::new(slice)])]))
    }

    fn node(zone: &str) -> Arc<Node> {
        let node = json!({"metadata": {"name": "here", "labels": {ZONE: zone}}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    struct Bed {
        home: tempfile::TempDir,
        node: watch::Sender<Option<Arc<Node>>>,
        services: watch::Sender<Option<Arc<Services>>>,
        slices: watch::Sender<Option<Arc<Slices>>>,
    }

    impl Bed {
        fn new() -> Self {
            Self {
                home: tempfile::tempdir().unwrap(),
                node: watch::Sender::new(None),
                services: watch::Sender::new(None),
                slices: watch::Sender::new(None),
            }
        }

        fn open(&self) -> (watch::Receiver<ServicesState>, ServicesTask) {
            open(self.home.path().join("services")).unwrap()
        }

        fn sources(&self) -> ServiceSources {
            ServiceSources {
                node: "here".into(),
                addresses: Vec::new(),
                seen: self.node.subscribe(),
                services: self.services.subscribe(),
                slices: self.slices.subscribe(),
            }
        }

        fn endpoints(&self) -> Option<Vec<String>> {
            let path = self.home.path().join("services/addresses/10.96.0.7");
            let bytes = fs::read(path).ok()?;
            assert!(bytes.len() < MAX_SERVICE);
            let address: ServiceAddress = serde_json::from_slice(&bytes).unwrap();
            Some(address.ports[0].endpoints.iter().map(ToString::to_string).collect())
        }

        async fn until(&self, wanted: &[&str]) {
            while self.endpoints().is_none_or(|endpoints| endpoints != wanted) {
                tokio::task::yield_now().await;
            }
        }
    }

    #[test]
    fn what_is_long_in_the_writing_is_written_less_often() {
        let ms = Duration::from_millis;
        let after = [0, 10, 200, 10_000].map(|took| settle(ms(took)));
        assert_eq!(after, [SETTLE, SETTLE, ms(600), MOST_SETTLE]);
    }

    #[tokio::test]
    async fn files_follow_the_cluster_and_the_zone_of_the_node() {
        let bed = Bed::new();
        let (mut state, task) = bed.open();
        assert!(matches!(&*state.borrow(), ServicesState::Waiting(_)));
        let stop = CancellationToken::new();
        let work = async {
            bed.services.send_replace(Some(service()));
            bed.slices.send_replace(Some(slices(&[("10.1.0.1", "a"), ("10.1.0.2", "b")])));
            state.wait_for(|state| *state == ServicesState::Written).await.unwrap();
            assert!(bed.home.path().join("services").join(COMPLETE).exists());
            bed.until(&["10.1.0.1:8080", "10.1.0.2:8080"]).await;
            bed.node.send_replace(Some(node("b")));
            bed.until(&["10.1.0.2:8080"]).await;
            // A Node that is not known is where it was.
            bed.node.send_replace(None);
            bed.slices.send_replace(Some(slices(&[("10.1.0.1", "a"), ("10.1.0.3", "b")])));
            bed.until(&["10.1.0.3:8080"]).await;
            bed.slices.send_replace(Some(slices(&[])));
            bed.until(&[]).await;
            bed.services.send_replace(Some(Arc::default()));
            while bed.endpoints().is_some() {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        timeout(LIMIT, async { tokio::join!(task.run(bed.sources(), stop.clone()), work) })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_zone_that_changes_while_files_are_written_is_followed() {
        let bed = Bed::new();
        let (_state, task) = bed.open();
        // The first file is a pipe that is full: its writing takes until we read.
        let unfinished = bed.home.path().join("services").join(UNFINISHED);
        mkfifoat(CWD, &unfinished, Mode::RUSR | Mode::WUSR).unwrap();
        let mut options = fs::File::options();
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let mut pipe =
            options.read(true).write(true).custom_flags(nonblocking).open(&unfinished).unwrap();
        while pipe.write(&[0; 4096]).is_ok() {}
        bed.node.send_replace(Some(node("a")));
        bed.services.send_replace(Some(service()));
        bed.slices.send_replace(Some(slices(&[("10.1.0.1", "a"), ("10.1.0.2", "b")])));
        let stop = CancellationToken::new();
        let work = async {
            // It gets its rights before it is written.
            while fs::metadata(&unfinished).unwrap().mode() & 0o777 == 0o600 {
                tokio::task::yield_now().await;
            }
            bed.node.send_replace(Some(node("b")));
            let address = bed.home.path().join("services/addresses/10.96.0.7");
            while !fs::metadata(&address).is_ok_and(|file| file.is_file()) {
                let _ = pipe.read(&mut [0; 4096]);
                tokio::task::yield_now().await;
            }
            bed.until(&["10.1.0.2:8080"]).await;
            stop.cancel();
        };
        timeout(LIMIT, async { tokio::join!(task.run(bed.sources(), stop.clone()), work) })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_an_earlier_agent_wrote_stays_until_all_is_known() {
        let bed = Bed::new();
        let run = async |then: &dyn Fn() -> bool| {
            let (_state, task) = bed.open();
            let stop = CancellationToken::new();
            let work = async {
                while !then() {
                    tokio::task::yield_now().await;
                }
                stop.cancel();
            };
            timeout(LIMIT, async { tokio::join!(task.run(bed.sources(), stop.clone()), work) })
                .await
                .unwrap();
        };
        bed.services.send_replace(Some(service()));
        bed.slices.send_replace(Some(slices(&[("10.1.0.1", "a")])));
        run(&|| bed.endpoints().is_some()).await;

        // The next one knows the Services before it knows who answers for them.
        bed.slices.send_replace(None);
        bed.services.send_replace(Some(Arc::default()));
        let (state, _task) = bed.open();
        assert_eq!(*state.borrow(), ServicesState::Written, "guests go on with it");
        run(&|| true).await;
        assert!(bed.endpoints().is_some());
        bed.slices.send_replace(Some(Arc::default()));
        run(&|| bed.endpoints().is_none()).await;

        forget(&bed.home.path().join("services")).unwrap();
        forget(&bed.home.path().join("services")).unwrap();
        assert!(matches!(&*bed.open().0.borrow(), ServicesState::Waiting(_)));
    }

    #[tokio::test]
    async fn files_that_could_not_be_written_are_written_later() {
        let bed = Bed::new();
        let (_state, task) = bed.open();
        let addresses = bed.home.path().join("services/addresses");
        fs::remove_dir(&addresses).unwrap();
        bed.services.send_replace(Some(service()));
        bed.slices.send_replace(Some(slices(&[("10.1.0.1", "a")])));
        let stop = CancellationToken::new();
        let work = async {
            // Something else fails first, as a full disk does.
            tokio::time::pause();
            tokio::time::sleep(RETRY * 2).await;
            assert!(bed.endpoints().is_none());
            fs::create_dir(&addresses).unwrap();
            tokio::time::sleep(RETRY * 2).await;
            tokio::time::resume();
            bed.until(&["10.1.0.1:8080"]).await;
            stop.cancel();
        };
        timeout(LIMIT, async { tokio::join!(task.run(bed.sources(), stop.clone()), work) })
            .await
            .unwrap();
    }
}
