//! Ports of the host that pods ask for.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{ContainerPort, Pod};

use crate::{observed::ContainerKind, restarts};

/// Ports that the node listens on for one pod: each costs a descriptor or two, and
/// neither the API server nor the scheduler counts them.
pub const MOST_PORTS: usize = 512;

/// Whether no other pod has a port of the host that this one wants.
///
/// Source: scheduler, `pkg/scheduler/framework/plugins/nodeports`.
pub(super) fn are_free<'a>(pod: &Pod, mut others: impl Iterator<Item = &'a Pod>) -> bool {
    let mut wanted: HashMap<_, Vec<&str>> = HashMap::new();
    for port in of_host(pod) {
        wanted.entry(number(port)).or_default().push(address(port));
    }
    let clashes = |taken: &ContainerPort| {
        let mut same = wanted.get(&number(taken)).into_iter().flatten();
        same.any(|wanted| clash(wanted, address(taken)))
    };
    wanted.is_empty() || !others.any(|other| of_host(other).any(clashes))
}

/// The ports on which a pod wants the host to listen. Init containers have
/// ended when the others begin; sidecars have not.
fn of_host(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    restarts::containers(pod)
        .filter(|(kind, _)| *kind != ContainerKind::Init)
        .flat_map(|(_, container)| container.ports.iter().flatten())
        .filter(|port| port.host_port.is_some_and(|number| number > 0))
}

/// Whether one number cannot be had at both addresses.
fn clash(first: &str, second: &str) -> bool {
    first == second || is_any(first) || is_any(second)
}

/// The number, which each protocol has for itself.
fn number(port: &ContainerPort) -> (Option<i32>, &str) {
    let protocol = port.protocol.as_deref().filter(|name| !name.is_empty()).unwrap_or("TCP");
    (port.host_port, protocol)
}

fn address(port: &ContainerPort) -> &str {
    port.host_ip.as_deref().filter(|address| !address.is_empty()).unwrap_or("0.0.0.0")
}

/// Whether this address stands for all of the host's.
fn is_any(address: &str) -> bool {
    matches!(address, "" | "0.0.0.0" | "::")
}
