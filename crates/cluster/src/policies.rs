//! The cluster's NetworkPolicies and whom they may name: namespaces by their
//! labels, and the pods of all nodes, as far as policies look at them.
//!
//! A node may not list these by `system:node` alone: this needs further rights
//! (`deploy/network-rbac.yaml`), and tells when they are missing. What follows
//! from all of it is `krustlet_model::policy`'s.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    Resource as _,
    api::{
        core::v1::{Namespace, Pod},
        networking::v1::{NetworkPolicy, NetworkPolicySpec},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use krustlet_model::{
    Chain,
    policy::{Labels, MOST_NAMED_PORTS, NamedPort, PeerPod, PolicyKey, may_be_named},
};
use kube::Resource;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Cluster,
    feed::{Change, Feed, Holder},
};

/// What is known of objects of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<T> {
    /// All of them, once they have been listed.
    pub known: Option<Arc<T>>,
    /// That this node may not know them, or not any more, in the API server's
    /// words. What was known stays.
    pub forbidden: Option<String>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self { known: None, forbidden: None }
    }
}

/// Policies by namespace and name.
pub type PolicySpecs = BTreeMap<PolicyKey, Arc<NetworkPolicySpec>>;

/// Pods by namespace and name.
pub type PeerPods = BTreeMap<PolicyKey, Arc<PeerPod>>;

/// Everything that policies are made of.
#[derive(Clone, Debug)]
pub struct PolicyFacts {
    /// The policies.
    pub policies: watch::Receiver<Seen<PolicySpecs>>,
    /// The labels of namespaces.
    pub namespaces: watch::Receiver<Seen<BTreeMap<String, Labels>>>,
    /// The pods that can be named.
    pub pods: watch::Receiver<Seen<PeerPods>>,
}

/// Follows all three.
#[derive(Debug)]
pub struct PolicyFactsTask {
    policies: (Feed<NetworkPolicy>, Held<NetworkPolicy, PolicyKey, Arc<NetworkPolicySpec>>),
    namespaces: (Feed<Namespace>, Held<Namespace, String, Labels>),
    pods: (Feed<SlimPod>, Held<SlimPod, PolicyKey, Arc<PeerPod>>),
}

/// The facts of the cluster.
#[must_use]
pub fn policy_facts(cluster: &Cluster) -> (PolicyFacts, PolicyFactsTask) {
    let (policies, all_policies) = Held::new("network policies", |policy: NetworkPolicy| {
        let key = key(&policy.metadata);
        (key, Some(Arc::new(policy.spec.unwrap_or_default())))
    });
    let (namespaces, all_namespaces) = Held::new("namespaces", |namespace: Namespace| {
        let ObjectMeta { name, labels, .. } = namespace.metadata;
        (name.unwrap_or_default(), Some(labels.unwrap_or_default()).filter(may_be_named))
    });
    let (pods, all_pods) = Held::new("the pods of all nodes", |pod: SlimPod| {
        let key = key(&pod.metadata);
        (key, pod.peer().map(Arc::new))
    });
    let facts = PolicyFacts { policies, namespaces, pods };
    let task = PolicyFactsTask {
        policies: (Feed::new(cluster, None, None), all_policies),
        namespaces: (Feed::new(cluster, None, None), all_namespaces),
        pods: (Feed::new(cluster, None, None), all_pods),
    };
    (facts, task)
}

impl PolicyFactsTask {
    /// Shows what there is until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let Self { policies, namespaces, pods } = &mut self;
        tokio::join!(
            policies.0.keep(&mut policies.1, &stop),
            namespaces.0.keep(&mut namespaces.1, &stop),
            pods.0.keep(&mut pods.1, &stop),
        );
    }
}

fn key(metadata: &ObjectMeta) -> PolicyKey {
    let ObjectMeta { namespace, name, .. } = metadata;
    (namespace.clone().unwrap_or_default(), name.clone().unwrap_or_default())
}

