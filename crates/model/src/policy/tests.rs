//! Policies against a slow and obvious reading of them.

use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicySpec};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use std::{collections::BTreeMap, sync::Arc};

/// A small cluster: what there is of each kind, few enough to meet often.
const NAMESPACES: [&str; 2] = ["one", "two"];
const VALUES: [&str; 2] = ["a", "b"];

#[derive(Clone, Debug)]
struct OnePod {
    namespace: &'static str,
    label: Option<&'static str>,
    last: u8,
    named: Option<(Transport, u16)>,
}

impl OnePod {
    fn labels(&self) -> Labels {
        self.label.iter().map(|value| ("k".to_owned(), (*value).to_owned())).collect()
    }

    fn address(&self) -> IpAddr {
        IpAddr::from([10, 0, 0, self.last])
    }

    fn ports(&self) -> Vec<NamedPort> {
        let named = self.named.iter();
        named.map(|&(protocol, port)| NamedPort { name: "p".into(), protocol, port }).collect()
    }

    fn peer(&self) -> PeerPod {
        PeerPod {
            namespace: self.namespace.to_owned(),
            labels: self.labels(),
            addresses: vec![self.address()],
            ports: self.ports(),
        }
    }

    fn object(&self) -> Pod {
        let port = self.named.map(|(protocol, port)| {
            let protocol = if protocol == Transport::Tcp { "TCP" } else { "UDP" };
            json!({"name": "p", "protocol": protocol, "containerPort": port})
        });
        let ports: Vec<_> = port.into_iter().collect();
        serde_json::from_value(json!({
            "metadata": {"namespace": self.namespace, "labels": self.labels()},
            "spec": {"containers": [{"name": "c", "ports": ports}]},
        }))
        .unwrap()
    }
}

fn of_values() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&VALUES[..])
}

fn one_pod() -> impl Strategy<Value = OnePod> {
    let protocol = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)];
    let named = prop::option::of((protocol, 1_u16..4));
    let namespace = prop::sample::select(&NAMESPACES[..]);
    (namespace, prop::option::of(of_values()), 1_u8..8, named)
        .prop_map(|(namespace, label, last, named)| OnePod { namespace, label, last, named })
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        of_values().prop_map(|value| json!({"matchLabels": {"k": value}})),
        of_values().prop_map(|value| json!({
            "matchExpressions": [{"key": "k", "operator": "NotIn", "values": [value]}],
        })),
        Just(json!({"matchExpressions": [{"key": "k", "operator": "Exists"}]})),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        selector().prop_map(|spaces| json!({"namespaceSelector": spaces})),
        (selector(), selector())
            .prop_map(|(pods, spaces)| json!({"podSelector": pods, "namespaceSelector": spaces})),
        (0_u8..8, 29_u8..=32, prop::collection::vec(0_u8..8, 0..2)).prop_map(
            |(last, prefix, but)| {
                let except: Vec<_> = but.iter().map(|last| format!("10.0.0.{last}/31")).collect();
                json!({"ipBlock": {"cidr": format!("10.0.0.{last}/{prefix}"), "except": except}})
            }
        ),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = prop_oneof![Just("TCP"), Just("UDP"), Just("SCTP")];
    let which = prop_oneof![
        Just(json!({})),
        (1_u16..4).prop_map(|port| json!({"port": port})),
        (1_u16..4, 1_u16..5).prop_map(|(port, end)| json!({"port": port, "endPort": end})),
        Just(json!({"port": "p"})),
    ];
    (protocol, which).prop_map(|(protocol, mut port)| {
        port["protocol"] = protocol.into();
        port
    })
}

fn policy() -> impl Strategy<Value = Value> {
    let rules = |peers: &'static str| {
        let rule = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3));
        let rule = rule.prop_map(move |(list, ports)| json!({peers: list, "ports": ports}));
        prop::collection::vec(rule, 0..3)
    };
    let types = prop_oneof![
        Just(json!([])),
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Ingress", "Egress"])),
    ];
    (selector(), types, rules("from"), rules("to")).prop_map(
        |(selector, types, ingress, egress)| {
            json!({
                "podSelector": selector,
                "policyTypes": types,
                "ingress": ingress,
                "egress": egress,
            })
        },
    )
}

/// Whether JSON says of labels what a selector does.
fn chosen(selector: &Value, labels: &Labels) -> bool {
    let value = labels.get("k").map(String::as_str);
    if let Some(wanted) = selector["matchLabels"]["k"].as_str() {
        return value == Some(wanted);
    }
    match selector["matchExpressions"][0]["operator"].as_str() {
        None => true,
        Some("Exists") => value.is_some(),
        Some(_) => value != selector["matchExpressions"][0]["values"][0].as_str(),
    }
}

struct Asked<'a> {
    pods: &'a [OnePod],
    spaces: &'a BTreeMap<String, Labels>,
    /// Whose policies they are.
    namespace: &'a str,
    address: IpAddr,
    protocol: Transport,
    port: u16,
}

