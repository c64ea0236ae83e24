//! Who gets an image that is here.

use std::fs;

use krustlet_image::{
    Asker, Credential, Ensured, ImageRequest, Mirror, PullError, PullPolicy, SecretSource,
    VerificationPolicy,
};
use serde_json::Value;

use crate::registry::{Fault, Login, Registry};
use crate::{Bench, MODULE, chain, soon, until};

/// `ann:secret`
const ANN: &str = "YW5uOnNlY3JldA==";
/// `bob:other`
const BOB: &str = "Ym9iOm90aGVy";

/// The login of a Secret in a namespace.
fn of(registry: &Registry, namespace: &str, user: &str, password: &str) -> Vec<Credential> {
    let source = SecretSource {
        uid: format!("uid-{namespace}"),
        namespace: namespace.to_owned(),
        name: "pull".to_owned(),
    };
    let login = Credential::basic(&registry.address.to_string(), user, password).unwrap();
    vec![login.of_secret(source)]
}

fn ann(registry: &Registry, namespace: &str) -> Vec<Credential> {
    of(registry, namespace, "ann", "secret")
}

/// A registry that wants `ann:secret` and has `a:1`.
async fn private() -> (Registry, String) {
    let registry = Registry::start().await;
    registry.require(Login::Basic(ANN));
    registry.add_module("a", "1", MODULE);
    let name = registry.name("a:1");
    (registry, name)
}

/// Has the image given without a word to the registry.
async fn is_given(bench: &Bench, registry: &Registry, name: &str, login: Vec<Credential>) -> bool {
    registry.forget_seen();
    let answer = bench.ensure_as(name, PullPolicy::Never, login).await;
    assert!(registry.seen("").is_empty(), "the registry was asked");
    match answer {
        Ok(Ensured { pull, .. }) => {
            assert!(pull.is_none());
            true
        }
        Err(error) => {
            // In the words for an image that is not here: its presence is not given away.
            assert_eq!(error.reason(), "ErrImageNeverPull");
            assert_eq!(
                chain(&error),
                format!("image {name:?} is not present with pull policy of Never")
            );
            false
        }
    }
}

async fn by_the_operator(bench: &Bench, name: &str) {
    let request = ImageRequest {
        asker: Asker::Operator,
        reference: name.to_owned(),
        policy: PullPolicy::Always,
        credentials: Vec::new(),
    };
    soon(bench.images.ensure(request)).await.unwrap();
}

#[tokio::test]
async fn what_one_secret_pulled_is_not_for_pods_without_it() {
    let (registry, name) = private().await;
    let bench = Bench::new();
    bench.ensure_as(&name, PullPolicy::IfNotPresent, ann(&registry, "a")).await.unwrap();
    assert!(is_given(&bench, &registry, &name, ann(&registry, "a")).await);
    assert!(!is_given(&bench, &registry, &name, Vec::new()).await);
    assert!(!is_given(&bench, &registry, &name, of(&registry, "b", "bob", "other")).await);

    // One that may ask does so, and is refused as for an image that is not here.
    for login in [Vec::new(), of(&registry, "b", "bob", "other")] {
        let error = bench.ensure_as(&name, PullPolicy::IfNotPresent, login).await.unwrap_err();
        assert_eq!(error.reason(), "ErrImagePull");
        assert!(chain(&error).contains("refused access"), "{}", chain(&error));
    }
    // A refusal of one takes nothing from the other.
    assert!(is_given(&bench, &registry, &name, ann(&registry, "a")).await);
    // The image by its digest is the same image.
    let id = bench.images.inspect(&name).await.unwrap().id;
    let by_id = bench.ensure_as(&id, PullPolicy::Never, Vec::new()).await;
    assert!(matches!(by_id, Err(PullError::NeverPulled { .. })));
    bench.ensure_as(&id, PullPolicy::Never, ann(&registry, "a")).await.unwrap();
}

#[tokio::test]
async fn who_proves_a_right_to_the_registry_has_it_from_then_on_and_fetches_nothing() {
    let (registry, name) = private().await;
    let bench = Bench::new();
    bench.ensure_as(&name, PullPolicy::IfNotPresent, ann(&registry, "a")).await.unwrap();
    registry.require(Login::Basic(BOB));
    registry.forget_seen();
    let bob = of(&registry, "b", "bob", "other");
    let proven = bench.ensure_as(&name, PullPolicy::IfNotPresent, bob.clone()).await.unwrap();
    assert_eq!(proven.pull.unwrap().bytes, 0);
    assert!(!registry.seen("/manifests/").is_empty());
    assert!(registry.seen("/blobs/").is_empty());
    assert!(is_given(&bench, &registry, &name, bob).await);
    assert!(is_given(&bench, &registry, &name, ann(&registry, "a")).await);
}

