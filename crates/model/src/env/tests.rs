use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::*;

/// What tests need to make an environment.
struct World {
    config_maps: BTreeMap<String, ConfigMap>,
    secrets: BTreeMap<String, Secret>,
    services: Vec<Arc<Service>>,
    allocatable: BTreeMap<String, Quantity>,
}

impl World {
    fn new() -> Self {
        let config_map =
            json!({"metadata": {"name": "map"}, "data": {"KEY": "from map", "ONLY": "1"}});
        // "from secret", "deadbeef" that is no UTF-8.
        let secret = json!({"metadata": {"name": "secret"}, "data": {"KEY": "ZnJvbSBzZWNyZXQ="}});
        let raw = json!({"metadata": {"name": "raw"}, "data": {"KEY": "3q2+7w=="}});
        let services = json!([
            {
                "metadata": {"name": "kubernetes", "namespace": "default"},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]},
            },
            {
                "metadata": {"name": "my-db", "namespace": "n"},
                "spec": {"clusterIP": "fd00::9", "ports": [{"port": 53, "protocol": "UDP"}]},
            },
            {"metadata": {"name": "headless", "namespace": "n"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}},
            {"metadata": {"name": "elsewhere", "namespace": "m"}, "spec": {"clusterIP": "10.96.0.2", "ports": [{"port": 1}]}},
        ]);
        Self {
            config_maps: [("map".to_owned(), serde_json::from_value(config_map).unwrap())].into(),
            secrets: [
                ("secret".to_owned(), serde_json::from_value(secret).unwrap()),
                ("raw".to_owned(), serde_json::from_value(raw).unwrap()),
            ]
            .into(),
            services: serde_json::from_value(services).unwrap(),
            allocatable: [("cpu".to_owned(), Quantity("2".to_owned()))].into(),
        }
    }

    fn env(&self, container: Value) -> Result<Vec<(String, String)>, EnvError> {
        self.env_of_pod(&json!({"containers": [container], "enableServiceLinks": false}))
    }

    fn env_of_pod(&self, spec: &Value) -> Result<Vec<(String, String)>, EnvError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": spec,
        }))
        .unwrap();
        let sources = EnvSources {
            config_maps: &self.config_maps,
            secrets: &self.secrets,
            services: &self.services,
            surroundings: Surroundings {
                allocatable: &self.allocatable,
                pod_ips: &["10.0.0.7".parse().unwrap()],
                host_ips: &["192.0.2.1".parse().unwrap()],
            },
        };
        environment(&pod, &pod.spec.as_ref().unwrap().containers[0], &sources)
    }
}

fn get<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn without_services(env: Vec<(String, String)>) -> Vec<(String, String)> {
    env.into_iter().filter(|(name, _)| !name.starts_with("KUBERNETES_")).collect()
}

