//! Where pods are in the network.

use std::net::IpAddr;

use krustlet_model::PodUid;
use krustlet_network::{NetworkState, PodRanges};
use krustlet_protocol::{GuestKind, HttpLimits, PodNetwork, SocketLimits};
use serde_json::{Value, json};

use super::bed::{Bed, Call, Guest, Left, is_ready, main_of, one, pod, waits};
use crate::outside::NetworkKind;

fn own(range: &str) -> NetworkState {
    NetworkState::Own(PodRanges::parse(&[range]).unwrap())
}

fn of_host_network() -> Value {
    pod(json!({
        "restartPolicy": "Always",
        "hostNetwork": true,
        "containers": [{"name": "main", "image": "web:1"}],
    }))
}

/// As [`one`], by another name.
fn named(name: &str) -> Value {
    let mut pod = one("Always");
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["uid"] = name.into();
    pod
}

fn second() -> Value {
    named("u2")
}

fn address_of(bed: &Bed, uid: &str) -> Option<String> {
    bed.shared.with(|world| world.last_status(uid)?.pod_ip.clone())
}

/// Whether the address is nobody's.
fn is_free(bed: &Bed, address: &str) -> bool {
    let asker = PodUid::new("asker");
    let is_free = bed.network.restore(&asker, &[address.parse().unwrap()]).is_ok();
    bed.network.release(&asker);
    is_free
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_the_network_and_is_placed_before_its_sandbox_is_made() {
    let mut bed = Bed::with_network(NetworkState::Waiting("no podCIDR yet".into())).await;
    bed.put(one("Always"));
    bed.until("it says what it waits for", |world| world.has_event("NetworkNotReady")).await;
    bed.shared.with(|world| {
        assert_eq!(world.count(&Call::Sandbox), 0);
        let told = world.events.iter().filter(|(reason, _)| reason == "NetworkNotReady");
        assert_eq!(told.count(), 1);
    });
    bed.network.show(own("10.244.1.0/24"));
    let status = bed.until_status("u", "it is Ready", is_ready).await;
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.1.2"));
    assert_eq!(status.host_ip.as_deref(), Some("127.0.0.1"));
    bed.shared.with(|world| {
        let (kind, network) = &world.places[0];
        assert_eq!(*kind, NetworkKind::Pods);
        assert_eq!(network.addresses, ["10.244.1.2".parse::<IpAddr>().unwrap()]);
        assert!(!network.is_host && !network.shares_loopback && !network.refused.is_empty());
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_hosts_network_waits_for_nothing() {
    let mut bed = Bed::with_network(NetworkState::Waiting("no podCIDR yet".into())).await;
    bed.put(of_host_network());
    let status = bed.until_status("u", "it is Ready", is_ready).await;
    assert_eq!(status.pod_ip.as_deref(), Some("127.0.0.1"));
    bed.shared.with(|world| {
        let (kind, network) = &world.places[0];
        assert_eq!(*kind, NetworkKind::Node);
        assert!(network.is_host && network.shares_loopback && network.refused.is_empty());
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_shows_its_nodes_addresses_of_both_families() {
    let mut bed = Bed::of_both_families().await;
    bed.put(of_host_network());
    let status = bed.until_status("u", "it is Ready", is_ready).await;
    let both = ["127.0.0.1", "::1"];
    let pod: Vec<_> = status.pod_ips.iter().flatten().map(|pod| pod.ip.as_str()).collect();
    let host: Vec<_> = status.host_ips.iter().flatten().map(|host| host.ip.as_str()).collect();
    assert_eq!((pod, host), (both.to_vec(), both.to_vec()));
    assert_eq!(
        (status.pod_ip.as_deref(), status.host_ip.as_deref()),
        (Some(both[0]), Some(both[0]))
    );
    bed.shared.with(|world| {
        let addresses = both.map(|address| address.parse::<IpAddr>().unwrap());
        assert_eq!(world.places[0].1.addresses, addresses);
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_is_kept_until_the_sandbox_is_gone_for_good() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.put(one("Always"));
    bed.until_status("u", "it is Ready", is_ready).await;
    bed.shared.kill_sandbox("u");
    bed.until("another sandbox is made", |world| world.count(&Call::Sandbox) == 2).await;
    bed.shared.with(|world| assert_eq!(world.places[0], world.places[1]));

    // One that does not listen holds it for as long as it takes.
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Stubborn));
    bed.until_status("u", "it is Ready again", is_ready).await;
    bed.delete("u", 30);
    bed.until("it is asked to stop", |world| {
        world.calls.iter().any(|(_, call)| matches!(call, Call::Stop(..)))
    })
    .await;
    assert!(!is_free(&bed, "10.244.1.2"));
    bed.until("it is gone", |world| world.deleted.contains(&"u".to_owned())).await;
    assert!(is_free(&bed, "10.244.1.2"));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_keeps_what_pods_have_before_it_gives_any() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.put(one("Always"));
    let before = bed.until_status("u", "it is Ready", is_ready).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let left = bed.kill().await;
    let mut bed = left.next(true).await;
    bed.put(second());
    let other = bed.until_status("u2", "it is Ready", is_ready).await;
    assert_eq!(other.pod_ip.as_deref(), Some("10.244.1.3"));
    assert_eq!(before.pod_ip.as_deref(), Some("10.244.1.2"));
    bed.shared.with(|world| {
        assert_eq!(world.last_status("u").unwrap().pod_ip, before.pod_ip);
    });
    bed.stop().await;
}

/// Threads are needed: pods run as soon as they are taken up.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pod_that_waited_gets_no_address_that_another_goes_on_with() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    let living: Vec<String> = (10..40).map(|number| format!("b{number}")).collect();
    for name in &living {
        bed.put(named(name));
    }
    for name in &living {
        bed.until_status(name, "it is Ready", is_ready).await;
    }
    bed.network.show(NetworkState::Waiting("no podCIDR any more".into()));
    bed.put(named("a"));
    bed.until("it says what it waits for", |world| world.has_event("NetworkNotReady")).await;

    let bed = bed.stop().await.next(true).await;
    bed.until_status("a", "it is Ready", is_ready).await;
    let new = address_of(&bed, "a");
    for name in &living {
        assert_ne!(address_of(&bed, name), new, "{name} goes on with it");
    }
    // It did not have to ask twice.
    assert!(!bed.shared.with(|world| world.has_event("FailedCreatePodSandBox")));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_claims_anothers_address_gets_another_and_another_sandbox() {
    for first_lives in [true, false] {
        let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
        bed.put(named("a"));
        bed.until_status("a", "it is Ready", is_ready).await;
        bed.put(named("b"));
        bed.until_status("b", "it is Ready", is_ready).await;
        let left = bed.stop().await;
        // As an agent may have left it that did not know who had which.
        let path = left.home_path().join("pods/b/checkpoint.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("10.244.1.3", "10.244.1.2")).unwrap();
        if !first_lives {
            left.shared.with(|world| world.sandboxes.remove(&PodUid::new("a")));
        }
        let bed = left.next(true).await;
        bed.until("the two are at places of their own", |world| {
            let address = |uid: &str| world.last_status(uid)?.pod_ip.clone();
            world.places.len() == 3
                && world.sandboxes.len() == 2
                && address("a").is_some()
                && address("b").is_some()
                && address("a") != address("b")
        })
        .await;
        let ended = bed.shared.with(|world| world.count(&Call::StopSandbox));
        assert_eq!(ended, usize::from(first_lives), "one that lives has it");
        if !first_lives {
            assert_eq!(address_of(&bed, "b").as_deref(), Some("10.244.1.2"));
        }
        bed.stop().await;
    }
}

/// A pod that waits, and another whose checkpoint is damaged while its sandbox
/// lives, of which the source knows nothing any more.
async fn one_that_waits_beside_a_damaged_one(range: &str) -> Left {
    let mut bed = Bed::with_network(own(range)).await;
    bed.put(named("damaged"));
    bed.until_status("damaged", "it is Ready", is_ready).await;
    bed.network.show(NetworkState::Waiting("no podCIDR any more".into()));
    bed.put(named("waits"));
    bed.until("it says what it waits for", |world| world.has_event("NetworkNotReady")).await;
    let mut left = bed.stop().await;
    std::fs::write(left.home_path().join("pods/damaged/checkpoint.json"), "{").unwrap();
    left.set.remove(&PodUid::new("damaged"));
    left
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_the_address_of_a_sandbox_whose_checkpoint_is_damaged() {
    let left = one_that_waits_beside_a_damaged_one("10.244.1.0/24").await;
    // It takes its time to end.
    left.shared.with(|world| world.ends_unheard = true);
    let bed = left.next(true).await;
    bed.until("the other has a sandbox", |world| world.places.len() == 2).await;
    bed.shared.with(|world| {
        assert_eq!(world.places[1].1.addresses, ["10.244.1.3".parse::<IpAddr>().unwrap()]);
    });
    // Nothing but the end of that sandbox is waited for: it would not stop.
    bed.kill().await;
}

#[tokio::test(start_paused = true)]
async fn that_address_rests_when_the_sandbox_is_gone() {
    let left = one_that_waits_beside_a_damaged_one("10.244.1.0/30").await;
    let bed = left.next(true).await;
    bed.until("it says what it waits for", |world| {
        let full = "0 pods have one, 1 were let go less than 60 s ago";
        world.events.iter().any(|(_, text)| text.contains(full))
    })
    .await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_says_where_it_is_if_the_checkpoint_does_not() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.shared.with(|world| world.endless.insert("web:1".to_owned()));
    bed.put(one("Always"));
    bed.until("its sandbox is made", |world| world.places.len() == 1).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let left = bed.kill().await;
    // As it was written before there was a sandbox.
    let path = left.home_path().join("pods/u/checkpoint.json");
    let mut written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    written["place"] = Value::Null;
    written["observed"]["sandbox_ready"] = false.into();
    std::fs::write(&path, written.to_string()).unwrap();
    left.shared.with(|world| world.endless.clear());

    let bed = left.next(true).await;
    let status = bed.until_status("u", "it is Ready", is_ready).await;
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.1.2"));
    assert!(!is_free(&bed, "10.244.1.2"));
    assert_eq!(bed.shared.with(|world| world.places.len()), 1, "it is the same sandbox");
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_finished_pod_shows_its_address_and_holds_it_no_more() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Exits(0)));
    bed.put(one("Never"));
    bed.until_phase("u", "Succeeded").await;
    bed.until("its sandbox is gone", |world| world.count(&Call::StopSandbox) == 1).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(is_free(&bed, "10.244.1.2"));
    // Nor does it in the eyes of the next agent, for which it does not rest
    // either: that it was let go is on disk.
    let bed = bed.stop().await.next(true).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let asker = PodUid::new("asker");
    let given = bed.network.allocate(&asker).unwrap();
    assert_eq!(given, ["10.244.1.2".parse::<IpAddr>().unwrap()]);
    bed.network.release(&asker);
    bed.shared.with(|world| {
        assert_eq!(world.last_status("u").unwrap().pod_ip.as_deref(), Some("10.244.1.2"));
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_range_that_is_used_up_is_told_and_waited_for() {
    let mut bed = Bed::with_network(own("10.244.1.0/30")).await;
    bed.put(one("Always"));
    bed.until_status("u", "it is Ready", is_ready).await;
    bed.put(second());
    bed.until("it says what it waits for", |world| {
        let full = "Failed to create pod sandbox: no address left in 10.244.1.0/30: 1 pod has \
                    one; give the node a larger podCIDR, or let it have at most 1 (maxPods)";
        world.events.iter().any(|(reason, text)| reason == "FailedCreatePodSandBox" && text == full)
    })
    .await;
    assert_eq!(bed.shared.with(|world| world.count(&Call::Sandbox)), 1);
    // What comes to the Node later is taken.
    bed.network.show(own("10.244.7.0/24"));
    let status = bed.until_status("u2", "it is Ready", is_ready).await;
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.7.2"));
    bed.stop().await;
}

/// Whether these rules keep a pod from a port of the node's.
fn refuses(rules: &PodNetwork, address: &str, port: u16) -> bool {
    let address: IpAddr = address.parse().unwrap();
    rules.refused.iter().any(|range| range.address == address && range.port == Some(port))
}

#[tokio::test(start_paused = true)]
async fn a_living_sandbox_is_told_where_else_the_node_answers() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.shared.with(|world| world.api_port = Some(10250));
    bed = bed.stop().await.next(true).await;
    bed.put(one("Always"));
    bed.until_status("u", "it is Ready", is_ready).await;
    bed.shared.with(|world| {
        assert!(refuses(&world.places[0].1, "192.0.2.1", 10250));
        assert!(world.rules.is_empty(), "it was made with them");
        // A sandbox that does not listen at once is told until it does.
        world.refuse_rules = 3;
    });
    bed.network.show_node(&["192.0.2.1".parse().unwrap(), "172.17.0.1".parse().unwrap()]);
    bed.until("it is told", |world| !world.rules.is_empty()).await;
    bed.shared.with(|world| {
        assert!(refuses(&world.rules[0], "172.17.0.1", 10250));
        assert_eq!(world.rules[0].addresses, world.places[0].1.addresses);
    });
    // The same again is nothing to be told.
    bed.network.show_node(&["172.17.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap()]);
    tokio::time::sleep(std::time::Duration::from_secs(100)).await;
    assert_eq!(bed.shared.with(|world| world.rules.len()), 1);
    // A new sandbox is made with the newest.
    bed.shared.kill_sandbox("u");
    bed.until("another sandbox is made", |world| world.count(&Call::Sandbox) == 2).await;
    bed.shared.with(|world| assert!(refuses(&world.places[1].1, "172.17.0.1", 10250)));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_goes_on_is_told_what_holds_now_before_a_guest_is_entered() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Exits(1)));
    bed.put(one("Always"));
    bed.until("it waits to be restarted", |world| world.has_event("BackOff")).await;
    let left = bed.kill().await;
    let before = left.shared.with(|world| {
        // The API has another port now, and the sandbox takes its time.
        world.api_port = Some(10260);
        world.refuse_rules = 4;
        assert!(world.rules.is_empty());
        world.calls.len()
    });
    let bed = left.next(true).await;
    bed.until("it runs again", |world| {
        world.calls[before..].iter().any(|(_, call)| matches!(call, Call::Start(_)))
    })
    .await;
    bed.shared.with(|world| {
        let calls = &world.calls[before..];
        let told = calls.iter().rposition(|(_, call)| *call == Call::Rules).unwrap();
        let entered = calls.iter().position(|(_, call)| matches!(call, Call::Start(_))).unwrap();
        assert!(told < entered, "{calls:?}");
        assert!(refuses(&world.rules[0], "192.0.2.1", 10260), "{:?}", world.rules[0]);
        let names = world.rules[0].names.as_ref().unwrap();
        assert!(!names.servers.is_empty(), "it would know no names any more");
        assert_eq!(world.rules[0].names, world.places[0].1.names);
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_http_guest_with_an_address_of_its_own_listens_itself() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.put(pod(json!({"containers": [{"name": "main", "image": "http"}]})));
    bed.until_phase("u", "Running").await;
    bed.shared.with(|world| {
        assert_eq!(world.launches[0].listeners, 0);
        let ports: Vec<_> = world.launches[0].listen_ports.iter().map(|one| one.port).collect();
        assert_eq!(ports, [8080]);
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_nodes_ports_are_bound_for_a_pod_unless_it_has_the_nodes_network() {
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    // Its own are those of all addresses, of both families.
    for (is_host, bound) in [(false, 1), (true, 2)] {
        let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
        let ports = json!([
            {"containerPort": port, "hostPort": port, "hostIP": "127.0.0.9", "protocol": "UDP"},
        ]);
        bed.put(pod(json!({
            "restartPolicy": "Always",
            "hostNetwork": is_host,
            "containers": [{"name": "main", "image": "web:1", "ports": ports}],
        })));
        bed.until_phase("u", "Running").await;
        bed.shared.with(|world| {
            assert_eq!(world.launches[0].datagram_ports, vec![port; bound], "{is_host}");
            assert_eq!(world.launches[0].listener_ports, [0; 0]);
        });
        bed.stop().await;
    }
}

fn with_annotations(annotations: Value) -> Value {
    let mut pod = one("Always");
    pod["metadata"]["annotations"] = annotations;
    pod
}

#[tokio::test(start_paused = true)]
async fn a_pods_annotations_bound_its_sockets_also_while_it_lives() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.put(with_annotations(json!({
        "kubernetes.io/ingress-bandwidth": "10M",
        "network.krustlet.dev/max-sockets": "16384",
        "network.krustlet.dev/max-lookups": "3",
    })));
    bed.until_status("u", "it is Ready", is_ready).await;
    bed.shared.with(|world| {
        let expected = SocketLimits {
            // No more than the node gives.
            sockets: SocketLimits::default().sockets,
            lookups: 3,
            ingress_bits: Some(10_000_000),
            egress_bits: None,
        };
        assert_eq!(world.places[0].1.limits, expected);
        assert!(world.rules.is_empty());
    });
    bed.put(with_annotations(json!({"kubernetes.io/egress-bandwidth": "1M"})));
    bed.until("it is told", |world| !world.rules.is_empty()).await;
    let told = SocketLimits { egress_bits: Some(1_000_000), ..SocketLimits::default() };
    bed.shared.with(|world| assert_eq!(world.rules[0].limits, told));
    // What makes no sense is said, and changes nothing.
    bed.put(with_annotations(json!({"kubernetes.io/egress-bandwidth": "fast"})));
    bed.until("it is said", |world| world.has_event("InvalidNetworkAnnotation")).await;
    bed.network.show_node(&["192.0.2.1".parse().unwrap(), "172.17.0.1".parse().unwrap()]);
    bed.until("it is told again", |world| world.rules.len() > 1).await;
    bed.shared.with(|world| assert_eq!(world.rules[1].limits, told));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_is_told_one_thing_at_a_time_and_the_newest_last() {
    let bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.shared.with(|world| world.api_port = Some(10250));
    let mut bed = bed.stop().await.next(true).await;
    bed.put(one("Always"));
    bed.until_status("u", "it is Ready", is_ready).await;
    let (go_on, slow) = tokio::sync::watch::channel(false);
    bed.shared.with(|world| world.slow_rules = Some(slow));
    let bound =
        |sockets: &str| with_annotations(json!({"network.krustlet.dev/max-sockets": sockets}));
    bed.put(bound("1"));
    bed.until("it is told", |world| world.rules.len() == 1).await;
    // Each in its own way, while the first is under way.
    bed.put(bound("2"));
    bed.network.show_node(&["172.17.0.1".parse().unwrap()]);
    tokio::time::sleep(std::time::Duration::from_secs(100)).await;
    assert_eq!(
        bed.shared.with(|world| world.rules.len()),
        1,
        "the second might overtake the first"
    );

    go_on.send_replace(true);
    bed.until("it is told the newest", |world| {
        let newest = world.rules.last().unwrap();
        newest.limits.sockets == 2 && refuses(newest, "172.17.0.1", 10250)
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(100)).await;
    assert_eq!(bed.shared.with(|world| world.rules.len()), 2, "once is enough");
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_sandbox_is_told_again_if_the_one_before_it_was_being_told() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.put(one("Always"));
    bed.until_status("u", "it is Ready", is_ready).await;
    let (go_on, slow) = tokio::sync::watch::channel(false);
    bed.shared.with(|world| world.slow_rules = Some(slow));
    bed.put(with_annotations(json!({"network.krustlet.dev/max-sockets": "1"})));
    bed.until("it is told", |world| world.rules.len() == 1).await;
    bed.shared.kill_sandbox("u");
    bed.until("another is made", |world| world.places.len() == 2).await;
    // What was under way may reach the new one.
    go_on.send_replace(true);
    bed.until("it is told again", |world| world.rules.len() == 2).await;
    bed.until_status("u", "it is Ready again", is_ready).await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_annotations_make_no_sense_is_refused() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.put(with_annotations(json!({"kubernetes.io/ingress-bandwidth": "10"})));
    let status = bed.until_phase("u", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("InvalidNetworkAnnotation"));
    assert_eq!(
        status.message.as_deref(),
        Some(
            "Pod was rejected: annotation kubernetes.io/ingress-bandwidth: \"10\" is not a \
             bandwidth in bits per second from 1k to 1P, as 10M"
        )
    );
    bed.stop().await;
}

/// A pod with an http server.
fn server(annotations: Value) -> Value {
    let mut pod = pod(json!({
        "restartPolicy": "Always",
        "containers": [{"name": "main", "image": "http"}],
    }));
    pod["metadata"]["annotations"] = annotations;
    pod
}

#[tokio::test(start_paused = true)]
async fn a_pods_annotations_bound_its_http_servers() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    // What makes no sense is told until it is mended.
    bed.put(server(json!({"http.krustlet.dev/request-timeout": "30"})));
    let status = bed
        .until_status("u", "it waits", |status| waits(status) == Some("CreateContainerConfigError"))
        .await;
    let state = main_of(&status).state.as_ref().unwrap();
    let message = state.waiting.as_ref().unwrap().message.as_deref().unwrap();
    assert!(message.contains("\"30\" is not a time such as 30s"), "{message}");
    bed.shared.with(|world| assert!(world.launches.is_empty()));

    bed.put(server(json!({
        "http.krustlet.dev/max-concurrent-requests": "7",
        "http.krustlet.dev/request-timeout": "1m30s",
        "http.krustlet.dev/idle-timeout": "500ms",
        "http.krustlet.dev/max-request-body-size": "10Mi",
        "http.krustlet.dev/max-instance-reuse-count": "9",
        "http.krustlet.dev/max-instance-concurrent-reuse-count": "3",
        "http.krustlet.dev/idle-instance-timeout": "2s",
    })));
    bed.until_status("u", "it is Ready", is_ready).await;
    let mut unbounded = server(json!({}));
    unbounded["metadata"]["name"] = "p2".into();
    unbounded["metadata"]["uid"] = "u2".into();
    unbounded["spec"]["containers"][0]["env"] = json!([
        {"name": "WASMTIME_HTTP_PROXY_SOCKET_ADDR", "value": "0.0.0.0:9090"},
        {"name": "WASMTIME_HTTP_BACKLOG", "value": "77"},
    ]);
    bed.put(unbounded);
    bed.until_status("u2", "it is Ready", is_ready).await;
    bed.shared.with(|world| {
        let told = HttpLimits {
            max_concurrent: 7,
            request_timeout_ms: 90_000,
            idle_timeout_ms: 500,
            max_body_bytes: Some(10 << 20),
            max_instance_reuse: Some(9),
            max_instance_concurrent_reuse: Some(3),
            idle_instance_timeout_ms: 2000,
            backlog: None,
        };
        assert_eq!(world.launches[0].guest, GuestKind::Http(told));
        let told = HttpLimits { backlog: Some(77), ..HttpLimits::default() };
        assert_eq!(world.launches[1].guest, GuestKind::Http(told));
        assert_eq!(world.launches[1].listen_ports[0].port, 9090);
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_rests_though_the_agent_died_while_it_ended_the_pod() {
    let mut bed = Bed::with_network(own("10.244.1.0/24")).await;
    bed.put(one("Always"));
    bed.until_status("u", "it is Ready", is_ready).await;
    bed.shared.with(|world| world.ends_unheard = true);
    bed.delete("u", 5);
    bed.until("its sandbox is gone", |world| world.sandboxes.is_empty()).await;
    let left = bed.kill().await;
    left.shared.with(|world| world.ends_unheard = false);

    let mut bed = left.next(true).await;
    bed.put(second());
    let status = bed.until_status("u2", "it is Ready", is_ready).await;
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.1.3"), "the first one was let go just now");
    bed.stop().await;
}
