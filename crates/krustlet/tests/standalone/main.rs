//! `krustlet run` and the commands beside it, as a person without a cluster
//! uses them: the built program, real sandboxes, the examples of the project.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// For one command; a cold compilation of an example takes a second.
const LIMIT: Duration = Duration::from_mins(2);

/// A root directory of its own, short enough for sockets.
struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "sandboxes need root: run the tests as root");
        Self { root: tempfile::Builder::new().prefix("kr").tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_krustlet"));
        command
            .args(arguments)
            .env("KRUSTLET_ROOT_DIR", self.root.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn krustlet(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output();
        timeout(LIMIT, output).await.expect("the command ends").unwrap()
    }

    /// Runs a command that must succeed and gives what it printed.
    async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.krustlet(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn example(path: &str) -> String {
    project().join("examples").join(path).to_str().unwrap().to_owned()
}

fn guest(name: &str) -> String {
    krustlet_testkit::guest(name).to_str().unwrap().to_owned()
}

async fn end(child: &mut Child) -> i32 {
    timeout(LIMIT, child.wait()).await.expect("the program ends").unwrap().code().unwrap()
}

#[tokio::test]
async fn the_first_example_prints_what_its_guest_prints() {
    let text = Machine::new().ok(&["run", &example("hello/pod.yaml")]).await;
    assert_eq!(text, "Hello from WebAssembly!\narguments: [\"hello\"]\nenvironment: 2 variables\n");
}

#[tokio::test]
async fn config_maps_and_secrets_of_the_same_file_are_seen_as_files() {
    let text = Machine::new().ok(&["run", &example("volumes/pod.yaml")]).await;
    assert!(
        text.contains("Good morning from a ConfigMap.") && text.contains("swordfish"),
        "{text}"
    );
}

#[tokio::test]
async fn a_file_runs_with_arguments_and_its_exit_code_is_ours() {
    let machine = Machine::new();
    let output = machine.krustlet(&["run", &guest("hello.wasm"), "--", "exit", "7"]).await;
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
}

#[tokio::test]
async fn a_trap_ends_with_134_and_says_where() {
    let machine = Machine::new();
    let output = machine.krustlet(&["run", &guest("hello.wasm"), "--", "trap"]).await;
    assert_eq!(output.status.code(), Some(134));
    assert!(stderr(&output).contains("wasm"), "{}", stderr(&output));
}

#[tokio::test]
async fn a_pod_in_the_background_is_listed_read_entered_and_stopped() {
    let machine = Machine::new();
    let manifest = machine.root.path().join("pod.yaml");
    std::fs::copy(guest("hello.wasm"), machine.root.path().join("hello.wasm")).unwrap();
    std::fs::write(
        &manifest,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: ticker}\nspec:\n  containers:\n  \
         - {name: app, image: hello, args: [tick]}\n",
    )
    .unwrap();
    let started = machine.ok(&["run", "-d", manifest.to_str().unwrap()]).await;
    assert_eq!(started, "pod/ticker started in namespace default\n");

    krustlet_testkit::eventually("the pod runs", LIMIT, async || {
        machine.ok(&["ps"]).await.contains("Running")
    })
    .await;
    let mut logs = machine.command(&["logs", "-f", "ticker"]).spawn().unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines();
    let line = timeout(LIMIT, lines.next_line()).await.expect("the guest ticks").unwrap();
    assert!(line.is_some());

    let stats = machine.ok(&["stats"]).await;
    assert!(stats.contains("ticker"), "{stats}");
    let pod: serde_json::Value =
        serde_json::from_str(&machine.ok(&["inspect", "ticker"]).await).unwrap();
    assert_eq!(pod["status"]["phase"], "Running");

    let entered = machine.krustlet(&["exec", "ticker", "--", "hello", "exit", "5"]).await;
    assert_eq!(entered.status.code(), Some(5), "{}", stderr(&entered));

    let taken = machine.krustlet(&["run", "-d", manifest.to_str().unwrap()]).await;
    assert!(stderr(&taken).contains("is there already"), "{}", stderr(&taken));

    machine.ok(&["stop", "ticker", "--grace-period", "1"]).await;
    // The log ends with its run, and the agent with its last pod.
    assert_eq!(end(&mut logs).await, 0);
    let gone = "the agent ends with its last pod";
    krustlet_testkit::eventually(gone, LIMIT, async || {
        !machine.krustlet(&["ps"]).await.status.success()
    })
    .await;
}

#[tokio::test]
async fn an_exec_ends_with_its_client() {
    let machine = Machine::new();
    let file = guest("hello.wasm");
    machine.ok(&["run", "-d", &file, "--", "tick"]).await;
    krustlet_testkit::eventually("the pod runs", LIMIT, async || {
        machine.ok(&["ps"]).await.contains("Running")
    })
    .await;
    // What all instances of the container have.
    let memory = async || {
        let stats = machine.ok(&["stats"]).await;
        let (heads, row) = stats.split_once('\n').unwrap();
        let column = heads.find("MEMORY").unwrap()..heads.find("POD SOCKETS").unwrap();
        row.get(column).unwrap_or_default().trim().to_owned()
    };
    let alone = memory().await;
    let pod = machine.ok(&["ps"]).await.lines().nth(1).unwrap().to_owned();
    let pod = pod.split_whitespace().nth(1).unwrap();
    // It reads and writes nothing, and computes for ever.
    let mut client = machine.command(&["exec", pod, "--", "hello", "spin"]).spawn().unwrap();
    let beside = "the program runs beside the container's";
    krustlet_testkit::eventually(beside, LIMIT, async || memory().await != alone).await;
    client.kill().await.unwrap();
    let gone = "the program ends with its client";
    krustlet_testkit::eventually(gone, LIMIT, async || memory().await == alone).await;
    machine.ok(&["stop", pod, "--grace-period", "1"]).await;
}

#[tokio::test]
async fn an_interrupt_stops_the_pod_within_its_grace_period() {
    let machine = Machine::new();
    let mut child = machine.command(&["run", &guest("hello.wasm"), "--", "tick"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    timeout(LIMIT, lines.next_line()).await.expect("the guest ticks").unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    // A module has no way to be told, so it is stopped at once.
    assert_eq!(end(&mut child).await, 143);
}

#[tokio::test]
async fn images_are_listed_and_removed_without_an_agent() {
    let machine = Machine::new();
    machine.ok(&["run", &guest("hello.wasm")]).await;
    let listed = machine.ok(&["images"]).await;
    assert!(listed.contains("localhost/hello:latest"), "{listed}");
    machine.ok(&["rmi", "localhost/hello:latest"]).await;
    let listed = machine.ok(&["images"]).await;
    assert!(!listed.contains("localhost/hello"), "{listed}");
}

#[tokio::test]
async fn mistakes_are_answered_with_what_why_and_how_to_mend() {
    let machine = Machine::new();
    let manifest = machine.root.path().join("pod.yaml");
    std::fs::write(
        &manifest,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  \
         - {name: app, image: hello, comand: [x]}\n",
    )
    .unwrap();
    for (arguments, words) in [
        (vec!["run", manifest.to_str().unwrap()], "unknown field \"spec.containers[0].comand\""),
        (vec!["run", "missing.wasm"], "there is no file missing.wasm"),
        (vec!["ps"], "no agent answers"),
        (vec!["rmi", "none:v1"], "none"),
    ] {
        let output = machine.krustlet(&arguments).await;
        assert!(!output.status.success(), "{arguments:?}");
        assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn a_module_that_wants_what_is_not_offered_says_so() {
    let machine = Machine::new();
    let path = project().join("guests/wat/missing-import.wat");
    // Never started, so the pod waits and is retried until it is interrupted.
    let mut child = machine.command(&["run", path.to_str().unwrap()]).spawn().unwrap();
    let mut said = Vec::new();
    let mut errors = child.stderr.take().unwrap();
    timeout(LIMIT, async {
        while !String::from_utf8_lossy(&said).contains("import") {
            let mut piece = [0; 4096];
            let read = errors.read(&mut piece).await.unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&said));
            said.extend_from_slice(&piece[..read]);
        }
    })
    .await
    .expect("the missing import is named");
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    end(&mut child).await;
}
