//! From the cluster's policies and the names and labels in them to addresses.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use k8s_openapi::{
    api::{
        core::v1::Pod,
        networking::v1::{
            NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
            NetworkPolicyPort, NetworkPolicySpec,
        },
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    AddressRange, MOST_RANGES, MOST_RULES, PodPolicy, PolicyRule, PortRange, merge, select::selects,
};
use crate::services::Transport;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name of an object.
pub type PolicyKey = (String, String);

/// A pod that policies may name: one that runs, and has addresses of its own.
///
/// Pods of the host's network are none, nor are those that have ended, whose
/// addresses others may have by now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerPod {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports of its containers that have a name.
    pub ports: Vec<NamedPort>,
}

/// A port with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The protocol.
    pub protocol: Transport,
    /// The number.
    pub port: u16,
}

impl NamedPort {
    /// Reads a container's port; none without a name, or of a protocol that
    /// guests do not have.
    #[must_use]
    pub fn new(name: Option<&str>, protocol: Option<&str>, port: i32) -> Option<Self> {
        let name = name.filter(|name| !name.is_empty())?.to_owned();
        let protocol = Transport::parse(protocol)?;
        Some(Self { name, protocol, port: u16::try_from(port).ok()? })
    }
}

/// What is known of the cluster's policies.
#[derive(Clone, Debug, Default)]
pub enum Policies {
    /// They are none of this node's business.
    #[default]
    Off,
    /// Not enough, for this reason: pods wait.
    Unknown(String),
    /// All of them.
    Known(Arc<Book>),
}

/// All policies, and whom they name.
#[derive(Debug, Default)]
pub struct Book {
    namespaces: Arc<BTreeMap<String, Labels>>,
    /// By their namespace.
    pods: BTreeMap<String, Vec<Arc<PeerPod>>>,
    /// By their namespace.
    policies: BTreeMap<String, Vec<Entry>>,
}

/// A policy. What it comes to is worked out when it is first asked for: most
/// are for pods of other nodes.
#[derive(Debug)]
struct Entry {
    name: String,
    spec: Arc<NetworkPolicySpec>,
    resolved: OnceLock<Resolved>,
}

#[derive(Debug, PartialEq, Eq)]
struct Resolved {
    ingress: Option<Vec<Unnamed>>,
    egress: Option<Vec<PolicyRule>>,
    /// Whether it says more than is looked at.
    is_too_large: bool,
}

/// A rule whose named ports each pod has to find among its own.
#[derive(Debug, PartialEq, Eq)]
struct Unnamed {
    rule: PolicyRule,
    names: Vec<(Transport, String)>,
}

/// Rules, peers, ports and exceptions that one policy has, at most: each peer is
/// compared with every pod of the cluster.
pub(crate) const MOST_PARTS: usize = 8192;

/// What policies come to for one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What it may do; of what is too much, the first part.
    pub policy: PodPolicy,
    /// Whether there is more than a pod may have ([`MOST_RANGES`], [`MOST_RULES`]).
    pub is_too_large: bool,
}

impl Book {
    /// Puts together what is known.
    #[must_use]
    pub fn new(
        policies: &BTreeMap<PolicyKey, Arc<NetworkPolicySpec>>,
        namespaces: Arc<BTreeMap<String, Labels>>,
        pods: &BTreeMap<PolicyKey, Arc<PeerPod>>,
    ) -> Self {
        let mut book = Self { namespaces, ..Self::default() };
        for ((namespace, name), spec) in policies {
            let entry =
                Entry { name: name.clone(), spec: Arc::clone(spec), resolved: OnceLock::new() };
            book.policies.entry(namespace.clone()).or_default().push(entry);
        }
        if !policies.is_empty() {
            for ((namespace, _), pod) in pods {
                book.pods.entry(namespace.clone()).or_default().push(Arc::clone(pod));
            }
        }
        book
    }

    /// Works out what was asked of the book before this one.
    pub fn follow(&self, before: &Self) {
        for (namespace, new, old) in self.pairs(before) {
            if old.resolved.get().is_some() {
                self.resolved(namespace, new);
            }
        }
    }