/// What is held of objects of one kind, where others look at it. It is copied when it
/// changes only for those who still hold what they saw.
struct Held<K, Key: Ord, Value> {
    what: &'static str,
    /// What counts of an object; nothing of one that is as good as none.
    read: fn(K) -> (Key, Option<Value>),
    /// Told of what changed by [`show`](Holder::show). Whoever looks before sees it early.
    shown: watch::Sender<Seen<BTreeMap<Key, Value>>>,
}

impl<K, Key: Ord, Value> std::fmt::Debug for Held<K, Key, Value> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("what", &self.what).finish_non_exhaustive()
    }
}

type Shown<Key, Value> = watch::Receiver<Seen<BTreeMap<Key, Value>>>;

impl<K, Key: Ord, Value> Held<K, Key, Value> {
    fn new(what: &'static str, read: fn(K) -> (Key, Option<Value>)) -> (Shown<Key, Value>, Self) {
        let (shown, seen) = watch::channel(Seen::default());
        (seen, Self { what, read, shown })
    }
}

impl<K, Key, Value> Held<K, Key, Value>
where
    Key: Ord + Clone,
    Value: Clone + PartialEq,
{
    /// Changes one object, or removes it. Whether it was another: most changes are of
    /// what does not count here.
    fn put(&self, key: Key, value: Option<Value>) -> bool {
        let mut is_other = false;
        self.shown.send_if_modified(|seen| {
            // All are listed first.
            let Some(known) = &mut seen.known else { return false };
            is_other = known.get(&key) != value.as_ref();
            if is_other {
                let known = Arc::make_mut(known);
                match value {
                    Some(value) => known.insert(key, value),
                    None => known.remove(&key),
                };
            }
            false
        });
        is_other
    }
}

impl<K, Key, Value> Holder<K> for Held<K, Key, Value>
where
    Key: Ord + Clone,
    Value: Clone + PartialEq,
{
    fn show(&mut self) {
        self.shown.send_modify(|seen| seen.forbidden = None);
    }

    fn take(&mut self, change: Change<K>) -> bool {
        match change {
            Change::Replaced(all) => {
                let all = all.into_iter().map(self.read);
                let all = all.filter_map(|(key, value)| Some((key, value?))).collect();
                self.shown.send_if_modified(|seen| {
                    seen.known = Some(Arc::new(all));
                    false
                });
                true
            }
            Change::Applied(object) => {
                let (key, value) = (self.read)(object);
                self.put(key, value)
            }
            Change::Removed(object) => self.put((self.read)(object).0, None),
            Change::Ended => false,
            Change::Interrupted(error) => {
                let chain = Chain(&error).to_string();
                if error.code() == Some(403) {
                    self.shown.send_if_modified(|seen| {
                        let is_other = seen.forbidden.as_ref() != Some(&chain);
                        seen.forbidden = Some(chain);
                        is_other
                    });
                } else {
                    tracing::warn!(error = chain, "cannot follow {}", self.what);
                }
                false
            }
        }
    }
}

/// A pod without the most of it: of thousands, each is read as no more than
/// this.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "PodText")]
struct SlimPod {
    metadata: ObjectMeta,
    is_host_network: bool,
    is_over: bool,
    addresses: Vec<String>,
    host_addresses: Vec<String>,
    ports: Vec<NamedPort>,
}

impl SlimPod {
    fn peer(self) -> Option<PeerPod> {
        let read = |all: &[String]| -> Vec<IpAddr> {
            all.iter().filter_map(|address| address.parse().ok()).collect()
        };
        // One that its node has too is no pod's: whoever is let in by it is the
        // whole node with all that share it.
        let hosts = read(&self.host_addresses);
        let mut addresses = read(&self.addresses);
        addresses.retain(|address| !hosts.contains(address));
        if self.is_host_network || self.is_over || addresses.is_empty() {
            return None;
        }
        let ObjectMeta { namespace, labels, .. } = self.metadata;
        let labels = labels.unwrap_or_default();
        if !may_be_named(&labels) || self.ports.len() > MOST_NAMED_PORTS {
            return None;
        }
        Some(PeerPod {
            namespace: namespace.unwrap_or_default(),
            labels,
            addresses,
            ports: self.ports,
        })
    }
}

