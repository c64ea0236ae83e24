//! The pods of a node, as a misbehaving API server tells of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use krustlet_cluster::{PodSet, pods::pods};
use serde_json::{Value, json};
use support::{Fault, Running, Server, soon};
use tokio::sync::watch;

fn pod(name: &str, label: &str) -> Value {
    json!({
        "metadata": { "namespace": "ns", "name": name, "labels": { "is": label } },
        "spec": { "nodeName": "n", "containers": [] },
    })
}

/// The names and labels of a set.
fn names(set: &PodSet) -> Vec<String> {
    let mut names: Vec<_> = set
        .pods
        .values()
        .map(|pod| {
            let label = &pod.metadata.labels.as_ref().unwrap()["is"];
            format!("{}={label}", pod.metadata.name.as_ref().unwrap())
        })
        .collect();
    names.sort();
    names
}

async fn shows(sets: &mut watch::Receiver<PodSet>, expected: &[&str]) {
    let what = format!("the set is {expected:?}");
    soon(&what, sets.wait_for(|set| set.synced && names(set) == expected)).await.unwrap();
}

fn start(server: &Server) -> (Running, watch::Receiver<PodSet>) {
    let node = watch::Sender::new(Some(Arc::new(Node::default())));
    let (sets, task) = pods(&server.cluster(), "n", node.subscribe());
    let mut running = Running::new();
    running.start(|stop| task.run(stop));
    (running, sets)
}

#[tokio::test(start_paused = true)]
async fn the_set_is_the_newest_state_of_this_nodes_pods() {
    let server = Server::new();
    server.put("pods", pod("a", "1"));
    let mut elsewhere = pod("x", "1");
    elsewhere["spec"]["nodeName"] = json!("other");
    server.put("pods", elsewhere);
    let (running, mut sets) = start(&server);
    assert!(!sets.borrow().synced);
    shows(&mut sets, &["a=1"]).await;

    server.put("pods", pod("a", "2"));
    server.put("pods", pod("b", "1"));
    shows(&mut sets, &["a=2", "b=1"]).await;
    server.remove("pods", "ns", "a");
    shows(&mut sets, &["b=1"]).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_list_comes_in_pages() {
    let server = Server::new();
    for n in 0..1001 {
        server.put("pods", pod(&format!("p{n}"), "1"));
    }
    let (running, mut sets) = start(&server);
    soon("all", sets.wait_for(|set| set.pods.len() == 1001)).await.unwrap();
    assert_eq!(server.lists("pods"), 3);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_before_the_node_is_known() {
    let server = Server::new();
    server.put("pods", pod("a", "1"));
    let node = watch::Sender::new(None);
    let (mut sets, task) = pods(&server.cluster(), "n", node.subscribe());
    let mut running = Running::new();
    running.start(|stop| task.run(stop));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(server.asked().is_empty());
    node.send_replace(Some(Arc::new(Node::default())));
    shows(&mut sets, &["a=1"]).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_is_resumed_without_a_list() {
    let server = Server::new();
    let (running, mut sets) = start(&server);
    shows(&mut sets, &[]).await;
    for round in 0..5 {
        server.until("a watch", |server| server.watches("pods") > round).await;
        server.put("pods", pod("a", &round.to_string()));
        shows(&mut sets, &[&format!("a={round}")]).await;
        server.end_watches();
    }
    assert_eq!(server.lists("pods"), 1);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_while_the_past_was_forgotten_is_listed() {
    let server = Server::new();
    server.put("pods", pod("a", "1"));
    server.put("pods", pod("b", "1"));
    let (running, mut sets) = start(&server);
    shows(&mut sets, &["a=1", "b=1"]).await;
    server.until("a watch", |server| server.watches("pods") == 1).await;

    // Resuming is refused with 410.
    server.set_down(true);
    server.until("it is noticed", |server| server.watches("pods") == 2).await;
    server.remove("pods", "ns", "a");
    server.compact();
    server.set_down(false);
    shows(&mut sets, &["b=1"]).await;
    assert_eq!(server.lists("pods"), 2);

    // The watch itself says 410.
    server.until("a watch", |server| server.watches("pods") >= 3).await;
    let expired = json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "" });
    server.say("pods", &json!({ "type": "ERROR", "object": expired }));
    server.until("a list", |server| server.lists("pods") == 3).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pods_stay_while_the_server_is_away() {
    let server = Server::new();
    server.put("pods", pod("a", "1"));
    let (running, mut sets) = start(&server);
    shows(&mut sets, &["a=1"]).await;
    sets.borrow_and_update();
    server.set_down(true);
    tokio::time::sleep(std::time::Duration::from_mins(5)).await;
    assert!(!sets.has_changed().unwrap());
    let asked = server.asked().len();
    assert!(asked < 150, "{asked} requests in five minutes");

    server.remove("pods", "ns", "a");
    server.put("pods", pod("b", "1"));
    server.set_down(false);
    shows(&mut sets, &["b=1"]).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn refusals_and_nonsense_are_survived() {
    let server = Server::new();
    server.put("pods", pod("a", "1"));
    server.fail("GET", "/pods?", 3, Fault::Refuse(500, None));
    server.fail("GET", "/pods?", 1, Fault::Refuse(429, Some(7)));
    server.fail("GET", "watch=true", 2, Fault::Break);
    let (running, mut sets) = start(&server);
    shows(&mut sets, &["a=1"]).await;
    server.until("a watch", |server| server.watches("pods") >= 3).await;
    server.say("pods", &json!({ "type": "ADDED", "object": "what?" }));
    server.put("pods", pod("a", "2"));
    shows(&mut sets, &["a=2"]).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn old_news_is_no_news() {
    let server = Server::new();
    let old = server.put("pods", pod("a", "old"));
    server.put("pods", pod("a", "new"));
    let (running, mut sets) = start(&server);
    shows(&mut sets, &["a=new"]).await;
    server.until("a watch", |server| server.watches("pods") == 1).await;
    server.say("pods", &json!({ "type": "MODIFIED", "object": old }));
    server.put("pods", pod("b", "1"));
    shows(&mut sets, &["a=new", "b=1"]).await;
    running.stop().await;
}