    /// Whether whoever asked the book before this one may be answered otherwise
    /// by this one.
    #[must_use]
    pub fn differs_from(&self, before: &Self) -> bool {
        let count = |book: &Self| book.policies.values().map(Vec::len).sum::<usize>();
        let mut same = 0;
        let differs = self.pairs(before).any(|(namespace, new, old)| {
            same += 1;
            let is_same = old.resolved.get().is_none_or(|old| self.resolved(namespace, new) == old);
            new.spec != old.spec || !is_same
        });
        differs || same != count(self) || same != count(before)
    }

    /// Policies of the same name in both books.
    fn pairs<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (&'a str, &'a Entry, &'a Entry)> {
        self.policies.iter().flat_map(|(namespace, entries)| {
            let others = before.policies.get(namespace).map_or(&[][..], Vec::as_slice);
            // Both are in the order of names.
            entries.iter().filter_map(move |new| {
                let index = others.binary_search_by(|old| old.name.cmp(&new.name)).ok()?;
                Some((namespace.as_str(), new, &others[index]))
            })
        })
    }

    /// What the policies come to for a pod: it is the business of whoever asks
    /// that those of the host's network are not subject to any.
    #[must_use]
    pub fn of(&self, pod: &Pod) -> Verdict {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(entries) = self.policies.get(namespace) else { return Verdict::default() };
        let none = Labels::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
        let mut ports = None;
        let mut sum = Sum::default();
        for entry in entries {
            // A selector that cannot be read selects all: a policy that nobody
            // can read opens nothing.
            let selector = entry.spec.pod_selector.as_ref();
            if !selector.is_none_or(|selector| selects(selector, labels).unwrap_or(true)) {
                continue;
            }
            let resolved = self.resolved(namespace, entry);
            sum.verdict.is_too_large |= resolved.is_too_large;
            if let Some(rules) = &resolved.ingress {
                sum.verdict.policy.ingress.get_or_insert_default();
                for rule in rules {
                    let own = ports.get_or_insert_with(|| named_ports(pod));
                    if let Some(rule) = rule.of(own) {
                        sum.add(&rule, |policy| &mut policy.ingress);
                    }
                }
            }
            if let Some(rules) = &resolved.egress {
                sum.verdict.policy.egress.get_or_insert_default();
                for rule in rules {
                    sum.add(rule, |policy| &mut policy.egress);
                }
            }
        }
        sum.verdict
    }

