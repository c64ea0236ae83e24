//! An agent without a cluster: in the process of `krustlet run`, or in the
//! background (`krustlet agent`) until its last pod is gone.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Node;
use krustlet_image::VerificationPolicy;
use krustlet_model::policy::Policies;
use krustlet_network::{Mode, NameServers, Network, NetworkConfig, NodeRanges};
use krustlet_pod::NamesConfig;
use krustlet_server::LocalTask;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    api::{self, Standalone},
    wishes::Wishes,
    world::World,
};
use crate::{
    app::{
        core::{Core, CoreConfig, until_signal},
        images,
        pods::{self, PodsSetup},
    },
    cli::AgentArgs,
    config::registries,
    paths::{Root, RootLock},
};

/// Images pulled at once without a configuration.
const PARALLEL_PULLS: usize = 3;

/// Pods that bounds for each are worked out for; the kubelet's default.
const USUAL_PODS: u32 = 110;

/// Bytes of one log file; the kubelet's default.
const LOG_MAX_BYTES: u64 = 10 << 20;

/// Log files of one container; the kubelet's default.
const LOG_FILES: usize = 5;

/// What `krustlet run -d` waits to read from the agent it started.
pub(super) const READY: &str = "ready";

/// A standalone agent that runs.
#[derive(Debug)]
pub(super) struct Agent {
    core: Core,
    world: World,
    network: Network,
}

impl Agent {
    /// Opens the root directory and begins to serve its socket.
    ///
    /// # Errors
    ///
    /// Names the directory or process that is at fault.
    pub(super) async fn start(root: Root, lock: RootLock, wishes: Wishes) -> Result<Self> {
        let (pod_network, ranges) = match &wishes.pod_cidr[..] {
            [] => (Mode::Host, NodeRanges::None),
            texts => (Mode::Own, NodeRanges::Some(texts.to_vec())),
        };
        let registries = registries::rules(wishes.registry_config.as_deref())?;
        let mut core = Core::open(CoreConfig {
            root: root.clone(),
            lock,
            pod_network,
            services: None,
            registries,
            parallel_pulls: PARALLEL_PULLS,
            verification: VerificationPolicy::default(),
            log_files: LOG_FILES,
        })
        .await?;
        let names = NamesConfig::of_system();
        // Nobody will say anything else of a node without a cluster.
        let (_, ranges) = watch::channel(ranges);
        let network = core
            .network(NetworkConfig {
                root: root.path().to_owned(),
                state: root.runtime(),
                node: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
                api_port: None,
                configured: None,
                ranges,
                peers: None,
                by_node: false,
                name_servers: NameServers {
                    given: Vec::new(),
                    resolv_conf: names.resolv_conf.clone(),
                },
            })
            .await?;
        let world = World::open(root.standalone(), this_machine())
            .with_context(|| format!("cannot read {}", root.standalone().display()))?;
        let shared = Arc::new(world.clone());
        let setup = PodsSetup {
            root: root.clone(),
            logs: root.logs(),
            links: None,
            log_max_bytes: LOG_MAX_BYTES,
            names,
            max_pods: USUAL_PODS,
            max_sockets: None,
            network: network.clone(),
            // There is no cluster that could have any.
            policies: watch::channel(Policies::Off).1,
            objects: Arc::clone(&shared) as _,
            status: Arc::clone(&shared) as _,
            events: Arc::clone(&shared) as _,
            stopper: Some(shared),
        };
        let pods = pods::start(&mut core, setup, world.sets()).await?;
        let standalone = Standalone { world: world.clone(), images: core.images.clone(), wishes };
        let more = api::router(standalone).merge(images::router(core.images.clone()));
        let local = LocalTask::bind(&root.socket(), Arc::new(pods), more)
            .with_context(|| format!("cannot serve {}", root.socket().display()))?;
        core.supervisor.start("local", |stop| local.run(stop));
        Ok(Self { core, world, network })
    }

    /// The pods that are wanted.
    pub(super) fn world(&self) -> World {
        self.world.clone()
    }

    /// Runs until told to stop.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<()> {
        let (runtime, sets) = (self.core.runtime.clone(), self.world.sets());
        let (network, pods) = (self.network, self.world.sets());
        let ran = self
            .core
            .run(async move {
                stop.cancelled().await;
                // The zygote ends with the last pod, or goes on for a new agent.
                let is_empty = sets.borrow().pods.is_empty();
                if is_empty && let Err(error) = runtime.retire().await {
                    tracing::warn!(%error, "the zygote stays");
                }
            })
            .await;
        // Nothing of it is in use, or the next agent goes on with it.
        let is_empty = pods.borrow().pods.is_empty();
        if is_empty && let Err(error) = network.remove() {
            tracing::warn!(%error, "the pods' network namespace stays");
        }
        ran
    }

    /// Runs until the last pod is gone or a signal comes.
    async fn run_until_idle(self) -> Result<()> {
        let world = self.world.clone();
        let mut sets = world.sets();
        let signal = until_signal()?;
        let stop = CancellationToken::new();
        let asked = stop.clone();
        let until = async move {
            let gone = async {
                // The first pod has yet to come.
                let mut is_left = sets.wait_for(|set| !set.pods.is_empty()).await.is_ok();
                // The sender lives as long as the agent.
                while is_left && !world.close_if_empty() {
                    is_left = sets.wait_for(|set| set.pods.is_empty()).await.is_ok();
                }
            };
            tokio::select! {
                // Both are cancel-safe.
                () = gone => {}
                () = signal => world.close(),
            }
            asked.cancel();
        };
        futures::future::join(self.run(stop), until).await.0
    }
}

/// The node that downward APIs read from.
fn this_machine() -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(rustix::system::uname().nodename().to_string_lossy().to_lowercase());
    node
}

/// `krustlet agent`: says `ready` on standard output once its socket answers.
pub(crate) async fn run(args: AgentArgs) -> Result<()> {
    let root = Root::new(args.root.root_dir);
    root.create().with_context(|| format!("cannot make {}", root.path().display()))?;
    let Some(lock) = root.lock()? else {
        bail!("an agent runs in {} already", root.path().display());
    };
    let wishes = Wishes::new(&args.pod_cidr, &args.registry)?;
    let agent = Agent::start(root, lock, wishes).await?;
    writeln!(std::io::stdout(), "{READY}")?;
    agent.run_until_idle().await
}
