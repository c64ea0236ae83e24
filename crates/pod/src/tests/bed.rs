//! A node without sandboxes, registries or API server.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, PodStatus, Secret};
use krustlet_image::{ImageRequest, ProgramConfig, PullReport};
use krustlet_model::{
    ContainerId, PodKey, PodUid, policy::Policies, probes::target::Target, services::Services,
};
use krustlet_network::{Network, NetworkState};
use krustlet_protocol::{
    ContainerReport, ExecOutcome, ExitReport, Limits, NetworkReport, PodNetwork, RunState,
    StatsReport,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Clock, LogPlaces, Outside, Pods, PodsConfig, ProgramShape, WantedPods, open,
    outside::{
        About, Adopted, DeleteFailure, EventSink, EventType, ExecStreams, ImageFailure, Launch,
        LoadFailure, NetworkKind, ObjectFailure, Objects, PodEvent, PodEvents, PodRuntime,
        PodSandbox, ProbeAnswer, ProbeAsk, Prober, Program, Programs, PulledImage, Refused,
        ServiceToken, Stats, StatusSink, TokenAsk, VisitStreams, Why,
    },
};

/// What guests do when they are entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    /// Run until they are stopped, then end with 143.
    Serves,
    /// Run, and do not listen when they are asked to stop.
    Stubborn,
    /// End at once with this code.
    Exits(i32),
    /// Say nothing until the test does.
    Silent,
    /// Take the sandbox with them before they are entered.
    Deadly,
}

/// What was asked of the runtime, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Sandbox,
    Create(String),
    Start(String),
    Stop(String, Duration),
    /// With the memory that it may have.
    Update(String, Option<u64>),
    Remove(String),
    Rules,
    StopSandbox,
}

#[derive(Debug)]
struct Container {
    name: String,
    state: RunState,
    is_entered: bool,
}

#[derive(Debug, Default)]
pub(super) struct Sandbox {
    news: Option<mpsc::Sender<PodEvent>>,
    containers: BTreeMap<ContainerId, Container>,
    kind: NetworkKind,
    addresses: Vec<IpAddr>,
}

/// Everything outside, in one place.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) calls: Vec<(Instant, Call)>,
    pub(super) launches: Vec<krustlet_protocol::ContainerSpec>,
    pub(super) statuses: BTreeMap<String, Vec<PodStatus>>,
    pub(super) deleted: Vec<String>,
    pub(super) events: Vec<(String, String)>,
    pub(super) sandboxes: BTreeMap<PodUid, Sandbox>,
    pub(super) guests: BTreeMap<String, Guest>,
    /// Images that cannot be had, and why.
    pub(super) missing: BTreeMap<String, &'static str>,
    /// Images whose pull does not end.
    pub(super) endless: BTreeSet<String>,
    pub(super) asked: Vec<(Instant, String)>,
    pub(super) config_maps: BTreeMap<String, ConfigMap>,
    pub(super) refuse_sandboxes: usize,
    /// What probes of a port come to; without an entry they succeed.
    pub(super) answers: BTreeMap<u16, ProbeAnswer>,
    /// Ports whose probes are never answered.
    pub(super) silent_ports: BTreeSet<u16>,
    /// Probes that wait for such an answer now.
    pub(super) unanswered: usize,
    /// Ports that were probed, and when.
    pub(super) probed: Vec<(Instant, u16)>,
    /// At which addresses.
    pub(super) probed_at: BTreeSet<IpAddr>,
    /// How a new agent's pods get their addresses; the node's, if not said.
    pub(super) network: Option<NetworkState>,
    /// The node's address of IPv6, if it has one besides that of IPv4.
    pub(super) second_address: Option<IpAddr>,
    /// Where each sandbox was made, in their order.
    pub(super) places: Vec<(NetworkKind, PodNetwork)>,
    /// The resolv.conf of a new agent's node, if it has one.
    pub(super) resolv_conf: Option<PathBuf>,
    /// The port of the node's API, if it has one.
    pub(super) api_port: Option<u16>,
    /// What living sandboxes were told anew, in that order.
    pub(super) rules: Vec<PodNetwork>,
    /// How often a sandbox does not take what it is told.
    pub(super) refuse_rules: usize,
    /// Whether sandboxes take their time for what they are told, until they are
    /// let go on.
    pub(super) slow_rules: Option<watch::Receiver<bool>>,
    /// Whether no sandbox says what its pods use.
    pub(super) are_silent: bool,
    /// Whether sandboxes end without anybody hearing of it.
    pub(super) ends_unheard: bool,
    /// Whether sandboxes take other limits.
    pub(super) refuse_limits: bool,
    /// How many tokens are refused before one is given.
    pub(super) refuse_tokens: usize,
}

