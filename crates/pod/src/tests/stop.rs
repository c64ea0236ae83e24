//! How pods end.

use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;

use super::bed::{Bed, Call, Guest, main_of, one, pod};

fn stops(bed: &Bed) -> Vec<(String, u64)> {
    let of = |call| match call {
        Call::Stop(name, grace) => Some((name, grace.as_secs())),
        _ => None,
    };
    bed.calls().into_iter().filter_map(of).collect()
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_leaves_nothing() {
    let mut bed = Bed::new().await;
    bed.put(pod(json!({
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "main", "image": "web:1",
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
    })));
    bed.until_phase("u", "Running").await;
    assert!(bed.home.path().join("pods/u/volumes/v").exists());
    bed.delete("u", 20);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    bed.shared.with(|world| {
        let status = world.last_status("u").unwrap();
        assert_eq!(status.phase.as_deref(), Some("Failed"));
        let end = main_of(status).state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!(end.exit_code, 143);
        assert!(world.has_event("Killing") && world.sandboxes.is_empty());
    });
    assert_eq!(stops(&bed), [("main".to_owned(), 20)]);
    bed.drop_pod("u");
    let mut changes = bed.pods.changes();
    while !bed.pods.list().is_empty() {
        changes.changed().await.unwrap();
    }
    assert!(!bed.home.path().join("pods/u").exists());
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_reported_once_when_nothing_of_it_is_left() {
    let mut bed = Bed::new().await;
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    let before = bed.shared.with(|world| world.statuses["u"].len());
    bed.delete("u", 20);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    bed.shared.with(|world| {
        let [last]: &[PodStatus] = &world.statuses["u"][before..] else {
            panic!("{:#?}", &world.statuses["u"][before..])
        };
        assert!(main_of(last).state.as_ref().unwrap().terminated.is_some(), "{last:#?}");
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_can_be_deleted_during_a_pull() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.endless.insert("web:1".to_owned()));
    bed.put(one("Always"));
    bed.until("people are told", |world| world.has_event("Pulling")).await;
    bed.delete("u", 30);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    let status = bed.shared.with(|world| world.last_status("u").unwrap().clone());
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(bed.shared.with(|world| world.count(&Call::Create("main".to_owned()))), 0);
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_agent_stops_during_a_pull() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.endless.insert("web:1".to_owned()));
    bed.put(one("Always"));
    bed.until("people are told", |world| world.has_event("Pulling")).await;
    let before = tokio::time::Instant::now();
    bed.stop().await;
    assert!(before.elapsed() < Duration::from_secs(1), "a pull has no end to wait for");
}

#[tokio::test(start_paused = true)]
async fn a_pod_can_be_deleted_during_a_back_off() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Exits(1)));
    bed.put(one("Always"));
    bed.until("it backs off", |world| world.has_event("BackOff")).await;
    let before = tokio::time::Instant::now();
    bed.delete("u", 30);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    assert!(before.elapsed() < Duration::from_secs(1), "nothing was left to wait for");
    let status = bed.shared.with(|world| world.last_status("u").unwrap().clone());
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert!(stops(&bed).is_empty());
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_volumes_are_missing_is_deleted_without_a_wait() {
    let mut bed = Bed::new().await;
    bed.put(pod(json!({
        "volumes": [{"name": "v", "configMap": {"name": "none"}}],
        "containers": [{"name": "main", "image": "web:1"}],
    })));
    bed.until("it was tried often", |world| {
        world.events.iter().filter(|(reason, _)| reason == "FailedMount").count() == 10
    })
    .await;
    let before = tokio::time::Instant::now();
    bed.delete("u", 30);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    assert!(before.elapsed() < Duration::from_secs(1), "nothing was left to wait for");
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_checkpoint_cannot_be_written_can_be_deleted() {
    let mut bed = Bed::new().await;
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    // Long enough for everything to be on disk.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let checkpoint = bed.home.path().join("pods/u/checkpoint.json");
    std::fs::remove_file(&checkpoint).unwrap();
    std::fs::create_dir(&checkpoint).unwrap();
    bed.delete("u", 30);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    assert!(bed.shared.with(|world| world.sandboxes.is_empty()));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn grace_shrinks_and_never_grows() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Stubborn));
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    bed.delete("u", 100);
    bed.until("it is asked", |world| {
        world.calls.iter().any(|(_, call)| matches!(call, Call::Stop(..)))
    })
    .await;
    bed.delete("u", 300);
    tokio::time::sleep(Duration::from_secs(10)).await;
    bed.delete("u", 5);
    bed.until("it is asked again", |world| {
        world.calls.iter().filter(|(_, call)| matches!(call, Call::Stop(..))).count() == 2
    })
    .await;
    assert_eq!(stops(&bed), [("main".to_owned(), 100), ("main".to_owned(), 5)]);

    // It does not listen: its sandbox is ended.
    let before = tokio::time::Instant::now();
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    let waited = before.elapsed().as_secs();
    assert!((5..=8).contains(&waited), "{waited}");
    let status = bed.shared.with(|world| world.last_status("u").unwrap().clone());
    let end = main_of(&status).state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(end.exit_code, 137);
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn sidecars_stop_last() {
    let mut bed = Bed::new().await;
    bed.put(pod(json!({
        "initContainers": [
            {"name": "one", "image": "i:1", "restartPolicy": "Always"},
            {"name": "two", "image": "i:1", "restartPolicy": "Always"},
        ],
        "containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "i:1"}],
    })));
    bed.until_phase("u", "Running").await;
    bed.delete("u", 30);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    let order: Vec<_> = stops(&bed).into_iter().map(|(name, _)| name).collect();
    assert_eq!(order, ["a", "b", "two", "one"]);
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_fails_the_pod() {
    let mut bed = Bed::new().await;
    let mut limited = one("Always");
    limited["spec"]["activeDeadlineSeconds"] = json!(60);
    bed.put(limited);
    bed.until_phase("u", "Running").await;
    let status = bed.until_phase("u", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(
        status.message.as_deref(),
        Some("Pod was active on the node longer than the specified deadline"),
    );
    bed.stop().await;
}

/// The clock runs between two looks at it, as it does outside of tests.
#[tokio::test]
async fn a_deadline_comes_though_time_goes_on() {
    let mut bed = Bed::new().await;
    let mut limited = one("Always");
    limited["spec"]["activeDeadlineSeconds"] = json!(1);
    bed.put(limited);
    let failed = bed.until_phase("u", "Failed");
    let status = tokio::time::timeout(Duration::from_secs(30), failed).await.expect("it fails");
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_too_much_on_the_disk_is_evicted() {
    let mut bed = Bed::new().await;
    let mut limited = one("Always");
    limited["spec"]["volumes"] = json!([{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]);
    bed.put(limited);
    bed.until_phase("u", "Running").await;
    let volume = bed.home.path().join("pods/u/volumes/scratch");
    std::fs::write(volume.join("small"), vec![1; 64 << 10]).unwrap();
    tokio::time::sleep(Duration::from_mins(2)).await;
    let phase = bed.shared.with(|world| world.last_status("u").unwrap().phase.clone());
    assert_eq!(phase.as_deref(), Some("Running"));
    std::fs::write(volume.join("large"), vec![1; 2 << 20]).unwrap();
    let status = bed.until_phase("u", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert_eq!(
        status.message.as_deref(),
        Some("Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". "),
    );
    assert!(bed.shared.with(|world| world.has_event("Evicted")));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_same_name_waits_for_the_old_one() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Stubborn));
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    // Deleted by force: the source has it no more, and has the next one.
    bed.drop_pod("u");
    let mut next = one("Always");
    next["metadata"]["uid"] = json!("v");
    next["spec"]["terminationGracePeriodSeconds"] = json!(7);
    bed.put(next);
    bed.until("the old one is asked to stop", |world| {
        world.calls.iter().any(|(_, call)| matches!(call, Call::Stop(..)))
    })
    .await;
    assert_eq!(bed.shared.with(|world| world.sandboxes.len()), 1);
    bed.shared.exit("u", "main", 0);
    bed.until_phase("v", "Running").await;
    bed.shared.with(|world| {
        assert!(!world.sandboxes.contains_key(&krustlet_model::PodUid::new("u")));
        assert!(world.deleted.is_empty(), "it was gone already");
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_others_keep_is_removed_once() {
    let mut bed = Bed::new().await;
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    bed.delete("u", 1);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    // A finalizer holds it, and somebody changes it meanwhile.
    bed.delete("u", 1);
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert_eq!(bed.shared.with(|world| world.deleted.len()), 1);
    bed.stop().await;
}
