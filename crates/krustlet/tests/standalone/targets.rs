//! What `krustlet run` can be pointed at.

use krustlet_image::Digest;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    machine::{LIMIT, Machine, end, guest, interrupt, project, stderr, stdout},
    registry::{OCI_INDEX, OCI_MANIFEST, Registry, WASM_CONFIG},
};

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
async fn a_directory_runs_every_manifest_in_it() {
    let machine = Machine::new();
    let directory = machine.root.path().join("manifests");
    machine.write("manifests/hello.wasm", std::fs::read(guest("hello.wasm")).unwrap());
    // The object is in another file than the pod that refers to it.
    machine.write(
        "manifests/1.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: words}\ndata: {word: swordfish}\n",
    );
    machine.write(
        "manifests/2.yml",
        r"
apiVersion: v1
kind: Pod
metadata: {name: second}
spec:
  restartPolicy: Never
  containers:
  - name: app
    image: hello
    args: [env, WORD]
    env: [{name: WORD, valueFrom: {configMapKeyRef: {name: words, key: word}}}]
",
    );
    machine.write(
        "manifests/3.json",
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "third"},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "app", "image": "hello", "args": ["args", "from-json"]}],
            },
        })
        .to_string(),
    );
    machine.write("manifests/notes.txt", "not a manifest");
    let text = machine.ok(&["run", directory.to_str().unwrap()]).await;
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[second/app] swordfish", "[third/app] from-json"]);
}

#[tokio::test]
async fn an_image_is_pulled_from_its_registry_and_run_once() {
    let registry = Registry::start().await;
    let program = std::fs::read(guest("hello.wasm")).unwrap();
    let digest = registry.add_module("tools/hello", "v1", &program);
    let mut machine = Machine::new();
    machine.trust(&registry);
    for name in ["tools/hello:v1".to_owned(), format!("tools/hello@{digest}")] {
        let reference = registry.name(&name);
        let output = machine.krustlet(&["run", &reference, "--", "args", "pulled"]).await;
        assert_eq!(stdout(&output), "pulled\n", "{}", stderr(&output));
        assert!(output.status.success());
    }
    let program = Digest::of(&program);
    assert_eq!(registry.seen(&format!("/blobs/{program}")).len(), 1, "it is fetched once");
}

#[tokio::test]
async fn an_image_layout_beside_the_manifest_supplies_the_image() {
    let machine = Machine::new();
    let program = std::fs::read(guest("hello.wasm")).unwrap();
    let blob = |content: &[u8], kind: &str| {
        let digest = Digest::of(content).to_string();
        machine.write(&format!("tool/blobs/{}", digest.replace(':', "/")), content);
        json!({"mediaType": kind, "digest": digest, "size": content.len()})
    };
    let text = |value: &Value| serde_json::to_vec(value).unwrap();
    let config = text(&json!({"architecture": "wasm", "os": "wasip1"}));
    let manifest = text(&json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": blob(&config, WASM_CONFIG),
        "layers": [blob(&program, "application/wasm")],
    }));
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [blob(&manifest, OCI_MANIFEST)],
    });
    machine.write("tool/index.json", text(&index));
    machine.write("tool/oci-layout", r#"{"imageLayoutVersion": "1.0.0"}"#);
    let manifest = machine.write(
        "pod.yaml",
        r"
apiVersion: v1
kind: Pod
metadata: {name: tool}
spec:
  restartPolicy: Never
  containers: [{name: app, image: registry.invalid/org/tool:v2, args: [args, from-a-layout]}]
",
    );
    assert_eq!(machine.ok(&["run", &manifest]).await, "from-a-layout\n");
}

#[tokio::test]
async fn mistakes_are_answered_with_what_why_and_how_to_mend() {
    let machine = Machine::new();
    let manifest = machine.write(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  \
         - {name: app, image: hello, comand: [x]}\n",
    );
    for (arguments, words) in [
        (vec!["run", manifest.as_str()], "unknown field \"spec.containers[0].comand\""),
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
    interrupt(&child);
    end(&mut child).await;
}
