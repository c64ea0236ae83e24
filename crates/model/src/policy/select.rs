//! Selectors of labels.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// What a selector wants of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish<'a> {
    /// That one is there and has one of these values.
    In(&'a String, &'a [String]),
    /// That it has none of them; also where there is no such label.
    NotIn(&'a String, &'a [String]),
    /// That one is there.
    Exists(&'a String),
    /// That it is not.
    DoesNotExist(&'a String),
}

/// All that a selector wants; an empty one wants nothing, and selects all. None
/// for what the API server would refuse.
///
/// Source: `LabelSelectorAsSelector` in
/// `k8s.io/apimachinery/pkg/apis/meta/v1/helpers.go`, `Requirement.Matches` in
/// `k8s.io/apimachinery/pkg/labels/selector.go`.
pub(super) fn wishes(selector: &LabelSelector) -> impl Iterator<Item = Option<Wish<'_>>> {
    let labels = selector.match_labels.iter().flatten();
    let labels = labels.map(|(key, value)| Some(Wish::In(key, std::slice::from_ref(value))));
    labels.chain(selector.match_expressions.iter().flatten().map(wish))
}

fn wish(wanted: &LabelSelectorRequirement) -> Option<Wish<'_>> {
    let (key, values) = (&wanted.key, wanted.values.as_deref().unwrap_or_default());
    match (wanted.operator.as_str(), values.is_empty()) {
        ("In", false) => Some(Wish::In(key, values)),
        ("NotIn", false) => Some(Wish::NotIn(key, values)),
        ("Exists", true) => Some(Wish::Exists(key)),
        ("DoesNotExist", true) => Some(Wish::DoesNotExist(key)),
        _ => None,
    }
}

/// Whether a selector selects what has these labels. None if it is one that the
/// API server would refuse.
pub(super) fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> Option<bool> {
    let mut is_selected = true;
    for wish in wishes(selector) {
        is_selected &= match wish? {
            Wish::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Wish::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Wish::Exists(key) => labels.contains_key(key),
            Wish::DoesNotExist(key) => !labels.contains_key(key),
        };
    }
    Some(is_selected)
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
