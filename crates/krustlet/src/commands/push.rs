//! `krustlet push`.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use krustlet_image::{ImagesConfig, PullLimits, VerificationPolicy};
use tokio_util::sync::CancellationToken;

use crate::{app::core, cli::PushArgs, config::registries, output};

/// Pushes a file and prints the id to refer to it by digest.
pub(crate) async fn run(args: PushArgs) -> Result<()> {
    // A push needs no store: one that is thrown away keeps out of an agent's way.
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let (images, task) = krustlet_image::open(ImagesConfig {
        root: scratch.path().to_owned(),
        docker_config: core::docker_config(),
        registries: registries::rules(args.registry.registry_config.as_deref())?,
        limits: PullLimits::default(),
        verification: VerificationPolicy::default(),
    })
    .context("cannot prepare the push")?;
    let stop = CancellationToken::new();
    let pushing = async {
        let pushed = images.push(&args.file, &args.reference, &[]).await;
        stop.cancel();
        pushed
    };
    let (pushed, ()) = futures::future::join(pushing, task.run(stop.clone())).await;
    let pushed = pushed?;
    writeln!(std::io::stdout(), "{}", pushed.id)?;
    if output::shows_progress() {
        let size = output::bytes(pushed.bytes);
        // Only a courtesy; the id above is the answer.
        let _ = writeln!(std::io::stderr(), "pushed {} ({size})", pushed.reference);
    }
    Ok(())
}
