//! The agent, its sandboxes and volumes without root.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::chown},
    path::{Path, PathBuf},
};

use tokio::process::Command;

use crate::machine::{LIMIT, Machine, guest, output, stderr, stdout};

/// A user that nobody has.
const USER: u32 = 54321;

/// A machine whose root directory is an ordinary user's.
struct Home {
    machine: Machine,
    /// The program may lie where that user may not look: it is started by this.
    program: File,
}

impl Home {
    fn new() -> Self {
        let machine = Machine::new();
        let home = Self { machine, program: File::open(env!("CARGO_BIN_EXE_krustlet")).unwrap() };
        chown(home.machine.root.path(), Some(USER), Some(USER)).unwrap();
        home
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let program = PathBuf::from(format!("/proc/self/fd/{}", self.program.as_raw_fd()));
        let mut command = self.machine.command_of(&program, arguments);
        command.uid(USER).gid(USER).current_dir("/").env("HOME", self.machine.root.path());
        command
    }

    async fn ok(&self, arguments: &[&str]) -> String {
        let output = output(&mut self.command(arguments)).await;
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// A manifest that the user may read, with its image beside it.
    fn manifest(&self, text: &str) -> String {
        let path = self.machine.manifest(text);
        for file in [Path::new(&path), &self.machine.root.path().join("hello.wasm")] {
            chown(file, Some(USER), Some(USER)).unwrap();
        }
        path
    }
}

const VOLUMES: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  restartPolicy: Never
  initContainers:
  - name: before
    image: hello
    args: [write, /shared/said, from the init container]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: after
    image: hello
    args: [cat, /shared/said, /config/word, /secret/word]
    volumeMounts:
    - {name: shared, mountPath: /shared, readOnly: true}
    - {name: config, mountPath: /config}
    - {name: secret, mountPath: /secret}
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: config, configMap: {name: words}}
  - {name: secret, secret: {secretName: words}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: words}, data: {word: open}}
---
{apiVersion: v1, kind: Secret, metadata: {name: words}, stringData: {word: sesame}}
";

#[tokio::test]
async fn an_ordinary_user_runs_pods_with_volumes_and_is_warned_once() {
    let home = Home::new();
    let manifest = home.manifest(VOLUMES);
    let output = output(&mut home.command(&["run", &manifest])).await;
    let said = stderr(&output);
    assert_eq!(
        stdout(&output),
        "[after] from the init container\n[after] open\n[after] sesame\n",
        "{said}"
    );
    assert_eq!(output.status.code(), Some(0), "{said}");
    let warnings: Vec<_> = said.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{said}");
    assert!(warnings[0].contains("not root: a program that breaks out of WebAssembly"), "{said}");
    // What it left is its own.
    let artifacts = home.machine.root.path().join("artifacts");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(artifacts).unwrap()), USER);
}

#[tokio::test]
async fn an_ordinary_user_has_pods_in_the_background() {
    let home = Home::new();
    // Only root has given it a program; the rest is its own.
    let file = home.machine.write("hello.wasm", fs::read(guest("hello.wasm")).unwrap());
    let started = home.ok(&["run", "-d", &file, "--", "tick"]).await;
    let name = started.split(['/', ' ']).nth(1).unwrap();
    krustlet_testkit::eventually("the pod runs", LIMIT, async || {
        home.ok(&["ps"]).await.contains("Running")
    })
    .await;
    assert_eq!(home.ok(&["exec", name, "--", "hello", "args", "x"]).await, "x\n");
    let log = fs::read_to_string(home.machine.root.path().join("agent.log")).unwrap();
    assert_eq!(log.matches("not root:").count(), 1, "{log}");
    home.ok(&["stop", name, "--grace-period", "1"]).await;
    home.machine.until_alone().await;
}
