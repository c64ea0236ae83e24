//! Service account tokens of projected volumes.

use k8s_openapi::api::core::v1::ServiceAccountTokenProjection;

use super::{File, Payload, Sources};
use crate::error::VolumeError;

/// What makes a token another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenKey {
    /// Who it is for; None for the API server itself.
    pub audience: Option<String>,
    /// How long it is asked to last; an hour by default, at least ten minutes.
    pub expiration_seconds: i64,
}

impl TokenKey {
    /// The token that a projection asks for.
    pub(crate) fn of(source: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: source.audience.clone().filter(|audience| !audience.is_empty()),
            expiration_seconds: source.expiration_seconds.unwrap_or(3600),
        }
    }
}

/// The token's file. Others than its owner may not read it, whatever the
/// volume's mode says. Source: `collectData` in
/// `pkg/volume/projected/projected.go`.
pub(super) fn projection(
    volume: &str,
    source: &ServiceAccountTokenProjection,
    sources: &Sources<'_>,
) -> Result<Payload, VolumeError> {
    let token = sources
        .tokens
        .get(&TokenKey::of(source))
        .ok_or_else(|| VolumeError::MissingToken { volume: volume.to_owned() })?;
    let file = File { bytes: token.clone().into_bytes(), mode: 0o600 };
    Ok(Payload::from([(source.path.clone(), file)]))
}
