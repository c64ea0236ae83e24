//! That working policies out is cheap, comes to what plain loops would, and is
//! bounded.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::Pod,
    networking::v1::{NetworkPolicyPeer, NetworkPolicySpec},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    index::Index, named::Named, resolve::resolve, select::selects, size::parts, whom::Whom, *,
};

fn spec(policy: &Value) -> NetworkPolicySpec {
    serde_json::from_value(policy.clone()).unwrap()
}

/// Policies of namespaces, by these and in order.
fn book<'a>(
    policies: impl IntoIterator<Item = (&'a str, Value)>,
    pods: &Arc<BTreeMap<PolicyKey, Arc<PeerPod>>>,
) -> Book {
    let policies = policies.into_iter().enumerate();
    let policies = policies.map(|(number, (namespace, policy))| {
        ((namespace.to_owned(), format!("policy-{number:05}")), Arc::new(spec(&policy)))
    });
    let spaces = ["one", "two"].map(|name| (name.to_owned(), Labels::new()));
    Book::new(&policies.collect(), Arc::new(spaces.into()), Arc::clone(pods))
}

fn pod(namespace: &str) -> Pod {
    serde_json::from_value(json!({"metadata": {"namespace": namespace}})).unwrap()
}

/// So many pods that no two addresses follow each other, each with a label and a
/// port of its own, a label that a tenth has and a port that all have.
fn crowd(count: u32) -> Arc<BTreeMap<PolicyKey, Arc<PeerPod>>> {
    let each = (0..count).map(|number| {
        let tenth = (number % 10).to_string();
        let labels = [("tenth".to_owned(), tenth), ("is".to_owned(), number.to_string())];
        let port = |name: &str, port: u32| NamedPort {
            name: name.to_owned(),
            protocol: Transport::Tcp,
            port: u16::try_from(port).unwrap(),
        };
        let pod = PeerPod {
            namespace: if number % 2 == 0 { "one" } else { "two" }.to_owned(),
            labels: labels.into(),
            addresses: vec![Ipv4Addr::from_bits(0x0a00_0000 + 2 * number).into()],
            ports: vec![port("web", 80), port("own", number)],
        };
        ((pod.namespace.clone(), format!("pod-{number:05}")), Arc::new(pod))
    });
    Arc::new(each.collect())
}

/// What one namespace's policies may cost for a pod of it.
fn bound(parts: usize, pods: usize) -> u64 {
    let words = pods.div_ceil(64);
    // Beside a few looks for each part: what is told of addresses, of several
    // policies that say the same too, and of the one that is too much.
    (4 * parts * (1 + words) + 4 * MOST_RANGES + pods) as u64
}

#[test]
fn no_namespace_costs_more_than_its_parts() {
    let pods = crowd(6000);
    let near = |labels: Value, expressions: &[Value]| {
        let selector = json!({"matchLabels": labels, "matchExpressions": expressions});
        json!({"namespaceSelector": {}, "podSelector": selector})
    };
    let not = |number: usize| json!({"key": "is", "operator": "NotIn", "values": [number.to_string(), "x"]});
    let nobody = |number: usize| near(json!({"is": format!("none-{number}")}), &[]);
    let most = |number: usize| near(json!({}), &[not(number), not(number + 1)]);
    // The same tenth, by another selector each time.
    let tenth = |number: usize| near(json!({"tenth": "1"}), &[not(10 * number)]);
    let both = |peers: Vec<Value>| json!({"podSelector": {}, "ingress": [{"from": peers}], "egress": [{"to": peers}]});
    let out =
        |rules: Vec<Value>| json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": rules});
    let by_name = |number: usize| json!({"to": [nobody(number)], "ports": [{"port": "web"}]});
    for (what, policies) in [
        ("peers that are nobody", vec![both((0..1300).map(nobody).collect())]),
        ("peers that most are", vec![both((0..450).map(most).collect())]),
        ("ports by name", vec![out((0..100).map(by_name).collect())]),
        ("a port that differs", vec![out(vec![json!({"ports": [{"port": "own"}]})])]),
        ("many small ones", (0..8000).map(|number| both(vec![nobody(number)])).collect()),
        ("many that say the same", (0..4000).map(|number| both(vec![tenth(number)])).collect()),
    ] {
        let all: usize = policies.iter().map(|policy| parts(&spec(policy))).sum();
        assert!(all <= MOST_PARTS_OF_ALL, "{what}: {all}");
        assert!(policies.iter().all(|policy| parts(&spec(policy)) <= MOST_PARTS), "{what}");
        let book = book(policies.into_iter().map(|policy| ("one", policy)), &pods);
        let verdict = book.of(&pod("one"));
        assert_ne!(verdict.excess, Some(Excess::Namespace), "{what}");
        let (steps, bound) = (book.steps(), bound(all, pods.len()));
        assert!(0 < steps && steps <= bound, "{what}: {steps} of {bound}");
        // Asked again it is known, by others like it too.
        assert_eq!(book.known(&pod("one")), Some(verdict));
        assert_eq!(book.steps(), steps);
    }
}