impl Resource for SlimPod {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::URL_PATH_SEGMENT.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A pod as it is read; what is not named here is passed over.
#[derive(Deserialize)]
struct PodText {
    metadata: MetadataText,
    #[serde(default)]
    spec: SpecText,
    #[serde(default)]
    status: StatusText,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetadataText {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    labels: Option<Labels>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecText {
    host_network: Option<bool>,
    containers: Vec<ContainerText>,
    init_containers: Option<Vec<ContainerText>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerText {
    restart_policy: Option<String>,
    ports: Option<Vec<PortText>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortText {
    name: Option<String>,
    protocol: Option<String>,
    container_port: i32,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StatusText {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<AddressText>>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "hostIPs")]
    host_ips: Option<Vec<AddressText>>,
}

/// All addresses; the one alone where only that is told.
fn addresses(all: Option<Vec<AddressText>>, one: Option<String>) -> Vec<String> {
    let all: Vec<_> = all.into_iter().flatten().filter_map(|address| address.ip).collect();
    if all.is_empty() { one.into_iter().collect() } else { all }
}

#[derive(Deserialize)]
struct AddressText {
    ip: Option<String>,
}

impl From<PodText> for SlimPod {
    fn from(text: PodText) -> Self {
        let MetadataText { name, namespace, resource_version, labels } = text.metadata;
        let metadata =
            ObjectMeta { name, namespace, resource_version, labels, ..ObjectMeta::default() };
        let SpecText { host_network, containers, init_containers } = text.spec;
        let beside = init_containers.unwrap_or_default().into_iter();
        let beside = beside.filter(|one| one.restart_policy.as_deref() == Some("Always"));
        let ports = containers.into_iter().chain(beside).filter_map(|one| one.ports);
        let ports = ports.flatten().filter_map(|port| {
            NamedPort::new(port.name.as_deref(), port.protocol.as_deref(), port.container_port)
        });
        let StatusText { phase, pod_ip, pod_ips, host_ip, host_ips } = text.status;
        Self {
            metadata,
            is_host_network: host_network.unwrap_or_default(),
            is_over: matches!(phase.as_deref(), Some("Succeeded" | "Failed")),
            ports: ports.collect(),
            addresses: addresses(pod_ips, pod_ip),
            host_addresses: addresses(host_ips, host_ip),
        }
    }
}

#[cfg(test)]
mod tests {
    use krustlet_model::{policy::MOST_LABELS, services::Transport};
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value, status: Value) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "p",
                "namespace": "n",
                "resourceVersion": "7",
                "labels": {"app": "web"},
                "managedFields": [{"fieldsV1": {"f:metadata": {}}}],
            },
            "spec": spec,
            "status": status,
        })
    }

    fn read(pod: Value) -> SlimPod {
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_pod_with_too_many_labels_or_ports_is_named_by_nobody() {
        let status = json!({"phase": "Running", "podIP": "10.1.0.2"});
        let of = |labels: usize, ports: usize| {
            let port = |port: usize| json!({"name": format!("p{port}"), "containerPort": port});
            let ports: Vec<_> = (1..=ports).map(port).collect();
            let spec = json!({"containers": [{"name": "a", "ports": ports}]});
            let mut pod = pod(spec, status.clone());
            let labels = (0..labels).map(|label| (format!("l{label}"), json!("")));
            pod["metadata"]["labels"] = Value::Object(labels.collect());
            read(pod).peer()
        };
        assert!(of(MOST_LABELS, MOST_NAMED_PORTS).is_some());
        assert_eq!(of(MOST_LABELS + 1, 0), None);
        assert_eq!(of(0, MOST_NAMED_PORTS + 1), None);
    }

    #[test]
    fn of_a_pod_that_is_kept_which_policies_look_at() {
        let port = |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "containerPort": port});
        let spec = json!({
            "nodeName": "n",
            "containers": [
                {"name": "a", "image": "i", "ports": [port("web", "TCP", 80), {"containerPort": 81}]},
                {"name": "b", "image": "i", "ports": [port("dns", "UDP", 53), port("s", "SCTP", 9)]},
            ],
            "initContainers": [
                {"name": "c", "ports": [port("gone", "TCP", 1)]},
                {"name": "d", "restartPolicy": "Always", "ports": [port("side", "TCP", 2)]},
            ],
        });
        let status = json!({
            "phase": "Running",
            "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
        });
        let slim = read(pod(spec, status));
        assert_eq!(slim.meta().resource_version.as_deref(), Some("7"));
        let peer = slim.peer().unwrap();
        let named = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
        assert_eq!(
            peer,
            PeerPod {
                namespace: "n".to_owned(),
                labels: [("app".to_owned(), "web".to_owned())].into(),
                addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                ports: vec![
                    named("web", Transport::Tcp, 80),
                    named("dns", Transport::Udp, 53),
                    named("side", Transport::Tcp, 2),
                ],
            }
        );
        assert_eq!(SlimPod::url_path(&(), None), Pod::url_path(&(), None));
    }

    #[test]
    fn what_nobody_holds_is_not_copied_when_it_changes() {
        let (mut seen, mut held) = Held::new("numbers", |one: (u8, Option<u8>)| one);
        let all = |seen: &Shown<u8, u8>| seen.borrow().known.clone().unwrap();
        let place = |seen: &Shown<u8, u8>| Arc::as_ptr(seen.borrow().known.as_ref().unwrap());
        assert!(held.take(Change::Replaced(vec![(1, Some(10)), (2, None)])));
        assert!(!seen.has_changed().unwrap(), "more may follow");
        held.show();
        seen.mark_unchanged();
        let first = place(&seen);
        assert!(held.take(Change::Applied((2, Some(20)))));
        assert!(!held.take(Change::Applied((2, Some(20)))), "it is as it was");
        assert!(!held.take(Change::Removed((3, None))), "it was not there");
        held.show();
        assert!(seen.has_changed().unwrap());
        assert!(place(&seen) == first, "nobody held it");
        let before = all(&seen);
        assert!(held.take(Change::Removed((1, None))));
        assert!(held.take(Change::Applied((2, None))));
        assert!(held.take(Change::Applied((3, Some(30)))));
        held.show();
        assert_eq!(*before, BTreeMap::from([(1, 10), (2, 20)]));
        assert_eq!(*all(&seen), BTreeMap::from([(3, 30)]));
    }

    #[test]
    fn who_has_no_address_of_its_own_is_not_named() {
        let is_peer = |spec, status| read(pod(spec, status)).peer().is_some();
        let running = json!({"phase": "Running", "podIP": "10.0.0.1"});
        assert!(is_peer(json!({"containers": []}), running.clone()));
        assert!(!is_peer(json!({"containers": [], "hostNetwork": true}), running));
        for phase in ["Succeeded", "Failed"] {
            assert!(!is_peer(json!({}), json!({"phase": phase, "podIP": "10.0.0.1"})));
        }
        assert!(!is_peer(json!({}), json!({"phase": "Pending"})));
        // An address that is its node's is not its own.
        let at = |host: Value| json!({"phase": "Running", "podIP": "10.0.0.1", "hostIPs": host});
        let host = json!([{"ip": "192.0.2.1"}, {"ip": "10.0.0.1"}]);
        assert!(!is_peer(json!({}), at(host)));
        assert!(is_peer(json!({}), at(json!([{"ip": "192.0.2.1"}]))));
        let alone = json!({"phase": "Running", "podIP": "10.0.0.1", "hostIP": "10.0.0.1"});
        assert!(!is_peer(json!({}), alone));
    }
}
