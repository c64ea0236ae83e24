//! `krustlet inspect`: a pod of the agent, or an image, as JSON.

use anyhow::{Context as _, Result};

use crate::{cli::InspectArgs, client::Local, output, paths::Root};

/// Prints the pod of this name if there is one, else the image.
pub(crate) async fn run(args: InspectArgs) -> Result<()> {
    let local = Local::new(Root::new(args.root.root_dir.clone()).socket());
    let pods = if local.is_there().await { super::pods(&local).await? } else { Vec::new() };
    let pod = pods.iter().find(|pod| super::is_named(pod, &args.namespace, &args.target));
    let text = if let Some(pod) = pod {
        serde_json::to_string_pretty(pod)?
    } else {
        let image = super::images::inspect(args.root, &args.target).await.with_context(|| {
            format!("no pod {}/{} and no such image", args.namespace, args.target)
        })?;
        serde_json::to_string_pretty(&image)?
    };
    Ok(output::print(&(text + "\n"))?)
}
