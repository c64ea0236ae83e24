//! What a foreground `krustlet run` makes of the news: which logs to follow,
//! what to print, when everything has ended and with which code. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use krustlet_model::PodKey;

use super::world::{News, has_ended};

/// The pods that were started, and how far they are.
#[derive(Debug)]
pub(super) struct Following {
    waiting: BTreeSet<PodKey>,
    /// How many runs of each container are printed or were.
    printed: BTreeMap<(PodKey, String), u32>,
    exit_code: Option<i32>,
    /// Warnings of each pod, the newest last: what is tried again fails again.
    said: BTreeMap<PodKey, Vec<String>>,
}

/// The reason of a container's end of which nothing is known.
const UNKNOWN: &str = "ContainerStatusUnknown";

/// Warnings of a pod that are not said again.
const SAID: usize = 8;

/// Something to do about a piece of news.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Todo {
    /// Print this log until its run ends. Those of one container come in the
    /// order of its runs.
    Print(RunLog),
    /// Say this on standard error.
    Say(String),
    /// Say this if standard error is a terminal.
    SayProgress(String),
}

/// The log of one run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunLog {
    /// Which pod.
    pub(super) pod: PodKey,
    /// Which container.
    pub(super) container: String,
    /// How often it had been restarted when the run began.
    pub(super) restarts: u32,
}

