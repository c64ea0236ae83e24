use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use super::*;
use crate::node::{Cadence, Reserved, Threshold};

fn config() -> NodeConfig {
    NodeConfig {
        name: "n".to_owned(),
        hostname: "n.example".to_owned(),
        ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        port: 10250,
        register: true,
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        taints: vec![Taint {
            key: "kubernetes.io/arch".to_owned(),
            value: Some("wasm32-wasi".to_owned()),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        }],
        unschedulable: false,
        provider_id: None,
        os: "wasm32-wasi".to_owned(),
        arch: "wasm32-wasi".to_owned(),
        kubelet_version: "v1.37.2+krustlet.0.1.0".to_owned(),
        runtime_version: "wasmtime://48.0.8".to_owned(),
        runtime_handlers: vec!["wasm-dense".to_owned(), String::new(), "wasm".to_owned()],
        declared_features: vec!["B".to_owned(), "A".to_owned(), "B".to_owned()],
        max_pods: 110,
        reserved: Reserved { cpu_millis: 100, memory: 200 << 20, storage: 0 },
        eviction: EvictionThresholds::default(),
        root: PathBuf::from("/"),
        cadence: Cadence::default(),
    }
}

fn machine() -> Machine {
    Machine {
        cpus: NonZeroUsize::new(2).unwrap(),
        memory: 1 << 30,
        storage: 100 << 30,
        machine_id: "m".to_owned(),
        system_uuid: "s".to_owned(),
        boot_id: "b".to_owned(),
        kernel: "6.0".to_owned(),
        os_image: "Some OS".to_owned(),
    }
}

fn made(health: &NodeHealth, conditions: &[NodeCondition], seconds: i64) -> NodeStatus {
    let machine = machine();
    let seen = Observed {
        machine: &machine,
        pressure: Pressure::default(),
        health,
        conditions,
        now: Timestamp::from_second(seconds).unwrap(),
    };
    status(&config(), &seen)
}

fn well() -> NodeHealth {
    NodeHealth { not_ready: None, ..NodeHealth::default() }
}

fn amount(of: Option<&BTreeMap<String, Quantity>>, name: &str) -> String {
    of.unwrap()[name].0.clone()
}

#[test]
fn allocatable_is_capacity_less_what_is_kept() {
    let status = made(&well(), &[], 0);
    assert_eq!(amount(status.capacity.as_ref(), "cpu"), "2");
    assert_eq!(amount(status.allocatable.as_ref(), "cpu"), "1900m");
    assert_eq!(amount(status.capacity.as_ref(), "memory"), "1048576Ki");
    assert_eq!(amount(status.allocatable.as_ref(), "memory"), "741376Ki");
    assert_eq!(amount(status.allocatable.as_ref(), "pods"), "110");
}

#[test]
fn reserving_more_than_there_is_leaves_nothing_and_no_less() {
    let mut config = config();
    config.reserved = Reserved { cpu_millis: u64::MAX, memory: u64::MAX, storage: u64::MAX };
    let allocatable = allocatable(&config, &machine());
    assert_eq!(amount(Some(&allocatable), "cpu"), "0");
    assert_eq!(amount(Some(&allocatable), "memory"), "0Ki");
    assert_eq!(amount(Some(&allocatable), "ephemeral-storage"), "0");
}

#[test]
fn features_and_handlers_are_sorted_and_told_once() {
    let status = made(&well(), &[], 0);
    assert_eq!(status.declared_features.unwrap(), ["A", "B"]);
    let names: Vec<_> =
        status.runtime_handlers.unwrap().into_iter().filter_map(|handler| handler.name).collect();
    assert_eq!(names, ["", "wasm", "wasm-dense"]);
}

#[test]
fn a_condition_keeps_the_time_of_its_last_change() {
    let first = made(&NodeHealth::default(), &[], 10).conditions.unwrap();
    let second = made(&well(), &first, 20).conditions.unwrap();
    let third = made(&well(), &second, 30).conditions.unwrap();
    let changed = |conditions: &[NodeCondition], kind: &str| {
        find(conditions, kind).unwrap().last_transition_time.clone().unwrap().0.as_second()
    };
    assert_eq!(find(&first, "Ready").unwrap().status, "False");
    assert_eq!(changed(&second, "Ready"), 20);
    assert_eq!(changed(&third, "Ready"), 20);
    assert_eq!(changed(&third, "DiskPressure"), 10);
    assert_eq!(
        find(&third, "Ready").unwrap().last_heartbeat_time.clone().unwrap().0.as_second(),
        30
    );
}

