//! Which images are taken, and what becomes of them.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use krustlet_image::{Content, Digest, Ensured, FormatError, PullPolicy};
use serde_json::{Value, json};

use crate::registry::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Registry, WASM_CONFIG};
use crate::{Bench, MODULE, chain, program};

const TAR_GZ: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A file of an archive: name, kind, content or target.
pub(crate) type Entry<'a> = (&'a [u8], tar::EntryType, &'a [u8]);

/// An archive with any names at all.
pub(crate) fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_mtime(1_000_000_000);
        let is_link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
        if is_link {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content);
        }
        let content = if is_link { &[] } else { *content };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The configuration of an image with these archives as layers.
fn image_config(archives: &[&[u8]]) -> Value {
    let ids: Vec<_> = archives.iter().map(|bytes| Digest::of(bytes).to_string()).collect();
    json!({
        "os": "wasi",
        "architecture": "wasm",
        "rootfs": { "type": "layers", "diff_ids": ids },
        "config": { "Entrypoint": ["/app.wasm"], "Env": ["A=1"], "WorkingDir": "/work", "User": "7" },
    })
}

/// Pulls an image of one layer with these files.
async fn pull_files(
    bench: &Bench,
    registry: &Registry,
    entries: &[Entry<'_>],
) -> Result<Ensured, String> {
    let archive = archive(entries);
    let config = image_config(&[&archive]);
    registry.add_image("files", "1", (OCI_CONFIG, &config), &[(TAR_GZ, &gzip(&archive))]);
    let pulled = bench.ensure(&registry.name("files:1"), PullPolicy::Always).await;
    pulled.map_err(|error| chain(&error))
}

#[tokio::test]
async fn every_image_of_one_program_is_taken_and_the_program_is_what_was_pushed() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let wasm_config = json!({ "architecture": "wasm", "os": "wasip1" });
    let oci_config = json!({
        "architecture": "wasm", "os": "wasi", "config": { "Entrypoint": ["x.wasm"], "Env": ["A=b"] }
    });
    let old = "application/vnd.wasm.content.layer.v1+wasm";
    let component = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";
    let images = [
        ("f1", WASM_CONFIG, &wasm_config, "application/wasm"),
        ("f3", OCI_CONFIG, &oci_config, component),
        ("f4", "application/vnd.wasm.config.v1+json", &json!({}), old),
    ];
    for (name, kind, config, layer) in images {
        let digest = registry.add_image(name, "1", (kind, config), &[(layer, MODULE)]);
        let pulled = bench.pull(&registry.name(&format!("{name}:1"))).await.unwrap();
        assert_eq!(program(&pulled), MODULE, "{name}");
        assert_eq!(pulled.image.digest, digest.to_string());
        assert_eq!(pulled.image.id, format!("{}@{digest}", registry.name(name)));
        let found = pulled.image.program(None).unwrap();
        assert_eq!(found.digest, Digest::of(MODULE).to_string());
    }
    let f3 = bench.images.inspect(&registry.name("f3:1")).await.unwrap();
    assert_eq!(f3.config.entrypoint, ["x.wasm"]);
    assert_eq!(f3.config.env, ["A=b"]);
    // The first Krustlet's configuration was not always JSON.
    let manifest = registry.manifest(("x/y", &json!("no object")), &[(old, MODULE)]);
    registry.add_document("raw", "1", OCI_MANIFEST, &manifest);
    assert_eq!(program(&bench.pull(&registry.name("raw:1")).await.unwrap()), MODULE);
}

#[tokio::test]
async fn layers_become_a_root_file_system_with_deletions_applied() {
    use tar::EntryType as Kind;
    let registry = Registry::start().await;
    let bench = Bench::new();
    let low = archive(&[
        (b"app.wasm", Kind::Regular, MODULE),
        (b"./etc/", Kind::Directory, b""),
        (b"etc/old", Kind::Regular, b"old"),
        (b"etc/kept", Kind::Regular, b"kept"),
        (b"data/low", Kind::Regular, b"low"),
        (b"data/sub/low", Kind::Regular, b"low"),
        (b"lib", Kind::Symlink, b"/usr/lib"),
        (b"usr/lib/x", Kind::Regular, b"x"),
    ]);
    let high = archive(&[
        (b"etc/.wh.old", Kind::Regular, b""),
        (b"data/sub/high", Kind::Regular, b"high"),
        (b"data/.wh..wh..opq", Kind::Regular, b""),
        // Through the link of the layer below.
        (b"lib/y", Kind::Regular, b"y"),
        (b"copy.wasm", Kind::Link, b"app.wasm"),
    ]);
    let config = image_config(&[&low, &high]);
    let zstd = zstd::encode_all(high.as_slice(), 3).unwrap();
    let layers: [(&str, &[u8]); 2] = [(TAR_GZ, &gzip(&low)), (TAR_ZSTD, &zstd)];
    registry.add_image("files", "1", (OCI_CONFIG, &config), &layers);
    let pulled = bench.pull(&registry.name("files:1")).await.unwrap();
    let Content::RootFs { path } = &pulled.image.content else { panic!("not a root") };
    let read = |name: &str| std::fs::read_to_string(path.join(name)).ok();
    assert_eq!(read("etc/old"), None);
    assert_eq!(read("etc/kept").as_deref(), Some("kept"));
    assert_eq!(read("data/low"), None);
    assert_eq!(read("data/sub/low"), None);
    assert_eq!(read("data/sub/high").as_deref(), Some("high"));
    assert_eq!(read("usr/lib/y").as_deref(), Some("y"));
    assert_eq!(std::fs::read_link(path.join("lib")).unwrap(), std::path::Path::new("usr/lib"));
    for name in [None, Some("/copy.wasm"), Some("app.wasm")] {
        let found = pulled.image.program(name).unwrap();
        assert_eq!(std::fs::read(&found.path).unwrap(), MODULE);
        assert_eq!(found.digest, Digest::of(MODULE).to_string());
    }
    assert_eq!(pulled.image.config.working_dir.as_deref(), Some("/work"));
    assert_eq!(pulled.image.config.user.as_deref(), Some("7"));
    assert!(bench.files("tmp").is_empty());
}

