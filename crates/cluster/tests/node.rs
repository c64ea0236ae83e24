//! The Node and its lease, while others delete and overwrite them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::{collections::BTreeMap, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Taint};
use krustlet_cluster::{
    EventRate, NodeConfig, NodeHealth,
    events::events,
    lease::lease,
    node::{Cadence, EvictionThresholds, Machine, Reserved, node},
};
use serde_json::{Value, json};
use support::{Fault, Running, Server, soon};
use tokio::sync::watch;

fn config() -> NodeConfig {
    NodeConfig {
        name: "n".to_owned(),
        hostname: "n".to_owned(),
        ips: vec!["10.0.0.1".parse().unwrap()],
        port: 10250,
        register: true,
        labels: BTreeMap::new(),
        taints: vec![Taint {
            key: "kubernetes.io/arch".to_owned(),
            value: Some("wasm32-wasi".to_owned()),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        }],
        unschedulable: false,
        provider_id: None,
        os: "wasm32-wasi".to_owned(),
        arch: "wasm32-wasi".to_owned(),
        kubelet_version: "v1.37.2+krustlet.0.1.0".to_owned(),
        runtime_version: "wasmtime://48.0.8".to_owned(),
        runtime_handlers: vec!["wasm".to_owned()],
        declared_features: Vec::new(),
        max_pods: 110,
        reserved: Reserved::default(),
        // This machine's own shortages are not what is tested.
        eviction: EvictionThresholds::none(Duration::ZERO),
        root: PathBuf::from("/"),
        cadence: Cadence::default(),
    }
}

fn machine() -> Machine {
    Machine {
        cpus: NonZeroUsize::new(2).unwrap(),
        memory: 1 << 30,
        storage: 100 << 30,
        machine_id: "m".to_owned(),
        system_uuid: "s".to_owned(),
        boot_id: "b".to_owned(),
        kernel: "6.0".to_owned(),
        os_image: "Some OS".to_owned(),
    }
}

fn well() -> NodeHealth {
    NodeHealth { not_ready: None, images: Arc::default() }
}

struct Started {
    running: Running,
    health: watch::Sender<NodeHealth>,
    node: watch::Receiver<Option<Arc<Node>>>,
}

fn start(server: &Server, health: NodeHealth) -> Started {
    let cluster = server.cluster();
    let health = watch::Sender::new(health);
    let (events, events_task) = events(&cluster, "n", EventRate::default());
    let (node, task) = node(&cluster, config(), machine(), health.subscribe(), events);
    let mut running = Running::new();
    running.start(|stop| events_task.run(stop));
    running.start(|stop| task.run(stop));
    Started { running, health, node }
}

fn condition(server: &Server, kind: &str) -> Value {
    let node = server.get("nodes", "", "n").unwrap_or_default();
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
}

fn is_ready(server: &Server) -> bool {
    condition(server, "Ready")["status"] == "True"
}

