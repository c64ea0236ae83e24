//! What policies are made of, from a server that refuses and forgets.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use krustlet_cluster::policies::{PolicyFacts, Seen, policy_facts};
use krustlet_model::policy::{Labels, MOST_LABELS};
use serde_json::{Value, json};
use support::{Fault, Running, Server, soon};
use tokio::sync::watch;

fn facts(server: &Server) -> (Running, PolicyFacts) {
    let (facts, task) = policy_facts(&server.cluster());
    let mut running = Running::new();
    running.start(|stop| task.run(stop));
    (running, facts)
}

async fn until<T: Send + Sync>(
    seen: &mut watch::Receiver<Seen<T>>,
    mut is_so: impl FnMut(&Seen<T>) -> bool,
) -> Seen<T> {
    let found = soon("it is seen", seen.wait_for(|seen| is_so(seen))).await.unwrap();
    Seen { known: found.known.clone(), forbidden: found.forbidden.clone() }
}

fn pod(phase: &str, app: &str) -> Value {
    json!({
        "metadata": {"namespace": "ns", "name": "p", "labels": {"app": app}},
        "spec": {"containers": []},
        "status": {"phase": phase, "podIP": "10.0.0.7"},
    })
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_known_is_told_and_read_when_it_may() {
    let server = Server::new();
    server.put(
        "networkpolicies",
        json!({
            "metadata": {"namespace": "ns", "name": "deny"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        }),
    );
    server.put("namespaces", json!({"metadata": {"name": "ns", "labels": {"team": "a"}}}));
    server.fail("GET", "/networkpolicies", 2, Fault::Refuse(403, None));
    let (running, mut facts) = facts(&server);
    let refused = until(&mut facts.policies, |seen| seen.forbidden.is_some()).await;
    assert_eq!(refused.known, None);
    let known = until(&mut facts.policies, |seen| seen.known.is_some()).await;
    assert_eq!(known.forbidden, None);
    let key = ("ns".to_owned(), "deny".to_owned());
    assert!(known.known.unwrap().contains_key(&key));
    let namespaces = until(&mut facts.namespaces, |seen| seen.known.is_some()).await;
    assert_eq!(namespaces.known.unwrap()["ns"]["team"], "a");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_with_too_many_labels_is_named_by_nobody() {
    let server = Server::new();
    for (name, count) in [("most", MOST_LABELS), ("more", MOST_LABELS + 1)] {
        let labels: Labels = (0..count).map(|label| (format!("l{label}"), String::new())).collect();
        server.put("namespaces", json!({"metadata": {"name": name, "labels": labels}}));
    }
    let (running, mut facts) = facts(&server);
    let known = until(&mut facts.namespaces, |seen| seen.known.is_some()).await.known.unwrap();
    assert_eq!(known.keys().collect::<Vec<_>>(), ["most"]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_named_while_it_runs_and_heartbeats_are_no_news() {
    let server = Server::new();
    server.put("pods", pod("Running", "web"));
    let (running, mut facts) = facts(&server);
    let is_there = |seen: &Seen<krustlet_cluster::policies::PeerPods>| {
        seen.known.as_ref().is_some_and(|pods| pods.len() == 1)
    };
    until(&mut facts.pods, is_there).await;
    server.until("a watch", |server| server.watches("pods") == 1).await;
    facts.pods.borrow_and_update();
    let mut same = pod("Running", "web");
    same["metadata"]["annotations"] = json!({"beat": "1"});
    server.put("pods", same);
    server.put("pods", pod("Running", "db"));
    let key = ("ns".to_owned(), "p".to_owned());
    soon("the label is seen", facts.pods.changed()).await.unwrap();
    let labels = facts.pods.borrow().known.as_ref().unwrap()[&key].labels.clone();
    assert_eq!(labels["app"], "db", "the first change seen is of what counts");
    server.put("pods", pod("Succeeded", "db"));
    until(&mut facts.pods, |seen| seen.known.as_ref().is_some_and(|pods| pods.is_empty())).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_known_again_after_a_watch_was_refused() {
    let server = Server::new();
    server.put("namespaces", json!({"metadata": {"name": "ns", "labels": {"team": "a"}}}));
    let (running, mut facts) = facts(&server);
    until(&mut facts.namespaces, |seen| seen.known.is_some()).await;
    server.until("a watch", |server| server.watches("namespaces") == 1).await;
    // As of a server that has just begun; nothing of this kind changes after it.
    server.fail("GET", "/namespaces", 1, Fault::Refuse(403, None));
    server.end_watches();
    until(&mut facts.namespaces, |seen| seen.forbidden.is_some()).await;
    let seen = until(&mut facts.namespaces, |seen| seen.forbidden.is_none()).await;
    assert_eq!(seen.known.unwrap()["ns"]["team"], "a");
    running.stop().await;
}
