//! Whether what a pod requests is left.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{NodeFacts, Rejection};
use crate::{
    observed::ContainerKind,
    quantity::{self, Amount},
    restarts,
};

type Amounts = BTreeMap<String, Amount>;

/// What the node can run out of, in the order in which it is looked for.
const ORDER: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Checks the number of pods and every resource that the node counts.
///
/// A node that names nothing that it has to give (a standalone one) counts
/// nothing.
///
/// Source: scheduler, `fitsRequest` in
/// `pkg/scheduler/framework/plugins/noderesources/fit.go`; kubelet,
/// `InsufficientResourceError` in `pkg/kubelet/lifecycle/predicate.go`.
pub(super) fn check(pod: &Pod, node: &NodeFacts, others: &[&Pod]) -> Result<(), Rejection> {
    if node.allocatable.is_empty() {
        return Ok(());
    }
    let used = i64::try_from(others.len()).unwrap_or(i64::MAX);
    let room = given(node, "pods").value();
    if used >= room {
        return Err(out_of("pods", 1, used, room));
    }
    let requested = requests(pod);
    let mut taken = Amounts::new();
    for other in others {
        add(&mut taken, &requests(other));
    }
    // A resource with a name of its own is looked for only if the node has
    // any; pods that need one it lacks are refused as unsupported.
    let own = node.allocatable.keys().map(String::as_str);
    let own = own.filter(|name| !ORDER.contains(name) && *name != "pods");
    for name in ORDER.into_iter().chain(own) {
        let of = |amounts: &Amounts| amounts.get(name).copied().unwrap_or_default();
        let (wanted, used, room) = (of(&requested), of(&taken), given(node, name));
        if !wanted.is_zero() && used + wanted > room {
            let count = |amount: Amount| {
                if name == "cpu" { amount.milli() } else { amount.value() }
            };
            return Err(out_of(name, count(wanted), count(used), count(room)));
        }
    }
    Ok(())
}

fn out_of(name: &str, requested: i64, used: i64, capacity: i64) -> Rejection {
    Rejection::new(
        format!("OutOf{name}"),
        format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, \
             capacity: {capacity}"
        ),
    )
}

fn given(node: &NodeFacts, name: &str) -> Amount {
    // The node wrote these itself.
    node.allocatable.get(name).and_then(|text| quantity::parse(text).ok()).unwrap_or_default()
}

/// What a pod requests in all: what its containers do together, or, if that is
/// more, what one of the init containers does beside the sidecars before it;
/// and its overhead.
///
/// Source: `PodRequests` in `k8s.io/component-helpers/resource/helpers.go`.
fn requests(pod: &Pod) -> Amounts {
    let mut running = Amounts::new();
    let mut peak = Amounts::new();
    let mut sidecars = Amounts::new();
    for (kind, container) in restarts::containers(pod) {
        let own = of_container(container);
        match kind {
            ContainerKind::App => add(&mut running, &own),
            ContainerKind::Sidecar => {
                add(&mut running, &own);
                add(&mut sidecars, &own);
                raise(&mut peak, &sidecars);
            }
            ContainerKind::Init => {
                let mut at_once = sidecars.clone();
                add(&mut at_once, &own);
                raise(&mut peak, &at_once);
            }
        }
    }
    raise(&mut running, &peak);
    let overhead = pod.spec.as_ref().and_then(|spec| spec.overhead.as_ref());
    add(&mut running, &amounts(overhead));
    running
}

/// A container's requests; where it has a limit only, that.
fn of_container(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    let mut own = amounts(resources.and_then(|all| all.limits.as_ref()));
    own.extend(amounts(resources.and_then(|all| all.requests.as_ref())));
    own
}

fn amounts(list: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let read =
        |(name, text): (&String, &Quantity)| Some((name.clone(), quantity::parse(text).ok()?));
    list.into_iter().flatten().filter_map(read).collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = *sum + *amount;
    }
}

fn raise(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let held = to.entry(name.clone()).or_default();
        *held = (*held).max(*amount);
    }
}
