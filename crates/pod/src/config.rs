//! How pods are run on this node.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use krustlet_model::restarts::Backoff;
use krustlet_protocol::{HttpLimits, SocketLimits};
use krustlet_volume::VolumeOwner;
use tokio::sync::Semaphore;

use crate::{
    checkpoint::PodDirectories,
    clock::Clock,
    environment::NodeView,
    logs::LogPlaces,
    names::NamesConfig,
    outside::{Domain, Outside},
    place::Place,
    users::{Allotted, UserRange},
    view::Views,
};

/// Who shares a sandbox, as a node or a RuntimeClass says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// A process for each pod.
    Pod,
    /// One for the pods of a namespace.
    Namespace,
    /// One for all pods of the node.
    Node,
}

/// How pods are run on this node.
#[derive(Clone, Debug)]
pub struct PodsConfig {
    /// Checkpoints and volumes: a directory for each pod.
    pub pods: PathBuf,
    /// Logs.
    pub logs: LogPlaces,
    /// Bytes of one log file; kubelet's `containerLogMaxSize`.
    pub log_max_bytes: u64,
    /// User ids for sandboxes.
    pub users: UserRange,
    /// Whether the agent may give files to other users; false for one that is
    /// not root, whose sandboxes run as its own user does.
    pub is_privileged: bool,
    /// Who shares a sandbox when the pod names no RuntimeClass.
    pub isolation: Isolation,
    /// What the names of RuntimeClasses stand for.
    pub classes: BTreeMap<String, Isolation>,
    /// What the node adds to its pods' names.
    pub names: NamesConfig,
    /// Bounds of http guests.
    pub http: HttpLimits,
    /// Bounds of a pod's sockets.
    pub sockets: SocketLimits,
    /// The longest wait between restarts; kubelet's
    /// `crashLoopBackOff.maxContainerRestartPeriod`.
    pub max_restart_backoff: Duration,
    /// How often volumes of objects are looked at, give or take a tenth.
    pub refresh: Duration,
    /// The time of day.
    pub clock: Clock,
}

impl PodsConfig {
    /// The usual, for an agent with its state below `root` and its logs in
    /// `logs`.
    #[must_use]
    pub fn new(root: PathBuf, logs: LogPlaces) -> Self {
        Self {
            pods: root.join("pods"),
            logs,
            log_max_bytes: 10 << 20,
            users: UserRange::default(),
            is_privileged: rustix::process::geteuid().is_root(),
            isolation: Isolation::Pod,
            classes: BTreeMap::from([
                ("wasm".to_owned(), Isolation::Pod),
                ("wasm-dense".to_owned(), Isolation::Namespace),
            ]),
            names: NamesConfig::default(),
            http: HttpLimits::default(),
            sockets: SocketLimits::default(),
            max_restart_backoff: Backoff::MAX,
            refresh: Duration::from_mins(1),
            clock: Clock::system(),
        }
    }

    /// Whom a pod shares its sandbox with.
    ///
    /// # Errors
    ///
    /// A sentence, if its RuntimeClass is not one of [`PodsConfig::classes`].
    pub fn domain(&self, pod: &Pod) -> Result<Domain, String> {
        let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
        let isolation = match class.filter(|class| !class.is_empty()) {
            None => self.isolation,
            Some(class) => *self.classes.get(class).ok_or_else(|| {
                let known: Vec<&str> = self.classes.keys().map(String::as_str).collect();
                format!(
                    "RuntimeClass {class:?} is not offered by this node, which has: {}",
                    known.join(", "),
                )
            })?,
        };
        Ok(match isolation {
            Isolation::Pod => Domain::Pod,
            Isolation::Namespace => {
                Domain::Namespace(pod.metadata.namespace.clone().unwrap_or_default())
            }
            Isolation::Node => Domain::Node,
        })
    }
}

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: PodsConfig,
    pub(crate) outside: Outside,
    pub(crate) directories: PodDirectories,
    pub(crate) views: Arc<Views>,
    /// One pod's files are looked through at a time.
    pub(crate) storage_looks: Semaphore,
    /// What policies say of one pod is worked out at a time: whoever writes them
    /// decides how long that takes, and other work waits for the same processors.
    pub(crate) policy_looks: Semaphore,
}

impl Context {
    /// Who must be able to use a pod's files.
    pub(crate) fn volume_owner(&self, user: &Allotted) -> VolumeOwner {
        if self.config.is_privileged {
            VolumeOwner { uid: user.user.uid, gid: user.volume_group }
        } else {
            VolumeOwner::current()
        }
    }

    /// What of the node goes into a pod that is at this place.
    pub(crate) fn node(&self, place: Option<&Place>) -> NodeView {
        let node = self.outside.objects.node();
        let node = node.borrow().clone();
        let pod_ips = place.map(|place| &place.addresses[..]).unwrap_or_default();
        let mut view =
            NodeView::new(node.as_deref(), pod_ips, self.outside.network.node_addresses());
        view.cluster_domain.clone_from(&self.config.names.cluster_domain);
        view
    }
}
