//! What outlives whom.

use std::{
    io::Read,
    process::{Command, Stdio},
};

use krustlet_model::PodUid;
use krustlet_protocol::RunState;
use krustlet_runtime::{OpenError, PodEvent, RuntimeError, open};
use tokio::time::timeout;

use crate::{
    bed::{ADDRESS, Bed, LIMIT, death, exit_code, id, kill_sandbox, next},
    containers::logs,
};

#[tokio::test]
async fn a_sandbox_that_is_killed_is_reported_and_can_be_replaced() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    let first = bed.pid("a", 1).await;
    kill_sandbox(bed.home.path()).await;
    assert_eq!(death(&mut events).await, 137);
    let error = bed.exec("a", 1, &["pid"]).await.unwrap_err();
    assert!(error.is_death(), "{error}");

    let mut events = bed.run("a").await;
    bed.start("a", 2, &mut events).await;
    assert_ne!(bed.pid("a", 2).await, first);
    bed.stop_pod("a").await;
    assert!(bed.sandboxes().is_empty());
    bed.finish().await;
}

#[tokio::test]
async fn an_exit_that_was_only_written_down_is_told_before_the_death() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.start("a", 2, &mut events).await;
    let error = bed.exec("a", 1, &["exit-untold", "4"]).await.unwrap_err();
    assert!(error.is_death(), "{error}");
    assert_eq!(exit_code(&mut events, 1).await, 4);
    assert_eq!(death(&mut events).await, 9, "as the process ended");
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_sandbox_that_lets_the_agent_go_is_reached_again() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.start("a", 2, &mut events).await;
    let pid = bed.pid("a", 1).await;
    for (digit, code) in [(1, None), (2, Some("6")), (1, None)] {
        let args: Vec<_> = ["leave"].into_iter().chain(code).collect();
        let error = bed.exec("a", digit, &args).await.unwrap_err();
        assert!(!error.is_death() && error.is_transient(), "{error}");
    }
    // What happened meanwhile is told, once, and the process is the same.
    assert_eq!(exit_code(&mut events, 2).await, 6);
    assert_eq!(bed.pid("a", 1).await, pid);
    let stats = bed.stats("a").await.unwrap();
    assert_eq!(stats.len(), 2);
    bed.exec("a", 1, &["exit", "7"]).await.unwrap();
    assert_eq!(exit_code(&mut events, 1).await, 7);
    bed.stop_pod("a").await;
    assert_eq!(next(&mut events).await, None);
    bed.finish().await;
}

#[tokio::test]
async fn a_log_is_supplied_though_the_connection_is_lost_over_it() {
    // Taken and not answered; and full at once, of which nobody hears.
    for after in ["leave", "switch-and-leave"] {
        let bed = Bed::new().await;
        let mut events = bed.run("a").await;
        bed.start("a", 1, &mut events).await;
        bed.exec("a", 1, &["log", "first"]).await.unwrap();
        bed.exec("a", 1, &["rotate", "second", after]).await.unwrap();
        assert_eq!(next(&mut events).await, Some(PodEvent::LogRotated { id: id(1) }));
        for text in ["third", "fourth"] {
            let (outcome, _) = bed.exec("a", 1, &["rotate", text]).await.unwrap();
            assert_eq!(outcome.exit_code, 0, "there was a log to go on with");
            assert_eq!(next(&mut events).await, Some(PodEvent::LogRotated { id: id(1) }));
        }
        // By age, in however many files.
        let mut written = logs(&bed);
        written.rotate_left(1);
        let between = if after == "leave" { "" } else { "switch-and-leave\n" };
        assert_eq!(written.concat(), format!("first\nsecond\n{between}third\nfourth\n"));
        bed.stop_pod("a").await;
        bed.finish().await;
    }
}

#[tokio::test]
async fn a_sandbox_that_answers_no_more_is_killed() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    let error = bed.exec("a", 1, &["leave-deaf"]).await.unwrap_err();
    assert!(error.is_death(), "{error}");
    assert_eq!(death(&mut events).await, 137);
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_thousand_containers_are_listed_and_counted() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    let ids: Vec<_> = (0..1100_u32)
        .map(|number| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            krustlet_model::ContainerId::from_bytes(bytes)
        })
        .collect();
    for id in &ids {
        let mut launch = bed.launch("a", 1);
        launch.spec.id = id.clone();
        bed.runtime.create_container(launch).await.unwrap();
    }
    let stats = bed.stats("a").await.unwrap();
    assert_eq!(stats.len(), ids.len());
    let (bed, adopted) = bed.agent_leaves().await.agent_returns().await;
    assert_eq!(next(&mut events).await, None);
    let listed: Vec<_> = adopted[0].containers.iter().map(|report| report.id.clone()).collect();
    assert_eq!(listed, ids);
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_process_that_leaves_in_peace_is_no_success_of_its_containers() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.exec("a", 1, &["die", "0"]).await.unwrap_err();
    assert_eq!(death(&mut events).await, 137);
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_sandbox_that_hangs_is_ended_all_the_same() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    let (hung, ()) = tokio::join!(bed.exec("a", 1, &["hang"]), bed.stop_pod("a"));
    assert!(hung.is_err());
    assert!(bed.sandboxes().is_empty());
    bed.finish().await;
}

