//! What of a status the API server has to be told.
//!
//! A strategic merge patch against the newest state that is known, carrying the
//! pod's uid so that it never lands on another pod of the same name. Only fields
//! that a kubelet owns are touched, and only conditions that it sets; what
//! others wrote stays. Pure.
//!
//! Source: kubelet, `pkg/kubelet/status/status_manager.go` (`syncPod`,
//! `mergePodStatus`) and `pkg/util/pod/pod.go` (`PatchPodStatus`); the merge keys
//! are those of `PodStatus` in `k8s.io/api/core/v1/types.go`.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use krustlet_model::PodUid;
use serde_json::{Map, Value, json};

/// Fields that are set when known and never taken back.
const SET_ONLY: [&str; 6] =
    ["hostIP", "observedGeneration", "phase", "qosClass", "startTime", "allocatedResources"];

/// Fields that are taken back when the status no longer has them. The lists
/// among them are replaced as a whole (`listType=atomic`).
const REPLACED: [&str; 7] = [
    "containerStatuses",
    "ephemeralContainerStatuses",
    "initContainerStatuses",
    "message",
    "podIP",
    "reason",
    "resources",
];

/// Lists merged by `ip`.
const ADDRESSES: [&str; 2] = ["hostIPs", "podIPs"];

/// Conditions that a kubelet takes back; those it always sets need no such rule,
/// and those of others are not its to take.
const PASSING_CONDITIONS: [&str; 3] =
    ["PodResizePending", "PodResizeInProgress", "AllContainersRestarting"];

/// Conditions that only a kubelet sets.
const OWN_CONDITIONS: [&str; 5] =
    ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];

/// A status as JSON, without what is empty: the form in which two are compared.
pub(super) fn whole(status: &PodStatus) -> Value {
    // Field by field into text and numbers: nothing in it can fail.
    prune(serde_json::to_value(status).unwrap_or_default())
}

/// The patch that brings the server's pod, `base`, to `wanted`; None when it is
/// there already. `seen` is the pod the status was made from.
pub(super) fn patch(uid: &PodUid, seen: &Pod, base: &Pod, wanted: &Value) -> Option<Value> {
    let base = base.status.as_ref().map(whole).unwrap_or_default();
    let seen = seen.status.as_ref().map(whole).unwrap_or_default();
    let mut status = Map::new();

    for field in SET_ONLY {
        if let Some(value) = wanted.get(field)
            && base.get(field) != Some(value)
            && !(field == "phase" && is_final(&base))
        {
            status.insert(field.to_owned(), value.clone());
        }
    }
    for field in REPLACED {
        match (wanted.get(field), base.get(field)) {
            (Some(new), old) if old != Some(new) => {
                status.insert(field.to_owned(), new.clone());
            }
            (None, Some(_)) => {
                status.insert(field.to_owned(), Value::Null);
            }
            (Some(_) | None, _) => {}
        }
    }
    for field in ADDRESSES {
        let new = list(wanted, field);
        let old = list(&base, field);
        if !new.is_empty() && new != old {
            // Merging would keep old addresses, and keep them first.
            let replace = (!old.is_empty()).then(|| json!({ "$patch": "replace" }));
            let all = replace.into_iter().chain(new.iter().cloned()).collect();
            status.insert(field.to_owned(), Value::Array(all));
        }
    }
    let conditions = conditions(
        list(wanted, "conditions"),
        list(&base, "conditions"),
        list(&seen, "conditions"),
    );
    if !conditions.is_empty() {
        status.insert("conditions".to_owned(), Value::Array(conditions));
    }

    (!status.is_empty()).then(|| json!({ "metadata": { "uid": uid.as_str() }, "status": status }))
}

/// Whether the pod has ended for the API server; a phase that has is never left.
fn is_final(status: &Value) -> bool {
    matches!(status.get("phase").and_then(Value::as_str), Some("Succeeded" | "Failed"))
}

/// The elements of a list merged by `type`.
fn conditions(wanted: &[Value], base: &[Value], seen: &[Value]) -> Vec<Value> {
    let mut patch = Vec::new();
    for new in wanted {
        let Some(kind) = kind(new) else { continue };
        let old = find(base, kind);
        let copied = !OWN_CONDITIONS.contains(&kind) && find(seen, kind) == Some(new);
        if copied || old == Some(new) {
            continue;
        }
        let mut element = new.as_object().cloned().unwrap_or_default();
        // A merge keeps what it is not told to remove.
        for field in old.and_then(Value::as_object).into_iter().flat_map(Map::keys) {
            element.entry(field.clone()).or_insert(Value::Null);
        }
        patch.push(Value::Object(element));
    }
    for old in base {
        if let Some(kind) = kind(old)
            && PASSING_CONDITIONS.contains(&kind)
            && find(wanted, kind).is_none()
        {
            patch.push(json!({ "$patch": "delete", "type": kind }));
        }
    }
    patch
}

fn kind(condition: &Value) -> Option<&str> {
    condition.get("type")?.as_str()
}

fn find<'a>(conditions: &'a [Value], wanted: &str) -> Option<&'a Value> {
    conditions.iter().find(|condition| kind(condition) == Some(wanted))
}

fn list<'a>(status: &'a Value, field: &str) -> &'a [Value] {
    status.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Removes nulls, and fields that are empty lists, objects or texts: the server
/// writes some of these and leaves out others.
fn prune(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                // A state such as `waiting: {}` says something by being there, and
                // the `resources` of a container that has none.
                .map(|(name, value)| {
                    let keep =
                        matches!(name.as_str(), "waiting" | "running" | "terminated" | "resources");
                    (name, prune(value), keep)
                })
                .filter(|(_, value, keep)| !is_empty(value) || (*keep && value.is_object()))
                .map(|(name, value, _)| (name, value))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(prune).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests;
