//! `krustlet node`: an agent whose pods come from the API server.
//!
//! ```text
//! events ◀── node ──▶ lease
//!              └────▶ pod source ──PodSet──▶ pods ──▶ statuses
//! ```

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::{api::core::v1::ContainerImage, apimachinery::pkg::api::resource::Quantity};
use krustlet_cluster::{
    self as cluster, Cluster, ConnectOptions, NodeConfig, NodeHealth,
    node::{Cadence, Reserved, facts},
};
use krustlet_image::{ImageSummary, Images};
use krustlet_model::{policy::Policies, quantity};
use krustlet_network::{
    NameServers, NetworkConfig, NetworkState, NodeRanges,
    services::{ServiceSources, ServicesState},
};
use krustlet_runtime::Runtime;
use krustlet_server::{HttpsTask, LocalTask, ServingIdentity, tls};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    api::{ClusterEvents, ClusterObjects, ClusterReviews, ClusterStatus},
    core::{Core, CoreConfig, until_signal},
    images,
    network::{self, NodeNetworkTask},
    pods::{self, PodsSetup},
    policies,
    services::{self, ServiceFiles},
};
use crate::{
    cli::{NodeArgs, ServiceProxy},
    config::{
        self,
        kubelet::KubeletConfiguration,
        node::{self, NodeSettings},
        registries,
    },
    paths::Root,
};

/// The Kubernetes version whose kubelet this agent follows. It must parse as
/// a version and be within three minors of the API server's.
const KUBERNETES: &str = "v1.37.2";

/// The runtime as `kubectl get nodes -o wide` shows it.
const RUNTIME: &str = concat!("wasmtime://", "48.0.8");

/// Runs a node until a signal.
pub(crate) async fn run(args: NodeArgs) -> Result<()> {
    let file: KubeletConfiguration = match &args.config {
        Some(path) => config::read(path)?,
        None => serde_saphyr::from_str(KubeletConfiguration::EMPTY)?,
    };
    file.validate().map_err(anyhow::Error::msg).with_context(|| match &args.config {
        Some(path) => format!("{} cannot be used", path.display()),
        None => "the default configuration cannot be used".to_owned(),
    })?;
    let root = Root::new(args.root.root_dir.clone());
    let settings = node::settings(&args, file, &root)?;
    root.create().with_context(|| format!("cannot make {}", root.path().display()))?;
    let Some(lock) = root.lock()? else {
        bail!("an agent runs in {} already", root.path().display());
    };
    let signal = until_signal()?;
    let services = services::open(settings.service_proxy, &root).await?;
    // Before any credential is read: the zygote must not have seen one.
    let core = Core::open(CoreConfig {
        root: root.clone(),
        lock,
        pod_network: settings.pod_network,
        services: services.as_ref().map(|_| root.services()),
        registries: registries::rules(args.registry.registry_config.as_deref())?,
        parallel_pulls: settings.parallel_pulls,
        verification: settings.verification.clone(),
        log_files: settings.log_max_files,
    })
    .await?;
    let core = wire(core, (&args.kubeconfig, &root), &settings, services).await?;
    tracing::info!(node = settings.name, addresses = ?settings.addresses, "the node runs");
    core.run(signal).await
}

