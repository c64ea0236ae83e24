//! What a pod's volumes refer to.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, Volume, VolumeProjection};

use crate::payload::TokenKey;

/// An object of the pod's namespace that a volume needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectRef {
    /// A ConfigMap by name.
    ConfigMap(String),
    /// A Secret by name.
    Secret(String),
}

/// The objects that the pod's volumes refer to, the optional ones too.
#[must_use]
pub fn object_refs(pod: &Pod) -> BTreeSet<ObjectRef> {
    let mut refs = BTreeSet::new();
    for volume in volumes(pod) {
        if let Some(source) = &volume.config_map {
            refs.insert(ObjectRef::ConfigMap(source.name.clone()));
        }
        if let Some(name) = volume.secret.as_ref().and_then(|source| source.secret_name.clone()) {
            refs.insert(ObjectRef::Secret(name));
        }
        for projection in projections(volume) {
            if let Some(source) = &projection.config_map {
                refs.insert(ObjectRef::ConfigMap(source.name.clone()));
            }
            if let Some(source) = &projection.secret {
                refs.insert(ObjectRef::Secret(source.name.clone()));
            }
        }
    }
    refs
}

/// The service account tokens that the pod's volumes hold, each once.
#[must_use]
pub fn token_requests(pod: &Pod) -> BTreeSet<TokenKey> {
    volumes(pod)
        .iter()
        .flat_map(projections)
        .filter_map(|projection| projection.service_account_token.as_ref())
        .map(TokenKey::of)
        .collect()
}

/// The volumes of a pod.
pub(crate) fn volumes(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

/// The sources of a projected volume; none for the other kinds.
pub(crate) fn projections(volume: &Volume) -> &[VolumeProjection] {
    let projected = volume.projected.as_ref();
    projected.and_then(|projected| projected.sources.as_deref()).unwrap_or_default()
}
