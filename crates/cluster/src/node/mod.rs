//! The Node: that it exists, what it says of this machine, and that it is Ready.
//!
//! [`facts`] reads the machine, [`object`] makes a Node of it (both know no
//! server), [`register`] brings it into being and [`task`] keeps it true. The
//! lease is [`crate::lease`]'s.

pub mod facts;
pub mod object;
mod register;
mod task;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ContainerImage, Taint};

pub use facts::{FactsError, Machine, Usage};
pub use task::{NodeTask, node};

/// What a Node says that the machine does not know.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The Node's name: a DNS subdomain, for which the credentials are.
    pub name: String,
    /// The value of the hostname label and of the address of that type.
    pub hostname: String,
    /// The node's addresses; the first decides which family comes first.
    pub ips: Vec<IpAddr>,
    /// Where the agent's HTTPS API listens.
    pub port: u16,
    /// Whether to create the Node if it is not there.
    pub register: bool,
    /// Labels besides the default ones, which they override.
    pub labels: BTreeMap<String, String>,
    /// Taints of a Node that is created. The API server lets nobody but an
    /// administrator change them later.
    pub taints: Vec<Taint>,
    /// Whether a Node that is created takes no pods yet.
    pub unschedulable: bool,
    /// `spec.providerID`, if there is a cloud.
    pub provider_id: Option<String>,
    /// `kubernetes.io/os` and nodeInfo; `wasm32-wasi` by default.
    pub os: String,
    /// `kubernetes.io/arch` and nodeInfo; `wasm32-wasi` by default.
    pub arch: String,
    /// Must parse as a Kubernetes version, such as `v1.37.2+krustlet.0.1.0`.
    pub kubelet_version: String,
    /// `type://version`, such as `wasmtime://48.0.8`.
    pub runtime_version: String,
    /// Names of RuntimeClass handlers that are served, `""` for none named.
    pub runtime_handlers: Vec<String>,
    /// What the node can do that control planes ask about; any order.
    pub declared_features: Vec<String>,
    /// How many pods may run at once.
    pub max_pods: u32,
    /// Kept from pods, for the agent and the system.
    pub reserved: Reserved,
    /// When the node counts as short of something.
    pub eviction: EvictionThresholds,
    /// The directory whose file system is the node's ephemeral storage.
    pub root: PathBuf,
    /// How often the Node is looked after.
    pub cadence: Cadence,
}

/// What pods cannot have: kubeReserved and systemReserved together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes of ephemeral storage.
    pub storage: u64,
}

/// How much of something must stay free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// So many bytes, or so many of what is counted.
    Amount(u64),
    /// This share of all there is, 0 to 1.
    Share(f64),
}

impl Threshold {
    /// Nothing has to.
    pub const NONE: Self = Self::Amount(0);

    /// How much that is of `total`, rounded down.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a size, not below zero"
    )]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Share(share) => (total as f64 * share) as u64,
        }
    }

    /// Whether less is free. Never where nothing is counted, as inodes are not
    /// by some file systems.
    #[must_use]
    pub fn is_crossed(self, available: u64, total: u64) -> bool {
        total > 0 && available < self.of(total)
    }
}

/// Hard eviction thresholds; a shortage begins below them.
///
/// Images lie in the file system of the node's ephemeral storage, so that two
/// thresholds hold for it; the greater one counts.
///
/// Source: kubelet, `DefaultEvictionHard` in
/// `pkg/kubelet/eviction/defaults_linux.go`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvictionThresholds {
    /// Memory in bytes: `memory.available`.
    pub memory: Threshold,
    /// Ephemeral storage in bytes: `nodefs.available`. Pods cannot have it.
    pub storage: Threshold,
    /// Its inodes: `nodefs.inodesFree`.
    pub inodes: Threshold,
    /// What must stay free where images lie, in bytes: `imagefs.available`.
    pub images: Threshold,
    /// Inodes there: `imagefs.inodesFree`.
    pub image_inodes: Threshold,
    /// Process ids: `pid.available`. The kubelet has no default.
    pub pids: Threshold,
    /// How long a shortage stays reported after it was last seen.
    pub stays: Duration,
}

impl Default for EvictionThresholds {
    fn default() -> Self {
        Self {
            memory: Threshold::Amount(100 << 20),
            storage: Threshold::Share(0.10),
            inodes: Threshold::Share(0.05),
            images: Threshold::Share(0.15),
            image_inodes: Threshold::Share(0.05),
            pids: Threshold::NONE,
            stays: Duration::from_mins(5),
        }
    }
}

impl EvictionThresholds {
    /// None at all.
    #[must_use]
    pub fn none(stays: Duration) -> Self {
        Self {
            memory: Threshold::NONE,
            storage: Threshold::NONE,
            inodes: Threshold::NONE,
            images: Threshold::NONE,
            image_inodes: Threshold::NONE,
            pids: Threshold::NONE,
            stays,
        }
    }
}

/// How often the Node is looked after.
///
/// Source: kubelet, `pkg/kubelet/apis/config/v1beta1/defaults.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cadence {
    /// How often the status is computed.
    pub compute: Duration,
    /// How often a status that did not change is written all the same.
    pub report: Duration,
}

impl Default for Cadence {
    fn default() -> Self {
        Self { compute: Duration::from_secs(10), report: Duration::from_mins(5) }
    }
}

/// What the rest of the agent says of the node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeHealth {
    /// Why no pod can be run, in a sentence; None when all is well.
    pub not_ready: Option<String>,
    /// The images that are here, in any order and number.
    pub images: Arc<Vec<ContainerImage>>,
}

impl Default for NodeHealth {
    /// Not ready, for the agent is only starting.
    fn default() -> Self {
        Self { not_ready: Some("the agent is starting".to_owned()), images: Arc::default() }
    }
}
