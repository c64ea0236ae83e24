//! What runs say at their ends.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::bed::{Bed, Guest, Shared, main_of, one, pod};

fn falls_back() -> Value {
    let mut pod = one("Never");
    pod["spec"]["containers"][0]["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    pod
}

/// The end of the only container.
fn message(status: &k8s_openapi::api::core::v1::PodStatus) -> Option<String> {
    main_of(status).state.as_ref()?.terminated.as_ref()?.message.clone()
}

fn own_file(bed: &Bed, restart: u32) -> std::path::PathBuf {
    bed.home.path().join(format!("pods/u/containers/main/{restart}/termination-log"))
}

/// Waits until a file is removed, which changes nothing in the bed's world.
async fn gone(path: &Path) {
    let wait = async {
        while path.exists() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_hours(1), wait).await.expect("nothing of it is kept");
}

fn preopens(shared: &Shared, launch: usize) -> Vec<(String, bool)> {
    shared.with(|world| {
        let preopens = world.launches[launch].preopens.iter();
        preopens.map(|preopen| (preopen.guest_path.clone(), preopen.writable)).collect()
    })
}

#[tokio::test(start_paused = true)]
async fn a_guests_last_words_are_its_message() {
    let mut bed = Bed::new().await;
    bed.put(one("Never"));
    bed.until_phase("u", "Running").await;
    assert_eq!(preopens(&bed.shared, 0), [("/dev".to_owned(), true), ("/etc".to_owned(), false)]);
    std::fs::write(own_file(&bed, 0), "DONE").unwrap();
    bed.shared.exit("u", "main", 0);
    let status = bed.until_phase("u", "Succeeded").await;
    assert_eq!(message(&status).as_deref(), Some("DONE"));
    gone(&own_file(&bed, 0)).await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn each_run_begins_with_an_empty_file() {
    let mut bed = Bed::new().await;
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    std::fs::write(own_file(&bed, 0), "first").unwrap();
    bed.shared.exit("u", "main", 1);
    bed.until("it runs again", |world| world.launches.len() == 2).await;
    let status = bed
        .until_status("u", "it is back", |status| {
            main_of(status).restart_count == 1
                && main_of(status).state.as_ref().unwrap().running.is_some()
        })
        .await;
    let last = main_of(&status).last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(last.message.as_deref(), Some("first"));
    assert_eq!(std::fs::read_to_string(own_file(&bed, 1)).unwrap(), "");
    gone(&own_file(&bed, 0)).await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_logs_end_is_the_message_of_a_run_that_failed_and_said_nothing() {
    for (code, expected) in [(0, None), (1, Some("last\n"))] {
        let mut bed = Bed::new().await;
        bed.put(falls_back());
        bed.until_phase("u", "Running").await;
        let log = bed.home.path().join("logs/n_p_u/main/0.log");
        std::fs::write(log, "2027-01-15T08:00:00Z stderr F last\n").unwrap();
        bed.shared.exit("u", "main", code);
        let status = bed.until_phase("u", if code == 0 { "Succeeded" } else { "Failed" }).await;
        assert_eq!(message(&status).as_deref(), expected);
        bed.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_in_a_volume_is_read_by_the_next_agent() {
    let mut bed = Bed::new().await;
    bed.put(pod(json!({
        "restartPolicy": "Never",
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "main", "image": "web:1",
            "terminationMessagePath": "/out/deep/message",
            "volumeMounts": [{"name": "v", "mountPath": "/out", "subPath": "sub"}]}],
    })));
    bed.until_phase("u", "Running").await;
    assert_eq!(preopens(&bed.shared, 0), [("/out".to_owned(), true), ("/etc".to_owned(), false)]);
    let left = bed.kill().await;
    let file = left.home_path().join("pods/u/volumes/v/sub/deep/message");
    std::fs::write(file, "said to nobody").unwrap();
    left.shared.exit("u", "main", 3);
    let bed = left.next(true).await;
    let status = bed.until_phase("u", "Failed").await;
    assert_eq!(message(&status).as_deref(), Some("said to nobody"));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_is_killed_leaves_what_its_guests_said() {
    let mut bed = Bed::new().await;
    bed.put(one("Never"));
    bed.until_phase("u", "Running").await;
    std::fs::write(own_file(&bed, 0), "so far").unwrap();
    bed.shared.kill_sandbox("u");
    let status = bed.until_phase("u", "Failed").await;
    assert_eq!(message(&status).as_deref(), Some("so far"));
    assert!(!bed.shared.with(|world| world.has_event("SandboxChanged")));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_killed_with_its_sandbox_is_heard() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Stubborn));
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    std::fs::write(own_file(&bed, 0), "not yet").unwrap();
    bed.delete("u", 3);
    let status = bed
        .until_status("u", "it has ended", |status| {
            main_of(status).state.as_ref().is_some_and(|state| state.terminated.is_some())
        })
        .await;
    assert_eq!(message(&status).as_deref(), Some("not yet"));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_path_that_cannot_be_is_told_and_waits() {
    let mut bed = Bed::new().await;
    let mut wrong = one("Never");
    wrong["spec"]["containers"][0]["terminationMessagePath"] = json!("/");
    bed.put(wrong);
    let status = bed
        .until_status("u", "it waits", |status| {
            super::bed::waits(status) == Some("CreateContainerConfigError")
        })
        .await;
    let waiting = main_of(&status).state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(
        waiting.message.as_deref(),
        Some("terminationMessagePath \"/\" of container \"main\" names no file"),
    );
    sleep(Duration::from_secs(10)).await;
    assert!(bed.shared.with(|world| world.launches.is_empty()));
    bed.stop().await;
}
