//! An EndpointSlice, as far as connections and names need it.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::discovery::v1::{self as discovery, EndpointSlice};

use super::{ServiceKey, Transport, front::address};

/// Which Service a slice is of. Source: `LabelServiceName` in
/// `staging/src/k8s.io/api/discovery/v1/well_known_labels.go`.
const OF: &str = "kubernetes.io/service-name";

/// Nobody is led to the endpoints of a slice with this label, which the cluster
/// gives to those of headless Services; names may stand for them. That of another
/// proxy (`service-proxy-name`), which slices get from their Services, counts for
/// Services alone. Source: kube-proxy, `Run` in `cmd/kube-proxy/app/server.go`
/// (`labelSelectorNoHeadlessEndpoints`, `labelSelectorNoProxyName`).
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Endpoints that a name stands for, at most; more are left out.
const NAMED: usize = 1024;

/// Some endpoints of a Service and their ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Whose endpoints these are.
    pub service: ServiceKey,
    /// Whether clients are led to them; else they are there for names alone.
    pub is_led_to: bool,
    /// Ports that each of them has.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The Service's name for it; may be empty.
    pub name: String,
    /// How it is spoken to.
    pub transport: Transport,
    /// Its number on the endpoints.
    pub port: u16,
}

/// Somebody who answers for a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub address: IpAddr,
    /// Whether it wants to be called.
    pub is_ready: bool,
    /// Whether it answers, ready or about to end.
    pub is_serving: bool,
    /// Whether it is about to end.
    pub is_terminating: bool,
    /// The node that it is on.
    pub node: Option<Box<str>>,
    /// Zones whose clients should come here.
    pub zones: Box<[Box<str>]>,
    /// Nodes whose clients should come here.
    pub nodes: Box<[Box<str>]>,
    /// Its own name below the Service's.
    pub hostname: Option<Box<str>>,
}

impl Slice {
    /// Reads an EndpointSlice. None if it is of no Service, or has names in
    /// place of addresses.
    ///
    /// Source: kube-proxy, `newEndpointSliceInfo` and `addEndpoints` in
    /// `pkg/proxy/endpointslicecache.go`: conditions that are not known count
    /// as good, ports without a name or number are passed over, and of an
    /// endpoint's addresses the first counts.
    #[must_use]
    pub fn of(slice: &EndpointSlice) -> Option<Self> {
        let metadata = &slice.metadata;
        let labels = metadata.labels.as_ref()?;
        let name = labels.get(OF).filter(|name| !name.is_empty())?;
        let is_v6 = match slice.address_type.as_str() {
            "IPv4" => false,
            "IPv6" => true,
            _ => return None,
        };
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(SlicePort {
                name: port.name.clone()?,
                transport: Transport::parse(port.protocol.as_deref())?,
                port: u16::try_from(port.port?).ok().filter(|port| *port > 0)?,
            })
        });
        let endpoints = slice.endpoints.iter().flatten().filter_map(endpoint);
        Some(Self {
            service: ServiceKey::new(metadata.namespace.as_deref()?, name),
            is_led_to: !labels.contains_key(HEADLESS),
            ports: ports.collect(),
            endpoints: endpoints.filter(|one| one.address.is_ipv6() == is_v6).collect(),
        })
    }
}

fn endpoint(endpoint: &discovery::Endpoint) -> Option<Endpoint> {
    let address =
        address(endpoint.addresses.first()?).filter(|address| !is_link_local(*address))?;
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let hints = endpoint.hints.clone().unwrap_or_default();
    let boxed = |text: String| text.into_boxed_str();
    let zones = hints.for_zones.into_iter().flatten().map(|zone| boxed(zone.name));
    let nodes = hints.for_nodes.into_iter().flatten().map(|node| boxed(node.name));
    Some(Endpoint {
        address,
        is_ready: conditions.ready.unwrap_or(true),
        is_serving: conditions.serving.unwrap_or(true),
        is_terminating: conditions.terminating.unwrap_or(false),
        node: endpoint.node_name.clone().map(boxed),
        zones: zones.collect(),
        nodes: nodes.collect(),
        hostname: endpoint.hostname.clone().map(boxed),
    })
}

/// The API server takes no endpoints of these (`ValidateEndpointIP` in
/// `pkg/apis/core/validation`); an older one's store may hold some.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// An endpoint that a headless Service's name stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its own name below the Service's; without one, its address with dashes.
    pub hostname: String,
}

/// The endpoints that a headless Service's name stands for: those that are
/// ready, which of a Service with `publishNotReadyAddresses` are all. At most
/// 1,024, sorted, none twice.
///
/// Source: Kubernetes DNS specification 1.1.0, 2.4; CoreDNS's
/// `endpointHostname` in `plugin/kubernetes` for those without a name.
#[must_use]
pub fn named_endpoints(slices: &[Arc<Slice>]) -> Vec<NamedEndpoint> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let ready = endpoints.filter(|endpoint| endpoint.is_ready);
    let mut named: Vec<NamedEndpoint> = ready
        .map(|endpoint| NamedEndpoint {
            address: endpoint.address,
            hostname: endpoint.hostname.as_deref().map_or_else(
                || endpoint.address.to_string().replace(['.', ':'], "-"),
                str::to_lowercase,
            ),
        })
        .collect();
    named.sort();
    named.dedup();
    named.truncate(NAMED);
    named
}
