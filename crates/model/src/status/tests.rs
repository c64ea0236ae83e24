use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    ContainerId, ContainerName,
    observed::{
        ContainerKind, ContainerObserved, ContainerState, PodFailure, ResizeObserved,
        ResizePending, Terminated,
    },
    resize::ContainerResources,
};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3},
        "spec": spec,
    }))
    .unwrap()
}

fn one_container(policy: &str) -> Pod {
    pod(json!({"restartPolicy": policy, "containers": [{"name": "main", "image": "i:1"}]}))
}

fn with_init_and_sidecar() -> Pod {
    pod(json!({
        "restartPolicy": "OnFailure",
        "initContainers": [
            {"name": "init", "image": "i"},
            {"name": "side", "image": "i", "restartPolicy": "Always"},
        ],
        "containers": [{"name": "main", "image": "i"}],
    }))
}

fn waiting() -> ContainerState {
    ContainerState::Waiting { reason: String::new(), message: String::new() }
}

fn running() -> ContainerState {
    ContainerState::Running { started_at: at(1) }
}

fn ended(exit_code: i32) -> ContainerState {
    ContainerState::Terminated(end(exit_code))
}

fn end(exit_code: i32) -> Terminated {
    Terminated {
        exit_code,
        reason: if exit_code == 0 { "Completed" } else { "Error" }.to_owned(),
        message: String::new(),
        started_at: Some(at(1)),
        finished_at: at(2),
        id: Some(ContainerId::from_bytes([7; 32])),
    }
}

fn container(name: &str, kind: ContainerKind, state: ContainerState) -> ContainerObserved {
    let runs = matches!(state, ContainerState::Running { .. });
    let begun = !matches!(state, ContainerState::Waiting { .. });
    ContainerObserved {
        name: ContainerName::new(name),
        kind,
        image: "i:1".to_owned(),
        image_id: "i@sha256:00".to_owned(),
        id: begun.then(|| ContainerId::from_bytes([7; 32])),
        restart_count: 0,
        state,
        last: None,
        before_last: None,
        started: runs,
        ready: runs,
        resources: None,
    }
}

fn app(state: ContainerState) -> ContainerObserved {
    container("main", ContainerKind::App, state)
}

fn seen(containers: Vec<ContainerObserved>) -> PodObserved {
    PodObserved {
        started_at: at(0),
        failure: None,
        sandbox_ready: true,
        had_sandbox: true,
        pod_ips: vec!["10.0.0.7".parse().unwrap()],
        host_ips: vec!["192.0.2.1".parse().unwrap()],
        containers,
        terminating: false,
        resize: ResizeObserved::default(),
    }
}

fn phase_of(status: &PodStatus) -> &str {
    status.phase.as_deref().unwrap()
}

fn condition<'a>(status: &'a PodStatus, type_: &str) -> &'a PodCondition {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_).unwrap()
}

fn main_status(status: &PodStatus) -> &ContainerStatus {
    status.container_statuses.iter().flatten().find(|status| status.name == "main").unwrap()
}

#[test]
fn the_phase_follows_policy_and_exit_codes() {
    let table = [
        ("Always", waiting(), "Pending"),
        ("Always", running(), "Running"),
        ("Always", ended(0), "Running"),
        ("Always", ended(1), "Running"),
        ("OnFailure", ended(0), "Succeeded"),
        ("OnFailure", ended(1), "Running"),
        ("Never", running(), "Running"),
        ("Never", ended(0), "Succeeded"),
        ("Never", ended(3), "Failed"),
    ];
    for (policy, state, phase) in table {
        let pod = one_container(policy);
        let status = pod_status(&pod, &seen(vec![app(state.clone())]), None, at(5));
        assert_eq!(phase_of(&status), phase, "{policy} {state:?}");
    }
}

