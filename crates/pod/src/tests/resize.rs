//! Other resources for pods that run, and containers that are added to them.

use krustlet_model::status::{EPHEMERAL_MESSAGE, EPHEMERAL_REASON};
use serde_json::{Value, json};

use super::bed::{Bed, Call, is_ready, main_of, pod};

const MIB: u64 = 1 << 20;

/// A pod whose container may use so much memory, and asks for so much CPU.
fn sized(memory: &str, cpu: &str) -> Value {
    pod(json!({"restartPolicy": "Always", "containers": [{
        "name": "main",
        "image": "web:1",
        "resources": {"limits": {"memory": memory}, "requests": {"cpu": cpu, "memory": memory}},
    }]}))
}

fn generation(mut pod: Value, generation: i64) -> Value {
    pod["metadata"]["generation"] = json!(generation);
    pod
}

/// The memory limit that a status shows of the container.
fn shown(status: &k8s_openapi::api::core::v1::PodStatus) -> Value {
    serde_json::to_value(main_of(status)).unwrap()["resources"]["limits"]["memory"].clone()
}

fn condition(status: &k8s_openapi::api::core::v1::PodStatus, type_: &str) -> Option<String> {
    let found = status.conditions.iter().flatten().find(|condition| condition.type_ == type_)?;
    Some(found.reason.clone().unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_container_that_runs_is_told_its_new_limits() {
    let mut bed = Bed::new().await;
    bed.put(sized("64Mi", "1"));
    let first = bed.until_status("u", "it runs", is_ready).await;
    assert_eq!(shown(&first), "64Mi");
    bed.put(generation(sized("128Mi", "2"), 2));
    let status = bed.until_status("u", "it is larger", |status| shown(status) == "128Mi").await;
    assert_eq!(main_of(&status).container_id, main_of(&first).container_id);
    assert_eq!(main_of(&status).restart_count, 0);
    assert_eq!(
        serde_json::to_value(&main_of(&status).allocated_resources).unwrap(),
        json!({"cpu": "2", "memory": "128Mi"}),
    );
    bed.until("it is told", |world| world.has_event("ResizeCompleted")).await;
    bed.shared.with(|world| {
        assert_eq!(world.count(&Call::Update("main".into(), Some(128 * MIB))), 1);
        assert!(world.has_event("ResizeStarted"));
    });

    // The next agent has nothing to do, and what changes before it comes is done.
    let mut left = bed.stop().await;
    let uid = krustlet_model::PodUid::new("u");
    let smaller = serde_json::from_value(generation(sized("32Mi", "2"), 3)).unwrap();
    left.set.insert(uid, std::sync::Arc::new(smaller));
    let bed = left.next(true).await;
    let status = bed.until_status("u", "it is smaller", |status| shown(status) == "32Mi").await;
    assert_eq!(main_of(&status).restart_count, 0);
    bed.shared.with(|world| {
        assert_eq!(world.count(&Call::Update("main".into(), Some(128 * MIB))), 1);
        assert_eq!(world.count(&Call::Update("main".into(), Some(32 * MIB))), 1);
    });
}

#[tokio::test(start_paused = true)]
async fn a_policy_has_the_container_run_again() {
    let mut bed = Bed::new().await;
    let sized = |memory: &str| {
        let mut pod = sized(memory, "1");
        pod["spec"]["restartPolicy"] = json!("Never");
        pod["spec"]["containers"][0]["resizePolicy"] =
            json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        pod
    };
    bed.put(sized("64Mi"));
    bed.until_status("u", "it runs", is_ready).await;
    bed.put(generation(sized("128Mi"), 2));
    let status = bed
        .until_status("u", "it runs again", |status| {
            is_ready(status) && main_of(status).restart_count == 1
        })
        .await;
    assert_eq!(shown(&status), "128Mi");
    bed.until("it is told", |world| world.has_event("ResizeCompleted")).await;
    bed.shared.with(|world| {
        assert!(!world.calls.iter().any(|(_, call)| matches!(call, Call::Update(..))));
        assert_eq!(world.launches.last().unwrap().limits.memory_bytes, Some(128 * MIB));
        let (_, message) = world.events.iter().find(|(reason, _)| reason == "Killing").unwrap();
        assert_eq!(message, "Container main resize requires restart");
    });
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_waits_until_it_does() {
    let mut bed = Bed::new().await;
    // Of the node's four.
    let mut other = sized("64Mi", "3");
    other["metadata"]["uid"] = json!("v");
    other["metadata"]["name"] = json!("other");
    bed.put(other);
    bed.put(sized("64Mi", "1"));
    bed.until_status("u", "it runs", is_ready).await;
    bed.until_status("v", "the other runs", is_ready).await;
    bed.put(generation(sized("128Mi", "2"), 2));
    let is_pending = |status: &_| condition(status, "PodResizePending").is_some();
    let status = bed.until_status("u", "it waits", is_pending).await;
    assert_eq!(condition(&status, "PodResizePending").as_deref(), Some("Deferred"));
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(shown(&status), "64Mi");
    let requests = serde_json::to_value(&main_of(&status).allocated_resources).unwrap();
    assert_eq!(requests, json!({"cpu": "1", "memory": "64Mi"}));
    bed.until("it is told", |world| world.has_event("ResizeDeferred")).await;
    // Nor is it forgotten by the next agent.
    let mut bed = bed.kill().await.next(true).await;
    let status = bed.until_status("u", "it waits still", is_pending).await;
    assert_eq!(shown(&status), "64Mi");

    bed.delete("v", 1);
    let status = bed.until_status("u", "it has room", |status| shown(status) == "128Mi").await;
    assert!(is_ready(&status));
    bed.until_status("u", "nothing is pending", |status| !is_pending(status)).await;
}

#[tokio::test(start_paused = true)]
async fn limits_that_a_sandbox_does_not_take_are_tried_again() {
    let mut bed = Bed::new().await;
    bed.put(sized("64Mi", "1"));
    bed.until_status("u", "it runs", is_ready).await;
    bed.shared.with(|world| world.refuse_limits = true);
    bed.put(generation(sized("1Mi", "1"), 2));
    let is_failed =
        |status: &_| condition(status, "PodResizeInProgress").as_deref() == Some("Error");
    let status = bed.until_status("u", "it fails", is_failed).await;
    assert_eq!(shown(&status), "64Mi");
    let update = Call::Update("main".into(), Some(MIB));
    bed.until("it is tried again", |world| world.count(&update) >= 3).await;
    let errors = |world: &mut super::bed::World| {
        world.events.iter().filter(|(reason, _)| reason == "ResizeError").count()
    };
    assert_eq!(bed.shared.with(errors), 1, "once is enough");
    bed.shared.with(|world| world.refuse_limits = false);
    let status = bed.until_status("u", "it is smaller", |status| shown(status) == "1Mi").await;
    assert_eq!(condition(&status, "PodResizeInProgress"), None);
}

#[tokio::test(start_paused = true)]
async fn a_debugger_is_refused_aloud_and_the_pod_goes_on() {
    let mut bed = Bed::new().await;
    bed.put(sized("64Mi", "1"));
    bed.until_status("u", "it runs", is_ready).await;
    let mut debugged = generation(sized("64Mi", "1"), 2);
    debugged["spec"]["ephemeralContainers"] = json!([{"name": "debugger", "image": "busybox"}]);
    bed.put(debugged.clone());
    let status = bed
        .until_status("u", "it is told", |status| status.ephemeral_container_statuses.is_some())
        .await;
    assert!(is_ready(&status));
    let told = |world: &mut super::bed::World| {
        let event = (EPHEMERAL_REASON.to_owned(), EPHEMERAL_MESSAGE.to_owned());
        world.events.iter().filter(|one| **one == event).count()
    };
    assert_eq!(bed.shared.with(told), 1);
    debugged["metadata"]["labels"] = json!({"a": "b"});
    bed.put(debugged);
    let bed = bed.stop().await.next(true).await;
    bed.until_status("u", "it is there", is_ready).await;
    assert_eq!(bed.shared.with(told), 1, "once for each");
}
