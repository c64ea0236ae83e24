//! Selectors of labels.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// Whether a selector selects what has these labels; an empty one selects all.
/// None if it is one that the API server would refuse.
///
/// Source: `LabelSelectorAsSelector` in
/// `k8s.io/apimachinery/pkg/apis/meta/v1/helpers.go`, `Requirement.Matches` in
/// `k8s.io/apimachinery/pkg/labels/selector.go`.
pub(super) fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> Option<bool> {
    let mut is_selected =
        selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    for wanted in selector.match_expressions.iter().flatten() {
        is_selected &= holds(wanted, labels.get(&wanted.key))?;
    }
    Some(is_selected)
}

fn holds(wanted: &LabelSelectorRequirement, value: Option<&String>) -> Option<bool> {
    let values = wanted.values.as_deref().unwrap_or_default();
    let is_listed = value.is_some_and(|value| values.contains(value));
    match (wanted.operator.as_str(), values.is_empty()) {
        ("In", false) => Some(is_listed),
        // Also where there is no such label.
        ("NotIn", false) => Some(!is_listed),
        ("Exists", true) => Some(value.is_some()),
        ("DoesNotExist", true) => Some(value.is_none()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_requirement_must_hold() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let is = |selector: serde_json::Value| {
            selects(&serde_json::from_value(selector).unwrap(), &labels)
        };
        let one = |key: &str, operator: &str, values: &[&str]| {
            let one = json!({"key": key, "operator": operator, "values": values});
            is(json!({"matchLabels": {"app": "web"}, "matchExpressions": [one]}))
        };
        assert_eq!(is(json!({})), Some(true));
        assert_eq!(is(json!({"matchLabels": {"app": "db"}})), Some(false));
        assert_eq!(one("app", "In", &["web", "db"]), Some(true));
        assert_eq!(one("tier", "In", &["web"]), Some(false));
        assert_eq!(one("tier", "NotIn", &["web"]), Some(true));
        assert_eq!(one("app", "NotIn", &["web"]), Some(false));
        assert_eq!(one("app", "Exists", &[]), Some(true));
        assert_eq!(one("app", "DoesNotExist", &[]), Some(false));
        for (operator, values) in [("In", &[][..]), ("Exists", &["a"][..]), ("Gt", &["1"][..])] {
            assert_eq!(one("app", operator, values), None, "{operator}");
        }
    }
}
