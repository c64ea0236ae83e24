//! The pods of the cluster by what policies name them by.
//!
//! A pod counts once for each of its addresses. These are numbered in their order,
//! so that a set of them ([`Bits`]) is as good as ranges of addresses; what has a
//! label is such a set too, worked out once however many selectors ask for it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    ops::Range,
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{
    AddressRange, Labels, PeerPod,
    bits::{Bits, List},
    named::Named,
    ranges::after,
    select::{Wish, wishes},
};
use crate::services::Transport;

/// See the module.
#[derive(Debug)]
pub(super) struct Index {
    addresses: Vec<IpAddr>,
    /// Those whose address is that of the one before, or follows it.
    joined: Bits,
    everybody: Bits,
    /// Those whose namespace's labels are known.
    placed: Bits,
    namespaces: HashMap<String, List>,
    labels: Labelled,
    /// By the labels of their namespaces.
    by_namespaces: Labelled,
    /// Ports by their names, in the order of addresses.
    ports: HashMap<(Transport, String), Vec<(u32, u16)>>,
}

/// Who has a label, of those that policies name.
#[derive(Debug)]
struct Labelled(HashMap<String, Label>);

#[derive(Debug, Default)]
struct Label {
    any: List,
    values: HashMap<String, List>,
}

impl Labelled {
    fn new(named: &HashSet<&str>) -> Self {
        Self(named.iter().map(|key| ((*key).to_owned(), Label::default())).collect())
    }

    fn names_all(&self, keys: &HashSet<&str>) -> bool {
        keys.iter().all(|key| self.0.contains_key(*key))
    }

    fn add(&mut self, labels: &Labels, number: u32) {
        for (key, value) in labels {
            let Some(label) = self.0.get_mut(key) else { continue };
            label.any.push(number);
            entry(&mut label.values, value).push(number);
        }
    }

    fn settle(&mut self, length: usize) {
        for label in self.0.values_mut() {
            label.any.settle(length);
            label.values.values_mut().for_each(|list| list.settle(length));
        }
    }

    /// None if nobody was asked for it when this was made.
    fn of(&self, key: &str) -> Option<&Label> {
        self.0.get(key)
    }
}

/// Most keys are there by then.
fn entry<'a, V: Default>(map: &'a mut HashMap<String, V>, key: &str) -> &'a mut V {
    if !map.contains_key(key) {
        map.insert(key.to_owned(), V::default());
    }
    map.get_mut(key).expect("it was put in if it was not there")
}

impl Index {
    /// An index for policies that name no other labels than these.
    pub(super) fn new<'a>(
        pods: impl Iterator<Item = &'a Arc<PeerPod>>,
        namespaces: &BTreeMap<String, Labels>,
        named: &Named<'_>,
    ) -> Self {
        let each = |pod: &'a Arc<PeerPod>| pod.addresses.iter().map(move |at| (*at, &**pod));
        let mut all: Vec<(IpAddr, &PeerPod)> = pods.flat_map(each).collect();
        all.sort_by_key(|(address, _)| *address);
        let length = all.len();
        let mut index = Self {
            addresses: all.iter().map(|(address, _)| *address).collect(),
            joined: Bits::none(length),
            everybody: Bits::all(length),
            placed: Bits::none(length),
            namespaces: HashMap::new(),
            labels: Labelled::new(&named.pods),
            by_namespaces: Labelled::new(&named.namespaces),
            ports: HashMap::new(),
        };
        let mut before = None;
        for (number, (address, pod)) in (0_u32..).zip(all) {
            if before.is_some_and(|before| before == address || after(before) == Some(address)) {
                index.joined.add(number);
            }
            before = Some(address);
            entry(&mut index.namespaces, &pod.namespace).push(number);
            index.labels.add(&pod.labels, number);
            if let Some(labels) = namespaces.get(&pod.namespace) {
                index.placed.add(number);
                index.by_namespaces.add(labels, number);
            }
            for port in &pod.ports {
                let named = (port.protocol, port.name.clone());
                index.ports.entry(named).or_default().push((number, port.port));
            }
        }
        index.namespaces.values_mut().for_each(|list| list.settle(length));
        index.labels.settle(length);
        index.by_namespaces.settle(length);
        index
    }

    /// Whether it is one for policies that name these.
    pub(super) fn names_all(&self, named: &Named<'_>) -> bool {
        self.labels.names_all(&named.pods) && self.by_namespaces.names_all(&named.namespaces)
    }

    /// How many sets it keeps for labels.
    #[cfg(test)]
    pub(super) fn sets(&self) -> usize {
        let labels = self.labels.0.values().chain(self.by_namespaces.0.values());
        labels.map(|label| 1 + label.values.len()).sum()
    }

    /// Looks something up, and counts what that costs.
    pub(super) fn look<'a>(&'a self, steps: &'a mut u64) -> Look<'a> {
        Look { index: self, steps }
    }

    pub(super) fn address(&self, number: u32) -> IpAddr {
        self.addresses[number as usize]
    }
}

