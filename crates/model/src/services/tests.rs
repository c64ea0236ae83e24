use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn here() -> Here {
    Here { node: "here".into(), zone: "a".into(), ..Here::default() }
}

fn front(spec: Value) -> Option<Front> {
    with(json!({"metadata": {"namespace": "n", "name": "s"}, "spec": spec}))
}

fn with(service: Value) -> Option<Front> {
    let service: Service = serde_json::from_value(service).unwrap();
    Front::of(&service)
}

fn slices(all: Value) -> Vec<Arc<Slice>> {
    let all: Vec<EndpointSlice> = serde_json::from_value(all).unwrap();
    all.iter().filter_map(Slice::of).map(Arc::new).collect()
}

fn slice(kind: &str, ports: Value, endpoints: Value) -> Value {
    json!({
        "metadata": {
            "namespace": "n", "name": "x", "labels": {"kubernetes.io/service-name": "s"},
        },
        "addressType": kind, "ports": ports, "endpoints": endpoints,
    })
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn texts(lead: &Lead) -> Vec<String> {
    lead.endpoints.iter().map(ToString::to_string).collect()
}

#[test]
fn a_service_is_reached_where_its_spec_and_its_balancer_say() {
    let front = with(json!({
        "metadata": {"namespace": "n", "name": "s"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
            "externalIPs": ["192.0.2.1", "10.96.0.7", "127.0.0.1"],
            "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["10.0.0.0/8", "odd", "fd00::/129"],
            "ports": [
                {"name": "web", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "other", "port": 9, "protocol": "SCTP"},
            ],
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "VIP"},
            {"ip": "198.51.100.3", "ipMode": "Proxy"}, {"hostname": "x.example"},
        ]}},
    }))
    .unwrap();
    let addresses: Vec<_> =
        front.addresses.iter().map(|(ip, kind)| (ip.to_string(), *kind)).collect();
    let expected = [
        ("10.96.0.7", Kind::Cluster),
        ("192.0.2.1", Kind::External),
        ("198.51.100.1", Kind::Balanced),
        ("198.51.100.2", Kind::Balanced),
        ("fd00::7", Kind::Cluster),
    ];
    assert_eq!(addresses, expected.map(|(ip, kind)| (ip.to_owned(), kind)));
    assert_eq!(front.ports.len(), 2);
    assert_eq!(front.affinity, Some(Duration::from_hours(3)));
    assert!(front.is_local);
    // What cannot be read opens nothing to the family that has no other range.
    let nobody = Range { address: ip("::"), prefix: 128 };
    assert_eq!(front.sources, [Range { address: ip("10.0.0.0"), prefix: 8 }, nobody]);
    assert_eq!(front.naming, Naming::Addresses(vec![ip("10.96.0.7"), ip("fd00::7")]));
}

#[test]
fn source_ranges_are_read_as_kubernetes_reads_them_and_else_let_nobody_in() {
    let sources = |ranges: &[&str]| {
        front(json!({"clusterIP": "10.96.0.7", "loadBalancerSourceRanges": ranges}))
            .unwrap()
            .sources
    };
    let range = |address: &str, prefix| Range { address: ip(address), prefix };
    assert_eq!(sources(&[]), []);
    assert_eq!(sources(&[" 010.1.0.0/016 "]), [range("10.1.0.0", 16)]);
    assert_eq!(sources(&["10.1.0.0/16", "fd00::/8"]), [range("10.1.0.0", 16), range("fd00::", 8)]);
    let nobody = [range("0.0.0.0", 32), range("::", 128)];
    assert_eq!(sources(&["odd"]), nobody);
    assert_eq!(sources(&["10.1.0.0/16", "odd"]), [range("10.1.0.0", 16), nobody[1]]);
    let zeros = front(json!({"clusterIP": "10.096.0.07"})).unwrap();
    assert_eq!(zeros.addresses.keys().collect::<Vec<_>>(), [&ip("10.96.0.7")]);
}

