//! What the local socket offers besides on a standalone agent: taking pods,
//! and watching what becomes of them.

use std::{io, path::Path, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::stream;
use http::StatusCode;
use krustlet_image::Images;
use krustlet_model::{Chain, PodKey};
use tokio::{sync::broadcast, task::spawn_blocking};

use super::{
    manifest::{Bundle, SuppliedImage},
    wishes::Wishes,
    world::{ApplyError, News, World},
};

/// Bytes of the largest bundle: some manifests of 3 MiB each.
const MAX_BUNDLE: usize = 64 << 20;

/// What the handlers use.
#[derive(Clone, Debug)]
pub(super) struct Standalone {
    pub(super) world: World,
    pub(super) images: Images,
    /// What the agent was started with.
    pub(super) wishes: Wishes,
}

/// The paths.
pub(super) fn router(standalone: Standalone) -> Router {
    Router::new()
        .route("/v1/apply", post(apply))
        .route("/v1/watch", get(watch))
        .layer(DefaultBodyLimit::max(MAX_BUNDLE))
        .with_state(Arc::new(standalone))
}

/// Imports the images that files supply, then takes the pods; answers with
/// their keys.
async fn apply(
    State(standalone): State<Arc<Standalone>>,
    Json(bundle): Json<Bundle>,
) -> Result<Json<Vec<PodKey>>, (StatusCode, String)> {
    if let Some(why) = standalone.wishes.refusal(&bundle.wishes) {
        // The one after it may be started for them.
        let status = if standalone.world.is_closed() {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::CONFLICT
        };
        return Err((status, why));
    }
    for image in &bundle.images {
        import(&standalone.images, image)
            .await
            .map_err(|why| (StatusCode::UNPROCESSABLE_ENTITY, why))?;
    }
    standalone.world.apply(bundle).map(Json).map_err(|error| {
        let status = match &error {
            ApplyError::Exists(_) => StatusCode::CONFLICT,
            ApplyError::Closed => StatusCode::SERVICE_UNAVAILABLE,
            ApplyError::Write(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Chain(&error).to_string())
    })
}

/// Puts a file into the image store under the name that pods say. Text is
/// assembled first: only here, for files of the machine's own user.
async fn import(images: &Images, image: &SuppliedImage) -> Result<(), String> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        format!(
            "{} cannot supply image {}: {}",
            image.path.display(),
            image.reference,
            Chain(error)
        )
    };
    let assembled = if image.path.extension().is_some_and(|extension| extension == "wat") {
        let path = image.path.clone();
        let file = spawn_blocking(move || assemble(&path)).await.map_err(|error| failed(&error))?;
        Some(file.map_err(|error| failed(&error))?)
    } else {
        None
    };
    let path = assembled.as_ref().map_or(image.path.as_path(), |file| file.path());
    images.import(path, &image.reference).await.map_err(|error| failed(&error))?;
    Ok(())
}

fn assemble(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    use io::Write;

    let binary = wat::parse_file(path).map_err(io::Error::other)?;
    let mut file = tempfile::Builder::new().suffix(".wasm").tempfile()?;
    file.write_all(&binary)?;
    Ok(file)
}

/// One JSON object per line: every pod, then what happens.
async fn watch(State(standalone): State<Arc<Standalone>>) -> Response {
    let (pods, news) = standalone.world.watch();
    let first = pods.into_iter().map(News::Pod).collect();
    let lines = stream::unfold(
        (first, news, standalone),
        |(mut waiting, mut news, standalone)| async move {
            let next: News = if let Some(next) = Vec::pop(&mut waiting) {
                next
            } else {
                match news.recv().await {
                    Ok(next) => next,
                    // Too slow: shown everything anew, as a watch that is relisted.
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        let (pods, fresh) = standalone.world.watch();
                        (waiting, news) = (pods.into_iter().map(News::Pod).collect(), fresh);
                        return Some((Ok(Bytes::new()), (waiting, news, standalone)));
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            };
            let mut line = serde_json::to_vec(&next).map_err(io::Error::other);
            if let Ok(line) = &mut line {
                line.push(b'\n');
            }
            Some((line.map(Bytes::from), (waiting, news, standalone)))
        },
    );
    Body::from_stream(lines).into_response()
}