/// The world behind a lock, and a way to hear that it changed.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    world: Arc<Mutex<World>>,
    changed: watch::Sender<()>,
    node: watch::Sender<Option<Arc<Node>>>,
    services: watch::Sender<Option<Arc<Services>>>,
    /// What the cluster's policies say.
    pub(super) policies: watch::Sender<Policies>,
}

impl Shared {
    fn new() -> Self {
        let node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"kubernetes.io/os": "wasm32-wasi"}},
            "status": {"allocatable": {"cpu": "4", "memory": "1Gi", "pods": "110"}},
        }))
        .unwrap();
        Self {
            world: Arc::default(),
            changed: watch::Sender::new(()),
            node: watch::Sender::new(Some(Arc::new(node))),
            services: watch::Sender::new(Some(Arc::default())),
            policies: watch::Sender::new(Policies::Off),
        }
    }

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let result = change(&mut self.world.lock().unwrap());
        self.changed.send_replace(());
        result
    }

    /// The name of a container, if its sandbox lives and knows it.
    fn name_of(&self, pod: &PodUid, id: &ContainerId) -> Result<String, Refused> {
        self.with(|world| {
            let found = world.sandboxes.get(pod).and_then(|sandbox| sandbox.containers.get(id));
            found.map(|container| container.name.clone()).ok_or_else(died)
        })
    }

    fn tell(&self, pod: &PodUid, event: PodEvent) {
        self.with(|world| {
            if let Some(sandbox) = world.sandboxes.get_mut(pod) {
                match &event {
                    PodEvent::Running { id, at } => {
                        let started_at = at.as_microsecond();
                        sandbox.containers.get_mut(id).unwrap().state =
                            RunState::Running { started_at };
                    }
                    PodEvent::Exited { id, exit } => {
                        sandbox.containers.get_mut(id).unwrap().state =
                            RunState::Exited(exit.clone());
                    }
                    PodEvent::LogRotated { .. } | PodEvent::SandboxDied { .. } => {}
                }
                // Nobody listens while no agent runs.
                if let Some(news) = &sandbox.news {
                    let _ = news.try_send(event);
                }
            }
        });
    }

    /// Ends the newest run of a container.
    pub(super) fn exit(&self, pod: &str, container: &str, exit_code: i32) {
        let uid = PodUid::new(pod);
        let id = self.live(pod, container).expect("it runs");
        let exit = ExitReport {
            exit_code,
            reason: if exit_code == 0 { "Completed" } else { "Error" }.to_owned(),
            message: String::new(),
            started_at: Some(now().as_microsecond()),
            finished_at: now().as_microsecond(),
        };
        self.tell(&uid, PodEvent::Exited { id, exit });
    }

    /// The run of a container that has not ended.
    pub(super) fn live(&self, pod: &str, container: &str) -> Option<ContainerId> {
        self.with(|world| {
            let sandbox = world.sandboxes.get(&PodUid::new(pod))?;
            let found = sandbox.containers.iter().find(|(_, found)| {
                found.name == container && !matches!(found.state, RunState::Exited(_))
            });
            found.map(|(id, _)| id.clone())
        })
    }

    /// Whether a container's guest was entered and has not ended.
    pub(super) fn is_entered(&self, pod: &str, container: &str) -> bool {
        self.with(|world| {
            let entered = |found: &Container| {
                let is_entered = matches!(found.state, RunState::Running { .. })
                    || world.guests.get(&found.name) == Some(&Guest::Silent)
                        && found.state == RunState::Created
                        && found.is_entered;
                found.name == container && is_entered
            };
            world
                .sandboxes
                .get(&PodUid::new(pod))
                .is_some_and(|sandbox| sandbox.containers.values().any(entered))
        })
    }

    /// Kills a pod's sandbox.
    pub(super) fn kill_sandbox(&self, pod: &str) {
        let uid = PodUid::new(pod);
        let message = "killed by signal 9".to_owned();
        self.tell(&uid, PodEvent::SandboxDied { exit_code: 137, message });
        self.with(|world| world.sandboxes.remove(&uid));
    }

    /// What an agent that comes back finds.
    fn adopted(&self) -> Vec<Adopted> {
        self.with(|world| {
            let of = |(pod, sandbox): (&PodUid, &mut Sandbox)| {
                let (news, events) = mpsc::channel(64);
                sandbox.news = Some(news);
                let containers = sandbox.containers.iter().map(|(id, container)| {
                    let (id, pod) = (id.clone(), pod.clone());
                    ContainerReport { id, pod, state: container.state.clone() }
                });
                Adopted {
                    pod: pod.clone(),
                    containers: containers.collect(),
                    alive: true,
                    network: sandbox.kind,
                    addresses: sandbox.addresses.clone(),
                    events,
                }
            };
            world.sandboxes.iter_mut().map(of).collect()
        })
    }

    fn call(&self, call: Call) {
        self.with(|world| world.calls.push((Instant::now(), call)));
    }
}

