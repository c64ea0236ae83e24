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

fn requesting(cpu: &str, memory: &str) -> Pod {
    let requests = json!({"cpu": cpu, "memory": memory});
    pod(json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}))
}

fn node() -> NodeFacts {
    let allocatable = [("cpu", "4"), ("memory", "8Gi"), ("pods", "3")];
    NodeFacts {
        name: "node".to_owned(),
        os: "wasm32-wasi".to_owned(),
        labels: [("arch", "wasm32-wasi"), ("disks", "4")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        taints: serde_json::from_value(json!([
            {"key": "arch", "value": "wasm32-wasi", "effect": "NoExecute"},
            {"key": "other", "effect": "NoSchedule"},
        ]))
        .unwrap(),
        allocatable: allocatable
            .map(|(name, text)| (name.to_owned(), Quantity(text.to_owned())))
            .into(),
    }
}

fn untainted() -> NodeFacts {
    NodeFacts { taints: Vec::new(), ..node() }
}

/// The reason for which an untainted node refuses a pod, empty if it does not.
fn verdict(pod: &Pod) -> String {
    admit(pod, &untainted(), std::iter::empty()).err().map(|error| error.reason).unwrap_or_default()
}

#[test]
fn what_does_not_fit_is_counted_in_the_message() {
    let others = [requesting("3800m", "1Gi")];
    let rejection = admit(&requesting("500m", "1"), &untainted(), others.iter()).unwrap_err();
    assert_eq!(rejection.reason, "OutOfcpu");
    assert_eq!(
        rejection.clone().into_failure().message,
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: 3800, \
         capacity: 4000",
    );
    let rejection = admit(&requesting("200m", "8Gi"), &untainted(), others.iter()).unwrap_err();
    assert_eq!(
        rejection.message,
        "Node didn't have enough resource: memory, requested: 8589934592, used: 1073741824, \
         capacity: 8589934592",
    );
    assert_eq!(admit(&requesting("200m", "7Gi"), &untainted(), others.iter()), Ok(()));
}

#[test]
fn a_resize_waits_for_room() {
    let others = [requesting("3", "1Gi")];
    let room = |cpu| room_for_resize(&requesting(cpu, "1Gi"), &node(), others.iter());
    assert_eq!(room("1"), Ok(()), "taints do not matter");
    for cpu in ["1001m", "5"] {
        let pending = room(cpu).unwrap_err();
        assert_eq!(pending.reason, "Deferred");
        assert!(pending.message.contains("enough resource: cpu, requested: "), "{pending:?}");
    }
}

#[test]
fn a_full_node_takes_no_pod() {
    let others: Vec<_> = (0..3).map(|_| requesting("0", "0")).collect();
    let rejection = admit(&requesting("0", "0"), &untainted(), others.iter()).unwrap_err();
    assert_eq!(rejection.reason, "OutOfpods");
    assert_eq!(admit(&requesting("0", "0"), &untainted(), others[1..].iter()), Ok(()));
}

#[test]
fn a_node_that_counts_nothing_takes_all() {
    let facts = NodeFacts { allocatable: BTreeMap::new(), ..untainted() };
    assert_eq!(admit(&requesting("500", "1Ti"), &facts, std::iter::empty()), Ok(()));
}

#[test]
fn init_containers_count_only_where_they_need_more() {
    let with_init = |init: &str, side: &str, app: &str| {
        let of = |cpu: &str| json!({"requests": {"cpu": cpu}});
        pod(json!({
            "overhead": {"cpu": "100m"},
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": of(side)},
                {"name": "i", "resources": of(init)},
            ],
            "containers": [{"name": "c", "resources": {"limits": {"cpu": app}}}],
        }))
    };
    assert_eq!(verdict(&with_init("2900m", "1", "2900m")), "");
    assert_eq!(verdict(&with_init("2901m", "1", "1")), "OutOfcpu");
    assert_eq!(verdict(&with_init("1", "1", "2901m")), "OutOfcpu");
}

