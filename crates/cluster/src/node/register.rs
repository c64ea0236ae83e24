//! Bringing the Node into being.
//!
//! Source: kubelet, `pkg/kubelet/kubelet_node_status.go` (`registerWithAPIServer`,
//! `tryRegisterWithAPIServer`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use krustlet_model::Chain;
use kube::{
    Resource,
    api::{GetParams, Patch, PatchParams, PostParams},
    core::Request,
};

use crate::{Cluster, RequestError, feed::pause, request::LIMIT, retry::Backoff};

use super::{NodeConfig, object};

/// Waits between tries. Source: kubelet, `registerWithAPIServer`.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(7);

/// Creates the Node (then true), or takes the one that is there; tries until it
/// succeeds.
///
/// Cancel-safe: each step finds out anew what is there.
pub(super) async fn register(
    cluster: &Cluster,
    config: &NodeConfig,
    status: &NodeStatus,
) -> (Node, bool) {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        match attempt(cluster, config, status).await {
            Ok(registered) => return registered,
            Err(error) => {
                tracing::warn!(node = config.name, error = %Chain(&error), "cannot register the node");
                pause(&mut backoff, &error).await;
            }
        }
    }
}

async fn attempt(
    cluster: &Cluster,
    config: &NodeConfig,
    status: &NodeStatus,
) -> Result<(Node, bool), RequestError> {
    if config.register {
        match create(cluster, &object::node(config, status.clone())).await {
            Ok(node) => {
                tracing::info!(node = config.name, "the node is registered");
                return Ok((node, true));
            }
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
    }
    let found = get(cluster, &config.name).await?;
    let missing = object::missing_taints(config, &found);
    if !missing.is_empty() {
        let names: Vec<_> =
            missing.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect();
        tracing::warn!(
            node = config.name,
            taints = names.join(", "),
            "the node exists without configured taints, and a node may not taint itself; \
             `kubectl taint` can, or delete the Node to have it made anew"
        );
    }
    match object::reconcile(config, &found) {
        Some(patch) if config.register => {
            let request =
                path().patch(&config.name, &PatchParams::default(), &Patch::Merge(patch))?;
            Ok((cluster.call(request, LIMIT).await?, false))
        }
        Some(_) | None => Ok((found, false)),
    }
}

async fn create(cluster: &Cluster, node: &Node) -> Result<Node, RequestError> {
    let body = serde_json::to_vec(node).map_err(kube::core::request::Error::SerializeBody)?;
    cluster.call(path().create(&PostParams::default(), body)?, LIMIT).await
}

/// Reads the Node.
pub(super) async fn get(cluster: &Cluster, name: &str) -> Result<Node, RequestError> {
    cluster.call(path().get(name, &GetParams::default())?, LIMIT).await
}

/// Writes its status.
pub(super) async fn patch_status(
    cluster: &Cluster,
    name: &str,
    found: &NodeStatus,
    wanted: &NodeStatus,
) -> Result<Node, RequestError> {
    let patch = Patch::Strategic(object::patch(found, wanted));
    let request = path().patch_subresource("status", name, &PatchParams::default(), &patch)?;
    cluster.call(request, LIMIT).await
}

fn path() -> Request {
    Request::new(Node::url_path(&(), None))
}
