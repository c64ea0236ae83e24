//! What a node is configured to be: flags over the file over the defaults.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::{api::core::v1::Taint, apimachinery::pkg::api::resource::Quantity};
use krustlet_cluster::{EventRate, node::EvictionThresholds};
use krustlet_image::VerificationPolicy;
use krustlet_network::{Mode, PodRanges};
use krustlet_pod::NamesConfig;

use super::{addresses::node_addresses, kubelet::KubeletConfiguration};
use crate::{
    cli::{NodeArgs, ServiceProxy},
    paths::Root,
};

/// The label and taint key that keeps other pods away by default.
const ARCH: &str = "kubernetes.io/arch";

/// Everything `krustlet node` goes by.
#[derive(Clone, Debug)]
pub(crate) struct NodeSettings {
    /// The Node's name.
    pub(crate) name: String,
    /// The node's addresses, the main one first: at most one of each family.
    pub(crate) addresses: Vec<IpAddr>,
    /// How pods get their addresses.
    pub(crate) pod_network: Mode,
    /// Whether other nodes' pods are led to.
    pub(crate) node_routes: bool,
    /// The most sockets of a pod, if the usual number is not meant.
    pub(crate) max_pod_sockets: Option<u32>,
    /// Who leads pods to Services.
    pub(crate) service_proxy: ServiceProxy,
    /// Whether the cluster's policies are enforced.
    pub(crate) network_policy: bool,
    /// Ranges of addresses for a Node that has none.
    pub(crate) pod_ranges: Option<PodRanges>,
    /// `kubernetes.io/os`.
    pub(crate) os: String,
    /// `kubernetes.io/arch`.
    pub(crate) arch: String,
    /// Labels besides the standard ones.
    pub(crate) labels: BTreeMap<String, String>,
    /// Taints of a newly created Node.
    pub(crate) taints: Vec<Taint>,
    /// Whether to create the Node.
    pub(crate) register: bool,
    /// `spec.providerID`.
    pub(crate) provider_id: Option<String>,
    /// The most pods.
    pub(crate) max_pods: u32,
    /// How often the status is computed.
    pub(crate) status_update: Duration,
    /// How often an unchanged status is posted.
    pub(crate) status_report: Duration,
    /// Capacity that pods do not get.
    pub(crate) reserved: Vec<BTreeMap<String, Quantity>>,
    /// What must stay free.
    pub(crate) eviction: EvictionThresholds,
    /// Where the HTTPS API listens; an address that stands for all is those of both
    /// families.
    pub(crate) listen: SocketAddr,
    /// Certificate and key files, if given.
    pub(crate) tls_files: Option<(PathBuf, PathBuf)>,
    /// Where a self-signed certificate is kept.
    pub(crate) cert_dir: PathBuf,
    /// Whose certificates are users; nobody's if not given.
    pub(crate) client_ca: Option<PathBuf>,
    /// Where pods' logs are kept.
    pub(crate) logs: PathBuf,
    /// Bytes of one log file.
    pub(crate) log_max_bytes: u64,
    /// Log files of one container.
    pub(crate) log_max_files: usize,
    /// What the node adds to its pods' names.
    pub(crate) names: NamesConfig,
    /// How fast events are sent.
    pub(crate) events: EventRate,
    /// Images pulled at once.
    pub(crate) parallel_pulls: usize,
    /// Which images pods get without being verified.
    pub(crate) verification: VerificationPolicy,
}

