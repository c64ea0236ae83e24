//! The node's own addresses: those of `--node-ip`, or the one that is found.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use krustlet_network::{is_of_a_network, outgoing_address};

/// The node's addresses, the first of which is its main one: one, or one of each
/// family. If none is given it is that of the way outwards; `0.0.0.0` and `::` say
/// only which family is looked for first. Source: kubelet, `parseNodeIP` in
/// `k8s.io/component-helpers/node/util/ips.go`, `NodeAddress` in
/// `pkg/kubelet/nodestatus/setters.go`.
///
/// # Errors
///
/// Names the address at fault.
pub(super) fn node_addresses(given: &[IpAddr]) -> Result<Vec<IpAddr>> {
    let prefers_ipv6 = match given {
        [] => Some(false),
        [any] if any.is_unspecified() => Some(any.is_ipv6()),
        _ => None,
    };
    if let Some(prefers_ipv6) = prefers_ipv6 {
        let found = outgoing_address(prefers_ipv6);
        return Ok(vec![found.context("cannot find this machine's address: set --node-ip")?]);
    }
    let is_pair = matches!(given, [one, other] if one.is_ipv4() != other.is_ipv4());
    if given.len() > 1 && !is_pair {
        bail!("--node-ip takes one address, or one of each family");
    }
    match given.iter().find(|address| !is_of_a_network(**address)) {
        Some(near) => {
            bail!("--node-ip {near} cannot be reached by the API server: name one of a network")
        }
        None => Ok(given.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Result<Vec<IpAddr>, String> {
        let given: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        node_addresses(&given).map_err(|error| error.to_string())
    }

    #[test]
    fn a_node_has_one_address_or_one_of_each_family() {
        for good in [
            &["10.88.0.1"][..],
            &["2001:db8::1"],
            &["10.88.0.1", "2001:db8::1"],
            &["2001:db8::1", "10.88.0.1"],
        ] {
            let addresses = of(good).unwrap();
            assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), good);
        }
        for more in [
            &["10.88.0.1", "10.88.0.2"][..],
            &["fd00::1", "fd00::2"],
            &["10.88.0.1", "fd00::1", "10.88.0.2"],
        ] {
            assert!(of(more).unwrap_err().contains("one of each family"), "{more:?}");
        }
    }

    #[test]
    fn an_address_that_nobody_else_reaches_is_no_nodes() {
        for (given, wrong) in [
            (&["127.0.0.1"][..], "127.0.0.1"),
            (&["10.88.0.1", "::1"], "::1"),
            (&["fe80::1"], "fe80::1"),
            (&["169.254.1.1"], "169.254.1.1"),
            (&["ff02::1", "10.88.0.1"], "ff02::1"),
            // The family of a pair is not left open.
            (&["10.88.0.1", "::"], "::"),
            (&["0.0.0.0", "fd00::1"], "0.0.0.0"),
        ] {
            let error = of(given).unwrap_err();
            assert!(error.contains(&format!("--node-ip {wrong} cannot")), "{error}");
        }
    }
}
