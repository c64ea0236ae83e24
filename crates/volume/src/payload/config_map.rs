//! configMap volumes.

use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapProjection, ConfigMapVolumeSource, KeyToPath,
};

use super::{Payload, Sources, mode, pick};
use crate::error::VolumeError;

/// The files of a volume of its own.
pub(super) fn volume(
    volume: &str,
    source: &ConfigMapVolumeSource,
    sources: &Sources<'_>,
) -> Result<Payload, VolumeError> {
    let optional = source.optional.unwrap_or(false);
    let mode = mode(source.default_mode);
    files(volume, &source.name, source.items.as_deref(), mode, optional, sources)
}

/// The files of a part of a projected volume.
pub(super) fn projection(
    volume: &str,
    source: &ConfigMapProjection,
    mode: u32,
    sources: &Sources<'_>,
) -> Result<Payload, VolumeError> {
    let optional = source.optional.unwrap_or(false);
    files(volume, &source.name, source.items.as_deref(), mode, optional, sources)
}

fn files(
    volume: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
    sources: &Sources<'_>,
) -> Result<Payload, VolumeError> {
    let none = ConfigMap::default();
    let found = match sources.config_maps.get(name) {
        Some(found) => found,
        None if optional => &none,
        None => {
            let (volume, name) = (volume.to_owned(), name.to_owned());
            return Err(VolumeError::NotFound { volume, kind: "configmap", name });
        }
    };
    let text = found.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    let bytes =
        found.binary_data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    pick(volume, "config", &text.chain(bytes).collect(), items, mode, optional)
}