fn died() -> Refused {
    Refused { message: "the sandbox process is gone".to_owned(), why: Why::Died }
}

/// The paused clock as a time of day.
pub(super) fn now() -> Timestamp {
    thread_local! {
        static BEGIN: Instant = Instant::now();
    }
    let gone = BEGIN.with(Instant::elapsed);
    Timestamp::from_second(1_800_000_000).unwrap() + gone
}

impl PodRuntime for Shared {
    fn run_pod_sandbox(
        &self,
        sandbox: PodSandbox,
    ) -> BoxFuture<'static, Result<PodEvents, Refused>> {
        self.call(Call::Sandbox);
        let result = self.with(|world| {
            if world.refuse_sandboxes > 0 {
                world.refuse_sandboxes -= 1;
                let message = "no zygote".to_owned();
                return Err(Refused { message, why: Why::Failed });
            }
            let (kind, addresses) = (sandbox.kind, sandbox.network.addresses.clone());
            world.places.push((kind, sandbox.network));
            let (news, events) = mpsc::channel(64);
            let made = Sandbox { news: Some(news), containers: BTreeMap::new(), kind, addresses };
            let old = world.sandboxes.insert(sandbox.pod, made);
            assert!(old.is_none(), "a second sandbox for one pod");
            Ok(events)
        });
        Box::pin(async { result })
    }

    fn create_container(&self, launch: Launch) -> BoxFuture<'static, Result<(), Refused>> {
        std::fs::create_dir_all(launch.log.parent().unwrap()).unwrap();
        std::fs::write(&launch.log, "").unwrap();
        let spec = launch.spec;
        let name = spec.name.to_string();
        self.call(Call::Create(name.clone()));
        let made = self.with(|world| {
            let sandbox = world.sandboxes.get_mut(&spec.pod).ok_or_else(died)?;
            let container = Container { name, state: RunState::Created, is_entered: false };
            sandbox.containers.insert(spec.id.clone(), container);
            world.launches.push(spec.clone());
            Ok(())
        });
        if self.with(|world| world.guests.get(spec.name.as_str()) == Some(&Guest::Deadly)) {
            self.kill_sandbox(spec.pod.as_str());
            return Box::pin(async { Err(died()) });
        }
        Box::pin(async { made })
    }

    fn start_container(
        &self,
        pod: PodUid,
        id: ContainerId,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        let name = match self.name_of(&pod, &id) {
            Ok(name) => name,
            Err(refused) => return Box::pin(async { Err(refused) }),
        };
        self.call(Call::Start(name.clone()));
        self.with(|world| {
            let sandbox = world.sandboxes.get_mut(&pod).expect("a sandbox");
            sandbox.containers.get_mut(&id).expect("a container").is_entered = true;
        });
        let guest = self.with(|world| world.guests.get(&name).copied()).unwrap_or(Guest::Serves);
        if guest != Guest::Silent {
            self.tell(&pod, PodEvent::Running { id, at: now() });
        }
        if let Guest::Exits(code) = guest {
            self.exit(pod.as_str(), &name, code);
        }
        Box::pin(async { Ok(()) })
    }

    fn update_container(
        &self,
        pod: PodUid,
        id: ContainerId,
        limits: Limits,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        let name = match self.name_of(&pod, &id) {
            Ok(name) => name,
            Err(refused) => return Box::pin(async { Err(refused) }),
        };
        self.call(Call::Update(name, limits.memory_bytes));
        if self.with(|world| world.refuse_limits) {
            let message = "below current usage".to_owned();
            return Box::pin(async { Err(Refused { message, why: Why::Failed }) });
        }
        Box::pin(async { Ok(()) })
    }

    fn stop_container(
        &self,
        pod: PodUid,
        id: ContainerId,
        grace: Duration,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        let name = match self.name_of(&pod, &id) {
            Ok(name) => name,
            Err(refused) => return Box::pin(async { Err(refused) }),
        };
        self.call(Call::Stop(name.clone(), grace));
        let guest = self.with(|world| world.guests.get(&name).copied()).unwrap_or(Guest::Serves);
        if guest == Guest::Serves && self.live(pod.as_str(), &name).is_some() {
            self.exit(pod.as_str(), &name, 143);
        }
        Box::pin(async { Ok(()) })
    }

    fn remove_container(
        &self,
        pod: PodUid,
        id: ContainerId,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        let name = self.with(|world| {
            let sandbox = world.sandboxes.get_mut(&pod)?;
            sandbox.containers.remove(&id).map(|container| container.name)
        });
        if let Some(name) = name {
            self.call(Call::Remove(name));
        }
        Box::pin(async { Ok(()) })
    }

    fn stop_pod_sandbox(&self, pod: PodUid) -> BoxFuture<'static, Result<(), Refused>> {
        self.call(Call::StopSandbox);
        self.with(|world| world.sandboxes.remove(&pod));
        if self.with(|world| world.ends_unheard) {
            return Box::pin(std::future::pending());
        }
        Box::pin(async { Ok(()) })
    }

    fn set_pod_network(
        &self,
        _pod: PodUid,
        network: PodNetwork,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        self.call(Call::Rules);
        let result = self.with(|world| {
            if let Some(left) = world.refuse_rules.checked_sub(1) {
                world.refuse_rules = left;
                return Err(Refused { message: "no time".to_owned(), why: Why::Failed });
            }
            world.rules.push(network);
            Ok(())
        });
        let slow = self.with(|world| world.slow_rules.clone());
        Box::pin(async {
            if let Some(mut slow) = slow {
                slow.wait_for(|may_go_on| *may_go_on).await.unwrap();
            }
            result
        })
    }

    fn exec(
        &self,
        _pod: PodUid,
        _id: ContainerId,
        args: Vec<String>,
        _streams: ExecStreams,
    ) -> BoxFuture<'static, Result<ExecOutcome, Refused>> {
        Box::pin(async move { Ok(ExecOutcome { exit_code: 7, message: args.join(" ") }) })
    }

    fn connect(
        &self,
        _pod: PodUid,
        port: u16,
        _streams: VisitStreams,
    ) -> BoxFuture<'static, Result<(), Refused>> {
        let message = format!("nobody listens on port {port}");
        Box::pin(async { Err(Refused { message, why: Why::Failed }) })
    }

    fn stats(&self) -> BoxFuture<'static, Result<Stats, Refused>> {
        let all = self.with(|world| {
            let of_pod = |(pod, sandbox): (&PodUid, &Sandbox)| {
                let report = |id: &ContainerId| StatsReport {
                    id: id.clone(),
                    pod: pod.clone(),
                    memory_bytes: 5,
                    cpu_ns: 6,
                    log_dropped_bytes: 0,
                    network: NetworkReport::default(),
                };
                (pod.clone(), sandbox.containers.keys().map(report).collect())
            };
            world.sandboxes.iter().filter(|_| !world.are_silent).map(of_pod).collect()
        });
        Box::pin(async { Ok(all) })
    }
}

