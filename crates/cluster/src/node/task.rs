//! Keeping the Node true.
//!
//! ```text
//! unregistered ──register──▶ registered ──compute each 10 s, write if changed──┐
//!       ▲──────── deleted ────────┴───────────────────────────────────────────┘
//! ```
//!
//! The task follows its own Node, so that it sees at once when somebody deletes
//! it or writes over its status, as a control plane does that thought it dead.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, NodeStatus},
    jiff::Timestamp,
};
use krustlet_model::Chain;
use rand::Rng;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Cluster, EventType, Events,
    events::About,
    feed::{Change, Feed, is_newer},
};

use super::{
    Machine, NodeConfig, NodeHealth, facts,
    object::{self, Observed, Pressure},
    register,
};

/// Tries per write before the next turn. Source: kubelet, `nodeStatusUpdateRetry`.
const TRIES: usize = 5;

/// Between tries of one write.
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// Registers the Node and keeps its status.
#[derive(Debug)]
pub struct NodeTask {
    cluster: Cluster,
    config: NodeConfig,
    machine: Machine,
    health: watch::Receiver<NodeHealth>,
    events: Events,
    shown: watch::Sender<Option<Arc<Node>>>,
    feed: Feed<Node>,
    pressure: Pressures,
    /// When an unchanged status is to be written again.
    report_at: Instant,
    /// Whether the agent's start was told.
    greeted: bool,
}

/// When each shortage was last seen; they stay reported for a while.
#[derive(Debug, Default)]
struct Pressures {
    memory: Option<Instant>,
    disk: Option<Instant>,
    pids: Option<Instant>,
}

/// The Node of this machine. The receiver has None until it is registered, and
/// again while it is deleted.
#[must_use]
pub fn node(
    cluster: &Cluster,
    config: NodeConfig,
    machine: Machine,
    health: watch::Receiver<NodeHealth>,
    events: Events,
) -> (watch::Receiver<Option<Arc<Node>>>, NodeTask) {
    let (shown, node) = watch::channel(None);
    let feed = Feed::new(cluster, None, Some(format!("metadata.name={}", config.name)));
    let task = NodeTask {
        cluster: cluster.clone(),
        config,
        machine,
        health,
        events,
        shown,
        feed,
        pressure: Pressures::default(),
        report_at: Instant::now(),
        greeted: false,
    };
    (node, task)
}

impl NodeTask {
    /// Keeps the Node until stopped. It stays when the agent ends: pods go on.
    pub async fn run(mut self, stop: CancellationToken) {
        // Cancel-safe: a request that is dropped is made again by the next agent.
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&mut self) {
        self.register().await;
        let mut compute = interval(self.config.cadence.compute);
        compute.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut health_known = true;
        loop {
            // Every arm is cancel-safe: ticks and changes are not lost, and the
            // feed keeps what it has read.
            tokio::select! {
                changed = self.health.changed(), if health_known => match changed {
                    Ok(()) => self.update().await,
                    // Nobody will say more; the last word stands.
                    Err(_) => health_known = false,
                },
                change = self.feed.next() => self.follow(change).await,
                _ = compute.tick() => self.update().await,
                () = sleep_until(self.report_at) => self.update().await,
            }
        }
    }

    async fn register(&mut self) {
        let status = self.status(&[]);
        let (node, created) = register::register(&self.cluster, &self.config, &status).await;
        let about = About::node(&node);
        let before = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        let rebooted = before
            .is_some_and(|info| !info.boot_id.is_empty() && info.boot_id != self.machine.boot_id);
        self.show(node.clone());
        if !self.greeted {
            self.greeted = true;
            self.events.record(
                &about,
                EventType::Normal,
                "Starting",
                "Starting krustlet.".to_owned(),
            );
            if rebooted {
                let message = format!(
                    "Node {} has been rebooted, boot id: {}",
                    self.config.name, self.machine.boot_id
                );
                self.events.record(&about, EventType::Warning, "Rebooted", message);
            }
        }
        if created {
            self.announce(&node, &[], &status);
            self.report_at = Instant::now() + self.until_report(true);
        } else {
            self.report_at = Instant::now();
            self.update().await;
        }
    }

    fn show(&self, node: Node) {
        self.shown.send_replace(Some(Arc::new(node)));
    }

    async fn follow(&mut self, change: Change<Node>) {
        match change {
            Change::Replaced(nodes) => match nodes.into_iter().next() {
                Some(node) => self.see(node).await,
                None => self.lost().await,
            },
            Change::Applied(node) => self.see(node).await,
            Change::Removed(node) => {
                let held = self.uid();
                if held.is_none() || held == node.metadata.uid {
                    self.lost().await;
                }
            }
            Change::Ended => {}
            Change::Interrupted(error) => {
                tracing::warn!(error = %Chain(&error), "cannot follow this node's Node");
            }
        }
    }

    fn uid(&self) -> Option<String> {
        self.shown.borrow().as_ref().and_then(|node| node.metadata.uid.clone())
    }

