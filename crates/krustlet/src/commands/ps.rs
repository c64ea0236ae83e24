//! `krustlet ps`: pods as `kubectl get pods` shows them.

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use krustlet_model::time::from_api_time;

use crate::{cli::PsArgs, client::Local, output, paths::Root};

/// Prints the table.
pub(crate) async fn run(args: PsArgs) -> Result<()> {
    let local = Local::new(Root::new(args.root.root_dir).socket());
    let pods = super::pods(&local).await?;
    let now = Timestamp::now();
    let rows: Vec<_> =
        pods.iter().filter(|pod| args.all || !has_ended(pod)).map(|pod| row(pod, now)).collect();
    let text =
        output::table(&["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP"], &rows);
    Ok(output::print(&text)?)
}

fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

fn statuses(pod: &Pod) -> &[ContainerStatus] {
    pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default()
}

fn row(pod: &Pod, now: Timestamp) -> Vec<String> {
    let statuses = statuses(pod);
    let wanted = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    let ready = statuses.iter().filter(|status| status.ready).count();
    let restarts: i32 = statuses.iter().map(|status| status.restart_count).sum();
    let created = pod.metadata.creation_timestamp.as_ref().map_or(now, from_api_time);
    vec![
        pod.metadata.namespace.clone().unwrap_or_default(),
        pod.metadata.name.clone().unwrap_or_default(),
        format!("{ready}/{wanted}"),
        status(pod),
        restarts.to_string(),
        output::age(created, now),
        address(pod).unwrap_or("<none>").to_owned(),
    ]
}

/// The first of its addresses.
fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|address| !address.is_empty())
}

/// One word for what a pod does.
///
/// Source: kubectl's printer, `printPod` in `pkg/printers/internalversion/printers.go`:
/// the last container that waits or ended for a reason gives the word.
fn status(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "Terminating".into();
    }
    let reason = pod.status.as_ref().and_then(|status| status.reason.clone());
    let init = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_deref());
    let waiting_init = init.unwrap_or_default().iter().find_map(|status| {
        let word = word(status)?;
        (!matches!(word, "Completed" | "PodInitializing")).then(|| format!("Init:{word}"))
    });
    let container = statuses(pod).iter().rev().find_map(word).map(str::to_owned);
    waiting_init.or(container).or(reason).unwrap_or_else(|| phase(pod).to_owned())
}

fn word(status: &ContainerStatus) -> Option<&str> {
    let state = status.state.as_ref()?;
    let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref());
    waiting.or_else(|| state.terminated.as_ref().and_then(|ended| ended.reason.as_deref()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {"containers": [{"name": "app"}]},
            "status": status,
        }))
        .unwrap()
    }

    fn container(state: serde_json::Value) -> serde_json::Value {
        json!({"name": "app", "ready": false, "restartCount": 2, "image": "", "imageID": "", "state": state})
    }

    #[test]
    fn the_status_is_the_word_that_kubectl_would_print() {
        let waiting = container(json!({"waiting": {"reason": "CrashLoopBackOff"}}));
        let ended = container(json!({"terminated": {"exitCode": 0, "reason": "Completed"}}));
        let running = container(json!({"running": {}}));
        for (status_of, wanted) in [
            (json!({"phase": "Running", "containerStatuses": [waiting]}), "CrashLoopBackOff"),
            (json!({"phase": "Succeeded", "containerStatuses": [ended]}), "Completed"),
            (json!({"phase": "Running", "containerStatuses": [running]}), "Running"),
            (json!({"phase": "Failed", "reason": "OutOfcpu"}), "OutOfcpu"),
            (
                json!({"phase": "Pending", "initContainerStatuses": [waiting]}),
                "Init:CrashLoopBackOff",
            ),
        ] {
            assert_eq!(status(&pod(status_of)), wanted);
        }
    }

    #[test]
    fn a_row_counts_ready_containers_and_restarts() {
        let mut status =
            json!({"phase": "Running", "containerStatuses": [container(json!({"running": {}}))]});
        let found = row(&pod(status.clone()), Timestamp::now());
        assert_eq!(found, ["default", "web", "0/1", "Running", "2", "0s", "<none>"]);
        status["podIP"] = "10.99.0.2".into();
        assert_eq!(row(&pod(status), Timestamp::now())[6], "10.99.0.2");
    }
}