#[tokio::test]
async fn an_image_that_crun_runs_is_taken_whatever_its_platform_says() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let archive = archive(&[(b"app.wasm", tar::EntryType::Regular, MODULE)]);
    let mut config = image_config(&[&archive]);
    config["os"] = json!("linux");
    config["architecture"] = json!("amd64");
    let mut manifest = registry.manifest((OCI_CONFIG, &config), &[(TAR_GZ, &gzip(&archive))]);
    manifest["annotations"] = json!({ "module.wasm.image/variant": "compat-smart" });
    registry.add_document("crun", "1", OCI_MANIFEST, &manifest);
    let pulled = bench.pull(&registry.name("crun:1")).await.unwrap();
    pulled.image.program(None).unwrap();
}

#[tokio::test]
async fn of_an_index_the_wasm_variant_is_fetched_and_no_other() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let entry = |registry: &Registry, os: &str, arch: &str, program: &[u8]| {
        let manifest =
            registry.manifest((WASM_CONFIG, &json!({})), &[("application/wasm", program)]);
        let digest = registry.add_document("multi", arch, OCI_MANIFEST, &manifest);
        let size = serde_json::to_vec(&manifest).unwrap().len();
        json!({
            "mediaType": OCI_MANIFEST, "digest": digest.to_string(), "size": size,
            "platform": { "os": os, "architecture": arch },
        })
    };
    let other = [MODULE, b"\0\x01a"].concat();
    let linux = entry(&registry, "linux", "amd64", b"elf");
    let preview1 = entry(&registry, "wasip1", "wasm", &other);
    let wasi = entry(&registry, "wasi", "wasm", MODULE);
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [linux, preview1, wasi],
    });
    let digest = registry.add_document("multi", "1", OCI_INDEX, &index);
    let pulled = bench.pull(&registry.name("multi:1")).await.unwrap();
    assert_eq!(program(&pulled), MODULE);
    // The image is known by what the tag means, as with containerd.
    assert_eq!(pulled.image.digest, digest.to_string());
    assert_eq!(registry.seen("/blobs/").len(), 1);
}

#[tokio::test]
async fn an_image_for_linux_is_refused_with_advice_and_nothing_of_it_is_fetched() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let digest = Digest::of(b"x").to_string();
    let entry = |arch| {
        json!({
            "mediaType": OCI_MANIFEST, "digest": digest, "size": 9,
            "platform": { "os": "linux", "architecture": arch },
        })
    };
    let index = json!({ "schemaVersion": 2, "manifests": [entry("amd64"), entry("arm64")] });
    registry.add_document("nginx", "1.28", OCI_INDEX, &index);
    let name = registry.name("nginx:1.28");
    let error = bench.pull(&name).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "image {name:?} has no WebAssembly variant (found: linux/amd64, linux/arm64); this node \
             runs wasi/wasm only. Schedule it on another node, e.g. nodeSelector \
             kubernetes.io/arch=amd64"
        )
    );
    assert_eq!(error.reason(), "ErrImagePull");
    assert!(!error.is_transient());
    assert_eq!(registry.seen("").len(), 1);
}

#[tokio::test]
async fn native_code_and_text_are_refused_and_not_kept() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    for (name, program, says) in [
        ("native", &b"\x7fELF\x02\x01\x01\0compiled"[..], "precompiled"),
        ("text", b"(module)", "text"),
        ("other", b"hello there", "not a WebAssembly binary"),
    ] {
        registry.add_module(name, "1", program);
        let error = bench.pull(&registry.name(&format!("{name}:1"))).await.unwrap_err();
        assert!(chain(&error).contains(says), "{}", chain(&error));
        assert!(!error.is_transient());
    }
    assert!(bench.images.list().await.is_empty());
    for folder in ["blobs", "tmp", "records"] {
        assert!(bench.files(folder).is_empty(), "{folder}");
    }
}