#[test]
fn a_namespace_that_says_too_much_closes_its_own_pods_alone() {
    let pods = crowd(100);
    let peers = |count: usize| vec![json!({"podSelector": {"matchLabels": {"is": "2"}}}); count];
    let policy = |count: usize| json!({"podSelector": {}, "ingress": [{"from": peers(count)}]});
    let fits = MOST_PARTS_OF_ALL / 2 / 16 - 1;
    assert!(16 * parts(&spec(&policy(fits))) <= MOST_PARTS_OF_ALL);
    let all = |more: usize| {
        let large = (0..16 + more).map(|_| ("one", policy(fits)));
        book(large.chain([("two", policy(1))]), &pods)
    };
    let verdict = all(0).of(&pod("one"));
    assert_eq!(verdict.excess, None);
    let friend = Ipv4Addr::from_bits(0x0a00_0004).into();
    assert!(verdict.policy.lets_in(Transport::Tcp, friend, 1));
    let book = all(1);
    // Also one that no policy selects by a label: none was looked at.
    let verdict = book.of(&pod("one"));
    assert_eq!(verdict.excess, Some(Excess::Namespace));
    assert_eq!(verdict.policy, PodPolicy::closed());
    assert_eq!(book.steps(), 0);
    assert_eq!(book.of(&pod("two")).excess, None);
    assert_eq!(*book.of(&pod("three")), Verdict::default());
}

#[test]
fn nothing_is_worked_out_after_what_is_too_much() {
    let pods = crowd(20_000);
    let all = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    let out = json!({
        "podSelector": {}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"is": "1"}}}]}],
    });
    let alone = book([("one", all.clone())], &pods);
    assert_eq!(alone.of(&pod("one")).excess, Some(Excess::Pod));
    let followed = book([("one", all.clone()), ("one", out), ("one", all)], &pods);
    let verdict = followed.of(&pod("one"));
    assert_eq!(verdict.excess, Some(Excess::Pod));
    assert_eq!(followed.steps(), alone.steps());
    // What it closes is closed.
    assert_eq!(verdict.policy, PodPolicy::closed());
}

#[test]
fn labels_that_nobody_names_cost_nothing() {
    let pods: Vec<_> = (0..100_u32)
        .map(|number| {
            let labels = (0..1000).map(|label| (format!("l{label}"), number.to_string()));
            Arc::new(PeerPod {
                namespace: "one".to_owned(),
                labels: labels.collect(),
                addresses: vec![Ipv4Addr::from_bits(0x0a00_0000 + 2 * number).into()],
                ports: Vec::new(),
            })
        })
        .collect();
    let spaces = |name: &str| {
        let labels = (0..1000).map(|label| (format!("l{label}"), name.to_owned()));
        (name.to_owned(), labels.collect::<Labels>())
    };
    let spaces = BTreeMap::from([spaces("one"), spaces("two")]);
    let policy = spec(&json!({
        "podSelector": {"matchLabels": {"l1": "is its own"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"l2": "7"}}}]}],
        "egress": [{"to": [{
            "podSelector": {"matchExpressions": [{"key": "l3", "operator": "Exists"}]},
            "namespaceSelector": {"matchLabels": {"l4": "one"}},
        }]}],
    }));
    let other =
        spec(&json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"l1": "1"}}}]}]}));
    let mut named = Named::default();
    named.add(&policy);
    let index = Index::new(pods.iter(), &spaces, &named);
    // Of two keys one set for each value of the pods', and one for all; of one key
    // of the only namespace that has pods.
    assert_eq!(index.sets(), 2 * 101 + 2);
    assert!(index.names_all(&named));
    named.add(&other);
    assert!(!index.names_all(&named));
}

