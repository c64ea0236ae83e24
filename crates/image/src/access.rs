//! Who may have a stored image without its registry being asked again.
//!
//! Written into the image's record, so it appears with the image, is as whole as the image, and goes
//! with it. An image about which nothing was written is nobody's: the registry is asked. So a pull that is
//! cut off needs no intent beside it, as the kubelet's does.
//!
//! Pure. What follows from it for one pod is [`crate::verification`]'s matter.
//!
//! Source: kubelet, `ImagePullCredentials` in `pkg/kubelet/apis/config/types.go` and
//! `pulledRecordMergeNewCreds` in `pkg/kubelet/images/pullmanager/image_pull_manager.go`.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// Secrets remembered for one image. Beyond it the oldest goes, and its pods cost one question to the
/// registry: namespaces come and go, and a record must not grow with them for ever.
const MOST_SECRETS: usize = 1000;

/// The Secret that a login was read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SecretSource {
    /// `metadata.uid`; another Secret of the same name is another one.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// A Secret with which a registry gave an image out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SecretRight {
    #[serde(flatten)]
    pub source: SecretSource,
    /// SHA-256 of the login, in hexadecimal digits; see [`crate::Credential`].
    pub credential_hash: String,
}

/// What one pull, or the operator, proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// The operator brought the image here.
    Preloaded,
    /// The registry asked for no login, or took the node's own: every pod could have done the same.
    NodePods,
    /// The registry took a login of this Secret.
    Secret(SecretRight),
}

/// All rights to one image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Access {
    /// The operator brought it. It stays so when a pod pulls the same image later, other than in the
    /// kubelet, which then forgets it.
    pub preloaded: bool,
    /// Every pod of the node may have it.
    pub node_pods_accessible: bool,
    /// Oldest first, each Secret once; empty if every pod may have it anyway.
    pub kubernetes_secrets: Vec<SecretRight>,
}

impl Access {
    /// Adds a right. None is ever taken away by it, but for the oldest Secret beyond the bound.
    pub(crate) fn add(&mut self, right: Right) {
        match right {
            Right::Preloaded => self.preloaded = true,
            Right::NodePods => {
                self.node_pods_accessible = true;
                self.kubernetes_secrets.clear();
            }
            Right::Secret(_) if self.node_pods_accessible => {}
            Right::Secret(right) => {
                self.kubernetes_secrets.retain(|old| old.source != right.source);
                self.kubernetes_secrets.push(right);
                let beyond = self.kubernetes_secrets.len().saturating_sub(MOST_SECRETS);
                self.kubernetes_secrets.drain(..beyond);
            }
        }
    }

    /// The rights of several records of one image.
    pub(crate) fn union<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut union = Self::default();
        for one in all {
            union.preloaded |= one.preloaded;
            union.node_pods_accessible |= one.node_pods_accessible;
            union.kubernetes_secrets.extend_from_slice(&one.kubernetes_secrets);
        }
        if union.node_pods_accessible {
            union.kubernetes_secrets.clear();
        }
        // What two records say of one Secret may differ: both were true of it.
        let mut seen = HashSet::new();
        union
            .kubernetes_secrets
            .retain(|right| seen.insert((right.source.clone(), right.credential_hash.clone())));
        union
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, hash: &str) -> Right {
        let source =
            SecretSource { uid: format!("u-{name}"), namespace: "n".into(), name: name.into() };
        Right::Secret(SecretRight { source, credential_hash: hash.to_owned() })
    }

    #[test]
    fn a_secret_is_remembered_once_with_its_newest_login() {
        let mut access = Access::default();
        for (name, hash) in [("a", "1"), ("b", "1"), ("a", "2")] {
            access.add(secret(name, hash));
        }
        let kept: Vec<_> =
            access.kubernetes_secrets.iter().map(|right| right.credential_hash.as_str()).collect();
        assert_eq!(kept, ["1", "2"]);
    }

    #[test]
    fn what_every_pod_may_have_needs_no_secrets() {
        let mut access = Access::default();
        access.add(secret("a", "1"));
        access.add(Right::NodePods);
        access.add(secret("b", "1"));
        assert!(access.node_pods_accessible && access.kubernetes_secrets.is_empty());
    }

    #[test]
    fn the_oldest_secret_goes_when_there_are_too_many() {
        let mut access = Access::default();
        for number in 0..=MOST_SECRETS {
            access.add(secret(&number.to_string(), "1"));
        }
        assert_eq!(access.kubernetes_secrets.len(), MOST_SECRETS);
        assert_eq!(access.kubernetes_secrets[0].source.name, "1");
    }

    #[test]
    fn the_fields_on_disk_are_the_kubelets() {
        let mut access = Access::default();
        access.add(secret("a", "1"));
        let text = serde_json::to_value(&access).unwrap();
        assert_eq!(text["kubernetesSecrets"][0]["credentialHash"], "1");
        assert_eq!(text["kubernetesSecrets"][0]["uid"], "u-a");
        assert_eq!(text["nodePodsAccessible"], false);
        assert_eq!(serde_json::from_value::<Access>(text).unwrap(), access);
    }
}
