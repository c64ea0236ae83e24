//! Small files that say something to the next agent, in JSON, each replaced whole.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

/// Reads a file; what is not there says nothing. None of one that is damaged: somebody
/// said something, and nobody knows what.
pub(crate) fn read<T: DeserializeOwned + Default>(path: &Path) -> Option<T> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, "is damaged; it is made anew");
            })
            .ok(),
        Err(error) if error.kind() == ErrorKind::NotFound => Some(T::default()),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot be read");
            None
        }
    }
}

/// Writes a file; one that is there stays until the new one is whole, also through a
/// loss of power.
///
/// # Errors
///
/// What the system said.
pub(crate) fn write(path: &Path, what: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(what)?)?;
    // Else some file systems keep the new name and lose what is in it.
    file.sync_all()?;
    fs::rename(&new, path)
}
