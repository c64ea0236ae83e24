//! Objects, tokens, services, reviews and events.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::time::Duration;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use krustlet_cluster::{
    About, EventRate, EventType, Events, Objects, Reviews, TokenRequest, Tokens, events::events,
    objects::objects, reviews::Access, services::services,
};
use krustlet_model::{ContainerName, PodUid, observed::ContainerKind};
use serde_json::{Value, json};
use support::{Fault, Running, Server, soon};

fn with_objects(server: &Server) -> (Running, Objects) {
    let (objects, task) = objects(&server.cluster());
    let mut running = Running::new();
    running.start(|stop| task.run(stop));
    (running, objects)
}

fn config_map(value: &str) -> Value {
    json!({ "metadata": { "namespace": "ns", "name": "c" }, "data": { "key": value } })
}

async fn value(objects: &Objects) -> Option<String> {
    let found = soon("an answer", objects.config_map("ns", "c")).await.unwrap()?;
    Some(found.data.as_ref().unwrap()["key"].clone())
}

#[tokio::test(start_paused = true)]
async fn an_object_is_read_once_and_seen_to_change() {
    let server = Server::new();
    server.put("configmaps", config_map("1"));
    let (running, objects) = with_objects(&server);
    for _ in 0..10 {
        assert_eq!(value(&objects).await.unwrap(), "1");
    }
    server.until("a watch", |server| server.watches("configmaps") == 1).await;
    server.put("configmaps", config_map("2"));
    while value(&objects).await.unwrap() != "2" {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.lists("configmaps"), 1);
    // Only this one object was asked for, as a node must.
    assert!(server.asked().iter().all(|asked| asked.uri.contains("metadata.name%3Dc")));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_not_there_appears_when_it_is_made() {
    let server = Server::new();
    let (running, objects) = with_objects(&server);
    assert_eq!(value(&objects).await, None);
    server.until("a watch", |server| server.watches("configmaps") == 1).await;
    server.put("configmaps", config_map("1"));
    while value(&objects).await.is_none() {
        tokio::task::yield_now().await;
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_fresh_pods_refusal_is_tried_again_and_then_transient() {
    let server = Server::new();
    server.put("configmaps", config_map("1"));
    server.fail("GET", "/configmaps", 3, Fault::Refuse(403, None));
    let (running, objects) = with_objects(&server);
    assert_eq!(value(&objects).await.unwrap(), "1");
    server.fail("GET", "/secrets", 99, Fault::Refuse(403, None));
    let error = soon("an answer", objects.secret("ns", "s")).await.unwrap_err();
    assert!(error.is_transient());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_known_object_stands_while_the_server_is_away() {
    let server = Server::new();
    server.put("configmaps", config_map("1"));
    let (running, objects) = with_objects(&server);
    assert_eq!(value(&objects).await.unwrap(), "1");
    server.until("a watch", |server| server.watches("configmaps") == 1).await;
    server.set_down(true);
    for _ in 0..10 {
        assert_eq!(value(&objects).await.unwrap(), "1");
        tokio::time::sleep(Duration::from_mins(1)).await;
    }
    server.put("configmaps", config_map("2"));
    server.set_down(false);
    assert_eq!(value(&objects).await.unwrap(), "2");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_nobody_asks_for_is_not_asked_for() {
    let server = Server::new();
    server.put("configmaps", config_map("1"));
    let (running, objects) = with_objects(&server);
    assert_eq!(value(&objects).await.unwrap(), "1");
    server.until("a watch", |server| server.watches("configmaps") == 1).await;
    server.end_watches();
    let asked = server.asked().len();
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(server.asked().len(), asked);
    assert_eq!(value(&objects).await.unwrap(), "1");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_immutable_object_is_not_watched() {
    let server = Server::new();
    let mut object = config_map("1");
    object["immutable"] = json!(true);
    server.put("configmaps", object);
    let (running, objects) = with_objects(&server);
    for _ in 0..30 {
        assert_eq!(value(&objects).await.unwrap(), "1");
        tokio::time::sleep(Duration::from_mins(1)).await;
    }
    assert_eq!(server.asked().len(), 1);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn more_objects_than_may_be_watched_are_read_every_minute() {
    let server = Server::new();
    let (running, objects) = with_objects(&server);
    for _ in 0..3 {
        for n in 0..100 {
            let name = format!("c{n}");
            let found = soon("an answer", objects.config_map("ns", &name)).await.unwrap();
            assert!(found.is_none());
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    assert_eq!(server.watches("configmaps"), 40);
    assert_eq!(server.lists("configmaps"), 100 + 60);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn services_are_none_until_all_are_known() {
    let server = Server::new();
    let service = |name: &str| json!({ "metadata": { "namespace": "ns", "name": name } });
    server.put("services", service("a"));
    let (mut shown, task) = services(&server.cluster());
    assert!(shown.borrow().is_none());
    let mut running = Running::new();
    running.start(|stop| task.run(stop));
    let many = |n: usize| {
        move |all: &Option<std::sync::Arc<Vec<_>>>| all.as_ref().is_some_and(|all| all.len() == n)
    };
    soon("one", shown.wait_for(many(1))).await.unwrap();
    server.put("services", service("b"));
    soon("two", shown.wait_for(many(2))).await.unwrap();
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_list_is_read_however_large_its_objects_are() {
    let server = Server::new();
    let text = "x".repeat(1 << 20);
    for n in 0..70 {
        let metadata =
            json!({ "namespace": "ns", "name": format!("s{n}"), "annotations": { "a": text } });
        server.put("services", json!({ "metadata": metadata }));
    }
    let (mut shown, task) = services(&server.cluster());
    let mut running = Running::new();
    running.start(|stop| task.run(stop));
    let all = |shown: &Option<_>| shown.is_some();
    let all = soon("all of them", shown.wait_for(all)).await.unwrap().clone();
    assert_eq!(all.unwrap().len(), 70);
    // The whole once more would have been as large as before.
    let limits: Vec<_> = server.asked().iter().filter_map(|asked| limit(&asked.uri)).collect();
    assert_eq!(limits, [500, 250, 125, 62, 62]);
    running.stop().await;
}

/// How many objects a page may have that is asked for.
fn limit(uri: &str) -> Option<u32> {
    uri.split(['?', '&']).find_map(|part| part.strip_prefix("limit="))?.parse().ok()
}

#[tokio::test(start_paused = true)]
async fn what_does_not_count_of_a_service_is_not_kept() {
    let server = Server::new();
    let service = |name: &str, text: &str| {
        let annotations = json!({ "a": text });
        json!({ "metadata": { "namespace": "ns", "name": name, "annotations": annotations } })
    };
    server.put("services", service("a", "1"));
    let (mut shown, task) = services(&server.cluster());
    let mut running = Running::new();
    running.start(|stop| task.run(stop));
    soon("one", shown.wait_for(Option::is_some)).await.unwrap();
    server.until("a watch", |server| server.watches("services") == 1).await;
    let first = shown.borrow_and_update().clone().unwrap();
    server.put("services", service("a", "2"));
    server.put("services", service("b", "1"));
    soon("the next", shown.changed()).await.unwrap();
    let next = shown.borrow_and_update().clone().unwrap();
    assert_eq!(next.len(), 2);
    assert!(std::sync::Arc::ptr_eq(&first[0], &next[0]), "whoever has seen it need not look");
    assert!(next[0].metadata.annotations.is_none());
    running.stop().await;
}

fn token_request() -> TokenRequest {
    TokenRequest {
        namespace: "ns".to_owned(),
        service_account: "default".to_owned(),
        pod_name: "p".to_owned(),
        pod_uid: PodUid::new("u"),
        audience: None,
        expiration_seconds: 3607,
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_bound_to_its_pod_and_asked_for_once() {
    let server = Server::new();
    let expires = Timestamp::now().checked_add(k8s_openapi::jiff::SignedDuration::from_hours(1));
    let expires = expires.unwrap().to_string();
    server.answer("token", move |_| {
        json!({ "metadata": {}, "spec": { "audiences": [] },
                "status": { "token": "t", "expirationTimestamp": expires } })
    });
    let tokens = Tokens::new(&server.cluster());
    for _ in 0..3 {
        assert_eq!(tokens.token(&token_request()).await.unwrap().token, "t");
    }
    let asked = server.asked();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].uri.starts_with("/api/v1/namespaces/ns/serviceaccounts/default/token"));
    let bound = json!({ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u" });
    assert_eq!(asked[0].body["spec"]["boundObjectRef"], bound);
    tokens.forget(&PodUid::new("u"));
    server.fail("POST", "/token", 1, Fault::Refuse(403, None));
    let error = tokens.token(&token_request()).await.unwrap_err();
    assert!(error.is_transient() && error.is_refused());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_renewed_is_given_out_while_it_lives() {
    let server = Server::new();
    // Renewal is due at once: the token has hardly any life left of what it had.
    let expires = Timestamp::now().checked_add(k8s_openapi::jiff::SignedDuration::from_secs(1));
    let expires = expires.unwrap().to_string();
    server.answer("token", move |_| {
        json!({ "metadata": {}, "spec": { "audiences": [] },
                "status": { "token": "t", "expirationTimestamp": expires } })
    });
    let tokens = Tokens::new(&server.cluster());
    assert_eq!(tokens.token(&token_request()).await.unwrap().token, "t");
    server.set_down(true);
    // Within its second it is there; after it the outage shows.
    let later = tokens.token(&token_request()).await;
    assert!(later.is_ok_and(|token| token.token == "t"));
}

#[tokio::test(start_paused = true)]
async fn reviews_are_remembered_as_long_as_the_kubelet_does() {
    let server = Server::new();
    server.answer("tokenreviews", |review| {
        let good = review["spec"]["token"] == "good";
        let user = json!({ "username": "jane", "groups": ["g"] });
        json!({ "metadata": {}, "spec": review["spec"],
                "status": { "authenticated": good, "user": user } })
    });
    server.answer("subjectaccessreviews", |review| {
        let allowed = review["spec"]["resourceAttributes"]["subresource"] == "log";
        json!({ "metadata": {}, "spec": review["spec"], "status": { "allowed": allowed } })
    });
    let reviews = Reviews::new(&server.cluster());
    assert!(reviews.token("bad").await.unwrap().is_none());
    let user = reviews.token("good").await.unwrap().unwrap();
    reviews.token("good").await.unwrap();
    assert_eq!(server.count("POST", "/tokenreviews"), 2);
    tokio::time::advance(Duration::from_mins(2)).await;
    reviews.token("good").await.unwrap();
    assert_eq!(server.count("POST", "/tokenreviews"), 3);

    let access = |subresource: &str| Access::Node {
        verb: "get".to_owned(),
        name: "n".to_owned(),
        subresource: subresource.to_owned(),
    };
    let asked = || server.count("POST", "/subjectaccessreviews");
    for _ in 0..2 {
        assert!(reviews.access(&user, &access("log")).await.unwrap());
        assert!(!reviews.access(&user, &access("proxy")).await.unwrap());
    }
    assert_eq!(asked(), 2);
    tokio::time::advance(Duration::from_secs(31)).await;
    assert!(reviews.access(&user, &access("log")).await.unwrap());
    assert!(!reviews.access(&user, &access("proxy")).await.unwrap());
    assert_eq!(asked(), 3);
    server.set_down(true);
    assert!(reviews.token("other").await.is_err(), "no answer is no yes");
}

fn pod() -> Pod {
    let pod = json!({ "metadata": { "namespace": "ns", "name": "p", "uid": "u" } });
    serde_json::from_value(pod).unwrap()
}

fn with_events(server: &Server) -> (Running, Events) {
    // How fast they may be sent has a test of its own.
    let rate = EventRate { per_second: 0, burst: 0 };
    let (events, task) = events(&server.cluster(), "n", rate);
    let mut running = Running::new();
    running.start(|stop| task.run(stop));
    (running, events)
}

#[tokio::test(start_paused = true)]
async fn an_event_that_repeats_counts_up() {
    let server = Server::new();
    let (running, events) = with_events(&server);
    let about = About::container(&pod(), ContainerKind::App, &ContainerName::new("c"));
    for _ in 0..3 {
        events.record(&about, EventType::Warning, "BackOff", "again".to_owned());
    }
    server
        .until("counted", |server| {
            server.all("events").first().is_some_and(|event| event["count"] == 3)
        })
        .await;
    let all = server.all("events");
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["involvedObject"]["fieldPath"], "spec.containers{c}");
    assert_eq!(all[0]["source"], json!({ "component": "kubelet", "host": "n" }));
    assert_eq!(all[0]["type"], "Warning");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn events_wait_for_the_server_in_their_order_up_to_a_bound() {
    let server = Server::new();
    server.set_down(true);
    let (running, events) = with_events(&server);
    for n in 0..5000 {
        let pod: Pod = serde_json::from_value(
            json!({ "metadata": { "namespace": "ns", "name": format!("p{n:05}"), "uid": n.to_string() } }),
        )
        .unwrap();
        events.record(&About::pod(&pod), EventType::Normal, "Started", "x".to_owned());
    }
    assert!(events.dropped() >= 900);
    server.set_down(false);
    let sent = 5000 - usize::try_from(events.dropped()).unwrap();
    server.until("all are there", |server| server.all("events").len() == sent).await;
    let told: Vec<_> = server
        .asked()
        .iter()
        .filter_map(|asked| Some(asked.body["metadata"]["name"].as_str()?.to_owned()))
        .collect();
    assert!(told.is_sorted());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_the_server_will_not_have_does_not_hold_up_others() {
    let server = Server::new();
    server.fail("POST", "/events", 1, Fault::Refuse(403, None));
    let (running, events) = with_events(&server);
    events.record(&About::pod(&pod()), EventType::Normal, "Created", "1".to_owned());
    events.record(&About::pod(&pod()), EventType::Normal, "Started", "2".to_owned());
    server.until("the second", |server| server.all("events").len() == 1).await;
    assert_eq!(server.all("events")[0]["reason"], "Started");
    running.stop().await;
}