#[test]
fn labels_must_match() {
    let term = |key: &str, operator: &str, values: Value| {
        let term =
            json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let required = json!({"nodeSelectorTerms": [{}, term]});
        let affinity =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
        pod(json!({"containers": [], "affinity": affinity}))
    };
    let table = [
        ("arch", "In", json!(["x", "wasm32-wasi"]), true),
        ("arch", "In", json!(["x"]), false),
        ("arch", "NotIn", json!(["x"]), true),
        ("none", "NotIn", json!(["x"]), true),
        ("arch", "NotIn", json!(["wasm32-wasi"]), false),
        ("arch", "Exists", Value::Null, true),
        ("none", "Exists", Value::Null, false),
        ("none", "DoesNotExist", Value::Null, true),
        ("disks", "Gt", json!(["3"]), true),
        ("disks", "Gt", json!(["4"]), false),
        ("disks", "Lt", json!(["5"]), true),
        ("arch", "Lt", json!(["5"]), false),
    ];
    for (key, operator, values, fits) in table {
        let reason = if fits { "" } else { "NodeAffinity" };
        assert_eq!(
            verdict(&term(key, operator, values.clone())),
            reason,
            "{key} {operator} {values}"
        );
    }
    let selector = |value: &str| pod(json!({"containers": [], "nodeSelector": {"arch": value}}));
    assert_eq!(verdict(&selector("wasm32-wasi")), "");
    assert_eq!(verdict(&selector("amd64")), "NodeAffinity");
    assert_eq!(verdict(&pod(json!({"containers": [], "nodeName": "other"}))), "NodeName");
}

#[test]
fn taints_that_execute_must_be_tolerated() {
    let tolerating = |tolerations: Value| {
        let pod = pod(json!({"containers": [], "tolerations": tolerations}));
        admit(&pod, &node(), std::iter::empty()).is_ok()
    };
    assert!(!tolerating(json!([])));
    assert!(tolerating(json!([{"operator": "Exists"}])));
    assert!(tolerating(json!([{"key": "arch", "value": "wasm32-wasi", "effect": "NoExecute"}])));
    assert!(tolerating(json!([{"key": "arch", "operator": "Equal", "value": "wasm32-wasi"}])));
    assert!(!tolerating(json!([{"key": "arch", "operator": "Exists", "effect": "NoSchedule"}])));
    assert!(!tolerating(json!([{"key": "arch", "value": "x"}])));
}

#[test]
fn another_system_is_refused() {
    let spec = json!({"containers": [], "os": {"name": "linux"}});
    assert_eq!(verdict(&pod(spec)), "PodOSNotSupported");
    let mut labelled = pod(json!({"containers": []}));
    labelled.metadata.labels = Some([(OS_LABEL.to_owned(), "linux".to_owned())].into());
    assert_eq!(verdict(&labelled), "PodOSSelectorNodeLabelDoesNotMatch");
}

#[test]
fn host_ports_are_not_shared() {
    let on = |port: i32, protocol: &str, ip: &str| {
        let port =
            json!({"containerPort": 80, "hostPort": port, "protocol": protocol, "hostIP": ip});
        pod(json!({"containers": [{"name": "c", "ports": [port]}]}))
    };
    let reason = |others: &[Pod], pod: &Pod| {
        admit(pod, &untainted(), others.iter()).map_err(|error| error.reason)
    };
    let taken = Err("NodePorts".to_owned());
    for everywhere in ["", "0.0.0.0"] {
        let others = [on(80, "TCP", everywhere)];
        for ip in ["", "0.0.0.0", "127.0.0.1", "192.0.2.1", "::1"] {
            assert_eq!(reason(&others, &on(80, "TCP", ip)), taken, "{everywhere} {ip}");
            assert_eq!(reason(&[on(80, "TCP", ip)], &on(80, "TCP", everywhere)), taken, "{ip}");
            assert_eq!(reason(&others, &on(80, "UDP", ip)), Ok(()));
            assert_eq!(reason(&others, &on(81, "TCP", ip)), Ok(()));
        }
    }
    // Those of the test of Kubernetes, `test/e2e/network/hostport.go`.
    let others = [on(80, "TCP", "127.0.0.1"), on(80, "TCP", "192.0.2.1")];
    assert_eq!(reason(&others[..1], &others[1]), Ok(()));
    assert_eq!(reason(&others, &on(80, "UDP", "192.0.2.1")), Ok(()));
    assert_eq!(reason(&others, &on(80, "TCP", "192.0.2.1")), taken);
}

#[test]
fn names_do_not_lead_elsewhere() {
    for name in ["..", "../x", "a/b", "", ".hidden", "a\0", "ä"] {
        let volume = pod(json!({"containers": [], "volumes": [{"name": name, "emptyDir": {}}]}));
        assert_eq!(verdict(&volume), "UnexpectedAdmissionError", "{name:?}");
        let container = pod(json!({"containers": [{"name": name}]}));
        assert_eq!(verdict(&container), "UnexpectedAdmissionError", "{name:?}");
    }
}

