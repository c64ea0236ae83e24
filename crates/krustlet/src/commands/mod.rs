//! The commands that ask a running agent.

pub(crate) mod exec;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod logs;
pub(crate) mod port_forward;
pub(crate) mod ps;
pub(crate) mod push;
pub(crate) mod stats;
pub(crate) mod stop;

use anyhow::{Result, anyhow, bail};
use k8s_openapi::{List, api::core::v1::Pod};

use crate::client::Local;

/// The pods of the agent.
async fn pods(local: &Local) -> Result<Vec<Pod>> {
    Ok(local.get::<List<Pod>>("/v1/pods").await?.items)
}

/// The error about a pod that is not here.
fn no_pod(namespace: &str, name: &str) -> anyhow::Error {
    anyhow!("no pod {namespace}/{name} here; `krustlet ps -a` lists what there is")
}

/// The container asked for, or the pod's first if none is, as kubectl does.
async fn container(
    local: &Local,
    namespace: &str,
    name: &str,
    asked: Option<String>,
) -> Result<String> {
    if let Some(container) = asked {
        return Ok(container);
    }
    let pods = pods(local).await?;
    let pod = pods.iter().find(|pod| is_named(pod, namespace, name));
    let Some(spec) = pod.and_then(|pod| pod.spec.as_ref()) else {
        return Err(no_pod(namespace, name));
    };
    match spec.containers.first() {
        Some(container) => Ok(container.name.clone()),
        None => bail!("pod {namespace}/{name} has no container"),
    }
}

fn is_named(pod: &Pod, namespace: &str, name: &str) -> bool {
    pod.metadata.namespace.as_deref() == Some(namespace)
        && pod.metadata.name.as_deref() == Some(name)
}