#[test]
fn many_ranges_of_one_family_open_nothing_for_the_other() {
    let mut ranges: Vec<_> =
        (0..1000).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    ranges.push("2001:db8::/32".to_owned());
    let front = Front::of(
        &serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "s"},
            "spec": {"clusterIP": "10.96.0.7", "loadBalancerSourceRanges": ranges},
        }))
        .unwrap(),
    );
    let sources = front.unwrap().sources;
    let v6 = Range { address: ip("2001:db8::"), prefix: 32 };
    assert!(sources.len() < 100 && sources.contains(&v6), "{} ranges", sources.len());
}

#[test]
fn nobody_is_led_to_a_service_without_an_address_or_of_another_proxy() {
    let labelled = |label: &str| {
        with(json!({
            "metadata": {"namespace": "n", "name": "s", "labels": {label: ""}},
            "spec": {"clusterIP": "10.96.0.7"},
        }))
    };
    // Its own address stays its own, lest another Service take it.
    let others = labelled("service.kubernetes.io/service-proxy-name");
    assert_eq!(others.unwrap().addresses, BTreeMap::from([(ip("10.96.0.7"), Kind::Others)]));
    // Whether it is headless its address says, whatever it is labelled.
    for label in ["x", "service.kubernetes.io/headless"] {
        assert_eq!(labelled(label).unwrap().addresses.len(), 1, "{label}");
    }
    let headless = front(json!({"clusterIP": "None"})).unwrap();
    assert_eq!((headless.addresses.len(), headless.naming), (0, Naming::Endpoints));
    let elsewhere = front(json!({"type": "ExternalName", "externalName": "x.example"})).unwrap();
    assert_eq!(elsewhere.naming, Naming::Elsewhere("x.example".into()));
    assert!(elsewhere.addresses.is_empty());
    assert_eq!(front(json!({})), None, "it has no address yet");
}

