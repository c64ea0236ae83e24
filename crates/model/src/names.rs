//! How a pod looks names up: what its `/etc/resolv.conf` and `/etc/hosts`
//! would say.
//!
//! Pure: whoever calls has read the node's own two files, and says which
//! addresses the pod has.

mod hosts;
mod resolv_conf;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use k8s_openapi::api::core::v1::{Pod, PodDNSConfigOption};

pub use self::{
    hosts::{HostLine, hosts, hosts_file, parse_hosts},
    resolv_conf::{ResolvConf, ResolvConfError},
};
use crate::env;

/// The most servers a pod is given. Source: kubelet,
/// `pkg/apis/core/validation`, `MaxDNSNameservers`, as for the others.
const SERVERS: usize = 3;

/// The most search domains: `MaxDNSSearchPaths`.
const SEARCHES: usize = 32;

/// Characters of all search domains, one space between two:
/// `MaxDNSSearchListChars`.
const SEARCH_LINE: usize = 2048;

/// Characters of one search domain: `DNS1123SubdomainMaxLength`.
const SEARCH_DOMAIN: usize = 253;

/// Characters of a host name that is a full domain name: Linux allows no more
/// (kubelet, `pkg/kubelet/util/util.go`, `fqdnMaxLen`).
const FULL_NAME: usize = 64;

/// What a node adds to its pods' names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeNames {
    /// The node's name, which its pods on the host's network share.
    pub name: String,
    /// The cluster's name servers; kubelet's `clusterDNS`.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain, such as `cluster.local`; empty if it has none.
    pub cluster_domain: String,
    /// Whether names below that are known here, so that no server is needed for
    /// them.
    pub knows_cluster: bool,
    /// The node's own resolver; none if the node is configured to have none.
    pub resolv_conf: Option<ResolvConf>,
    /// The node's addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's own hosts file, for pods on the host's network.
    pub hosts: Vec<HostLine>,
}

/// How a pod asks servers for names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// The domain whose names are known without a server; empty if none is.
    pub known_domain: String,
    /// Servers as written, asked in this order.
    pub servers: Vec<String>,
    /// Those of them that the node gives its pods.
    pub node_servers: Vec<String>,
    /// Domains that are tried after a name.
    pub searches: Vec<String>,
    /// Options of resolv.conf with their values.
    pub options: BTreeMap<String, String>,
    /// What people should hear of.
    pub warnings: Vec<NamesWarning>,
}

/// Why a pod's names are not as its spec would have them: a warning event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamesWarning {
    /// The event's reason.
    pub reason: &'static str,
    /// The event's message.
    pub message: String,
}

/// Bounds that the C library sets to what resolv.conf may say (glibc,
/// `resolv/resolv.h`: `RES_MAXNDOTS`, `RES_MAXRETRANS`, `RES_MAXRETRY`).
const NDOTS: u8 = 15;
const TIMEOUT: u64 = 30;
const ATTEMPTS: u8 = 5;

impl Resolver {
    /// From so many dots on a name is tried as it is first; 0 to 15, 1 unless
    /// said otherwise.
    #[must_use]
    pub fn ndots(&self) -> u8 {
        self.number("ndots").unwrap_or(1).min(NDOTS.into()).try_into().unwrap_or(NDOTS)
    }