#[test]
fn policies_that_name_other_labels_are_worked_out_by_these() {
    let pods = crowd(10);
    let from = |expression: Value| {
        let selector = json!({"matchExpressions": [expression]});
        json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": selector}]}]})
    };
    let spaces = Arc::new(BTreeMap::from([("one".to_owned(), Labels::new())]));
    let book = |expression: Value| {
        let policy = (("one".to_owned(), "p".to_owned()), Arc::new(spec(&from(expression))));
        Book::new(&[policy].into(), Arc::clone(&spaces), Arc::clone(&pods))
    };
    let before = book(json!({"key": "is", "operator": "In", "values": ["2"]}));
    let held = before.of(&pod("one"));
    let lets_in = |verdict: &Verdict, number: u32| {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + 2 * number).into();
        verdict.policy.lets_in(Transport::Tcp, address, 1)
    };
    assert!(lets_in(&held, 2) && !lets_in(&held, 4));
    // The same pods, by a label that nobody named yet.
    let mut next = book(json!({"key": "tenth", "operator": "NotIn", "values": ["4"]}));
    assert!(next.follow(&before));
    let verdict = next.known(&pod("one")).unwrap();
    assert!(lets_in(&verdict, 2) && !lets_in(&verdict, 4));
}

#[test]
fn a_change_costs_what_it_changes() {
    let mut all = BTreeMap::clone(&crowd(1000));
    let policies = || {
        [
            json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"is": "2"}}}]}]}),
            json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]}),
        ]
        .map(|policy| ("one", policy))
    };
    let before = book(policies(), &Arc::new(all.clone()));
    let held = before.of(&pod("one"));
    // Pods of another namespace are none of these policies' business.
    let changed = |namespace: &str, name: &str| {
        (
            (namespace.to_owned(), name.to_owned()),
            Arc::new(PeerPod {
                namespace: namespace.to_owned(),
                labels: [("is".to_owned(), "2".to_owned())].into(),
                addresses: vec!["10.9.0.1".parse().unwrap()],
                ports: Vec::new(),
            }),
        )
    };
    all.extend([changed("two", "new")]);
    let mut next = book(policies(), &Arc::new(all.clone()));
    assert!(!next.follow(&before), "nobody is answered otherwise");
    assert!(next.covers(&before));
    assert_eq!(next.steps(), 0);
    assert_eq!(next.known(&pod("one")), Some(Arc::clone(&held)));
    // Those of its own are, to the one policy that names pods.
    all.extend([changed("one", "new")]);
    let mut last = book(policies(), &Arc::new(all.clone()));
    assert!(last.follow(&next));
    let known = last.known(&pod("one")).unwrap();
    assert!(known.policy.lets_in(Transport::Tcp, "10.9.0.1".parse().unwrap(), 1));
    assert!(!held.policy.lets_in(Transport::Tcp, "10.9.0.1".parse().unwrap(), 1));
    assert!(0 < last.steps() && last.steps() < 200, "{}", last.steps());
    // What nobody goes by any more is not worked out again.
    drop((held, known, before, next));
    let mut lone = book(policies(), &Arc::new(all));
    assert!(!lone.follow(&last));
    assert_eq!(lone.known(&pod("one")), None);
}

