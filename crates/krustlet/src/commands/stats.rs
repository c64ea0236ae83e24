//! `krustlet stats`.

use std::io::Write as _;

use anyhow::Result;
use krustlet_server::ContainerUsage;

use crate::{cli::RootArgs, client::Local, output, paths::Root};

/// The last four are of the pod, the same for each of its containers.
const HEADS: [&str; 9] = [
    "NAMESPACE",
    "POD",
    "CONTAINER",
    "CPU TIME",
    "MEMORY",
    "POD SOCKETS",
    "POD RECEIVED",
    "POD SENT",
    "POD REFUSED",
];

/// Prints what running containers use.
pub(crate) async fn run(args: RootArgs) -> Result<()> {
    let local = Local::new(Root::new(args.root_dir).socket());
    let usage: Vec<ContainerUsage> = local.get("/v1/stats").await?;
    let rows: Vec<_> = usage.iter().map(row).collect();
    let text = output::table(&HEADS, &rows);
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn row(usage: &ContainerUsage) -> Vec<String> {
    vec![
        usage.namespace.clone(),
        usage.pod.clone(),
        usage.container.clone(),
        output::took(std::time::Duration::from_nanos(usage.cpu_nanoseconds)),
        output::bytes(usage.memory_bytes),
        usage.pod_sockets.to_string(),
        output::bytes(usage.pod_received_bytes),
        output::bytes(usage.pod_sent_bytes),
        usage.pod_refused.to_string(),
    ]
}
