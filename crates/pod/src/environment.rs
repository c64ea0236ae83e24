//! What a container is started with: arguments, environment, host name.
//!
//! The rules are `krustlet_model::env`'s; here the node's part is added.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Container, Node, Pod, Service},
    apimachinery::pkg::api::resource::Quantity,
};
use krustlet_image::ProgramConfig;
use krustlet_model::{
    downward::Surroundings,
    env::{self, EnvError, EnvSources},
    names::{self, LongName},
};

use crate::objects::Found;

/// What of the node goes into environments and volumes.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeView {
    pub(crate) name: String,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
    pub(crate) pod_ips: Vec<IpAddr>,
    pub(crate) host_ips: Vec<IpAddr>,
    /// The cluster's domain; may be empty.
    pub(crate) cluster_domain: String,
}

impl NodeView {
    pub(crate) fn new(node: Option<&Node>, pod_ips: &[IpAddr], host_ips: &[IpAddr]) -> Self {
        let status = node.and_then(|node| node.status.as_ref());
        Self {
            name: node.and_then(|node| node.metadata.name.clone()).unwrap_or_default(),
            allocatable: status.and_then(|status| status.allocatable.clone()).unwrap_or_default(),
            pod_ips: pod_ips.to_vec(),
            host_ips: host_ips.to_vec(),
            cluster_domain: String::new(),
        }
    }

    pub(crate) fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            allocatable: &self.allocatable,
            pod_ips: &self.pod_ips,
            host_ips: &self.host_ips,
        }
    }
}

/// How a program is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// Arguments, the program's name first.
    pub(crate) args: Vec<String>,
    /// What names the program in the image: the first word, unless nobody said
    /// one and it was made up.
    pub(crate) argv0: Option<String>,
    /// The environment.
    pub(crate) env: Vec<(String, String)>,
    /// The container's own variables, without the image's, for `subPathExpr`.
    pub(crate) own_env: Vec<(String, String)>,
    /// What the pod calls itself.
    pub(crate) hostname: String,
}

/// Why it is not known how a program is called.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Environment(#[from] EnvError),
    #[error(transparent)]
    Name(#[from] LongName),
}

/// Puts together how a container's program is called.
///
/// An image that names no program (a plain Wasm artifact cannot) has its
/// program called by the container's name.
pub(crate) fn call(
    pod: &Pod,
    container: &Container,
    image: &ProgramConfig,
    found: &Found,
    services: &[Arc<Service>],
    node: &NodeView,
) -> Result<Call, CallError> {
    let sources = EnvSources {
        config_maps: &found.config_maps,
        secrets: &found.secrets,
        services,
        surroundings: node.surroundings(),
    };
    let own_env = env::environment(pod, container, &sources)?;
    let is_named = !image.entrypoint.is_empty()
        || !image.cmd.is_empty()
        || container.command.as_ref().is_some_and(|command| !command.is_empty());
    let made_up = [container.name.clone()];
    let entrypoint = if is_named { &image.entrypoint[..] } else { &made_up[..] };
    let args = env::command_line(container, entrypoint, &image.cmd, &own_env)?;
    let argv0 = if is_named { args.first().cloned() } else { None };
    let hostname = names::nodename(pod, &node.name, &node.cluster_domain)?;
    let env = env::with_image(&image.env, &hostname, own_env.clone());
    Ok(Call { args, argv0, env, own_env, hostname })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn called(container: serde_json::Value, image: &ProgramConfig) -> Call {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [container]},
        }))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        call(&pod, container, image, &Found::default(), &[], &NodeView::default()).unwrap()
    }

    #[test]
    fn a_plain_artifact_is_called_by_its_containers_name() {
        let image = ProgramConfig::default();
        let plain = called(json!({"name": "main", "args": ["a"]}), &image);
        assert_eq!((plain.args, plain.argv0), (vec!["main".into(), "a".into()], None));
        let named = called(json!({"name": "main", "command": ["x"], "args": ["a"]}), &image);
        assert_eq!((named.args, named.argv0), (vec!["x".into(), "a".into()], Some("x".into())));
    }

    #[test]
    fn an_images_words_are_kept() {
        let image = ProgramConfig {
            entrypoint: vec!["/app.wasm#go".into()],
            cmd: vec!["b".into()],
            env: vec!["A=1".into(), "B=2".into()],
            ..ProgramConfig::default()
        };
        let call = called(json!({"name": "main", "env": [{"name": "A", "value": "3"}]}), &image);
        assert_eq!(call.args, ["/app.wasm#go", "b"]);
        assert_eq!(call.argv0.as_deref(), Some("/app.wasm#go"));
        let pairs: Vec<_> = call.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(pairs, ["HOSTNAME=p", "A=3", "B=2"]);
    }
}