#[test]
fn who_asks_between_two_books_is_not_forgotten() {
    let pods = crowd(10);
    let policy = |port: u16| json!({"podSelector": {}, "ingress": [{"ports": [{"port": port}]}]});
    let before = book([("one", policy(1))], &pods);
    let mut next = book([("one", policy(2))], &pods);
    assert!(!next.follow(&before), "nobody asked");
    let held = before.of(&pod("one"));
    assert!(!next.covers(&before));
    drop(held);
    assert!(next.covers(&before));
    let _held = before.of(&pod("one"));
    assert!(!book([], &pods).covers(&before));
}

/// Names of some kind, few enough to meet often.
fn of<const N: usize>(all: [&'static str; N]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(all.to_vec())
}

fn labels() -> impl Strategy<Value = Labels> {
    let labels = prop::collection::btree_map(of(["k", "l"]), of(["a", "b", "c"]), 0..3);
    labels.prop_map(|labels| {
        labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    })
}

fn selector() -> impl Strategy<Value = Value> {
    let values = || prop::collection::vec(of(["a", "b", "c"]), 1..3);
    let expression = prop_oneof![
        8 => (of(["k", "l", "m"]), of(["In", "NotIn"]), values()).prop_map(
            |(key, operator, values)| json!({"key": key, "operator": operator, "values": values})
        ),
        8 => (of(["k", "l", "m"]), of(["Exists", "DoesNotExist"]))
            .prop_map(|(key, operator)| json!({"key": key, "operator": operator})),
        1 => of(["Near", "In"]).prop_map(|operator| json!({"key": "k", "operator": operator})),
    ];
    let given = prop::collection::btree_map(of(["k", "l"]), of(["a", "b"]), 0..2);
    (given, prop::collection::vec(expression, 0..3)).prop_map(
        |(labels, expressions)| json!({"matchLabels": labels, "matchExpressions": expressions}),
    )
}

fn peers() -> impl Strategy<Value = Vec<Value>> {
    let block = (0_u8..120, 24_u8..=32, prop::collection::vec(0_u8..120, 0..2)).prop_map(
        |(last, prefix, but)| {
            let except: Vec<_> = but.iter().map(|last| format!("10.0.0.{last}/31")).collect();
            json!({"ipBlock": {"cidr": format!("10.0.0.{last}/{prefix}"), "except": except}})
        },
    );
    let peer = prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        selector().prop_map(|spaces| json!({"namespaceSelector": spaces})),
        (selector(), selector())
            .prop_map(|(pods, spaces)| json!({"podSelector": pods, "namespaceSelector": spaces})),
        block,
    ];
    prop::collection::vec(peer, 0..4)
}

fn crowds() -> impl Strategy<Value = Vec<PeerPod>> {
    let port = (of(["p", "q"]), any::<bool>(), 1_u16..4).prop_map(|(name, is_tcp, port)| {
        let protocol = if is_tcp { Transport::Tcp } else { Transport::Udp };
        NamedPort { name: name.to_owned(), protocol, port }
    });
    let pod = (of(["one", "two", "three"]), labels(), 0_u8..120, any::<bool>());
    let pod = (pod, prop::collection::vec(port, 0..3)).prop_map(
        |((namespace, labels, last, is_dual), ports)| {
            let v6 = Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(last)).into();
            let v4 = IpAddr::from([10, 0, 0, last]);
            let addresses = if is_dual { vec![v4, v6] } else { vec![v4] };
            PeerPod { namespace: namespace.to_owned(), labels, addresses, ports }
        },
    );
    prop::collection::vec(pod, 0..150)
}

/// Whether a peer of a policy of the namespace `one` names a pod by labels.
fn names(peer: &NetworkPolicyPeer, pod: &PeerPod, spaces: &BTreeMap<String, Labels>) -> bool {
    let NetworkPolicyPeer { pod_selector, namespace_selector, ip_block } = peer;
    let is_there = match namespace_selector {
        None => pod.namespace == "one",
        Some(selector) => {
            spaces.get(&pod.namespace).and_then(|labels| selects(selector, labels)).unwrap_or(false)
        }
    };
    let of_pod = pod_selector.as_ref();
    ip_block.is_none()
        && is_there
        && of_pod.is_none_or(|selector| selects(selector, &pod.labels).unwrap_or(false))
}

