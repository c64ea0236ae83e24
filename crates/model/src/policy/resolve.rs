//! From one policy to addresses.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicySpec,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    AddressRange, MOST_RANGES, MOST_RULES, NamedPort, PolicyRule, PortRange, bits::Bits,
    index::Index, merge, whom::Reach,
};
use crate::{services::Transport, zeros::without_zeros};

/// What a policy comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Nothing where the policy does not speak of what comes in.
    pub(super) ingress: Vec<Unnamed>,
    /// Nothing where it does not speak of what goes out.
    pub(super) egress: Vec<PolicyRule>,
    /// Whether it comes to more than any pod may have: the rest is not here.
    pub(super) is_too_large: bool,
}

/// A rule whose named ports each pod has to find among its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unnamed {
    rule: PolicyRule,
    names: Vec<(Transport, String)>,
}

/// The directions that a policy closes but for what it lets through.
///
/// Source: `SetDefaults_NetworkPolicy` in `pkg/apis/networking/v1/defaults.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closes {
    pub(super) ingress: bool,
    pub(super) egress: bool,
}

impl Closes {
    pub(super) const BOTH: Self = Self { ingress: true, egress: true };

    pub(super) fn of(spec: &NetworkPolicySpec) -> Self {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let has = |kind: &str| types.iter().any(|given| given == kind);
        let is_said = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        Self {
            ingress: types.is_empty() || has("Ingress"),
            egress: has("Egress") || types.is_empty() && is_said,
        }
    }
}

/// Whom a policy has to be looked at again for.
pub(super) fn reach(spec: &NetworkPolicySpec) -> Reach {
    let of_peer = |peer: &NetworkPolicyPeer| {
        if peer.ip_block.is_some() {
            Reach::Nobody
        } else if peer.namespace_selector.is_some() {
            Reach::Everybody
        } else {
            Reach::Namespace
        }
    };
    let ingress = spec.ingress.iter().flatten();
    let ingress = ingress.flat_map(|rule| rule.from.iter().flatten()).map(of_peer);
    let egress = spec.egress.iter().flatten().map(|rule| {
        let peers = rule.to.as_deref().unwrap_or_default();
        let is_named =
            rule.ports.iter().flatten().any(|one| matches!(one.port, Some(IntOrString::String(_))));
        // Whoever has the address has to have the port too.
        let is_open = peers.is_empty() || peers.iter().any(|peer| peer.ip_block.is_some());
        if is_named && is_open {
            Reach::Everybody
        } else {
            peers.iter().map(of_peer).max().unwrap_or(Reach::Nobody)
        }
    });
    ingress.chain(egress).max().unwrap_or(Reach::Nobody)
}

/// Works out what a policy of a namespace comes to, and adds the steps that it
/// takes. The index is asked for if anybody is to be looked up.
pub(super) fn resolve<'a>(
    index: &dyn Fn() -> &'a Index,
    namespace: &str,
    spec: &NetworkPolicySpec,
    steps: &mut u64,
) -> Resolved {
    let mut work = Resolver { index, namespace, steps, sum: Sum::default() };
    let mut resolved = Resolved::default();
    resolved.is_too_large = !work.add_rules(spec, &mut resolved);
    resolved
}

struct Resolver<'a, 'b> {
    index: &'b dyn Fn() -> &'a Index,
    namespace: &'b str,
    steps: &'b mut u64,
    sum: Sum,
}

impl Resolver<'_, '_> {
    /// Whether there was room for all.
    fn add_rules(&mut self, spec: &NetworkPolicySpec, resolved: &mut Resolved) -> bool {
        let closes = Closes::of(spec);
        for rule in spec.ingress.iter().flatten().filter(|_| closes.ingress) {
            let unnamed = self.ingress(rule);
            if !self.sum.has_room(&unnamed.rule, 1) {
                return false;
            }
            resolved.ingress.push(unnamed);
        }
        for rule in spec.egress.iter().flatten().filter(|_| closes.egress) {
            for rule in self.egress(rule) {
                if !self.sum.has_room(&rule, 1) {
                    return false;
                }
                resolved.egress.push(rule);
            }
        }
        true
    }

    fn ingress(&mut self, rule: &NetworkPolicyIngressRule) -> Unnamed {
        let Ports { numbers, names } = Ports::of(rule.ports.as_deref());
        let peers = given(rule.from.as_deref()).map(|peers| self.ranges(peers));
        Unnamed { rule: PolicyRule { peers, ports: numbers }, names }
    }

    /// A port's name stands for a number of each pod that is gone to.
    fn egress(&mut self, rule: &NetworkPolicyEgressRule) -> Vec<PolicyRule> {
        let Ports { numbers, names } = Ports::of(rule.ports.as_deref());
        let peers = given(rule.to.as_deref());
        let mut rules = Vec::new();
        if numbers.as_ref().is_none_or(|numbers| !numbers.is_empty()) {
            let peers = peers.map(|peers| self.ranges(peers));
            rules.push(PolicyRule { peers, ports: numbers });
        }
        if names.is_empty() {
            return rules;
        }
        let found = self.at(peers);
        let index = (self.index)();
        let mut by_port: BTreeMap<(Transport, u16), Vec<AddressRange>> = BTreeMap::new();
        for named in &names {
            for (number, port) in index.look(self.steps).ports(&found, named) {
                let ranges = by_port.entry((named.0, port)).or_default();
                ranges.push(AddressRange::one(index.address(number)));
            }
        }
        rules.extend(by_port.into_iter().map(|((protocol, port), ranges)| PolicyRule {
            peers: Some(merge(ranges)),
            ports: Some(vec![PortRange { protocol, first: port, last: port }]),
        }));
        rules
    }