/// Starts everything that speaks to the API server, in the order of its use.
async fn wire(
    mut core: Core,
    (kubeconfig, root): (&Path, &Root),
    settings: &NodeSettings,
    service_files: Option<ServiceFiles>,
) -> Result<Core> {
    let options = ConnectOptions {
        user_agent: format!("krustlet/v{}", env!("CARGO_PKG_VERSION")),
        context: None,
    };
    let cluster = cluster::connect::connect(kubeconfig, options).await?;

    let (events, task) = cluster::events::events(&cluster, &settings.name, settings.events);
    core.supervisor.start("events", |stop| task.run(stop));

    let (health, is_healthy) = watch::channel(NodeHealth::default());
    let service_state = service_files.as_ref().map(|(state, _)| state.clone());
    let (peers, peer_states) = if settings.node_routes {
        let (states, task) = cluster::nodes::nodes(&cluster);
        core.supervisor.start("nodes", |stop| task.run(stop));
        let (peers, task) = network::peers(&settings.name, states.clone());
        core.supervisor.start("peers", |stop| task.run(stop));
        (Some(peers), Some(states))
    } else {
        (None, None)
    };
    let (node_ranges, ranges) = watch::channel(NodeRanges::Unknown);
    let network = core
        .network(NetworkConfig {
            root: root.path().to_owned(),
            state: root.runtime(),
            node: settings.addresses.clone(),
            api_port: Some(settings.listen.port()),
            configured: settings.pod_ranges.clone(),
            ranges,
            peers,
            // Sandboxes that lead to Services themselves need no way round.
            by_node: settings.service_proxy == ServiceProxy::None,
            name_servers: NameServers {
                given: settings.names.cluster_dns.clone(),
                resolv_conf: settings.names.resolv_conf.clone(),
            },
        })
        .await?;
    let machine = facts::machine(root.path())?;
    let config = node_config(settings, root)?;
    let (node, task) = cluster::node::node(&cluster, config, machine, is_healthy, events.clone());
    core.supervisor.start("node", |stop| task.run(stop));
    let lease = cluster::lease::lease(&cluster, &settings.name, node.clone());
    core.supervisor.start("lease", |stop| lease.run(stop));

    let (services, task) = cluster::services::services(&cluster);
    core.supervisor.start("services", |stop| task.run(stop));
    let mut endpoints_forbidden = None;
    if let Some((_, task)) = service_files {
        let (endpoints, source) = cluster::endpoints::endpoints(&cluster);
        endpoints_forbidden = Some(endpoints.forbidden);
        let sources = ServiceSources {
            node: settings.name.clone(),
            addresses: settings.addresses.clone(),
            seen: node.clone(),
            services: services.clone(),
            slices: endpoints.known,
        };
        core.supervisor.start("endpoints", |stop| source.run(stop));
        core.supervisor.start("service files", |stop| task.run(sources, stop));
    }

    let asked = NodeNetworkTask {
        node: node.clone(),
        ranges: node_ranges,
        state: network.state(),
        peers: peer_states,
        endpoints_forbidden,
        events: events.clone(),
    };
    core.supervisor.start("node network", |stop| asked.run(stop));

    let policies = if settings.network_policy {
        let (facts, task) = cluster::policies::policy_facts(&cluster);
        core.supervisor.start("policy facts", |stop| task.run(stop));
        let (policies, task) = policies::policies(facts, node.clone(), events.clone());
        core.supervisor.start("policies", |stop| task.run(stop));
        policies
    } else {
        watch::channel(Policies::Off).1
    };

    let watcher = HealthTask {
        runtime: core.runtime.clone(),
        network: network.state(),
        services: service_state,
        policies: policies.clone(),
        images: core.images.clone(),
        health,
    };
    core.supervisor.start("health", |stop| watcher.run(stop));

    let (objects, task) = cluster::objects::objects(&cluster);
    core.supervisor.start("objects", |stop| task.run(stop));

    let (sets, source) = cluster::pods::pods(&cluster, &settings.name, node.clone());
    let (statuses, task) = cluster::status::status(&cluster, sets.clone());
    core.supervisor.start("statuses", |stop| task.run(stop));

    let setup = PodsSetup {
        root: root.clone(),
        logs: settings.logs.clone(),
        links: Some("/var/log/containers".into()),
        log_max_bytes: settings.log_max_bytes,
        names: settings.names.clone(),
        max_pods: settings.max_pods,
        max_sockets: settings.max_pod_sockets,
        network,
        policies,
        objects: Arc::new(ClusterObjects {
            objects,
            tokens: Arc::new(cluster::Tokens::new(&cluster)),
            services,
            node,
        }),
        status: Arc::new(ClusterStatus(statuses)),
        events: Arc::new(ClusterEvents(events)),
        stopper: None,
    };
    let (wanted, task) = pods::wanted(sets);
    core.supervisor.start("pod sets", |stop| task.run(stop));
    let queries = Arc::new(pods::start(&mut core, setup, wanted).await?);
    core.supervisor.start("pod source", |stop| source.run(stop));

    serve(&mut core, &cluster, root, settings, queries).await?;
    Ok(core)
}