#[test]
fn a_service_has_addresses_only_of_the_kinds_of_its_cluster_ips() {
    let outside = |own: &[&str]| {
        let front = with(json!({
            "metadata": {"namespace": "n", "name": "s"},
            "spec": {"clusterIPs": own, "externalIPs": ["192.0.2.1", "2001:db8::1"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"ip": "2001:db8::2"}]}},
        }));
        let all = front.unwrap().addresses;
        let outside = all.iter().filter(|(_, kind)| **kind != Kind::Cluster);
        outside.map(|(ip, _)| ip.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(outside(&["10.96.0.7"]), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(outside(&["fd00::7"]), ["2001:db8::1", "2001:db8::2"]);
    assert_eq!(outside(&["fd00::7", "10.96.0.7"]).len(), 4);
}

#[test]
fn affinity_lasts_as_long_as_the_service_says() {
    let affinity = |config: Value| {
        let spec = json!({
            "clusterIP": "10.96.0.7", "sessionAffinity": "ClientIP", "sessionAffinityConfig": config,
        });
        front(spec).unwrap().affinity.unwrap()
    };
    assert_eq!(affinity(json!({"clientIP": {"timeoutSeconds": 7}})), Duration::from_secs(7));
    assert_eq!(affinity(json!({})), Duration::from_hours(3));
    assert_eq!(front(json!({"clusterIP": "10.96.0.7"})).unwrap().affinity, None);
}

#[test]
fn ports_are_joined_by_name_and_families_kept_apart() {
    let front = front(json!({
        "clusterIPs": ["10.96.0.7", "fd00::7"],
        "ports": [{"name": "web", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
    }))
    .unwrap();
    let ports =
        json!([{"name": "web", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}]);
    let slices = slices(json!([
        slice("IPv4", ports.clone(), json!([{"addresses": ["10.1.0.2", "10.1.0.9"]}])),
        slice("IPv4", json!([{"name": "web", "port": 9090}]), json!([{"addresses": ["10.1.0.3"]}])),
        slice(
            "IPv6",
            ports.clone(),
            json!([{"addresses": ["fd01::2"]}, {"addresses": ["10.1.0.4"]}])
        ),
        slice("FQDN", ports, json!([{"addresses": ["x.example"]}])),
        slice("IPv4", json!([{"name": "web"}, {"port": 1}]), json!([{"addresses": ["10.1.0.5"]}])),
        slice(
            "IPv4",
            json!([{"name": "web", "port": 1}]),
            json!([
                {"addresses": ["127.0.0.1"]}, {"addresses": ["169.254.169.254"]}, {"addresses": ["0.0.0.0"]},
            ])
        ),
    ]));
    let v4 = leads(&front, &slices, Kind::Cluster, false, &here());
    assert_eq!(texts(&v4[0]), ["10.1.0.2:8080", "10.1.0.3:9090"]);
    assert_eq!((v4[1].port, texts(&v4[1])), (53, vec!["10.1.0.2:5353".to_owned()]));
    let v6 = leads(&front, &slices, Kind::Cluster, true, &here());
    assert_eq!(texts(&v6[0]), ["[fd01::2]:8080"]);
}

#[test]
fn of_two_endpoints_with_one_address_the_one_that_does_not_end_counts() {
    let front = front(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]})).unwrap();
    let port = json!([{"name": "", "port": 8080}]);
    let one = |node: &str, terminating: bool| {
        let conditions =
            json!({"ready": !terminating, "serving": true, "terminating": terminating});
        let endpoint =
            json!({"addresses": ["10.1.0.2"], "conditions": conditions, "nodeName": node});
        slice("IPv4", port.clone(), json!([endpoint]))
    };
    let other = slice("IPv4", port.clone(), json!([{"addresses": ["10.1.0.3"]}]));
    let ends = one("here", true);
    let stays = one("there", false);
    for all in [[&ends, &stays, &other], [&stays, &ends, &other]] {
        let lead = leads(&front, &slices(json!(all)), Kind::Cluster, false, &here()).remove(0);
        assert_eq!(texts(&lead), ["10.1.0.2:8080", "10.1.0.3:8080"]);
    }
}

#[test]
fn slices_of_headless_services_are_for_names_alone() {
    let front = front(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]})).unwrap();
    let port = json!([{"name": "", "port": 8080}]);
    let mut headless = slice("IPv4", port.clone(), json!([{"addresses": ["10.1.0.2"]}]));
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    let slices =
        slices(json!([headless, slice("IPv4", port, json!([{"addresses": ["10.1.0.3"]}]))]));
    let lead = leads(&front, &slices, Kind::Cluster, false, &here()).remove(0);
    assert_eq!(texts(&lead), ["10.1.0.3:8080"]);
    assert_eq!(named_endpoints(&slices).len(), 2);
}

#[test]
fn slices_are_followed_whichever_proxy_their_labels_name() {
    let front = front(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]})).unwrap();
    let port = json!([{"name": "", "port": 8080}]);
    let mut other = slice("IPv4", port, json!([{"addresses": ["10.1.0.2"]}]));
    other["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("x");
    let slices = slices(json!([other]));
    let lead = leads(&front, &slices, Kind::Cluster, false, &here()).remove(0);
    assert_eq!(texts(&lead), ["10.1.0.2:8080"]);
    assert_eq!(named_endpoints(&slices).len(), 1);
}

#[test]
fn a_headless_service_is_called_by_those_that_are_ready() {
    let slices = slices(json!([
        slice(
            "IPv4",
            json!([]),
            json!([
                {"addresses": ["10.1.0.2"], "hostname": "web-0"},
                {"addresses": ["10.1.0.3"], "conditions": {"ready": false}},
            ])
        ),
        slice("IPv6", json!([]), json!([{"addresses": ["fd01::2"]}])),
        slice("IPv4", json!([]), json!([{"addresses": ["10.1.0.2"], "hostname": "web-0"}])),
    ]));
    let named = named_endpoints(&slices);
    let named: Vec<_> = named.iter().map(|one| (one.address.to_string(), &*one.hostname)).collect();
    assert_eq!(named, [("10.1.0.2".to_owned(), "web-0"), ("fd01::2".to_owned(), "fd01--2")]);
}

