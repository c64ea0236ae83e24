//! Kernel settings of a network namespace: files below `/proc/sys/net` show
//! those of the thread that opens them.

use std::{
    fs,
    io::{self, ErrorKind},
};

/// Ports below 1024 are nothing special among pods.
pub(crate) const LOW_PORTS: &str = "net/ipv4/ip_unprivileged_port_start";

/// IPv6 addresses can be bound by a local route alone, as IPv4 ones always can.
pub(crate) const BIND_ANY: &str = "net/ipv6/ip_nonlocal_bind";

/// Whether there is IPv6 at all.
pub(crate) const NO_IPV6: &str = "net/ipv6/conf/all/disable_ipv6";

/// Whether the pods' link hears of better ways to a neighbour: none is better
/// than by the node, which may tell of one when a pod's answer comes back to it.
pub(crate) const REDIRECTS: &str = "net/ipv6/conf/eth0/accept_redirects";

/// Whether packets are passed on between links, by family.
pub(crate) fn forwarding(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" }
}

/// Sets a value if it is another one; whether it was.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] if this kernel has no such setting; otherwise
/// what the system says.
pub(crate) fn set(name: &str, value: &str) -> io::Result<bool> {
    let path = format!("/proc/sys/{name}");
    let named = |error: io::Error| {
        let kind = match error.kind() {
            ErrorKind::NotFound => ErrorKind::Unsupported,
            other => other,
        };
        io::Error::new(kind, format!("{path}: {error}"))
    };
    if fs::read_to_string(&path).map_err(named)?.trim() == value {
        return Ok(false);
    }
    fs::write(&path, value).map_err(named)?;
    Ok(true)
}
