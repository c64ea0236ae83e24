//! Setting a pod's volumes up, and bringing them up to date.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectFieldSelector, Pod, ResourceFieldSelector};
use krustlet_model::{Chain, PodKey, PodUid, downward, objects::of_volumes, restarts};
use krustlet_volume::{Sources, VolumeError, Volumes};
use tokio::task::{JoinError, spawn_blocking};

use crate::{config::Context, objects, outside::ObjectFailure, place::Place};

/// Volumes to be set up.
pub(crate) struct SetUp {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) key: PodKey,
    pub(crate) uid: PodUid,
    pub(crate) volumes: Volumes,
    /// Where the pod is in the network, if that is known yet.
    pub(crate) place: Option<Place>,
}

/// Why they were not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetUpError {
    #[error(transparent)]
    Objects(#[from] ObjectFailure),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("the work was broken off")]
    Broken(#[from] JoinError),
}

impl SetUpError {
    /// What people are to read in the event `FailedMount`.
    pub(crate) fn text(&self) -> String {
        Chain(self).to_string()
    }

    /// Whether the API server refused what a volume needs.
    pub(crate) fn is_refused(&self) -> bool {
        match self {
            Self::Objects(failure) => failure.is_refused,
            Self::Volume(_) | Self::Broken(_) => false,
        }
    }
}

/// Sets the volumes up. May be done again and again.
pub(crate) async fn set_up(order: SetUp) -> Result<(), SetUpError> {
    let SetUp { context, pod, key, uid, volumes, place } = order;
    if pod.spec.as_ref().is_none_or(|spec| spec.volumes.as_ref().is_none_or(Vec::is_empty)) {
        return Ok(());
    }
    let outside = &*context.outside.objects;
    let (found, tokens) = futures::try_join!(
        objects::fetch(outside, of_volumes(&pod)),
        objects::tokens(outside, &pod, &key, &uid),
    )?;
    let node = context.node(place.as_ref());
    let write = move || {
        let surroundings = node.surroundings();
        let field = |selector: &ObjectFieldSelector| {
            downward::field(&pod, selector, &surroundings).map_err(|error| error.to_string())
        };
        let resource = |selector: &ResourceFieldSelector| {
            let wanted = selector.container_name.as_deref();
            let container = restarts::containers(&pod)
                .map(|(_, container)| container)
                .find(|container| Some(container.name.as_str()) == wanted);
            downward::resource(&pod, container, selector, &surroundings)
                .map_err(|error| error.to_string())
        };
        volumes.set_up(&Sources {
            pod: &pod,
            config_maps: &found.config_maps,
            secrets: &found.secrets,
            tokens: &tokens,
            field: &field,
            resource: &resource,
        })
    };
    spawn_blocking(write).await??;
    Ok(())
}
