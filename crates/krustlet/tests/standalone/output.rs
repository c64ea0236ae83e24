//! What `krustlet run` prints in the foreground where it is not a terminal, and
//! the code it ends with.

use tokio::io::AsyncReadExt;

use crate::machine::{LIMIT, Machine, end, interrupt, project, stderr, stdout};

/// A pod of three containers and one of one.
pub(crate) const SEVERAL: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  restartPolicy: Never
  initContainers:
  - {name: first, image: hello, args: [args, from first]}
  containers:
  - {name: a, image: hello, args: [args, from a, again]}
  - {name: b, image: hello, args: [exit, '3']}
  - {name: c, image: hello, args: [exit, '4']}
---
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  restartPolicy: Never
  containers:
  - {name: a, image: hello, args: [args, from two]}
";

/// Fails once, in a way that can be counted.
pub(crate) const FAILS_ONCE: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: flaky}
spec:
  restartPolicy: OnFailure
  containers:
  - name: app
    image: fail-once
    volumeMounts: [{name: memory, mountPath: /memory}]
  volumes: [{name: memory, emptyDir: {}}]
";

/// Puts the program of [`FAILS_ONCE`] beside its manifest, whose path it gives.
pub(crate) fn fails_once(machine: &Machine) -> String {
    let program = std::fs::read(project().join("guests/wat/fail-once.wat")).unwrap();
    machine.write("fail-once.wat", program);
    machine.write("flaky.yaml", FAILS_ONCE)
}

#[tokio::test]
async fn lines_of_several_containers_say_whose_they_are() {
    let machine = Machine::new();
    let output = machine.krustlet(&["run", &machine.manifest(SEVERAL)]).await;
    let printed = stdout(&output);
    let mut lines: Vec<_> = printed.lines().collect();
    lines.sort_unstable();
    let wanted = ["[one/a] again", "[one/a] from a", "[one/first] from first", "[two/a] from two"];
    assert_eq!(lines, wanted);
    // Of the pod that fails, the first code in the order of its spec.
    assert_eq!(output.status.code(), Some(3));
    let said = stderr(&output);
    assert!(!said.contains("Started") && !said.contains("Pulled"), "progress: {said}");
    assert!(!said.contains('\x1b'), "colours: {said:?}");
}

#[tokio::test]
async fn every_run_of_a_container_is_printed_once_and_whole() {
    let machine = Machine::new();
    let output = machine.krustlet(&["run", &fails_once(&machine)]).await;
    let wanted = "first\n".repeat(4000) + &"second\n".repeat(4000);
    let printed = stdout(&output);
    // Not compared by assert_eq, which would print both.
    let count = |word| printed.lines().filter(|line| *line == word).count();
    let counts = (count("first"), count("second"));
    assert!(printed == wanted, "{counts:?} lines of 4000 each; {}", stderr(&output));
    assert_eq!(output.status.code(), Some(0), "it ended well in the end");
}

/// Says ten times what fits into a pipe.
const TALKER: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  restartPolicy: Never
  containers: [{name: app, image: hello, args: [log-lines, '10000']}]
";

#[tokio::test]
async fn who_reads_slowly_does_not_hold_the_agent_up() {
    let machine = Machine::new();
    let manifest = machine.manifest(TALKER);
    let mut child = machine.command(&["run", &manifest]).spawn().unwrap();
    // Nobody has read a byte: that the pod has ended is known all the same.
    machine.until(&["ps", "-a"], "Completed").await;
    let mut text = String::new();
    let mut stdout = child.stdout.take().unwrap();
    tokio::time::timeout(LIMIT, stdout.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text.lines().count(), 10_000);
    assert_eq!(end(&mut child).await, 0);
}

#[tokio::test]
async fn an_interrupt_ends_the_wait_for_a_reader() {
    let machine = Machine::new();
    let manifest = machine.manifest(TALKER);
    let mut child = machine.command(&["run", &manifest]).spawn().unwrap();
    machine.until(&["ps", "-a"], "Completed").await;
    // Its standard output is full, and stays so. The first interrupt may come
    // before it has heard that the pod has ended.
    krustlet_testkit::eventually("it ends", LIMIT, async || {
        interrupt(&child);
        matches!(child.try_wait(), Ok(Some(_)))
    })
    .await;
    assert_eq!(end(&mut child).await, 0);
}

#[tokio::test]
async fn pods_started_beside_this_one_outlive_it() {
    let machine = Machine::new();
    let ticker = machine.manifest(crate::background::TICKER);
    let mut first = machine.command(&["run", &ticker]).spawn().unwrap();
    machine.until(&["ps"], "Running").await;
    // It finds the agent of the first and leaves it the pod.
    let second = crate::machine::guest("hello.wasm");
    let started = machine.ok(&["run", "-d", &second, "--", "tick"]).await;
    let name = started.split(['/', ' ']).nth(1).unwrap();
    interrupt(&first);
    let mut said = String::new();
    let mut errors = tokio::io::BufReader::new(first.stderr.take().unwrap());
    while !said.contains("still run") {
        let line = tokio::io::AsyncBufReadExt::read_line(&mut errors, &mut said);
        let read = tokio::time::timeout(LIMIT, line).await.expect("it says so").unwrap();
        assert!(read > 0, "{said}");
    }
    machine.until(&["ps"], name).await;
    machine.ok(&["stop", name, "--grace-period", "1"]).await;
    // With the last pod it ends by itself, with the code of its own.
    assert_eq!(end(&mut first).await, 143);
}
