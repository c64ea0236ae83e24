//! Transfers that go wrong, and how often anything is fetched.

use std::time::Duration;

use krustlet_image::{Digest, Mirror, PullError, PullPolicy};
use serde_json::json;

use crate::registry::{Fault, OCI_MANIFEST, Registry, WASM_CONFIG};
use crate::{Bench, MODULE, chain, program, soon};

/// A program of some size.
fn large() -> Vec<u8> {
    let mut bytes = MODULE.to_vec();
    bytes.extend((0..1_000_000_u32).flat_map(u32::to_le_bytes));
    bytes
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    registry.add_module("a", "1", MODULE);
    registry
        .fail("/manifests/", [Fault::Busy(429, 0), Fault::Status(503, ""), Fault::Status(500, "")]);
    registry.fail("/blobs/", [Fault::Status(502, "")]);
    let pulled = bench.pull(&registry.name("a:1")).await.unwrap();
    assert_eq!(program(&pulled), MODULE);
    assert_eq!(registry.seen("/manifests/").len(), 4);
    assert_eq!(registry.seen("/blobs/").len(), 2);
}

#[tokio::test]
async fn attempts_end_and_the_reason_is_told() {
    let registry = Registry::start().await;
    let bench = Bench::with(|config| config.limits.attempts = 3);
    registry.add_module("a", "1", MODULE);
    let denied = r#"{"errors":[{"code":"DENIED","message":"not\nyours"}]}"#;
    for (status, text, requests, reason, says) in [
        (500, "", 3, "RegistryUnavailable", "status 500"),
        (429, "", 3, "RegistryUnavailable", "status 429"),
        (403, denied, 1, "ErrImagePull", "refused access: DENIED: notyours"),
        (404, "", 1, "ErrImagePull", "no such image"),
        (418, "", 1, "ErrImagePull", "status 418"),
    ] {
        registry.forget_seen();
        registry.fail("/manifests/", vec![Fault::Status(status, text); requests]);
        let error = bench.pull(&registry.name("a:1")).await.unwrap_err();
        assert_eq!(error.reason(), reason);
        assert!(error.is_transient());
        assert!(chain(&error).contains(says), "{}", chain(&error));
        assert_eq!(registry.seen("").len(), requests, "{status}");
    }
    // More patience than a pull has is left to the pod.
    registry.forget_seen();
    registry.fail("/manifests/", [Fault::Busy(429, 3600)]);
    bench.pull(&registry.name("a:1")).await.unwrap_err();
    assert_eq!(registry.seen("").len(), 1);
    bench.pull(&registry.name("a:1")).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unavailable() {
    let bench = Bench::with(|config| config.limits.attempts = 2);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = bench.pull(&format!("{gone}/a:1")).await.unwrap_err();
    assert_eq!(error.reason(), "RegistryUnavailable");
    assert!(chain(&error).contains("cannot reach"), "{}", chain(&error));
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_stopped() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let program_bytes = large();
    registry.add_module("a", "1", &program_bytes);
    registry.fail("/blobs/", [Fault::Break(1_500_000), Fault::Break(500_000)]);
    let pulled = bench.pull(&registry.name("a:1")).await.unwrap();
    assert_eq!(program(&pulled), program_bytes);
    let ranges: Vec<_> = registry.seen("/blobs/");
    assert_eq!(ranges.len(), 3);
    assert_eq!(ranges[0].header("range"), None);
    // What was under way when the connection broke may or may not have arrived.
    let start = |at: usize| -> u64 {
        let range: &str = ranges[at].header("range").unwrap();
        range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap()
    };
    assert!(start(1) > 0 && start(1) <= 1_500_000);
    assert!(start(2) >= start(1) && start(2) <= start(1) + 500_000);
}

#[tokio::test]
async fn a_registry_without_ranges_sends_all_again() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let program_bytes = large();
    registry.add_module("a", "1", &program_bytes);
    registry.fail("/blobs/", [Fault::Break(1_500_000), Fault::IgnoreRange]);
    let pulled = bench.pull(&registry.name("a:1")).await.unwrap();
    assert_eq!(program(&pulled), program_bytes);
}