/// Puts flags, file and defaults together.
///
/// # Errors
///
/// Names the flag or field at fault and what would do.
pub(crate) fn settings(
    args: &NodeArgs,
    file: KubeletConfiguration,
    root: &Root,
) -> Result<NodeSettings> {
    let name = match &args.hostname_override {
        Some(name) => name.clone(),
        None => rustix::system::uname().nodename().to_string_lossy().to_lowercase(),
    };
    if !is_node_name(&name) {
        bail!(
            "the node's name {name:?} is not a DNS-1123 subdomain (lower case letters, digits, '-' \
             and '.'): set another one with --hostname-override"
        );
    }
    let addresses = node_addresses(&args.node_ip)?;
    let verification = file.verification()?;
    let eviction = file.eviction().map_err(anyhow::Error::msg)?;
    let pod_network = args.pod_network.or(file.pod_network().map_err(anyhow::Error::msg)?);
    let service_proxy = args.service_proxy.or(file.service_proxy().map_err(anyhow::Error::msg)?);
    let service_proxy = service_proxy.unwrap_or_default();
    let taints = match &args.register_with_taints {
        Some(text) => parse_taints(text)?,
        None => file.register_with_taints.unwrap_or_else(|| default_taints(&args.node_arch)),
    };
    let log_max_bytes = match &file.container_log_max_size {
        None => 10 << 20,
        Some(text) => krustlet_model::quantity::bytes(&Quantity(text.clone()))
            .ok()
            .and_then(|bytes| u64::try_from(bytes).ok())
            .filter(|bytes| *bytes > 0)
            .with_context(|| format!("containerLogMaxSize {text:?} is not a size such as 10Mi"))?,
    };
    let quantities = |map: BTreeMap<String, String>| {
        map.into_iter().map(|(name, amount)| (name, Quantity(amount))).collect()
    };
    let or = |given: Option<super::duration::GoDuration>, seconds| {
        given.map_or(Duration::from_secs(seconds), |given| given.0)
    };
    let pod_ranges = match &file.pod_cidr {
        Some(text) => {
            let parts: Vec<&str> = text.split(',').collect();
            let read = PodRanges::parse(&parts);
            Some(read.with_context(|| format!("podCIDR {text:?} cannot be used"))?)
        }
        None => None,
    };
    Ok(NodeSettings {
        name,
        addresses,
        pod_network: pod_network.unwrap_or_default().into(),
        node_routes: args.node_routes.or(file.node_routes).unwrap_or(false),
        max_pod_sockets: args.max_pod_sockets.or(file.max_pod_sockets),
        service_proxy,
        network_policy: args.network_policy.or(file.network_policy).unwrap_or(false),
        pod_ranges,
        os: args.node_os.clone(),
        arch: args.node_arch.clone(),
        labels: parse_labels(&args.node_labels)?,
        taints,
        register: file.register_node.unwrap_or(true),
        provider_id: file.provider_id,
        max_pods: file.max_pods.unwrap_or(110),
        status_update: or(file.node_status_update_frequency, 10),
        status_report: or(file.node_status_report_frequency, 300),
        reserved: vec![quantities(file.system_reserved), quantities(file.kube_reserved)],
        eviction,
        listen: SocketAddr::new(
            file.address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()),
            file.port.unwrap_or(10250),
        ),
        tls_files: file.tls_cert_file.zip(file.tls_private_key_file),
        cert_dir: args.cert_dir.clone().unwrap_or_else(|| root.certificates()),
        client_ca: file.authentication.x509.client_ca_file,
        logs: file.pod_logs_dir.unwrap_or_else(|| PathBuf::from("/var/log/pods")),
        log_max_bytes,
        log_max_files: file.container_log_max_files.unwrap_or(5) as usize,
        names: names(file.cluster_dns, file.cluster_domain, file.resolv_conf, service_proxy)?,
        events: EventRate {
            per_second: file.event_record_qps.unwrap_or(EventRate::default().per_second),
            burst: file.event_burst.unwrap_or(EventRate::default().burst),
        },
        parallel_pulls: file.max_parallel_image_pulls.unwrap_or(3) as usize,
        verification,
    })
}

/// The cluster's names and the node's own.
fn names(
    cluster_dns: Vec<IpAddr>,
    cluster_domain: Option<String>,
    resolv_conf: Option<String>,
    proxy: ServiceProxy,
) -> Result<NamesConfig> {
    let knows_cluster = proxy == ServiceProxy::Builtin && cluster_dns.is_empty();
    let mut names = NamesConfig { cluster_dns, knows_cluster, ..NamesConfig::of_system() };
    match resolv_conf {
        None => {}
        Some(path) if path.is_empty() => names.resolv_conf = None,
        Some(path) => {
            // The kubelet finds out with the first pod; a person is here now.
            std::fs::metadata(&path)
                .with_context(|| format!("resolvConf {path:?} cannot be used"))?;
            names.resolv_conf = Some(path.into());
        }
    }
    // Who answers for a domain must know it; kubeadm and its like call it so.
    let usual = if knows_cluster { "cluster.local" } else { "" };
    names.cluster_domain = cluster_domain.unwrap_or_else(|| usual.to_owned());
    if !names.cluster_domain.is_empty() && !is_node_name(&names.cluster_domain) {
        bail!(
            "clusterDomain {:?} is not a domain such as cluster.local, without a dot at its end",
            names.cluster_domain
        );
    }
    Ok(names)
}

