//! What the server asks, answered by the pods' handle.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use krustlet_model::{PodKey, PodUid};
use krustlet_pod::{
    AskError, ContainerView, PodStats, PodView, Pods, StatsReport,
    outside::{ExecStreams, VisitStreams},
};
use krustlet_server::{
    ConnectFailure, ConnectStreams, ContainerUsage, ExecFailure, ExecRequest, LogRun, LogSource,
    NetworkUsage, NotFound, PodQueries, PodUsage, RefusedUsage, StopFailure, Stopped, Usage,
};
use tokio_util::sync::CancellationToken;

/// The pods' handle, and who removes those that are stopped, if they are not
/// the cluster's.
pub(crate) struct Queries {
    pub(crate) pods: Pods,
    pub(crate) stopper: Option<Arc<dyn Stopper>>,
}

/// Stops pods that were started here.
pub(crate) trait Stopper: Send + Sync + 'static {
    /// Stops and removes a pod, and waits until it is gone. False if there is
    /// none of this name.
    fn stop(&self, key: PodKey, grace: Option<Duration>) -> BoxFuture<'static, bool>;
}

impl Queries {
    fn view(&self, key: &PodKey, uid: Option<&PodUid>) -> Result<Arc<PodView>, NotFound> {
        self.pods
            .get(key)
            .filter(|view| uid.is_none_or(|uid| *uid == view.uid))
            .ok_or(NotFound::Pod)
    }
}

impl PodQueries for Queries {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.list().iter().map(|view| Arc::clone(&view.pod)).collect()
    }

    fn log(
        &self,
        pod: &PodKey,
        uid: Option<&PodUid>,
        container: &str,
        run: LogRun,
    ) -> Result<LogSource, NotFound> {
        let view = self.view(pod, uid)?;
        let found = view.container(Some(container)).ok_or_else(|| NotFound::Container {
            pod: format!("{}_{}", pod.name, pod.namespace),
            container: container.to_owned(),
        })?;
        match run {
            LogRun::Newest => newest_log(pod, found),
            LogRun::Previous => previous_log(pod, found),
            LogRun::AfterRestarts(restarts) => log_after(pod, found, restarts),
        }
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<i32, ExecFailure>> {
        let pods = self.pods.clone();
        async move {
            let ExecRequest { pod, container, command, streams } = request;
            let streams = ExecStreams {
                stdin: streams.stdin,
                stdout: streams.stdout,
                stderr: streams.stderr,
            };
            let ended = pods.exec(&pod, container.as_deref(), command, streams).await;
            match ended {
                Ok(outcome) if outcome.message.is_empty() => Ok(outcome.exit_code),
                Ok(outcome) => Err(ExecFailure::Failed(outcome.message)),
                Err(AskError::NoPod { .. }) => Err(NotFound::Pod.into()),
                Err(AskError::NoContainer { key, name }) => Err(NotFound::Container {
                    pod: format!("{}_{}", key.name, key.namespace),
                    container: name,
                }
                .into()),
                Err(AskError::NotRunning { name, .. }) => {
                    Err(ExecFailure::NotRunning(name.to_string()))
                }
                Err(error @ (AskError::Stopping { .. } | AskError::Refused(_))) => {
                    Err(ExecFailure::Failed(error.to_string()))
                }
            }
        }
        .boxed()
    }

    fn connect(
        &self,
        pod: PodKey,
        port: u16,
        streams: ConnectStreams,
    ) -> BoxFuture<'static, Result<(), ConnectFailure>> {
        let pods = self.pods.clone();
        async move {
            let ConnectStreams { input, output } = streams;
            let connected = pods.connect(&pod, port, VisitStreams { input, output }).await;
            connected.map_err(|error| of_a_pod(&error, ConnectFailure::Failed))
        }
        .boxed()
    }

    fn stop(
        &self,
        pod: PodKey,
        grace: Option<Duration>,
    ) -> BoxFuture<'static, Result<Stopped, StopFailure>> {
        if let Some(stopper) = &self.stopper {
            let end = stopper.stop(pod, grace);
            let end =
                async { if end.await { Ok(Stopped::Removed) } else { Err(NotFound::Pod.into()) } };
            return end.boxed();
        }
        let pods = self.pods.clone();
        async move {
            let stopped = pods.stop(&pod, grace).await.map(|()| Stopped::Kept);
            stopped.map_err(|error| of_a_pod(&error, StopFailure::Failed))
        }
        .boxed()
    }

    fn usage(&self) -> BoxFuture<'static, Usage> {
        let pods = self.pods.clone();
        async move {
            let mut all = Usage::default();
            for (view, stats) in pods.stats().await {
                match stats {
                    Some(stats) => all.pods.extend(usage_of(&view, stats)),
                    None => all.unknown += 1,
                }
            }
            all
        }
        .boxed()
    }
}