    /// How long one server is waited for: 1 to 30 seconds, 5 unless said
    /// otherwise.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.number("timeout").unwrap_or(5).clamp(1, TIMEOUT))
    }

    /// How many times the servers are gone through: 1 to 5, 2 unless said
    /// otherwise.
    #[must_use]
    pub fn attempts(&self) -> u8 {
        let attempts = self.number("attempts").unwrap_or(2).clamp(1, ATTEMPTS.into());
        attempts.try_into().unwrap_or(ATTEMPTS)
    }

    /// What a pod's `/etc/resolv.conf` says (resolv.conf(5)).
    ///
    /// Source: containerd, `parseDNSOptions` in `internal/cri/server/podsandbox/sandbox_run_linux.go`.
    #[must_use]
    pub fn file(&self) -> String {
        let option = |(name, value): (&String, &String)| match value.as_str() {
            "" => name.clone(),
            value => format!("{name}:{value}"),
        };
        let options: Vec<_> = self.options.iter().map(option).collect();
        let line = |word: &str, of: &[String]| {
            (!of.is_empty()).then(|| format!("{word} {}\n", of.join(" ")))
        };
        let servers = self.servers.iter().map(|server| format!("nameserver {server}\n"));
        let search = line("search", &self.searches).into_iter();
        search.chain(servers).chain(line("options", &options)).collect()
    }

    fn number(&self, option: &str) -> Option<u64> {
        self.options.get(option)?.parse().ok()
    }

    fn warn(&mut self, reason: &'static str, message: String) {
        self.warnings.push(NamesWarning { reason, message });
    }

    /// Cuts what is more than a pod may have.
    ///
    /// Source: kubelet, `formDNSConfigFitsLimits` in
    /// `pkg/kubelet/network/dns/dns.go`.
    fn fit(&mut self) {
        if self.servers.len() > SERVERS {
            self.servers.truncate(SERVERS);
            self.warn(
                "DNSConfigForming",
                format!(
                    "Nameserver limits were exceeded, some nameservers have been omitted, the \
                     applied nameserver line is: {}",
                    self.servers.join(" ")
                ),
            );
        }
        self.node_servers.retain(|server| self.servers.contains(server));
        let wanted = self.searches.len();
        self.searches.truncate(SEARCHES);
        self.searches.retain(|search| search.len() <= SEARCH_DOMAIN);
        while self.searches.join(" ").len() > SEARCH_LINE {
            self.searches.pop();
        }
        if self.searches.len() < wanted {
            self.warn(
                "DNSConfigForming",
                format!(
                    "Search Line limits were exceeded, some search paths have been omitted, the \
                     applied search line is: {}",
                    self.searches.join(" ")
                ),
            );
        }
    }
}

/// Decides how a pod asks for names, by its `dnsPolicy` and `dnsConfig`.
///
/// A policy that is not known counts as `ClusterFirst`, which is the default.
///
/// Source: kubelet, `GetPodDNS` in `pkg/kubelet/network/dns/dns.go`.
#[must_use]
pub fn resolver(pod: &Pod, node: &NodeNames) -> Resolver {
    let spec = pod.spec.as_ref();
    let on_host = spec.and_then(|spec| spec.host_network).unwrap_or_default();
    let mut resolver = match spec.and_then(|spec| spec.dns_policy.as_deref()) {
        Some("None") => Resolver::default(),
        Some("Default") => of_host(node),
        Some("ClusterFirst") if on_host => of_host(node),
        _ if node.cluster_dns.is_empty() && node.knows_cluster => of_known_cluster(pod, node),
        _ if node.cluster_dns.is_empty() => without_cluster(pod, node),
        _ => of_cluster(pod, node),
    };
    resolver.node_servers.clone_from(&resolver.servers);
    if let Some(own) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        // Also what the node's file says twice is said once then.
        let both = |node: &[String], own: &Option<Vec<String>>| {
            let mut all = Vec::new();
            add(&mut all, node.iter().chain(own.iter().flatten()));
            all
        };
        resolver.servers = both(&resolver.servers, &own.nameservers);
        resolver.searches = both(&resolver.searches, &own.searches);
        resolver.options.extend(own.options.iter().flatten().filter_map(option));
    }
    resolver.fit();
    resolver
}

fn option(option: &PodDNSConfigOption) -> Option<(String, String)> {
    Some((option.name.clone()?, option.value.clone().unwrap_or_default()))
}

