use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": spec,
    }))
    .unwrap()
}

fn node() -> NodeNames {
    NodeNames {
        name: "node".into(),
        cluster_dns: vec!["10.0.0.10".parse().unwrap()],
        cluster_domain: "cluster.local".into(),
        knows_cluster: false,
        resolv_conf: Some(
            ResolvConf::parse("nameserver 192.0.2.1\nsearch corp.example\noptions timeout:3\n")
                .unwrap(),
        ),
        addresses: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
        hosts: parse_hosts("127.0.0.1 localhost\n192.0.2.7 node # its own\n"),
    }
}

const CLUSTER: [&str; 4] =
    ["n.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"];

#[test]
fn what_is_written_for_guests_is_read_as_it_was_meant() {
    let resolver = Resolver {
        servers: vec!["10.0.0.10".into(), "2001:db8::1".into()],
        searches: vec!["ns.svc.cluster.local".into(), "corp.example".into()],
        options: [("edns0", ""), ("ndots", "5")].map(|(k, v)| (k.into(), v.into())).into(),
        ..Resolver::default()
    };
    let text = resolver.file();
    let searches = "search ns.svc.cluster.local corp.example\n";
    let servers = "nameserver 10.0.0.10\nnameserver 2001:db8::1\n";
    assert_eq!(text, format!("{searches}{servers}options edns0 ndots:5\n"));
    assert_eq!(Resolver::default().file(), "");
    let lines = parse_hosts("127.0.0.1 localhost\n10.1.0.2 full.name name\n::1 localhost\n");
    let text = hosts_file(&lines);
    assert!(text.contains("\n10.1.0.2\tfull.name\tname\n"), "{text}");
    assert_eq!(parse_hosts(&text), lines);
}

#[test]
fn the_policy_says_who_is_asked() {
    for (spec, servers, searches, ndots) in [
        (json!({}), &["10.0.0.10"][..], &CLUSTER[..], 5),
        (json!({"dnsPolicy": "ClusterFirst"}), &["10.0.0.10"], &CLUSTER, 5),
        (
            json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}),
            &["192.0.2.1"],
            &["corp.example"],
            1,
        ),
        (
            json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
            &["10.0.0.10"],
            &CLUSTER,
            5,
        ),
        (json!({"dnsPolicy": "Default"}), &["192.0.2.1"], &["corp.example"], 1),
        (
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.9"]}}),
            &["192.0.2.9"],
            &[],
            1,
        ),
        (
            json!({"dnsPolicy": "Default", "dnsConfig": {
                "nameservers": ["192.0.2.1", "192.0.2.9"],
                "searches": ["corp.example", "a.example"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
            }}),
            &["192.0.2.1", "192.0.2.9"],
            &["corp.example", "a.example"],
            2,
        ),
    ] {
        let given = resolver(&pod(spec.clone()), &node());
        assert_eq!(given.servers, servers, "{spec}");
        assert_eq!(given.searches, searches, "{spec}");
        assert_eq!(given.ndots(), ndots, "{spec}");
        assert_eq!(given.warnings, [], "{spec}");
    }
}

#[test]
fn what_the_node_gives_is_told_from_what_the_pod_brings() {
    let conf = "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
    let node = NodeNames { resolv_conf: ResolvConf::parse(conf).ok(), ..node() };
    for (policy, own, servers, of_node) in [
        ("Default", &[][..], 3, 3),
        ("Default", &["192.0.2.9"], 3, 3),
        ("ClusterFirst", &["192.0.2.9", "10.0.0.10"], 2, 1),
        ("None", &["10.0.0.10", "192.0.2.1"], 2, 0),
    ] {
        let spec = json!({"dnsPolicy": policy, "dnsConfig": {"nameservers": own}});
        let given = resolver(&pod(spec), &node);
        assert_eq!((given.servers.len(), given.node_servers.len()), (servers, of_node), "{policy}");
        assert_eq!(given.node_servers, given.servers[..of_node], "{policy}");
    }
}

