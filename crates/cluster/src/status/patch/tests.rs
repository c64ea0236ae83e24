use k8s_openapi::api::core::v1::{PodCondition, PodIP};
use serde_json::json;

use super::*;

fn pod(status: Value) -> Pod {
    Pod { status: serde_json::from_value(status).unwrap(), ..Pod::default() }
}

fn made(seen: Value, base: Value, wanted: Value) -> Option<Value> {
    let wanted: PodStatus = serde_json::from_value(wanted).unwrap();
    let patch = patch(&PodUid::new("u"), &pod(seen), &pod(base), &whole(&wanted))?;
    assert_eq!(patch["metadata"], json!({ "uid": "u" }));
    Some(patch["status"].clone())
}

fn ready(status: &str) -> Value {
    json!({ "type": "Ready", "status": status })
}

#[test]
fn an_equal_status_is_not_written() {
    let status = json!({ "phase": "Running", "podIP": "10.0.0.1", "conditions": [ready("True")] });
    assert_eq!(made(json!({}), status.clone(), status), None);
}

#[test]
fn only_what_changed_is_written() {
    let base = json!({ "phase": "Pending", "hostIP": "10.0.0.1", "conditions": [ready("False")] });
    let wanted =
        json!({ "phase": "Running", "hostIP": "10.0.0.1", "conditions": [ready("False")] });
    assert_eq!(made(json!({}), base, wanted), Some(json!({ "phase": "Running" })));
}

#[test]
fn a_container_without_resources_says_so() {
    let main = |resources: Value| {
        let mut main = json!({ "name": "main", "image": "i", "imageID": "", "ready": true, "restartCount": 0 });
        main["resources"] = resources;
        json!({ "containerStatuses": [main] })
    };
    let written = made(json!({}), main(Value::Null), main(json!({}))).unwrap();
    assert_eq!(written["containerStatuses"][0]["resources"], json!({}));
    assert_eq!(made(json!({}), main(json!({})), main(json!({}))), None);
}

#[test]
fn a_reason_that_no_longer_holds_is_taken_back() {
    let base = json!({ "phase": "Pending", "reason": "Slow", "message": "wait" });
    let wanted = json!({ "phase": "Pending" });
    assert_eq!(made(json!({}), base, wanted), Some(json!({ "reason": null, "message": null })));
}

#[test]
fn a_final_phase_is_never_left() {
    let base = json!({ "phase": "Succeeded" });
    assert_eq!(made(json!({}), base, json!({ "phase": "Running" })), None);
}

#[test]
fn conditions_of_others_are_neither_removed_nor_overwritten() {
    let gate = |status: &str| json!({ "type": "example.org/gate", "status": status });
    // The reporter copied an old gate; meanwhile its owner has changed it.
    let seen = json!({ "conditions": [gate("False")] });
    let base = json!({ "conditions": [gate("True"), ready("False")] });
    let wanted = json!({ "conditions": [gate("False"), ready("True")] });
    assert_eq!(made(seen, base, wanted), Some(json!({ "conditions": [ready("True")] })));
}

#[test]
fn a_condition_loses_its_old_message() {
    let base = json!({ "conditions": [{ "type": "Ready", "status": "False", "message": "m", "reason": "r" }] });
    let wanted = json!({ "conditions": [ready("True")] });
    let expected = json!({ "conditions": [
        { "type": "Ready", "status": "True", "message": null, "reason": null }
    ] });
    assert_eq!(made(json!({}), base, wanted), Some(expected));
}

#[test]
fn a_passing_condition_is_taken_back() {
    let base = json!({ "conditions": [{ "type": "PodResizePending", "status": "True" }] });
    let expected = json!({ "conditions": [{ "$patch": "delete", "type": "PodResizePending" }] });
    assert_eq!(made(json!({}), base, json!({})), Some(expected));
}

#[test]
fn new_addresses_replace_old_ones() {
    let ips = |ip: &str| json!({ "podIPs": [{ "ip": ip }] });
    assert_eq!(made(json!({}), json!({}), ips("10.0.0.1")), Some(ips("10.0.0.1")));
    assert_eq!(
        made(json!({}), ips("10.0.0.1"), ips("10.0.0.2")),
        Some(json!({ "podIPs": [{ "$patch": "replace" }, { "ip": "10.0.0.2" }] }))
    );
}

#[test]
fn empty_fields_that_a_server_adds_are_no_difference() {
    let base = json!({ "containerStatuses": [{
        "name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "lastState": {}, "state": { "waiting": { "reason": "ContainerCreating" } } }] });
    let wanted = json!({ "containerStatuses": [{
        "name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "waiting": { "reason": "ContainerCreating" } } }] });
    assert_eq!(made(json!({}), base, wanted), None);
}

proptest::proptest! {
    /// A patch brings the server there, by the merge's own rules.
    #[test]
    fn a_merged_patch_leaves_nothing_to_write(base in status(), wanted in status()) {
        let wanted = whole(&wanted);
        let pod = Pod { status: Some(base), ..Pod::default() };
        let none = Pod::default();
        if let Some(made) = patch(&PodUid::new("u"), &none, &pod, &wanted) {
            let mut merged = whole(pod.status.as_ref().unwrap());
            merge(&mut merged, &made["status"]);
            let merged = Pod { status: serde_json::from_value(merged).unwrap(), ..Pod::default() };
            proptest::prop_assert_eq!(patch(&PodUid::new("u"), &none, &merged, &wanted), None);
        }
    }
}

fn status() -> impl proptest::strategy::Strategy<Value = PodStatus> {
    use proptest::{collection::btree_map, option, prelude::*, sample::select};
    let kinds = select(vec!["Ready", "Initialized", "PodResizePending"]);
    let texts = option::of(select(vec!["a", "b"]));
    let conditions = btree_map(kinds, (select(vec!["True", "False"]), texts.clone()), 0..4);
    (
        option::of(select(vec!["Pending", "Running", "Failed"])),
        texts,
        conditions,
        option::of(select(vec!["10.0.0.1", "10.0.0.2"])),
    )
        .prop_map(|(phase, message, conditions, ip)| PodStatus {
            phase: phase.map(str::to_owned),
            message: message.map(str::to_owned),
            pod_ips: ip.map(|ip| vec![PodIP { ip: ip.to_owned() }]),
            conditions: Some(
                conditions
                    .into_iter()
                    .map(|(kind, (status, message))| PodCondition {
                        type_: kind.to_owned(),
                        status: status.to_owned(),
                        message: message.map(str::to_owned),
                        ..PodCondition::default()
                    })
                    .collect(),
            ),
            ..PodStatus::default()
        })
}

/// The strategic merge of the API server, as far as it is used here.
fn merge(base: &mut Value, patch: &Value) {
    let base = base.as_object_mut().unwrap();
    for (field, new) in patch.as_object().unwrap() {
        match (new, field.as_str()) {
            (Value::Null, _) => {
                base.remove(field);
            }
            (Value::Array(items), "conditions" | "podIPs" | "hostIPs") => {
                let key = if field == "conditions" { "type" } else { "ip" };
                let list = base.entry(field).or_insert(json!([])).as_array_mut().unwrap();
                for item in items {
                    match item.get("$patch").and_then(Value::as_str) {
                        Some("replace") => list.clear(),
                        Some("delete") => list.retain(|old| old[key] != item[key]),
                        _ => match list.iter_mut().find(|old| old[key] == item[key]) {
                            Some(old) => merge(old, item),
                            None => list.push(item.clone()),
                        },
                    }
                }
            }
            (new, _) => {
                base.insert(field.clone(), new.clone());
            }
        }
    }
}
