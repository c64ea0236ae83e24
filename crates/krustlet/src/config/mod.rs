//! What the agent is told by files: the kubelet's configuration and the
//! registries'. Flags override both; `node.rs` puts them together.

mod addresses;
pub(crate) mod duration;
pub(crate) mod eviction;
pub(crate) mod kubelet;
pub(crate) mod node;
pub(crate) mod registries;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} cannot be used: {why}")]
    Invalid { path: PathBuf, why: String },
}

/// Reads a YAML or JSON file whose every field must be known.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    serde_saphyr::from_str(&text)
        .map_err(|error| ConfigError::Invalid { path: path.to_owned(), why: error.to_string() })
}