fn is_within(peer: &NetworkPolicyPeer, address: IpAddr) -> bool {
    let has = |text: &String| AddressRange::parse(text).unwrap().contains(address);
    peer.ip_block
        .as_ref()
        .is_some_and(|block| has(&block.cidr) && !block.except.iter().flatten().any(has))
}

proptest! {
    #[test]
    fn what_a_policy_comes_to_is_what_each_peer_says_of_each_pod(
        to in peers(),
        names_of_ports in prop::collection::vec(of(["p", "q"]), 0..3),
        crowd in crowds(),
        spaces in prop::collection::btree_map(of(["one", "two"]), labels(), 0..3),
    ) {
        let spaces: BTreeMap<String, Labels> =
            spaces.into_iter().map(|(name, labels)| (name.to_owned(), labels)).collect();
        let ports: Vec<_> = names_of_ports.iter().map(|name| json!({"port": name})).collect();
        let policy = json!({
            "ingress": [{"from": to}], "egress": [{"to": to}, {"to": to, "ports": ports}],
            "policyTypes": ["Ingress", "Egress"],
        });
        let policy = spec(&policy);
        let all = crowd.iter().enumerate().map(|(number, pod)| {
            ((pod.namespace.clone(), format!("{number}")), Arc::new(pod.clone()))
        });
        let whom = Whom::new(Arc::new(all.collect()), Arc::new(spaces.clone()));
        let mut steps = 0;
        let named = || {
            let mut named = Named::default();
            named.add(&policy);
            named
        };
        let resolved = resolve(&|| whom.index(named), "one", &policy, &mut steps);
        prop_assert!(!resolved.is_too_large);

        let given = policy.ingress.as_ref().unwrap()[0].from.clone().unwrap();
        let is_peer = |pod: &PeerPod| given.iter().any(|peer| names(peer, pod, &spaces));
        let is_in_block = |address| given.iter().any(|peer| is_within(peer, address));
        let every: Vec<(IpAddr, &PeerPod)> =
            crowd.iter().flat_map(|pod| pod.addresses.iter().map(move |at| (*at, pod))).collect();
        let wanted = |address: IpAddr| {
            given.is_empty()
                || is_in_block(address)
                || every.iter().any(|(at, pod)| *at == address && is_peer(pod))
        };
        let lets = |rules: &[PolicyRule], address: IpAddr, port: u16| {
            rules.iter().any(|rule| {
                rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|one| one.contains(address)))
                    && rule.ports.as_ref().is_none_or(|ports| {
                        let is = |one: &PortRange| one.protocol == Transport::Tcp && one.first == port;
                        ports.iter().any(is)
                    })
            })
        };
        let incoming = resolved.ingress[0].of(&[]).unwrap();
        let numbers = if names_of_ports.is_empty() { 2 } else { 1 };
        let by_name = &resolved.egress[numbers..];
        for last in 0..=255_u8 {
            for address in [
                IpAddr::from([10, 0, 0, last]),
                Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(last)).into(),
            ] {
                let is_wanted = wanted(address);
                prop_assert_eq!(lets(std::slice::from_ref(&incoming), address, 7), is_wanted, "{}", address);
                prop_assert_eq!(lets(&resolved.egress[..1], address, 7), is_wanted, "{}", address);
                for port in 1..4 {
                    let has = |pod: &PeerPod| pod.ports.iter().any(|own| {
                        own.port == port && own.protocol == Transport::Tcp
                            && names_of_ports.contains(&&*own.name)
                    });
                    let is_named = every.iter().any(|(at, pod)| {
                        *at == address && has(pod)
                            && (given.is_empty() || is_in_block(address) || is_peer(pod))
                    });
                    prop_assert_eq!(lets(by_name, address, port), is_named, "{} {}", address, port);
                }
            }
        }
        // In order, apart, and as few as can be.
        for rule in resolved.egress.iter().chain([&incoming]) {
            let peers = rule.peers.clone().unwrap_or_default();
            prop_assert_eq!(merge(peers.clone()), peers);
        }
    }
}
