//! Pods that are left running, and the commands that ask about them.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    time::timeout,
};

use crate::{
    machine::{LIMIT, Machine, end, guest, stderr, stdout},
    output::fails_once,
};

/// A pod that goes on for ever.
pub(crate) const TICKER: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: ticker}
spec:
  containers: [{name: app, image: hello, args: [tick]}]
";

#[tokio::test]
async fn a_pod_in_the_background_is_listed_read_entered_and_stopped() {
    let machine = Machine::new();
    let manifest = machine.manifest(TICKER);
    let started = machine.ok(&["run", "-d", &manifest]).await;
    assert_eq!(started, "pod/ticker started in namespace default\n");

    machine.until(&["ps"], "Running").await;
    let mut logs = machine.command(&["logs", "-f", "ticker"]).spawn().unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines();
    let line = timeout(LIMIT, lines.next_line()).await.expect("the guest ticks").unwrap();
    assert_eq!(line.as_deref(), Some("tick 1"));

    let stats = machine.ok(&["stats"]).await;
    assert!(stats.contains("ticker"), "{stats}");
    // Whoever reads may go before it comes.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let unread = machine.command(&["inspect", "ticker"]).stdout(writer).spawn().unwrap();
    let unread = timeout(LIMIT, unread.wait_with_output()).await.expect("it ends").unwrap();
    assert!(unread.status.success() && unread.stderr.is_empty(), "{}", stderr(&unread));
    let pod: serde_json::Value =
        serde_json::from_str(&machine.ok(&["inspect", "ticker"]).await).unwrap();
    assert_eq!(pod["status"]["phase"], "Running");

    let taken = machine.krustlet(&["run", "-d", &manifest]).await;
    assert!(stderr(&taken).contains("is there already"), "{}", stderr(&taken));

    assert_eq!(machine.ok(&["stop", "ticker", "--grace-period", "1"]).await, "");
    // The log ends with its run, and the agent with its last pod.
    assert_eq!(end(&mut logs).await, 0);
    machine.until_alone().await;
}

#[tokio::test]
async fn the_next_pod_can_be_run_as_soon_as_the_last_one_is_stopped() {
    let machine = Machine::new();
    let manifest = machine.manifest(TICKER);
    // The agent ends with its last pod; who comes in that moment waits for it.
    for _ in 0..3 {
        machine.ok(&["run", "-d", &manifest]).await;
        machine.ok(&["stop", "ticker", "--grace-period", "1"]).await;
    }
    let greeted = machine.ok(&["run", &guest("hello.wasm"), "--", "args", "x"]).await;
    assert_eq!(greeted, "x\n");
}

#[tokio::test]
async fn an_exec_reads_writes_and_ends_with_its_programs_code() {
    let machine = Machine::new();
    machine.ok(&["run", "-d", &machine.manifest(TICKER)]).await;
    machine.until(&["ps"], "Running").await;

    let said = machine.krustlet(&["exec", "ticker", "--", "hello", "args", "a b", ""]).await;
    assert_eq!(stdout(&said), "a b\n\n", "{}", stderr(&said));
    let failed = machine.krustlet(&["exec", "ticker", "--", "hello", "cat", "/missing"]).await;
    assert_eq!(failed.status.code(), Some(2));
    assert!(failed.stdout.is_empty() && stderr(&failed).contains("/missing"), "{failed:?}");
    let ended = machine.krustlet(&["exec", "-c", "app", "ticker", "--", "x", "exit", "5"]).await;
    assert_eq!(ended.status.code(), Some(5), "{}", stderr(&ended));

    // What it is given while it runs comes back while it runs.
    let mut command = machine.command(&["exec", "-i", "ticker", "--", "hello", "cat"]);
    let mut cat = command.stdin(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    to.write_all(b"one\ntwo\n").await.unwrap();
    drop(to);
    let mut text = String::new();
    timeout(LIMIT, from.read_to_string(&mut text)).await.expect("it ends").unwrap();
    assert_eq!(text, "one\ntwo\n");
    assert_eq!(end(&mut cat).await, 0);
    // Without -i there is nothing to read.
    assert_eq!(machine.ok(&["exec", "ticker", "--", "hello", "cat"]).await, "");

    for (arguments, words) in [
        (["exec", "-c", "none", "ticker", "--", "x"], "none"),
        (["exec", "-n", "other", "ticker", "--", "x"], "does not exist"),
    ] {
        let refused = machine.krustlet(&arguments).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(words), "{}", stderr(&refused));
    }
    machine.ok(&["stop", "ticker", "--grace-period", "1"]).await;
}

#[tokio::test]
async fn an_exec_ends_with_its_client() {
    let machine = Machine::new();
    let file = guest("hello.wasm");
    machine.ok(&["run", "-d", &file, "--", "tick"]).await;
    machine.until(&["ps"], "Running").await;
    let alone = machine.memory().await;
    let pod = machine.ok(&["ps"]).await.lines().nth(1).unwrap().to_owned();
    let pod = pod.split_whitespace().nth(1).unwrap();
    // It reads and writes nothing, and computes for ever.
    let mut client = machine.command(&["exec", pod, "--", "hello", "spin"]).spawn().unwrap();
    let beside = "the program runs beside the container's";
    krustlet_testkit::eventually(beside, LIMIT, async || machine.memory().await != alone).await;
    client.kill().await.unwrap();
    let gone = "the program ends with its client";
    krustlet_testkit::eventually(gone, LIMIT, async || machine.memory().await == alone).await;
    machine.ok(&["stop", pod, "--grace-period", "1"]).await;
}

#[tokio::test]
async fn a_pod_that_has_ended_is_kept_with_the_logs_of_its_last_two_runs() {
    let machine = Machine::new();
    machine.ok(&["run", "-d", &fails_once(&machine)]).await;
    machine.until(&["ps", "-a"], "Completed").await;
    let listed = machine.ok(&["ps"]).await;
    assert!(!listed.contains("flaky"), "it runs no more: {listed}");
    let listed = machine.ok(&["ps", "--all"]).await;
    let row: Vec<_> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..5], ["default", "flaky", "0/1", "Completed", "1"]);

    let second = "second\n".repeat(4000);
    assert!(machine.ok(&["logs", "flaky"]).await == second);
    assert!(machine.ok(&["logs", "-f", "-c", "app", "flaky"]).await == second, "it ends");
    assert!(machine.ok(&["logs", "-p", "flaky"]).await == "first\n".repeat(4000));
    assert_eq!(machine.ok(&["logs", "--tail", "2", "flaky"]).await, "second\nsecond\n");
    let dated = machine.ok(&["logs", "--timestamps", "--tail", "3", "flaky"]).await;
    for line in dated.lines() {
        let (time, text) = line.split_once(' ').unwrap();
        assert_eq!(text, "second");
        time.parse::<jiff::Timestamp>().unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    assert_eq!(dated.lines().count(), 3);

    let pod: serde_json::Value =
        serde_json::from_str(&machine.ok(&["inspect", "flaky"]).await).unwrap();
    assert_eq!(pod["status"]["phase"], "Succeeded");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 1);

    for arguments in [["logs", "none"], ["stop", "none"], ["inspect", "none"]] {
        let refused = machine.krustlet(&arguments).await;
        assert!(!refused.status.success(), "{arguments:?}");
    }
    machine.ok(&["stop", "flaky"]).await;
    machine.until_alone().await;
}