/// Starts the HTTPS API and the local socket.
async fn serve(
    core: &mut Core,
    cluster: &Cluster,
    root: &Root,
    settings: &NodeSettings,
    queries: Arc<super::queries::Queries>,
) -> Result<()> {
    let identity = match &settings.tls_files {
        Some((certificate, key)) => {
            ServingIdentity::Files { certificate: certificate.clone(), key: key.clone() }
        }
        None => ServingIdentity::SelfSigned {
            directory: settings.cert_dir.clone(),
            node: settings.name.clone(),
            addresses: settings.addresses.clone(),
        },
    };
    if settings.client_ca.is_none() {
        tracing::warn!(
            "authentication.x509.clientCAFile is not set, so the API server's certificate is \
             nobody's and `kubectl logs` is refused: set it to the cluster's CA"
        );
    }
    let config = tls::server_config(&identity, settings.client_ca.as_deref())?;
    let reviews = Arc::new(ClusterReviews {
        reviews: cluster::Reviews::new(cluster),
        node: settings.name.clone(),
    });
    let https = HttpsTask::bind(
        settings.listen,
        config,
        &settings.name,
        Arc::clone(&queries) as _,
        reviews,
    )
    .await?;
    core.supervisor.start("https", |stop| https.run(stop));

    let more = images::router(core.images.clone());
    let local = LocalTask::bind(&root.socket(), queries, more)
        .with_context(|| format!("cannot serve {}", root.socket().display()))?;
    core.supervisor.start("local", |stop| local.run(stop));
    Ok(())
}

fn node_config(settings: &NodeSettings, root: &Root) -> Result<NodeConfig> {
    Ok(NodeConfig {
        name: settings.name.clone(),
        hostname: settings.name.clone(),
        ips: settings.addresses.clone(),
        port: settings.listen.port(),
        register: settings.register,
        labels: settings.labels.clone(),
        taints: settings.taints.clone(),
        unschedulable: false,
        provider_id: settings.provider_id.clone(),
        os: settings.os.clone(),
        arch: settings.arch.clone(),
        kubelet_version: format!("{KUBERNETES}+krustlet.{}", env!("CARGO_PKG_VERSION")),
        runtime_version: RUNTIME.to_owned(),
        runtime_handlers: ["", "wasm", "wasm-dense"].map(str::to_owned).to_vec(),
        // What control planes may ask for and we do not serve yet is not declared.
        declared_features: Vec::new(),
        max_pods: settings.max_pods,
        reserved: reserved(&settings.reserved)?,
        eviction: settings.eviction,
        root: root.path().to_owned(),
        cadence: Cadence { compute: settings.status_update, report: settings.status_report },
    })
}

/// Adds up `systemReserved` and `kubeReserved`.
fn reserved(maps: &[BTreeMap<String, Quantity>]) -> Result<Reserved> {
    let mut sum = Reserved::default();
    for (name, amount) in maps.iter().flatten() {
        let wrong = || format!("reserved {name}: {:?} is not an amount", amount.0);
        let (target, value) = match name.as_str() {
            "cpu" => (&mut sum.cpu_millis, quantity::cpu_millis(amount).with_context(wrong)?),
            "memory" => (&mut sum.memory, quantity::bytes(amount).with_context(wrong)?),
            "ephemeral-storage" => (&mut sum.storage, quantity::bytes(amount).with_context(wrong)?),
            _ => bail!("reserved {name}: only cpu, memory and ephemeral-storage can be kept"),
        };
        *target = target.saturating_add(u64::try_from(value).ok().with_context(wrong)?);
    }
    Ok(sum)
}

