//! `krustlet logs`.

use std::io::Write as _;

use anyhow::Result;
use http::Method;

use crate::{
    cli::LogsArgs,
    client::{self, Local},
    paths::Root,
};

/// Prints the log, following it if asked to.
pub(crate) async fn run(args: LogsArgs) -> Result<()> {
    let local = Local::new(Root::new(args.root.root_dir).socket());
    let (namespace, name) = (args.pod.namespace.as_str(), args.pod.name.as_str());
    let container = super::container(&local, namespace, name, args.container).await?;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (flag, set) in
        [("follow", args.follow), ("previous", args.previous), ("timestamps", args.timestamps)]
    {
        if set {
            query.append_pair(flag, "true");
        }
    }
    if let Some(lines) = args.tail {
        query.append_pair("tailLines", &lines.to_string());
    }
    let path = client::path(&["logs", namespace, name, &container]);
    let path = format!("{path}?{}", query.finish());
    let mut answer = local.send(Method::GET, &path, client::empty()).await?;
    let mut stdout = std::io::stdout();
    while let Some(piece) = answer.piece().await? {
        stdout.write_all(&piece)?;
        stdout.flush()?;
    }
    Ok(())
}
