//! Makes links, addresses and routes what the [`plan`](crate::plan) says, from
//! whatever they are. May be done again and again; what is right is left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use ipnet::IpNet;

use crate::{
    namespace::{Namespace, NamespaceError, on_a_thread},
    netlink::{Link, Netlink, PeerRoute, Rule},
    peers::Made,
    plan::{API_TABLE, End, INSIDE, LAST_PLACE, Plan, mac},
    routes::Unled,
    sysctl,
};

/// Why the pods' network is not as it should be.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum EnsureError {
    #[error(transparent)]
    Namespace(#[from] NamespaceError),

    #[error("cannot set up the pods' network namespace")]
    Inside(#[source] io::Error),

    #[error("cannot set up the link to the pods")]
    Link(#[source] io::Error),

    #[error("cannot lead to the pods of other nodes")]
    Peers(#[source] io::Error),
}

impl EnsureError {
    /// Whether the same will fail again as long as this process and this kernel
    /// are what they are: a right or a part of the kernel is missing.
    pub(crate) fn is_permanent(&self) -> bool {
        let source = match self {
            Self::Namespace(
                NamespaceError::File { source, .. }
                | NamespaceError::Make(source)
                | NamespaceError::Keep { source, .. },
            )
            | Self::Inside(source)
            | Self::Link(source)
            | Self::Peers(source) => source,
        };
        let kinds =
            [ErrorKind::PermissionDenied, ErrorKind::Unsupported, ErrorKind::ReadOnlyFilesystem];
        kinds.contains(&source.kind()) || source.raw_os_error() == Some(libc::EAFNOSUPPORT)
    }
}

/// What had to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Steps that changed something.
    pub(crate) count: usize,
    /// Whether the pair of links had to be made.
    pub(crate) made_pair: bool,
    /// Whether passing packets on had to be turned on, by family: IPv4, IPv6.
    pub(crate) forwarding: [bool; 2],
    /// Whether this kernel has no rules for routes, by family: see [`without_rules`].
    pub(crate) lacks_rules: [bool; 2],
}

/// What people are told where a kernel has no rules for routes of families that pods
/// have, IPv4 and IPv6; None where it has. Pods live there nevertheless.
pub(crate) fn without_rules(lacks: [bool; 2], by_node: bool) -> Option<String> {
    let (families, options) = match lacks {
        [false, false] => return None,
        [true, false] => ("IPv4", "CONFIG_IP_MULTIPLE_TABLES"),
        [false, true] => ("IPv6", "CONFIG_IPV6_MULTIPLE_TABLES"),
        [true, true] => {
            ("IPv4 and IPv6", "CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES")
        }
    };
    // Pods meet at the node for a kube-proxy alone.
    let (led, otherwise) = if by_node {
        (
            "a kube-proxy leads pods to pods of their own node only if it masquerades all, and ",
            ", or lead pods to Services by --service-proxy=builtin",
        )
    } else {
        ("", "")
    };
    Some(format!(
        "this kernel has no rules for routes of {families}: {led}only sandboxes keep pods from \
         metadata addresses and the node's API. Use a kernel with {options}{otherwise}"
    ))
}

impl Changes {
    fn note(&mut self, changed: bool) {
        self.count += usize::from(changed);
    }
}

/// The shortest packet that a link of IPv6 must take (RFC 8200), and the longest
/// that a pair takes (`ETH_MAX_MTU`).
const LEAST_MTU: u32 = 1280;
const MOST_MTU: u32 = 65_535;

/// Brings everything in order. Blocks for some milliseconds.
///
/// # Errors
///
/// [`EnsureError`]; what was in order by then stays so.
pub(crate) fn ensure(namespace: &Namespace, plan: &Plan) -> Result<Changes, EnsureError> {
    let mut changes = Changes::default();
    changes.note(namespace.keep()?);
    let inner = namespace.within(|| Netlink::open()?.link(INSIDE)).map_err(EnsureError::Inside)?;
    let outer = on_a_thread(|| pair(namespace, plan, inner.as_ref(), &mut changes))
        .map_err(EnsureError::Link)?;
    // Inside first: what is led there is then taken.
    let inner =
        namespace.within(|| inside(plan, &outer, &mut changes)).map_err(EnsureError::Inside)?;
    on_a_thread(|| outside(plan, &outer, &inner, &mut changes)).map_err(EnsureError::Link)?;
    Ok(changes)
}

/// The node's end of the pair. Ends that lost each other are made anew. Runs in
/// the node's namespace.
fn pair(
    namespace: &Namespace,
    plan: &Plan,
    inner: Option<&Link>,
    changes: &mut Changes,
) -> io::Result<Link> {
    let mut net = Netlink::open()?;
    let name = &plan.name;
    let found = net.link(name)?;
    let link = match found {
        Some(found) if inner.is_some_and(|inner| inner.peer == Some(found.index)) => found,
        other => {
            // One that leads to the namespace of the pods before these.
            if let Some(stale) = other {
                net.remove_link(stale.index)?;
            }
            if let Some(inner) = inner {
                namespace.within(|| Netlink::open()?.remove_link(inner.index))?;
            }
            let file = namespace.as_fd().as_raw_fd();
            let other = (INSIDE, mac(name, End::Pods), file);
            net.add_pair((name, mac(name, End::Node)), other)?;
            changes.note(true);
            changes.made_pair = true;
            net.known_link(name)?
        }
    };
    // As the way outwards, so that no packet of a pod's is too long for it, or
    // shorter than it need be. Without one it is what it was.
    let mtu = net.outgoing_mtu()?.map_or(link.mtu, |mtu| mtu.clamp(LEAST_MTU, MOST_MTU));
    changes.note(net.set_mtu(&link, mtu)?);
    changes.note(net.set_up(&link)?);
    Ok(Link { mtu, ..link })
}

/// The pods' side. Runs in their namespace.
fn inside(plan: &Plan, outer: &Link, changes: &mut Changes) -> io::Result<Link> {
    let mut net = Netlink::open()?;
    changes.note(sysctl::set(sysctl::LOW_PORTS, "0")?);
    if plan.has_family(false) {
        changes.note(sysctl::set(sysctl::NO_IPV6, "0")?);
        changes.note(sysctl::set(sysctl::BIND_ANY, "1")?);
        changes.note(sysctl::set(sysctl::REDIRECTS, "0")?);
    }
    let lo = net.known_link("lo")?;
    changes.note(net.set_up(&lo)?);
    let link = net.known_link(INSIDE)?;
    changes.note(net.set_mtu(&link, outer.mtu)?);
    changes.note(net.set_up(&link)?);
    for is_ipv4 in [true, false].into_iter().filter(|is_ipv4| plan.has_family(*is_ipv4)) {
        net.set_neighbour(link.index, End::Node.hop(is_ipv4), &outer.mac)?;
    }
    // Before the range is local: the node's own address must not be for a moment.
    for route in plan.pod_routes() {
        changes.note(net.add_route(link.index, route)?);
    }
    for route in plan.local_routes() {
        changes.note(net.add_route(lo.index, route)?);
    }
    for is_ipv4 in [true, false] {
        order(&mut net, plan, is_ipv4, changes)?;
    }
    Ok(link)
}

/// The rules of the pods' side, which may be those of an agent that let pods meet
/// elsewhere.
fn order(net: &mut Netlink, plan: &Plan, is_ipv4: bool, changes: &mut Changes) -> io::Result<()> {
    let Some(found) = net.rules(is_ipv4)? else {
        changes.lacks_rules[usize::from(!is_ipv4)] = plan.has_family(is_ipv4);
        return Ok(());
    };
    let (api_at, refused) = (plan.api_at(is_ipv4), net.refused(is_ipv4, API_TABLE)?);
    for range in api_at.iter().filter(|range| !refused.contains(range)) {
        changes.note(net.refuse(API_TABLE, *range)?);
    }
    for range in refused.into_iter().filter(|range| !api_at.contains(range)) {
        net.refuse_no_more(API_TABLE, range)?;
        changes.note(true);
    }
    let wanted = plan.pod_rules(is_ipv4);
    for rule in wanted.iter().filter(|rule| !found.contains(rule)) {
        changes.note(net.add_rule(is_ipv4, *rule)?);
    }
    let is_ours = |rule: &Rule| rule.place <= LAST_PLACE;
    for rule in found.into_iter().filter(|rule| is_ours(rule) && !wanted.contains(rule)) {
        net.remove_rule(is_ipv4, rule)?;
        changes.note(true);
    }
    Ok(())
}

/// The node's side. Runs in its namespace.
fn outside(plan: &Plan, link: &Link, inner: &Link, changes: &mut Changes) -> io::Result<()> {
    let mut net = Netlink::open()?;
    for is_ipv4 in [true, false].into_iter().filter(|is_ipv4| plan.has_family(*is_ipv4)) {
        net.set_neighbour(link.index, End::Pods.hop(is_ipv4), &inner.mac)?;
        let turned_on = sysctl::set(sysctl::forwarding(is_ipv4), "1")?;
        changes.note(turned_on);
        changes.forwarding[usize::from(!is_ipv4)] = turned_on;
    }
    for address in plan.gateways() {
        changes.note(net.add_address(link.index, address)?);
    }
    for route in plan.node_routes() {
        changes.note(net.add_route(link.index, route)?);
    }
    Ok(())
}

/// Takes away what led to ranges that no pod has an address of any more.
/// Blocks.
///
/// # Errors
///
/// [`EnsureError`]; what is left may be removed later.
pub(crate) fn withdraw(namespace: &Namespace, old: &Plan) -> Result<(), EnsureError> {
    let outside = on_a_thread(|| {
        let mut net = Netlink::open()?;
        let Some(link) = net.link(&old.name)? else { return Ok(()) };
        for route in old.node_routes() {
            net.remove_route(link.index, route)?;
        }
        for address in old.gateways() {
            net.remove_address(link.index, address)?;
        }
        Ok(())
    });
    outside.map_err(EnsureError::Link)?;
    let inside = namespace.within(|| {
        let mut net = Netlink::open()?;
        let lo = net.known_link("lo")?;
        for route in old.local_routes() {
            net.remove_route(lo.index, route)?;
        }
        Ok(())
    });
    inside.map_err(EnsureError::Inside)
}

/// Every address of the node's own. Blocks.
///
/// # Errors
///
/// What the system says.
pub(crate) fn node_addresses() -> io::Result<BTreeSet<IpAddr>> {
    on_a_thread(|| Netlink::open()?.addresses())
}

/// Leads to other nodes' pods, and to none any more that an agent of this root
/// directory led to before. Returns those that cannot be led to. What fails keeps
/// no other from being led to. Blocks.
///
/// # Errors
///
/// [`EnsureError::Peers`] with the first of the steps that failed.
pub(crate) fn lead_to_peers(
    routes: &BTreeMap<IpNet, IpAddr>,
    made: &mut Made,
) -> Result<BTreeSet<Unled>, EnsureError> {
    let lead = || {
        let mut net = Netlink::open()?;
        let (v4, v6) = (net.routes(true)?, net.routes(false)?);
        let (mut found, mut of_others) = (v4.to_peers, v4.of_others);
        found.extend(v6.to_peers);
        of_others.extend(v6.of_others);
        // Of two routes to a range the one with the lower metric counts, and ours has
        // none: it would win of all.
        let is_wanted = |(range, hop): &(IpNet, IpAddr)| {
            routes.get(range) == Some(hop) && !of_others.contains(range)
        };
        let ours = made.routes().iter().copied();
        // Those that somebody else removed are ours no more, unless they are wanted.
        let (mut ours, old): (BTreeSet<_>, BTreeSet<_>) =
            ours.filter(|route| is_wanted(route) || found.contains(route)).partition(is_wanted);
        let wanted = routes.iter().map(|(&range, &hop)| (range, hop));
        let new: Vec<_> =
            wanted.filter(|route| is_wanted(route) && !found.contains(route)).collect();
        // Before they are made, also those that cannot be.
        ours.extend(&new);
        made.keep(ours.union(&old).copied().collect());

        let mut failed = None;
        for (range, hop) in old {
            if let Err(error) = net.remove_peer_route(range, hop) {
                ours.insert((range, hop));
                failed.get_or_insert(error);
            }
        }
        made.keep(ours);
        let taken = routes.keys().filter(|range| of_others.contains(*range));
        let mut unled: BTreeSet<_> = taken.map(|&range| Unled::Taken { range }).collect();
        for (range, hop) in new {
            match net.add_peer_route(range, hop) {
                Ok(PeerRoute::Added) => {}
                Ok(PeerRoute::Apart) => drop(unled.insert(Unled::Apart { hop })),
                Ok(PeerRoute::Taken) => drop(unled.insert(Unled::Taken { range })),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(unled), Err)
    };
    on_a_thread(lead).map_err(EnsureError::Peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_rules_is_told_of_with_what_is_lost_and_what_to_do() {
        assert_eq!(without_rules([false, false], true), None);
        let all = without_rules([true, true], true).unwrap();
        for part in [
            "of IPv4 and IPv6",
            "kube-proxy",
            "metadata addresses",
            "CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES",
            "--service-proxy=builtin",
        ] {
            assert!(all.contains(part), "{all}");
        }
        let alone = without_rules([false, true], false).unwrap();
        assert!(alone.contains("of IPv6: only sandboxes"), "{alone}");
        assert!(alone.ends_with("Use a kernel with CONFIG_IPV6_MULTIPLE_TABLES"), "{alone}");
    }
}