struct Image {
    id: String,
    config: ProgramConfig,
}

impl PulledImage for Image {
    fn id(&self) -> &str {
        &self.id
    }

    fn config(&self) -> &ProgramConfig {
        &self.config
    }

    fn bytes(&self) -> u64 {
        9
    }

    fn pull(&self) -> Option<PullReport> {
        None
    }

    fn program(&self, _argv0: Option<String>) -> BoxFuture<'static, Result<Program, LoadFailure>> {
        let shape = match self.id.as_str() {
            "http@sha256:00" => ProgramShape::Http,
            "other@sha256:00" => ProgramShape::Other { exports: Vec::new() },
            _ => ProgramShape::Command,
        };
        Box::pin(async {
            Ok(Program {
                directory: PathBuf::from("/artifacts/1"),
                file: "code".to_owned(),
                shape,
                entry: None,
                root: None,
                hold: Arc::new(()),
            })
        })
    }
}

impl Programs for Shared {
    fn ensure(
        &self,
        request: ImageRequest,
    ) -> BoxFuture<'static, Result<Arc<dyn PulledImage>, ImageFailure>> {
        let name = request.reference;
        let (reason, is_endless) = self.with(|world| {
            world.asked.push((Instant::now(), name.clone()));
            (world.missing.get(&name).copied(), world.endless.contains(&name))
        });
        Box::pin(async move {
            assert_ne!(name, "panic", "as the test wants it");
            if is_endless {
                std::future::pending::<()>().await;
            }
            if let Some(reason) = reason {
                return Err(ImageFailure { reason, message: "no such host".to_owned() });
            }
            let id = format!("{name}@sha256:00");
            Ok(Arc::new(Image { id, config: ProgramConfig::default() }) as Arc<dyn PulledImage>)
        })
    }
}

