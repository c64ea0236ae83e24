//! downwardAPI volumes: the pod's own fields as files.

use k8s_openapi::api::core::v1::DownwardAPIVolumeFile;

use super::{File, Payload, Sources, mode};
use crate::error::VolumeError;

/// The files, alone or as a part of a projected volume.
pub(super) fn files(
    volume: &str,
    items: &[DownwardAPIVolumeFile],
    default: u32,
    sources: &Sources<'_>,
) -> Result<Payload, VolumeError> {
    items
        .iter()
        .map(|item| {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => (sources.field)(field),
                (None, Some(resource)) => (sources.resource)(resource),
                (None, None) => {
                    Err(format!("{:?} names neither a field nor a resource", item.path))
                }
            };
            let text = text.map_err(|why| VolumeError::Field { volume: volume.to_owned(), why })?;
            let mode = item.mode.map_or(default, |given| mode(Some(given)));
            Ok((item.path.clone(), File { bytes: text.into_bytes(), mode }))
        })
        .collect()
}