#[tokio::test]
async fn the_next_agent_takes_over_what_runs() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.start("a", 2, &mut events).await;
    bed.exec("a", 2, &["exit", "6"]).await.unwrap();
    assert_eq!(exit_code(&mut events, 2).await, 6);
    let first = bed.pid("a", 1).await;

    let (bed, mut adopted) = bed.agent_leaves().await.agent_returns().await;
    assert_eq!(next(&mut events).await, None, "the old agent's events have ended");
    assert_eq!(adopted.len(), 1);
    let mut adopted = adopted.remove(0);
    assert_eq!((adopted.pod.as_str(), adopted.alive), ("a", true));
    assert_eq!(adopted.addresses, [ADDRESS]);
    let mut states = adopted.containers.iter().map(|one| (&one.id, &one.state));
    assert!(matches!(states.next(), Some((of, RunState::Running { .. })) if *of == id(1)));
    assert!(matches!(states.next(), Some((_, RunState::Exited(exit))) if exit.exit_code == 6));
    assert_eq!(bed.pid("a", 1).await, first);

    // An end that the old agent has told is not told again.
    bed.exec("a", 1, &["exit", "7"]).await.unwrap();
    assert_eq!(exit_code(&mut adopted.events, 1).await, 7);
    bed.stop_pod("a").await;
    assert_eq!(next(&mut adopted.events).await, None);
    bed.finish().await;
}