/// Why no pod can be run, if that is so.
fn not_ready(
    is_well: bool,
    network: &NetworkState,
    services: Option<&ServicesState>,
    policies: &Policies,
) -> Option<String> {
    if !is_well {
        return Some("no sandbox can be made: the zygote does not answer".to_owned());
    }
    let network = match network {
        NetworkState::Waiting(why) => Some(why),
        NetworkState::Host { .. } | NetworkState::Own(_) => None,
    };
    let services = match services {
        Some(ServicesState::Waiting(why)) => Some(why),
        Some(ServicesState::Written) | None => None,
    };
    let policies = match policies {
        Policies::Unknown(why) => Some(why),
        Policies::Off | Policies::Known(_) => None,
    };
    let why = network.or(services).or(policies)?;
    Some(format!("network is not ready: {why}"))
}

/// Tells the Node whether pods can be run and which images are here.
struct HealthTask {
    runtime: Runtime,
    network: watch::Receiver<NetworkState>,
    services: Option<watch::Receiver<ServicesState>>,
    policies: watch::Receiver<Policies>,
    images: Images,
    health: watch::Sender<NodeHealth>,
}

impl HealthTask {
    /// How often the list of images is read; the status is computed as often.
    const IMAGES: std::time::Duration = std::time::Duration::from_secs(10);

    async fn run(mut self, stop: CancellationToken) {
        let mut healthy = self.runtime.healthy();
        // Policies that are lost later are gone on by, and one need not look each
        // time they change.
        let mut wants_policies = true;
        let mut turn = tokio::time::interval(Self::IMAGES);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let images = self.images.list().await.into_iter().map(container_image).collect();
            let is_well = *healthy.borrow_and_update();
            let services = self.services.as_mut().map(|state| state.borrow_and_update().clone());
            let not_ready = {
                let network = self.network.borrow_and_update();
                let known = self.policies.borrow_and_update();
                wants_policies &= !matches!(*known, Policies::Known(_));
                let policies = if wants_policies { &*known } else { &Policies::Off };
                not_ready(is_well, &network, services.as_ref(), policies)
            };
            let next = NodeHealth { not_ready, images: Arc::new(images) };
            // Nothing is woken when nothing changed.
            self.health.send_if_modified(|old| {
                let changed = *old != next;
                if changed {
                    *old = next;
                }
                changed
            });
            tokio::select! {
                biased;
                // All are cancel-safe.
                () = stop.cancelled() => return,
                changed = healthy.changed() => {
                    if changed.is_err() {
                        return stop.cancelled().await;
                    }
                }
                // The network lives as long as this task.
                Ok(()) = self.network.changed() => {}
                Ok(()) = network::changed(self.services.as_mut()) => {}
                Ok(()) = self.policies.changed(), if wants_policies => {}
                _ = turn.tick() => {}
            }
        }
    }
}

fn container_image(image: ImageSummary) -> ContainerImage {
    ContainerImage { names: Some(image.names), size_bytes: i64::try_from(image.bytes).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_all_is_known_that_pods_wait_for() {
        let network = NetworkState::Waiting("no range".to_owned());
        let host = NetworkState::Host { why: None };
        let services = ServicesState::Waiting("no Services".to_owned());
        let unknown = Policies::Unknown("no policies".to_owned());
        let known = Policies::Known(Arc::default());
        let why = |network, services, policies| not_ready(true, network, services, policies);
        assert_eq!(why(&host, Some(&ServicesState::Written), &Policies::Off), None);
        assert_eq!(why(&host, None, &known), None);
        let said = |what: &str| Some(format!("network is not ready: {what}"));
        assert_eq!(why(&host, None, &unknown), said("no policies"));
        assert_eq!(why(&host, Some(&services), &unknown), said("no Services"));
        assert_eq!(why(&network, None, &unknown), said("no range"));
        let sandbox = not_ready(false, &network, None, &unknown).unwrap();
        assert!(sandbox.contains("the zygote does not answer"), "{sandbox}");
    }
}