#[test]
fn what_the_node_says_twice_is_said_once_to_a_pod_with_a_config() {
    let conf = ResolvConf::parse("nameserver ::1\nnameserver ::1\nsearch a a\n").unwrap();
    let node = NodeNames { resolv_conf: Some(conf), ..node() };
    let plain = resolver(&pod(json!({"dnsPolicy": "Default"})), &node);
    assert_eq!((plain.servers.len(), plain.searches.len()), (2, 2), "as the kubelet has it");
    let with = resolver(&pod(json!({"dnsPolicy": "Default", "dnsConfig": {}})), &node);
    assert_eq!((with.servers.len(), with.searches.len()), (1, 1));
}

#[test]
fn the_hosts_options_are_for_pods_with_its_servers_only() {
    let of = |policy: &str| resolver(&pod(json!({"dnsPolicy": policy})), &node());
    assert_eq!(of("Default").timeout(), Duration::from_secs(3));
    assert_eq!(of("ClusterFirst").timeout(), Duration::from_secs(5));
    assert_eq!(of("None").attempts(), 2);
}

#[test]
fn a_node_without_cluster_dns_says_so_and_lends_its_own() {
    let node = NodeNames { cluster_dns: Vec::new(), ..node() };
    let given = resolver(&pod(json!({"dnsPolicy": "ClusterFirst"})), &node);
    assert_eq!(given.servers, ["192.0.2.1"]);
    assert_eq!(given.searches, ["corp.example"]);
    let [warning] = &given.warnings[..] else { panic!("{:?}", given.warnings) };
    assert_eq!(warning.reason, "MissingClusterDNS");
    assert_eq!(
        warning.message,
        "pod: \"p_n(u)\". kubelet does not have ClusterDNS IP configured and cannot create Pod \
         using \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
    );
}

#[test]
fn a_node_that_knows_the_cluster_needs_no_server_for_it() {
    let node = NodeNames { cluster_dns: Vec::new(), knows_cluster: true, ..node() };
    let of = |spec: serde_json::Value| resolver(&pod(spec), &node);
    for policy in [json!({}), json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true})]
    {
        let given = of(policy);
        assert_eq!(given.known_domain, "cluster.local");
        assert_eq!(given.servers, ["192.0.2.1"]);
        assert_eq!(given.searches, CLUSTER);
        assert_eq!((given.ndots(), given.warnings), (5, vec![]));
    }
    for policy in [
        json!({"dnsPolicy": "Default"}),
        json!({"dnsPolicy": "None"}),
        json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}),
    ] {
        assert_eq!(of(policy.clone()).known_domain, "", "{policy}");
    }
    let node = NodeNames { cluster_dns: vec!["10.0.0.10".parse().unwrap()], ..node.clone() };
    let given = resolver(&pod(json!({})), &node);
    assert_eq!((given.known_domain.as_str(), &*given.servers[0]), ("", "10.0.0.10"));
}

#[test]
fn a_node_without_a_resolver_stands_for_itself() {
    let node = NodeNames { resolv_conf: None, ..node() };
    let given = resolver(&pod(json!({"dnsPolicy": "Default"})), &node);
    assert_eq!(given.servers, ["127.0.0.1", "::1"]);
    assert_eq!(given.searches, ["."]);
    let alone = NodeNames { addresses: Vec::new(), ..node };
    assert_eq!(resolver(&pod(json!({"dnsPolicy": "Default"})), &alone).servers, ["127.0.0.1"]);
}

