//! Containers in one sandbox.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, UdpSocket},
    time::Duration,
};

use krustlet_model::PodUid;
use krustlet_protocol::{DATAGRAMS, Failure, Limits};
use krustlet_runtime::{Launch, PodEvent, RuntimeError, VisitStreams};

use crate::bed::{Bed, exit_code, id, next, preopen};

#[tokio::test]
async fn a_container_runs_and_its_end_is_told() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.exec("a", 1, &["exit", "5"]).await.unwrap();
    assert_eq!(exit_code(&mut events, 1).await, 5);

    let pod = PodUid::new("a");
    // One that has ended need not be stopped.
    bed.runtime.stop_container(&pod, &id(1), Duration::ZERO).await.unwrap();
    bed.runtime.remove_container(&pod, &id(1)).await.unwrap();
    bed.runtime.remove_container(&pod, &id(1)).await.unwrap();
    let again = bed.runtime.start_container(&pod, &id(1)).await.unwrap_err();
    assert!(matches!(again, RuntimeError::NoContainer { .. }), "{again}");

    bed.stop_pod("a").await;
    assert_eq!(next(&mut events).await, None);
    assert!(bed.sandboxes().is_empty());
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn directories_are_handed_over_in_order_and_as_writable_as_said() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    let mut launch = bed.launch("a", 1);
    for (name, writable) in [("one", true), ("two", false)] {
        fs::create_dir(bed.path(name)).unwrap();
        launch.spec.preopens.push(preopen(writable));
        launch.mounts.push(bed.path(name));
    }
    launch.spec.listeners = 1;
    launch.listeners.push(TcpListener::bind("127.0.0.1:0").unwrap());
    launch.spec.datagram_ports.push(53);
    launch.datagrams.push(UdpSocket::bind("127.0.0.1:0").unwrap());
    bed.runtime.create_container(launch).await.unwrap();
    bed.runtime.start_container(&PodUid::new("a"), &id(1)).await.unwrap();
    assert!(matches!(next(&mut events).await, Some(PodEvent::Running { .. })));

    for (index, code) in [("0", 0), ("1", rustix::io::Errno::ROFS.raw_os_error())] {
        let (outcome, _) = bed.exec("a", 1, &["touch", index]).await.unwrap();
        assert_eq!(outcome.exit_code, code, "directory {index}");
    }
    assert!(bed.path("one/touched").exists());
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn what_does_not_fit_the_description_is_refused_here() {
    let bed = Bed::new().await;
    let _events = bed.run("a").await;
    let mut launch = bed.launch("a", 1);
    launch.spec.preopens.push(preopen(true));
    let error = bed.runtime.create_container(launch).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Mismatch { given: 0, named: 1, .. }), "{error}");
    assert!(!error.is_transient());
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_guest_that_is_refused_leaves_nothing_behind() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    let mut launch = bed.launch("a", 1);
    launch.spec.args = vec!["unlinkable".into()];
    let error = bed.runtime.create_container(launch).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Refused(Failure::Unlinkable { message }) if message == "no such import"),
        "{error}"
    );
    let containers = bed.sandboxes()[0].join("containers");
    assert_eq!(fs::read_dir(containers).unwrap().count(), 0);
    let logs: Vec<_> = fs::read_dir(bed.path("logs/a")).unwrap().collect();
    assert_eq!(logs.len(), 1, "the log stays, what waits beside it does not: {logs:?}");
    // The same id may be tried again.
    bed.start("a", 1, &mut events).await;
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn what_a_sandbox_says_is_cut_where_a_sound_one_stops() {
    let bed = Bed::new().await;
    let _events = bed.run("a").await;
    for answer in ["wordy", "odd"] {
        let mut launch = bed.launch("a", 1);
        launch.spec.args = vec![answer.into()];
        let error = bed.runtime.create_container(launch).await.unwrap_err();
        let said = error.to_string();
        assert!(said.contains("xxx") && said.len() < 5000, "{answer}: {}", said.len());
    }
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_pod_that_reads_no_events_can_still_ask_and_loses_none() {
    const CONTAINERS: u8 = 120;
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    let pod = PodUid::new("a");
    for digit in 0..CONTAINERS {
        bed.runtime.create_container(bed.launch("a", digit)).await.unwrap();
        bed.runtime.start_container(&pod, &id(digit)).await.unwrap();
        bed.runtime.stop_container(&pod, &id(digit), Duration::ZERO).await.unwrap();
    }
    for digit in 0..CONTAINERS {
        let running = next(&mut events).await;
        assert!(
            matches!(&running, Some(PodEvent::Running { id: of, .. }) if *of == id(digit)),
            "{running:?}"
        );
        assert_eq!(exit_code(&mut events, digit).await, 143);
    }
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_full_log_is_renamed_and_another_supplied() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.exec("a", 1, &["log", "first"]).await.unwrap();
    for text in ["second", "third"] {
        let (outcome, _) = bed.exec("a", 1, &["rotate", text]).await.unwrap();
        assert_eq!(outcome.exit_code, 0, "there was a log to go on with");
        assert_eq!(next(&mut events).await, Some(PodEvent::LogRotated { id: id(1) }));
    }
    assert_eq!(logs(&bed), ["third\n", "first\n", "second\n"]);
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_log_that_is_full_as_soon_as_it_is_supplied_is_not_lost() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.exec("a", 1, &["log", "first"]).await.unwrap();
    bed.exec("a", 1, &["rotate", "second", "third", "fourth"]).await.unwrap();
    for _ in 0..3 {
        assert_eq!(next(&mut events).await, Some(PodEvent::LogRotated { id: id(1) }));
    }
    let (outcome, _) = bed.exec("a", 1, &["rotate", "fifth"]).await.unwrap();
    assert_eq!(outcome.exit_code, 0, "there was a log to go on with");
    assert_eq!(next(&mut events).await, Some(PodEvent::LogRotated { id: id(1) }));
    assert_eq!(logs(&bed), ["fifth\n", "first\n", "second\n", "third\n", "fourth\n"]);
    bed.stop_pod("a").await;
    bed.finish().await;
}

/// What is in the pod's logs: the current one first, then by age.
pub(crate) fn logs(bed: &Bed) -> Vec<String> {
    let entries = fs::read_dir(bed.path("logs/a")).unwrap();
    let mut paths: Vec<_> = entries
        .map(|entry| entry.unwrap())
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[tokio::test]
async fn limits_are_changed_by_those_who_can() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    let pod = PodUid::new("a");
    let limits = |cpu| Limits { memory_bytes: Some(77), cpu_millis: Some(cpu) };
    bed.runtime.update_container(&pod, &id(1), limits(1)).await.unwrap();
    // The stand-in says in its statistics what it was told.
    assert_eq!(bed.stats("a").await.unwrap()[0].memory_bytes, 77);
    let old = bed.runtime.update_container(&pod, &id(1), limits(2)).await.unwrap_err();
    assert!(matches!(old, RuntimeError::OldSandbox), "{old}");
    let none = bed.runtime.update_container(&pod, &id(2), limits(1)).await.unwrap_err();
    assert!(matches!(none, RuntimeError::NoContainer { .. }), "{none}");
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn an_older_sandbox_goes_without_sockets_for_datagrams_where_its_guest_can() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    let with_sockets = |bed: &Bed, digit, own_datagrams| {
        let socket = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut launch = bed.launch("a", digit);
        launch.datagrams = vec![socket(), socket()];
        launch.spec.datagram_ports = vec![53, 53];
        let at = launch.datagrams[0].local_addr().unwrap();
        (Launch { own_datagrams, ..launch }, at)
    };
    let (launch, _) = with_sockets(&bed, 2, 1);
    // The stand-in wants what the description names.
    bed.runtime.create_container(launch).await.unwrap();
    // As that of the agent before was.
    bed.exec("a", 1, &["version", &(DATAGRAMS - 1).to_string()]).await.unwrap();
    let (bed, adopted) = bed.agent_leaves().await.agent_returns().await;
    assert_eq!(adopted.len(), 1);
    let (launch, at) = with_sockets(&bed, 3, 2);
    bed.runtime.create_container(launch).await.unwrap();
    UdpSocket::bind(at).expect("it is the guest's to bind");
    // The last one is a port of the node's.
    let (launch, at) = with_sockets(&bed, 4, 1);
    let old = bed.runtime.create_container(launch).await.unwrap_err();
    assert!(matches!(old, RuntimeError::OldSandbox), "{old}");
    UdpSocket::bind(at).expect("nothing is kept of it");
    // Nor is the container.
    let (launch, _) = with_sockets(&bed, 4, 2);
    bed.runtime.create_container(launch).await.unwrap();
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_pod_is_connected_to_by_those_who_can() {
    let bed = Bed::new().await;
    let _events = bed.run("a").await;
    let connect = async |pod: &str, port| {
        let ((input, mut to_pod), (mut from_pod, output)) = (pipe(), pipe());
        let streams = VisitStreams { input: input.into(), output: output.into() };
        bed.runtime.connect(&PodUid::new(pod), port, streams).await?;
        to_pod.write_all(b"to and fro").unwrap();
        drop(to_pod);
        let mut text = String::new();
        from_pod.read_to_string(&mut text).unwrap();
        Ok::<_, RuntimeError>(text)
    };
    // Neither end is kept here: the other one hears of it.
    assert_eq!(connect("a", 80).await.unwrap(), "to and fro");
    let old = connect("a", 1).await.unwrap_err();
    assert!(matches!(old, RuntimeError::OldSandbox), "{old}");
    let refused = connect("a", 2).await.unwrap_err();
    assert_eq!(refused.to_string(), "nobody listens");
    let none = connect("b", 80).await.unwrap_err();
    assert!(matches!(none, RuntimeError::NoSandbox { .. }), "{none}");
    bed.stop_pod("a").await;
    bed.finish().await;
}

/// What is read, and what is written.
fn pipe() -> (File, File) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (read.into(), write.into())
}

#[tokio::test]
async fn stats_are_those_of_the_pod() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    let stats = bed.stats("a").await.unwrap();
    assert_eq!(stats.len(), 1);
    assert_eq!((stats[0].id.clone(), stats[0].memory_bytes), (id(1), 1));
    assert_eq!(bed.stats("b").await, None);
    bed.stop_pod("a").await;
    bed.finish().await;
}