#[test]
fn an_ordinary_pod_is_supported_whole() {
    // As the API server hands it on, and with what cautious people add.
    let spec = json!({
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "serviceAccount": "default",
        "schedulerName": "default-scheduler",
        "enableServiceLinks": true,
        "preemptionPolicy": "PreemptLowerPriority",
        "priority": 0,
        "hostNetwork": true,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 1000, "fsGroup": 1000, "supplementalGroups": [5],
            "seLinuxOptions": {"level": "s0:c1,c2", "type": "container_t"},
            "seLinuxChangePolicy": "MountOption", "fsGroupChangePolicy": "OnRootMismatch",
            "supplementalGroupsPolicy": "Strict",
            "seccompProfile": {"type": "RuntimeDefault"}, "appArmorProfile": {"type": "Unconfined"},
        },
        "hostUsers": false,
        "containers": [{
            "name": "c",
            "image": "i",
            "imagePullPolicy": "IfNotPresent",
            "terminationMessagePath": "/tmp/message",
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "startupProbe": {"tcpSocket": {"port": "http"}, "failureThreshold": 30},
            "readinessProbe": {"httpGet": {"port": "http", "path": "/healthz"}},
            "livenessProbe": {"tcpSocket": {"port": 8080}, "terminationGracePeriodSeconds": 5},
            "ports": [{"containerPort": 8080, "protocol": "TCP", "name": "http"}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"ephemeral-storage": "0"}},
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            },
            "volumeMounts": [{
                "name": "kube-api-access", "readOnly": true,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            }],
        }],
        "volumes": [
            {"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ]}},
            {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ],
        "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
    });
    let pod = pod(spec);
    assert_eq!(unsupported(&pod), []);
    assert_eq!(verdict(&pod), "");
}

#[test]
fn every_field_that_is_not_honoured_is_named() {
    let table = [
        ("spec", "hostIPC", json!(true)),
        ("spec", "hostPID", json!(true)),
        ("spec", "resourceClaims", json!([{"name": "r"}])),
        ("spec", "resources", json!({"limits": {"cpu": "1"}})),
        ("spec", "shareProcessNamespace", json!(true)),
        ("spec.securityContext", "sysctls", json!([{"name": "a", "value": "b"}])),
        ("spec.securityContext", "windowsOptions", json!({})),
        ("spec.securityContext", "seccompProfile", json!({"type": "Localhost"})),
        ("spec.securityContext", "appArmorProfile", json!({"type": "Localhost"})),
        ("spec.securityContext", "seccompProfile", json!({"type": "Unheard"})),
        ("spec.securityContext", "seLinuxOptions", json!({"type": "spc_t"})),
        ("spec.containers[c].securityContext", "seLinuxOptions", json!({"user": "u"})),
        ("spec.containers[c].securityContext", "seLinuxOptions", json!({"role": "r"})),
        ("spec.containers[c]", "stdin", json!(true)),
        ("spec.containers[c]", "tty", json!(true)),
        ("spec.containers[c]", "terminationMessagePolicy", json!("Elsewhere")),
        ("spec.containers[c]", "volumeDevices", json!([{"name": "v", "devicePath": "/dev/x"}])),
        ("spec.containers[c]", "restartPolicyRules", json!([{"action": "Restart"}])),
        ("spec.containers[c].securityContext", "privileged", json!(true)),
        ("spec.containers[c].securityContext", "procMount", json!("Unmasked")),
    ];
    for (at, field, value) in table {
        let mut spec = json!({"containers": [{"name": "c"}]});
        let place = match at {
            "spec" => &mut spec,
            "spec.securityContext" => &mut spec["securityContext"],
            "spec.containers[c]" => &mut spec["containers"][0],
            _ => &mut spec["containers"][0]["securityContext"],
        };
        place[field] = value;
        let pod = pod(spec);
        let found: Vec<_> = unsupported(&pod).into_iter().map(|one| one.field).collect();
        assert_eq!(found, [format!("{at}.{field}")]);
        assert_eq!(verdict(&pod), "PodFeatureUnsupported");
    }
}

