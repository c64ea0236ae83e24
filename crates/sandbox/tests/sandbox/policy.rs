//! What the cluster's policies and a pod's own list let guests do.

use krustlet_model::{
    outbound::Outbound,
    policy::{AddressRange, PodPolicy, PolicyRule, PortRange},
    services::Transport,
};
use krustlet_protocol::{Destinations, Host, Names, PodNetwork};

use crate::{
    fixture::{Sandbox, Zygote},
    sockets::{network, report, run, serve},
};

const SERVER: &str = "10.77.0.1";

/// Lets through one address and one port, of both protocols.
fn one(address: &str, port: u16) -> Vec<PolicyRule> {
    let ports = [Transport::Tcp, Transport::Udp].map(|protocol| PortRange {
        protocol,
        first: port,
        last: port,
    });
    let peers = vec![AddressRange::one(address.parse().unwrap())];
    vec![PolicyRule { peers: Some(peers), ports: Some(ports.to_vec()) }]
}

fn under(policy: PodPolicy, address: &str) -> PodNetwork {
    PodNetwork { policy: Some(policy), ..network(&[address]) }
}

fn get(sandbox: &Sandbox, how: &str) -> String {
    run(sandbox, "pod", &[how, SERVER, "8080", "hello"])
}

pub(crate) fn only_whom_a_policy_lets_in_is_heard() {
    let zygote = Zygote::start();
    let [server, friend, stranger] = [(); 3].map(|()| zygote.sandbox());
    // Nor does it let anything out but answers.
    let policy = PodPolicy { ingress: Some(one("10.77.0.2", 8080)), ..PodPolicy::closed() };
    server.network("pod", &under(policy, SERVER));
    friend.network("pod", &network(&["10.77.0.2"]));
    stranger.network("pod", &network(&["10.77.0.3"]));
    serve(&server, "pod", &["tcp-echo", "8080"]);
    serve(&server, "pod", &["udp-echo", "8080"]);
    serve(&server, "pod", &["tcp-echo", "8081"]);
    for how in ["tcp-get", "udp-get"] {
        assert_eq!(get(&friend, how), "hello", "{how}");
        let before = report(&server);
        assert_ne!(get(&stranger, how), "hello", "{how}");
        let after = report(&server);
        assert!(after.refusals.policy > before.refusals.policy, "{how}");
        assert_eq!(after.accepted, before.accepted, "{how}");
    }
    assert_ne!(run(&friend, "pod", &["tcp-get", SERVER, "8081", "hello"]), "hello");
    // Within the pod nobody is asked, by whatever address.
    for own in ["127.0.0.1", SERVER] {
        assert_eq!(run(&server, "pod", &["tcp-get", own, "8081", "hello"]), "hello", "{own}");
    }
    // The node's probes come whatever the policy says.
    let node = vec!["10.77.0.3".parse().unwrap()];
    server.network("pod", &under(PodPolicy { node, ..PodPolicy::closed() }, SERVER));
    assert_eq!(get(&stranger, "tcp-get"), "hello");
    assert_ne!(get(&friend, "tcp-get"), "hello");
}

pub(crate) fn a_policy_lets_guests_out_and_answers_in() {
    let zygote = Zygote::start();
    let [server, client] = [(); 2].map(|()| zygote.sandbox());
    server.network("pod", &network(&[SERVER]));
    let policy = PodPolicy { egress: Some(one(SERVER, 8080)), ..PodPolicy::closed() };
    client.network("pod", &under(policy, "10.77.0.2"));
    serve(&server, "pod", &["tcp-echo", "8080"]);
    serve(&server, "pod", &["udp-echo", "8080"]);
    serve(&server, "pod", &["udp-echo", "8081"]);
    for how in ["tcp-get", "udp-get"] {
        assert_eq!(get(&client, how), "hello", "{how}");
    }
    let refused = report(&client).refusals.policy;
    for call in [
        &["connect", SERVER, "8081"][..],
        &["connect", "10.77.0.3", "8080"],
        &["udp-get", SERVER, "8081", "hello"],
    ] {
        assert_eq!(run(&client, "pod", call), "access-denied", "{call:?}");
    }
    assert!(report(&client).refusals.policy >= refused + 3);
}

pub(crate) fn a_policy_that_is_not_known_stays_what_it_was() {
    let zygote = Zygote::start();
    let [server, client] = [(); 2].map(|()| zygote.sandbox());
    let unknown = |address| PodNetwork { policy: None, ..network(&[address]) };
    // One that was never known lets nothing through.
    client.network("pod", &unknown("10.77.0.2"));
    assert_eq!(run(&client, "pod", &["connect", SERVER, "8080"]), "access-denied");
    client.network("pod", &network(&["10.77.0.2"]));
    server.network("pod", &under(PodPolicy::closed(), SERVER));
    serve(&server, "pod", &["tcp-echo", "8080"]);
    assert_ne!(get(&client, "tcp-get"), "hello");
    server.network("pod", &unknown(SERVER));
    assert_ne!(get(&client, "tcp-get"), "hello");
    server.network("pod", &network(&[SERVER]));
    client.network("pod", &unknown("10.77.0.2"));
    assert_eq!(get(&client, "tcp-get"), "hello");
}

pub(crate) fn guests_go_only_where_their_pods_list_says() {
    let zygote = Zygote::start();
    let [server, client] = [(); 2].map(|()| zygote.sandbox());
    server.network("pod", &network(&[SERVER]));
    for port in ["8080", "8081"] {
        serve(&server, "pod", &["tcp-echo", port]);
    }
    let line = |address: &str, name: &str| Host {
        address: address.parse().unwrap(),
        names: vec![name.to_owned()],
    };
    let hosts = vec![
        line(SERVER, "db.test"),
        line(SERVER, "other.test"),
        line("10.77.0.9", "rebound.test"),
    ];
    let listed = |list: &str| PodNetwork {
        outbound: Some(Outbound::read(list).unwrap()),
        refused: vec![Destinations {
            address: "10.77.0.9".parse().unwrap(),
            prefix: 32,
            port: None,
        }],
        names: Some(Names { hosts: hosts.clone(), ..Names::default() }),
        ..network(&["10.77.0.2"])
    };
    let call = |args: &[&str]| run(&client, "pod", args);
    client.network("pod", &listed("db.test:8080, rebound.test, 10.77.0.1:8081"));
    assert!(call(&["connect", SERVER, "8081"]).starts_with("ok"), "by its address");
    assert_eq!(call(&["connect", SERVER, "8080"]), "access-denied", "not looked up yet");
    assert_eq!(call(&["lookup", "other.test"]), "access-denied");
    assert_eq!(call(&["connect", SERVER, "8080"]), "access-denied", "by another name");
    assert_eq!(call(&["lookup", "db.test"]), SERVER);
    assert!(call(&["connect", SERVER, "8080"]).starts_with("ok"), "by its name");
    // What is refused to all stays refused.
    assert_eq!(call(&["lookup", "rebound.test"]), "10.77.0.9");
    assert_eq!(call(&["connect", "10.77.0.9", "80"]), "access-denied");
    let refused = report(&client).refusals;
    assert!(refused.list >= 3 && refused.destination == 1, "{refused:?}");
    // Another list knows nothing of what this one let through.
    client.network("pod", &listed("rebound.test"));
    assert_eq!(call(&["connect", SERVER, "8080"]), "access-denied");
}