/// Appends what is not there yet.
fn add<'a>(to: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for item in more {
        if !to.contains(item) {
            to.push(item.clone());
        }
    }
}

fn of_host(node: &NodeNames) -> Resolver {
    let Some(conf) = &node.resolv_conf else {
        // Without a resolver configured, the C library asks the machine itself.
        let own = |address: &IpAddr| if address.is_ipv6() { "::1" } else { "127.0.0.1" };
        let mut servers: Vec<String> =
            node.addresses.iter().map(|address| own(address).to_owned()).collect();
        if servers.is_empty() {
            servers.push("127.0.0.1".to_owned());
        }
        return Resolver { servers, searches: vec![".".to_owned()], ..Resolver::default() };
    };
    Resolver {
        servers: conf.servers.clone(),
        searches: conf.searches.clone(),
        options: conf.options.clone(),
        ..Resolver::default()
    }
}

/// As with the cluster's servers, but that the node's are asked for names of
/// elsewhere.
fn of_known_cluster(pod: &Pod, node: &NodeNames) -> Resolver {
    let host = of_host(node);
    let known_domain = node.cluster_domain.clone();
    Resolver { known_domain, servers: host.servers, ..of_cluster(pod, node) }
}

fn of_cluster(pod: &Pod, node: &NodeNames) -> Resolver {
    let host = node.resolv_conf.as_ref().map(|conf| conf.searches.clone()).unwrap_or_default();
    let mut searches = Vec::new();
    let domain = &node.cluster_domain;
    if !domain.is_empty() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        add(&mut searches, own.iter());
    }
    add(&mut searches, host.iter());
    Resolver {
        servers: node.cluster_dns.iter().map(ToString::to_string).collect(),
        searches,
        options: [("ndots".to_owned(), "5".to_owned())].into(),
        ..Resolver::default()
    }
}

fn without_cluster(pod: &Pod, node: &NodeNames) -> Resolver {
    let mut resolver = of_host(node);
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    let metadata = &pod.metadata;
    resolver.warn(
        "MissingClusterDNS",
        format!(
            "pod: \"{}_{}({})\". kubelet does not have ClusterDNS IP configured and cannot \
             create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
            of(&metadata.name),
            of(&metadata.namespace),
            of(&metadata.uid),
        ),
    );
    resolver
}

/// The domain that a pod's host name is below: `SUBDOMAIN.NAMESPACE.svc.DOMAIN`
/// if its spec has a subdomain, nothing otherwise.
///
/// Source: kubelet, `GeneratePodHostNameAndDomain` in
/// `pkg/kubelet/kubelet_pods.go`.
#[must_use]
pub fn host_domain(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    // A name that takes the place of the host name is whole.
    if spec.hostname_override.is_some() {
        return None;
    }
    let subdomain = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{subdomain}.{namespace}.svc.{cluster_domain}"))
}

/// A pod wants to be called by its full name, which no system could hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {name} is too long \
     ({FULL_NAME} characters is the max, {length} characters requested)",
    length = name.len()
)]
pub struct LongName {
    /// The name.
    pub name: String,
}

/// What a pod calls itself: its host name, or with `setHostnameAsFQDN` its full
/// domain name.
///
/// Source: kubelet, `GetNodenameForKernel` in `pkg/kubelet/util/util.go`.
///
/// # Errors
///
/// If the full name is longer than 64 characters.
pub fn nodename(pod: &Pod, node: &str, cluster_domain: &str) -> Result<String, LongName> {
    let hostname = env::hostname(pod, node);
    let spec = pod.spec.as_ref();
    let is_full = spec.and_then(|spec| spec.set_hostname_as_fqdn).unwrap_or_default();
    match host_domain(pod, cluster_domain) {
        Some(domain) if is_full => {
            let name = format!("{hostname}.{domain}");
            if name.len() > FULL_NAME { Err(LongName { name }) } else { Ok(name) }
        }
        _ => Ok(hostname),
    }
}
