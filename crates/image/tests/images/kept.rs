//! What is kept on disk, through restarts, crashes and removals.

use std::fs;

use krustlet_image::{Digest, OpenError, PullPolicy, RemoveError, open};

use crate::registry::{Fault, Registry};
use crate::{Bench, MODULE, config, program, until};

#[tokio::test]
async fn images_outlive_the_process() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    registry.add_module("a", "1", MODULE);
    let name = registry.name("a:1");
    let id = bench.pull(&name).await.unwrap().image.id;
    let bench = Bench::at(bench.stop().await, |_| {});
    registry.forget_seen();
    assert_eq!(program(&bench.ensure(&name, PullPolicy::Never).await.unwrap()), MODULE);
    assert_eq!(bench.images.inspect(&id).await.unwrap().id, id);
    let listed = bench.images.list().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].names, [name, id]);
    assert!(registry.seen("").is_empty());
}

#[tokio::test]
async fn what_a_crash_left_is_swept_and_what_is_damaged_is_pulled_again() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    registry.add_module("a", "1", MODULE);
    let other = [MODULE, b"\0\x01a"].concat();
    registry.add_module("b", "1", &other);
    bench.pull(&registry.name("a:1")).await.unwrap();
    bench.pull(&registry.name("b:1")).await.unwrap();
    let root = bench.root();
    let directory = bench.stop().await;
    fs::create_dir_all(root.join("tmp/half/deep")).unwrap();
    fs::write(root.join("tmp/half/deep/file"), "half a layer").unwrap();
    fs::write(root.join("blobs/sha256").join(Digest::of(b"x").hex()), "x").unwrap();
    fs::create_dir_all(root.join("roots/sha256").join(Digest::of(b"y").hex()).join("bin")).unwrap();
    fs::write(root.join("records/junk.json"), "{").unwrap();
    // A power cut may leave a file without its bytes.
    let blob = root.join("blobs/sha256").join(Digest::of(MODULE).hex());
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, "").unwrap();

    let bench = Bench::at(directory, |_| {});
    assert_eq!(bench.images.list().await.len(), 1);
    assert!(bench.files("tmp").is_empty());
    assert!(bench.files("roots").is_empty());
    assert_eq!(bench.files("blobs").len(), 1);
    assert_eq!(bench.files("records").len(), 1);
    let again = bench.pull(&registry.name("a:1")).await.unwrap();
    assert!(again.pull.is_some());
    assert_eq!(program(&again), MODULE);
}

#[tokio::test]
async fn a_pull_that_is_cut_off_leaves_nothing_to_see() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    registry.add_module("a", "1", MODULE);
    registry.fail("/blobs/", [Fault::Stall(3)]);
    let images = bench.images.clone();
    let name = registry.name("a:1");
    let request = krustlet_image::ImageRequest {
        asker: krustlet_image::Asker::Pod,
        reference: name.clone(),
        policy: PullPolicy::Always,
        credentials: Vec::new(),
    };
    let mut caller = tokio::task::JoinSet::new();
    caller.spawn(async move { images.ensure(request).await.map(|_| ()) });
    until(|| !registry.seen("/blobs/").is_empty()).await;
    let directory = bench.stop().await;
    let ended = caller.join_next().await.unwrap().unwrap();
    assert!(matches!(ended, Err(krustlet_image::PullError::Stopping)));
    let bench = Bench::at(directory, |_| {});
    assert!(bench.images.list().await.is_empty());
    assert!(bench.files("tmp").is_empty());
    assert!(bench.files("blobs").is_empty());
    bench.pull(&name).await.unwrap();
}

/// Where [`a_process_that_pulls`] keeps its store, and what it pulls.
const STORE_OF_CHILD: &str = "KRUSTLET_TEST_STORE";
const IMAGE_OF_CHILD: &str = "KRUSTLET_TEST_IMAGE";

