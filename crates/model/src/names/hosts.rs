//! The hosts file: names that need no server.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use super::{NodeNames, host_domain};
use crate::env;

/// A line of a hosts file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLine {
    /// The address.
    pub address: IpAddr,
    /// Its names as written.
    pub names: Vec<String>,
}

impl HostLine {
    fn new(address: IpAddr, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { address, names: names.into_iter().map(Into::into).collect() }
    }
}

/// Lines that every pod has. (The IPv6 ones are what the kubelet writes, whatever
/// their use.)
const ALWAYS: [(&str, &[&str]); 6] = [
    ("127.0.0.1", &["localhost"]),
    ("::1", &["localhost", "ip6-localhost", "ip6-loopback"]),
    ("fe00::", &["ip6-localnet"]),
    ("fe00::", &["ip6-mcastprefix"]),
    ("fe00::1", &["ip6-allnodes"]),
    ("fe00::2", &["ip6-allrouters"]),
];

/// A pod's hosts file: the node's own for a pod on the host's network, one with
/// the pod's name and addresses for others; and the pod's `hostAliases`.
///
/// An alias whose address is none (the API server lets none pass) is left out.
///
/// Source: kubelet, `ensureHostsFile` in `pkg/kubelet/kubelet_pods.go`.
#[must_use]
pub fn hosts(pod: &Pod, addresses: &[IpAddr], node: &NodeNames) -> Vec<HostLine> {
    let spec = pod.spec.as_ref();
    let mut lines = if spec.and_then(|spec| spec.host_network).unwrap_or_default() {
        node.hosts.clone()
    } else {
        managed(pod, addresses, node)
    };
    let aliases = spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
    lines.extend(aliases.filter_map(|alias| {
        let address = alias.ip.parse().ok()?;
        Some(HostLine::new(address, alias.hostnames.clone().unwrap_or_default()))
    }));
    lines
}

fn managed(pod: &Pod, addresses: &[IpAddr], node: &NodeNames) -> Vec<HostLine> {
    let always = ALWAYS.iter().filter_map(|(address, names)| {
        Some(HostLine::new(address.parse().ok()?, names.iter().copied()))
    });
    let hostname = env::hostname(pod, &node.name);
    let names = match host_domain(pod, &node.cluster_domain) {
        Some(domain) => vec![format!("{hostname}.{domain}"), hostname],
        None => vec![hostname],
    };
    let own = addresses.iter().map(|address| HostLine::new(*address, names.clone()));
    always.chain(own).collect()
}

/// What a pod's `/etc/hosts` says.
///
/// Source: kubelet, `managedHostsFileContent` in `pkg/kubelet/kubelet_pods.go`.
#[must_use]
pub fn hosts_file(lines: &[HostLine]) -> String {
    let line =
        |HostLine { address, names }: &HostLine| format!("{address}\t{}\n", names.join("\t"));
    let head = "# Kubernetes-managed hosts file.\n".to_owned();
    std::iter::once(head).chain(lines.iter().map(line)).collect()
}

/// Reads a hosts file. A line that is none is skipped, as the C library does.
#[must_use]
pub fn parse_hosts(text: &str) -> Vec<HostLine> {
    let line = |line: &str| {
        let line = line.split('#').next().unwrap_or_default();
        let mut fields = line.split_whitespace();
        let address = fields.next()?.parse().ok()?;
        let names: Vec<&str> = fields.collect();
        (!names.is_empty()).then(|| HostLine::new(address, names))
    };
    text.lines().filter_map(line).collect()
}
