//! Fetches what a pod refers to, for its volumes, environments and pulls.

use std::collections::BTreeMap;

use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use krustlet_image::{Credential, SecretSource};
use krustlet_model::{
    Chain, PodKey, PodUid,
    objects::{self, ObjectRef, ObjectRefs},
};
use krustlet_volume::TokenKey;

use crate::outside::{ObjectFailure, Objects, TokenAsk};

/// The type of a secret with a Docker configuration, and the key that holds it.
const DOCKER_CONFIG: (&str, &str) = ("kubernetes.io/dockerconfigjson", ".dockerconfigjson");
/// The same of the older format.
const DOCKERCFG: (&str, &str) = ("kubernetes.io/dockercfg", ".dockercfg");

/// The objects that were found, by name.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    pub(crate) secrets: BTreeMap<String, Secret>,
}

/// Fetches objects, all at once. What does not exist is left out; who needs it
/// says so. An optional object that cannot be read is an error all the same:
/// its content would vanish from a volume during an outage.
pub(crate) async fn fetch(objects: &dyn Objects, refs: ObjectRefs) -> Result<Found, ObjectFailure> {
    enum One {
        ConfigMap(String, ConfigMap),
        Secret(String, Secret),
    }
    let asked = refs.into_keys().map(|object| async move {
        Ok(match object {
            ObjectRef::ConfigMap { namespace, name } => {
                let found = objects.config_map(namespace, name.clone()).await?;
                found.map(|found| One::ConfigMap(name, (*found).clone()))
            }
            ObjectRef::Secret { namespace, name } => {
                let found = objects.secret(namespace, name.clone()).await?;
                found.map(|found| One::Secret(name, (*found).clone()))
            }
        })
    });
    let mut found = Found::default();
    for one in try_join_all(asked).await?.into_iter().flatten() {
        match one {
            One::ConfigMap(name, map) => drop(found.config_maps.insert(name, map)),
            One::Secret(name, secret) => drop(found.secrets.insert(name, secret)),
        }
    }
    Ok(found)
}

/// Fetches the tokens that a pod's volumes hold.
pub(crate) async fn tokens(
    objects: &dyn Objects,
    pod: &Pod,
    key: &PodKey,
    uid: &PodUid,
) -> Result<BTreeMap<TokenKey, String>, ObjectFailure> {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    let service_account = account.filter(|name| !name.is_empty()).unwrap_or("default");
    let asked = krustlet_volume::token_requests(pod).into_iter().map(|wanted| {
        let ask = TokenAsk {
            pod: key.clone(),
            uid: uid.clone(),
            service_account: service_account.to_owned(),
            audience: wanted.audience.clone(),
            expiration_seconds: wanted.expiration_seconds,
        };
        async move { Ok((wanted, objects.token(ask).await?.token)) }
    });
    Ok(try_join_all(asked).await?.into_iter().collect())
}

/// The logins that a pod brings for its images, and a sentence for people if
/// some of its secrets were of no use. An image may be public: such secrets do
/// not stop the pull.
///
/// Source: kubelet, `getPullSecretsForPod` in `pkg/kubelet/kubelet_pods.go`.
pub(crate) async fn credentials(
    objects: &dyn Objects,
    pod: &Pod,
) -> (Vec<Credential>, Option<String>) {
    let asked = objects::of_image_pulls(pod).into_iter().filter_map(|object| match object {
        ObjectRef::Secret { namespace, name } => Some(async move {
            let found = objects.secret(namespace, name.clone()).await;
            (name, found)
        }),
        ObjectRef::ConfigMap { .. } => None,
    });
    let mut all = Vec::new();
    let mut useless = Vec::new();
    for (name, found) in join_all(asked).await {
        match found.ok().flatten().and_then(|secret| logins(&name, &secret)) {
            Some(logins) => all.extend(logins),
            None => useless.push(name),
        }
    }
    let message = (!useless.is_empty()).then(|| {
        format!(
            "Unable to retrieve some image pull secrets ({}); \
             attempting to pull the image may not succeed.",
            useless.join(", "),
        )
    });
    (all, message)
}

fn logins(name: &str, secret: &Secret) -> Option<Vec<Credential>> {
    let bytes = |key: &str| secret.data.as_ref()?.get(key).map(|bytes| bytes.0.as_slice());
    let read = match secret.type_.as_deref() {
        Some(type_) if type_ == DOCKER_CONFIG.0 => {
            Credential::from_docker_config_json(bytes(DOCKER_CONFIG.1)?)
        }
        Some(type_) if type_ == DOCKERCFG.0 => Credential::from_dockercfg(bytes(DOCKERCFG.1)?),
        Some(_) | None => return None,
    };
    // The coordinates by which what it pulls is known to be its owners'.
    let source = SecretSource {
        uid: secret.metadata.uid.clone().unwrap_or_default(),
        namespace: secret.metadata.namespace.clone().unwrap_or_default(),
        name: name.to_owned(),
    };
    let read = read.map(|all| all.into_iter().map(|one| one.of_secret(source.clone())).collect());
    read.inspect_err(|error| {
        tracing::warn!(secret = name, error = %Chain(error), "cannot read an image pull secret");
    })
    .ok()
}
