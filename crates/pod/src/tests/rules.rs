//! What holds whatever happens.

use std::time::Duration;

use krustlet_model::status::Phase;
use proptest::prelude::*;
use serde_json::json;

use super::bed::{Bed, Call, Guest, pod};

/// Something that happens to a pod.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Time goes by, in seconds.
    Wait(u64),
    /// A container ends, if it runs.
    Exit(&'static str, i32),
    KillSandbox,
    KillAgent,
    RestartAgent,
    Delete(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let name = prop_oneof![Just("first"), Just("side"), Just("a"), Just("b")];
    prop_oneof![
        4 => (0_u64..90).prop_map(Step::Wait),
        4 => (name, 0..3).prop_map(|(name, code)| Step::Exit(name, code)),
        1 => Just(Step::KillSandbox),
        1 => Just(Step::KillAgent),
        1 => Just(Step::RestartAgent),
        1 => (1_i64..40).prop_map(Step::Delete),
    ]
}

async fn live(policy: &str, stubborn: bool, steps: Vec<Step>) {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| {
        world.guests.insert("first".to_owned(), Guest::Silent);
        if stubborn {
            world.guests.insert("a".to_owned(), Guest::Stubborn);
        }
    });
    bed.put(pod(json!({
        "restartPolicy": policy,
        "terminationGracePeriodSeconds": 9,
        "initContainers": [
            {"name": "first", "image": "i:1"},
            {"name": "side", "image": "i:1", "restartPolicy": "Always"},
        ],
        "containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "i:1"}],
    })));
    let mut begun_at_deletion = None;
    for step in steps {
        if bed.shared.with(|world| !world.deleted.is_empty()) {
            // From now on its source has it no more.
            break;
        }
        match step {
            Step::Wait(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            Step::Exit(name, code) => {
                if bed.shared.is_entered("u", name) {
                    bed.shared.exit("u", name, code);
                }
            }
            Step::KillSandbox => bed.shared.kill_sandbox("u"),
            Step::KillAgent => bed = bed.kill().await.next(true).await,
            Step::RestartAgent => bed = bed.stop().await.next(true).await,
            Step::Delete(grace) if begun_at_deletion.is_none() => {
                bed.delete("u", grace);
                // What is under way may still be taken note of.
                tokio::time::sleep(Duration::from_millis(1)).await;
                begun_at_deletion = Some(bed.shared.with(|world| starts(world)));
            }
            Step::Delete(grace) => bed.delete("u", grace),
        }
    }
    if begun_at_deletion.is_none() {
        bed.delete("u", 1);
    }
    bed.until("it is removed", |world| !world.deleted.is_empty()).await;
    bed.shared.with(|world| {
        assert!(world.sandboxes.is_empty(), "a sandbox is left");
        if let Some(begun) = begun_at_deletion {
            assert_eq!(starts(world), begun, "started while it was being stopped");
        }
        check_statuses(&world.statuses["u"]);
    });
    bed.stop().await;
}

fn starts(world: &super::bed::World) -> usize {
    world.calls.iter().filter(|(_, call)| matches!(call, Call::Start(_))).count()
}

fn check_statuses(all: &[k8s_openapi::api::core::v1::PodStatus]) {
    for pair in all.windows(2) {
        let phase = |index: usize| Phase::parse(pair[index].phase.as_deref().unwrap()).unwrap();
        if phase(0).is_terminal() {
            assert_eq!(phase(0), phase(1), "left a terminal phase");
        }
        let counts = |index: usize| {
            let status: &k8s_openapi::api::core::v1::PodStatus = &pair[index];
            let lists = [&status.init_container_statuses, &status.container_statuses];
            let of = lists.into_iter().flatten().flatten();
            of.map(|container| container.restart_count).collect::<Vec<_>>()
        };
        for (before, after) in counts(0).into_iter().zip(counts(1)) {
            assert!(after >= before, "a restart count fell");
        }
        assert_eq!(pair[0].start_time, pair[1].start_time);
    }
    for container in all.iter().flat_map(|status| status.container_statuses.iter().flatten()) {
        // A run is named and counted together with its state.
        let state = container.state.as_ref().unwrap();
        let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let end = state.terminated.as_ref().or(last.filter(|_| state.waiting.is_some()));
        if let Some(id) = end.and_then(|end| end.container_id.as_ref()) {
            assert_eq!(container.container_id.as_ref(), Some(id), "an id without its run");
        }
    }
    let last = all.last().expect("something was reported");
    assert!(Phase::parse(last.phase.as_deref().unwrap()).unwrap().is_terminal());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_pod_ends_whatever_happens_and_never_starts_while_it_ends(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        stubborn: bool,
        steps in prop::collection::vec(step(), 0..14),
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(live(policy, stubborn, steps));
    }
}