    /// The addresses of peers.
    fn ranges(&mut self, peers: &[NetworkPolicyPeer]) -> Vec<AddressRange> {
        let mut ranges = merge(peers.iter().flat_map(block).collect());
        if peers.iter().all(|peer| peer.ip_block.is_some()) {
            return ranges;
        }
        let mut found = self.named(peers);
        let mut look = (self.index)().look(self.steps);
        // Pods in a block need not be told one by one.
        for range in &ranges {
            look.put(&mut found, *range, false);
        }
        ranges.extend(look.ranges(&found));
        merge(ranges)
    }

    /// The pods with addresses of peers, whatever else there is; all if there is
    /// no peer.
    fn at(&mut self, peers: Option<&[NetworkPolicyPeer]>) -> Bits {
        let Some(peers) = peers else { return (self.index)().look(self.steps).everybody() };
        let mut found = self.named(peers);
        for range in merge(peers.iter().flat_map(block).collect()) {
            (self.index)().look(self.steps).put(&mut found, range, true);
        }
        found
    }

    /// The pods that peers name by labels, theirs or their namespaces'.
    fn named(&mut self, peers: &[NetworkPolicyPeer]) -> Bits {
        let mut look = (self.index)().look(self.steps);
        let mut found = look.nobody();
        for NetworkPolicyPeer { pod_selector, namespace_selector, ip_block } in peers {
            if ip_block.is_some() {
                continue;
            }
            let within = match (namespace_selector, pod_selector) {
                (None, None) => continue,
                (None, Some(_)) => Some(look.of_namespace(self.namespace)),
                (Some(selector), _) => look.of_namespaces(selector),
            };
            let those = match pod_selector {
                None => within,
                Some(selector) => within.and_then(|within| look.of_pods(selector, within)),
            };
            if let Some(those) = those {
                look.join(&mut found, &those);
            }
        }
        found
    }
}

/// What is not there, or empty, stands for everything.
fn given<T>(items: Option<&[T]>) -> Option<&[T]> {
    items.filter(|items| !items.is_empty())
}

/// The addresses of an `ipBlock`; none of one that cannot be read, or of a peer
/// that is another kind too.
fn block(peer: &NetworkPolicyPeer) -> Vec<AddressRange> {
    let Some(block) = &peer.ip_block else { return Vec::new() };
    if peer.pod_selector.is_some() || peer.namespace_selector.is_some() {
        return Vec::new();
    }
    let read = |text: &String| AddressRange::parse(&without_zeros(text));
    let but = block.except.iter().flatten().map(read);
    match (read(&block.cidr), but.collect::<Option<Vec<_>>>()) {
        (Some(range), Some(but)) => range.without(&but),
        (None, _) | (_, None) => Vec::new(),
    }
}

/// Ports of a rule.
struct Ports {
    /// By number; any if none.
    numbers: Option<Vec<PortRange>>,
    /// By name, each once.
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
        names.sort();
        names.dedup();
        Self { numbers: Some(numbers), names }
    }
}

impl Unnamed {
    /// The rule for a pod with these ports, in order; none if it lets nothing
    /// through.
    pub(super) fn of(&self, own: &[NamedPort]) -> Option<PolicyRule> {
        let mut rule = self.rule.clone();
        let Some(ports) = &mut rule.ports else { return Some(rule) };
        for (protocol, name) in &self.names {
            let before = |port: &NamedPort| (&port.name, port.protocol) < (name, *protocol);
            let from = own.partition_point(before);
            let named = own[from..].iter();
            let named = named.take_while(|port| (&port.name, port.protocol) == (name, *protocol));
            ports.extend(named.map(|port| PortRange {
                protocol: *protocol,
                first: port.port,
                last: port.port,
            }));
        }
        (!ports.is_empty()).then_some(rule)
    }
}

/// Rules, ranges of addresses and ports, counted up to what a pod may have.
#[derive(Debug, Default)]
pub(super) struct Sum {
    rules: usize,
    ranges: usize,
    ports: usize,
}

impl Sum {
    /// Counts a rule in. Whether there is room for it in so many times what a pod
    /// may have.
    pub(super) fn has_room(&mut self, rule: &PolicyRule, times: usize) -> bool {
        self.rules += 1;
        self.ranges += rule.peers.as_ref().map_or(0, Vec::len);
        self.ports += rule.ports.as_ref().map_or(0, Vec::len);
        self.ranges <= MOST_RANGES * times
            && self.ports <= MOST_RULES * times
            && self.rules <= MOST_RULES * times
    }
}