#[test]
fn one_failure_among_successes_fails_the_pod() {
    let pod = pod(json!({
        "restartPolicy": "Never",
        "containers": [{"name": "main"}, {"name": "other"}],
    }));
    let both = |first, second| {
        let containers = vec![app(first), container("other", ContainerKind::App, second)];
        pod_status(&pod, &seen(containers), None, at(5))
    };
    assert_eq!(phase_of(&both(ended(0), ended(1))), "Failed");
    assert_eq!(phase_of(&both(ended(0), ended(0))), "Succeeded");
    assert_eq!(phase_of(&both(ended(1), running())), "Running");
}

#[test]
fn init_containers_hold_the_pod_in_pending() {
    let pod = with_init_and_sidecar();
    let status = |init, side, main| {
        let containers = vec![
            container("init", ContainerKind::Init, init),
            container("side", ContainerKind::Sidecar, side),
            app(main),
        ];
        pod_status(&pod, &seen(containers), None, at(5))
    };
    let first = status(running(), waiting(), waiting());
    assert_eq!(phase_of(&first), "Pending");
    assert_eq!(
        condition(&first, "Initialized").message.as_deref(),
        Some("containers with incomplete status: [init side]"),
    );
    let waiting_main = main_status(&first).state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting_main.reason.as_deref(), Some("PodInitializing"));

    assert_eq!(phase_of(&status(ended(0), waiting(), waiting())), "Pending");
    assert_eq!(phase_of(&status(ended(0), running(), running())), "Running");
    assert_eq!(phase_of(&status(ended(0), ended(1), running())), "Running");
    assert_eq!(phase_of(&status(ended(0), ended(1), ended(0))), "Succeeded");
    let done = status(ended(0), ended(1), ended(0));
    assert_eq!(condition(&done, "Initialized").reason.as_deref(), Some("PodCompleted"));
}

#[test]
fn a_failed_init_container_fails_a_never_pod() {
    let mut pod = with_init_and_sidecar();
    let containers = vec![
        container("init", ContainerKind::Init, ended(4)),
        container("side", ContainerKind::Sidecar, waiting()),
        app(waiting()),
    ];
    let again = pod_status(&pod, &seen(containers.clone()), None, at(5));
    assert_eq!(phase_of(&again), "Pending");
    pod.spec.as_mut().unwrap().restart_policy = Some("Never".to_owned());
    assert_eq!(phase_of(&pod_status(&pod, &seen(containers), None, at(5))), "Failed");
}

#[test]
fn a_running_pod_is_ready_in_every_word() {
    let pod = one_container("Always");
    let status = pod_status(&pod, &seen(vec![app(running())]), None, at(5));
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(
        json,
        json!({
            "observedGeneration": 3,
            "phase": "Running",
            "hostIP": "192.0.2.1",
            "hostIPs": [{"ip": "192.0.2.1"}],
            "podIP": "10.0.0.7",
            "podIPs": [{"ip": "10.0.0.7"}],
            "qosClass": "BestEffort",
            "startTime": "2027-01-15T08:00:00Z",
            "conditions": (["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
                .map(|type_| json!({
                    "type": type_,
                    "status": "True",
                    "observedGeneration": 3,
                    "lastTransitionTime": "2027-01-15T08:00:05Z",
                }))),
            "containerStatuses": [{
                "name": "main",
                "image": "i:1",
                "imageID": "i@sha256:00",
                "containerID": format!("wasmtime://{}", "07".repeat(32)),
                "ready": true,
                "started": true,
                "restartCount": 0,
                "resources": {},
                "state": {"running": {"startedAt": "2027-01-15T08:00:01Z"}},
                "lastState": {},
            }],
        })
    );
}

#[test]
fn a_crash_loop_shows_its_wait_and_its_last_end() {
    let pod = one_container("Always");
    let mut main = app(ContainerState::Waiting {
        reason: "CrashLoopBackOff".to_owned(),
        message: "back-off 10s".to_owned(),
    });
    main.last = Some(end(3));
    main.before_last = Some(end(2));
    main.restart_count = 2;
    let mut observed = seen(vec![main]);
    let status = pod_status(&pod, &observed, None, at(5));
    assert_eq!(phase_of(&status), "Running");
    let container = main_status(&status);
    assert_eq!(container.restart_count, 2);
    assert_eq!(
        container.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(),
        Some("CrashLoopBackOff")
    );
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);

    // Deleted meanwhile: the last end is the end.
    observed.terminating = true;
    observed.sandbox_ready = false;
    let status = pod_status(&pod, &observed, Some(&status), at(6));
    assert_eq!(phase_of(&status), "Failed");
    let container = main_status(&status);
    assert_eq!(container.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 2);
}

