//! Decides how pods get their addresses, and keeps what leads to them.
//!
//! ```text
//! the Node's podCIDRs ─┐
//! the Node's time is up ┼─▶ decide ─▶ ensure ─▶ NetworkState
//! the kernel's notices ─┤                │
//! each half a minute ───┘                └─ fails ─▶ again in a few seconds
//! ```
//!
//! A range that is the Node's no more is led to as long as a pod has an address
//! of it, and until it is known which pods go on.
//!
//! Each turn also looks at which addresses the node answers, for pods may not
//! reach its API at any of them.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use krustlet_model::Chain;
use rustix::thread::CapabilitySet;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    allowed::{NodeAddresses, gone},
    decide::{
        AfterFailure, Decision, Facts, Failure, Mode, NODE_WAIT, NodeRanges, after_failure, apart,
        decide,
    },
    ensure::{Changes, EnsureError, ensure, node_addresses, withdraw, without_rules},
    freed::Freed,
    handle::{Network, NetworkState, Shared},
    name_servers::{KnownServers, NameServers},
    namespace::{Namespace, NamespaceError},
    netlink,
    notice::Notices,
    peers::{PeerRoutes, Peers},
    plan::{Plan, has_gateway, link_name},
    ranges::{PodRanges, gateway},
    remembered::Remembered,
};

/// How often everything is looked at although no notice came: of mounts and most
/// settings of the kernel there is none.
const LOOK: Duration = Duration::from_secs(30);

/// Changes that follow each other are looked at together: whoever removes a
/// link removes its routes too.
const SETTLE: Duration = Duration::from_millis(100);

/// Between two looks at least, however many notices a busy machine gives.
const PAUSE: Duration = Duration::from_secs(1);

/// Before the next try after one that failed.
const RETRY: Duration = Duration::from_secs(5);

/// What is known before a zygote may be started.
#[derive(Debug)]
pub struct Prepared {
    mode: Mode,
    namespace: Option<Namespace>,
    /// Why there is none, unless it was not asked for.
    unable: Option<String>,
}

impl Prepared {
    /// The namespace that pods' processes are to be born in, if there is one.
    #[must_use]
    pub fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }
}

/// How the network is set up.
#[derive(Debug)]
pub struct NetworkConfig {
    /// The agent's root directory, by which its link is named.
    pub root: PathBuf,
    /// Where it keeps its files; private to the agent.
    pub state: PathBuf,
    /// The node's own addresses, its family first.
    pub node: Vec<IpAddr>,
    /// The port of the node's API, which pods may not reach.
    pub api_port: Option<u16>,
    /// Ranges for a Node that has none.
    pub configured: Option<PodRanges>,
    /// What the Node says.
    pub ranges: watch::Receiver<NodeRanges>,
    /// The nodes of the cluster, if their pods are to be led to.
    pub peers: Option<Peers>,
    /// Whether what pods of this node send each other is to pass the node, where a
    /// kube-proxy leads them to Services.
    pub by_node: bool,
    /// The name servers that the node gives its pods.
    pub name_servers: NameServers,
}