#[test]
fn of_too_many_endpoints_each_node_takes_some() {
    let front = front(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]})).unwrap();
    let endpoints: Vec<_> = (0..3000_u32)
        .map(|n| json!({"addresses": [format!("10.1.{}.{}", n / 250, n % 250)]}))
        .collect();
    let slices =
        slices(json!([slice("IPv4", json!([{"name": "", "port": 80}]), json!(endpoints))]));
    let at = |node: &str| {
        let here = Here { node: node.into(), ..Here::default() };
        leads(&front, &slices, Kind::Cluster, false, &here).remove(0).endpoints
    };
    assert_eq!(at("one").len(), 1024);
    assert_eq!(at("one"), at("one"));
    assert_ne!(at("one"), at("two"));
    assert!(at("one").is_sorted());
}

/// An endpoint as the rules see it.
#[derive(Clone, Debug)]
struct One {
    number: u8,
    ready: bool,
    serving: bool,
    terminating: bool,
    is_here: bool,
    zones: Vec<&'static str>,
    nodes: Vec<&'static str>,
}

fn ones() -> impl Strategy<Value = Vec<One>> {
    let hints = |of: [&'static str; 2]| {
        prop_oneof![
            2 => Just(vec![]),
            3 => Just(vec![of[0]]),
            2 => Just(vec![of[1]]),
            1 => Just(of.to_vec()),
        ]
    };
    let bits = any::<(bool, bool, bool, bool)>();
    let one = (1_u8..9, bits, hints(["a", "b"]), hints(["here", "there"]));
    let one = one.prop_map(|(number, (ready, serving, terminating, is_here), zones, nodes)| One {
        number,
        ready,
        serving,
        terminating,
        is_here,
        zones,
        nodes,
    });
    // No address twice: which of two counts has a rule of its own.
    prop::collection::vec(one, 0..6).prop_map(|mut all| {
        all.sort_by_key(|one| one.number);
        all.dedup_by_key(|one| one.number);
        all
    })
}

fn address(one: &One) -> SocketAddr {
    format!("10.1.0.{}:8080", one.number).parse().unwrap()
}

fn lead(all: &[One], is_local: bool, kind: Kind) -> Lead {
    let policy = if is_local { "Local" } else { "Cluster" };
    let front = front(json!({
        "clusterIP": "10.96.0.7", "internalTrafficPolicy": policy,
        "externalIPs": ["192.0.2.1"], "ports": [{"port": 80}],
    }))
    .unwrap();
    let named = |all: &[&str]| all.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    let endpoints: Vec<_> = all
        .iter()
        .map(|one| {
            json!({
                "addresses": [address(one).ip()],
                "conditions": {
                    "ready": one.ready, "serving": one.serving, "terminating": one.terminating,
                },
                "nodeName": if one.is_here { "here" } else { "there" },
                "hints": {"forZones": named(&one.zones), "forNodes": named(&one.nodes)},
            })
        })
        .collect();
    let slices =
        slices(json!([slice("IPv4", json!([{"name": "", "port": 8080}]), json!(endpoints)),]));
    leads(&front, &slices, kind, false, &here()).remove(0)
}

/// The addresses of those.
fn those(all: &[One], wanted: impl Fn(&One) -> bool) -> Vec<SocketAddr> {
    all.iter().filter(|one| wanted(one)).map(address).collect()
}

