//! What runs again, and when.

use serde_json::json;

use super::bed::{Bed, Call, Guest, main_of, one, pod, waits};

fn starts(bed: &Bed) -> Vec<u64> {
    bed.shared.with(|world| {
        let mut times = Vec::new();
        for (at, call) in &world.calls {
            if matches!(call, Call::Start(_)) {
                times.push(*at);
            }
        }
        times.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs()).collect()
    })
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_waits_longer_and_longer() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Exits(3)));
    bed.put(one("Always"));
    bed.until("it was started eight times", |world| {
        world.count(&Call::Start("main".to_owned())) == 8
    })
    .await;
    assert_eq!(starts(&bed), [0, 10, 20, 40, 80, 160, 300]);
    let status = bed
        .until_status("u", "it backs off", |status| {
            main_of(status).restart_count == 7 && waits(status) == Some("CrashLoopBackOff")
        })
        .await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let container = main_of(&status);
    let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 5m0s restarting failed container=main pod=p_n(u)"),
    );
    let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(last.exit_code, 3);
    assert_eq!(last.container_id, container.container_id);
    bed.until("each run is forgotten", |world| world.count(&Call::Remove("main".to_owned())) == 8)
        .await;
    bed.shared.with(|world| {
        let message = "Back-off restarting failed container main in pod p_n(u)".to_owned();
        assert!(world.events.contains(&("BackOff".to_owned(), message)));
        let mut ids: Vec<_> = world.launches.iter().map(|spec| spec.id.clone()).collect();
        ids.dedup();
        assert_eq!(ids.len(), 8, "each run has an id of its own");
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_logs_of_the_last_two_runs_are_kept() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Exits(3)));
    bed.put(one("Always"));
    bed.until("it was started five times", |world| {
        world.count(&Call::Start("main".to_owned())) == 5
    })
    .await;
    let directory = bed.home.path().join("logs/n_p_u/main");
    let names = || {
        let entries = std::fs::read_dir(&directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    // The removal tells nobody; it is over long before the next run.
    tokio::time::timeout(std::time::Duration::from_mins(1), async {
        while names() != ["3.log", "4.log"] {
            tokio::task::spawn_blocking(|| {}).await.unwrap();
        }
    })
    .await
    .expect("all others are removed");
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn never_means_never() {
    for (code, phase) in [(0, "Succeeded"), (4, "Failed")] {
        let mut bed = Bed::new().await;
        bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Exits(code)));
        bed.put(one("Never"));
        let status = bed.until_phase("u", phase).await;
        let end = main_of(&status).state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!(end.exit_code, code);
        bed.until("its sandbox is gone", |world| world.sandboxes.is_empty()).await;
        tokio::time::sleep(std::time::Duration::from_secs(1000)).await;
        assert_eq!(bed.shared.with(|world| world.count(&Call::Start("main".to_owned()))), 1);
        bed.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn on_failure_restarts_until_it_succeeds() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Exits(1)));
    bed.put(one("OnFailure"));
    bed.until("it was tried three times", |world| {
        world.count(&Call::Start("main".to_owned())) == 3
    })
    .await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Exits(0)));
    let status = bed.until_phase("u", "Succeeded").await;
    assert_eq!(main_of(&status).restart_count, 3);
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_ends_with_the_pod_and_does_not_decide_it() {
    let mut bed = Bed::new().await;
    bed.put(pod(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "side", "image": "i:1", "restartPolicy": "Always"}],
        "containers": [{"name": "main", "image": "i:1"}],
    })));
    bed.until_phase("u", "Running").await;
    bed.shared.exit("u", "side", 9);
    bed.until("the sidecar restarts", |world| world.count(&Call::Start("side".to_owned())) == 2)
        .await;
    bed.shared.exit("u", "main", 0);
    let status = bed.until_phase("u", "Succeeded").await;
    assert_eq!(main_of(&status).restart_count, 0);
    assert!(bed.calls().iter().any(|call| matches!(call, Call::Stop(name, _) if name == "side")));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_init_container_that_fails_for_good_fails_the_pod() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("first".to_owned(), Guest::Exits(5)));
    bed.put(pod(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "first", "image": "i:1"}],
        "containers": [{"name": "main", "image": "i:1"}],
    })));
    bed.until_phase("u", "Failed").await;
    assert_eq!(bed.shared.with(|world| world.count(&Call::Create("main".to_owned()))), 0);
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_dies_is_made_anew() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("first".to_owned(), Guest::Exits(0)));
    bed.put(pod(json!({
        "initContainers": [{"name": "first", "image": "i:1"}],
        "containers": [{"name": "main", "image": "i:1"}],
    })));
    bed.until_phase("u", "Running").await;
    bed.shared.kill_sandbox("u");
    let status = bed
        .until_status("u", "it runs again", |status| {
            main_of(status).restart_count == 1
                && main_of(status).state.as_ref().unwrap().running.is_some()
        })
        .await;
    let last = main_of(&status).last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("Error")));
    bed.shared.with(|world| {
        assert!(world.has_event("SandboxChanged"));
        assert_eq!(world.count(&Call::Sandbox), 2);
        assert_eq!(world.count(&Call::Start("first".to_owned())), 2, "a new sandbox, new init");
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_dies_before_a_guest_runs_waits_longer_and_longer() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Deadly));
    bed.put(one("Always"));
    bed.until("there were six", |world| world.count(&Call::Sandbox) == 6).await;
    let waits: Vec<_> = bed.shared.with(|world| {
        let made = world.calls.iter().filter(|(_, call)| *call == Call::Sandbox);
        let times: Vec<_> = made.map(|(at, _)| *at).collect();
        times.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs()).collect()
    });
    assert_eq!(waits, [0, 1, 2, 4, 8]);
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Serves));
    bed.until_phase("u", "Running").await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_must_not_run_twice_dies_with_its_sandbox() {
    let mut bed = Bed::new().await;
    bed.put(one("Never"));
    bed.until_phase("u", "Running").await;
    bed.shared.kill_sandbox("u");
    let status = bed.until_phase("u", "Failed").await;
    let end = main_of(&status).state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(end.exit_code, 137);
    assert_eq!(bed.shared.with(|world| world.count(&Call::Sandbox)), 1);
    bed.stop().await;
}
