//! secret volumes.

use k8s_openapi::api::core::v1::{KeyToPath, Secret, SecretProjection, SecretVolumeSource};

use super::{Payload, Sources, mode, pick};
use crate::error::VolumeError;

/// The files of a volume of its own.
pub(super) fn volume(
    volume: &str,
    source: &SecretVolumeSource,
    sources: &Sources<'_>,
) -> Result<Payload, VolumeError> {
    let name = source.secret_name.as_deref().unwrap_or_default();
    let optional = source.optional.unwrap_or(false);
    let mode = mode(source.default_mode);
    files(volume, name, source.items.as_deref(), mode, optional, sources)
}

/// The files of a part of a projected volume.
pub(super) fn projection(
    volume: &str,
    source: &SecretProjection,
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
    let none = Secret::default();
    let found = match sources.secrets.get(name) {
        Some(found) => found,
        None if optional => &none,
        None => {
            let (volume, name) = (volume.to_owned(), name.to_owned());
            return Err(VolumeError::NotFound { volume, kind: "secret", name });
        }
    };
    let data = found.data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    pick(volume, "secret", &data.collect(), items, mode, optional)
}
