//! The command line.

use std::{
    net::{AddrParseError, IpAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use krustlet_model::bandwidth::MOST_SOCKETS;

use crate::commands::port_forward::Forward;

/// Runs WebAssembly as Kubernetes pods.
#[derive(Debug, Parser)]
#[command(name = "krustlet", version, propagate_version = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run this machine as a node of a cluster
    Node(NodeArgs),
    /// Run a pod without a cluster
    Run(RunArgs),
    /// List pods
    Ps(PsArgs),
    /// Print a container's log
    Logs(LogsArgs),
    /// Run the container's program once more, beside it
    Exec(ExecArgs),
    /// Lead ports of this machine to those of a pod, its own localhost included
    PortForward(PortForwardArgs),
    /// Stop a pod; one of a cluster ends as failed
    Stop(StopArgs),
    /// Show what running containers use
    Stats(RootArgs),
    /// Push a WebAssembly file to a registry
    Push(PushArgs),
    /// Pull an image
    Pull(PullArgs),
    /// List images
    Images(RootArgs),
    /// Show a pod or an image as JSON
    Inspect(InspectArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Print a completion script for a shell
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// The agent that `krustlet run` starts in the background
    #[command(hide = true)]
    Agent(AgentArgs),
}

/// Where the agent keeps everything.
#[derive(Clone, Debug, Args)]
pub(crate) struct RootArgs {
    /// Directory of the agent's state: images, volumes, logs, sockets.
    /// Keep it short: sockets below it may have 107 bytes
    #[arg(long, value_name = "DIR", env = "KRUSTLET_ROOT_DIR")]
    pub(crate) root_dir: Option<PathBuf>,
}

/// How registries are reached.
#[derive(Clone, Debug, Args)]
pub(crate) struct RegistryArgs {
    /// File with mirrors, plain-HTTP hosts and private CAs
    #[arg(long, value_name = "FILE", env = "KRUSTLET_REGISTRY_CONFIG")]
    pub(crate) registry_config: Option<PathBuf>,
}

/// Flags of `krustlet node`, named as the kubelet's.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// How to reach the API server, and as whom
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub(crate) kubeconfig: PathBuf,
    /// A KubeletConfiguration
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The node's name; the host's by default
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname_override: Option<String>,
    /// The node's address, or one of each family: IP,IP; found by default, that of
    /// IPv6 first with `::`
    #[arg(long, value_name = "IP", value_delimiter = ',', value_parser = ip)]
    pub(crate) node_ip: Vec<IpAddr>,
    /// Labels of the node: KEY=VALUE,…
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    pub(crate) node_labels: Vec<String>,
    /// Taints of a newly created node: KEY=VALUE:EFFECT,…; empty for none
    #[arg(long, value_name = "TAINTS")]
    pub(crate) register_with_taints: Option<String>,
    /// Whether pods get addresses of their own, from the Node's podCIDR: `auto`
    /// (the default) if that is possible, `own` or not at all, `host` for the node's
    /// address
    #[arg(long, value_name = "MODE")]
    pub(crate) pod_network: Option<PodNetworkMode>,
    /// Route the podCIDRs of other nodes to their addresses; needs the rights of
    /// deploy/network-rbac.yaml
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL")]
    pub(crate) node_routes: Option<bool>,
    /// The most sockets that a pod may have open at once, up to 16384; 4096 by
    /// default
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_SOCKETS)))]
    pub(crate) max_pod_sockets: Option<u32>,
    /// Who leads pods to Services: `none` of us (the default), for a node with a
    /// kube-proxy, or their sandboxes (`builtin`), without one; needs the rights of
    /// deploy/network-rbac.yaml
    #[arg(long, value_name = "WHO")]
    pub(crate) service_proxy: Option<ServiceProxy>,
    /// Enforce the cluster's NetworkPolicies for the pods of this node; needs the
    /// rights of deploy/network-rbac.yaml, and pods wait for them
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL")]
    pub(crate) network_policy: Option<bool>,
    /// Directory for the serving certificate
    #[arg(long, value_name = "DIR")]
    pub(crate) cert_dir: Option<PathBuf>,
    /// `kubernetes.io/os` and nodeInfo.operatingSystem of the node
    #[arg(long, value_name = "OS", default_value = "wasm32-wasi")]
    pub(crate) node_os: String,
    /// `kubernetes.io/arch` and nodeInfo.architecture of the node
    #[arg(long, value_name = "ARCH", default_value = "wasm32-wasi")]
    pub(crate) node_arch: String,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
    /// Registries.
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Flags of `krustlet run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A manifest, a directory of manifests, a .wasm or .wat file, or an image
    #[arg(value_name = "FILE|DIR|REF")]
    pub(crate) target: String,
    /// Leave the pods running in the background
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Addresses of pods.
    #[command(flatten)]
    pub(crate) pod_cidr: PodCidrArgs,
    /// Arguments of the program (not with a manifest)
    #[arg(last = true)]
    pub(crate) args: Vec<String>,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
    /// Registries.
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Addresses of pods without a cluster.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PodCidrArgs {
    /// Give each pod an address of its own from this range, or from one of each
    /// family; needs root. By default pods share 127.0.0.1
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) pod_cidr: Vec<String>,
}

/// How pods get their addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PodNetworkMode {
    /// Their own if that is possible, else the node's.
    #[default]
    Auto,
    /// Their own; pods wait until they can be had.
    Own,
    /// The node's.
    Host,
}

/// Who leads pods to Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceProxy {
    /// Nobody of ours.
    #[default]
    None,
    /// Their sandboxes.
    Builtin,
}

impl From<PodNetworkMode> for krustlet_network::Mode {
    fn from(mode: PodNetworkMode) -> Self {
        match mode {
            PodNetworkMode::Auto => Self::Auto,
            PodNetworkMode::Own => Self::Own,
            PodNetworkMode::Host => Self::Host,
        }
    }
}

/// Flags of the agent in the background.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Addresses of pods.
    #[command(flatten)]
    pub(crate) pod_cidr: PodCidrArgs,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
    /// Registries.
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Flags of `krustlet ps`.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Also pods that have ended
    #[arg(short, long)]
    pub(crate) all: bool,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
}

/// A pod on the command line.
#[derive(Clone, Debug, Args)]
pub(crate) struct PodArgs {
    /// The pod's name
    #[arg(value_name = "POD")]
    pub(crate) name: String,
    /// The pod's namespace
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
}

/// Flags of `krustlet logs`, named as kubectl's.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Which pod.
    #[command(flatten)]
    pub(crate) pod: PodArgs,
    /// Which container; the pod's first by default
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Go on with what is written later
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The run before the current one
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// Print each line's time before it
    #[arg(long)]
    pub(crate) timestamps: bool,
    /// Only this many lines from the end
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
}

/// Flags of `krustlet exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Which pod.
    #[command(flatten)]
    pub(crate) pod: PodArgs,
    /// Which container; the pod's first by default
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// The program's arguments, its name first
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
}

