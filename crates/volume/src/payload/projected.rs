//! projected volumes: several sources in one directory.

use k8s_openapi::api::core::v1::ProjectedVolumeSource;

use super::{Payload, Sources, config_map, downward, mode, secret, token};
use crate::error::VolumeError;

/// The files of all sources; where two name the same path the later one counts.
pub(super) fn volume(
    volume: &str,
    source: &ProjectedVolumeSource,
    sources: &Sources<'_>,
) -> Result<Payload, VolumeError> {
    let mode = mode(source.default_mode);
    let mut all = Payload::new();
    for part in source.sources.iter().flatten() {
        let files = if let Some(part) = &part.config_map {
            config_map::projection(volume, part, mode, sources)?
        } else if let Some(part) = &part.secret {
            secret::projection(volume, part, mode, sources)?
        } else if let Some(part) = &part.downward_api {
            downward::files(volume, part.items.as_deref().unwrap_or_default(), mode, sources)?
        } else if let Some(part) = &part.service_account_token {
            token::projection(volume, part, sources)?
        } else {
            return Err(VolumeError::Unsupported { volume: volume.to_owned() });
        };
        all.extend(files);
    }
    Ok(all)
}
