//! What the API server would add to an object before a kubelet sees it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSecurityContext, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

/// The longest name of a pod. Source: `ValidatePodName`, DNS-1123 subdomain.
const MAX_NAME: usize = 253;

/// Fills in what `SetDefaults_Pod*` in Kubernetes' `pkg/apis/core/v1/defaults.go`
/// does and what the registry sets at creation, and checks what would be
/// refused there.
///
/// # Errors
///
/// A sentence that names the field at fault.
pub(crate) fn pod(pod: &mut Pod) -> Result<(), String> {
    namespace(&mut pod.metadata);
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if !is_dns_subdomain(name) {
        return Err(format!(
            "metadata.name {name:?} must consist of lower case letters, digits, '-' and '.', \
             begin and end with a letter or digit, and have at most {MAX_NAME} characters"
        ));
    }
    let spec = pod.spec.as_mut().ok_or("spec must be set")?;
    if spec.containers.is_empty() {
        return Err("spec.containers must name at least one container".into());
    }
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    // The API server's default would be the cluster's; here is none.
    spec.dns_policy.get_or_insert_with(|| "Default".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.security_context.get_or_insert_with(PodSecurityContext::default);
    let mut names = Vec::new();
    let init = spec.init_containers.iter_mut().flatten();
    for each in init.chain(&mut spec.containers) {
        container(each)?;
        if names.contains(&each.name) {
            return Err(format!("two containers are named {:?}", each.name));
        }
        names.push(each.name.clone());
    }
    for volume in spec.volumes.iter_mut().flatten() {
        let modes = [
            volume.config_map.as_mut().map(|source| &mut source.default_mode),
            volume.secret.as_mut().map(|source| &mut source.default_mode),
            volume.projected.as_mut().map(|source| &mut source.default_mode),
            volume.downward_api.as_mut().map(|source| &mut source.default_mode),
        ];
        for mode in modes.into_iter().flatten() {
            mode.get_or_insert(0o644);
        }
    }
    Ok(())
}

fn container(container: &mut Container) -> Result<(), String> {
    if !is_dns_subdomain(&container.name) || container.name.contains('.') {
        return Err(format!("container name {:?} is not a DNS label", container.name));
    }
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        return Err(format!("container {:?} names no image", container.name));
    }
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    container.image_pull_policy.get_or_insert_with(|| policy.into());
    container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".into());
    container.termination_message_policy.get_or_insert_with(|| "File".into());
    for port in container.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".into());
    }
    // A limit alone is also the request. Source: `SetDefaults_Pod`.
    if let Some(resources) = &mut container.resources
        && let Some(limits) = &resources.limits
    {
        let requests = resources.requests.get_or_insert_with(BTreeMap::new);
        for (name, limit) in limits {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
    Ok(())
}

/// Whether an image has the tag `latest`, said or not. Source:
/// `SetDefaults_Container`.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// Sets the namespace `default` where none is named.
pub(crate) fn namespace(metadata: &mut ObjectMeta) {
    metadata.namespace.get_or_insert_with(|| "default".into());
}

/// Sets the namespace and merges `stringData` into `data`.
pub(crate) fn secret(secret: &mut Secret) {
    namespace(&mut secret.metadata);
    for (name, value) in secret.string_data.take().into_iter().flatten() {
        let data = secret.data.get_or_insert_with(BTreeMap::new);
        data.insert(name, k8s_openapi::ByteString(value.into_bytes()));
    }
}

fn is_dns_subdomain(name: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= MAX_NAME
        && name.split('.').all(|label| {
            ends(label.chars().next())
                && ends(label.chars().last())
                && label.chars().all(|c| ends(Some(c)) || c == '-')
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn defaulted(spec: serde_json::Value) -> Result<Pod, String> {
        let mut read: Pod =
            serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap();
        pod(&mut read)?;
        Ok(read)
    }

    #[test]
    fn a_bare_pod_gets_what_the_api_server_would_add() {
        let pod = defaulted(json!({"containers": [{"name": "app", "image": "a/hello"}]})).unwrap();
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
        assert_eq!(spec.termination_grace_period_seconds, Some(30));
        assert_eq!(spec.containers[0].image_pull_policy.as_deref(), Some("Always"));
    }

    #[test]
    fn an_image_with_a_tag_or_digest_is_pulled_once() {
        for image in ["hello:v1", "localhost:5000/hello:v1", "hello@sha256:00"] {
            let pod = defaulted(json!({"containers": [{"name": "app", "image": image}]})).unwrap();
            let policy = pod.spec.unwrap().containers.remove(0).image_pull_policy;
            assert_eq!(policy.as_deref(), Some("IfNotPresent"), "{image}");
        }
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused() {
        for (spec, why) in [
            (json!({"containers": []}), "at least one"),
            (json!({"containers": [{"name": "App", "image": "a"}]}), "DNS label"),
            (json!({"containers": [{"name": "app"}]}), "no image"),
            (
                json!({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]}),
                "two containers",
            ),
        ] {
            let error = defaulted(spec).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
