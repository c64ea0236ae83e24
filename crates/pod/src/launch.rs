//! Making one container: everything it needs is gathered, then handed to the
//! sandbox, which loads its code. Entering the guest is left to the worker.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use krustlet_image::ProgramConfig;
use krustlet_model::{
    Chain, ContainerId, ContainerName, PodKey, PodUid, env,
    http::{HttpAnnotationError, HttpAnnotations},
    objects::ObjectRefs,
    quantity::{self, QuantityError},
    termination,
};
use krustlet_protocol::{ContainerSpec, HttpLimits, Limits, LogLimits, Preopen};
use krustlet_volume::{MessagePlace, MessageRun, VolumeError, VolumeMountDir, Volumes};
use tokio::task::JoinError;

use crate::{
    config::Context,
    environment::{self, Call, CallError},
    guest::{EntryError, guest_kind},
    listeners::{self, ListenError},
    names::{self, NamesError},
    objects,
    outside::{Launch, LoadFailure, ObjectFailure, Program, PulledImage, Refused},
    place::{self, Place},
    turns::Turns,
    users,
    words::{self, waiting},
};

/// A container to be made.
pub(crate) struct LaunchOrder {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Container,
    pub(crate) key: PodKey,
    pub(crate) uid: PodUid,
    pub(crate) id: ContainerId,
    pub(crate) restart_count: u32,
    /// The run before, whose log was linked.
    pub(crate) previous: Option<ContainerId>,
    pub(crate) image: Arc<dyn PulledImage>,
    pub(crate) volumes: Volumes,
    /// Whose turn it is to work on the files of runs.
    pub(crate) turns: Turns,
    /// Where the pod is in the network.
    pub(crate) place: Place,
    /// What the environments of the pod refer to.
    pub(crate) refs: ObjectRefs,
}

/// A container that was made.
#[derive(Debug)]
pub(crate) struct Launched {
    /// The run before, whose log was linked.
    pub(crate) previous: Option<ContainerId>,
    /// Where its termination message lies.
    pub(crate) message: MessagePlace,
}