    async fn see(&mut self, node: Node) {
        let newer = self.shown.borrow().as_ref().is_none_or(|held| {
            held.metadata.uid != node.metadata.uid
                || is_newer(
                    node.metadata.resource_version.as_deref(),
                    held.metadata.resource_version.as_deref(),
                )
        });
        if newer {
            self.show(node);
            // Puts right at once what others wrote over it.
            self.update().await;
        }
    }

    async fn lost(&mut self) {
        tracing::warn!(node = self.config.name, "the Node was deleted; registering it again");
        self.shown.send_replace(None);
        self.register().await;
    }

    /// Computes the status and writes it if it changed or is due.
    async fn update(&mut self) {
        for attempt in 0..TRIES {
            let Some(node) = self.shown.borrow().clone() else { return };
            let found = node.status.clone().unwrap_or_default();
            let held = found.conditions.clone().unwrap_or_default();
            let wanted = self.status(&held);
            let changed = object::differs(&found, &wanted);
            if !changed && Instant::now() < self.report_at {
                return;
            }
            let written =
                register::patch_status(&self.cluster, &self.config.name, &found, &wanted).await;
            match written {
                Ok(node) => {
                    self.announce(&node, &held, &wanted);
                    self.show(node);
                    self.report_at = Instant::now() + self.until_report(changed);
                    return;
                }
                Err(error) if error.code() == Some(404) => {
                    // The feed tells, and the Node is registered again.
                    break;
                }
                Err(error) => {
                    tracing::warn!(attempt, error = %Chain(&error), "cannot write the node's status");
                    let asked = error.retry_after().unwrap_or_default();
                    tokio::time::sleep(asked.max(BETWEEN_TRIES)).await;
                    // Somebody else wrote: begin with what is there now.
                    if error.code() == Some(409)
                        && let Ok(node) = register::get(&self.cluster, &self.config.name).await
                    {
                        self.show(node);
                    }
                }
            }
        }
        // Due again with the next turn.
        self.report_at = Instant::now() + self.config.cadence.compute;
    }

    /// After a change the next report is moved by up to half a period, so that
    /// nodes that changed together do not report together.
    fn until_report(&self, changed: bool) -> Duration {
        let period = self.config.cadence.report;
        if changed { period.mul_f64(rand::rng().random_range(0.5..1.5)) } else { period }
    }

    fn status(&mut self, conditions: &[NodeCondition]) -> NodeStatus {
        let pressure = self.pressure();
        let health = self.health.borrow_and_update().clone();
        let seen = Observed {
            machine: &self.machine,
            pressure,
            health: &health,
            conditions,
            now: Timestamp::now(),
        };
        object::status(&self.config, &seen)
    }

    fn pressure(&mut self) -> Pressure {
        let now = Instant::now();
        let found = match facts::usage(&self.config.root) {
            Ok(usage) => object::pressure(&usage, &self.config.eviction),
            Err(error) => {
                // What cannot be measured keeps its last answer until it lapses.
                tracing::warn!(error = %Chain(&error), "cannot tell what the machine has left");
                Pressure::default()
            }
        };
        let stays = self.config.eviction.stays;
        let hold = |seen: &mut Option<Instant>, found: bool| {
            if found {
                *seen = Some(now);
            }
            seen.is_some_and(|at| now.duration_since(at) < stays) || found
        };
        Pressure {
            memory: hold(&mut self.pressure.memory, found.memory),
            disk: hold(&mut self.pressure.disk, found.disk),
            pids: hold(&mut self.pressure.pids, found.pids),
        }
    }

    /// Events for conditions that changed.
    fn announce(&self, node: &Node, before: &[NodeCondition], wanted: &NodeStatus) {
        let about = About::node(node);
        for condition in wanted.conditions.iter().flatten() {
            let old = object::find(before, &condition.type_).map(|old| old.status.as_str());
            if old == Some(condition.status.as_str()) {
                continue;
            }
            let Some(reason) = reason(&condition.type_, condition.status == "True") else {
                continue;
            };
            let message = format!("Node {} status is now: {reason}", self.config.name);
            self.events.record(&about, EventType::Normal, reason, message);
        }
    }
}

/// Source: kubelet, `pkg/kubelet/events/event.go`.
fn reason(condition: &str, holds: bool) -> Option<&'static str> {
    match (condition, holds) {
        ("Ready", true) => Some("NodeReady"),
        ("Ready", false) => Some("NodeNotReady"),
        ("MemoryPressure", true) => Some("NodeHasInsufficientMemory"),
        ("MemoryPressure", false) => Some("NodeHasSufficientMemory"),
        ("DiskPressure", true) => Some("NodeHasDiskPressure"),
        ("DiskPressure", false) => Some("NodeHasNoDiskPressure"),
        ("PIDPressure", true) => Some("NodeHasInsufficientPID"),
        ("PIDPressure", false) => Some("NodeHasSufficientPID"),
        (_, _) => None,
    }
}