impl Following {
    /// Follows these pods.
    pub(super) fn new(pods: &[PodKey]) -> Self {
        let waiting = pods.iter().cloned().collect();
        Self { waiting, printed: BTreeMap::new(), exit_code: None, said: BTreeMap::new() }
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
                let text = format!("{reason}: {}", bare(message));
                if *warning {
                    self.say(pod, text).into_iter().collect()
                } else {
                    vec![Todo::SayProgress(text)]
                }
            }
            News::Event { .. } => Vec::new(),
        }
    }

    /// Says a warning that was not said lately.
    fn say(&mut self, pod: &PodKey, text: String) -> Option<Todo> {
        let said = self.said.entry(pod.clone()).or_default();
        if said.contains(&text) {
            return None;
        }
        if said.len() == SAID {
            said.remove(0);
        }
        said.push(text.clone());
        Some(Todo::Say(text))
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
            let of = (key.clone(), status.name.clone());
            let printed = self.printed.entry(of).or_default();
            // Short runs may have come and gone between two statuses.
            for restarts in *printed..runs(status) {
                let (pod, container) = (key.clone(), status.name.clone());
                todo.push(Todo::Print(RunLog { pod, container, restarts }));
            }
            *printed = (*printed).max(runs(status));
        }
        if has_ended(pod) {
            self.waiting.remove(&key);
            let code = exit_code(pod);
            if code != 0 {
                self.exit_code.get_or_insert(code);
                todo.extend(reasons(pod).filter_map(|text| self.say(&key, text)));
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

/// How many runs of a container were entered, so that there are logs of them.
fn runs(status: &ContainerStatus) -> u32 {
    let state = status.state.as_ref();
    let has_begun = state.is_some_and(|state| {
        state.running.is_some()
            || state.terminated.as_ref().is_some_and(|ended| ended.started_at.is_some())
    });
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let last = last.filter(|last| last.started_at.is_some());
    let count = match last {
        _ if has_begun => status.restart_count.saturating_add(1),
        // It waits to be restarted, or its next run is being made.
        Some(last) if last.container_id == status.container_id => {
            status.restart_count.saturating_add(1)
        }
        Some(_) => status.restart_count,
        None => 0,
    };
    u32::try_from(count).unwrap_or(0)
}

fn exit_code(pod: &Pod) -> i32 {
    let codes = statuses(pod)
        .filter_map(|status| status.state.as_ref()?.terminated.as_ref())
        .map(|ended| ended.exit_code);
    let failed = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Failed");
    codes.into_iter().find(|code| *code != 0).unwrap_or(i32::from(failed))
}

/// A message without the words by which kubelets begin those of failures.
fn bare(message: &str) -> &str {
    let begun = ["Error: ", "Pod was rejected: "];
    begun.iter().find_map(|words| message.strip_prefix(words)).unwrap_or(message)
}

/// Why a pod failed, where something more than a code is known.
fn reasons(pod: &Pod) -> impl Iterator<Item = String> {
    let own = pod.status.as_ref().and_then(|status| {
        let message = status.message.as_deref()?;
        let reason = status.reason.as_deref().unwrap_or("Failed");
        Some(format!("{reason}: {}", bare(message)))
    });
    let containers = statuses(pod).filter_map(|status| {
        let ended = status.state.as_ref()?.terminated.as_ref()?;
        let message = ended.message.as_deref().filter(|message| !message.is_empty())?;
        // Of one that never began nothing was lost.
        let has_begun = ended.reason.as_deref() != Some(UNKNOWN) || ended.started_at.is_some();
        (ended.exit_code != 0 && has_begun).then(|| format!("{}: {message}", status.name))
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

    fn printed(todo: &[Todo]) -> Vec<u32> {
        let runs = todo.iter().map(|todo| match todo {
            Todo::Print(run) => run.restarts,
            Todo::Say(_) | Todo::SayProgress(_) => panic!("{todo:?}"),
        });
        runs.collect()
    }

    #[test]
    fn each_run_is_printed_once() {
        let mut following = following();
        let running = |restarts| pod("Running", container(restarts, json!({"running": {}})));
        assert_eq!(printed(&following.hear(&running(0))), [0]);
        assert!(printed(&following.hear(&running(0))).is_empty());
        assert_eq!(printed(&following.hear(&running(1))), [1]);
    }

    #[test]
    fn runs_that_no_status_showed_are_printed_too() {
        let mut following = following();
        let waiting = |restarts: i32, id: &str, last: &str| {
            pod(
                "Running",
                json!([{
                    "name": "app", "image": "", "imageID": "", "ready": false,
                    "restartCount": restarts, "containerID": id,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {
                        "exitCode": 1, "startedAt": "2026-11-24T10:00:00Z", "containerID": last,
                    }},
                }]),
            )
        };
        let never = pod("Pending", container(0, json!({"waiting": {}})));
        assert!(printed(&following.hear(&never)).is_empty());
        assert_eq!(printed(&following.hear(&waiting(0, "a", "a"))), [0]);
        let made = following.hear(&waiting(1, "b", "a"));
        assert!(printed(&made).is_empty(), "b has not begun");
        assert_eq!(printed(&following.hear(&waiting(2, "c", "c"))), [1, 2]);
    }

    #[test]
    fn the_exit_code_is_the_containers() {
        let mut following = following();
        let ended = json!({"terminated": {"exitCode": 3, "startedAt": "2026-11-24T10:00:00Z"}});
        let todo = following.hear(&pod("Failed", container(0, ended)));
        assert_eq!(printed(&todo), [0]);
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
        assert_eq!(todo, [Todo::Say("OutOfcpu: no".into())]);
        assert_eq!(following.exit_code(), 1);
    }

    #[test]
    fn what_fails_again_is_said_once() {
        let mut following = following();
        let event = |reason: &str, message: &str| News::Event {
            pod: PodKey::new("default", "web"),
            warning: true,
            reason: reason.into(),
            message: message.into(),
        };
        let in_use = event("Failed", "Error: port 8080 is in use");
        let said = [Todo::Say("Failed: port 8080 is in use".into())];
        assert_eq!(following.hear(&in_use), said);
        assert_eq!(following.hear(&in_use), []);
        assert_eq!(following.hear(&event("BackOff", "soon")), [Todo::Say("BackOff: soon".into())]);
        assert_eq!(following.hear(&in_use), []);
        // What others of it follow is said again.
        for number in 0..SAID {
            assert_eq!(following.hear(&event("Failed", &number.to_string())).len(), 1);
        }
        assert_eq!(following.hear(&in_use), said);

        // An event and the status say why it was refused.
        assert_eq!(following.hear(&event("Odd", "no")).len(), 1);
        let refused: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web"},
            "status": {"phase": "Failed", "reason": "Odd", "message": "Pod was rejected: no"},
        }))
        .unwrap();
        assert_eq!(following.hear(&News::Pod(Arc::new(refused))), []);
    }

    #[test]
    fn a_container_that_never_began_is_not_missed() {
        let mut following = following();
        let ended = json!({"terminated": {
            "exitCode": 137, "reason": UNKNOWN, "message": "The container could not be located",
        }});
        assert_eq!(following.hear(&pod("Failed", container(0, ended))), []);
        assert!(following.is_over());
        assert_eq!(following.exit_code(), 137);
    }

    #[test]
    fn other_pods_are_none_of_our_business() {
        let mut following = Following::new(&[PodKey::new("default", "other")]);
        assert!(following.hear(&pod("Failed", json!([]))).is_empty());
        assert!(!following.is_over());
    }
}
