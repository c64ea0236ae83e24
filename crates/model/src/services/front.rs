//! A Service, as those who connect to it need it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec, ServiceStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{ServiceKey, Transport};
use crate::zeros::without_zeros;

/// Another proxy looks after a Service with this label. Source: kube-proxy,
/// `LabelServiceProxyName` in `pkg/proxy/apis/well_known_labels.go`.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

/// How long a client keeps its endpoint if nothing else is said. Source:
/// `DefaultClientIPServiceAffinitySeconds` in `pkg/apis/core/types.go`.
const AFFINITY: Duration = Duration::from_hours(3);

/// Addresses of each kind, beside the cluster's, that one Service has; the first
/// count. Each costs a file with all its ports.
const OUTSIDE: usize = 32;

/// Ranges of clients of each family that one Service is for; the first count, so that
/// nobody is let through who should not.
const SOURCES: usize = 64;

/// Ports of one Service that are led to; others are as if they were not there.
/// Services of hundreds of ports are rare: an object has room for some thousand.
const PORTS: usize = 256;

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// Whose it is.
    pub key: ServiceKey,
    /// Its addresses, and what each is to it; none where nobody is to be led to
    /// it, but for those that the cluster gave it.
    pub addresses: BTreeMap<IpAddr, Kind>,
    /// Its ports, at most 256.
    pub ports: Vec<FrontPort>,
    /// How long a client is led to the same endpoint, if at all.
    pub affinity: Option<Duration>,
    /// `internalTrafficPolicy: Local`.
    pub is_local: bool,
    /// `loadBalancerSourceRanges`; empty for everybody.
    pub sources: Vec<Range>,
    /// What its name stands for.
    pub naming: Naming,
}

impl Front {
    /// Whether its ports of nodes are at this address of one: at those of the kinds
    /// that its cluster IPs are of.
    ///
    /// Source: kube-proxy, `NodePort` in `pkg/proxy/serviceport.go`, which it reads
    /// for each family that a Service has.
    #[must_use]
    pub fn is_at_node(&self, address: IpAddr) -> bool {
        let mut own = self.addresses.iter().filter(|(_, kind)| **kind == Kind::Cluster);
        own.any(|(own, _)| own.is_ipv6() == address.is_ipv6())
            && self.ports.iter().any(|port| port.node_port.is_some())
    }

    /// Whether clients of an address of this kind are kept to their own node: the
    /// policy for clients from outside does not hold for pods.
    #[must_use]
    pub fn is_local_at(&self, kind: Kind) -> bool {
        self.is_local && kind == Kind::Cluster
    }
}

/// What an address is to a Service: the more others' word it is, the less it
/// counts where several Services have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The cluster gave it to this Service alone.
    Cluster,
    /// So it did, but another proxy leads there.
    Others,
    /// A node's: the cluster gave the Service some ports there alone.
    Node,
    /// A load balancer's, by the word of whoever keeps that.
    Balanced,
    /// The Service names it (`externalIPs`); others may too.
    External,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontPort {
    /// Its name; may be empty.
    pub name: String,
    /// How it is spoken to.
    pub transport: Transport,
    /// Its number.
    pub port: u16,
    /// Its number at the addresses of nodes, if it has one.
    pub node_port: Option<u16>,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// An address of the range.
    pub address: IpAddr,
    /// Bits that its addresses share.
    pub prefix: u8,
}

/// What a Service's name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Its own addresses.
    Addresses(Vec<IpAddr>),
    /// Those of its endpoints.
    Endpoints,
    /// What another name stands for.
    Elsewhere(String),
}

impl Front {
    /// Reads a Service. None if it has no name, or no address yet.
    #[must_use]
    pub fn of(service: &Service) -> Option<Self> {
        let metadata = &service.metadata;
        let key = ServiceKey::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?);
        let spec = service.spec.as_ref()?;
        let own = cluster_addresses(spec);
        let naming = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
            (Some("ExternalName"), _) => Naming::Elsewhere(spec.external_name.clone()?),
            (_, Some("None")) => Naming::Endpoints,
            _ if own.is_empty() => return None,
            _ => Naming::Addresses(own.clone()),
        };
        let is_others = metadata.labels.as_ref().is_some_and(|all| all.contains_key(OTHER_PROXY));
        let addresses = match naming {
            Naming::Addresses(_) if is_others => {
                own.iter().map(|address| (*address, Kind::Others)).collect()
            }
            Naming::Addresses(_) => addresses(service, spec, &own),
            Naming::Endpoints | Naming::Elsewhere(_) => BTreeMap::new(),
        };
        let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(FrontPort {
                name: port.name.clone().unwrap_or_default(),
                transport: Transport::parse(port.protocol.as_deref())?,
                port: number(port.port)?,
                node_port: port.node_port.and_then(number),
            })
        });
        Some(Self {
            key,
            addresses,
            ports: ports.take(PORTS).collect(),
            affinity: affinity(spec),
            is_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            sources: sources(spec),
            naming,
        })
    }
}