proptest! {
    #[test]
    fn only_who_is_ready_is_called_as_long_as_somebody_is(all in ones()) {
        let lead = lead(&all, false, Kind::Cluster);
        let ready = those(&all, |one| one.ready);
        let ending = those(&all, |one| one.serving && one.terminating);
        if ready.is_empty() {
            prop_assert_eq!(lead.endpoints, ending);
        } else {
            prop_assert!(!lead.endpoints.is_empty());
            let ready: BTreeSet<_> = ready.into_iter().collect();
            prop_assert!(lead.endpoints.iter().all(|one| ready.contains(one)));
        }
        prop_assert_eq!(lead.otherwise, Otherwise::Refused);
    }

    #[test]
    fn hints_count_if_all_have_one_and_one_is_for_here(all in ones()) {
        let lead = lead(&all, false, Kind::Cluster);
        let ready: Vec<&One> = all.iter().filter(|one| one.ready).collect();
        let all_name = |names: fn(&One) -> &Vec<&str>, here: &str| {
            ready.iter().all(|one| !names(one).is_empty())
                && ready.iter().any(|one| names(one).contains(&here))
        };
        let expected = if ready.is_empty() {
            those(&all, |one| one.serving && one.terminating)
        } else if all_name(|one| &one.nodes, "here") {
            those(&all, |one| one.ready && one.nodes.contains(&"here"))
        } else if all_name(|one| &one.zones, "a") {
            those(&all, |one| one.ready && one.zones.contains(&"a"))
        } else {
            those(&all, |one| one.ready)
        };
        prop_assert_eq!(lead.endpoints, expected);
    }

    #[test]
    fn a_local_policy_stays_on_the_node_and_is_silent_if_others_could_answer(all in ones()) {
        let local = lead(&all, true, Kind::Cluster);
        let ready = those(&all, |one| one.ready && one.is_here);
        let ending = those(&all, |one| one.serving && one.terminating && one.is_here);
        prop_assert_eq!(local.endpoints, if ready.is_empty() { ending } else { ready });
        let is_any = all.iter().any(|one| one.ready || one.serving && one.terminating);
        let expected = if is_any { Otherwise::Dropped } else { Otherwise::Refused };
        prop_assert_eq!(local.otherwise, expected);
        // Other addresses of the same Service are for all.
        prop_assert_eq!(lead(&all, true, Kind::External), lead(&all, false, Kind::Cluster));
    }
}

#[test]
fn what_is_kept_of_a_service_is_what_counts_and_no_more() {
    let full = json!({
        "metadata": {
            "namespace": "n", "name": "s", "resourceVersion": "1",
            "annotations": {"a": "1"}, "labels": {"app": "x"},
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
            "externalIPs": ["192.0.2.1"], "internalTrafficPolicy": "Local", "selector": {"app": "x"},
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 9}},
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "ports": [
                {"name": "a", "port": 80, "nodePort": 30080, "targetPort": 8080},
                {"name": "b", "port": 53, "protocol": "UDP"},
            ],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}]}},
    });
    let read = |service: &Value| -> Service { serde_json::from_value(service.clone()).unwrap() };
    let kinds: [fn(&mut Value); 4] = [
        |_| {},
        |one| one["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("x"),
        |one| one["spec"]["clusterIP"] = json!("None"),
        |one| one["spec"] = json!({"type": "ExternalName", "externalName": "example.org"}),
    ];
    for change in kinds {
        let mut full = full.clone();
        change(&mut full);
        let kept = slim(read(&full));
        assert!(Front::of(&kept).is_some());
        assert_eq!(Front::of(&kept), Front::of(&read(&full)));
        let variables = |of: Service| crate::env::service_variables(&[Arc::new(of)], "n", true);
        assert_eq!(variables(kept.clone()), variables(read(&full)));
        // What others write there changes nothing.
        full["metadata"]["resourceVersion"] = json!("2");
        full["metadata"]["annotations"] = json!({"a": "2"});
        full["metadata"]["labels"]["app"] = json!("y");
        full["spec"]["selector"] = json!({"app": "y"});
        full["status"]["conditions"] = json!([]);
        assert_eq!(slim(read(&full)), kept);
    }
}