/// Why there can be no network.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum OpenError {
    #[error("pods cannot have addresses of their own: {why}")]
    Unable { why: String },

    #[error("pods cannot have addresses of their own")]
    Namespace(#[from] NamespaceError),

    #[error("cannot use {}", .path.display())]
    State {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes the namespace, or finds it again, if pods may come to need it. `path`
/// is where it is kept; where it is not, `living` is asked for the one in which
/// processes of an earlier agent's pods live, if there are any. Blocks.
///
/// # Errors
///
/// [`OpenError`] if addresses of their own were asked for and cannot be had.
pub fn prepare(
    mode: Mode,
    path: PathBuf,
    living: impl FnOnce() -> Option<File>,
) -> Result<Prepared, OpenError> {
    if mode == Mode::Host {
        return Ok(Prepared { mode, namespace: None, unable: None });
    }
    let unable = match missing_rights() {
        Some(why) if mode == Mode::Own => return Err(OpenError::Unable { why }),
        Some(why) => why,
        None => match Namespace::open(path, living) {
            Ok(namespace) => {
                return Ok(Prepared { mode, namespace: Some(namespace), unable: None });
            }
            Err(error) if mode == Mode::Own => return Err(error.into()),
            Err(error) => Chain(&error).to_string(),
        },
    };
    Ok(Prepared { mode, namespace: None, unable: Some(unable) })
}

/// What this process lacks, in words.
fn missing_rights() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("the agent is not root".to_owned());
    }
    let has = rustix::thread::capabilities(None).map(|sets| sets.effective);
    let has = has.unwrap_or(CapabilitySet::empty());
    [(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN")]
        .into_iter()
        .find(|(right, _)| !has.contains(*right))
        .map(|(_, name)| format!("the agent lacks {name}"))
}

/// Opens the network. Blocks for some milliseconds.
///
/// # Errors
///
/// [`OpenError`] if the agent's own directory cannot be used.
pub fn open(
    config: NetworkConfig,
    prepared: Prepared,
) -> Result<(Network, NetworkTask), OpenError> {
    let NetworkConfig {
        root,
        state: directory,
        node,
        api_port,
        configured,
        ranges,
        peers,
        by_node,
        name_servers,
    } = config;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::State { path, source }
    };
    let name = link_name(&root).map_err(failed(&root))?;
    let memory = directory.join("ranges.json");
    // Also where there can be no namespace now: pods may have had one.
    let remembered = match prepared.mode {
        Mode::Auto | Mode::Own => Remembered::read(&memory),
        Mode::Host => Remembered::default(),
    };
    let peers = PeerRoutes::open(directory.join("peer-routes.json"), peers, node.clone());
    let lead = |ranges: PodRanges| node.first().map_or(ranges.clone(), |&ip| ranges.led_by(ip));
    let configured = configured.map(lead);
    let Prepared { mode, namespace, unable } = prepared;
    let state = NetworkState::Waiting("the agent is starting".to_owned());
    let shared = Arc::new(Shared::new(node, api_port, namespace, state));
    if shared.namespace.is_some() {
        let path = directory.join("addresses");
        let (freed, resting) = Freed::open(path.clone()).map_err(failed(&path))?;
        shared.resume(freed, resting);
    }
    let was_led = remembered.had();
    let mut task = NetworkTask {
        shared: Arc::clone(&shared),
        mode,
        unable,
        name,
        configured,
        memory,
        remembered,
        ranges,
        peers,
        by_node,
        name_servers: KnownServers::new(name_servers),
        decided: None,
        answers_at: BTreeSet::new(),
        seen_without: None,
        was_led,
        is_led: false,
        lacks_rules: [false; 2],
        failures: 0,
    };
    task.decide_without_kernel();
    // Before any pod's rules are made of them.
    let ranges = task.remembered.led.iter().copied();
    task.shared.set_gateways(ranges.filter(|range| has_gateway(*range)).map(gateway));
    task.take_node_addresses(node_addresses(), &[]);
    Ok((Network::new(shared), task))
}

/// Keeps the network. Ends when told; what leads to the pods stays.
#[derive(Debug)]
pub struct NetworkTask {
    shared: Arc<Shared>,
    mode: Mode,
    unable: Option<String>,
    name: String,
    configured: Option<PodRanges>,
    memory: PathBuf,
    remembered: Remembered,
    ranges: watch::Receiver<NodeRanges>,
    peers: PeerRoutes,
    by_node: bool,
    name_servers: KnownServers,
    /// The ranges that new pods are to get addresses of, if they are to get any.
    decided: Option<PodRanges>,
    /// All addresses that the machine had at the last look.
    answers_at: BTreeSet<IpAddr>,
    /// When the Node was first seen without ranges.
    seen_without: Option<Instant>,
    /// Whether it was in order once when the agent started.
    was_led: bool,
    /// Whether all was in order once.
    is_led: bool,
    /// For which families it was told that the kernel has no rules for routes.
    lacks_rules: [bool; 2],
    /// Turns that failed, in a row.
    failures: u32,
}

impl NetworkTask {
    /// Keeps the network until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        // Cancel-safe: each turn begins with a look at what is there.
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&mut self) {
        let notices = self.notices().await;
        let mut released = self.shared.released.subscribe();
        let mut node_knows = true;
        loop {
            let mut next = self.turn().await;
            if !self.peers.lead(self.decided.as_ref()).await {
                next = next.min(RETRY);
            }
            let look = Instant::now() + next;
            let settle = Instant::now() + PAUSE;
            loop {
                let up = self.time_is_up();
                // All are cancel-safe: none takes anything that is not seen again.
                tokio::select! {
                    biased;
                    changed = self.ranges.changed(), if node_knows => {
                        // Nobody will say more; the last word stands.
                        node_knows = changed.is_ok();
                        break;
                    }
                    true = self.peers.changed() => break,
                    () = sleep_until(up.unwrap_or(look)), if up.is_some() => break,
                    () = sleep_until(look) => break,
                    () = heard(&notices) => {
                        sleep(SETTLE).await;
                        sleep_until(settle.min(look)).await;
                        break;
                    }
                    Ok(()) = released.changed() => {
                        if self.has_old_ranges() {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Word of changes in the node's namespace and, if there is one, the pods';
    /// without it, they are looked for.
    async fn notices(&self) -> Vec<Notices> {
        let open = async {
            let mut all = vec![Notices::new(netlink::notices()?)?];
            if let Some(namespace) = self.shared.namespace.clone() {
                let inside = spawn_blocking(move || namespace.within(netlink::notices)).await;
                all.push(Notices::new(inside.map_err(io::Error::other)??)?);
            }
            Ok::<_, io::Error>(all)
        };
        open.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "hears of no changes of links; looks each half minute");
            Vec::new()
        })
    }

    /// When the Node has had its time to get ranges, if that lies ahead.
    fn time_is_up(&self) -> Option<Instant> {
        let up = self.seen_without? + NODE_WAIT;
        (up > Instant::now()).then_some(up)
    }

    fn decision(&mut self) -> Decision {
        let node = self.ranges.borrow_and_update().clone();
        if node == NodeRanges::None {
            self.seen_without.get_or_insert_with(Instant::now);
        } else {
            self.seen_without = None;
        }
        let has_waited = self.seen_without.is_some() && self.time_is_up().is_none();
        let decided = decide(&Facts {
            mode: self.mode,
            unable: self.unable.as_deref(),
            node: &node,
            addresses: &self.shared.node,
            has_waited,
            configured: self.configured.as_ref(),
            remembered: self.remembered.current.as_ref(),
            had_own: self.remembered.had(),
        });
        match (decided, self.shared.node.first()) {
            (Decision::Own(ranges), Some(&node)) => Decision::Own(ranges.led_by(node)),
            (decided, _) => decided,
        }
    }

    /// What needs no look at links is decided before anybody asks.
    fn decide_without_kernel(&mut self) {
        match self.decision() {
            Decision::Host(why) => self.show(NetworkState::Host { why }),
            Decision::Wait(why) => self.show(NetworkState::Waiting(why)),
            Decision::Own(_) => {}
        }
    }

    /// Decides, and brings everything in order; returns when to look again.
    async fn turn(&mut self) -> Duration {
        let decision = self.decision();
        let current = match &decision {
            Decision::Host(_) | Decision::Wait(_) => None,
            Decision::Own(ranges) => Some(ranges.clone()),
        };
        self.decided.clone_from(&current);
        let (wanted, old) = self.wanted(current.as_ref());
        let mut plan = Plan {
            name: self.name.clone(),
            ranges: wanted,
            by_node: self.by_node,
            refused: Vec::new(),
            name_servers: Vec::new(),
        };
        // Before a pod gets its place: its rules are made of all three.
        self.shared.set_gateways(plan.gateways());
        self.look_at_node_addresses(&plan).await;
        plan.refused = self.shared.refused();
        plan.name_servers = self.name_servers.look().await.to_vec();
        match decision {
            Decision::Host(why) => self.show(NetworkState::Host { why }),
            Decision::Wait(why) => self.show(NetworkState::Waiting(why)),
            Decision::Own(_) => {}
        }
        let Some(namespace) = self.shared.namespace.clone() else { return LOOK };
        if plan.ranges.is_empty() && old.is_empty() {
            return LOOK;
        }
        // What new pods get is remembered once it was in order.
        self.remember(None, &plan, &old);
        let worked = lead(namespace, plan.clone(), old.clone()).await;
        match worked {
            Ok(changes) => {
                self.remember(current.as_ref(), &plan, &[]);
                self.tell(&plan, changes);
                if let Some(ranges) = current {
                    self.shared.set_ranges(&ranges);
                    self.show(NetworkState::Own(ranges));
                }
                LOOK
            }
            Err(error) => {
                self.failed(&error, current.as_ref());
                RETRY
            }
        }
    }

    /// Finds out where the node answers, the ends of links to pods included.
    async fn look_at_node_addresses(&mut self, plan: &Plan) {
        if self.shared.api_port.is_none() {
            return;
        }
        // One that is gone for the moment is put back in this turn.
        let gateways: Vec<IpAddr> = plan.gateways().collect();
        let found = spawn_blocking(node_addresses).await;
        let found = found.unwrap_or_else(|error| Err(io::Error::other(error)));
        self.take_node_addresses(found, &gateways);
    }

    fn take_node_addresses(&mut self, found: io::Result<BTreeSet<IpAddr>>, gateways: &[IpAddr]) {
        let next = match found {
            Ok(found) => {
                for address in gone(&self.shared.node, &self.answers_at, &found) {
                    tracing::warn!(
                        %address,
                        "the node's address is gone: the Node, its host ports and its certificate \
                         have it until the agent is started anew, with another --node-ip if that \
                         names it"
                    );
                }
                self.answers_at.clone_from(&found);
                let own = self.shared.node.iter().chain(gateways).copied();
                NodeAddresses::known(own.chain(found))
            }
            Err(error) => {
                if *self.shared.reached_at.borrow() != NodeAddresses::Unknown {
                    tracing::error!(
                        %error,
                        "cannot find out the node's addresses: pods reach the port of its API \
                         nowhere"
                    );
                }
                NodeAddresses::Unknown
            }
        };
        self.shared.show_node(next);
    }

    /// The ranges that something is to lead to, and those that nothing is to
    /// lead to any more.
    fn wanted(&self, current: Option<&PodRanges>) -> (Vec<IpNet>, Vec<IpNet>) {
        let mut wanted: Vec<IpNet> = current.into_iter().flat_map(PodRanges::iter).collect();
        let others = self.remembered.led.iter().filter(|range| !wanted.contains(range));
        let (kept, old): (Vec<_>, Vec<_>) =
            others.copied().partition(|range| self.shared.is_used(*range));
        wanted.extend(kept);
        // Pods whose ranges nobody remembers.
        wanted.extend(self.shared.beyond(&wanted).into_iter().map(IpNet::from));
        (wanted, old)
    }

    fn has_old_ranges(&self) -> bool {
        let is_current =
            |range: &IpNet| self.decided.iter().flat_map(PodRanges::iter).any(|own| own == *range);
        self.remembered.led.iter().any(|range| !is_current(range) && !self.shared.is_used(*range))
    }

    /// Written before anything is done, so that an agent that comes after a
    /// killed one takes away what that one led.
    fn remember(&mut self, current: Option<&PodRanges>, plan: &Plan, old: &[IpNet]) {
        let mut led = plan.ranges.clone();
        led.extend_from_slice(old);
        let current = current.cloned().or_else(|| self.remembered.current.clone());
        // Once some are known again, no more is to be said of those that were lost.
        let is_lost = self.remembered.is_lost && current.is_none();
        let next = Remembered { current, led, is_lost };
        if next == self.remembered {
            return;
        }
        if let Err(error) = next.write(&self.memory) {
            tracing::warn!(path = %self.memory.display(), %error, "cannot be written");
        }
        self.remembered = next;
    }

    fn tell(&mut self, plan: &Plan, changes: Changes) {
        for (is_on, family) in changes.forwarding.into_iter().zip(["IPv4", "IPv6"]) {
            if is_on {
                tracing::info!(
                    family,
                    "turned forwarding on: pods are reached from other machines through this one"
                );
            }
        }
        if changes.lacks_rules != self.lacks_rules
            && let Some(told) = without_rules(changes.lacks_rules, plan.by_node)
        {
            tracing::warn!("{told}");
        }
        self.lacks_rules = changes.lacks_rules;
        if changes.made_pair && self.is_led {
            tracing::warn!(link = plan.name, "the link to the pods was gone; it is back");
        } else if changes.count > 0 && self.is_led {
            tracing::info!(link = plan.name, changes = changes.count, "put right");
        }
        if !self.is_led {
            let ranges: Vec<_> = plan.ranges.iter().map(ToString::to_string).collect();
            tracing::info!(link = plan.name, ranges = ranges.join(", "), "pods have addresses");
        }
        self.is_led = true;
        self.failures = 0;
    }

    /// Something failed that was done for `current`, if new pods are to get any.
    fn failed(&mut self, error: &EnsureError, current: Option<&PodRanges>) {
        let chain = Chain(error).to_string();
        if self.failures == 0 {
            tracing::error!(error = chain, "the pods' network is not in order");
        }
        self.failures = self.failures.saturating_add(1);
        let Some(current) = current else { return };
        let is_shown =
            matches!(&*self.shared.state.borrow(), NetworkState::Own(shown) if shown == current);
        match after_failure(Failure {
            mode: self.mode,
            is_permanent: error.is_permanent(),
            was_led: self.was_led,
            is_led: self.is_led,
            is_shown,
            failures: self.failures,
        }) {
            AfterFailure::GoOn => {}
            AfterFailure::Wait if self.mode == Mode::Auto && error.is_permanent() => {
                self.show(NetworkState::Waiting(apart(&chain)));
            }
            AfterFailure::Wait => self.show(NetworkState::Waiting(chain)),
            AfterFailure::Share => self.show(NetworkState::Host { why: Some(chain) }),
        }
    }

    fn show(&self, next: NetworkState) {
        self.shared.state.send_if_modified(|shown| {
            if *shown == next {
                return false;
            }
            match &next {
                NetworkState::Waiting(why) => tracing::info!(why, "pods wait for the network"),
                NetworkState::Host { why: Some(why) } => {
                    tracing::warn!(why, "pods share the node's address");
                }
                NetworkState::Host { why: None } => {
                    tracing::info!("pods share the node's address");
                }
                NetworkState::Own(ranges) => {
                    tracing::info!(%ranges, "new pods get addresses of their own");
                }
            }
            *shown = next;
            true
        });
    }
}

/// Resolves when something changed in one of the namespaces. Cancel-safe.
async fn heard(notices: &[Notices]) {
    let heard = match notices {
        [] => return std::future::pending().await,
        [only] => only.changed().await,
        [outside, inside, ..] => tokio::select! {
            // Both are cancel-safe.
            heard = outside.changed() => heard,
            heard = inside.changed() => heard,
        },
    };
    if let Err(error) = heard {
        tracing::debug!(%error, "cannot hear of changes");
        sleep(LOOK).await;
    }
}

/// Leads to what is wanted and to nothing else.
async fn lead(namespace: Namespace, plan: Plan, old: Vec<IpNet>) -> Result<Changes, EnsureError> {
    let done = spawn_blocking(move || {
        if !old.is_empty() {
            withdraw(&namespace, &Plan { ranges: old, ..plan.clone() })?;
        }
        ensure(&namespace, &plan)
    });
    done.await.unwrap_or_else(|error| Err(EnsureError::Link(io::Error::other(error))))
}
