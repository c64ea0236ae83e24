//! What the files of Services should hold. Pure.
//!
//! Kept from one look to the next, so that a change costs what it changes: a
//! Service is gone through again only if it or its endpoints are others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::core::v1::Service;
use krustlet_model::services::{
    Front, Here, Kind, Lead, Naming, Range, ServiceKey, Slice, Slices, leads, named_endpoints,
};
use krustlet_protocol::{
    Destinations, NamedAddress, ServiceName,
    services::{address_file, name_file},
};

use super::room::{Share, Shares, is_others, merge};

/// Addresses that the Services of one namespace name (`externalIPs`), added up; those
/// of the first Services count. Whoever may make Services may name them, and each is
/// a file of up to half a megabyte.
const NAMED: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    here: Here,
    known: BTreeMap<ServiceKey, Known>,
    /// What each Service says of an address.
    addresses: BTreeMap<IpAddr, Shares>,
    names: BTreeMap<ServiceKey, ServiceName>,
    /// What is to be written anew.
    due: BTreeSet<File>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum File {
    Address(IpAddr),
    Name(ServiceKey),
}

impl File {
    /// Where it is in the directory. None for names that no file can have.
    pub(super) fn path(&self) -> Option<String> {
        match self {
            Self::Address(address) => Some(address_file(*address)),
            Self::Name(key) => name_file(key),
        }
    }
}

/// What a Service was when it was gone through.
#[derive(Debug)]
struct Known {
    service: Arc<Service>,
    slices: Vec<Arc<Slice>>,
    addresses: Vec<At>,
    /// How many addresses it names, and how many of these count.
    named: usize,
    counting: usize,
}

/// An address of a Service, and what it is to it.
type At = (IpAddr, Kind);

impl Known {
    /// Whether nothing is other than before; of the addresses that it names so many
    /// may count.
    fn is(&self, service: &Arc<Service>, slices: &[Arc<Slice>], most: usize) -> bool {
        Arc::ptr_eq(&self.service, service)
            && self.counting == self.named.min(most)
            && self.slices.len() == slices.len()
            && self.slices.iter().zip(slices).all(|(old, new)| Arc::ptr_eq(old, new))
    }
}

