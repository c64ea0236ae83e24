//! The paths of the kubelet's API that are served, as an axum router without
//! any notion of who asks; [`listen`](crate::listen) puts that before it.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, RawQuery, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::{List, api::core::v1::Pod};
use krustlet_model::PodKey;

use crate::{
    logs::{self, LogOptions},
    metrics,
    queries::{LogRun, NotFound, PodQueries},
    summary::Summary,
    usage::{Meter, Usage},
};

/// What the handlers ask.
pub(crate) type Queries = Arc<dyn PodQueries>;

/// The kubelet's paths. Source: kubelet, `InstallDefaultHandlers` and
/// `InstallAuthRequiredHandlers` in `pkg/kubelet/server/server.go`.
pub(crate) fn kubelet(pods: Queries, node: &str) -> Router {
    let meter = Meter::new(Arc::clone(&pods), node);
    let metered = Router::new()
        .route("/stats/summary", get(stats_summary))
        .route("/metrics", get(async |State(meter): State<Meter>| text(meter, metrics::own).await))
        .route(
            "/metrics/cadvisor",
            get(async |State(meter): State<Meter>| text(meter, metrics::cadvisor).await),
        )
        .route(
            "/metrics/resource",
            get(async |State(meter): State<Meter>| text(meter, metrics::resource).await),
        )
        .with_state(meter);
    Router::new()
        .route("/healthz", get(healthy))
        .route("/healthz/ping", get(healthy))
        .route("/healthz/log", get(healthy))
        .route("/healthz/syncloop", get(healthy))
        .route("/pods", get(list))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_log))
        .with_state(pods)
        .merge(metered)
}

/// `GET /stats/summary`.
async fn stats_summary(State(meter): State<Meter>) -> Json<Summary> {
    let usage = meter.read().await;
    Json(Summary::of(&meter.node, usage.pods))
}

/// Metrics of one path.
async fn text(meter: Meter, write: fn(&Usage) -> String) -> Response {
    let text = write(&meter.read().await);
    ([("content-type", metrics::TEXT)], text).into_response()
}

async fn healthy() -> &'static str {
    "ok"
}

/// `GET /pods`: a PodList.
pub(crate) async fn list(State(pods): State<Queries>) -> Json<List<Pod>> {
    let items = pods.pods().iter().map(|pod| Pod::clone(pod)).collect();
    Json(List { items, ..List::default() })
}

/// `GET …/{namespace}/{pod}/{container}` with the options of a log request.
async fn container_log(
    State(pods): State<Queries>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    log_of(&pods, &PodKey::new(namespace, pod), &container, &query.unwrap_or_default(), None).await
}

/// Answers a log request. Which run is meant is said by its options, unless it
/// is named.
pub(crate) async fn log_of(
    pods: &Queries,
    pod: &PodKey,
    container: &str,
    query: &str,
    run: Option<LogRun>,
) -> Response {
    let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
    let pairs = pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
    let options = match LogOptions::parse(pairs, Timestamp::now()) {
        Ok(options) => options,
        Err(invalid) => {
            return (StatusCode::UNPROCESSABLE_ENTITY, invalid.to_string()).into_response();
        }
    };
    let run = run.unwrap_or(if options.previous { LogRun::Previous } else { LogRun::Newest });
    let source = match pods.log(pod, None, container, run) {
        Ok(source) => source,
        Err(missing) => return missing.into_response(),
    };
    match logs::open(source, options).await {
        Ok(pieces) => ([("content-type", "text/plain")], Body::from_stream(pieces)).into_response(),
        Err(error) => {
            tracing::warn!(%error, "cannot open a container's log");
            let text = format!("cannot open the container's log: {error}");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

impl IntoResponse for NotFound {
    /// Kubelet answers 404 for what is unknown and 400 for what has no log yet.
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Pod | Self::Container { .. } => StatusCode::NOT_FOUND,
            Self::NotStarted { .. } | Self::NoRun { .. } | Self::NoPrevious { .. } => {
                StatusCode::BAD_REQUEST
            }
        };
        (status, self.to_string()).into_response()
    }
}