#[test]
fn a_pod_deleted_before_it_began_says_that_nobody_knows() {
    let pod = one_container("Always");
    let mut observed = seen(vec![app(waiting())]);
    observed.terminating = true;
    observed.sandbox_ready = false;
    let status = pod_status(&pod, &observed, None, at(5));
    assert_eq!(phase_of(&status), "Failed");
    let state = main_status(&status).state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((state.exit_code, state.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    for type_ in ["Ready", "ContainersReady"] {
        let found = condition(&status, type_);
        assert_eq!(found.reason.as_deref(), Some("ContainersNotReady"), "it is {type_}");
        assert_eq!(found.message.as_deref(), Some("containers with unready status: [main]"));
    }
    let message =
        |status: &PodStatus| condition(status, "PodReadyToStartContainers").message.clone();
    assert_eq!(message(&status).as_deref(), Some("pod sandbox is not ready"));
    observed.had_sandbox = false;
    let status = pod_status(&pod, &observed, None, at(5));
    assert_eq!(message(&status).as_deref(), Some("no pod sandbox exists"));
}

#[test]
fn a_failure_is_reported_when_nothing_runs_any_more() {
    let pod = one_container("Always");
    let mut observed = seen(vec![app(running())]);
    let before = pod_status(&pod, &observed, None, at(1));
    observed.terminating = true;
    observed.failure =
        Some(PodFailure { reason: "DeadlineExceeded".to_owned(), message: "too long".to_owned() });
    let during = pod_status(&pod, &observed, Some(&before), at(2));
    assert_eq!((phase_of(&during), during.reason.as_deref()), ("Running", None));

    observed.containers = vec![app(ended(143))];
    let during = pod_status(&pod, &observed, Some(&during), at(3));
    assert_eq!(phase_of(&during), "Running", "the sandbox is still there");

    observed.sandbox_ready = false;
    let after = pod_status(&pod, &observed, Some(&during), at(4));
    assert_eq!((phase_of(&after), after.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
    assert_eq!(condition(&after, "Ready").reason.as_deref(), Some("PodFailed"));
    let last = pod_status(&pod, &observed, Some(&after), at(9));
    assert_eq!(last, after, "nothing changed, so nothing is to be sent");
}

#[test]
fn a_rejected_pod_names_no_containers() {
    let mut observed = seen(Vec::new());
    observed.sandbox_ready = false;
    observed.pod_ips.clear();
    observed.failure = Some(PodFailure {
        reason: "OutOfcpu".to_owned(),
        message: "Pod was rejected: no".to_owned(),
    });
    let status = pod_status(&one_container("Always"), &observed, None, at(5));
    assert_eq!((phase_of(&status), status.reason.as_deref()), ("Failed", Some("OutOfcpu")));
    assert_eq!(status.container_statuses, None);
    assert_eq!(status.pod_ip, None);
}

#[test]
fn what_others_wrote_is_kept() {
    let mut pod = one_container("Always");
    pod.spec.as_mut().unwrap().readiness_gates =
        serde_json::from_value(json!([{"conditionType": "example.org/up"}])).unwrap();
    let observed = seen(vec![app(running())]);
    let status = pod_status(&pod, &observed, None, at(5));
    assert_eq!(
        condition(&status, "Ready").message.as_deref(),
        Some("corresponding condition of pod readiness gate \"example.org/up\" does not exist."),
    );
    assert_eq!(condition(&status, "ContainersReady").status, "True");

    pod.status = serde_json::from_value(json!({
        "nominatedNodeName": "m",
        "conditions": [{"type": "example.org/up", "status": "True"}],
    }))
    .unwrap();
    let status = pod_status(&pod, &observed, Some(&status), at(6));
    assert_eq!(condition(&status, "Ready").status, "True");
    assert_eq!(status.nominated_node_name.as_deref(), Some("m"));
    assert_eq!(condition(&status, "example.org/up").observed_generation, None);
}

#[test]
fn messages_share_twelve_kibibytes() {
    let pod = pod(json!({"containers": [
        {"name": "main"}, {"name": "b"}, {"name": "c"}, {"name": "d"}, {"name": "e"}, {"name": "f"},
    ]}));
    let mut main = app(waiting());
    main.last = Some(Terminated { message: "ä".repeat(4096), ..end(1) });
    let status = pod_status(&pod, &seen(vec![main]), None, at(5));
    let last = main_status(&status).last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(last.message.as_ref().unwrap().len(), 2048);
}

#[test]
fn a_restart_of_the_node_forgets_neither_counts_nor_ends() {
    let pod = one_container("Always");
    let mut main = app(running());
    main.restart_count = 4;
    main.last = Some(end(9));
    let before = pod_status(&pod, &seen(vec![main]), None, at(1));
    let status = pod_status(&pod, &seen(vec![app(running())]), Some(&before), at(2));
    let container = main_status(&status);
    assert_eq!(container.restart_count, 4);
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 9);
}

fn resources(cpu: &str) -> Value {
    json!({"limits": {"cpu": cpu}, "requests": {"cpu": cpu}})
}

#[test]
fn what_runs_is_shown_with_what_it_has() {
    let pod = pod(json!({"containers": [{"name": "main", "resources": resources("2")}]}));
    let had: ContainerResources = serde_json::from_value(resources("1")).unwrap();
    let mut main = app(running());
    main.resources = Some(had);
    let status = pod_status(&pod, &seen(vec![main.clone()]), None, at(5));
    let shown = serde_json::to_value(main_status(&status)).unwrap();
    assert_eq!(shown["resources"], resources("1"));
    assert_eq!(shown["allocatedResources"], json!({"cpu": "2"}));
    let progress = condition(&status, "PodResizeInProgress");
    assert_eq!((progress.status.as_str(), &progress.reason), ("True", &None));

    let mut failed = seen(vec![main.clone()]);
    failed.resize.error = Some("too little".to_owned());
    let status = pod_status(&pod, &failed, Some(&status), at(6));
    let progress = condition(&status, "PodResizeInProgress");
    assert_eq!(progress.reason.as_deref(), Some("Error"));
    assert_eq!(progress.message.as_deref(), Some("too little"));

    // The next run has what it is allotted, and so has one that was told.
    main.state = ended(1);
    let status = pod_status(&pod, &seen(vec![main.clone()]), None, at(7));
    let shown = serde_json::to_value(main_status(&status)).unwrap();
    assert_eq!(shown["resources"], resources("2"));
    main.state = running();
    main.resources = Some(serde_json::from_value(resources("2000m")).unwrap());
    let status = pod_status(&pod, &seen(vec![main]), None, at(8));
    let is_resize = |condition: &PodCondition| condition.type_.starts_with("PodResize");
    assert!(!status.conditions.unwrap().iter().any(is_resize));
}

#[test]
fn a_resize_without_room_is_pending() {
    let mut observed = seen(vec![app(running())]);
    let (reason, message) = ("Deferred".to_owned(), "no room".to_owned());
    observed.resize.pending = Some(ResizePending { reason, message });
    let status = pod_status(&one_container("Never"), &observed, None, at(5));
    let pending = condition(&status, "PodResizePending");
    assert_eq!((pending.status.as_str(), pending.observed_generation), ("True", Some(3)));
    assert_eq!(pending.reason.as_deref(), Some("Deferred"));
    assert_eq!(pending.message.as_deref(), Some("no room"));

    observed.containers = vec![app(ended(0))];
    let status = pod_status(&one_container("Never"), &observed, Some(&status), at(6));
    let is_resize = |condition: &PodCondition| condition.type_.starts_with("PodResize");
    assert!(!status.conditions.unwrap().iter().any(is_resize), "nothing is waited for");
}

#[test]
fn a_debugger_says_that_it_is_not_run() {
    let pod = pod(json!({
        "containers": [{"name": "main", "image": "i"}],
        "ephemeralContainers": [{"name": "zed", "image": "z:1"}, {"name": "debugger", "image": "busybox"}],
    }));
    let status = pod_status(&pod, &seen(vec![app(running())]), None, at(5));
    assert_eq!(phase_of(&status), "Running");
    assert_eq!(condition(&status, "Ready").status, "True");
    let shown = serde_json::to_value(status.ephemeral_container_statuses.unwrap()).unwrap();
    assert_eq!(shown[0]["name"], "debugger");
    assert_eq!(shown[0]["image"], "busybox");
    assert_eq!(
        shown[0]["state"]["waiting"],
        json!({"reason": "PodFeatureUnsupported", "message": EPHEMERAL_MESSAGE}),
    );
    assert_eq!(shown[1]["name"], "zed");
}

fn state() -> impl Strategy<Value = ContainerState> {
    prop_oneof![Just(waiting()), Just(running()), Just(ended(0)), Just(ended(2))]
}

prop_compose! {
    fn observed()(
        states in [state(), state(), state()],
        lasts in [any::<bool>(), any::<bool>(), any::<bool>()],
        restarts in 0_u32..4,
        sandbox_ready: bool,
        terminating: bool,
        failed in prop::bool::weighted(0.1),
        ready: bool,
    ) -> PodObserved {
        let [init, side, main] = states;
        let mut containers = vec![
            container("init", ContainerKind::Init, init),
            container("side", ContainerKind::Sidecar, side),
            app(main),
        ];
        for (container, last) in containers.iter_mut().zip(lasts) {
            container.restart_count = restarts;
            container.ready &= ready;
            container.last = last.then(|| end(1));
        }
        PodObserved {
            sandbox_ready,
            terminating,
            failure: failed.then(|| PodFailure { reason: "Evicted".to_owned(), message: String::new() }),
            ..seen(containers)
        }
    }
}

proptest! {
    #[test]
    fn a_status_never_goes_back(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        steps in prop::collection::vec(observed(), 1..12),
    ) {
        let mut pod = with_init_and_sidecar();
        pod.spec.as_mut().unwrap().restart_policy = Some(policy.to_owned());
        let mut previous: Option<PodStatus> = None;
        for (index, seen) in steps.iter().enumerate() {
            let now = at(0) + SignedDuration::from_secs(i64::try_from(index).unwrap());
            let status = pod_status(&pod, seen, previous.as_ref(), now);
            if let Some(old) = &previous {
                let (was, is) = (Phase::parse(phase_of(old)).unwrap(), Phase::parse(phase_of(&status)).unwrap());
                if was.is_terminal() {
                    prop_assert_eq!(was, is, "left a terminal phase");
                    prop_assert_eq!(&old.reason, &status.reason);
                } else if is.is_terminal() {
                    let runs = seen.containers.iter().any(|container| {
                        container.kind != ContainerKind::Init
                            && matches!(container.state, ContainerState::Running { .. })
                    });
                    prop_assert!(!runs, "{:?} while a container runs", is);
                }
                for before in old.conditions.iter().flatten() {
                    let after = condition(&status, &before.type_);
                    let moved = before.last_transition_time != after.last_transition_time;
                    prop_assert_eq!(moved, before.status != after.status, "{}", before.type_);
                }
                for before in old.container_statuses.iter().flatten() {
                    let after = main_status(&status);
                    prop_assert!(after.restart_count >= before.restart_count, "the restart count fell");
                }
                prop_assert_eq!(&old.start_time, &status.start_time);
            }
            let again = pod_status(&pod, seen, Some(&status), at(1000));
            prop_assert_eq!(&again, &status, "the same sight gave another status");
            previous = Some(status);
        }
    }
}