#[tokio::test]
#[ignore = "run by `a_killed_process_leaves_nothing_to_see_and_no_lock`, as a process of its own"]
async fn a_process_that_pulls() {
    let (store, image) = (std::env::var(STORE_OF_CHILD), std::env::var(IMAGE_OF_CHILD));
    let (images, task) = open(config(store.unwrap().as_ref())).unwrap();
    let request = krustlet_image::ImageRequest {
        asker: krustlet_image::Asker::Pod,
        reference: image.unwrap(),
        policy: PullPolicy::Always,
        credentials: Vec::new(),
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let (_, ()) = tokio::join!(images.ensure(request), task.run(stop));
}

#[tokio::test]
async fn a_killed_process_leaves_nothing_to_see_and_no_lock() {
    let registry = Registry::start().await;
    registry.add_module("a", "1", MODULE);
    registry.fail("/blobs/", [Fault::Stall(3)]);
    let directory = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "kept::a_process_that_pulls"])
        .env(STORE_OF_CHILD, directory.path())
        .env(IMAGE_OF_CHILD, registry.name("a:1"))
        .spawn()
        .unwrap();
    until(|| !registry.seen("/blobs/").is_empty()).await;
    // It holds the store, and has begun to write.
    assert!(matches!(open(config(directory.path())), Err(OpenError::InUse { .. })));
    // SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();

    let bench = Bench::at(directory, |_| {});
    assert!(bench.images.list().await.is_empty());
    for folder in ["blobs", "roots", "records", "tmp"] {
        assert!(bench.files(folder).is_empty(), "{folder}");
    }
    assert_eq!(program(&bench.pull(&registry.name("a:1")).await.unwrap()), MODULE);
}

#[tokio::test]
async fn a_store_has_one_owner() {
    let bench = Bench::new();
    let second = open(config(bench.directory.path()));
    assert!(matches!(second, Err(OpenError::InUse { .. })));
    let directory = bench.stop().await;
    Bench::at(directory, |_| {});
}

#[tokio::test]
async fn what_is_in_use_is_not_removed() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    registry.add_module("a", "1", MODULE);
    registry.add_module("b", "1", MODULE);
    let (a, b) = (registry.name("a:1"), registry.name("b:1"));
    let held = bench.pull(&a).await.unwrap();
    bench.pull(&b).await.unwrap();
    assert!(matches!(bench.images.remove(&a).await, Err(RemoveError::InUse { .. })));
    assert!(bench.images.list().await.iter().all(|image| image.in_use));
    drop(held);
    bench.images.remove(&a).await.unwrap();
    assert!(matches!(bench.images.remove(&a).await, Err(RemoveError::NotFound { .. })));
    // The other reference has the same program.
    assert_eq!(program(&bench.ensure(&b, PullPolicy::Never).await.unwrap()), MODULE);
    bench.images.remove(&b).await.unwrap();
    for folder in ["blobs", "records", "tmp"] {
        assert!(bench.files(folder).is_empty(), "{folder}");
    }
}

#[tokio::test]
async fn an_image_whose_tag_moved_stays_while_it_is_used_even_through_a_restart() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    registry.add_module("a", "1", MODULE);
    let name = registry.name("a:1");
    let old = bench.ensure(&name, PullPolicy::Always).await.unwrap();
    let id = old.image.id.clone();
    let newer = [MODULE, b"\0\x01a"].concat();
    registry.add_module("a", "1", &newer);
    let new = bench.ensure(&name, PullPolicy::Always).await.unwrap();
    assert_ne!(new.image.id, id);
    assert_eq!(program(&new), newer);
    assert_eq!(program(&old), MODULE);
    drop((old, new));

    // Nobody holds it, but nobody had the time to say so after the restart.
    let bench = Bench::at(bench.stop().await, |_| {});
    let held = bench.images.inspect(&id).await.unwrap();
    bench.images.sweep().await;
    assert_eq!(bench.images.list().await.len(), 2);
    assert_eq!(fs::read(held.program(None).unwrap().path).unwrap(), MODULE);
    drop(held);
    until(|| bench.files("blobs").len() == 1 && bench.files("records").len() == 1).await;
    assert!(bench.images.inspect(&id).await.is_none());
    assert_eq!(program(&bench.ensure(&name, PullPolicy::Never).await.unwrap()), newer);
}
