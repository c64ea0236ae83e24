//! What an agent finds when it comes back.

use std::time::Duration;

use super::bed::{Bed, Call, Guest, World, is_ready, main_of, one};

#[tokio::test(start_paused = true)]
async fn a_pod_goes_on_without_its_agent() {
    let mut bed = Bed::new().await;
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    bed.shared.exit("u", "main", 1);
    let before = bed
        .until_status("u", "it runs again", |status| {
            main_of(status).restart_count == 1 && is_ready(status)
        })
        .await;
    // Long enough for everything to be on disk.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let left = bed.kill().await;
    let reports = left.shared.with(|world| world.statuses["u"].len());

    let bed = left.next(true).await;
    let mut changes = bed.pods.changes();
    while bed.pods.list().is_empty() {
        changes.changed().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(100)).await;
    bed.shared.with(|world| {
        let all = &world.statuses["u"];
        assert_eq!(all.len(), reports, "the same status, so nothing to report: {all:#?}");
        assert_eq!(all.last(), Some(&before));
        assert_eq!(world.count(&Call::Sandbox), 1);
    });
    // It is watched again.
    bed.shared.exit("u", "main", 1);
    bed.until_status("u", "its end is seen", |status| {
        main_of(status).restart_count == 1
            && main_of(status).state.as_ref().unwrap().running.is_none()
    })
    .await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_nobody_saw_is_reported() {
    let mut bed = Bed::new().await;
    bed.put(one("Never"));
    bed.until_phase("u", "Running").await;
    let left = bed.kill().await;
    left.shared.exit("u", "main", 6);
    let bed = left.next(true).await;
    let status = bed.until_phase("u", "Failed").await;
    let end = main_of(&status).state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(end.exit_code, 6);
    assert_eq!(bed.shared.with(|world| world.count(&Call::Start("main".to_owned()))), 1);
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_finished_pod_is_not_run_again() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Exits(0)));
    bed.put(one("Never"));
    bed.until_phase("u", "Succeeded").await;
    // The API server may not have heard of it: the pod comes back as it was.
    let bed = bed.stop().await.next(true).await;
    let bed = {
        tokio::time::sleep(Duration::from_secs(100)).await;
        bed.kill().await.next(true).await
    };
    tokio::time::sleep(Duration::from_secs(100)).await;
    bed.shared.with(|world| {
        assert_eq!(world.count(&Call::Start("main".to_owned())), 1);
        assert_eq!(world.last_status("u").unwrap().phase.as_deref(), Some("Succeeded"));
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_restarted_restarts_its_pods() {
    for (policy, again) in [("Always", true), ("Never", false)] {
        let mut bed = Bed::new().await;
        bed.put(one(policy));
        bed.until_phase("u", "Running").await;
        let left = bed.kill().await;
        left.shared.with(|world| world.sandboxes.clear());
        let bed = left.next(true).await;
        let end = if again {
            let status = bed
                .until_status("u", "it runs again", |status| {
                    main_of(status).restart_count == 1 && is_ready(status)
                })
                .await;
            main_of(&status).last_state.clone().unwrap().terminated.unwrap()
        } else {
            let status = bed.until_phase("u", "Failed").await;
            main_of(&status).state.clone().unwrap().terminated.unwrap()
        };
        assert_eq!((end.exit_code, end.reason.as_deref()), (255, Some("Unknown")));
        bed.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_before_the_source_has_told_everything() {
    let mut bed = Bed::new().await;
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    let mut left = bed.kill().await;
    left.set.clear();
    let bed = left.next(false).await;
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert!(bed.shared.live("u", "main").is_some(), "the source has not told yet");
    // It still restarts by its policy.
    bed.shared.exit("u", "main", 1);
    bed.until("it restarts", |world| world.count(&Call::Start("main".to_owned())) == 2).await;

    bed.show();
    bed.until("it is stopped", |world| world.sandboxes.is_empty()).await;
    let mut changes = bed.pods.changes();
    while !bed.pods.list().is_empty() {
        changes.changed().await.unwrap();
    }
    assert!(!bed.home.path().join("pods/u").exists());
    assert!(bed.shared.with(|world| world.deleted.is_empty()));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_deleted_has_its_last_status_before_it_is_removed() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Stubborn));
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    bed.delete("u", 600);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let left = bed.kill().await;
    // As after a restart of the machine.
    left.shared.with(|world| world.sandboxes.clear());
    let bed = left.next(false).await;
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert!(bed.shared.with(|world| world.deleted.is_empty()), "the source has not told yet");
    bed.show();
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    let status = bed.shared.with(|world| world.last_status("u").unwrap().clone());
    assert!(main_of(&status).state.as_ref().unwrap().terminated.is_some(), "{status:#?}");
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_nobody_knows_is_ended() {
    let mut bed = Bed::new().await;
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    let left = bed.kill().await;
    let home = left.home_path();
    std::fs::remove_dir_all(home.join("pods/u")).unwrap();
    let bed = left.next(true).await;
    bed.until("it runs in a new one", |world| {
        world.count(&Call::StopSandbox) == 1 && world.count(&Call::Sandbox) == 2
    })
    .await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_checkpoint_fails_its_pod_alone() {
    let mut bed = Bed::new().await;
    bed.put(one("OnFailure"));
    bed.until_phase("u", "Running").await;
    let left = bed.kill().await;
    std::fs::write(left.home_path().join("pods/u/checkpoint.json"), "{").unwrap();
    let bed = left.next(true).await;
    let status = bed
        .until_status("u", "it failed", |status| status.phase.as_deref() == Some("Failed"))
        .await;
    assert_eq!(status.reason.as_deref(), Some("CheckpointLost"));
    assert!(bed.shared.with(|world| world.sandboxes.is_empty()));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_checkpoint_of_a_pod_that_runs_for_ever_does_it_no_harm() {
    let mut bed = Bed::new().await;
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    let left = bed.kill().await;
    // As after a power failure: made, and never written.
    std::fs::write(left.home_path().join("pods/u/checkpoint.json"), "").unwrap();
    left.shared.with(|world| world.sandboxes.clear());
    let bed = left.next(true).await;
    let starts = |world: &World| world.count(&Call::Start("main".to_owned()));
    bed.until("it runs in a new one", |world| starts(world) == 2).await;
    let left = bed.kill().await;
    let bed = left.next(true).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    bed.shared.with(|world| assert_eq!(starts(world), 2, "it goes on"));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_back_off_goes_on_after_a_restart() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Exits(1)));
    bed.put(one("Always"));
    bed.until("it was started five times", |world| {
        world.count(&Call::Start("main".to_owned())) == 5
    })
    .await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let bed = bed.kill().await.next(true).await;
    bed.until("it is started again", |world| world.count(&Call::Start("main".to_owned())) == 6)
        .await;
    bed.shared.with(|world| {
        let starts: Vec<_> = world
            .calls
            .iter()
            .filter(|(_, call)| *call == Call::Start("main".to_owned()))
            .map(|(at, _)| *at)
            .collect();
        assert_eq!(starts[5].duration_since(starts[4]).as_secs(), 80);
    });
    bed.stop().await;
}