/// Why nothing came of what was asked of a whole pod: it is not there, or else.
fn of_a_pod<F: From<NotFound>>(error: &AskError, failed: impl FnOnce(String) -> F) -> F {
    match error {
        AskError::NoPod { .. } => NotFound::Pod.into(),
        AskError::NoContainer { .. }
        | AskError::NotRunning { .. }
        | AskError::Stopping { .. }
        | AskError::Refused(_) => failed(error.to_string()),
    }
}

/// What a pod uses, if it uses anything.
fn usage_of(view: &PodView, reports: PodStats) -> Option<PodUsage> {
    // The same for each container of the pod.
    let (_, StatsReport { network, .. }) = reports.first()?;
    let network = NetworkUsage {
        received_bytes: network.received_bytes,
        sent_bytes: network.sent_bytes,
        opened: network.opened,
        accepted: network.accepted,
        refused: network.refused,
        refused_by: RefusedUsage {
            destination: network.refusals.destination,
            policy: network.refusals.policy,
            list: network.refusals.list,
            bound: network.refusals.bound,
            unknown: network.refused_by_unknown(),
        },
        sockets: network.sockets,
    };
    let status = view.pod.status.as_ref();
    let containers = reports.into_iter().map(|(name, report)| ContainerUsage {
        started_at: status.and_then(|status| started_at(status, name.as_str())),
        name: name.to_string(),
        cpu_nanoseconds: report.cpu_ns,
        memory_bytes: report.memory_bytes,
    });
    Some(PodUsage {
        namespace: view.key.namespace.clone(),
        name: view.key.name.clone(),
        uid: view.uid.to_string(),
        started_at: status.and_then(|status| status.start_time.clone()),
        asked_at: Time(Timestamp::now()),
        network,
        containers: containers.collect(),
    })
}

/// When a container's present run began.
fn started_at(status: &PodStatus, name: &str) -> Option<Time> {
    let all = [&status.init_container_statuses, &status.container_statuses];
    let own = all.into_iter().flatten().flatten().find(|container| container.name == name)?;
    own.state.as_ref()?.running.as_ref()?.started_at.clone()
}

fn newest_log(pod: &PodKey, container: &ContainerView) -> Result<LogSource, NotFound> {
    let path = container.log.clone().ok_or_else(|| NotFound::NotStarted {
        pod: pod.name.clone(),
        container: container.name.to_string(),
        reason: container.waiting.clone().unwrap_or_else(|| "ContainerCreating".into()),
    })?;
    Ok(LogSource { path, ended: container.ended.clone() })
}

fn previous_log(pod: &PodKey, container: &ContainerView) -> Result<LogSource, NotFound> {
    let path = container.previous_log.clone().ok_or_else(|| NotFound::NoPrevious {
        pod: pod.name.clone(),
        container: container.name.to_string(),
    })?;
    Ok(LogSource { path, ended: has_ended() })
}

fn log_after(
    pod: &PodKey,
    container: &ContainerView,
    restarts: u32,
) -> Result<LogSource, NotFound> {
    let path = container.log_after(restarts).ok_or_else(|| NotFound::NoRun {
        pod: pod.name.clone(),
        container: container.name.to_string(),
        restarts,
    })?;
    let is_newest = container.log_restarts == Some(restarts);
    Ok(LogSource { path, ended: if is_newest { container.ended.clone() } else { has_ended() } })
}

fn has_ended() -> CancellationToken {
    let ended = CancellationToken::new();
    ended.cancel();
    ended
}