#[tokio::test]
async fn rights_outlive_the_process_and_hold_no_secret() {
    let (registry, name) = private().await;
    let bench = Bench::new();
    bench.ensure_as(&name, PullPolicy::IfNotPresent, ann(&registry, "a")).await.unwrap();
    let bench = Bench::at(bench.stop().await, |_| {});
    assert!(is_given(&bench, &registry, &name, ann(&registry, "a")).await);
    assert!(!is_given(&bench, &registry, &name, Vec::new()).await);
    for file in bench.files("records") {
        let text = fs::read_to_string(file).unwrap();
        assert!(text.contains("uid-a"), "{text}");
        assert!(!text.contains("secret") && !text.contains(ANN), "{text}");
    }
}

#[tokio::test]
async fn a_known_login_in_another_secret_and_a_renewed_login_are_learned() {
    let (registry, name) = private().await;
    let bench = Bench::new();
    bench.ensure_as(&name, PullPolicy::IfNotPresent, ann(&registry, "a")).await.unwrap();
    assert!(is_given(&bench, &registry, &name, ann(&registry, "b")).await);
    // The Secret of b is known now, whatever becomes of its login.
    let records = bench.files("records");
    until(|| fs::read_to_string(&records[0]).unwrap().contains("uid-b")).await;
    let bench = Bench::at(bench.stop().await, |_| {});
    assert!(is_given(&bench, &registry, &name, of(&registry, "b", "ann", "renewed")).await);
    assert!(!is_given(&bench, &registry, &name, of(&registry, "c", "ann", "guessed")).await);
}

#[tokio::test]
async fn what_needed_no_secret_is_for_every_pod() {
    let registry = Registry::start().await;
    registry.add_module("a", "1", MODULE);
    registry.add_module("b", "1", MODULE);
    registry.add_module("c", "1", MODULE);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"{ANN}"}}}}}}"#, registry.address);
    fs::write(&path, text).unwrap();
    let bench = Bench::with(|config| config.docker_config = Some(path.clone()));
    // A secret that the registry did not ask for.
    let (a, b, c) = (registry.name("a:1"), registry.name("b:1"), registry.name("c:1"));
    bench.ensure_as(&a, PullPolicy::IfNotPresent, ann(&registry, "a")).await.unwrap();
    assert!(is_given(&bench, &registry, &a, Vec::new()).await);
    // A token that is given to everyone.
    registry.require(Login::Token(None));
    fs::write(&path, "{}").unwrap();
    bench.pull(&b).await.unwrap();
    assert!(is_given(&bench, &registry, &b, of(&registry, "b", "x", "y")).await);
    // The node's own login.
    registry.require(Login::Basic(ANN));
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"{ANN}"}}}}}}"#, registry.address);
    fs::write(&path, text).unwrap();
    bench.pull(&c).await.unwrap();
    fs::write(&path, "{}").unwrap();
    assert!(is_given(&bench, &registry, &c, Vec::new()).await);
}

#[tokio::test]
async fn what_the_operator_brought_is_for_every_pod_unless_the_policy_says_otherwise() {
    let registry = Registry::start().await;
    registry.add_module("a", "1", MODULE);
    let name = registry.name("a:1");
    let bench = Bench::new();
    let file = bench.directory.path().join("hello.wasm");
    fs::write(&file, MODULE).unwrap();
    bench.images.import(&file, "h.io/team/imported:1").await.unwrap();
    by_the_operator(&bench, &name).await;
    registry.require(Login::Basic(ANN));
    assert!(is_given(&bench, &registry, &name, Vec::new()).await);
    assert!(is_given(&bench, &registry, "h.io/team/imported:1", Vec::new()).await);
    // It stays the operator's when a pod pulls it too.
    bench.ensure_as(&name, PullPolicy::Always, ann(&registry, "a")).await.unwrap();
    assert!(is_given(&bench, &registry, &name, Vec::new()).await);

    let always = |config: &mut krustlet_image::ImagesConfig| {
        config.verification = VerificationPolicy::AlwaysVerify;
    };
    let bench = Bench::at(bench.stop().await, always);
    assert!(!is_given(&bench, &registry, &name, Vec::new()).await);
    assert!(!is_given(&bench, &registry, "h.io/team/imported:1", Vec::new()).await);
    assert!(is_given(&bench, &registry, &name, ann(&registry, "a")).await);

    let listed = |config: &mut krustlet_image::ImagesConfig| {
        let list = ["h.io/team/*".to_owned()];
        let policy = Some("NeverVerifyAllowlistedImages");
        config.verification = VerificationPolicy::new(policy, &list).unwrap();
    };
    let bench = Bench::at(bench.stop().await, listed);
    assert!(!is_given(&bench, &registry, &name, Vec::new()).await);
    assert!(is_given(&bench, &registry, "h.io/team/imported:1", Vec::new()).await);

    let never = |config: &mut krustlet_image::ImagesConfig| {
        config.verification = VerificationPolicy::NeverVerify;
    };
    let bench = Bench::at(bench.stop().await, never);
    assert!(is_given(&bench, &registry, &name, Vec::new()).await);
}