impl Objects for Shared {
    fn config_map(
        &self,
        _namespace: String,
        name: String,
    ) -> BoxFuture<'static, Result<Option<Arc<ConfigMap>>, ObjectFailure>> {
        let found = self.with(|world| world.config_maps.get(&name).cloned());
        Box::pin(async { Ok(found.map(Arc::new)) })
    }

    fn secret(
        &self,
        _namespace: String,
        _name: String,
    ) -> BoxFuture<'static, Result<Option<Arc<Secret>>, ObjectFailure>> {
        Box::pin(async { Ok(None) })
    }

    fn token(&self, ask: TokenAsk) -> BoxFuture<'static, Result<ServiceToken, ObjectFailure>> {
        let is_refused = self.with(|world| {
            let left = world.refuse_tokens.checked_sub(1);
            world.refuse_tokens = left.unwrap_or_default();
            left.is_some()
        });
        if is_refused {
            let message = "no relationship found".to_owned();
            return Box::pin(async move { Err(ObjectFailure { message, is_refused }) });
        }
        let token = format!("{}:{}:{}", ask.pod, ask.service_account, ask.expiration_seconds);
        Box::pin(async { Ok(ServiceToken { token, expires: Timestamp::MAX }) })
    }

    fn forget_tokens(&self, _uid: &PodUid) {}

    fn services(&self) -> watch::Receiver<Option<Arc<Services>>> {
        self.services.subscribe()
    }

    fn node(&self) -> watch::Receiver<Option<Arc<Node>>> {
        self.node.subscribe()
    }
}

/// A probe that waits for its answer.
struct Unanswered(Shared);

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.with(|world| world.unanswered -= 1);
    }
}

impl Prober for Shared {
    fn for_pod(&self) -> Arc<dyn Prober> {
        Arc::new(self.clone())
    }

    fn probe(&self, ask: ProbeAsk) -> BoxFuture<'static, ProbeAnswer> {
        let port = match ask.target {
            Target::Tcp { port, .. } => port,
            Target::Http(http) => http.port,
        };
        let answer = self.with(|world| {
            world.probed.push((Instant::now(), port));
            world.probed_at.insert(ask.address);
            if world.silent_ports.contains(&port) {
                world.unanswered += 1;
                return None;
            }
            Some(world.answers.get(&port).cloned().unwrap_or(ProbeAnswer::Success))
        });
        let Some(answer) = answer else {
            let waits = Unanswered(self.clone());
            return Box::pin(async move {
                let _waits = waits;
                std::future::pending().await
            });
        };
        Box::pin(async { answer })
    }
}

