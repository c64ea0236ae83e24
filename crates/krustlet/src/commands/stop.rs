//! `krustlet stop`.

use std::io::Write as _;

use anyhow::Result;
use http::Method;

use crate::{
    cli::StopArgs,
    client::{self, Local},
    paths::Root,
};

/// Stops a pod and returns when it has ended.
pub(crate) async fn run(args: StopArgs) -> Result<()> {
    let local = Local::new(Root::new(args.root.root_dir).socket());
    let mut path = client::path(&["stop", &args.pod.namespace, &args.pod.name]);
    if let Some(seconds) = args.grace_period {
        path = format!("{path}?grace={seconds}");
    }
    let said = local.send(Method::POST, &path, client::empty()).await?.whole().await?;
    std::io::stdout().write_all(&said)?;
    Ok(())
}
