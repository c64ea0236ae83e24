//! What policies and a pod's own list do to its sandbox.

use std::sync::Arc;

use krustlet_model::{
    outbound::{Outbound, OutboundTo},
    policy::{Book, MOST_PARTS_OF_ALL, PodPolicy, Policies},
    services::Transport,
};
use krustlet_network::{NetworkState, PodRanges};
use serde_json::{Value, json};

use super::bed::{Bed, Call, Guest, is_ready, one, pod};

const LIST: &str = "network.krustlet.dev/allowed-outbound-hosts";

fn own() -> NetworkState {
    NetworkState::Own(PodRanges::parse(&["10.244.1.0/24"]).unwrap())
}

/// Policies of the namespace `n`.
fn known(specs: &[Value]) -> Policies {
    let specs = specs.iter().enumerate().map(|(number, spec)| {
        let spec = serde_json::from_value(spec.clone()).unwrap();
        (("n".to_owned(), format!("policy-{number}")), Arc::new(spec))
    });
    Policies::Known(Arc::new(Book::new(&specs.collect(), Arc::default(), Arc::default())))
}

fn unknown() -> Policies {
    Policies::Unknown("nobody knows".to_owned())
}

/// Isolates pods of this app, or all.
fn deny(app: Option<&str>) -> Value {
    let labels = app.map(|app| json!({"matchLabels": {"app": app}}));
    json!({"podSelector": labels.unwrap_or_else(|| json!({})), "policyTypes": ["Ingress"]})
}

