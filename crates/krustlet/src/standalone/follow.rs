//! What a foreground `krustlet run` makes of the news: which logs to follow,
//! what to print, when everything has ended and with which code. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use krustlet_model::PodKey;

use super::world::{News, has_ended};

/// The pods that were started, and how far they are.
#[derive(Debug)]
pub(super) struct Following {
    waiting: BTreeSet<PodKey>,
    /// Runs whose logs are followed or were.
    followed: BTreeSet<(PodKey, String, i32)>,
    exit_code: Option<i32>,
}

/// Something to do about a piece of news.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Todo {
    /// Print the log of this container's current run until it ends.
    FollowLog {
        /// Which pod.
        pod: PodKey,
        /// Which container.
        container: String,
    },
    /// Say this on standard error.
    Say {
        /// What.
        text: String,
        /// Whether it is progress, which only a terminal wants to see.
        is_progress: bool,
    },
}

impl Following {
    /// Follows these pods.
    pub(super) fn new(pods: &[PodKey]) -> Self {
        let waiting = pods.iter().cloned().collect();
        Self { waiting, followed: BTreeSet::new(), exit_code: None }
    }

    /// Whether every pod has ended.
    pub(super) fn is_over(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The pods that have not ended.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &PodKey> {
        self.waiting.iter()
    }

    /// The first code other than 0 of any container, in the order of the spec
    /// and of the pods' ends; 1 for a pod that failed without one.
    pub(super) fn exit_code(&self) -> i32 {
        self.exit_code.unwrap_or(0)
    }

    /// What follows from a piece of news.
    pub(super) fn hear(&mut self, news: &News) -> Vec<Todo> {
        match news {
            News::Pod(pod) => self.pod(pod),
            News::Gone(key) => {
                self.waiting.remove(key);
                Vec::new()
            }
            News::Event { pod, warning, reason, message } if self.waiting.contains(pod) => {
                let text = format!("{reason}: {message}");
                vec![Todo::Say { text, is_progress: !warning }]
            }
            News::Event { .. } => Vec::new(),
        }
    }

    fn pod(&mut self, pod: &Pod) -> Vec<Todo> {
        let key = PodKey::new(
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        if !self.waiting.contains(&key) {
            return Vec::new();
        }
        let mut todo = Vec::new();
        for status in statuses(pod) {
            let run = (key.clone(), status.name.clone(), status.restart_count);
            if has_begun(status) && self.followed.insert(run) {
                let container = status.name.clone();
                todo.push(Todo::FollowLog { pod: key.clone(), container });
            }
        }
        if has_ended(pod) {
            self.waiting.remove(&key);
            let code = exit_code(pod);
            if code != 0 {
                self.exit_code.get_or_insert(code);
                todo.extend(reasons(pod).map(|text| Todo::Say { text, is_progress: false }));
            }
        }
        todo
    }
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let app = status.and_then(|status| status.container_statuses.as_ref());
    init.into_iter().flatten().chain(app.into_iter().flatten())
}

/// Whether the current run was entered, so that there is a log.
fn has_begun(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| {
        state.running.is_some()
            || state.terminated.as_ref().is_some_and(|ended| ended.started_at.is_some())
    })
}

fn exit_code(pod: &Pod) -> i32 {
    let codes = statuses(pod)
        .filter_map(|status| status.state.as_ref()?.terminated.as_ref())
        .map(|ended| ended.exit_code);
    let failed = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Failed");
    codes.into_iter().find(|code| *code != 0).unwrap_or(i32::from(failed))
}

/// Why a pod failed, where something more than a code is known.
fn reasons(pod: &Pod) -> impl Iterator<Item = String> {
    let own = pod.status.as_ref().and_then(|status| {
        let message = status.message.as_deref()?;
        Some(format!("{}: {message}", status.reason.as_deref().unwrap_or("Failed")))
    });
    let containers = statuses(pod).filter_map(|status| {
        let ended = status.state.as_ref()?.terminated.as_ref()?;
        let message = ended.message.as_deref().filter(|message| !message.is_empty())?;
        (ended.exit_code != 0).then(|| format!("{}: {message}", status.name))
    });
    own.into_iter().chain(containers).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn pod(phase: &str, containers: Value) -> News {
        let pod = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web"},
            "status": {"phase": phase, "containerStatuses": containers},
        }));
        News::Pod(Arc::new(pod.unwrap()))
    }

    fn container(restarts: i32, state: Value) -> Value {
        json!([{"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": restarts, "state": state}])
    }

    fn following() -> Following {
        Following::new(&[PodKey::new("default", "web")])
    }

    #[test]
    fn each_run_is_followed_once() {
        let mut following = following();
        let running = |restarts| pod("Running", container(restarts, json!({"running": {}})));
        assert_eq!(following.hear(&running(0)).len(), 1);
        assert_eq!(following.hear(&running(0)).len(), 0);
        assert_eq!(following.hear(&running(1)).len(), 1);
    }

    #[test]
    fn the_exit_code_is_the_containers() {
        let mut following = following();
        let ended = json!({"terminated": {"exitCode": 3, "startedAt": "2026-11-24T10:00:00Z"}});
        let todo = following.hear(&pod("Failed", container(0, ended)));
        assert!(matches!(todo[0], Todo::FollowLog { .. }));
        assert!(following.is_over());
        assert_eq!(following.exit_code(), 3);
    }

    #[test]
    fn a_pod_that_was_refused_says_why_and_fails() {
        let mut following = following();
        let refused: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web"},
            "status": {"phase": "Failed", "reason": "OutOfcpu", "message": "no"},
        }))
        .unwrap();
        let todo = following.hear(&News::Pod(Arc::new(refused)));
        assert_eq!(todo, [Todo::Say { text: "OutOfcpu: no".into(), is_progress: false }]);
        assert_eq!(following.exit_code(), 1);
    }

    #[test]
    fn other_pods_are_none_of_our_business() {
        let mut following = Following::new(&[PodKey::new("default", "other")]);
        assert!(following.hear(&pod("Failed", json!([]))).is_empty());
        assert!(!following.is_over());
    }
}