impl Table {
    /// Takes in what the cluster is now, as seen from this node. Services come in the
    /// order of their names.
    pub(super) fn update(&mut self, services: &[Arc<Service>], slices: &Slices, here: &Here) {
        let is_elsewhere = self.here != *here;
        self.here.clone_from(here);
        let mut gone: BTreeSet<ServiceKey> = self.known.keys().cloned().collect();
        // What its namespace may still name.
        let mut left: HashMap<&str, usize> = HashMap::new();
        for service in services {
            let metadata = &service.metadata;
            let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) else {
                continue;
            };
            let key = ServiceKey::new(namespace, name);
            let of = slices.get(&key).map(Vec::as_slice).unwrap_or_default();
            gone.remove(&key);
            let left = left.entry(namespace).or_insert(NAMED);
            let known = self.known.get(&key).filter(|_| !is_elsewhere);
            let known = known.filter(|known| known.is(service, of, *left));
            *left -= match known.map(|known| known.counting) {
                Some(counting) => counting,
                None => self.put(key, service, of, *left),
            };
        }
        for key in gone {
            self.remove(&key);
        }
    }

    /// Says how many of the addresses that it names count; so many may.
    fn put(
        &mut self,
        key: ServiceKey,
        service: &Arc<Service>,
        slices: &[Arc<Slice>],
        most: usize,
    ) -> usize {
        let front = Front::of(service);
        let named = front.as_ref().map_or(0, |front| named(front).count());
        let counting = named.min(most);
        let shares = front.iter().flat_map(|front| shares(front, slices, &self.here, counting));
        let shares: BTreeMap<At, Share> = shares.collect();
        let known = Known {
            service: Arc::clone(service),
            slices: slices.to_vec(),
            addresses: shares.keys().copied().collect(),
            named,
            counting,
        };
        let before = self.known.insert(key.clone(), known).map(|known| known.addresses);
        for at in before.into_iter().flatten().filter(|one| !shares.contains_key(one)) {
            self.let_go(at, &key);
        }
        for ((address, kind), share) in shares {
            let all = self.addresses.entry(address).or_default();
            let key = (kind, key.clone());
            if all.get(&key) != Some(&share) {
                all.insert(key, share);
                self.due.insert(File::Address(address));
            }
        }
        match front.map(|front| name(front, slices)) {
            Some(name) if self.names.get(&key) == Some(&name) => {}
            Some(name) => {
                self.due.insert(File::Name(key.clone()));
                self.names.insert(key, name);
            }
            None => self.forget_name(key),
        }
        counting
    }

    fn remove(&mut self, key: &ServiceKey) {
        for at in self.known.remove(key).into_iter().flat_map(|known| known.addresses) {
            self.let_go(at, key);
        }
        self.forget_name(key.clone());
    }

    fn let_go(&mut self, (address, kind): At, key: &ServiceKey) {
        if let Some(all) = self.addresses.get_mut(&address) {
            all.remove(&(kind, key.clone()));
            if all.is_empty() {
                self.addresses.remove(&address);
            }
            self.due.insert(File::Address(address));
        }
    }

    fn forget_name(&mut self, key: ServiceKey) {
        if self.names.remove(&key).is_some() {
            self.due.insert(File::Name(key));
        }
    }

    /// What is to be written anew.
    pub(super) fn due(&self) -> impl Iterator<Item = &File> {
        self.due.iter()
    }

    /// That it was.
    pub(super) fn is_written(&mut self, file: &File) {
        self.due.remove(file);
    }

    /// All files that there should be.
    pub(super) fn paths(&self) -> BTreeSet<String> {
        let led = self.addresses.iter().filter(|(_, all)| !is_others(all));
        let addresses = led.map(|(address, _)| address_file(*address));
        addresses.chain(self.names.keys().filter_map(name_file)).collect()
    }

    /// What a file should hold; None if it should not be there.
    ///
    /// # Errors
    ///
    /// None that can come of these values.
    pub(super) fn contents(&self, file: &File) -> Result<Option<Vec<u8>>, serde_json::Error> {
        match file {
            File::Address(address) => {
                let merged =
                    self.addresses.get(address).and_then(|all| merge(all, &self.here.node));
                merged.map(|merged| serde_json::to_vec(&merged)).transpose()
            }
            File::Name(key) => self.names.get(key).map(serde_json::to_vec).transpose(),
        }
    }
}

/// The addresses that a Service names.
fn named(front: &Front) -> impl Iterator<Item = IpAddr> {
    let named = front.addresses.iter().filter(|(_, kind)| **kind == Kind::External);
    named.map(|(address, _)| *address)
}

/// What a Service says of each of its addresses; so many of those that it names count.
fn shares(front: &Front, slices: &[Arc<Slice>], here: &Here, counting: usize) -> Vec<(At, Share)> {
    let mut known = Leads { front, slices, here, known: BTreeMap::new() };
    let given = front.addresses.iter().map(|(address, kind)| (*address, *kind));
    let given = given.filter(|(_, kind)| *kind != Kind::External);
    let named = named(front).take(counting).map(|address| (address, Kind::External));
    let nodes = here.addresses.iter().filter(|address| front.is_at_node(**address));
    let nodes = nodes.map(|address| (*address, Kind::Node));
    given.chain(named).chain(nodes).map(|at| (at, known.share(at))).collect()
}

/// Where the ports of a Service lead. Its addresses may be many, and of all of
/// one family most lead to the same.
struct Leads<'a> {
    front: &'a Front,
    slices: &'a [Arc<Slice>],
    here: &'a Here,
    /// By whether clients are kept to their node, and by family.
    known: BTreeMap<(bool, bool), Arc<[Lead]>>,
}

impl Leads<'_> {
    fn of(&mut self, kind: Kind, is_v6: bool) -> Arc<[Lead]> {
        let Self { front, slices, here, known } = self;
        let all = known
            .entry((front.is_local_at(kind), is_v6))
            .or_insert_with(|| leads(front, slices, kind, is_v6, here).into());
        Arc::clone(all)
    }

    /// What the Service says of an address.
    fn share(&mut self, (address, kind): At) -> Share {
        let is_for =
            |range: &&Range| kind == Kind::Balanced && range.address.is_ipv6() == address.is_ipv6();
        let sources = self.front.sources.iter().filter(is_for);
        let sources = sources.map(|range| Destinations {
            address: range.address,
            prefix: range.prefix,
            port: None,
        });
        Share {
            leads: match kind {
                Kind::Others => Arc::default(),
                Kind::Cluster | Kind::Node | Kind::Balanced | Kind::External => {
                    self.of(kind, address.is_ipv6())
                }
            },
            affinity_s: self.front.affinity.map_or(0, |affinity| affinity.as_secs()),
            sources: sources.collect(),
        }
    }
}

