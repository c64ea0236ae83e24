//! The image commands as an agent serves them on its local socket.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::StatusCode;
use jiff::Timestamp;
use krustlet_image::{Asker, Content, ImageRequest, ImageSummary, Images, PullPolicy, RemoveError};
use krustlet_model::Chain;
use serde::{Deserialize, Serialize};

/// An image in a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageLine {
    /// References and ids it is known by.
    pub(crate) names: Vec<String>,
    /// Of its manifest.
    pub(crate) digest: String,
    /// As transferred.
    pub(crate) bytes: u64,
    /// When it was last pulled or imported.
    pub(crate) pulled_at: Timestamp,
}

/// One image in detail.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageDetail {
    /// As it was asked for, in full.
    pub(crate) reference: String,
    /// `repository@digest`.
    pub(crate) id: String,
    /// As transferred.
    pub(crate) bytes: u64,
    /// The program's digest; none for a root file system.
    pub(crate) program: Option<String>,
    /// How it wants to be run.
    pub(crate) config: krustlet_image::ProgramConfig,
}

/// Names an image in a query.
#[derive(Debug, Deserialize)]
struct Named {
    reference: String,
}

/// The paths.
pub(crate) fn router(images: Images) -> Router {
    Router::new()
        .route("/v1/images", get(list).delete(remove))
        .route("/v1/images/pull", post(pull))
        .route("/v1/images/inspect", get(inspect))
        .with_state(Arc::new(images))
}

async fn list(State(images): State<Arc<Images>>) -> Json<Vec<ImageLine>> {
    Json(images.list().await.into_iter().map(ImageLine::from).collect())
}

async fn remove(State(images): State<Arc<Images>>, Query(named): Query<Named>) -> Response {
    match images.remove(&named.reference).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => {
            let status = match &error {
                RemoveError::NotFound { .. } => StatusCode::NOT_FOUND,
                _ => StatusCode::CONFLICT,
            };
            (status, Chain(&error).to_string()).into_response()
        }
    }
}

async fn pull(State(images): State<Arc<Images>>, Query(named): Query<Named>) -> Response {
    let request = ImageRequest {
        asker: Asker::Operator,
        reference: named.reference,
        policy: PullPolicy::Always,
        credentials: Vec::new(),
    };
    match images.ensure(request).await {
        Ok(ensured) => Json(ImageDetail::from(&ensured.image)).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, Chain(&error).to_string()).into_response(),
    }
}

async fn inspect(State(images): State<Arc<Images>>, Query(named): Query<Named>) -> Response {
    if let Some(image) = images.inspect(&named.reference).await {
        return Json(ImageDetail::from(&image)).into_response();
    }
    let text = format!("no image {}; `krustlet images` lists what there is", named.reference);
    (StatusCode::NOT_FOUND, text).into_response()
}

impl From<ImageSummary> for ImageLine {
    fn from(image: ImageSummary) -> Self {
        Self {
            names: image.names,
            digest: image.digest,
            bytes: image.bytes,
            pulled_at: image.pulled_at,
        }
    }
}

impl From<&krustlet_image::Image> for ImageDetail {
    fn from(image: &krustlet_image::Image) -> Self {
        let program = match &image.content {
            Content::Module { digest, .. } => Some(digest.clone()),
            Content::RootFs { .. } => None,
        };
        Self {
            reference: image.reference.clone(),
            id: image.id.clone(),
            bytes: image.bytes,
            program,
            config: image.config.clone(),
        }
    }
}
