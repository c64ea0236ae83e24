//! How pods begin.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;

use super::bed::{Bed, Call, Guest, World, is_ready, key, main_of, one, pod, waits};

#[tokio::test(start_paused = true)]
async fn a_pod_becomes_ready_and_is_reported_once() {
    let mut bed = Bed::new().await;
    bed.put(one("Always"));
    let status = bed.until_phase("u", "Running").await;
    assert!(is_ready(&status));
    assert_eq!(main_of(&status).image_id, "web:1@sha256:00");
    assert_eq!(status.pod_ip.as_deref(), Some("127.0.0.1"));
    let expected = [Call::Sandbox, Call::Create("main".to_owned()), Call::Start("main".to_owned())];
    assert_eq!(bed.calls(), expected);

    bed.shared.with(|world| {
        assert_eq!(world.statuses["u"].len(), 1, "it ran before there was anything to say");
        let reasons: Vec<_> = world.events.iter().map(|(reason, _)| reason.as_str()).collect();
        assert_eq!(reasons, ["Pulled", "Created", "Started"]);
        let spec = &world.launches[0];
        assert_eq!(spec.args, ["main"]);
        assert!(spec.env.contains(&("HOSTNAME".to_owned(), "p".to_owned())), "{:?}", spec.env);
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn containers_start_in_their_order() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| {
        world.guests.insert("first".to_owned(), Guest::Exits(0));
        world.guests.insert("second".to_owned(), Guest::Silent);
    });
    bed.put(pod(json!({
        "initContainers": [
            {"name": "first", "image": "i:1"},
            {"name": "side", "image": "i:1", "restartPolicy": "Always"},
            {"name": "second", "image": "i:1"},
        ],
        "containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "i:1"}],
    })));
    bed.until("second is entered", |world| world.count(&Call::Start("second".to_owned())) == 1)
        .await;
    let status =
        bed.until_status("u", "pending", |status| status.phase.as_deref() == Some("Pending")).await;
    assert_eq!(waits(&status), Some("PodInitializing"));
    bed.shared.exit("u", "second", 0);
    bed.until_phase("u", "Running").await;

    let starts: Vec<_> = bed
        .calls()
        .into_iter()
        .filter_map(|call| if let Call::Start(name) = call { Some(name) } else { None })
        .collect();
    assert_eq!(starts[..3], ["first", "side", "second"]);
    assert_eq!(starts.len(), 5);
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_config_map_mends() {
    let mut bed = Bed::new().await;
    let mut with_env = one("Always");
    with_env["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "settings"}}]);
    bed.put(with_env);
    let status = bed
        .until_status("u", "it waits", |status| waits(status) == Some("CreateContainerConfigError"))
        .await;
    let waiting = main_of(&status).state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.message.as_deref(), Some("configmap \"settings\" not found"));
    assert_eq!(main_of(&status).restart_count, 0);
    bed.shared.with(|world| {
        let message = "Error: configmap \"settings\" not found".to_owned();
        assert!(world.events.contains(&("Failed".to_owned(), message)), "{:?}", world.events);
        let map = serde_json::from_value(json!({"data": {"A": "1"}})).unwrap();
        world.config_maps.insert("settings".to_owned(), map);
    });
    let status = bed.until_phase("u", "Running").await;
    assert_eq!(main_of(&status).restart_count, 0);
    bed.shared.with(|world| {
        assert!(world.launches[0].env.contains(&("A".to_owned(), "1".to_owned())));
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_there_before_its_container_and_follows_its_source() {
    let mut bed = Bed::new().await;
    bed.put(pod(json!({
        "volumes": [{"name": "v", "configMap": {"name": "settings"}}],
        "containers": [{"name": "main", "image": "web:1",
            "volumeMounts": [{"name": "v", "mountPath": "/etc/v"}]}],
    })));
    bed.until("it is told", |world| world.has_event("FailedMount")).await;
    let status = bed.until_phase("u", "Pending").await;
    assert_eq!(waits(&status), Some("ContainerCreating"));
    bed.shared.with(|world| {
        assert!(world.launches.is_empty());
        let map = serde_json::from_value(json!({"data": {"A": "1"}})).unwrap();
        world.config_maps.insert("settings".to_owned(), map);
    });
    bed.until_phase("u", "Running").await;
    let preopen = bed.shared.with(|world| world.launches[0].preopens[0].clone());
    assert_eq!((preopen.guest_path.as_str(), preopen.writable), ("/etc/v", false));
    let file = bed.home.path().join("pods/u/volumes/v/A");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");

    bed.shared.with(|world| {
        let map = serde_json::from_value(json!({"data": {"A": "2"}})).unwrap();
        world.config_maps.insert("settings".to_owned(), map);
    });
    // The refresh is a timer of the task; time goes on by itself.
    let changed = async {
        while std::fs::read_to_string(&file).unwrap() != "2" {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(90), changed).await.unwrap();
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_refused_for_a_moment_is_no_event() {
    for (refusals, events) in [(2, 0), (4, 2)] {
        let mut bed = Bed::new().await;
        bed.shared.with(|world| world.refuse_tokens = refusals);
        bed.put(pod(json!({
            "volumes": [{"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
            ]}}],
            "containers": [{"name": "main", "image": "web:1"}],
        })));
        bed.until_phase("u", "Running").await;
        let told = |world: &mut World| {
            world.events.iter().filter(|(reason, _)| reason == "FailedMount").count()
        };
        assert_eq!(bed.shared.with(told), events, "after {refusals} refusals");
        bed.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_http_guest_gets_the_only_listener_of_its_port() {
    let mut bed = Bed::new().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    bed.put(pod(json!({"containers": [
        {"name": "main", "image": "http", "ports": [{"containerPort": port}]},
    ]})));
    let status = bed
        .until_status("u", "the port is told", |status| {
            waits(status) == Some("CreateContainerError")
        })
        .await;
    let waiting = main_of(&status).state.as_ref().unwrap().waiting.clone().unwrap();
    let message = waiting.message.unwrap();
    assert!(message.contains(&format!("port {port} of 127.0.0.1 is in use")), "{message}");
    drop(free);
    bed.until_phase("u", "Running").await;
    assert_eq!(bed.shared.with(|world| world.launches[0].listeners), 1);
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_cannot_be_had_backs_off() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.missing.insert("web:1".to_owned(), "ErrImagePull"));
    bed.put(one("Always"));
    bed.until_status("u", "the error", |status| waits(status) == Some("ErrImagePull")).await;
    let status = bed
        .until_status("u", "the back-off", |status| waits(status) == Some("ImagePullBackOff"))
        .await;
    let waiting = main_of(&status).state.as_ref().unwrap().waiting.clone().unwrap();
    assert_eq!(
        waiting.message.as_deref(),
        Some("Back-off pulling image \"web:1\": ErrImagePull: no such host"),
    );
    bed.until("it was tried four times", |world| world.asked.len() == 4).await;
    bed.shared.with(|world| {
        let seconds: Vec<_> = world
            .asked
            .windows(2)
            .map(|pair| pair[1].0.duration_since(pair[0].0).as_secs())
            .collect();
        assert_eq!(seconds, [10, 20, 40]);
        world.missing.clear();
    });
    bed.until_phase("u", "Running").await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_program_that_cannot_be_entered_says_why() {
    let mut bed = Bed::new().await;
    bed.put(pod(json!({"containers": [{"name": "main", "image": "other"}]})));
    let status = bed
        .until_status("u", "it waits", |status| waits(status) == Some("CreateContainerError"))
        .await;
    let waiting = main_of(&status).state.as_ref().unwrap().waiting.clone().unwrap();
    assert!(waiting.message.unwrap().contains("wasi:cli/run"));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_cannot_be_made_is_tried_again() {
    let mut bed = Bed::new().await;
    bed.shared.with(|world| world.refuse_sandboxes = 3);
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    bed.shared.with(|world| {
        let message = "Failed to create pod sandbox: no zygote".to_owned();
        assert!(world.events.contains(&("FailedCreatePodSandBox".to_owned(), message)));
        assert_eq!(world.count(&Call::Sandbox), 4);
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_pod_fails_and_runs_nothing() {
    let mut bed = Bed::new().await;
    let mut large = one("Always");
    large["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "5"}});
    bed.put(large);
    let status = bed.until_phase("u", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert!(status.message.unwrap().starts_with("Pod was rejected: "));
    assert!(bed.calls().is_empty());
    assert!(bed.shared.with(|world| world.has_event("OutOfcpu")));

    bed.delete("u", 0);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_handle_shows_pods_and_runs_programs() {
    let mut bed = Bed::new().await;
    bed.put(one("Always"));
    bed.until_phase("u", "Running").await;
    let view = bed.pods.get(&key()).unwrap();
    let container = view.container(None).unwrap();
    assert!(container.is_running && !container.ended.is_cancelled());
    assert!(container.log.as_ref().unwrap().ends_with("logs/n_p_u/main/0.log"));
    assert_eq!(container.previous_log, None);

    let null = || std::fs::File::open("/dev/null").unwrap().into();
    let streams = || crate::outside::ExecStreams { stdin: null(), stdout: null(), stderr: null() };
    let outcome = bed.pods.exec(&key(), None, vec!["x".to_owned()], streams()).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.message.as_str()), (7, "x"));
    let error = bed.pods.exec(&key(), Some("none"), vec![], streams()).await.unwrap_err();
    assert_eq!(error.to_string(), "pod n/p has no container \"none\"");
    let used = bed.pods.stats().await;
    assert_eq!((used.len(), used[0].0.uid.as_str()), (1, "u"));
    assert_eq!(used[0].1.as_ref().unwrap()[0].1.memory_bytes, 5);
    bed.shared.with(|world| world.are_silent = true);
    assert!(bed.pods.stats().await[0].1.is_none(), "it is not known");

    bed.pods.stop(&key(), None).await.unwrap();
    assert!(bed.pods.stats().await.is_empty(), "nothing of it runs");
    let view = bed.pods.get(&key()).unwrap();
    assert!(view.is_over && view.container(None).unwrap().ended.is_cancelled());
    let status = bed.until_phase("u", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("StoppedOnNode"));
    bed.shared.with(|world| assert!(world.has_event("StoppedOnNode")));
    assert_eq!(
        main_of(&status).state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code,
        143
    );
    // Once more has nothing to do.
    bed.pods.stop(&key(), None).await.unwrap();
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_image_restarts_its_container_whatever_the_policy() {
    let mut bed = Bed::new().await;
    bed.put(one("Never"));
    bed.until_phase("u", "Running").await;
    let mut other = one("Never");
    other["spec"]["containers"][0]["image"] = json!("web:2");
    bed.put(other);
    let status = bed
        .until_status("u", "the other image runs", |status| {
            main_of(status).image_id == "web:2@sha256:00" && is_ready(status)
        })
        .await;
    assert_eq!(main_of(&status).restart_count, 1);
    let last = main_of(&status).last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(last.exit_code, 143);
    bed.shared.with(|world| {
        let message = "Container main definition changed, will be restarted".to_owned();
        assert!(world.events.contains(&("Killing".to_owned(), message)));
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_made_of_another_image_does_not_stay() {
    let mut bed = Bed::new().await;
    // It cannot be saved, so that what is made is not entered.
    let checkpoint = bed.home.path().join("pods/u/checkpoint.json");
    std::fs::create_dir_all(&checkpoint).unwrap();
    bed.put(one("Always"));
    bed.until("it is made", |world| world.has_event("Created")).await;
    let mut other = one("Always");
    other["spec"]["containers"][0]["image"] = json!("web:2");
    bed.put(other);
    bed.until("the old one is removed", |world| world.count(&Call::Remove("main".to_owned())) == 1)
        .await;
    std::fs::remove_dir(&checkpoint).unwrap();
    let status = bed.until_phase("u", "Running").await;
    assert_eq!((main_of(&status).restart_count, main_of(&status).image.as_str()), (0, "web:2"));
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_being_replaced_ends_with_its_pod() {
    let mut bed = Bed::new().await;
    bed.put(one("Never"));
    bed.until_phase("u", "Running").await;
    bed.shared.with(|world| world.endless.insert("web:2".to_owned()));
    let mut other = one("Never");
    other["spec"]["containers"][0]["image"] = json!("web:2");
    bed.put(other);
    bed.until("the other image is pulled", |world| world.has_event("Pulling")).await;
    bed.delete("u", 1);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    let status = bed.shared.with(|world| world.last_status("u").unwrap().clone());
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    let end = main_of(&status).state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(end.exit_code, 143);
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_defect_is_the_failure_of_one_pod() {
    let mut bed = Bed::new().await;
    bed.put(pod(json!({"containers": [{"name": "main", "image": "panic"}]})));
    let mut sound = one("Always");
    sound["metadata"]["uid"] = json!("v");
    sound["metadata"]["name"] = json!("q");
    bed.put(sound);
    let status = bed.until_phase("u", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("AgentError"));
    bed.until_phase("v", "Running").await;
    bed.delete("u", 0);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ended_before_is_left_alone_until_it_is_deleted() {
    let mut bed = Bed::new().await;
    let mut ended = one("Never");
    ended["status"] = json!({"phase": "Succeeded", "reason": "Ours"});
    bed.put(ended);
    let mut changes = bed.pods.changes();
    while bed.pods.list().is_empty() {
        changes.changed().await.unwrap();
    }
    assert!(bed.pods.list()[0].is_over);
    bed.delete("u", 0);
    bed.until("it is removed", |world| world.deleted == ["u"]).await;
    bed.shared.with(|world| {
        assert!(world.calls.is_empty(), "{:?}", world.calls);
        assert!(world.statuses.is_empty(), "what it ended with stands");
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_asks_for_root_is_told_who_it_is() {
    let mut bed = Bed::new().await;
    let mut root = one("Never");
    root["spec"]["securityContext"] = json!({"runAsUser": 0});
    bed.put(root);
    bed.until_phase("u", "Running").await;
    bed.shared.with(|world| {
        let told = world.events.iter().find(|(reason, _)| reason == "RunAsUserChanged");
        assert!(told.is_some_and(|(_, message)| message.contains("runAsUser 0")), "{told:?}");
    });
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_to_be_root_and_not_root_is_not_made() {
    let mut bed = Bed::new().await;
    let mut root = one("Never");
    root["spec"]["securityContext"] = json!({"runAsUser": 0, "runAsNonRoot": true});
    bed.put(root);
    let config_error = |status: &PodStatus| waits(status) == Some("CreateContainerConfigError");
    let status = bed.until_status("u", "it is refused", config_error).await;
    let state = main_of(&status).state.clone().unwrap().waiting.unwrap();
    assert_eq!(
        state.message.as_deref(),
        Some("container's runAsUser breaks non-root policy (pod: \"p_n(u)\", container: main)"),
    );
    bed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn limits_reach_the_sandbox_as_kubelet_would_set_them() {
    for (cpu, millis) in [("5m", Some(10)), ("250m", Some(250)), ("0", None), ("2", Some(2000))] {
        let mut bed = Bed::new().await;
        let mut limited = one("Never");
        let limits = json!({"cpu": cpu, "memory": "1Mi"});
        limited["spec"]["containers"][0]["resources"] = json!({"limits": limits});
        bed.put(limited);
        bed.until_phase("u", "Running").await;
        let given = bed.shared.with(|world| world.launches[0].limits.clone());
        assert_eq!((given.cpu_millis, given.memory_bytes), (millis, Some(1 << 20)), "{cpu}");
        bed.stop().await;
    }
}