    fn resolved<'a>(&self, namespace: &str, entry: &'a Entry) -> &'a Resolved {
        entry.resolved.get_or_init(|| self.resolve(namespace, &entry.spec))
    }

    fn resolve(&self, namespace: &str, spec: &NetworkPolicySpec) -> Resolved {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let has = |kind: &str| types.iter().any(|given| given == kind);
        let ingress = spec.ingress.as_deref().unwrap_or_default();
        let egress = spec.egress.as_deref().unwrap_or_default();
        if size(spec) > MOST_PARTS {
            // Not looked at: that alone would take too long.
            return Resolved {
                ingress: Some(Vec::new()),
                egress: Some(Vec::new()),
                is_too_large: true,
            };
        }
        // Source: `SetDefaults_NetworkPolicy` in `pkg/apis/networking/v1/defaults.go`.
        let is_ingress = types.is_empty() || has("Ingress");
        let is_egress = has("Egress") || types.is_empty() && !egress.is_empty();
        Resolved {
            ingress: is_ingress
                .then(|| ingress.iter().map(|rule| self.ingress(namespace, rule)).collect()),
            egress: is_egress
                .then(|| egress.iter().flat_map(|rule| self.egress(namespace, rule)).collect()),
            is_too_large: false,
        }
    }

    fn ingress(&self, namespace: &str, rule: &NetworkPolicyIngressRule) -> Unnamed {
        let Ports { numbers, names } = Ports::of(rule.ports.as_deref());
        let peers = given(rule.from.as_deref()).map(|peers| self.ranges(namespace, peers));
        Unnamed { rule: PolicyRule { peers, ports: numbers }, names }
    }

    /// A port's name stands for a number of each pod that is gone to.
    fn egress(&self, namespace: &str, rule: &NetworkPolicyEgressRule) -> Vec<PolicyRule> {
        let Ports { numbers, names } = Ports::of(rule.ports.as_deref());
        let peers = given(rule.to.as_deref());
        let mut rules = Vec::new();
        if numbers.as_ref().is_none_or(|numbers| !numbers.is_empty()) {
            let peers = peers.map(|peers| self.ranges(namespace, peers));
            rules.push(PolicyRule { peers, ports: numbers });
        }
        if names.is_empty() {
            return rules;
        }
        let mut by_port: BTreeMap<(Transport, u16), Vec<AddressRange>> = BTreeMap::new();
        let blocks = merge(peers.unwrap_or_default().iter().flat_map(block).collect());
        let is_meant = |pod: &PeerPod| {
            let Some(peers) = peers else { return true };
            peers.iter().any(|peer| self.names(namespace, peer, pod))
                || pod.addresses.iter().any(|ip| blocks.iter().any(|range| range.contains(*ip)))
        };
        for pod in self.pods.values().flatten() {
            if !is_meant(pod) {
                continue;
            }
            for NamedPort { name, protocol, port } in &pod.ports {
                if names.iter().any(|(of, wanted)| of == protocol && wanted == name) {
                    let ranges = by_port.entry((*protocol, *port)).or_default();
                    ranges.extend(pod.addresses.iter().copied().map(AddressRange::one));
                }
            }
        }
        rules.extend(by_port.into_iter().map(|((protocol, port), ranges)| PolicyRule {
            peers: Some(merge(ranges)),
            ports: Some(vec![PortRange { protocol, first: port, last: port }]),
        }));
        rules
    }

    /// The addresses of peers.
    fn ranges(&self, namespace: &str, peers: &[NetworkPolicyPeer]) -> Vec<AddressRange> {
        let mut ranges: Vec<_> = peers.iter().flat_map(block).collect();
        // Most select pods of their own namespace alone.
        let own = peers.iter().all(|peer| peer.namespace_selector.is_none());
        let pods = self.pods.iter().filter(|(of, _)| !own || *of == namespace);
        // Each pod once, however many peers name it.
        for pod in pods.flat_map(|(_, pods)| pods) {
            if peers.iter().any(|peer| self.names(namespace, peer, pod)) {
                ranges.extend(pod.addresses.iter().copied().map(AddressRange::one));
            }
        }
        merge(ranges)
    }

    /// Whether a policy's peer names a pod by its labels and its namespace's.
    fn names(&self, namespace: &str, peer: &NetworkPolicyPeer, pod: &PeerPod) -> bool {
        let NetworkPolicyPeer { pod_selector, namespace_selector, ip_block } = peer;
        if ip_block.is_some() || pod_selector.is_none() && namespace_selector.is_none() {
            return false;
        }
        let is_there = match namespace_selector {
            None => pod.namespace == namespace,
            // One that is not known yet is nobody's.
            Some(selector) => self
                .namespaces
                .get(&pod.namespace)
                .and_then(|labels| selects(selector, labels))
                .unwrap_or(false),
        };
        is_there
            && pod_selector
                .as_ref()
                .is_none_or(|selector| selects(selector, &pod.labels).unwrap_or(false))
    }
}

/// What is not there, or empty, stands for everything.
fn given<T>(items: Option<&[T]>) -> Option<&[T]> {
    items.filter(|items| !items.is_empty())
}

/// Rules, peers, ports and exceptions of a policy.
fn size(spec: &NetworkPolicySpec) -> usize {
    let peers = |peers: Option<&Vec<NetworkPolicyPeer>>| -> usize {
        let except = |peer: &NetworkPolicyPeer| {
            peer.ip_block.as_ref().and_then(|block| block.except.as_ref()).map_or(0, Vec::len)
        };
        peers.into_iter().flatten().map(|peer| 1 + except(peer)).sum()
    };
    let ports = |ports: Option<&Vec<NetworkPolicyPort>>| ports.map_or(0, Vec::len);
    let ingress = spec.ingress.iter().flatten();
    let ingress = ingress.map(|rule| 1 + peers(rule.from.as_ref()) + ports(rule.ports.as_ref()));
    let egress = spec.egress.iter().flatten();
    let egress = egress.map(|rule| 1 + peers(rule.to.as_ref()) + ports(rule.ports.as_ref()));
    ingress.chain(egress).sum()
}