/// What anybody on a node looks at: what [`Front::of`] and
/// [`service_variables`](crate::env::service_variables) do. Nothing else is kept of
/// the Services of a cluster: their annotations may be hundreds of megabytes.
#[must_use]
pub fn slim(service: Service) -> Service {
    let Service { metadata, spec, status } = service;
    let labels = metadata.labels.and_then(|mut all| all.remove_entry(OTHER_PROXY));
    let port = |port: ServicePort| {
        let ServicePort { name, node_port, port, protocol, app_protocol: _, target_port: _ } = port;
        ServicePort { name, node_port, port, protocol, ..ServicePort::default() }
    };
    let spec = spec.map(|spec| ServiceSpec {
        cluster_ip: spec.cluster_ip,
        cluster_ips: spec.cluster_ips,
        external_ips: spec.external_ips,
        external_name: spec.external_name,
        internal_traffic_policy: spec.internal_traffic_policy,
        load_balancer_source_ranges: spec.load_balancer_source_ranges,
        ports: spec.ports.map(|ports| ports.into_iter().map(port).collect()),
        session_affinity: spec.session_affinity,
        session_affinity_config: spec.session_affinity_config,
        type_: spec.type_,
        ..ServiceSpec::default()
    });
    let load_balancer = status.and_then(|status| status.load_balancer);
    Service {
        metadata: ObjectMeta {
            namespace: metadata.namespace,
            name: metadata.name,
            labels: labels.map(|label| [label].into()),
            ..ObjectMeta::default()
        },
        spec,
        status: load_balancer
            .map(|all| ServiceStatus { load_balancer: Some(all), ..ServiceStatus::default() }),
    }
}

/// So many of each family: of one that had ranges and has none any more everybody
/// would be let in. So too if what it had cannot be read: then nobody is.
fn sources(spec: &ServiceSpec) -> Vec<Range> {
    let given: Vec<_> = spec.load_balancer_source_ranges.iter().flatten().collect();
    let read: Vec<Range> = given.iter().filter_map(|text| range(text)).collect();
    let is_whole = read.len() == given.len();
    let of_family = |nobody: IpAddr| {
        let family = read.iter().filter(move |range| range.address.is_ipv6() == nobody.is_ipv6());
        let family: Vec<_> = family.copied().take(SOURCES).collect();
        // No client has this address.
        let nobody = Range { address: nobody, prefix: if nobody.is_ipv6() { 128 } else { 32 } };
        if family.is_empty() && !is_whole { vec![nobody] } else { family }
    };
    [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()].map(of_family).concat()
}

fn cluster_addresses(spec: &ServiceSpec) -> Vec<IpAddr> {
    let one = spec.cluster_ip.iter();
    let many = spec.cluster_ips.iter().flatten();
    let mut all = Vec::new();
    for address in many.chain(one).filter_map(|text| address(text)) {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// All that are of a kind of which the Service has a cluster IP too.
///
/// Source: kube-proxy, `newBaseServiceInfo` in `pkg/proxy/serviceport.go` and
/// `serviceToServiceMap` in `pkg/proxy/servicechangetracker.go`.
fn addresses(service: &Service, spec: &ServiceSpec, own: &[IpAddr]) -> BTreeMap<IpAddr, Kind> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    // A balancer of another mode takes packets apart itself.
    let balanced = ingress
        .filter(|one| one.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"))
        .filter_map(|one| address(one.ip.as_deref()?));
    let external = spec.external_ips.iter().flatten().filter_map(|text| address(text));
    let (balanced, external) = (balanced.take(OUTSIDE), external.take(OUTSIDE));
    let is_kind = |address: &IpAddr| own.iter().any(|own| own.is_ipv6() == address.is_ipv6());
    let mut all = BTreeMap::new();
    let named = own.iter().map(|address| (*address, Kind::Cluster));
    let named = named.chain(external.map(|address| (address, Kind::External)));
    let named = named.chain(balanced.map(|address| (address, Kind::Balanced)));
    for (address, kind) in named.filter(|(address, _)| is_kind(address)) {
        all.entry(address).or_insert(kind);
    }
    all
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let given = seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|s| *s > 0);
    Some(given.map_or(AFFINITY, Duration::from_secs))
}

/// An address that one can connect to, IPv4 never in IPv6's clothes.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let address = without_zeros(text).parse::<IpAddr>().ok()?.to_canonical();
    let is_odd = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    (!is_odd).then_some(address)
}

fn range(text: &str) -> Option<Range> {
    let text = without_zeros(text.trim());
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= most)?;
    Some(Range { address, prefix })
}