/// Flags of `krustlet port-forward`.
#[derive(Debug, Args)]
pub(crate) struct PortForwardArgs {
    /// Which pod.
    #[command(flatten)]
    pub(crate) pod: PodArgs,
    /// The pod's port, after the one of this machine if that is another; without
    /// one before the colon, any that is free
    #[arg(required = true, value_name = "[LOCAL:]PORT")]
    pub(crate) ports: Vec<Forward>,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
}

/// Flags of `krustlet stop`.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Which pod.
    #[command(flatten)]
    pub(crate) pod: PodArgs,
    /// Seconds to give it; its own grace period by default
    #[arg(long, value_name = "SECONDS")]
    pub(crate) grace_period: Option<u64>,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
}

/// Flags of `krustlet push`.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// A module or component
    pub(crate) file: PathBuf,
    /// Where to: [HOST/]NAME[:TAG]
    pub(crate) reference: String,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
    /// Registries.
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Flags of `krustlet pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// What: [HOST/]NAME[:TAG|@DIGEST]
    pub(crate) reference: String,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
    /// Registries.
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// Flags of `krustlet inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A pod's name or an image's reference
    pub(crate) target: String,
    /// The pod's namespace
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
}

/// Flags of `krustlet rmi`.
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// References of the images
    #[arg(required = true)]
    pub(crate) references: Vec<String>,
    /// State directory.
    #[command(flatten)]
    pub(crate) root: RootArgs,
}

/// An address of a list; one of IPv4 however it is written.
fn ip(text: &str) -> Result<IpAddr, AddrParseError> {
    text.trim().parse().map(|address: IpAddr| address.to_canonical())
}