/// The first Krustlet's taints, which its manifests tolerate.
fn default_taints(arch: &str) -> Vec<Taint> {
    ["NoSchedule", "NoExecute"]
        .map(|effect| Taint {
            key: ARCH.into(),
            value: Some(arch.to_owned()),
            effect: effect.into(),
            time_added: None,
        })
        .to_vec()
}

/// Reads `KEY=VALUE:EFFECT,…`; the value may be left out. Empty text is no taint.
fn parse_taints(text: &str) -> Result<Vec<Taint>> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, effect) = part
                .rsplit_once(':')
                .filter(|(_, effect)| ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(effect))
                .with_context(|| {
                    format!(
                        "--register-with-taints: {part:?} is not KEY=VALUE:EFFECT with an effect of \
                         NoSchedule, PreferNoSchedule or NoExecute"
                    )
                })?;
            let (key, value) = match key.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (key, None),
            };
            Ok(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
        })
        .collect()
}

/// Reads `KEY=VALUE` pairs and refuses those that NodeRestriction would.
fn parse_labels(pairs: &[String]) -> Result<BTreeMap<String, String>> {
    pairs
        .iter()
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .with_context(|| format!("--node-labels: {pair:?} is not KEY=VALUE"))?;
            if !may_set(key) {
                bail!(
                    "--node-labels: a node may not set {key:?} on itself; use a domain of your own, \
                     or label it with kubectl"
                );
            }
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Source: `IsKubeletLabel` in Kubernetes' `pkg/apis/core/... well_known_labels.go`.
fn may_set(key: &str) -> bool {
    const KNOWN: [&str; 9] = [
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "node.kubernetes.io/instance-type",
        "beta.kubernetes.io/instance-type",
    ];
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let within = |root: &str| domain == root || domain.ends_with(&format!(".{root}"));
    if !(within("kubernetes.io") || within("k8s.io")) {
        return true;
    }
    KNOWN.contains(&key) || within("kubelet.kubernetes.io") || within("node.kubernetes.io")
}

fn is_node_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !label.is_empty()
                && label.chars().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn settings_of(flags: &[&str], file: &str) -> Result<NodeSettings> {
        let base = ["krustlet", "node", "--kubeconfig", "k", "--node-ip", "10.88.0.1"];
        let cli = Cli::try_parse_from(base.iter().chain(flags))?;
        let Command::Node(args) = cli.command else { bail!("not the node command") };
        let file = serde_saphyr::from_str(&format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{file}"
        ))?;
        settings(&args, file, &Root::new(Some("/root-dir".into())))
    }

    #[test]
    fn the_defaults_are_those_of_the_first_krustlet_and_of_the_kubelet() {
        let settings = settings_of(&["--hostname-override", "wasm-1"], "").unwrap();
        assert_eq!(settings.arch, "wasm32-wasi");
        assert_eq!(settings.taints, default_taints("wasm32-wasi"));
        assert_eq!(settings.listen.to_string(), "[::]:10250");
        assert_eq!(settings.max_pods, 110);
        assert_eq!(settings.log_max_bytes, 10 << 20);
    }

    #[test]
    fn a_node_may_have_an_address_of_each_family() {
        let of = |given: &str| {
            let cli = Cli::try_parse_from(["krustlet", "node", "--kubeconfig=k", given])?;
            let Command::Node(args) = cli.command else { bail!("not the node command") };
            let file = serde_saphyr::from_str(KubeletConfiguration::EMPTY)?;
            let settings = settings(&args, file, &Root::new(Some("/root-dir".into())))?;
            Ok(settings.addresses.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(of("--node-ip=10.88.0.1, fd00::1").unwrap(), ["10.88.0.1", "fd00::1"]);
        assert_eq!(of("--node-ip=::ffff:10.88.0.1").unwrap(), ["10.88.0.1"]);
        let error: anyhow::Error = of("--node-ip=10.88.0.1,10.88.0.2").unwrap_err();
        assert!(error.to_string().contains("one of each family"), "{error}");
        let error = of("--node-ip=10.88.0.1,odd").unwrap_err().to_string();
        assert!(error.contains("--node-ip") && error.contains("odd"), "{error}");
    }

    #[test]
    fn flags_go_over_the_file() {
        let file = "registerWithTaints: [{key: a, effect: NoSchedule}]\n";
        let taints = |flags: &[&str]| settings_of(flags, file).unwrap().taints;
        assert_eq!(taints(&[])[0].key, "a");
        assert!(taints(&["--register-with-taints="]).is_empty());
        let flag = taints(&["--register-with-taints=b=c:NoExecute"]);
        assert_eq!((flag[0].key.as_str(), flag[0].value.as_deref()), ("b", Some("c")));
    }

    #[test]
    fn the_network_is_configured_by_file_and_by_flags() {
        let of = |flags: &[&str], file: &str| {
            let NodeSettings {
                pod_network,
                node_routes,
                max_pod_sockets,
                service_proxy,
                network_policy,
                ..
            } = settings_of(flags, file).unwrap();
            (pod_network, node_routes, max_pod_sockets, service_proxy, network_policy)
        };
        let with = |sockets| (Mode::Auto, false, sockets, ServiceProxy::None, false);
        assert_eq!(of(&[], ""), with(None));
        let file = "podNetwork: own\nnodeRoutes: true\nmaxPodSockets: 7\n\
                    serviceProxy: builtin\nnetworkPolicy: true\n";
        let other = (Mode::Own, true, Some(7), ServiceProxy::Builtin, true);
        assert_eq!(of(&[], file), other);
        assert!(settings_of(&[], file).unwrap().names.knows_cluster, "as with the flag");
        let off = [
            "--pod-network=auto",
            "--node-routes=false",
            "--max-pod-sockets=9",
            "--service-proxy=none",
            "--network-policy=false",
        ];
        assert_eq!(of(&off, file), with(Some(9)));
        let on = [
            "--pod-network=own",
            "--node-routes",
            "--max-pod-sockets=7",
            "--service-proxy=builtin",
            "--network-policy",
        ];
        assert_eq!(of(&on, ""), other);
    }

    #[test]
    fn the_manuals_example_does_what_it_says() {
        let page = include_str!("../../../../docs/node.md");
        let text = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
        let (head, file) = text.unwrap().split_at(text.unwrap().find("authentication").unwrap());
        assert!(head.contains("v1beta1\nkind: KubeletConfiguration\n"), "{head}");
        let settings = settings_of(&[], file).unwrap();
        assert_eq!(settings.client_ca, Some("/etc/kubernetes/pki/ca.crt".into()));
        assert_eq!(settings.service_proxy, ServiceProxy::Builtin);
        assert!(settings.network_policy);
        assert_eq!(settings.names.cluster_dns, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn labels_that_noderestriction_refuses_are_refused_here() {
        for (label, good) in [
            ("example.com/a=b", true),
            ("plain=b", true),
            ("node.kubernetes.io/pool=b", true),
            ("topology.kubernetes.io/zone=z", true),
            ("node-restriction.kubernetes.io/a=b", false),
            ("kubernetes.io/role=b", false),
            ("x.k8s.io/role=b", false),
            ("novalue", false),
        ] {
            let read = settings_of(&["--node-labels", label], "");
            assert_eq!(read.is_ok(), good, "{label}");
        }
    }

    #[test]
    fn a_bad_name_address_or_size_is_named() {
        for (flags, file, word) in [
            (&["--hostname-override", "Bad_Name"][..], "", "--hostname-override"),
            (&[][..], "containerLogMaxSize: big", "containerLogMaxSize"),
            (&["--register-with-taints=x"][..], "", "EFFECT"),
            (&[][..], "podCIDR: 10.0.0.0/31", "podCIDR"),
        ] {
            let error = settings_of(flags, file).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
