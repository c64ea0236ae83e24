//! The config maps and secrets that a pod needs.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, Volume, VolumeProjection};
use serde::{Deserialize, Serialize};

use crate::restarts;

/// A config map or secret, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectRef {
    /// A config map.
    ConfigMap {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A secret.
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl ObjectRef {
    /// The object's name without its namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::ConfigMap { name, .. } | Self::Secret { name, .. } => name,
        }
    }
}

/// Printed as the API server names what it does not have: `configmap "x"`.
impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigMap { name, .. } => write!(f, "configmap \"{name}\""),
            Self::Secret { name, .. } => write!(f, "secret \"{name}\""),
        }
    }
}

/// What a pod needs, and whether it can do without: true for an object that
/// every place which names it calls optional.
pub type ObjectRefs = BTreeMap<ObjectRef, bool>;

/// The objects that the environments of a pod's containers are made of.
#[must_use]
pub fn of_environment(pod: &Pod) -> ObjectRefs {
    let mut found = Found::in_pod(pod);
    for (_, container) in restarts::containers(pod) {
        found.container(container);
    }
    found.refs
}

/// The objects that a pod's volumes are made of.
#[must_use]
pub fn of_volumes(pod: &Pod) -> ObjectRefs {
    let mut found = Found::in_pod(pod);
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        found.volume(volume);
    }
    found.refs
}

/// The secrets with which a pod's images are pulled, in order. A missing one
/// is passed over, as kubelet does.
#[must_use]
pub fn of_image_pulls(pod: &Pod) -> Vec<ObjectRef> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    pod.spec
        .iter()
        .flat_map(|spec| spec.image_pull_secrets.iter().flatten())
        .filter(|secret| !secret.name.is_empty())
        .map(|secret| ObjectRef::Secret { namespace: namespace.clone(), name: secret.name.clone() })
        .collect()
}

struct Found<'a> {
    namespace: &'a str,
    refs: ObjectRefs,
}

impl<'a> Found<'a> {
    fn in_pod(pod: &'a Pod) -> Self {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        Self { namespace, refs: ObjectRefs::new() }
    }

    fn config_map(&mut self, name: &str, optional: Option<bool>) {
        let object =
            ObjectRef::ConfigMap { namespace: self.namespace.to_owned(), name: name.to_owned() };
        self.add(object, optional);
    }

    fn secret(&mut self, name: &str, optional: Option<bool>) {
        let object =
            ObjectRef::Secret { namespace: self.namespace.to_owned(), name: name.to_owned() };
        self.add(object, optional);
    }

    fn add(&mut self, object: ObjectRef, optional: Option<bool>) {
        let optional = optional.unwrap_or_default();
        self.refs.entry(object).and_modify(|all| *all &= optional).or_insert(optional);
    }

    fn container(&mut self, container: &Container) {
        for from in container.env_from.iter().flatten() {
            if let Some(source) = &from.config_map_ref {
                self.config_map(&source.name, source.optional);
            }
            if let Some(source) = &from.secret_ref {
                self.secret(&source.name, source.optional);
            }
        }
        for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            let EnvVarSource { config_map_key_ref, secret_key_ref, .. } = source;
            if let Some(source) = config_map_key_ref {
                self.config_map(&source.name, source.optional);
            }
            if let Some(source) = secret_key_ref {
                self.secret(&source.name, source.optional);
            }
        }
    }

    fn volume(&mut self, volume: &Volume) {
        if let Some(source) = &volume.config_map {
            self.config_map(&source.name, source.optional);
        }
        if let Some(source) = &volume.secret {
            self.secret(source.secret_name.as_deref().unwrap_or_default(), source.optional);
        }
        let projected = volume.projected.iter();
        for source in projected.flat_map(|projected| projected.sources.iter().flatten()) {
            let VolumeProjection { config_map, secret, .. } = source;
            if let Some(source) = config_map {
                self.config_map(&source.name, source.optional);
            }
            if let Some(source) = secret {
                self.secret(&source.name, source.optional);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_place_that_insists_is_enough() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": "p"},
            "spec": {
                "imagePullSecrets": [{"name": "pull"}, {"name": ""}],
                "containers": [{
                    "name": "c",
                    "envFrom": [
                        {"configMapRef": {"name": "a", "optional": true}},
                        {"secretRef": {"name": "a", "optional": true}},
                    ],
                    "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "k"}}}],
                }],
                "volumes": [
                    {"name": "v", "secret": {"secretName": "s"}},
                    {"name": "w", "projected": {"sources": [
                        {"configMap": {"name": "b", "optional": true}},
                        {"secret": {"name": "t"}},
                    ]}},
                ],
            },
        }))
        .unwrap();
        let list = |refs: ObjectRefs| {
            refs.iter().map(|(object, optional)| format!("{object} {optional}")).collect::<Vec<_>>()
        };
        assert_eq!(list(of_environment(&pod)), ["configmap \"a\" false", "secret \"a\" true"]);
        assert_eq!(
            list(of_volumes(&pod)),
            ["configmap \"b\" true", "secret \"s\" false", "secret \"t\" false"],
        );
        assert_eq!(of_image_pulls(&pod).len(), 1);
    }
}