#[test]
fn fields_within_lists_are_named_too() {
    let table = [
        (json!({"lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}), "lifecycle.preStop"),
        (json!({"lifecycle": {"postStart": {"exec": {}}}}), "lifecycle.postStart"),
        (json!({"lifecycle": {"stopSignal": "SIGUSR1"}}), "lifecycle.stopSignal"),
        (json!({"livenessProbe": {"exec": {"command": ["x"]}}}), "livenessProbe.exec"),
        (json!({"readinessProbe": {"grpc": {"port": 80}}}), "readinessProbe.grpc"),
        (
            json!({"startupProbe": {"httpGet": {"port": 80, "protocol": "HTTP2"}}}),
            "startupProbe.httpGet.protocol",
        ),
        (
            json!({"ports": [{"containerPort": 53, "hostPort": 53, "protocol": "SCTP"}]}),
            "ports.hostPort",
        ),
        (json!({"resources": {"limits": {"example.org/gpu": "1"}}}), "resources[example.org/gpu]"),
        (json!({"resources": {"requests": {"hugepages-2Mi": "2Mi"}}}), "resources[hugepages-2Mi]"),
        (
            json!({"env": [{"name": "A", "valueFrom": {"fileKeyRef": {"key": "k", "path": "p", "volumeName": "v"}}}]}),
            "env.valueFrom.fileKeyRef",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]}),
            "volumeMounts.mountPropagation",
        ),
        (
            json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}),
            "securityContext.capabilities.add",
        ),
    ];
    for (fields, field) in table {
        let mut container = fields;
        container["name"] = json!("c");
        let pod = pod(json!({"containers": [], "initContainers": [container]}));
        let found: Vec<_> = unsupported(&pod).into_iter().map(|one| one.field).collect();
        assert_eq!(found, [format!("spec.initContainers[c].{field}")]);
    }
}

#[test]
fn more_ports_of_the_node_than_it_listens_on_for_a_pod_are_refused() {
    let with = |first: i32, second: i32, network: bool| {
        let ports = |from: i32, number: i32| {
            let port = |n| json!({"containerPort": 80, "hostPort": n});
            (from..from + number).map(port).collect::<Vec<_>>()
        };
        pod(json!({"hostNetwork": network, "containers": [
            {"name": "a", "ports": ports(1, first)}, {"name": "b", "ports": ports(30_000, second)},
        ]}))
    };
    assert_eq!(unsupported(&with(256, 256, false)), []);
    for network in [false, true] {
        let found = unsupported(&with(10_000, 10_000, network));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].field, "spec.containers[*].ports.hostPort");
        assert!(found[0].why.ends_with("and this one has 20000"), "{}", found[0]);
    }
    // Those that only tell what a guest listens on are not the node's.
    let told: Vec<_> = (1..=1000).map(|n| json!({"containerPort": n})).collect();
    assert_eq!(unsupported(&pod(json!({"containers": [{"name": "c", "ports": told}]}))), []);
}

#[test]
fn kinds_of_volumes_are_named() {
    let table = [
        (json!({"hostPath": {"path": "/"}}), "hostPath"),
        (json!({"persistentVolumeClaim": {"claimName": "c"}}), "persistentVolumeClaim"),
        (json!({"csi": {"driver": "d"}}), "csi"),
        (json!({"nfs": {"server": "s", "path": "/"}}), "nfs"),
        (json!({"gitRepo": {"repository": "r"}}), "gitRepo"),
        (json!({}), "(source)"),
        (json!({"emptyDir": {}, "hostPath": {"path": "/"}}), "hostPath"),
        (json!({"emptyDir": {"medium": "HugePages"}}), "emptyDir.medium"),
        (
            json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "p"}}]}}),
            "projected.sources.clusterTrustBundle",
        ),
    ];
    for (source, field) in table {
        let mut volume = source;
        volume["name"] = json!("v");
        let pod = pod(json!({"containers": [], "volumes": [volume]}));
        let found: Vec<_> = unsupported(&pod).into_iter().map(|one| one.field).collect();
        assert_eq!(found, [format!("spec.volumes[v].{field}")]);
    }
}

#[test]
fn a_long_list_is_cut_in_the_message() {
    let containers: Vec<_> =
        (0..12).map(|n| json!({"name": format!("c{n}"), "tty": true})).collect();
    let rejection =
        admit(&pod(json!({"containers": containers})), &node(), std::iter::empty()).unwrap_err();
    assert!(rejection.message.starts_with("spec.containers[c0].tty: "), "{rejection}");
    assert!(rejection.message.ends_with("; and 2 more"), "{rejection}");
}

proptest! {
    #[test]
    fn admitted_pods_never_exceed_the_node(wanted in prop::collection::vec(0_i64..3000, 0..12)) {
        let facts = NodeFacts {
            allocatable: [("cpu", "4"), ("pods", "100")]
                .map(|(name, text)| (name.to_owned(), Quantity(text.to_owned())))
                .into(),
            ..untainted()
        };
        let mut taken: Vec<(i64, Pod)> = Vec::new();
        for milli in wanted {
            let pod = requesting(&format!("{milli}m"), "0");
            let used: i64 = taken.iter().map(|(milli, _)| milli).sum();
            let verdict = admit(&pod, &facts, taken.iter().map(|(_, pod)| pod));
            prop_assert_eq!(verdict.is_ok(), milli == 0 || used + milli <= 4000);
            if verdict.is_ok() {
                taken.push((milli, pod));
            }
        }
    }
}