/// See [`Index::look`].
#[derive(Debug)]
pub(super) struct Look<'a> {
    index: &'a Index,
    steps: &'a mut u64,
}

impl Look<'_> {
    /// A look at all of a set: none of the others costs more.
    fn step(&mut self) {
        *self.steps += 1 + self.index.everybody.words() as u64;
    }

    pub(super) fn nobody(&mut self) -> Bits {
        self.step();
        Bits::none(self.index.addresses.len())
    }

    pub(super) fn everybody(&mut self) -> Bits {
        self.step();
        self.index.everybody.clone()
    }

    /// The pods of a namespace.
    pub(super) fn of_namespace(&mut self, namespace: &str) -> Bits {
        let mut found = self.nobody();
        if let Some(list) = self.index.namespaces.get(namespace) {
            found.join_list(list);
        }
        found
    }

    /// The pods of the namespaces that a selector selects; none of those that
    /// are not known yet. None if it cannot be read.
    pub(super) fn of_namespaces(&mut self, selector: &LabelSelector) -> Option<Bits> {
        self.step();
        let index = self.index;
        self.selected(selector, &index.by_namespaces, index.placed.clone())
    }

    /// Those of some pods that a selector selects. None if it cannot be read.
    pub(super) fn of_pods(&mut self, selector: &LabelSelector, within: Bits) -> Option<Bits> {
        let index = self.index;
        self.selected(selector, &index.labels, within)
    }

    fn selected(
        &mut self,
        selector: &LabelSelector,
        all: &Labelled,
        mut left: Bits,
    ) -> Option<Bits> {
        for wish in wishes(selector) {
            // One that was not asked for is as one that cannot be read: else pods that
            // are to be kept out by it would be let in.
            match wish? {
                Wish::In(key, values) => {
                    let label = all.of(key)?;
                    let mut found = self.nobody();
                    for value in values {
                        self.step();
                        if let Some(list) = label.values.get(value) {
                            found.join_list(list);
                        }
                    }
                    left.keep(&found);
                }
                Wish::NotIn(key, values) => {
                    let label = all.of(key)?;
                    for value in values {
                        self.step();
                        if let Some(list) = label.values.get(value) {
                            left.drop_list(list);
                        }
                    }
                }
                Wish::Exists(key) => {
                    let mut found = self.nobody();
                    found.join_list(&all.of(key)?.any);
                    left.keep(&found);
                }
                Wish::DoesNotExist(key) => {
                    self.step();
                    left.drop_list(&all.of(key)?.any);
                }
            }
        }
        Some(left)
    }

    /// Takes in all pods with addresses in a range, or takes them out.
    pub(super) fn put(&mut self, found: &mut Bits, range: AddressRange, is_in: bool) {
        self.step();
        let all = &self.index.addresses;
        let first = all.partition_point(|address| *address < range.first);
        let end = all.partition_point(|address| *address <= range.last);
        found.put(Range { start: first, end: end.max(first) }, is_in);
    }

    /// Takes in those of another set.
    pub(super) fn join(&mut self, found: &mut Bits, other: &Bits) {
        self.step();
        found.join(other);
    }

    /// The addresses of a set, in order; few ranges, but not the fewest where
    /// pods share an address.
    pub(super) fn ranges(&mut self, found: &Bits) -> Vec<AddressRange> {
        self.step();
        let address = |number: u32| self.index.address(number);
        let runs = found.runs(&self.index.joined);
        let runs =
            runs.map(|(first, last)| AddressRange { first: address(first), last: address(last) });
        let ranges: Vec<_> = runs.collect();
        *self.steps += ranges.len() as u64;
        ranges
    }

    /// Ports of this name, and who of a set has them.
    pub(super) fn ports(&mut self, found: &Bits, named: &(Transport, String)) -> Vec<(u32, u16)> {
        let all = self.index.ports.get(named).map_or(&[][..], Vec::as_slice);
        *self.steps += 1 + all.len() as u64;
        all.iter().filter(|(number, _)| found.has(*number)).copied().collect()
    }
}