impl Asked<'_> {
    /// Whether a peer is at the address, and if it is a pod which.
    fn is_peer(&self, peer: &Value, pod: Option<&OnePod>) -> bool {
        if let Some(cidr) = peer["ipBlock"]["cidr"].as_str() {
            let within = |text: &str| AddressRange::parse(text).unwrap().contains(self.address);
            let but = peer["ipBlock"]["except"].as_array().unwrap();
            return within(cidr) && !but.iter().any(|text| within(text.as_str().unwrap()));
        }
        let Some(pod) = pod else { return false };
        let space = match peer.get("namespaceSelector") {
            None => pod.namespace == self.namespace,
            Some(selector) => chosen(selector, &self.spaces[pod.namespace]),
        };
        space && peer.get("podSelector").is_none_or(|selector| chosen(selector, &pod.labels()))
    }

    /// Whether a port is the one that is asked for, given the names at the
    /// destination.
    fn is_port(&self, port: &Value, destination: Option<&OnePod>) -> bool {
        let protocol = if self.protocol == Transport::Tcp { "TCP" } else { "UDP" };
        if port["protocol"] != protocol {
            return false;
        }
        match (&port["port"], port["endPort"].as_u64()) {
            (Value::Null, _) => true,
            (Value::Number(first), last) => {
                let first = first.as_u64().unwrap();
                (first..=last.unwrap_or(first)).contains(&self.port.into())
            }
            _ => destination.is_some_and(|pod| pod.named == Some((self.protocol, self.port))),
        }
    }

    /// For one direction: no policy, or one rule that fits.
    fn is_let_through(&self, policies: &[Value], own: &OnePod, kind: &str) -> bool {
        let (rules, peers) = if kind == "Ingress" { ("ingress", "from") } else { ("egress", "to") };
        let all = |list: &Value| list.as_array().unwrap().clone();
        let mut is_isolated = false;
        for policy in policies.iter().filter(|policy| chosen(&policy["podSelector"], &own.labels()))
        {
            let types = all(&policy["policyTypes"]);
            let applies = if types.is_empty() {
                kind == "Ingress" || !all(&policy["egress"]).is_empty()
            } else {
                types.contains(&kind.into())
            };
            if !applies {
                continue;
            }
            is_isolated = true;
            // Several pods may be at one address here; the real ones are not.
            let mut there: Vec<_> =
                self.pods.iter().filter(|pod| pod.address() == self.address).map(Some).collect();
            there.push(None);
            for rule in all(&policy[rules]) {
                for pod in &there {
                    let destination = if kind == "Ingress" { Some(own) } else { *pod };
                    let (peers, ports) = (all(&rule[peers]), all(&rule["ports"]));
                    if (peers.is_empty() || peers.iter().any(|peer| self.is_peer(peer, *pod)))
                        && (ports.is_empty()
                            || ports.iter().any(|port| self.is_port(port, destination)))
                    {
                        return true;
                    }
                }
            }
        }
        !is_isolated
    }
}

fn book(policies: &[Value], spaces: &BTreeMap<String, Labels>, pods: &[OnePod]) -> Book {
    let policies = policies.iter().enumerate().map(|(number, policy)| {
        let spec: NetworkPolicySpec = serde_json::from_value(policy.clone()).unwrap();
        (("one".to_owned(), format!("policy-{number}")), Arc::new(spec))
    });
    let pods = pods.iter().enumerate().map(|(number, pod)| {
        ((pod.namespace.to_owned(), format!("pod-{number}")), Arc::new(pod.peer()))
    });
    Book::new(&policies.collect(), Arc::new(spaces.clone()), Arc::new(pods.collect()))
}

