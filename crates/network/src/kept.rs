//! Small files that say something to the next agent, in JSON, each replaced whole.

use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

/// Reads a file. What is not there or damaged says nothing.
pub(crate) fn read<T: DeserializeOwned + Default>(path: &Path) -> T {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "is damaged; it is made anew");
            T::default()
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => T::default(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot be read");
            T::default()
        }
    }
}

/// Writes a file; one that is there stays until the new one is whole.
///
/// # Errors
///
/// What the system said.
pub(crate) fn write(path: &Path, what: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(what)?)?;
    fs::rename(&new, path)
}