#[test]
fn what_is_too_much_is_cut_and_told() {
    let servers = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"];
    let searches: Vec<_> = (0..33).map(|n| format!("d{n}.example")).collect();
    let spec = json!({"dnsPolicy": "None", "dnsConfig": {
        "nameservers": servers, "searches": searches,
    }});
    let given = resolver(&pod(spec), &node());
    assert_eq!(given.servers, servers[..3]);
    assert_eq!(given.searches, searches[..32]);
    let [first, second] = &given.warnings[..] else { panic!("{:?}", given.warnings) };
    assert_eq!((first.reason, second.reason), ("DNSConfigForming", "DNSConfigForming"));
    assert_eq!(
        first.message,
        "Nameserver limits were exceeded, some nameservers have been omitted, the applied \
         nameserver line is: 192.0.2.1 192.0.2.2 192.0.2.3",
    );
    assert!(
        second.message.starts_with(
            "Search Line limits were exceeded, some search paths have been omitted, the applied \
             search line is: d0.example d1.example ",
        ),
        "{}",
        second.message
    );
}

#[test]
fn options_are_bounded_as_the_c_library_bounds_them() {
    for (options, ndots, timeout, attempts) in [
        (json!([]), 1, 5, 2),
        (json!([{"name": "ndots", "value": "99"}]), 15, 5, 2),
        (json!([{"name": "ndots", "value": "0"}]), 0, 5, 2),
        (json!([{"name": "ndots", "value": "many"}, {"name": "ndots"}]), 1, 5, 2),
        (json!([{"name": "timeout", "value": "0"}, {"name": "attempts", "value": "0"}]), 1, 1, 1),
        (
            json!([{"name": "timeout", "value": "99"}, {"name": "attempts", "value": "99"}]),
            1,
            30,
            5,
        ),
    ] {
        let spec = json!({"dnsPolicy": "None", "dnsConfig": {"options": options}});
        let given = resolver(&pod(spec), &node());
        let wanted = (ndots, Duration::from_secs(timeout), attempts);
        assert_eq!((given.ndots(), given.timeout(), given.attempts()), wanted, "{options}");
    }
}

