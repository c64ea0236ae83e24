//! Ports of the host that pods ask for.

use k8s_openapi::api::core::v1::{ContainerPort, Pod};

use crate::{observed::ContainerKind, restarts};

/// Whether no other pod has a port of the host that this one wants.
///
/// Source: scheduler, `pkg/scheduler/framework/plugins/nodeports`.
pub(super) fn are_free<'a>(pod: &Pod, mut others: impl Iterator<Item = &'a Pod>) -> bool {
    let wanted: Vec<_> = of_host(pod).collect();
    wanted.is_empty()
        || !others
            .any(|other| of_host(other).any(|taken| wanted.iter().any(|port| clash(port, taken))))
}

/// The ports on which a pod wants the host to listen. Init containers have
/// ended when the others begin; sidecars have not.
fn of_host(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    restarts::containers(pod)
        .filter(|(kind, _)| *kind != ContainerKind::Init)
        .flat_map(|(_, container)| container.ports.iter().flatten())
        .filter(|port| port.host_port.is_some_and(|number| number > 0))
}

fn clash(one: &ContainerPort, other: &ContainerPort) -> bool {
    let (first, second) = (address(one), address(other));
    one.host_port == other.host_port
        && protocol(one) == protocol(other)
        && (first == second || is_any(first) || is_any(second))
}

fn protocol(port: &ContainerPort) -> &str {
    port.protocol.as_deref().filter(|name| !name.is_empty()).unwrap_or("TCP")
}

fn address(port: &ContainerPort) -> &str {
    port.host_ip.as_deref().filter(|address| !address.is_empty()).unwrap_or("0.0.0.0")
}

/// Whether this address stands for all of the host's.
fn is_any(address: &str) -> bool {
    matches!(address, "" | "0.0.0.0" | "::")
}