/// The addresses of an `ipBlock`; none of one that cannot be read, or of a peer
/// that is another kind too.
fn block(peer: &NetworkPolicyPeer) -> Vec<AddressRange> {
    let Some(block) = &peer.ip_block else { return Vec::new() };
    if peer.pod_selector.is_some() || peer.namespace_selector.is_some() {
        return Vec::new();
    }
    let but = block.except.iter().flatten().map(|text| AddressRange::parse(text));
    match (AddressRange::parse(&block.cidr), but.collect::<Option<Vec<_>>>()) {
        (Some(range), Some(but)) => range.without(&but),
        (None, _) | (_, None) => Vec::new(),
    }
}

/// Ports of a rule.
struct Ports {
    /// By number; any if none.
    numbers: Option<Vec<PortRange>>,
    /// By name.
    names: Vec<(Transport, String)>,
}

impl Ports {
    /// Those of protocols that guests do not have, and what cannot be read,
    /// match nothing.
    fn of(ports: Option<&[NetworkPolicyPort]>) -> Self {
        let Some(ports) = given(ports) else {
            return Self { numbers: None, names: Vec::new() };
        };
        let (mut numbers, mut names) = (Vec::new(), Vec::new());
        for port in ports {
            let Some(protocol) = Transport::parse(port.protocol.as_deref()) else { continue };
            let number = |number: i32| u16::try_from(number).ok();
            match (&port.port, port.end_port) {
                (None, None) => {
                    numbers.push(PortRange { protocol, first: 0, last: u16::MAX });
                }
                (Some(IntOrString::Int(first)), last) => {
                    let last = last.unwrap_or(*first);
                    if let (Some(first), Some(last)) = (number(*first), number(last)) {
                        numbers.push(PortRange { protocol, first, last });
                    }
                }
                (Some(IntOrString::String(name)), None) => names.push((protocol, name.clone())),
                (None | Some(IntOrString::String(_)), Some(_)) => {}
            }
        }
        Self { numbers: Some(numbers), names }
    }
}

impl Unnamed {
    /// The rule for a pod with these ports; none if it lets nothing through.
    fn of(&self, own: &[NamedPort]) -> Option<PolicyRule> {
        let mut rule = self.rule.clone();
        let Some(ports) = &mut rule.ports else { return Some(rule) };
        for (protocol, name) in &self.names {
            let named = own.iter().filter(|port| port.protocol == *protocol && port.name == *name);
            ports.extend(named.map(|port| PortRange {
                protocol: *protocol,
                first: port.port,
                last: port.port,
            }));
        }
        (!ports.is_empty()).then_some(rule)
    }
}

/// Adds rules up to what a pod may have.
#[derive(Default)]
struct Sum {
    verdict: Verdict,
    rules: usize,
    ranges: usize,
    ports: usize,
}

impl Sum {
    fn add(
        &mut self,
        rule: &PolicyRule,
        of: impl FnOnce(&mut PodPolicy) -> &mut Option<Vec<PolicyRule>>,
    ) {
        let rules = of(&mut self.verdict.policy).get_or_insert_default();
        if self.verdict.is_too_large {
            return;
        }
        // Several policies often say the same.
        if rules.contains(rule) {
            return;
        }
        self.rules += 1;
        self.ranges += rule.peers.as_ref().map_or(0, Vec::len);
        self.ports += rule.ports.as_ref().map_or(0, Vec::len);
        if self.ranges > MOST_RANGES || self.ports > MOST_RULES || self.rules > MOST_RULES {
            self.verdict.is_too_large = true;
            return;
        }
        rules.push(rule.clone());
    }
}

/// The named ports of a pod's containers, those that run beside them included.
#[must_use]
pub fn named_ports(pod: &Pod) -> Vec<NamedPort> {
    let spec = pod.spec.as_ref();
    let beside = spec
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default()
        .iter()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let containers = spec.map_or(&[][..], |spec| &spec.containers).iter().chain(beside);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            NamedPort::new(port.name.as_deref(), port.protocol.as_deref(), port.container_port)
        })
        .collect()
}
