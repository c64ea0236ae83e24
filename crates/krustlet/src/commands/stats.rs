//! `krustlet stats`.

use anyhow::Result;
use krustlet_server::{ContainerUsage, PodUsage};

use crate::{cli::RootArgs, client::Local, output, paths::Root};

/// Those from `POD SOCKETS` on are of the pod, the same for each of its
/// containers.
const HEADS: [&str; 11] = [
    "NAMESPACE",
    "POD",
    "CONTAINER",
    "CPU TIME",
    "MEMORY",
    "POD SOCKETS",
    "POD RECEIVED",
    "POD SENT",
    "POD OPENED",
    "POD ACCEPTED",
    "POD REFUSED",
];

/// Prints what running containers use.
pub(crate) async fn run(args: RootArgs) -> Result<()> {
    let local = Local::new(Root::new(args.root_dir).socket());
    let pods: Vec<PodUsage> = local.get("/v1/stats").await?;
    let rows = pods.iter().flat_map(|pod| pod.containers.iter().map(|one| row(pod, one)));
    let rows: Vec<_> = rows.collect();
    let text = output::table(&HEADS, &rows);
    Ok(output::print(&text)?)
}

fn row(pod: &PodUsage, container: &ContainerUsage) -> Vec<String> {
    let network = &pod.network;
    vec![
        pod.namespace.clone(),
        pod.name.clone(),
        container.name.clone(),
        output::took(std::time::Duration::from_nanos(container.cpu_nanoseconds)),
        output::bytes(container.memory_bytes),
        network.sockets.to_string(),
        output::bytes(network.received_bytes),
        output::bytes(network.sent_bytes),
        network.opened.to_string(),
        network.accepted.to_string(),
        network.refused.to_string(),
    ]
}