#[tokio::test]
async fn a_sandbox_in_a_namespace_that_nothing_leads_to_is_ended() {
    let bed = Bed::with_namespace().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    // As it was, it goes on.
    let (bed, adopted) = bed.agent_leaves().await.agent_returns().await;
    assert!(adopted[0].alive);

    let away = bed.agent_leaves().await;
    // Stays in a namespace of its own until its input ends.
    let mut elsewhere = Command::new("unshare")
        .args(["--net", "sh", "-c", "echo here; read end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut here = [0; 4];
    elsewhere.stdout.as_mut().unwrap().read_exact(&mut here).unwrap();
    away.replace_namespace(&format!("/proc/{}/ns/net", elsewhere.id()));
    let (bed, adopted) = away.agent_returns().await;
    assert!(!adopted[0].alive, "who speaks to the pod would not reach it");
    let mut events = bed.run("a").await;
    bed.start("a", 2, &mut events).await;
    bed.stop_pod("a").await;
    bed.finish().await;
    drop(elsewhere.stdin.take());
    elsewhere.wait().unwrap();
}

#[tokio::test]
async fn a_sandbox_with_more_containers_than_it_can_list_is_taken_over_by_its_files() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.start("a", 2, &mut events).await;
    bed.exec("a", 1, &["many"]).await.unwrap();
    bed.exec("a", 2, &["exit", "6"]).await.unwrap();
    let (bed, mut adopted) = bed.agent_leaves().await.agent_returns().await;
    let mut adopted = adopted.remove(0);
    assert!(adopted.alive);
    adopted.containers.sort_by(|a, b| a.id.cmp(&b.id));
    let mut states = adopted.containers.iter().map(|one| &one.state);
    assert!(matches!(states.next(), Some(RunState::Running { .. })));
    assert!(matches!(states.next(), Some(RunState::Exited(exit)) if exit.exit_code == 6));
    bed.exec("a", 1, &["exit", "7"]).await.unwrap();
    assert_eq!(exit_code(&mut adopted.events, 1).await, 7);
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_sandbox_that_floods_the_next_agent_is_killed() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.exec("a", 1, &["flood"]).await.unwrap();
    let (bed, adopted) = bed.agent_leaves().await.agent_returns().await;
    assert!(!adopted[0].alive);
    assert!(matches!(adopted[0].containers[0].state, RunState::Exited(_)));
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn the_next_agent_learns_what_ended_meanwhile() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.start("a", 2, &mut events).await;
    bed.exec("a", 2, &["exit", "6"]).await.unwrap();
    let away = bed.agent_leaves().await;
    away.kill_sandbox().await;

    let (bed, mut adopted) = away.agent_returns().await;
    let mut adopted = adopted.remove(0);
    assert!(!adopted.alive);
    adopted.containers.sort_by(|a, b| a.id.cmp(&b.id));
    let codes: Vec<_> = adopted
        .containers
        .iter()
        .map(|one| match &one.state {
            RunState::Exited(exit) => exit.exit_code,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(codes, [137, 6]);
    assert_eq!(next(&mut adopted.events).await, None);

    // It is told again until the pod has taken note and stopped it.
    let (bed, adopted) = bed.agent_leaves().await.agent_returns().await;
    assert_eq!(adopted.len(), 1);
    bed.stop_pod("a").await;
    let (bed, adopted) = bed.agent_leaves().await.agent_returns().await;
    assert!(adopted.is_empty());
    bed.finish().await;
}

#[tokio::test]
async fn a_log_that_was_switched_meanwhile_is_caught_up_with() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.exec("a", 1, &["log", "first"]).await.unwrap();
    // What a sandbox does alone: the agent is told, and is not there to act.
    let next_log = bed.path("logs/a/.1.log.next");
    let away = bed.agent_leaves().await;
    std::fs::write(next_log, "second\n").unwrap();

    let (bed, mut adopted) = away.agent_returns().await;
    let mut events = adopted.remove(0).events;
    assert_eq!(next(&mut events).await, Some(PodEvent::LogRotated { id: id(1) }));
    assert_eq!(logs(&bed), ["second\n", "first\n"]);
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_long_journal_is_emptied_when_no_death_in_it_is_needed() {
    let bed = Bed::new().await;
    let journal = bed.path("rt/exits");
    let length = || std::fs::metadata(&journal).unwrap().len();
    let fill = || {
        use std::io::Write;
        let mut journal = std::fs::File::options().append(true).open(&journal).unwrap();
        journal.write_all(&vec![b'\n'; (1 << 20) + 1]).unwrap();
    };
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    kill_sandbox(bed.home.path()).await;
    assert_eq!(death(&mut events).await, 137);
    fill();
    let _events = bed.run("b").await;
    // An agent that leaves finishes what is under way.
    let away = bed.agent_leaves().await;
    assert!(length() > 1 << 20, "a pod is still to be told how its sandbox ended");

    let (bed, _adopted) = away.agent_returns().await;
    bed.stop_pod("a").await;
    let _events = bed.run("c").await;
    let away = bed.agent_leaves().await;
    assert!(length() < 1 << 20);
    let (bed, _adopted) = away.agent_returns().await;
    bed.stop_pod("b").await;
    bed.stop_pod("c").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_zygote_that_dies_harms_no_pod_and_is_replaced() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    let first = bed.pid("a", 1).await;

    let mut healthy = bed.runtime.healthy();
    kill_zygote(&bed);
    timeout(LIMIT, healthy.wait_for(|healthy| !healthy)).await.unwrap().unwrap();
    timeout(LIMIT, healthy.wait_for(|healthy| *healthy)).await.unwrap().unwrap();

    assert_eq!(bed.pid("a", 1).await, first);
    let mut other = bed.run("b").await;
    bed.start("b", 2, &mut other).await;
    // Its parent is gone; it is reported all the same.
    bed.exec("a", 1, &["die", "3"]).await.unwrap_err();
    let code = death(&mut events).await;
    assert!([3, 137].contains(&code), "{code}");
    bed.stop_pod("a").await;
    bed.stop_pod("b").await;
    bed.finish().await;
}

fn kill_zygote(bed: &Bed) {
    use std::os::fd::AsFd;
    let entries = std::fs::read_dir(bed.path("rt")).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let socket = paths.find(|path| path.to_string_lossy().ends_with(".zygote.sock")).unwrap();
    let socket = krustlet_protocol::socket::connect(&socket).unwrap();
    krustlet_protocol::PidFd::of_peer(socket.as_fd()).unwrap().kill().unwrap();
}

#[tokio::test]
async fn a_zygote_of_another_build_retires() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    let away = bed.agent_leaves().await;
    let mut config = Bed::config(&away.home);
    // Another command is another build; the stand-in ignores the word.
    config.zygote.push("--quiet".into());
    let (runtime, task, adopted) = open(config).await.unwrap();
    assert!(adopted[0].alive, "its sandboxes are adopted");
    let stop = tokio_util::sync::CancellationToken::new();
    let asks = async {
        runtime.stop_pod_sandbox(&PodUid::new("a")).await.unwrap();
        runtime.retire().await.unwrap();
        stop.cancel();
    };
    timeout(LIMIT, async { tokio::join!(task.run(stop.clone()), asks) }).await.unwrap();
}

#[tokio::test]
async fn two_agents_do_not_share_a_state_directory() {
    let bed = Bed::new().await;
    let error = open(Bed::config(&bed.home)).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    bed.finish().await;
}

#[tokio::test]
async fn a_zygote_that_cannot_start_says_why() {
    let home = tempfile::tempdir().unwrap();
    for number in 1..=2 {
        let mut config = Bed::config(&home);
        // It lets go of the agent before it says so.
        let script = format!("exec 3>&-; sleep 0.2; echo no engine {number} >&2; exit 3");
        config.zygote = vec!["/bin/sh".into(), "-c".into(), script.into()];
        let error = open(config).await.unwrap_err();
        let text = krustlet_model::Chain(&error).to_string();
        assert!(text.contains(&format!("last words: \"no engine {number}\"")), "{text}");
    }
}

#[tokio::test]
async fn asking_after_the_end_is_an_error() {
    let bed = Bed::new().await;
    let runtime = bed.runtime.clone();
    bed.finish().await;
    let error = runtime.stats().await.unwrap_err();
    assert!(matches!(error, RuntimeError::Stopping), "{error}");
}