#[tokio::test]
async fn an_image_of_which_no_right_is_known_is_nobodys() {
    let (registry, name) = private().await;
    let bench = Bench::new();
    bench.ensure_as(&name, PullPolicy::IfNotPresent, ann(&registry, "a")).await.unwrap();
    let record = bench.files("records").remove(0);
    let directory = bench.stop().await;
    let mut text: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    assert!(text.as_object_mut().unwrap().remove("access").is_some());
    fs::write(&record, text.to_string()).unwrap();
    let bench = Bench::at(directory, |_| {});
    assert_eq!(bench.images.list().await.len(), 1);
    assert!(!is_given(&bench, &registry, &name, ann(&registry, "a")).await);
    bench.ensure_as(&name, PullPolicy::IfNotPresent, ann(&registry, "a")).await.unwrap();
    assert!(is_given(&bench, &registry, &name, ann(&registry, "a")).await);
}

#[tokio::test]
async fn rights_go_with_the_image() {
    let (registry, name) = private().await;
    let bench = Bench::new();
    bench.ensure_as(&name, PullPolicy::IfNotPresent, ann(&registry, "a")).await.unwrap();
    bench.images.remove(&name).await.unwrap();
    assert!(bench.files("records").is_empty());
    registry.require(Login::Basic(BOB));
    let bob = of(&registry, "b", "bob", "other");
    bench.ensure_as(&name, PullPolicy::IfNotPresent, bob).await.unwrap();
    assert!(!is_given(&bench, &registry, &name, ann(&registry, "a")).await);
}

#[tokio::test]
async fn a_right_to_one_image_is_none_to_the_next_under_its_tag() {
    let (registry, name) = private().await;
    let bench = Bench::new();
    let old = bench.ensure_as(&name, PullPolicy::Always, ann(&registry, "a")).await.unwrap();
    registry.add_module("a", "1", &[MODULE, b"\0\x01a"].concat());
    registry.require(Login::Basic(BOB));
    let bob = of(&registry, "b", "bob", "other");
    bench.ensure_as(&name, PullPolicy::Always, bob.clone()).await.unwrap();
    assert!(!is_given(&bench, &registry, &name, ann(&registry, "a")).await);
    assert!(is_given(&bench, &registry, &name, bob.clone()).await);
    // And what the tag left behind is still the first one's only.
    assert!(is_given(&bench, &registry, &old.image.id, ann(&registry, "a")).await);
    assert!(!is_given(&bench, &registry, &old.image.id, bob).await);
}

#[tokio::test]
async fn pulls_of_several_secrets_at_once_are_all_remembered() {
    let (registry, name) = private().await;
    let bench = Bench::new();
    let pulls = (0..8).map(|number| {
        let login = ann(&registry, &format!("n{number}"));
        bench.ensure_as(&name, PullPolicy::Always, login)
    });
    for pulled in futures::future::join_all(pulls).await {
        pulled.unwrap();
    }
    assert_eq!(registry.seen("/blobs/").len(), 1, "the program is fetched once");
    let bench = Bench::at(bench.stop().await, |_| {});
    for number in 0..8 {
        // With another login: each is known by its own coordinates.
        let renewed = of(&registry, &format!("n{number}"), "ann", "renewed");
        assert!(is_given(&bench, &registry, &name, renewed).await, "{number}");
    }
}

#[tokio::test]
async fn a_secret_for_a_mirror_counts_and_a_pull_that_failed_gives_no_right() {
    let registry = Registry::start().await;
    let mirror = Registry::start().await;
    mirror.require(Login::Basic(ANN));
    mirror.add_module("a", "1", MODULE);
    let bench = Bench::with(|config| {
        config.registries.mirrors = vec![Mirror {
            prefix: registry.address.to_string(),
            endpoints: vec![format!("http://{}", mirror.address)],
            fall_back: false,
        }];
    });
    let name = registry.name("a:1");
    let ann = ann(&mirror, "a");
    mirror.fail("/blobs/", [Fault::Body(b"other bytes".to_vec())]);
    bench.ensure_as(&name, PullPolicy::IfNotPresent, ann.clone()).await.unwrap_err();
    assert!(!is_given(&bench, &mirror, &name, ann.clone()).await);
    bench.ensure_as(&name, PullPolicy::IfNotPresent, ann.clone()).await.unwrap();
    assert!(is_given(&bench, &mirror, &name, ann).await);
    assert!(!is_given(&bench, &mirror, &name, Vec::new()).await);
}
