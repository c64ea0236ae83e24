//! Who is shown what.

use krustlet_image::{Credential, Digest, Mirror, PullPolicy};

use crate::registry::{Fault, Login, Registry};
use crate::{Bench, MODULE, chain};

/// `ann:secret`
const ANN: &str = "YW5uOnNlY3JldA==";

fn ann(registry: &Registry) -> Credential {
    Credential::basic(&registry.address.to_string(), "ann", "secret").unwrap()
}

fn eve(scope: &str) -> Credential {
    Credential::basic(scope, "eve", "wrong").unwrap()
}

#[tokio::test]
async fn a_public_image_behind_a_token_server_needs_no_credentials() {
    let registry = Registry::start().await;
    let bench = Bench::new();
    registry.require(Login::Token(None));
    registry.add_module("a", "1", MODULE);
    bench.pull(&registry.name("a:1")).await.unwrap();
    let token = &registry.seen("/token")[0];
    assert_eq!(token.header("authorization"), None);
    assert!(token.path.contains("service=here"), "{}", token.path);
    assert!(token.path.contains("scope=repository%3Aa%3Apull"), "{}", token.path);
    assert_eq!(registry.seen("/token").len(), 1);
}

#[tokio::test]
async fn credentials_are_tried_in_order_until_one_is_accepted() {
    for login in [Login::Token(Some(ANN)), Login::Basic(ANN)] {
        let registry = Registry::start().await;
        let bench = Bench::new();
        registry.require(login);
        registry.add_module("a", "1", MODULE);
        let name = registry.name("a:1");
        let host = registry.address.to_string();
        let error = bench.pull(&name).await.unwrap_err();
        assert!(chain(&error).contains("refused access"), "{}", chain(&error));
        let only_eve = vec![eve(&host)];
        bench.ensure_as(&name, PullPolicy::IfNotPresent, only_eve).await.unwrap_err();
        let both = vec![eve(&format!("{host}/a")), ann(&registry)];
        bench.ensure_as(&name, PullPolicy::IfNotPresent, both).await.unwrap();
    }
}

#[tokio::test]
async fn the_docker_configuration_is_used_where_no_secret_fits() {
    let registry = Registry::start().await;
    registry.require(Login::Basic(ANN));
    registry.add_module("a", "1", MODULE);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"{ANN}"}}}}}}"#, registry.address);
    let bench = Bench::with(|config| config.docker_config = Some(path.clone()));
    // It may come later: nobody has to restart anything.
    bench.pull(&registry.name("a:1")).await.unwrap_err();
    std::fs::write(&path, text).unwrap();
    bench
        .ensure_as(&registry.name("a:1"), PullPolicy::Always, vec![eve("other.io")])
        .await
        .unwrap();
}

#[tokio::test]
async fn credentials_never_go_to_another_host() {
    let registry = Registry::start().await;
    let cdn = Registry::start().await;
    let mirror = Registry::start().await;
    let bench = Bench::with(|config| {
        config.registries.mirrors = vec![Mirror {
            prefix: registry.address.to_string(),
            endpoints: vec![format!("http://{}", mirror.address)],
            fall_back: true,
        }];
    });
    registry.require(Login::Basic(ANN));
    registry.add_module("a", "1", MODULE);
    cdn.add_blob(MODULE);
    let digest = Digest::of(MODULE);
    registry
        .fail("/blobs/", [Fault::Redirect(format!("http://{}/v2/a/blobs/{digest}", cdn.address))]);
    let name = registry.name("a:1");
    bench.ensure_as(&name, PullPolicy::Always, vec![ann(&registry)]).await.unwrap();
    assert_eq!(cdn.seen("").len(), 1);
    assert!(!mirror.seen("").is_empty());
    for seen in cdn.seen("").into_iter().chain(mirror.seen("")) {
        assert_eq!(seen.header("authorization"), None, "{}", seen.path);
    }
    assert!(registry.seen("/blobs/")[0].header("authorization").is_some());
}

#[tokio::test]
async fn a_host_that_a_registry_leads_to_cannot_ask_for_a_login() {
    let registry = Registry::start().await;
    let cdn = Registry::start().await;
    let bench = Bench::new();
    cdn.require(Login::Basic(ANN));
    registry.add_module("a", "1", MODULE);
    let digest = Digest::of(MODULE);
    registry
        .fail("/blobs/", [Fault::Redirect(format!("http://{}/v2/a/blobs/{digest}", cdn.address))]);
    let name = registry.name("a:1");
    let error = bench.ensure_as(&name, PullPolicy::Always, vec![ann(&registry)]).await.unwrap_err();
    assert!(chain(&error).contains("refused access"), "{}", chain(&error));
    assert_eq!(cdn.seen("").len(), 1);
    assert_eq!(cdn.seen("")[0].header("authorization"), None);
}