#[tokio::test]
async fn a_spin_application_is_sent_to_spinkube() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let layers: [(&str, &[u8]); 2] = [
        ("application/vnd.wasm.content.layer.v1+wasm", MODULE),
        ("application/vnd.fermyon.spin.application.v1+config", b"{}"),
    ];
    registry.add_image("spin", "1", (OCI_CONFIG, &json!({})), &layers);
    let error = bench.pull(&registry.name("spin:1")).await.unwrap_err();
    assert!(error.to_string().contains("SpinKube"), "{error}");
    assert!(matches!(
        error,
        krustlet_image::PullError::Content(krustlet_image::ContentError::Format(
            FormatError::Spin { .. }
        ))
    ));
}

#[tokio::test]
async fn hostile_archives_are_refused_by_name_and_leave_nothing() {
    use tar::EntryType as Kind;
    let registry = Registry::start().await;
    let bench = Bench::with(|config| config.limits.unpacked_entries = 50);
    let cases: [(&[Entry<'_>], &str); 9] = [
        (&[(b"../evil", Kind::Regular, b"x")], "`..`"),
        (&[(b"a/../../evil", Kind::Regular, b"x")], "`..`"),
        (&[(b"/etc/evil", Kind::Regular, b"x")], "absolute"),
        (&[(b"dev/null", Kind::Char, b"")], "device"),
        (&[(b"dev/sda", Kind::Block, b"")], "device"),
        (&[(b"pipe", Kind::Fifo, b"")], "pipe"),
        (&[(b"hard", Kind::Link, b"../../../etc/passwd")], "`..`"),
        (&[(b"hard", Kind::Link, b"/etc/passwd")], "absolute"),
        (&[(b"soft", Kind::Symlink, b"/etc/passwd"), (b"hard", Kind::Link, b"soft")], "not a file"),
    ];
    for (entries, says) in cases {
        let error = pull_files(&bench, &registry, entries).await.unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    let many: Vec<_> = (0..51).map(|n| format!("f{n}")).collect();
    let many: Vec<Entry<'_>> =
        many.iter().map(|name| (name.as_bytes(), Kind::Regular, &b""[..])).collect();
    let error = pull_files(&bench, &registry, &many).await.unwrap_err();
    assert!(error.contains("more files"), "{error}");
    for folder in ["roots", "tmp", "records"] {
        assert!(bench.files(folder).is_empty(), "{folder}");
    }
}

#[tokio::test]
async fn what_is_written_through_a_link_stays_inside() {
    use tar::EntryType as Kind;
    let registry = Registry::start().await;
    let bench = Bench::new();
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap().as_bytes().to_vec();
    let pulled = pull_files(
        &bench,
        &registry,
        &[
            (b"out", Kind::Symlink, &target),
            (b"out/evil", Kind::Regular, b"x"),
            (b"up", Kind::Symlink, b"../../../../../../../../tmp"),
            (b"up/evil", Kind::Regular, b"x"),
        ],
    )
    .await;
    // A link to nowhere cannot be written through; it may be refused, but not followed.
    assert!(crate::files(outside.path()).is_empty());
    assert!(!std::path::Path::new("/tmp/evil").exists());
    drop(pulled);
}

#[tokio::test]
async fn an_archive_that_unfolds_without_end_is_stopped() {
    use tar::EntryType as Kind;
    let registry = Registry::start().await;
    let bench = Bench::with(|config| config.limits.unpacked_bytes = 4 << 20);
    let zeros = vec![0; 32 << 20];
    let error =
        pull_files(&bench, &registry, &[(b"big", Kind::Regular, &zeros)]).await.unwrap_err();
    assert!(error.contains("more bytes"), "{error}");
    // As a header, it would be kept in memory.
    let bench = Bench::new();
    let error = pull_files(&bench, &registry, &[(b"long", Kind::GNULongName, &zeros)]).await;
    let error = error.unwrap_err();
    assert!(error.contains("headers"), "{error}");
    assert!(bench.files("tmp").is_empty());
}

#[tokio::test]
async fn layers_that_are_damaged_or_not_what_the_image_says_are_refused() {
    use tar::EntryType as Kind;
    let registry = Registry::start().await;
    let bench = Bench::new();
    let archive = archive(&[(b"app.wasm", Kind::Regular, &[7; 5000])]);
    let config = image_config(&[&archive]);
    let cut = &gzip(&archive)[..20];
    registry.add_image("cut", "1", (OCI_CONFIG, &config), &[(TAR_GZ, cut)]);
    let error = bench.pull(&registry.name("cut:1")).await.unwrap_err();
    assert!(chain(&error).contains("damaged"), "{}", chain(&error));

    let wrong = image_config(&[b"something else"]);
    registry.add_image("wrong", "1", (OCI_CONFIG, &wrong), &[(TAR_GZ, &gzip(&archive))]);
    let error = bench.pull(&registry.name("wrong:1")).await.unwrap_err();
    assert!(chain(&error).contains("configuration says"), "{}", chain(&error));
    assert!(bench.images.list().await.is_empty());
}