/// Why a container was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error(transparent)]
    Objects(#[from] ObjectFailure),
    #[error("the services of the cluster are not known: the agent is stopping")]
    Services,
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Load(#[from] LoadFailure),
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error(transparent)]
    Mounts(#[from] VolumeError),
    #[error(transparent)]
    Names(#[from] NamesError),
    #[error(transparent)]
    Limit(#[from] QuantityError),
    #[error(transparent)]
    Http(#[from] HttpAnnotationError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("{0}")]
    Root(String),
    #[error(transparent)]
    Sandbox(#[from] Refused),
    #[error("the work was broken off")]
    Broken(#[from] JoinError),
}

impl LaunchError {
    /// The waiting reason of the container.
    ///
    /// Source: kubelet, `startContainer` in
    /// `pkg/kubelet/kuberuntime/kuberuntime_container.go`.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Objects(_)
            | Self::Services
            | Self::Call(_)
            | Self::Mounts(_)
            | Self::Names(_)
            | Self::Root(_)
            | Self::Http(_)
            | Self::Limit(_) => waiting::CREATE_CONFIG,
            Self::Load(failure) => failure.reason,
            Self::Entry(_) | Self::Listen(_) | Self::Sandbox(_) | Self::Broken(_) => {
                waiting::CREATE
            }
        }
    }

    /// What people are to read.
    pub(crate) fn text(&self) -> String {
        Chain(self).to_string()
    }
}

/// Makes the container.
pub(crate) async fn launch(order: LaunchOrder) -> Result<Launched, LaunchError> {
    let LaunchOrder { context, pod, container, uid, key, .. } = &order;
    if users::breaks_non_root(pod, container) {
        let text = words::breaks_non_root(key, uid, &container.name);
        return Err(LaunchError::Root(text));
    }
    let outside = &context.outside;

    // Kubelet starts no pod before it has read the services once: a guest that
    // lacks their variables would lack them for its whole life.
    let mut services = outside.objects.services();
    let services = match services.wait_for(Option::is_some).await {
        Ok(services) => services.clone().unwrap_or_default(),
        Err(_) => return Err(LaunchError::Services),
    };
    let found = objects::fetch(&*outside.objects, order.refs.clone()).await?;
    let node = context.node(Some(&order.place));
    let config = order.image.config();
    let call = environment::call(pod, container, config, &found, &services, &node)?;

    let program = order.image.program(call.argv0.clone()).await?;
    let backlog = listeners::http_backlog(&call.env)?;
    let http = HttpLimits { backlog, ..http_limits(pod, &context.config.http)? };
    let guest = guest_kind(&program.shape, program.entry.as_deref(), http)?;

    let (mounts, message) = mounts(&order, &call, program.root.clone()).await?;
    let listen_ports = listeners::listen_ports(container, &guest, &call.env)?;
    let shared = place::shared(pod, &order.place);
    // Who has the node's network has its ports: the API server writes them down.
    let host_ports =
        if place::is_host_network(pod) { Vec::new() } else { listeners::host_ports(container)? };
    let sockets =
        listeners::sockets(shared.as_ref(), &host_ports, container, &guest, &listen_ports)?;

    let (preopens, directories) = preopens(&program, &mounts);
    let name = ContainerName::new(&container.name);
    let spec = ContainerSpec {
        id: order.id.clone(),
        pod: uid.clone(),
        guest,
        artifact: program.file.clone(),
        args: call.args,
        env: call.env,
        working_directory: working_directory(container, config),
        preopens,
        listeners: u16::try_from(sockets.bound.len()).unwrap_or(u16::MAX),
        listener_ports: sockets.ports,
        datagram_ports: sockets.datagram_ports,
        listen_ports,
        limits: limits(container)?,
        log: LogLimits { max_bytes: context.config.log_max_bytes },
        name: name.clone(),
    };
    let launch = Launch {
        spec,
        artifact_directory: program.directory.clone(),
        log: context.config.logs.run(key, uid, &name, order.restart_count),
        mounts: directories,
        listeners: sockets.bound,
        datagrams: sockets.datagrams,
        own_datagrams: sockets.own_datagrams,
    };
    outside.runtime.create_container(launch).await?;
    // Until here, for the sandbox has everything open now: the directories that
    // lead through descriptors, and the artifact.
    drop(mounts);
    drop(program);
    Ok(Launched { previous: order.previous, message })
}

/// The directories of the container's volumes, and last those of its termination
/// message and of its `/etc`, if these have some of their own.
async fn mounts(
    order: &LaunchOrder,
    call: &Call,
    root: Option<PathBuf>,
) -> Result<(Vec<VolumeMountDir>, MessagePlace), LaunchError> {
    let (volumes, pod) = (order.volumes.clone(), Arc::clone(&order.pod));
    let container = order.container.clone();
    let env: BTreeMap<String, String> = call.own_env.iter().cloned().collect();
    let (restart, path) = (order.restart_count, termination::path(&container));
    let (context, hostname) = (Arc::clone(&order.context), call.hostname.clone());
    let (node, addresses) = (context.node(None).name, order.place.addresses.clone());
    let look = move || {
        let expand = |text: &str| env::expand(text, |name| env.get(name).cloned());
        let mut mounts = volumes.mounts(&pod, &container, &expand)?;
        let run = MessageRun { container: &container.name, restart, path: &path };
        let file = volumes.make_message(&run, root.as_deref(), &mounts)?;
        mounts.extend(file.directory);
        let at = (node.as_str(), context.outside.network.node_addresses());
        let files = || {
            let names = &context.config.names;
            Ok::<_, LaunchError>(names::files_of_pod(names, &pod, at, &addresses, &hostname)?)
        };
        mounts.extend(volumes.make_etc(files, root.as_deref(), &mounts)?);
        Ok::<_, LaunchError>((mounts, file.place))
    };
    order.turns.take(look).await?
}

/// What the guest may open: the image's root file system, if it has one, the
/// volumes, and the directories of its termination message and its `/etc`.
fn preopens(program: &Program, mounts: &[VolumeMountDir]) -> (Vec<Preopen>, Vec<PathBuf>) {
    let root = program.root.iter().map(|root| {
        // All containers of an image share it, so nobody may write to it.
        (Preopen { guest_path: "/".to_owned(), writable: false }, root.clone())
    });
    let mounts = mounts.iter().map(|mount| {
        let preopen = Preopen { guest_path: mount.guest.clone(), writable: mount.writable };
        (preopen, mount.host.clone())
    });
    root.chain(mounts).unzip()
}

fn working_directory(container: &Container, image: &ProgramConfig) -> Option<String> {
    let own = container.working_dir.clone().filter(|directory| !directory.is_empty());
    own.or_else(|| image.working_dir.clone()).filter(|directory| !directory.is_empty())
}

fn limit<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(name)
}

/// The node's bounds, and those that the pod's annotations put in their place.
fn http_limits(pod: &Pod, node: &HttpLimits) -> Result<HttpLimits, HttpAnnotationError> {
    let own = HttpAnnotations::of(pod)?;
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    Ok(HttpLimits {
        max_concurrent: own.max_concurrent_requests.unwrap_or(node.max_concurrent),
        request_timeout_ms: own.request_timeout.map_or(node.request_timeout_ms, milliseconds),
        idle_timeout_ms: own.idle_timeout.map_or(node.idle_timeout_ms, milliseconds),
        max_body_bytes: own.max_request_body.or(node.max_body_bytes),
        max_instance_reuse: own.max_instance_reuse.or(node.max_instance_reuse),
        max_instance_concurrent_reuse: own
            .max_instance_concurrent_reuse
            .or(node.max_instance_concurrent_reuse),
        idle_instance_timeout_ms: own
            .idle_instance_timeout
            .map_or(node.idle_instance_timeout_ms, milliseconds),
        backlog: node.backlog,
    })
}

/// What a container may use, in the sandbox's words.
pub(crate) fn limits(container: &Container) -> Result<Limits, QuantityError> {
    Ok(Limits { memory_bytes: memory_limit(container)?, cpu_millis: cpu_limit(container)? })
}

/// `limits.memory` in bytes.
fn memory_limit(container: &Container) -> Result<Option<u64>, QuantityError> {
    let bytes = limit(container, "memory").map(quantity::bytes).transpose()?;
    Ok(bytes.and_then(|bytes| u64::try_from(bytes).ok()))
}

/// The smallest CPU limit there is, in thousandths of a core.
const LEAST_CPU: u64 = 10;

/// `limits.cpu` in thousandths of a core. As for kubelet, 0 is no limit and what
/// is below 10 counts as 10. Source: `MilliCPUToQuota` in
/// `pkg/kubelet/cm/helpers_linux.go`.
fn cpu_limit(container: &Container) -> Result<Option<u64>, QuantityError> {
    let millis = limit(container, "cpu").map(quantity::cpu_millis).transpose()?;
    let millis = millis.and_then(|millis| u64::try_from(millis).ok());
    Ok(millis.filter(|&millis| millis > 0).map(|millis| millis.max(LEAST_CPU)))
}
