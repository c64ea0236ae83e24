//! The local socket: HTTP over a unix socket for `krustlet ps`, `logs`,
//! `exec`, `port-forward`, `stop` and `stats`. Whoever may open it (mode 0600: the agent's own
//! user) may do all of that.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, RawQuery, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::StatusCode;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use krustlet_model::PodKey;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    exec, forward,
    queries::{ConnectFailure, ExecRequest, LogRun, PodQueries, StopFailure, Stopped},
    routes::{self, Queries},
    usage::PodUsage,
};

/// Requests served at once. Each log that somebody follows is one of them, so
/// that a `krustlet run` of many containers needs as many.
const MAX_CONNECTIONS: usize = 1000;

/// How long answers that were begun may take when the task is stopped: the
/// command that stopped the last pod of an agent is to hear of it, and one that
/// follows a log for ever does not hold the agent up.
const LINGER: Duration = Duration::from_millis(500);

/// Serves the local socket until stopped.
#[derive(Debug)]
pub struct LocalTask {
    listener: UnixListener,
    path: PathBuf,
    router: Router,
}

impl LocalTask {
    /// Listens. `more` adds paths of the agent's own. A socket left by an
    /// agent that died is replaced: the caller holds the lock of the root
    /// directory, so nobody else uses it.
    ///
    /// # Errors
    ///
    /// What the system says of the path.
    pub fn bind(path: &FilePath, pods: Arc<dyn PodQueries>, more: Router) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned(), router: router(pods).merge(more) })
    }

    /// Serves. At the end answers that were begun are finished, if that is soon,
    /// open connections are closed and the socket removed.
    pub async fn run(self, stop: CancellationToken) {
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                // All are cancel-safe; no arm awaits in its body.
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    match accepted {
                        Ok((stream, _)) => {
                            let (router, watcher) = (self.router.clone(), graceful.watcher());
                            connections.spawn(serve(stream, router, watcher));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept a local connection");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }
            }
        }
        // First, so that nobody finds an agent that is about to end.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the local socket is gone already");
        }
        if tokio::time::timeout(LINGER, graceful.shutdown()).await.is_err() {
            tracing::debug!("a local answer was cut off");
        }
    }
}

async fn serve(stream: UnixStream, router: Router, watcher: Watcher) {
    let http = auto::Builder::new(TokioExecutor::new()).http1_only();
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let served = watcher.watch(connection).await;
    if let Err(error) = served {
        tracing::debug!(%error, "a local connection ended early");
    }
}

fn router(pods: Queries) -> Router {
    Router::new()
        .route("/v1/pods", get(routes::list))
        .route("/v1/logs/{namespace}/{pod}/{container}", get(log))
        .route("/v1/exec/{namespace}/{pod}", post(run))
        .route("/v1/connect/{namespace}/{pod}/{port}", post(connect))
        .route("/v1/stop/{namespace}/{pod}", post(stop_pod))
        .route("/v1/stats", get(stats))
        .with_state(pods)
}

/// `GET /v1/logs/{namespace}/{pod}/{container}` with the options of the
/// kubelet's API, and `restarts=N` for the run that began after so many.
async fn log(
    State(pods): State<Queries>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let query = query.unwrap_or_default();
    let restarts = url::form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "restarts")
        .map(|(_, value)| value.parse().map(LogRun::AfterRestarts));
    let Ok(run) = restarts.transpose() else {
        return (StatusCode::UNPROCESSABLE_ENTITY, "restarts must be a number").into_response();
    };
    routes::log_of(&pods, &PodKey::new(namespace, pod), &container, &query, run).await
}

async fn stats(State(pods): State<Queries>) -> Json<Vec<PodUsage>> {
    Json(pods.usage().await.pods)
}

/// `POST /v1/exec/{namespace}/{pod}?container=C&command=A&command=B`; see
/// [`exec`] for the bodies.
async fn run(
    State(pods): State<Queries>,
    Path((namespace, pod)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Response {
    let (mut container, mut command) = (None, Vec::new());
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match name.as_ref() {
            "container" => container = Some(value.into_owned()),
            "command" => command.push(value.into_owned()),
            _ => {}
        }
    }
    if command.is_empty() {
        return (StatusCode::UNPROCESSABLE_ENTITY, "no command to run").into_response();
    }
    let pod = PodKey::new(namespace, pod);
    let started =
        exec::run(body, move |streams| pods.exec(ExecRequest { pod, container, command, streams }));
    match started {
        Ok(frames) => frames.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot make a pipe: {error}"))
            .into_response(),
    }
}

/// `POST /v1/connect/{namespace}/{pod}/{port}`; see [`forward`] for the bodies.
async fn connect(
    State(pods): State<Queries>,
    Path((namespace, pod, port)): Path<(String, String, u16)>,
    body: Body,
) -> Response {
    let pod = PodKey::new(namespace, pod);
    match forward::connect(body, |streams| pods.connect(pod, port, streams)).await {
        Ok(received) => received.into_response(),
        Err(ConnectFailure::NotFound(missing)) => missing.into_response(),
        Err(failure @ ConnectFailure::Failed(_)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()).into_response()
        }
    }
}

/// `POST /v1/stop/{namespace}/{pod}?grace=SECONDS`: answers when it has ended,
/// with a sentence for people if that is not all.
async fn stop_pod(
    State(pods): State<Queries>,
    Path((namespace, pod)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let query = query.unwrap_or_default();
    let grace = url::form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "grace")
        .map(|(_, value)| value.parse().map(Duration::from_secs));
    let Ok(grace) = grace.transpose() else {
        return (StatusCode::UNPROCESSABLE_ENTITY, "grace must be a number of seconds")
            .into_response();
    };
    let pod = PodKey::new(namespace, pod);
    match pods.stop(pod.clone(), grace).await {
        Ok(Stopped::Removed) => StatusCode::NO_CONTENT.into_response(),
        Ok(Stopped::Kept) => format!(
            "pod {pod} has ended and does not run here again; the cluster keeps it until it is \
             deleted: kubectl delete pod --namespace {} {}\n",
            pod.namespace, pod.name
        )
        .into_response(),
        Err(StopFailure::NotFound(missing)) => missing.into_response(),
        Err(failure @ StopFailure::Failed(_)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()).into_response()
        }
    }
}