#[tokio::test]
async fn bytes_that_are_not_what_their_digest_says_are_never_seen() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let digest = registry.add_module("a", "1", MODULE);
    let lie = b"\0asm\x02\0\0\0".to_vec();
    registry.fail("/blobs/", [Fault::Body(lie)]);
    let error = bench.pull(&registry.name("a:1")).await.unwrap_err();
    assert!(chain(&error).contains("has the digest"), "{}", chain(&error));
    assert!(error.is_transient());

    registry.fail("/manifests/", [Fault::Body(b"{}".to_vec())]);
    let error = bench.pull(&registry.name(&format!("a@{digest}"))).await.unwrap_err();
    assert!(chain(&error).contains("has the digest"), "{}", chain(&error));
    assert!(bench.images.list().await.is_empty());
    for folder in ["blobs", "tmp", "records"] {
        assert!(bench.files(folder).is_empty(), "{folder}");
    }
    bench.pull(&registry.name(&format!("a@{digest}"))).await.unwrap();
}

#[tokio::test]
async fn a_manifest_that_lies_about_a_size_is_found_out() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    for (tag, size) in [("more", MODULE.len() + 1), ("less", MODULE.len() - 1)] {
        let mut manifest =
            registry.manifest((WASM_CONFIG, &json!({})), &[("application/wasm", MODULE)]);
        manifest["layers"][0]["size"] = json!(size);
        registry.add_document("a", tag, OCI_MANIFEST, &manifest);
        let error = bench.pull(&registry.name(&format!("a:{tag}"))).await.unwrap_err();
        assert!(chain(&error).contains("whose manifest says"), "{}", chain(&error));
    }
    // Without a length to compare, what comes decides.
    registry.add_module("a", "1", MODULE);
    registry.fail("/blobs/", [Fault::Endless(vec![0; 1 << 20])]);
    let error = bench.pull(&registry.name("a:1")).await.unwrap_err();
    assert!(chain(&error).contains("whose manifest says"), "{}", chain(&error));
    assert!(bench.files("tmp").is_empty());
}

#[tokio::test]
async fn what_is_too_large_is_not_even_asked_for() {
    let registry = Registry::start().await;
    let bench = Bench::with(|config| config.limits.blob_bytes = 1000);
    registry.add_module("a", "1", &large());
    let error = bench.pull(&registry.name("a:1")).await.unwrap_err();
    assert!(error.to_string().contains("more than the 1000"), "{error}");
    assert!(!error.is_transient());
    assert!(registry.seen("/blobs/").is_empty());
    registry.fail("/manifests/", [Fault::Body(vec![b' '; 5 << 20])]);
    let error = bench.pull(&registry.name("a:1")).await.unwrap_err();
    assert!(chain(&error).contains("larger than"), "{}", chain(&error));
}