#[test]
fn a_resolv_conf_is_read_as_the_kubelet_reads_it() {
    let conf = ResolvConf::parse(
        "# comment\n ; odd\nnameserver 192.0.2.1 more\nnameserver\t2001:db8::1\n\
         search old.example\nsearch  a.example. . b.example\ndomain c.example\n\
         options ndots:3 rotate\noptions ndots:4\n",
    )
    .unwrap();
    assert_eq!(conf.servers, ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(conf.searches, ["a.example", "b.example"]);
    let options = [("ndots", "4"), ("rotate", "")];
    assert_eq!(conf.options, options.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    assert_eq!(ResolvConf::parse("\nnameserver\n"), Err(ResolvConfError { line: 2 }));
}

#[test]
fn a_resolver_on_the_machine_itself_is_told_apart() {
    let is_local = |text: &str| ResolvConf::parse(text).unwrap().is_local();
    assert!(is_local("nameserver 127.0.0.53\nnameserver ::1\n"));
    assert!(!is_local("nameserver 127.0.0.53\nnameserver 192.0.2.1\n"));
    assert!(!is_local(""));
}

fn printed(lines: &[HostLine]) -> Vec<String> {
    lines.iter().map(|line| format!("{} {}", line.address, line.names.join(" "))).collect()
}

#[test]
fn a_pod_has_a_hosts_file_of_its_own() {
    let addresses = ["10.1.0.2".parse().unwrap(), "2001:db8:1::2".parse().unwrap()];
    let always = [
        "127.0.0.1 localhost",
        "::1 localhost ip6-localhost ip6-loopback",
        "fe00:: ip6-localnet",
        "fe00:: ip6-mcastprefix",
        "fe00::1 ip6-allnodes",
        "fe00::2 ip6-allrouters",
    ];
    for (spec, own) in [
        (json!({}), vec!["10.1.0.2 p", "2001:db8:1::2 p"]),
        (
            json!({"hostname": "h", "subdomain": "s", "hostAliases": [
                {"ip": "192.0.2.5", "hostnames": ["foo", "bar.example"]},
                {"ip": "nonsense", "hostnames": ["x"]},
            ]}),
            vec![
                "10.1.0.2 h.s.n.svc.cluster.local h",
                "2001:db8:1::2 h.s.n.svc.cluster.local h",
                "192.0.2.5 foo bar.example",
            ],
        ),
        (
            json!({"hostnameOverride": "o.example", "subdomain": "s"}),
            vec!["10.1.0.2 o.example", "2001:db8:1::2 o.example"],
        ),
    ] {
        let lines = printed(&hosts(&pod(spec), &addresses, &node()));
        assert_eq!(lines[..6], always);
        assert_eq!(lines[6..], own);
    }
}

#[test]
fn a_pod_on_the_hosts_network_sees_the_nodes_hosts_file() {
    let spec = json!({"hostNetwork": true, "hostAliases": [{"ip": "::2", "hostnames": ["x"]}]});
    let lines = hosts(&pod(spec), &["192.0.2.7".parse().unwrap()], &node());
    assert_eq!(printed(&lines), ["127.0.0.1 localhost", "192.0.2.7 node", "::2 x"]);
}

#[test]
fn a_full_name_is_told_only_if_asked_for_and_not_too_long() {
    let named = |spec: Value| nodename(&pod(spec), "node", "cluster.local");
    assert_eq!(named(json!({"subdomain": "s"})), Ok("p".into()));
    assert_eq!(named(json!({"setHostnameAsFQDN": true})), Ok("p".into()));
    let full = json!({"setHostnameAsFQDN": true, "subdomain": "s"});
    assert_eq!(named(full), Ok("p.s.n.svc.cluster.local".into()));
    let long = json!({"setHostnameAsFQDN": true, "subdomain": "s".repeat(44)});
    assert_eq!(
        named(long).unwrap_err().to_string(),
        format!(
            "Failed to construct FQDN from Pod hostname and cluster domain, FQDN \
             p.{}.n.svc.cluster.local is too long (64 characters is the max, 66 characters \
             requested)",
            "s".repeat(44)
        ),
    );
}

proptest! {
    #[test]
    fn nothing_a_pod_or_node_says_exceeds_what_a_pod_may_have(
        policy in prop::sample::select(vec!["ClusterFirst", "Default", "None", "Odd"]),
        servers in prop::collection::vec("[0-9.]{1,15}", 0..6),
        searches in prop::collection::vec("[a-z.]{1,300}", 0..60),
        conf in "(nameserver [0-9.]{1,9}\n){0,5}(search( [a-z]{1,20}){0,40}\n)?",
    ) {
        let node = NodeNames { resolv_conf: ResolvConf::parse(&conf).ok(), ..node() };
        let spec = json!({"dnsPolicy": policy, "dnsConfig": {
            "nameservers": servers, "searches": searches,
        }});
        let given = resolver(&pod(spec), &node);
        prop_assert!(given.servers.len() <= 3);
        prop_assert!(given.node_servers.iter().all(|server| given.servers.contains(server)));
        prop_assert!(given.searches.len() <= 32);
        prop_assert!(given.searches.join(" ").len() <= 2048);
        prop_assert!(given.searches.iter().all(|search| search.len() <= 253));
        let mut once = given.searches.clone();
        once.sort();
        once.dedup();
        prop_assert_eq!(once.len(), given.searches.len());
        // What is left out is told.
        let mut wanted: Vec<_> = searches.iter().filter(|one| !given.searches.contains(one)).collect();
        wanted.dedup();
        if !wanted.is_empty() {
            prop_assert!(given.warnings.iter().any(|one| one.message.starts_with("Search Line")));
        }
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in "(?s).{0,200}") {
        let _ = ResolvConf::parse(&text);
        for line in parse_hosts(&text) {
            prop_assert!(!line.names.is_empty());
        }
    }
}