fn lets_in(policy: Option<&PodPolicy>, from: &str) -> bool {
    policy.expect("a policy").lets_in(Transport::Tcp, from.parse().unwrap(), 80)
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_until_policies_are_known() {
    let mut bed = Bed::with_network(own()).await;
    bed.shared.policies.send_replace(unknown());
    bed.put(one("Always"));
    let mut host = pod(json!({
        "restartPolicy": "Always",
        "hostNetwork": true,
        "containers": [{"name": "main", "image": "web:1"}],
    }));
    host["metadata"]["name"] = "host".into();
    host["metadata"]["uid"] = "u2".into();
    bed.put(host);
    bed.until_status("u2", "who is subject to none does not wait", is_ready).await;
    bed.until("it says what it waits for", |world| {
        world.events.iter().any(|(reason, text)| {
            reason == "NetworkNotReady" && text == "network is not ready: nobody knows"
        })
    })
    .await;
    bed.shared.policies.send_replace(Policies::Unknown("nobody knows".to_owned()));
    assert_eq!(bed.shared.with(|world| world.count(&Call::Sandbox)), 1);
    bed.shared.policies.send_replace(known(&[deny(None)]));
    bed.until_status("u", "it is Ready", is_ready).await;
    bed.shared.with(|world| {
        let told = world.events.iter().filter(|(reason, _)| reason == "NetworkNotReady");
        assert_eq!(told.count(), 1);
        assert_eq!(world.places[0].1.policy, Some(PodPolicy::default()));
        let policy = world.places[1].1.policy.as_ref();
        assert!(!lets_in(policy, "10.244.1.9"));
        // The node, at its own address and at the first of the range.
        assert!(lets_in(policy, "192.0.2.1") && lets_in(policy, "10.244.1.1"));
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_living_sandbox_is_told_when_policies_or_labels_change() {
    let mut bed = Bed::with_network(own()).await;
    bed.shared.policies.send_replace(known(&[]));
    let mut labelled = one("Always");
    bed.put(labelled.clone());
    bed.until_status("u", "it is Ready", is_ready).await;
    bed.shared.with(|world| assert!(lets_in(world.places[0].1.policy.as_ref(), "10.244.1.9")));
    // What does not select it is nothing to be told.
    bed.shared.policies.send_replace(known(&[deny(Some("web"))]));
    tokio::time::sleep(std::time::Duration::from_secs(100)).await;
    assert!(bed.shared.with(|world| world.rules.is_empty()));
    labelled["metadata"]["labels"] = json!({"app": "web"});
    bed.put(labelled);
    bed.until("it is told", |world| !world.rules.is_empty()).await;
    bed.shared.policies.send_replace(known(&[]));
    bed.until("it is told again", |world| world.rules.len() == 2).await;
    bed.shared.with(|world| {
        assert!(!lets_in(world.rules[0].policy.as_ref(), "10.244.1.9"));
        assert!(lets_in(world.rules[1].policy.as_ref(), "10.244.1.9"));
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_goes_on_keeps_its_policy_until_policies_are_known() {
    let mut bed = Bed::with_network(own()).await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Exits(1)));
    bed.shared.policies.send_replace(known(&[deny(None)]));
    bed.put(one("Always"));
    bed.until("it waits to be restarted", |world| world.has_event("BackOff")).await;
    let left = bed.kill().await;
    left.shared.policies.send_replace(unknown());
    let starts = |world: &super::bed::World| {
        world.calls.iter().filter(|(_, call)| matches!(call, Call::Start(_))).count()
    };
    let before = left.shared.with(|world| starts(world));
    let bed = left.next(true).await;
    // Policies are not waited for by what goes on.
    bed.until("it runs again", |world| starts(world) > before).await;
    bed.shared.with(|world| {
        assert_eq!(world.rules.len(), 1);
        assert_eq!(world.rules[0].policy, None, "what was said last stays");
    });
    bed.shared.policies.send_replace(known(&[]));
    bed.until("it is told", |world| world.rules.len() == 2).await;
    bed.shared.with(|world| assert!(lets_in(world.rules[1].policy.as_ref(), "10.244.1.9")));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_is_told_policies_and_keeps_its_names_whatever_becomes_of_the_nodes_files() {
    let mut bed = Bed::with_network(own()).await;
    let file = bed.home.path().join("resolv.conf");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("nameserver 192.0.2.1\n");
    bed.shared.with(|world| world.resolv_conf = Some(file.clone()));
    bed = bed.stop().await.next(true).await;
    bed.shared.policies.send_replace(known(&[]));
    let mut pod = one("Always");
    pod["spec"]["dnsPolicy"] = "Default".into();
    bed.put(pod);
    bed.until_status("u", "it is Ready", is_ready).await;
    // One that cannot be used, and one that is about to be written.
    let mut told = 0;
    for (text, policies) in [("nameserver\n", known(&[deny(None)])), ("", known(&[]))] {
        write(text);
        bed.shared.policies.send_replace(policies);
        told += 1;
        bed.until("it is told", |world| world.rules.len() == told).await;
    }
    bed.shared.with(|world| {
        assert!(!lets_in(world.rules[0].policy.as_ref(), "10.244.1.9"));
        assert!(lets_in(world.rules[1].policy.as_ref(), "10.244.1.9"));
        let names = &world.places[0].1.names;
        assert_eq!(names.as_ref().unwrap().servers, ["192.0.2.1:53".parse().unwrap()]);
        assert!(world.rules.iter().all(|rules| rules.names == *names));
    });
    for text in ["nameserver\n", ""] {
        write(text);
        bed = bed.stop().await.next(true).await;
        told += 1;
        bed.until("the next agent tells it", |world| world.rules.len() == told).await;
        let names = bed.shared.with(|world| world.rules[told - 1].names.clone());
        assert_eq!(names, None, "what it knows stays");
    }
    write("nameserver 192.0.2.2\n");
    bed.shared.policies.send_replace(known(&[deny(None)]));
    bed.until("it is told again", |world| world.rules.len() == told + 1).await;
    let names = bed.shared.with(|world| world.rules[told].names.clone());
    assert_eq!(names.unwrap().servers, ["192.0.2.2:53".parse().unwrap()]);
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_too_large_holds_a_pod_up_and_closes_one_that_lives() {
    let peers: Vec<_> = (0..5000_u16)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            json!({"ipBlock": {"cidr": format!("10.{high}.{low}.0/32")}})
        })
        .collect();
    let large = json!({"podSelector": {}, "ingress": [{"from": peers}]});
    let mut bed = Bed::with_network(own()).await;
    bed.shared.policies.send_replace(known(&[]));
    bed.put(one("Always"));
    bed.until_status("u", "it is Ready", is_ready).await;
    bed.shared.policies.send_replace(known(&[large]));
    bed.until("it is told", |world| !world.rules.is_empty()).await;
    bed.shared.with(|world| {
        assert!(world.has_event("NetworkPolicyTooLarge"));
        assert!(!lets_in(world.rules[0].policy.as_ref(), "10.0.0.0"));
    });
    bed.shared.kill_sandbox("u");
    tokio::time::sleep(std::time::Duration::from_secs(100)).await;
    assert_eq!(bed.shared.with(|world| world.count(&Call::Sandbox)), 1, "it waits");
    bed.shared.policies.send_replace(known(&[deny(None)]));
    bed.until("another sandbox is made", |world| world.count(&Call::Sandbox) == 2).await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_whose_policies_say_too_much_closes_its_pods_and_says_so() {
    let mut bed = Bed::with_network(own()).await;
    bed.shared.policies.send_replace(known(&[]));
    bed.put(one("Always"));
    bed.until_status("u", "it is Ready", is_ready).await;
    let peers = vec![json!({"podSelector": {}}); MOST_PARTS_OF_ALL / 10];
    let many = vec![json!({"podSelector": {}, "ingress": [{"from": peers}]}); 10];
    bed.shared.policies.send_replace(known(&many));
    bed.until("it is told", |world| !world.rules.is_empty()).await;
    bed.shared.with(|world| {
        let mut told = world.events.iter().filter(|(reason, _)| reason == "NetworkPolicyTooLarge");
        assert!(told.next().unwrap().1.contains("the NetworkPolicies of the pod's namespace"));
        let policy = world.rules[0].policy.as_ref();
        assert!(!lets_in(policy, "10.244.1.9"));
        assert!(lets_in(policy, "192.0.2.1"), "the node probes it");
        let out = "10.244.1.9:80".parse().unwrap();
        assert!(!policy.unwrap().lets_out(Transport::Tcp, out));
    });
    bed.shared.policies.send_replace(known(&many[..9]));
    bed.until("it is told again", |world| world.rules.len() == 2).await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pods_own_list_is_told_to_its_sandbox_and_nonsense_lets_nothing_through() {
    let mut bed = Bed::with_network(own()).await;
    let mut listed = one("Always");
    listed["metadata"]["annotations"] = json!({LIST: "db.example:5432"});
    bed.put(listed.clone());
    bed.until_status("u", "it is Ready", is_ready).await;
    let expected = Outbound { to: OutboundTo::Host("db.example".into()), port: Some(5432) };
    bed.shared.with(|world| assert_eq!(world.places[0].1.outbound, Some(vec![expected])));
    listed["metadata"]["annotations"] = json!({LIST: "http://db.example"});
    bed.put(listed);
    bed.until("it is told", |world| !world.rules.is_empty()).await;
    bed.shared.with(|world| {
        assert_eq!(world.rules[0].outbound, Some(Vec::new()));
        assert!(world.has_event("InvalidNetworkAnnotation"));
    });
    let mut second = one("Always");
    second["metadata"]["name"] = "p2".into();
    second["metadata"]["uid"] = "u2".into();
    second["metadata"]["annotations"] = json!({LIST: "*"});
    bed.put(second);
    let status = bed.until_phase("u2", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("InvalidNetworkAnnotation"));
    assert!(status.message.unwrap().contains("\"*\" is not HOST[:PORT]"));
    bed.stop().await;
}
