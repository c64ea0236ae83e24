//! `krustlet stats`.

use std::io::Write as _;

use anyhow::Result;
use krustlet_server::ContainerUsage;

use crate::{cli::RootArgs, client::Local, output, paths::Root};

/// Prints what running containers use.
pub(crate) async fn run(args: RootArgs) -> Result<()> {
    let local = Local::new(Root::new(args.root_dir).socket());
    let usage: Vec<ContainerUsage> = local.get("/v1/stats").await?;
    let rows: Vec<_> = usage.iter().map(row).collect();
    let text = output::table(&["NAMESPACE", "POD", "CONTAINER", "CPU TIME", "MEMORY"], &rows);
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
    ]
}
