//! Reports of pods, against an API server that refuses, waits and goes away.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use krustlet_cluster::{DeleteError, PodSet, StatusWriter, status::status};
use krustlet_model::{PodKey, PodUid};
use serde_json::{Value, json};
use support::{Fault, Running, Server, soon};
use tokio::{sync::watch, time::Instant};

fn stored(server: &Server, name: &str) -> Arc<Pod> {
    let object = json!({
        "metadata": { "namespace": "ns", "name": name },
        "spec": { "nodeName": "n", "containers": [] },
    });
    Arc::new(serde_json::from_value(server.put("pods", object)).unwrap())
}

fn phase(phase: &str) -> PodStatus {
    PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() }
}

fn shown(server: &Server, name: &str) -> Value {
    server.get("pods", "ns", name).map(|pod| pod["status"]["phase"].clone()).unwrap_or_default()
}

fn start(server: &Server) -> (Running, StatusWriter) {
    let pods = watch::Sender::new(PodSet::default());
    let (writer, task) = status(&server.cluster(), pods.subscribe());
    let mut running = Running::new();
    running.start(|stop| task.run(stop));
    (running, writer)
}

fn uid(pod: &Pod) -> PodUid {
    PodUid::new(pod.metadata.uid.clone().unwrap())
}

fn key(pod: &Pod) -> PodKey {
    PodKey::new("ns", pod.metadata.name.clone().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_report_is_one_patch_with_the_pods_uid_and_nothing_else() {
    let server = Server::new();
    let pod = stored(&server, "a");
    let (running, writer) = start(&server);
    let before = Instant::now();
    writer.report(&pod, phase("Running"));
    server.until("it is written", |server| shown(server, "a") == "Running").await;
    assert_eq!(Instant::now(), before, "it left at once");
    let asked = server.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].method, "PATCH");
    assert!(asked[0].uri.starts_with("/api/v1/namespaces/ns/pods/a/status"));
    let expected = json!({
        "metadata": { "uid": pod.metadata.uid }, "status": { "phase": "Running" },
    });
    assert_eq!(asked[0].body, expected);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_server_knows_is_not_written_again() {
    let server = Server::new();
    let pod = stored(&server, "a");
    let (running, writer) = start(&server);
    writer.report(&pod, phase("Running"));
    server.until("it is written", |server| shown(server, "a") == "Running").await;
    writer.report(&pod, phase("Running"));
    running.stop().await;
    assert_eq!(server.count("PATCH", ""), 1);

    // Nor by the next agent, which finds it in the pod.
    let found = server.get("pods", "ns", "a").unwrap();
    let pod = Arc::new(serde_json::from_value(found).unwrap());
    let (running, writer) = start(&server);
    writer.report(&pod, phase("Running"));
    running.stop().await;
    assert_eq!(server.count("PATCH", ""), 1);
}

#[tokio::test(start_paused = true)]
async fn reports_that_wait_are_replaced_by_newer_ones() {
    let server = Server::new();
    let pod = stored(&server, "a");
    let (running, writer) = start(&server);
    server.hold(true);
    writer.report(&pod, phase("Pending"));
    server.until("one is in flight", |server| server.count("PATCH", "") == 1).await;
    for n in 0..50 {
        let status = PodStatus { message: Some(n.to_string()), ..phase("Running") };
        writer.report(&pod, status);
        tokio::task::yield_now().await;
    }
    assert_eq!(server.count("PATCH", ""), 1, "one at a time for each pod");
    server.hold(false);
    server.until("the newest is written", |server| shown(server, "a") == "Running").await;
    let pod = server.get("pods", "ns", "a").unwrap();
    assert_eq!(pod["status"]["message"], "49");
    assert_eq!(server.count("PATCH", ""), 2);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_pods_are_written_side_by_side_within_a_bound() {
    let server = Server::new();
    let pods: Vec<_> = (0..40).map(|n| stored(&server, &format!("p{n}"))).collect();
    let (running, writer) = start(&server);
    server.hold(true);
    for pod in &pods {
        writer.report(pod, phase("Running"));
    }
    server.until("the bound is reached", |server| server.count("PATCH", "") == 16).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.count("PATCH", ""), 16);
    server.hold(false);
    server
        .until("all are written", |server| {
            (0..40).all(|n| shown(server, &format!("p{n}")) == "Running")
        })
        .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_report_is_tried_again_when_the_server_says() {
    let server = Server::new();
    let pod = stored(&server, "a");
    server.fail("PATCH", "", 1, Fault::Refuse(429, Some(20)));
    server.fail("PATCH", "", 2, Fault::Refuse(500, None));
    server.fail("PATCH", "", 1, Fault::Break);
    let (running, writer) = start(&server);
    let before = Instant::now();
    writer.report(&pod, phase("Running"));
    server.until("it is written", |server| shown(server, "a") == "Running").await;
    assert!(before.elapsed() >= Duration::from_secs(20));
    assert_eq!(server.count("PATCH", ""), 5);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_status_never_lands_on_another_pod_of_the_same_name() {
    let server = Server::new();
    let old = stored(&server, "a");
    server.remove("pods", "ns", "a");
    stored(&server, "a");
    let (running, writer) = start(&server);
    writer.report(&old, phase("Failed"));
    running.stop().await;
    assert_eq!(shown(&server, "a"), Value::Null);
    assert_eq!(server.asked().len(), 1, "and gives up");
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_looked_into_and_tried_again() {
    let server = Server::new();
    let pod = stored(&server, "a");
    server.fail("PATCH", "", 2, Fault::Refuse(409, None));
    let (running, writer) = start(&server);
    writer.report(&pod, phase("Running"));
    server.until("it is written", |server| shown(server, "a") == "Running").await;
    assert_eq!(server.count("GET", "/pods/a"), 2);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_status_that_is_invalid_is_not_repeated_but_the_next_one_is_written() {
    let server = Server::new();
    let pod = stored(&server, "a");
    server.fail("PATCH", "", 1, Fault::Refuse(422, None));
    let (running, writer) = start(&server);
    writer.report(&pod, phase("Pending"));
    server.until("it looks", |server| server.count("GET", "/pods/a") == 1).await;
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert_eq!(server.count("PATCH", ""), 1);
    writer.report(&pod, phase("Running"));
    server.until("it is written", |server| shown(server, "a") == "Running").await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_deleted_after_its_last_status_is_written() {
    let server = Server::new();
    let pod = stored(&server, "a");
    server.fail("PATCH", "", 2, Fault::Refuse(500, None));
    server.fail("DELETE", "", 2, Fault::Refuse(500, None));
    let (running, writer) = start(&server);
    writer.report(&pod, phase("Succeeded"));
    soon("deletion", writer.delete(&key(&pod), &uid(&pod))).await.unwrap();
    let methods: Vec<_> = server.asked().into_iter().map(|asked| asked.method).collect();
    assert_eq!(methods, ["PATCH", "PATCH", "PATCH", "DELETE", "DELETE", "DELETE"]);
    let body = server.asked().pop().unwrap().body;
    assert_eq!(body["gracePeriodSeconds"], 0);
    assert_eq!(body["preconditions"]["uid"], json!(pod.metadata.uid));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn deleting_a_pod_that_is_gone_or_another_is_done() {
    let server = Server::new();
    let old = stored(&server, "a");
    server.remove("pods", "ns", "a");
    let (running, writer) = start(&server);
    soon("gone", writer.delete(&key(&old), &uid(&old))).await.unwrap();
    stored(&server, "a");
    soon("another", writer.delete(&key(&old), &uid(&old))).await.unwrap();
    assert!(server.get("pods", "ns", "a").is_some());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_still_waits_is_written_when_the_agent_stops() {
    let server = Server::new();
    let pod = stored(&server, "a");
    server.fail("PATCH", "", 2, Fault::Refuse(500, None));
    let (running, writer) = start(&server);
    writer.report(&pod, phase("Succeeded"));
    running.stop().await;
    assert_eq!(shown(&server, "a"), "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_does_not_keep_the_agent_from_stopping() {
    let server = Server::new();
    let pod = stored(&server, "a");
    server.set_down(true);
    let (running, writer) = start(&server);
    writer.report(&pod, phase("Succeeded"));
    let (key, uid) = (key(&pod), uid(&pod));
    let deletion = writer.delete(&key, &uid);
    let (deleted, ()) = tokio::join!(deletion, running.stop());
    assert_eq!(deleted, Err(DeleteError::Stopping));
    assert_eq!(writer.delete(&key, &uid).await, Err(DeleteError::Stopping));
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_every_status_is_right_within_thirty_seconds() {
    let server = Server::new();
    let pods: Vec<_> = (0..300).map(|n| stored(&server, &format!("p{n}"))).collect();
    server.set_down(true);
    let (running, writer) = start(&server);
    for minute in 0..5 {
        for pod in &pods {
            let status = PodStatus { message: Some(minute.to_string()), ..phase("Running") };
            writer.report(pod, status);
        }
        tokio::time::sleep(Duration::from_mins(1)).await;
    }
    let tries = server.asked().len();
    assert!(tries < 150, "{tries} tries in five minutes");
    server.set_down(false);
    let before = Instant::now();
    server
        .until("all are written", |server| {
            (0..300).all(|n| shown(server, &format!("p{n}")) == "Running")
        })
        .await;
    assert!(before.elapsed() < Duration::from_secs(30));
    assert_eq!(server.asked().len() - tries, 300, "each once");
    running.stop().await;
}