impl StatusSink for Shared {
    fn report(&self, pod: &Arc<Pod>, status: PodStatus) {
        let uid = pod.metadata.uid.clone().unwrap();
        self.with(|world| {
            let all = world.statuses.entry(uid).or_default();
            if all.last() != Some(&status) {
                all.push(status);
            }
        });
    }

    fn delete(&self, pod: &Arc<Pod>) -> BoxFuture<'static, Result<(), DeleteFailure>> {
        self.with(|world| world.deleted.push(pod.metadata.uid.clone().unwrap()));
        Box::pin(async { Ok(()) })
    }
}

impl EventSink for Shared {
    fn record(&self, _about: About<'_>, _kind: EventType, reason: &str, message: String) {
        self.with(|world| world.events.push((reason.to_owned(), message)));
    }
}

/// A node and its pods.
pub(super) struct Bed {
    pub(super) home: TempDir,
    pub(super) shared: Shared,
    pub(super) pods: Pods,
    pub(super) network: Network,
    wanted: watch::Sender<WantedPods>,
    set: BTreeMap<PodUid, Arc<Pod>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Bed {
    pub(super) async fn new() -> Self {
        Self::with(Shared::new(), tempfile::tempdir().unwrap(), BTreeMap::new(), true).await
    }

    async fn with(
        shared: Shared,
        home: TempDir,
        set: BTreeMap<PodUid, Arc<Pod>>,
        synced: bool,
    ) -> Self {
        // The first call sets its beginning.
        now();
        let logs = LogPlaces { pods: home.path().join("logs"), links: None };
        let (state, api_port) = shared.with(|world| (world.network.clone(), world.api_port));
        let state = state.unwrap_or(NetworkState::Host { why: None });
        let mut node: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap()];
        node.extend(shared.with(|world| world.second_address));
        let network = Network::stand_in(node, api_port, state);
        network.show_node(&["192.0.2.1".parse().unwrap()]);
        let mut config = PodsConfig::new(home.path().to_owned(), logs);
        // A pod of a cluster without is told so by an event.
        config.names.cluster_dns = vec!["192.0.2.53".parse().unwrap()];
        config.names.resolv_conf = shared.with(|world| world.resolv_conf.clone());
        config.clock = Clock::new(now);
        let shared = shared;
        let outside = Outside {
            runtime: Arc::new(shared.clone()),
            network: network.clone(),
            policies: shared.policies.subscribe(),
            programs: Arc::new(shared.clone()),
            objects: Arc::new(shared.clone()),
            status: Arc::new(shared.clone()),
            events: Arc::new(shared.clone()),
            prober: Arc::new(shared.clone()),
        };
        let pods = if synced { Arc::new(set.clone()) } else { Arc::default() };
        let (wanted, shown) = watch::channel(WantedPods { synced, pods });
        let (pods, task) = open(config, outside, shared.adopted(), shown).await.unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run(stop.clone()));
        Self { home, shared, pods, network, wanted, set, stop, tasks }
    }

    /// A node whose pods get their addresses so.
    pub(super) async fn with_network(state: NetworkState) -> Self {
        let shared = Shared::new();
        shared.with(|world| world.network = Some(state));
        Self::with(shared, tempfile::tempdir().unwrap(), BTreeMap::new(), true).await
    }

    /// A node with an address of each family, whose pods share them.
    pub(super) async fn of_both_families() -> Self {
        let shared = Shared::new();
        shared.with(|world| world.second_address = Some("::1".parse().unwrap()));
        Self::with(shared, tempfile::tempdir().unwrap(), BTreeMap::new(), true).await
    }

    /// Stops the agent in order.
    pub(super) async fn stop(mut self) -> Left {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        timeout(Duration::from_mins(1), ended).await.expect("the task stops when told");
        Left { shared: self.shared, home: self.home, set: self.set }
    }

    /// Ends the agent as `kill -9` would: nothing more is written.
    pub(super) async fn kill(mut self) -> Left {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        Left { shared: self.shared, home: self.home, set: self.set }
    }

    /// Has the source show a pod.
    pub(super) fn put(&mut self, pod: Value) {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let uid = PodUid::new(pod.metadata.uid.clone().unwrap());
        self.set.insert(uid, Arc::new(pod));
        self.show();
    }

    /// Has the source show the pod as deleted.
    pub(super) fn delete(&mut self, uid: &str, grace: i64) {
        let pod = self.set.get_mut(&PodUid::new(uid)).unwrap();
        let mut deleted = (**pod).clone();
        let at = krustlet_model::time::api_time(now() + jiff::SignedDuration::from_secs(grace));
        deleted.metadata.deletion_timestamp = Some(at);
        deleted.metadata.deletion_grace_period_seconds = Some(grace);
        *pod = Arc::new(deleted);
        self.show();
    }

    /// Has the source show the pod no more.
    pub(super) fn drop_pod(&mut self, uid: &str) {
        self.set.remove(&PodUid::new(uid));
        self.show();
    }

    pub(super) fn show(&self) {
        let pods = Arc::new(self.set.clone());
        self.wanted.send_replace(WantedPods { synced: true, pods });
    }

    /// Waits until the world is as it should be.
    pub(super) async fn until(&self, what: &str, mut is_so: impl FnMut(&mut World) -> bool) {
        let mut changes = self.shared.changed.subscribe();
        let wait = async {
            // Looking at it changes nothing.
            while !is_so(&mut self.shared.world.lock().unwrap()) {
                changes.changed().await.unwrap();
            }
        };
        if timeout(Duration::from_hours(1), wait).await.is_err() {
            let world = self.shared.world.lock().unwrap();
            panic!("waited for an hour until {what}: {world:#?}");
        }
    }

    /// Waits until a status says so.
    pub(super) async fn until_status(
        &self,
        uid: &str,
        what: &str,
        mut is_so: impl FnMut(&PodStatus) -> bool,
    ) -> PodStatus {
        self.until(what, |world| world.last_status(uid).is_some_and(&mut is_so)).await;
        self.shared.world.lock().unwrap().last_status(uid).unwrap().clone()
    }

    pub(super) async fn until_phase(&self, uid: &str, phase: &str) -> PodStatus {
        self.until_status(uid, phase, |status| status.phase.as_deref() == Some(phase)).await
    }

    /// What was asked of the runtime so far.
    pub(super) fn calls(&self) -> Vec<Call> {
        self.shared.with(|world| world.calls.iter().map(|(_, call)| call.clone()).collect())
    }
}