#[tokio::test]
async fn a_silent_registry_is_given_up() {
    let registry = Registry::start().await;
    let bench = Bench::with(|config| {
        config.limits.stall = Duration::from_millis(100);
        config.limits.attempts = 2;
    });
    registry.add_module("a", "1", MODULE);
    registry.fail("/blobs/", [Fault::Stall(3), Fault::Stall(0)]);
    let error = bench.pull(&registry.name("a:1")).await.unwrap_err();
    assert!(chain(&error).contains("silent"), "{}", chain(&error));
    assert_eq!(error.reason(), "RegistryUnavailable");
    assert_eq!(registry.seen("/blobs/").len(), 2);

    let bench = Bench::with(|config| config.limits.total = Duration::from_millis(100));
    registry.fail("/blobs/", [Fault::Stall(3)]);
    let error = bench.pull(&registry.name("a:1")).await.unwrap_err();
    assert!(matches!(error, PullError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn redirects_are_followed_but_not_anywhere() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let digest = Digest::of(MODULE);
    let cdn = Registry::start().await;
    cdn.add_blob(MODULE);
    registry.add_module("a", "1", MODULE);
    for (to, says) in [
        ("http://169.254.169.254/latest/meta-data".to_owned(), "metadata address"),
        ("http://[::ffff:169.254.169.254]/".to_owned(), "metadata address"),
        ("file:///etc/passwd".to_owned(), "not a way"),
    ] {
        registry.fail("/blobs/", [Fault::Redirect(to)]);
        let error = bench.pull(&registry.name("a:1")).await.unwrap_err();
        assert!(chain(&error).contains(says), "{}", chain(&error));
    }
    registry.fail("/blobs/", vec![Fault::Redirect(format!("/v2/a/blobs/{digest}")); 6]);
    let error = bench.pull(&registry.name("a:1")).await.unwrap_err();
    assert!(chain(&error).contains("more than 5 times"), "{}", chain(&error));

    registry.forget_seen();
    registry
        .fail("/blobs/", [Fault::Redirect(format!("http://{}/v2/x/blobs/{digest}", cdn.address))]);
    bench.pull(&registry.name("a:1")).await.unwrap();
    assert_eq!(registry.seen("/blobs/").len(), 1);
    assert_eq!(cdn.seen("").len(), 1);
}

#[tokio::test]
async fn an_image_that_is_here_is_not_asked_for_again() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    let name = registry.name("a:1");
    let error = bench.ensure(&name, PullPolicy::Never).await.unwrap_err();
    assert_eq!(error.reason(), "ErrImageNeverPull");
    registry.add_module("a", "1", MODULE);
    let first = bench.pull(&name).await.unwrap();
    assert_eq!(first.pull.unwrap().bytes, MODULE.len() as u64);
    registry.forget_seen();
    assert!(bench.pull(&name).await.unwrap().pull.is_none());
    assert!(bench.ensure(&name, PullPolicy::Never).await.unwrap().pull.is_none());
    // By digest it is the same image.
    assert!(bench.pull(&first.image.id).await.unwrap().pull.is_none());
    assert!(registry.seen("").is_empty());
    let again = bench.ensure(&name, PullPolicy::Always).await.unwrap();
    assert_eq!(again.pull.unwrap().bytes, 0);
    assert_eq!(registry.seen("").len(), 1);
    let error = bench.pull("Not A Reference").await.unwrap_err();
    assert_eq!(error.reason(), "InvalidImageName");
}

#[tokio::test]
async fn callers_at_the_same_time_share_one_download() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    registry.add_module("a", "1", &large());
    registry.add_module("b", "2", &large());
    let (a, b) = (registry.name("a:1"), registry.name("b:2"));
    let pulls = (0..20).map(|at| bench.pull(if at % 2 == 0 { &a } else { &b }));
    for pulled in soon(futures::future::join_all(pulls)).await {
        assert_eq!(program(&pulled.unwrap()), large());
    }
    assert_eq!(registry.seen("/v2/a/manifests/").len(), 1);
    // Two images of one program fetch it once.
    assert_eq!(registry.seen("/blobs/").len(), 1);
}

#[tokio::test]
async fn no_more_images_are_pulled_at_once_than_is_allowed() {
    let registry = Registry::start().await;
    let bench = Bench::with(|config| {
        config.limits.parallel = 1;
        config.limits.stall = Duration::from_millis(500);
    });
    registry.add_module("a", "1", MODULE);
    registry.add_module("b", "1", &[MODULE, b"\0\x01b"].concat());
    registry.fail("/v2/a/blobs/", [Fault::Stall(3)]);
    let (a, b) = (registry.name("a:1"), registry.name("b:1"));
    let (first, second) = tokio::join!(bench.pull(&a), bench.pull(&b));
    first.unwrap();
    second.unwrap();
    // While the first stood still the second was not begun.
    let seen = registry.seen("");
    let last = seen.iter().rposition(|seen| seen.path.starts_with("/v2/a/")).unwrap();
    let next = seen.iter().position(|seen| seen.path.starts_with("/v2/b/")).unwrap();
    assert!(last < next, "{last} {next}");
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_helps_out() {
    let (mirror, origin) = (Registry::start().await, Registry::start().await);
    let bench = Bench::with(|config| {
        config.registries.mirrors = vec![Mirror {
            prefix: origin.address.to_string(),
            endpoints: vec![format!("http://{}/cache", mirror.address)],
            fall_back: true,
        }];
    });
    mirror.add_module("cache/a", "1", MODULE);
    let pulled = bench.pull(&origin.name("a:1")).await.unwrap();
    assert_eq!(pulled.image.reference, origin.name("a:1"));
    assert!(origin.seen("").is_empty());

    let other = [MODULE, b"\0\x01a"].concat();
    origin.add_module("b", "1", &other);
    assert_eq!(program(&bench.pull(&origin.name("b:1")).await.unwrap()), other);

    // A mirror with bad bytes does no harm.
    let third = [MODULE, b"\0\x01b"].concat();
    mirror.add_module("cache/c", "1", &third);
    origin.add_module("c", "1", &third);
    mirror.fail("/blobs/", [Fault::Body(vec![9; third.len()])]);
    assert_eq!(program(&bench.pull(&origin.name("c:1")).await.unwrap()), third);
}
