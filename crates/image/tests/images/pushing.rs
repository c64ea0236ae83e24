//! Pushing, and bringing in images without a registry.

use std::fs;
use std::path::Path;

use krustlet_image::{Credential, Digest, ImportError, PullPolicy, PushError};
use serde_json::{Value, json};

use crate::registry::{Fault, Login, OCI_MANIFEST, Registry, WASM_CONFIG};
use crate::{Bench, MODULE, chain, program, soon};

fn write(directory: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = directory.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[tokio::test]
async fn what_is_pushed_is_the_conventions_artifact_and_can_be_pulled() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let file = write(bench.directory.path(), "a.wasm", MODULE);
    let pushed = soon(bench.images.push(&file, &registry.name("team/a:1"), &[])).await.unwrap();
    let manifest: Value =
        serde_json::from_slice(&registry.manifest_text("team/a/1").unwrap()).unwrap();
    assert_eq!(manifest["mediaType"], OCI_MANIFEST);
    assert_eq!(manifest["config"]["mediaType"], WASM_CONFIG);
    assert_eq!(manifest["layers"][0]["mediaType"], "application/wasm");
    assert_eq!(pushed.id, format!("{}@{}", registry.name("team/a"), pushed.digest));
    let pulled = bench.pull(&pushed.id).await.unwrap();
    assert_eq!(program(&pulled), MODULE);
    assert_eq!(pulled.image.bytes, pushed.bytes);

    // The same file is the same image, and nothing is sent twice.
    registry.forget_seen();
    let again = soon(bench.images.push(&file, &registry.name("team/a:2"), &[])).await.unwrap();
    assert_eq!(again.digest, pushed.digest);
    assert!(registry.seen("/uploads/").is_empty());
}

#[tokio::test]
async fn a_push_logs_in_and_survives_a_registry_that_stumbles() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let file = write(bench.directory.path(), "a.wasm", MODULE);
    registry.require(Login::Token(Some("YW5uOnNlY3JldA==")));
    let name = registry.name("a:1");
    let error = soon(bench.images.push(&file, &name, &[])).await.unwrap_err();
    assert!(chain(&error).contains("refused access"), "{}", chain(&error));
    let host = registry.address.to_string();
    let logins = ["eve", "ann"].map(|user| Credential::basic(&host, user, "secret").unwrap());
    registry.fail("/uploads/", [Fault::Status(503, "")]);
    registry.fail("/manifests/", [Fault::Status(500, "")]);
    soon(bench.images.push(&file, &name, &logins)).await.unwrap();
    bench.ensure_as(&name, PullPolicy::Always, logins.to_vec()).await.unwrap();
}

#[tokio::test]
async fn only_webassembly_is_pushed_and_only_to_tags() {
    let bench = Bench::new();
    let native = write(bench.directory.path(), "a.wasm", b"\x7fELF\x02\x01\x01\0");
    let error = bench.images.push(&native, "127.0.0.1:1/a", &[]).await.unwrap_err();
    assert!(chain(&error).contains("precompiled"), "{}", chain(&error));
    let pinned = format!("127.0.0.1:1/a@{}", Digest::of(b""));
    let error = bench.images.push(&native, &pinned, &[]).await.unwrap_err();
    assert!(matches!(error, PushError::ByDigest));
}

#[tokio::test]
async fn an_imported_file_is_an_image_like_any_other() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let file = write(bench.directory.path(), "a.wasm", MODULE);
    let image = bench.images.import(&file, "hello:dev").await.unwrap();
    assert_eq!(image.reference, "docker.io/library/hello:dev");
    let found = bench.ensure("hello:dev", PullPolicy::Never).await.unwrap();
    assert_eq!(program(&found), MODULE);
    // Pushed, it has the same digest.
    let pushed = soon(bench.images.push(&file, &registry.name("a:1"), &[])).await.unwrap();
    assert_eq!(pushed.digest, image.digest);

    let text = write(bench.directory.path(), "a.wat", b"(module)");
    let error = bench.images.import(&text, "text").await.unwrap_err();
    assert!(chain(&error).contains("text"), "{}", chain(&error));
    let missing = bench.directory.path().join("missing.wasm");
    let error = bench.images.import(&missing, "missing").await.unwrap_err();
    assert!(matches!(error, ImportError::Artifact { .. }), "{error}");
}

/// Writes a layout with one artifact and returns its directory and program blob.
fn layout(directory: &Path, tag: Option<&str>) -> (std::path::PathBuf, std::path::PathBuf) {
    let path = directory.join("layout");
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": kind, "digest": digest.to_string(), "size": bytes.len() })
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": put(WASM_CONFIG, b"{}"), "layers": [put("application/wasm", MODULE)],
    });
    let mut entry = put(OCI_MANIFEST, &serde_json::to_vec(&manifest).unwrap());
    if let Some(tag) = tag {
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    }
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(path.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    (path, blobs.join(Digest::of(MODULE).hex()))
}

#[tokio::test]
async fn a_layout_is_checked_as_strictly_as_a_registry() {
    let bench = Bench::new();
    let (path, blob) = layout(bench.directory.path(), Some("1"));
    fs::write(&blob, b"\0asm\x02\0\0\0").unwrap();
    let error = bench.images.import(&path, "hello:1").await.unwrap_err();
    assert!(chain(&error).contains("has the digest"), "{}", chain(&error));
    fs::write(&blob, b"\0asm").unwrap();
    let error = bench.images.import(&path, "hello:1").await.unwrap_err();
    assert!(chain(&error).contains("bytes"), "{}", chain(&error));
    assert!(bench.images.list().await.is_empty());
    fs::write(&blob, MODULE).unwrap();
    bench.images.import(&path, "hello:1").await.unwrap();
    assert_eq!(program(&bench.pull("hello:1").await.unwrap()), MODULE);
    let nothing = bench.directory.path().join("store");
    let error = bench.images.import(&nothing, "x").await.unwrap_err();
    assert!(chain(&error).contains("not an OCI image layout"), "{}", chain(&error));
}
