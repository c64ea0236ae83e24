//! What probes do to pods.

use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use krustlet_network::{NetworkState, PodRanges};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::bed::{Bed, Call, Guest, is_ready, main_of, one, pod, waits};
use crate::outside::ProbeAnswer;

fn fails() -> ProbeAnswer {
    ProbeAnswer::Failure("HTTP probe failed with statuscode: 503".to_owned())
}

/// A pod whose container has these probes.
fn with(policy: &str, probes: Value) -> Value {
    let mut pod = one(policy);
    for (name, probe) in probes.as_object().unwrap() {
        pod["spec"]["containers"][0][name] = probe.clone();
    }
    pod
}

fn is_running(status: &PodStatus) -> bool {
    main_of(status).state.as_ref().is_some_and(|state| state.running.is_some())
}

fn answer(bed: &Bed, port: u16, answer: ProbeAnswer) {
    bed.shared.with(|world| world.answers.insert(port, answer));
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_ready_when_its_probe_says_so() {
    let mut bed = Bed::new().await;
    answer(&bed, 80, fails());
    bed.put(with(
        "Always",
        json!({"readinessProbe": {
            "httpGet": {"port": 80, "path": "/"}, "periodSeconds": 5, "failureThreshold": 2,
        }}),
    ));
    let status = bed.until_status("u", "it runs", is_running).await;
    assert!(!is_ready(&status) && !main_of(&status).ready);
    assert_eq!(main_of(&status).started, Some(true));
    bed.until("it is told", |world| world.has_event("Unhealthy")).await;
    let told = bed.shared.with(|world| world.events.last().cloned().unwrap());
    assert_eq!(told.1, "Readiness probe failed: HTTP probe failed with statuscode: 503");

    answer(&bed, 80, ProbeAnswer::Success);
    bed.until_status("u", "it is ready", is_ready).await;
    answer(&bed, 80, fails());
    bed.until_status("u", "it is not ready", |status| !is_ready(status)).await;
    bed.shared.with(|world| {
        let times: Vec<_> = world.probed.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert!(times.iter().all(|wait| *wait == Duration::from_secs(5)), "{times:?}");
        let failed = world.events.iter().filter(|(reason, _)| reason == "Unhealthy").count();
        assert!(failed >= 3, "two failures are needed");
        assert_eq!(world.count(&Call::Start("main".to_owned())), 1, "it is never stopped");
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_goes_to_the_pods_first_address() {
    let own = |ranges: &[&str]| NetworkState::Own(PodRanges::parse(ranges).unwrap());
    for (state, host_network, expected) in [
        (NetworkState::Host { why: None }, false, "127.0.0.1"),
        (own(&["10.244.1.0/24"]), true, "127.0.0.1"),
        (own(&["10.244.1.0/24", "fd00:1::/64"]), false, "10.244.1.2"),
        (own(&["fd00:1::/64"]), false, "fd00:1::2"),
    ] {
        let mut bed = Bed::with_network(state).await;
        let probe = json!({"readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 5}});
        let mut pod = with("Always", probe);
        pod["spec"]["hostNetwork"] = host_network.into();
        bed.put(pod);
        bed.until_status("u", "it is ready", is_ready).await;
        bed.shared.with(|world| {
            let at: Vec<_> = world.probed_at.iter().map(ToString::to_string).collect();
            assert_eq!(at, [expected]);
        });
        bed.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_not_alive_restarts() {
    let mut bed = Bed::new().await;
    bed.put(with(
        "Always",
        json!({"livenessProbe": {
            "tcpSocket": {"port": 81}, "periodSeconds": 1, "failureThreshold": 2,
            "terminationGracePeriodSeconds": 7,
        }}),
    ));
    bed.until_status("u", "it runs", is_running).await;
    sleep(Duration::from_secs(10)).await;
    bed.shared.with(|world| assert!(!world.has_event("Killing"), "it is alive"));
    answer(&bed, 81, fails());
    let has_restarted =
        |status: &PodStatus| is_running(status) && main_of(status).restart_count == 1;
    let status = bed.until_status("u", "it restarts", has_restarted).await;
    let last = main_of(&status).last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(last.exit_code, 143);
    bed.shared.with(|world| {
        let message = "Container main failed liveness probe, will be restarted".to_owned();
        assert!(world.events.contains(&("Killing".to_owned(), message)), "{:?}", world.events);
        assert_eq!(world.count(&Call::Stop("main".to_owned(), Duration::from_secs(7))), 1);
    });
    let status = bed
        .until_status("u", "it backs off", |status| waits(status) == Some("CrashLoopBackOff"))
        .await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_ends_with_the_run_that_it_is_of() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.silent_ports.insert(80));
    bed.put(with(
        "Always",
        json!({"livenessProbe": {"tcpSocket": {"port": 80}, "timeoutSeconds": 1_000_000}}),
    ));
    bed.until("it is probed", |world| world.probed.len() == 1).await;
    bed.shared.exit("u", "main", 1);
    bed.until("the next run is probed", |world| world.probed.len() == 2).await;
    bed.until("only that is under way", |world| world.unanswered == 1).await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_decides_whether_a_container_that_failed_runs_again() {
    for (policy, again) in [("OnFailure", true), ("Never", false)] {
        let mut bed = Bed::new().await;
        bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Stubborn));
        answer(&bed, 81, fails());
        bed.put(with(policy, json!({"livenessProbe": {"tcpSocket": {"port": 81}}})));
        bed.until("it is asked to stop", |world| world.has_event("Killing")).await;
        // It ends well, which by itself would end the pod.
        bed.shared.exit("u", "main", 0);
        if again {
            let status = bed
                .until_status("u", "it runs again", |status| main_of(status).restart_count == 1)
                .await;
            assert_eq!(status.phase.as_deref(), Some("Running"));
            bed.shared.with(|world| {
                let all = &world.statuses["u"];
                assert!(all.iter().all(|of| of.phase.as_deref() != Some("Succeeded")), "{all:#?}");
            });
        } else {
            bed.until_phase("u", "Succeeded").await;
            bed.shared.with(|world| {
                let message = "Container main failed liveness probe".to_owned();
                assert!(world.events.contains(&("Killing".to_owned(), message)));
            });
        }
        bed.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_does_not_start_is_restarted_and_probed_for_nothing_else() {
    let mut bed = Bed::new().await;
    answer(&bed, 80, fails());
    bed.put(with(
        "Always",
        json!({
            "startupProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 2, "failureThreshold": 3},
            "livenessProbe": {"tcpSocket": {"port": 81}, "periodSeconds": 1},
            "readinessProbe": {"tcpSocket": {"port": 82}, "periodSeconds": 1},
        }),
    ));
    let status = bed.until_status("u", "it runs", is_running).await;
    assert_eq!((main_of(&status).started, main_of(&status).ready), (Some(false), false));
    bed.until_status("u", "it restarts", |status| main_of(status).restart_count == 1).await;
    bed.shared.with(|world| {
        let message = "Container main failed startup probe, will be restarted".to_owned();
        assert!(world.events.contains(&("Killing".to_owned(), message)), "{:?}", world.events);
        assert!(world.probed.iter().all(|(_, port)| *port == 80), "{:?}", world.probed);
    });
    answer(&bed, 80, ProbeAnswer::Success);
    let status = bed.until_status("u", "it is ready", is_ready).await;
    assert_eq!(main_of(&status).started, Some(true));
    let before = bed.shared.with(|world| world.probed.len());
    sleep(Duration::from_secs(5)).await;
    bed.shared.with(|world| {
        let later: Vec<u16> = world.probed[before..].iter().map(|(_, port)| *port).collect();
        assert!(later.contains(&81) && later.contains(&82) && !later.contains(&80), "{later:?}");
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_holds_the_others_up_until_it_has_started() {
    let mut bed = Bed::new().await;
    answer(&bed, 80, fails());
    bed.put(pod(json!({
        "initContainers": [
            {"name": "side", "image": "i:1", "restartPolicy": "Always",
                "startupProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1, "failureThreshold": 1000}},
            {"name": "init", "image": "i:1"},
        ],
        "containers": [{"name": "main", "image": "i:1"}],
    })));
    bed.shared.with(|world| world.guests.insert("init".to_owned(), Guest::Exits(0)));
    bed.until("the sidecar is probed", |world| world.probed.len() > 5).await;
    assert_eq!(bed.shared.with(|world| world.count(&Call::Start("init".to_owned()))), 0);
    answer(&bed, 80, ProbeAnswer::Success);
    bed.until_phase("u", "Running").await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn readiness_does_not_flap_when_the_agent_restarts() {
    let mut bed = Bed::new().await;
    bed.put(with(
        "Always",
        json!({
            "startupProbe": {"tcpSocket": {"port": 80}},
            "readinessProbe": {"tcpSocket": {"port": 80}, "failureThreshold": 1},
        }),
    ));
    let before = bed.until_status("u", "it is ready", is_ready).await;
    // Long enough for the checkpoint, which is written at once.
    sleep(Duration::from_millis(1)).await;
    let left = bed.kill().await;
    let (reports, probes) =
        left.shared.with(|world| (world.statuses["u"].len(), world.probed.len()));
    let bed = left.next(true).await;
    bed.until("it is probed again", |world| world.probed.len() > probes + 1).await;
    bed.shared.with(|world| {
        assert_eq!(world.statuses["u"].len(), reports);
        assert_eq!(world.statuses["u"].last(), Some(&before));
    });
    answer(&bed, 80, fails());
    bed.until_status("u", "it is not ready", |status| !is_ready(status)).await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_is_probed_for_readiness_alone() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.guests.insert("main".to_owned(), Guest::Stubborn));
    bed.put(with("Always", json!({
        "livenessProbe": {"tcpSocket": {"port": 81}, "periodSeconds": 1, "failureThreshold": 1},
        "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1, "failureThreshold": 1},
    })));
    bed.until_status("u", "it is ready", is_ready).await;
    answer(&bed, 80, fails());
    answer(&bed, 81, fails());
    bed.delete("u", 20);
    bed.until_status("u", "it is not ready", |status| !is_ready(status) && is_running(status))
        .await;
    bed.until("it is gone", |world| !world.deleted.is_empty()).await;
    bed.shared.with(|world| {
        let killed = world.events.iter().filter(|(reason, _)| reason == "Killing");
        let killed: Vec<_> = killed.map(|(_, message)| message.as_str()).collect();
        assert_eq!(killed, ["Stopping container main"]);
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_told_and_says_nothing() {
    let mut bed = Bed::new().await;
    answer(&bed, 80, ProbeAnswer::Broken("unexpected EOF".to_owned()));
    bed.put(with(
        "Always",
        json!({
            "livenessProbe": {"httpGet": {"port": 80}, "failureThreshold": 1},
            "readinessProbe": {"httpGet": {"port": 81}, "failureThreshold": 1, "periodSeconds": 1},
        }),
    ));
    bed.until_status("u", "it is ready", is_ready).await;
    answer(&bed, 81, ProbeAnswer::Broken("unexpected EOF".to_owned()));
    bed.until("both are told", |world| {
        ["Liveness", "Readiness"].iter().all(|kind| {
            let message =
                format!("{kind} probe errored and resulted in failure state: unexpected EOF");
            world.events.contains(&("Unhealthy".to_owned(), message))
        })
    })
    .await;
    bed.shared.with(|world| {
        assert!(!world.has_event("Killing"));
        assert!(is_ready(world.statuses["u"].last().unwrap()));
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_cannot_be_made_is_told_and_says_nothing() {
    let mut bed = Bed::new().await;
    bed.put(with(
        "Always",
        json!({
            "livenessProbe": {"tcpSocket": {"port": "nowhere"}, "failureThreshold": 1},
            "readinessProbe": {"httpGet": {"port": 80}},
        }),
    ));
    let warning = ProbeAnswer::Warning("Probe terminated redirects, Response body: ".to_owned());
    answer(&bed, 80, warning);
    bed.until_status("u", "it is ready", is_ready).await;
    sleep(Duration::from_mins(1)).await;
    bed.shared.with(|world| {
        let has = |reason: &str, message: &str| {
            world.events.contains(&(reason.to_owned(), message.to_owned()))
        };
        assert!(
            has(
                "Unhealthy",
                "Liveness probe errored and resulted in unknown state: port \"nowhere\" not found",
            ),
            "{:?}",
            world.events
        );
        assert!(has(
            "ProbeWarning",
            "Readiness probe warning: Probe terminated redirects, Response body: ",
        ));
        assert!(!world.has_event("Killing"));
        let told = world.events.iter().filter(|(reason, _)| reason == "Unhealthy").count();
        assert!(told < 10, "once a period");
    });
    bed.stop().await;
}
