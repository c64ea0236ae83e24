use proptest::prelude::*;
use serde_json::json;

use super::*;

struct World {
    pod: Pod,
    config_maps: BTreeMap<String, ConfigMap>,
    secrets: BTreeMap<String, Secret>,
    tokens: BTreeMap<TokenKey, String>,
}

fn world() -> World {
    let config = json!({"data": {"a": "one", "b": "two"}, "binaryData": {"c": "AAE="}});
    let secret = json!({"data": {"k": "aGlkZGVu"}});
    let key = TokenKey { audience: None, expiration_seconds: 3607 };
    World {
        pod: Pod::default(),
        config_maps: [("conf".into(), serde_json::from_value(config).unwrap())].into(),
        secrets: [("sec".into(), serde_json::from_value(secret).unwrap())].into(),
        tokens: [(key, "token".into())].into(),
    }
}

fn files(volume: serde_json::Value) -> Result<Payload, VolumeError> {
    let world = world();
    let sources = Sources {
        pod: &world.pod,
        config_maps: &world.config_maps,
        secrets: &world.secrets,
        tokens: &world.tokens,
        field: &|field| Ok(format!("<{}>", field.field_path)),
        resource: &|resource| Ok(resource.resource.clone()),
    };
    let mut volume = volume;
    volume["name"] = json!("v");
    let volume = serde_json::from_value(volume).unwrap();
    payload(&volume, &sources).map(Option::unwrap_or_default)
}

fn texts(payload: &Payload) -> Vec<(&str, &[u8], u32)> {
    payload.iter().map(|(path, file)| (path.as_str(), file.bytes.as_slice(), file.mode)).collect()
}

#[test]
fn a_config_map_gives_all_its_keys_or_those_named() {
    let all = files(json!({"configMap": {"name": "conf"}})).unwrap();
    assert_eq!(
        texts(&all),
        [("a", &b"one"[..], 0o644), ("b", b"two", 0o644), ("c", &[0, 1], 0o644)]
    );
    let items = json!([{"key": "b", "path": "sub/x", "mode": 0o400}]);
    let some = files(json!({"configMap": {"name": "conf", "items": items, "defaultMode": 0o600}}))
        .unwrap();
    assert_eq!(texts(&some), [("sub/x", &b"two"[..], 0o400)]);
}

#[test]
fn what_is_missing_is_named_unless_it_is_optional() {
    let error = files(json!({"configMap": {"name": "no"}})).unwrap_err();
    assert_eq!(
        error.to_string(),
        "MountVolume.SetUp failed for volume \"v\" : configmap \"no\" not found"
    );
    let items = json!([{"key": "z", "path": "z"}]);
    let error = files(json!({"secret": {"secretName": "sec", "items": items}})).unwrap_err();
    assert!(error.to_string().ends_with("references non-existent secret key: z"), "{error}");
    assert!(error.is_transient());
    for volume in [
        json!({"configMap": {"name": "no", "optional": true}}),
        json!({"secret": {"secretName": "sec", "items": items, "optional": true}}),
    ] {
        assert!(files(volume).unwrap().is_empty());
    }
}

#[test]
fn the_service_account_volume_of_every_pod_is_made() {
    let payload = files(json!({"projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "conf", "items": [{"key": "a", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]}}))
    .unwrap();
    assert_eq!(
        texts(&payload),
        [
            ("ca.crt", &b"one"[..], 0o644),
            ("namespace", b"<metadata.namespace>", 0o644),
            ("token", b"token", 0o600),
        ]
    );
}

#[test]
fn a_token_that_was_not_issued_is_waited_for() {
    let source = json!({"serviceAccountToken": {"audience": "vault", "path": "t"}});
    let error = files(json!({"projected": {"sources": [source]}})).unwrap_err();
    assert!(matches!(error, VolumeError::MissingToken { .. }) && error.is_transient());
}

#[test]
fn a_path_that_leaves_the_volume_is_refused() {
    for path in ["../x", "/x", "a/../../x", "..data", "", ".", "a/./.."] {
        let items = json!([{"key": "a", "path": path}]);
        let error = files(json!({"configMap": {"name": "conf", "items": items}})).unwrap_err();
        assert!(matches!(error, VolumeError::InvalidPath { .. }), "{path}");
    }
}

#[test]
fn a_kind_that_is_not_offered_is_refused() {
    let error = files(json!({"hostPath": {"path": "/"}})).unwrap_err();
    assert!(matches!(error, VolumeError::Unsupported { .. }) && !error.is_transient());
}

proptest! {
    #[test]
    fn a_path_within_never_climbs(path in "[a./]{0,12}") {
        if is_within(&path) {
            let mut depth = 0;
            for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
                depth += if part == ".." { -1 } else { 1 };
                prop_assert!(depth > 0);
            }
            prop_assert!(!path.starts_with('/'));
        }
    }
}