fn spaces() -> impl Strategy<Value = BTreeMap<String, Labels>> {
    prop::collection::vec(prop::option::of(of_values()), 2).prop_map(|values| {
        NAMESPACES
            .iter()
            .zip(values)
            .map(|(name, value)| {
                let labels = value.map(|value| ("k".to_owned(), value.to_owned()));
                ((*name).to_owned(), labels.into_iter().collect())
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn what_is_let_through_is_what_some_policy_says(
        policies in prop::collection::vec(policy(), 0..4),
        spaces in spaces(),
        pods in prop::collection::vec(one_pod(), 0..6),
        mut own in one_pod(),
        node in 0_u8..8,
    ) {
        own.namespace = "one";
        let mut policy = book(&policies, &spaces, &pods).of(&own.object()).policy.clone();
        policy.node = vec![IpAddr::from([10, 0, 0, node])];
        for last in 0..9 {
            for protocol in [Transport::Tcp, Transport::Udp] {
                for port in 0..5 {
                    let address = IpAddr::from([10, 0, 0, last]);
                    let (pods, spaces, namespace) = (&pods[..], &spaces, "one");
                    let asked = Asked { pods, spaces, namespace, address, protocol, port };
                    let at = format!("{address} {protocol:?} {port}");
                    let sources = policy.sources(protocol, port);
                    prop_assert_eq!(
                        policy.lets_in(protocol, address, port),
                        sources.is_none_or(|all| all.iter().any(|range| range.contains(address))),
                        "a source {}", at
                    );
                    prop_assert_eq!(
                        policy.lets_in(protocol, address, port),
                        last == node || asked.is_let_through(&policies, &own, "Ingress"),
                        "in from {}", at
                    );
                    prop_assert_eq!(
                        policy.lets_out(protocol, SocketAddr::new(address, port)),
                        asked.is_let_through(&policies, &own, "Egress"),
                        "out to {}", at
                    );
                }
            }
        }
    }

    #[test]
    fn nobody_who_would_be_answered_otherwise_is_left_in_the_dark(
        policies in prop::collection::vec(policy(), 0..3),
        others in prop::collection::vec(policy(), 0..3),
        spaces in spaces(),
        pods in prop::collection::vec(one_pod(), 0..5),
        more in prop::collection::vec(one_pod(), 0..2),
        asks in prop::collection::vec(one_pod(), 0..3),
        has_others: bool,
    ) {
        let before = book(&policies, &spaces, &pods);
        let asks: Vec<_> = asks.iter().map(OnePod::object).collect();
        let answers: Vec<_> = asks.iter().map(|pod| before.of(pod)).collect();
        let all: Vec<_> = pods.iter().chain(&more).cloned().collect();
        let policies_now = if has_others { &others } else { &policies };
        let mut after = book(policies_now, &spaces, &all);
        let differs = after.follow(&before);
        prop_assert!(differs || after.covers(&before), "nobody asked since then");
        for pod in &asks {
            prop_assert!(after.known(pod).is_some() || differs);
        }
        let others: Vec<_> = asks.iter().map(|pod| after.of(pod)).collect();
        prop_assert!(differs || answers == others);
        // What is taken over is what one says who sees it for the first time.
        let fresh = book(policies_now, &spaces, &all);
        let expected: Vec<_> = asks.iter().map(|pod| fresh.of(pod)).collect();
        prop_assert_eq!(others, expected);
        prop_assert!(!book(&policies, &spaces, &pods).follow(&before));
    }
}

fn own() -> OnePod {
    OnePod { namespace: "one", label: None, last: 1, named: None }
}

#[test]
fn what_is_too_much_for_a_pod_is_told_and_lets_nothing_more_through() {
    let peers: Vec<_> = (0..=MOST_PARTS)
        .map(|number| json!({"ipBlock": {"cidr": format!("10.{}.{}.0/32", number / 256, number % 256)}}))
        .collect();
    let policy = |peers: &[Value]| {
        let rules = json!([
            {"from": [{"ipBlock": {"cidr": "192.0.2.1/32"}}]},
            {"from": peers},
        ]);
        let all = json!({"podSelector": {}, "ingress": rules});
        book(&[all], &BTreeMap::new(), &[]).of(&own().object())
    };
    let verdict = policy(&peers[..MOST_RANGES - 1]);
    assert_eq!(verdict.excess, None);
    assert!(verdict.policy.lets_in(Transport::Tcp, "10.0.0.0".parse().unwrap(), 1));
    let verdict = policy(&peers[..=MOST_RANGES]);
    assert_eq!(verdict.excess, Some(Excess::Pod));
    assert!(verdict.policy.lets_in(Transport::Tcp, "192.0.2.1".parse().unwrap(), 1));
    assert!(!verdict.policy.lets_in(Transport::Tcp, "10.0.0.0".parse().unwrap(), 1));
    // One that says too much to be looked at.
    let verdict = policy(&peers);
    assert_eq!(verdict.excess, Some(Excess::Pod));
    assert!(!verdict.policy.lets_in(Transport::Tcp, "192.0.2.1".parse().unwrap(), 1));
}

#[test]
fn zeros_before_the_numbers_of_a_block_count_for_nothing() {
    let block = json!({"cidr": "010.0.0.0/08", "except": ["010.0.1.0/024"]});
    let policy = json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": block}]}]});
    let verdict = book(&[policy], &BTreeMap::new(), &[]).of(&own().object());
    let lets_in = |from: &str| verdict.policy.lets_in(Transport::Tcp, from.parse().unwrap(), 1);
    assert_eq!(["10.9.0.1", "10.0.1.1", "8.0.0.1"].map(lets_in), [true, false, false]);
}

#[test]
fn what_cannot_be_read_opens_nothing() {
    let odd = json!({"matchExpressions": [{"key": "k", "operator": "Near"}]});
    for rule in [
        json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/40"}}]}),
        json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x"]}}]}),
        json!({"from": [{"podSelector": odd}]}),
        json!({"from": [{"namespaceSelector": odd}]}),
        json!({"from": [{}]}),
        json!({"ports": [{"port": 70_000}]}),
        json!({"ports": [{"port": "p", "endPort": 9}]}),
        json!({"ports": [{"endPort": 9}]}),
    ] {
        let policy = json!({"podSelector": odd, "ingress": [rule]});
        let verdict = book(&[policy], &BTreeMap::new(), &[own()]).of(&own().object());
        assert!(!verdict.policy.lets_in(Transport::Tcp, own().address(), 1), "{rule}");
    }
}
