//! What is to lie in a volume: each kind's files, as values. Pure.

mod config_map;
mod downward;
mod projected;
mod secret;
mod token;

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use k8s_openapi::api::core::v1::{
    ConfigMap, KeyToPath, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret, Volume,
};

pub use self::token::TokenKey;
use crate::error::VolumeError;

/// The mode of a file for which none is named. Source: `SetDefaults_*VolumeSource`
/// in `pkg/apis/core/v1/defaults.go`.
const DEFAULT_MODE: i32 = 0o644;

/// Files by their path within the volume.
pub(crate) type Payload = BTreeMap<String, File>;

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// What it holds.
    pub(crate) bytes: Vec<u8>,
    /// Its permission bits, 0 to 0o777.
    pub(crate) mode: u32,
}

/// What the volumes of a pod are made of.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The config maps that were found, by name.
    pub config_maps: &'a BTreeMap<String, ConfigMap>,
    /// The secrets that were found, by name.
    pub secrets: &'a BTreeMap<String, Secret>,
    /// The tokens that were issued.
    pub tokens: &'a BTreeMap<TokenKey, String>,
    /// Reads a field of the pod; an error is a sentence.
    pub field: &'a dyn Fn(&ObjectFieldSelector) -> Result<String, String>,
    /// Reads a container's resource; an error is a sentence.
    pub resource: &'a dyn Fn(&ResourceFieldSelector) -> Result<String, String>,
}

impl std::fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // No content: secrets would end in a log.
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

/// The files of a volume. None for a kind that has none of its own (emptyDir).
pub(crate) fn payload(
    volume: &Volume,
    sources: &Sources<'_>,
) -> Result<Option<Payload>, VolumeError> {
    let name = &volume.name;
    let payload = if let Some(source) = &volume.config_map {
        config_map::volume(name, source, sources)?
    } else if let Some(source) = &volume.secret {
        secret::volume(name, source, sources)?
    } else if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        downward::files(name, items, mode(source.default_mode), sources)?
    } else if let Some(source) = &volume.projected {
        projected::volume(name, source, sources)?
    } else if volume.empty_dir.is_some() {
        return Ok(None);
    } else {
        return Err(VolumeError::Unsupported { volume: name.clone() });
    };
    for path in payload.keys() {
        if !is_within(path) {
            return Err(VolumeError::InvalidPath { volume: name.clone(), path: path.clone() });
        }
    }
    Ok(Some(payload))
}

/// Picks the wanted keys of an object; all of them if none is named.
fn pick(
    volume: &str,
    kind: &'static str,
    data: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    default: u32,
    optional: bool,
) -> Result<Payload, VolumeError> {
    let file = |bytes: &[u8], mode| File { bytes: bytes.to_vec(), mode };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data
            .iter()
            .map(|(key, bytes)| ((*key).to_owned(), file(bytes, default)))
            .collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(bytes) => {
                let mode = item.mode.map_or(default, |given| mode(Some(given)));
                payload.insert(item.path.clone(), file(bytes, mode));
            }
            None if optional => {}
            None => {
                let (volume, key) = (volume.to_owned(), item.key.clone());
                return Err(VolumeError::MissingKey { volume, kind, key });
            }
        }
    }
    Ok(payload)
}

/// Permission bits of a spec; the API server allows 0 to 0o777.
fn mode(given: Option<i32>) -> u32 {
    given.unwrap_or(DEFAULT_MODE).unsigned_abs() & 0o777
}

/// Whether a path stays in the volume and out of the way of the writer's own
/// names. Source: `validatePath` in `pkg/volume/util/atomic_writer.go`.
fn is_within(path: &str) -> bool {
    let mut components = Path::new(path).components().peekable();
    components.peek().is_some()
        && !path.starts_with("..")
        && !path.contains('\0')
        && components.all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests;