#[test]
fn the_api_server_is_always_announced() {
    let env = World::new().env(json!({"name": "c"})).unwrap();
    let expected = [
        ("KUBERNETES_PORT", "tcp://10.96.0.1:443"),
        ("KUBERNETES_PORT_443_TCP", "tcp://10.96.0.1:443"),
        ("KUBERNETES_PORT_443_TCP_ADDR", "10.96.0.1"),
        ("KUBERNETES_PORT_443_TCP_PORT", "443"),
        ("KUBERNETES_PORT_443_TCP_PROTO", "tcp"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
    ];
    assert_eq!(env, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn services_of_the_namespace_are_linked_unless_told_not_to() {
    let env = World::new().env_of_pod(&json!({"containers": [{"name": "c"}]})).unwrap();
    assert_eq!(get(&env, "MY_DB_SERVICE_HOST"), Some("fd00::9"));
    assert_eq!(get(&env, "MY_DB_PORT_53_UDP"), Some("udp://[fd00::9]:53"));
    assert_eq!(get(&env, "HEADLESS_SERVICE_HOST"), None);
    assert_eq!(get(&env, "ELSEWHERE_SERVICE_HOST"), None);
}

#[test]
fn later_sources_win_and_refer_to_earlier_ones() {
    let env = World::new()
        .env(json!({
            "name": "c",
            "envFrom": [
                {"configMapRef": {"name": "map"}},
                {"prefix": "S_", "secretRef": {"name": "secret"}},
                {"configMapRef": {"name": "none", "optional": true}},
            ],
            "env": [
                {"name": "KEY", "value": "own"},
                {"name": "USES", "value": "$(KEY) $(S_KEY) $(LATER) $(KUBERNETES_SERVICE_PORT) $$(KEY)"},
                {"name": "LATER", "value": "x"},
                {"name": "EMPTY", "value": ""},
                {"name": "KUBERNETES_SERVICE_HOST", "value": "mine"},
            ],
        }))
        .unwrap();
    assert_eq!(get(&env, "KUBERNETES_SERVICE_HOST"), Some("mine"));
    let own = [
        ("KEY", "own"),
        ("ONLY", "1"),
        ("S_KEY", "from secret"),
        ("USES", "own from secret $(LATER) 443 $(KEY)"),
        ("LATER", "x"),
        ("EMPTY", ""),
    ];
    assert_eq!(without_services(env), own.map(|(name, value)| (name.to_owned(), value.to_owned())),);
}

#[test]
fn every_source_of_a_value_is_read() {
    let env = World::new()
        .env(json!({"name": "c", "env": [
            {"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "R", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "M", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "KEY"}}},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "KEY"}}},
            {"name": "O", "valueFrom": {"secretKeyRef": {"name": "none", "key": "KEY", "optional": true}}},
            {"name": "P", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "none", "optional": true}}},
        ]}))
        .unwrap();
    let own = [("F", "p"), ("R", "2"), ("M", "from map"), ("S", "from secret")];
    assert_eq!(without_services(env), own.map(|(name, value)| (name.to_owned(), value.to_owned())),);
}

#[test]
fn what_is_missing_is_named_as_kubelet_does() {
    let table = [
        (json!({"configMapKeyRef": {"name": "none", "key": "k"}}), "configmap \"none\" not found"),
        (json!({"secretKeyRef": {"name": "none", "key": "k"}}), "secret \"none\" not found"),
        (
            json!({"configMapKeyRef": {"name": "map", "key": "k"}}),
            "couldn't find key k in ConfigMap n/map",
        ),
        (
            json!({"secretKeyRef": {"name": "secret", "key": "k"}}),
            "couldn't find key k in Secret n/secret",
        ),
        (
            json!({"secretKeyRef": {"name": "raw", "key": "KEY"}}),
            "variable X from secret \"raw\" is not UTF-8, which a WebAssembly program needs",
        ),
        (
            json!({"fileKeyRef": {"key": "k", "path": "p", "volumeName": "v"}}),
            "variable X has a source that this node does not offer",
        ),
    ];
    for (source, message) in table {
        let error = World::new()
            .env(json!({"name": "c", "env": [{"name": "X", "valueFrom": source}]}))
            .unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.reason(), "CreateContainerConfigError");
    }
    let error =
        World::new().env(json!({"name": "c", "envFrom": [{"secretRef": {"name": "none"}}]}));
    assert_eq!(error.unwrap_err().to_string(), "secret \"none\" not found");
}

#[test]
fn references_to_references_do_not_grow_without_bound() {
    let mut env = vec![json!({"name": "V0", "value": "x".repeat(1000)})];
    for step in 0..40 {
        let value = format!("$(V{step})$(V{step})");
        env.push(json!({"name": format!("V{}", step + 1), "value": value}));
    }
    let error = World::new().env(json!({"name": "c", "env": env})).unwrap_err();
    assert_eq!(error, EnvError::TooLong { what: "variable V8".to_owned() });
}

#[test]
fn command_and_args_take_the_place_of_the_images() {
    let line = |command: Value, args: Value| {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "command": command, "args": args})).unwrap();
        let env = [("A".to_owned(), "a b".to_owned())];
        let image = ["/entry".to_owned()];
        let cmd = ["$(A)".to_owned()];
        command_line(&container, &image, &cmd, &env).unwrap()
    };
    assert_eq!(line(Value::Null, Value::Null), ["/entry", "$(A)"]);
    assert_eq!(line(Value::Null, json!(["$(A)", "$(B)"])), ["/entry", "a b", "$(B)"]);
    assert_eq!(line(json!(["own"]), Value::Null), ["own"]);
    assert_eq!(line(json!(["own", "$$(A)"]), json!(["x"])), ["own", "$(A)", "x"]);
    assert_eq!(line(json!([]), json!([])), ["/entry", "$(A)"]);
}

#[test]
fn the_pods_variables_lie_on_top_of_the_images() {
    let image = ["PATH=/bin".to_owned(), "A=image".to_owned(), "broken".to_owned()];
    let env = vec![("A".to_owned(), "pod".to_owned()), ("B".to_owned(), "b=b".to_owned())];
    let all = [("HOSTNAME", "p"), ("PATH", "/bin"), ("A", "pod"), ("B", "b=b")];
    assert_eq!(
        with_image(&image, "p", env),
        all.map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
}

#[test]
fn a_pod_is_called_by_its_name() {
    let name = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        hostname(&pod, "node")
    };
    assert_eq!(name("p", json!({})), "p");
    assert_eq!(name("p", json!({"hostname": "h"})), "h");
    assert_eq!(name("p", json!({"hostNetwork": true})), "node");
    let long = format!("{}-{}", "a".repeat(62), "b".repeat(10));
    assert_eq!(name(&long, json!({})), "a".repeat(62));
}