#[tokio::test(start_paused = true)]
async fn a_node_is_created_ready_with_all_it_has_to_say() {
    let server = Server::new();
    let mut started = start(&server, well());
    soon("shown", started.node.wait_for(Option::is_some)).await.unwrap();
    let node = server.get("nodes", "", "n").unwrap();
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/arch"], "wasm32-wasi");
    assert_eq!(node["spec"]["taints"][0]["key"], "kubernetes.io/arch");
    assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    assert_eq!(node["status"]["addresses"][0]["address"], "10.0.0.1");
    assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], "v1.37.2+krustlet.0.1.0");
    assert_eq!(node["status"]["runtimeHandlers"][0]["name"], "wasm");
    assert!(is_ready(&server));
    server.until("its events", |server| server.all("events").len() >= 2).await;
    let reasons: Vec<_> =
        server.all("events").iter().map(|event| event["reason"].clone()).collect();
    assert!(reasons.contains(&json!("Starting")) && reasons.contains(&json!("NodeReady")));
    assert_eq!(server.all("events")[0]["involvedObject"]["uid"], node["metadata"]["uid"]);
    started.running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn registration_is_tried_until_it_succeeds() {
    let server = Server::new();
    server.fail("POST", "/nodes", 4, Fault::Refuse(500, None));
    server.set_down(true);
    let started = start(&server, well());
    tokio::time::sleep(Duration::from_mins(1)).await;
    server.set_down(false);
    server.until("ready", is_ready).await;
    started.running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_existing_node_keeps_what_others_gave_it() {
    let server = Server::new();
    server.put(
        "nodes",
        json!({
            "metadata": { "name": "n", "labels": { "team": "x" }, "annotations": { "a": "b" } },
            "spec": { "unschedulable": true, "taints": [{ "key": "own", "effect": "NoSchedule" }] },
            "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "False" }] },
        }),
    );
    let started = start(&server, well());
    server.until("ready", is_ready).await;
    let node = server.get("nodes", "", "n").unwrap();
    assert_eq!(node["metadata"]["labels"]["team"], "x");
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n");
    assert_eq!(node["metadata"]["annotations"]["a"], "b");
    assert_eq!(node["spec"]["unschedulable"], true);
    assert_eq!(node["spec"]["taints"], json!([{ "key": "own", "effect": "NoSchedule" }]));
    assert_eq!(condition(&server, "NetworkUnavailable")["status"], "False");
    // A taint that it may not set is no reason to ask again and again.
    let asked = server.count("PATCH", "/nodes/n?");
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert_eq!(server.count("PATCH", "/nodes/n?"), asked);
    started.running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_node_is_registered_again() {
    let server = Server::new();
    let mut started = start(&server, well());
    server.until("ready", is_ready).await;
    server.until("a watch", |server| server.watches("nodes") > 0).await;
    let first = server.get("nodes", "", "n").unwrap()["metadata"]["uid"].clone();
    server.remove("nodes", "", "n");
    server.until("ready again", is_ready).await;
    let second = server.get("nodes", "", "n").unwrap()["metadata"]["uid"].clone();
    assert_ne!(first, second);
    let shown = |node: &Option<Arc<Node>>| {
        node.as_ref().is_some_and(|node| json!(node.metadata.uid) == second)
    };
    soon("shown", started.node.wait_for(shown)).await.unwrap();
    started.running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_status_is_written_about_every_five_minutes() {
    let server = Server::new();
    let started = start(&server, well());
    server.until("ready", is_ready).await;
    tokio::time::sleep(Duration::from_secs(140)).await;
    assert_eq!(server.count("PATCH", "/status"), 0);
    tokio::time::sleep(Duration::from_hours(1)).await;
    let written = server.count("PATCH", "/status");
    assert!((11..=13).contains(&written), "{written} in an hour");
    started.running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_is_written_at_once_and_tells_when_it_was() {
    let server = Server::new();
    let started = start(&server, NodeHealth::default());
    server.until("known", |server| condition(server, "Ready")["status"] == "False").await;
    let before = tokio::time::Instant::now();
    started.health.send_replace(well());
    server.until("ready", is_ready).await;
    assert_eq!(before, tokio::time::Instant::now());
    started.running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_thought_dead_says_at_once_that_it_lives() {
    let server = Server::new();
    let started = start(&server, well());
    server.until("ready", is_ready).await;
    server.until("a watch", |server| server.watches("nodes") > 0).await;
    server.set_down(true);
    let mut node = server.get("nodes", "", "n").unwrap();
    for condition in node["status"]["conditions"].as_array_mut().unwrap() {
        condition["status"] = json!("Unknown");
    }
    server.put("nodes", node);
    tokio::time::sleep(Duration::from_mins(5)).await;
    server.set_down(false);
    let before = tokio::time::Instant::now();
    server.until("ready", is_ready).await;
    assert!(before.elapsed() < Duration::from_secs(15));
    started.running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_every_ten_seconds_and_belongs_to_the_node() {
    let server = Server::new();
    let cluster = server.cluster();
    let shown = watch::Sender::new(None);
    let task = lease(&cluster, "n", shown.subscribe());
    let mut running = Running::new();
    running.start(|stop| task.run(stop));
    let node = server.put("nodes", json!({ "metadata": { "name": "n" } }));
    let node: Node = serde_json::from_value(node).unwrap();
    shown.send_replace(Some(Arc::new(node.clone())));
    let held = |server: &Server| server.get("leases", "kube-node-lease", "n");
    server.until("a lease", |server| held(server).is_some()).await;
    let lease = held(&server).unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "n");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], json!(node.metadata.uid));

    let before = server.count("PUT", "/leases/n");
    tokio::time::sleep(Duration::from_secs(100)).await;
    let renewed = server.count("PUT", "/leases/n") - before;
    assert!((9..=11).contains(&renewed), "{renewed} in a hundred seconds");

    // Somebody else writes it, and then removes it.
    server.put("leases", held(&server).unwrap());
    let version = held(&server).unwrap()["metadata"]["resourceVersion"].clone();
    server
        .until("renewed", |server| held(server).unwrap()["metadata"]["resourceVersion"] != version)
        .await;
    server.remove("leases", "kube-node-lease", "n");
    server.until("a lease", |server| held(server).is_some()).await;
    running.stop().await;
}