fn name(front: Front, slices: &[Arc<Slice>]) -> ServiceName {
    match front.naming {
        Naming::Addresses(addresses) => ServiceName::Addresses(addresses),
        Naming::Elsewhere(name) => ServiceName::Elsewhere(name),
        Naming::Endpoints => {
            let named = named_endpoints(slices).into_iter();
            let named = named.map(|one| NamedAddress { address: one.address, name: one.hostname });
            ServiceName::Endpoints(named.collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A Service and who answers for it, as small as the rules need.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct One {
        name: u8,
        version: u8,
        address: Option<u8>,
        external: Option<u8>,
        port: u16,
        is_others: bool,
    }

    fn service(one: &One) -> Arc<Service> {
        let external: Vec<_> = one.external.iter().map(|n| format!("192.0.2.{n}")).collect();
        let labels = if one.is_others {
            json!({"service.kubernetes.io/service-proxy-name": "x"})
        } else {
            json!({})
        };
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "n", "name": format!("s{}", one.name), "labels": labels,
            },
            "spec": {
                "clusterIP": one.address.map_or("None".to_owned(), |n| format!("192.0.2.{n}")),
                "externalIPs": external,
                "ports": [{"port": one.port, "nodePort": 80 + one.version}],
            },
        }))
        .unwrap()
    }

    fn services() -> impl Strategy<Value = Vec<One>> {
        let some = || prop::option::weighted(0.6, 1_u8..5);
        let is_others = prop::bool::weighted(0.2);
        let one = (0_u8..4, 0_u8..2, some(), some(), 80_u16..83, is_others);
        let one = one.prop_map(|(name, version, address, external, port, is_others)| One {
            name,
            version,
            address,
            external,
            port,
            is_others,
        });
        prop::collection::vec(one, 0..6).prop_map(|mut all| {
            all.sort_by_key(|one| one.name);
            all.dedup_by_key(|one| one.name);
            all
        })
    }

    /// Files as someone who writes what is due would have them.
    fn follow(table: &mut Table, files: &mut HashMap<String, Vec<u8>>) {
        for file in table.due().cloned().collect::<Vec<_>>() {
            let path = file.path().unwrap();
            match table.contents(&file).unwrap() {
                Some(contents) => files.insert(path, contents),
                None => files.remove(&path),
            };
            table.is_written(&file);
        }
    }

    proptest! {
        #[test]
        fn what_is_due_makes_the_files_of_one_who_sees_it_for_the_first_time(
            steps in prop::collection::vec((services(), any::<bool>()), 1..6)
        ) {
            let mut table = Table::default();
            let (mut files, mut seen) = (HashMap::new(), HashMap::new());
            for (all, is_here) in steps {
                // Those that are as they were are the same ones.
                let all: Vec<Arc<Service>> = all
                    .iter()
                    .map(|one| Arc::clone(seen.entry(one.clone()).or_insert_with(|| service(one))))
                    .collect();
                let here = Here {
                    node: "n".into(),
                    zone: if is_here { "a" } else { "b" }.into(),
                    addresses: if is_here { vec!["192.0.2.1".parse().unwrap()] } else { Vec::new() },
                };
                table.update(&all, &Slices::new(), &here);
                follow(&mut table, &mut files);
                let (mut fresh, mut expected) = (Table::default(), HashMap::new());
                fresh.update(&all, &Slices::new(), &here);
                follow(&mut fresh, &mut expected);
                prop_assert_eq!(&files, &expected);
                let paths: BTreeSet<String> = files.keys().cloned().collect();
                prop_assert_eq!(table.paths(), paths);
                table.update(&all, &Slices::new(), &here);
                prop_assert_eq!(table.due().count(), 0, "nothing has changed");
            }
        }

        #[test]
        fn nobody_takes_an_address_that_the_cluster_gave_to_another(all in services()) {
            let mut table = Table::default();
            let objects: Vec<Arc<Service>> = all.iter().map(service).collect();
            table.update(&objects, &Slices::new(), &Here::default());
            for (address, shares) in &table.addresses {
                let is_of_others = shares.keys().any(|(kind, _)| *kind == Kind::Others);
                let Some(merged) = merge(shares, "node") else {
                    prop_assert!(is_of_others, "{address}");
                    continue;
                };
                prop_assert!(!is_of_others, "{address}");
                let owners: Vec<&ServiceKey> =
                    shares.keys().filter(|(kind, _)| *kind == Kind::Cluster).map(|(_, key)| key).collect();
                prop_assert_eq!(merged.is_only, !owners.is_empty(), "{}", address);
                for port in merged.ports {
                    let is_owners = owners.iter().any(|key| port.of.starts_with(&format!("{key}:")));
                    prop_assert!(owners.is_empty() || is_owners, "{} at {}", port.of, address);
                }
            }
        }
    }

    #[test]
    fn ports_of_nodes_are_at_the_addresses_of_this_one() {
        let service: Arc<Service> = serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": "s"},
            "spec": {
                "clusterIP": "10.96.0.7", "internalTrafficPolicy": "Local",
                "externalTrafficPolicy": "Local",
                "ports": [
                    {"name": "web", "port": 80, "nodePort": 30080}, {"name": "other", "port": 81},
                ],
            },
        }))
        .unwrap();
        // Who names the address does not get what the cluster gave to another.
        let named: Arc<Service> = serde_json::from_value(json!({
            "metadata": {"namespace": "a", "name": "s"},
            "spec": {
                "clusterIP": "10.96.0.8", "externalIPs": ["192.0.2.1"],
                "ports": [{"name": "web", "port": 30080}, {"name": "own", "port": 82}],
            },
        }))
        .unwrap();
        let slice = Slice::of(
            &serde_json::from_value(json!({
                "metadata": {"namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.1.0.1"], "nodeName": "there"}],
                "ports": [{"name": "web", "port": 8080}],
            }))
            .unwrap(),
        )
        .unwrap();
        let slices = Slices::from([(slice.service.clone(), vec![Arc::new(slice)])]);
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap());
        let here = Here { node: "here".into(), zone: String::new(), addresses: vec![v4, v6] };
        let mut table = Table::default();
        table.update(&[service, named], &slices, &here);
        let at = merge(&table.addresses[&v4], "here").unwrap();
        assert!(!at.is_only, "the node itself answers at its others");
        let ports: Vec<_> = at.ports.iter().map(|port| (port.port, &*port.of)).collect();
        assert_eq!(ports, [(30080, "n/s:web"), (82, "a/s:own")]);
        // Pods go where they go by its other addresses, whatever its policies say.
        assert_eq!(at.ports[0].endpoints, ["10.1.0.1:8080".parse().unwrap()]);
        assert!(!table.addresses.contains_key(&v6), "it has no cluster IP of that kind");
        table.update(&[], &slices, &here);
        assert!(table.addresses.is_empty());
    }

    #[test]
    fn an_address_that_a_balancer_has_is_not_taken_by_who_names_it() {
        let service =
            |namespace: &str, spec: serde_json::Value, balanced: &[&str]| -> Arc<Service> {
                let ingress: Vec<_> = balanced.iter().map(|ip| json!({"ip": ip})).collect();
                let mut service = json!({
                    "metadata": {"namespace": namespace, "name": "s"}, "spec": spec,
                    "status": {"loadBalancer": {"ingress": ingress}},
                });
                service["spec"]["ports"] = json!([{"name": "web", "port": 80}]);
                serde_json::from_value(service).unwrap()
            };
        let named = json!({"clusterIP": "10.96.0.7", "externalIPs": ["192.0.2.1", "192.0.2.2"]});
        let other = json!({"clusterIP": "10.96.0.8", "externalIPs": ["192.0.2.2"]});
        let mut table = Table::default();
        let services = [service("aaa", named, &[]), service("shop", other, &["192.0.2.1"])];
        table.update(&services, &Slices::new(), &Here::default());
        let of = |address: &str| {
            let shares = &table.addresses[&address.parse::<IpAddr>().unwrap()];
            merge(shares, "node").unwrap().ports.remove(0).of
        };
        assert_eq!(of("192.0.2.1"), "shop/s:web");
        assert_eq!(of("192.0.2.2"), "aaa/s:web");
    }

    #[test]
    fn endpoints_are_worked_out_once_for_all_addresses_that_lead_to_the_same() {
        let outside = |n: u8| [format!("192.0.2.{n}"), format!("2001:db8::{n:x}")];
        let service: Arc<Service> = serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": "s"},
            "spec": {
                "clusterIPs": ["10.96.0.7", "fd00::7"], "internalTrafficPolicy": "Local",
                "externalIPs": (1..16).flat_map(outside).collect::<Vec<_>>(),
                "ports": [{"port": 80}],
            },
        }))
        .unwrap();
        let slice = |kind: &str, address: &str| {
            let slice = json!({
                "metadata": {"namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
                "addressType": kind, "endpoints": [{"addresses": [address], "nodeName": "there"}],
                "ports": [{"name": "", "port": 8080}],
            });
            Arc::new(Slice::of(&serde_json::from_value(slice).unwrap()).unwrap())
        };
        let slices = [slice("IPv4", "10.1.0.1"), slice("IPv6", "fd01::1")];
        let (front, here) = (Front::of(&service).unwrap(), Here::default());
        assert_eq!(front.addresses.len(), 32);
        let mut known =
            Leads { front: &front, slices: &slices, here: &here, known: BTreeMap::new() };
        for (address, kind) in &front.addresses {
            let expected = leads(&front, &slices, *kind, address.is_ipv6(), &here);
            assert_eq!(*known.of(*kind, address.is_ipv6()), *expected, "{address}");
        }
        assert_eq!(known.known.len(), 4, "one for each family, near and far");
    }

    #[test]
    fn of_the_addresses_that_a_namespace_names_the_first_count() {
        let service = |namespace: &str, name: u8, named: u8| -> Arc<Service> {
            let named: Vec<_> = (1..=named).map(|n| format!("192.0.{name}.{n}")).collect();
            serde_json::from_value(json!({
                "metadata": {"namespace": namespace, "name": format!("s{name:02}")},
                "spec": {
                    "clusterIP": "10.96.0.7", "externalIPs": named, "ports": [{"port": 80}],
                },
            }))
            .unwrap()
        };
        let mut table = Table::default();
        let mut led = |all: &[Arc<Service>]| {
            table.update(all, &Slices::new(), &Here::default());
            let mut fresh = Table::default();
            fresh.update(all, &Slices::new(), &Here::default());
            assert_eq!(table.addresses, fresh.addresses, "whatever was before");
            let is_led = |name: u8, last: u8| {
                let address = IpAddr::from([192, 0, name, last]);
                table.addresses.contains_key(&address)
            };
            [is_led(20, 1), is_led(20, 32), is_led(30, 1), is_led(40, 32)]
        };
        // Sixteen of 32 each are all that a namespace may name.
        let mut all: Vec<_> = (1..16).map(|name| service("a", name, 32)).collect();
        all.extend([service("a", 20, 32), service("a", 30, 1), service("b", 40, 32)]);
        assert_eq!(led(&all), [true, true, false, true]);
        // One that names less leaves room for those behind it, though these are as they were.
        all[0] = service("a", 1, 31);
        assert_eq!(led(&all), [true, true, true, true]);
        all[0] = service("a", 1, 32);
        all[1] = service("a", 2, 31);
        all.remove(2);
        all.insert(0, service("a", 0, 32));
        assert_eq!(led(&all), [true, true, true, true]);
        all[2] = service("a", 2, 32);
        assert_eq!(led(&all), [true, true, false, true]);
    }

    #[test]
    fn the_sources_of_a_balancer_are_told_for_its_addresses_alone() {
        let service = serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": "s"},
            "spec": {
                "clusterIP": "10.96.0.7", "ports": [{"name": "web", "port": 80}],
                "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
        }))
        .unwrap();
        let mut table = Table::default();
        table.update(&[service], &Slices::new(), &Here::default());
        let port = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            merge(&table.addresses[&address], "node").unwrap().ports.remove(0)
        };
        assert!(port("10.96.0.7").sources.is_empty());
        let balanced = port("192.0.2.1");
        assert_eq!(balanced.of, "n/s:web");
        let range = Destinations { address: "10.0.0.0".parse().unwrap(), prefix: 8, port: None };
        assert_eq!(balanced.sources, [range]);
    }
}
