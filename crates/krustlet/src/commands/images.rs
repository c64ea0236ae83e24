//! `krustlet images`, `pull` and `rmi`: by the agent of the root directory, or
//! on its store directly if none runs there.

use std::{io::Write as _, path::Path};

use anyhow::{Context as _, Result};
use http::Method;
use jiff::Timestamp;
use krustlet_image::{Images, ImagesConfig, PullLimits, VerificationPolicy};
use tokio_util::sync::CancellationToken;

use crate::{
    app::{
        core,
        images::{self, ImageDetail, ImageLine},
    },
    cli::{PullArgs, RmiArgs, RootArgs},
    client::{self, Local},
    config::registries,
    output,
    paths::Root,
};

/// Prints the images of the store.
pub(crate) async fn list(args: RootArgs) -> Result<()> {
    let lines: Vec<ImageLine> = ask(args, None, Method::GET, "/v1/images").await?;
    let now = Timestamp::now();
    let rows: Vec<_> = lines
        .into_iter()
        .flat_map(|image| {
            let age = output::age(image.pulled_at, now);
            image.names.clone().into_iter().map(move |name| {
                vec![name, short(&image.digest), output::bytes(image.bytes), age.clone()]
            })
        })
        .collect();
    let text = output::table(&["IMAGE", "DIGEST", "SIZE", "PULLED"], &rows);
    Ok(output::print(&text)?)
}

/// Twelve digits, as Docker shows them.
fn short(digest: &str) -> String {
    digest.split_once(':').map_or(digest, |(_, digits)| digits).chars().take(12).collect()
}

/// Pulls an image and prints its id.
pub(crate) async fn pull(args: PullArgs) -> Result<()> {
    let path = format!("/v1/images/pull?{}", query(&args.reference));
    let config = args.registry.registry_config.as_deref();
    let image: ImageDetail = ask(args.root, config, Method::POST, &path).await?;
    writeln!(std::io::stdout(), "{}", image.id)?;
    Ok(())
}

/// Removes images, each that can be.
pub(crate) async fn remove(args: RmiArgs) -> Result<()> {
    for reference in &args.references {
        let path = format!("/v1/images?{}", query(reference));
        ask_bytes(args.root.clone(), None, Method::DELETE, &path).await?;
        writeln!(std::io::stdout(), "removed {reference}")?;
    }
    Ok(())
}

/// One image, for `krustlet inspect`.
pub(super) async fn inspect(root: RootArgs, reference: &str) -> Result<ImageDetail> {
    ask(root, None, Method::GET, &format!("/v1/images/inspect?{}", query(reference))).await
}

fn query(reference: &str) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .append_pair("reference", reference)
        .finish()
}

async fn ask<T: serde::de::DeserializeOwned>(
    root: RootArgs,
    config: Option<&Path>,
    method: Method,
    path: &str,
) -> Result<T> {
    let bytes = ask_bytes(root, config, method, path).await?;
    client::read(&bytes)
}

/// Asks the agent if one runs; else opens the store and asks the agent's own
/// handlers here.
async fn ask_bytes(
    root: RootArgs,
    config: Option<&Path>,
    method: Method,
    path: &str,
) -> Result<Vec<u8>> {
    let root = Root::new(root.root_dir);
    let local = Local::new(root.socket());
    root.create().with_context(|| format!("cannot make {}", root.path().display()))?;
    let Some(_lock) = local.or_lock(&root).await? else {
        return local.send(method, path, client::empty()).await?.whole().await;
    };
    let rules = registries::rules(config)?;
    let (store, task) = krustlet_image::open(ImagesConfig {
        root: root.images(),
        docker_config: core::docker_config(),
        registries: rules,
        limits: PullLimits::default(),
        // No pod asks here.
        verification: VerificationPolicy::default(),
    })
    .context("cannot open the image store")?;
    let stop = CancellationToken::new();
    let asking = async {
        let answer = here(&store, method, path).await;
        stop.cancel();
        answer
    };
    let (answer, ()) = futures::future::join(asking, task.run(stop.clone())).await;
    answer
}

/// The agent's own handlers, called without a socket.
async fn here(store: &Images, method: Method, path: &str) -> Result<Vec<u8>> {
    use tower::ServiceExt as _;

    let request =
        http::Request::builder().method(method).uri(path).body(axum::body::Body::empty())?;
    let Ok(response) = images::router(store.clone()).oneshot(request).await;
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), client::MAX_ANSWER).await?;
    if !status.is_success() {
        anyhow::bail!("{}", String::from_utf8_lossy(&body));
    }
    Ok(body.into())
}
