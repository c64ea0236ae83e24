//! Labels and taints of the node that a pod wants or puts up with.

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};

use super::NodeFacts;

/// Whether the node has the labels that the pod requires.
///
/// Source: `GetRequiredNodeAffinity` in
/// `k8s.io/component-helpers/scheduling/corev1/nodeaffinity`.
pub(super) fn matches(pod: &Pod, node: &NodeFacts) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let selected =
        spec.node_selector.iter().flatten().all(|(key, value)| node.labels.get(key) == Some(value));
    let required =
        spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()).and_then(
            |affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref(),
        );
    selected
        && required.is_none_or(|required| {
            required.node_selector_terms.iter().any(|term| term_matches(term, node))
        })
}

/// All of a term must hold; one that says nothing holds never.
fn term_matches(term: &NodeSelectorTerm, node: &NodeFacts) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| node.labels.get(key).map(String::as_str);
    // The one field there is.
    let field = |key: &str| (key == "metadata.name").then_some(node.name.as_str());
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|wanted| holds(wanted, label(&wanted.key)))
        && fields.iter().all(|wanted| holds(wanted, field(&wanted.key)))
}

fn holds(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let is_listed = || value.is_some_and(|value| values.iter().any(|listed| listed == value));
    let compared = |holds: fn(&i64, &i64) -> bool| {
        let (Some(value), [bound]) = (value, values) else { return false };
        match (value.parse(), bound.parse()) {
            (Ok(value), Ok(bound)) => holds(&value, &bound),
            _ => false,
        }
    };
    match wanted.operator.as_str() {
        "In" => is_listed(),
        "NotIn" => !is_listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(i64::gt),
        "Lt" => compared(i64::lt),
        // Unknown to the API server as well.
        _ => false,
    }
}

/// Whether the pod puts up with all taints of this effect.
///
/// Source: `FindMatchingUntoleratedTaint` in
/// `k8s.io/component-helpers/scheduling/corev1/helpers.go`.
pub(super) fn tolerates(pod: &Pod, node: &NodeFacts, effect: &str) -> bool {
    let tolerations = || pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    node.taints
        .iter()
        .filter(|taint| taint.effect == effect)
        .all(|taint| tolerations().any(|toleration| covers(toleration, taint)))
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let unless_empty = |given: &Option<String>, wanted: &str| {
        given.as_deref().is_none_or(|given| given.is_empty() || given == wanted)
    };
    let value = || {
        toleration.value.as_deref().unwrap_or_default()
            == taint.value.as_deref().unwrap_or_default()
    };
    unless_empty(&toleration.effect, &taint.effect)
        && unless_empty(&toleration.key, &taint.key)
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => value(),
            // Gt and Lt stand behind a feature gate that is off by default.
            Some(_) => false,
        }
}