#[test]
fn heartbeats_and_conditions_of_others_are_no_difference() {
    let mut found = made(&well(), &[], 10);
    let wanted = made(&well(), found.conditions.as_deref().unwrap(), 20);
    found.conditions.as_mut().unwrap().push(NodeCondition {
        type_: "NetworkUnavailable".to_owned(),
        status: "False".to_owned(),
        ..NodeCondition::default()
    });
    assert!(!differs(&found, &wanted));
    let ready = found.conditions.as_mut().unwrap().iter_mut().find(|c| c.type_ == "Ready");
    ready.unwrap().status = "Unknown".to_owned();
    assert!(differs(&found, &wanted));
}

#[test]
fn a_node_that_was_written_and_read_back_is_no_difference() {
    let status = made(&well(), &[], 10);
    let text = serde_json::to_string(&status).unwrap();
    assert!(!differs(&serde_json::from_str(&text).unwrap(), &status));
}

#[test]
fn a_patch_replaces_addresses_and_takes_back_resources() {
    let mut found = made(&well(), &[], 10);
    found.capacity.as_mut().unwrap().insert("gone".to_owned(), Quantity("1".to_owned()));
    let patch = patch(&found, &made(&well(), &[], 20));
    assert_eq!(patch["status"]["addresses"][0], json!({ "$patch": "replace" }));
    assert_eq!(patch["status"]["addresses"].as_array().unwrap().len(), 4);
    assert_eq!(patch["status"]["capacity"]["gone"], Value::Null);
    assert!(patch["status"]["capacity"].as_object().unwrap().contains_key("gone"));
}

#[test]
fn an_existing_node_keeps_what_others_gave_it() {
    let mut found = node(&config(), NodeStatus::default());
    assert_eq!(reconcile(&config(), &found), None);
    let labels = found.metadata.labels.as_mut().unwrap();
    labels.insert("team".to_owned(), "x".to_owned());
    labels.insert("kubernetes.io/os".to_owned(), "linux".to_owned());
    found.spec.as_mut().unwrap().taints = None;
    let patch = reconcile(&config(), &found).unwrap();
    assert_eq!(patch, json!({ "metadata": { "labels": { "kubernetes.io/os": "wasm32-wasi" } } }));
    let config = config();
    assert_eq!(missing_taints(&config, &found).len(), 1);
}

#[test]
fn the_largest_images_are_named_by_digest_first() {
    let image = |size: i64| ContainerImage {
        names: Some(vec![format!("r/i:{size}"), format!("r/i@sha256:{size}")]),
        size_bytes: Some(size),
    };
    let all: Vec<_> = (0..60).map(image).collect();
    let told = images(&all);
    assert_eq!(told.len(), 50);
    assert_eq!(told[0].names.as_ref().unwrap()[0], "r/i@sha256:59");
}

#[test]
fn a_shortage_begins_below_its_threshold() {
    let usage = Usage {
        memory_available: 100 << 20,
        memory_total: 1 << 30,
        storage_available: 15,
        storage_total: 100,
        inodes_available: 0,
        inodes_total: 0,
        pids: 1,
        pids_limit: 100,
    };
    let thresholds = EvictionThresholds::default();
    assert_eq!(pressure(&usage, &thresholds), Pressure::default());
    // Images are the first to lack room.
    let short = Usage { memory_available: (100 << 20) - 1, storage_available: 14, ..usage };
    let expected = Pressure { memory: true, disk: true, pids: false };
    assert_eq!(pressure(&short, &thresholds), expected);

    let only = EvictionThresholds {
        storage: Threshold::Amount(14),
        ..EvictionThresholds::none(thresholds.stays)
    };
    assert_eq!(pressure(&short, &only), Pressure::default());
    let shorter = Usage { storage_available: 13, ..short };
    assert_eq!(pressure(&shorter, &only), Pressure { disk: true, ..Pressure::default() });
}

#[test]
fn pods_do_not_get_what_must_stay_free() {
    let mut config = config();
    config.reserved = Reserved::default();
    config.eviction = EvictionThresholds::none(Duration::ZERO);
    let of = |config: &NodeConfig, name: &str| allocatable(config, &machine())[name].clone();
    assert_eq!(of(&config, "memory").0, format!("{}Ki", machine().memory / 1024));
    config.eviction.memory = Threshold::Amount(machine().memory / 4);
    config.eviction.storage = Threshold::Share(0.5);
    assert_eq!(of(&config, "memory").0, format!("{}Ki", machine().memory / 4 * 3 / 1024));
    assert_eq!(of(&config, "ephemeral-storage").0, (machine().storage / 2).to_string());
}
