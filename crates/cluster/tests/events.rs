//! When events are sent.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use krustlet_cluster::events::{About, EventRate, EventType, events};
use serde_json::json;
use support::{Running, Server};
use tokio::time::sleep;

fn about() -> About {
    let pod: Pod = serde_json::from_value(
        json!({ "metadata": { "namespace": "ns", "name": "p", "uid": "1" } }),
    )
    .unwrap();
    About::pod(&pod)
}

/// The reasons of the events that the server has, in the order of their names.
fn told(server: &Server) -> Vec<String> {
    let reason = |event: &serde_json::Value| event["reason"].as_str().unwrap().to_owned();
    server.all("events").iter().map(reason).collect()
}

#[tokio::test(start_paused = true)]
async fn an_event_lets_the_status_go_first_and_none_is_lost_when_the_agent_stops() {
    let server = Server::new();
    let (events, task) = events(&server.cluster(), "n", EventRate::default());
    let mut running = Running::new();
    running.start(|stop| task.run(stop));

    events.record(&about(), EventType::Normal, "Pulled", "there".into());
    sleep(Duration::from_millis(100)).await;
    assert_eq!(told(&server), Vec::<String>::new(), "statuses go first");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(told(&server), ["Pulled"]);

    events.record(&about(), EventType::Normal, "Killing", "going".into());
    sleep(Duration::from_millis(1)).await;
    running.stop().await;
    assert_eq!(told(&server), ["Pulled", "Killing"]);
}

#[tokio::test(start_paused = true)]
async fn events_of_many_pods_are_sent_no_faster_than_the_rate() {
    let server = Server::new();
    let rate = EventRate { per_second: 10, burst: 20 };
    let (events, task) = events(&server.cluster(), "n", rate);
    let mut running = Running::new();
    running.start(|stop| task.run(stop));

    // Of many objects: one alone would be cut off.
    for number in 0..100 {
        let name = format!("p-{number}");
        let pod: Pod = serde_json::from_value(
            json!({ "metadata": { "namespace": "ns", "name": name, "uid": name } }),
        )
        .unwrap();
        events.record(&About::pod(&pod), EventType::Normal, "Pulled", "there".into());
    }
    sleep(Duration::from_secs(1)).await;
    let soon = told(&server).len();
    assert!((20..=30).contains(&soon), "{soon}");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(told(&server).len(), 100);
    running.stop().await;
}