/// What an agent leaves.
pub(super) struct Left {
    pub(super) shared: Shared,
    home: TempDir,
    pub(super) set: BTreeMap<PodUid, Arc<Pod>>,
}

impl Left {
    pub(super) fn home_path(&self) -> PathBuf {
        self.home.path().to_owned()
    }

    /// The next agent; its source has told everything, or nothing yet.
    pub(super) async fn next(self, synced: bool) -> Bed {
        Bed::with(self.shared, self.home, self.set, synced).await
    }
}

impl World {
    pub(super) fn last_status(&self, uid: &str) -> Option<&PodStatus> {
        self.statuses.get(uid).and_then(|all| all.last())
    }

    pub(super) fn has_event(&self, reason: &str) -> bool {
        self.events.iter().any(|(of, _)| of == reason)
    }

    pub(super) fn count(&self, call: &Call) -> usize {
        self.calls.iter().filter(|(_, of)| of == call).count()
    }
}

/// A pod of uid `u`, named `p`.
pub(super) fn pod(spec: Value) -> Value {
    json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1,
            "creationTimestamp": "2027-01-15T08:00:00Z"},
        "spec": spec,
    })
}

/// A pod with one container, `main`.
pub(super) fn one(policy: &str) -> Value {
    pod(json!({
        "restartPolicy": policy,
        "containers": [{"name": "main", "image": "web:1"}],
    }))
}

pub(super) fn key() -> PodKey {
    PodKey::new("n", "p")
}

/// The status of the only app container.
pub(super) fn main_of(status: &PodStatus) -> &k8s_openapi::api::core::v1::ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[0]
}

/// Why that container waits.
pub(super) fn waits(status: &PodStatus) -> Option<&str> {
    let state = status.container_statuses.as_ref()?.first()?.state.as_ref()?;
    state.waiting.as_ref()?.reason.as_deref()
}

pub(super) fn is_ready(status: &PodStatus) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
