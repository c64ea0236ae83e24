//! Calls that may wait for a disk, kept off the threads of the async runtime.

use std::io;

use tokio::task::spawn_blocking;

use crate::RuntimeError;

/// Runs `work` on a thread that may block. Once begun it is finished, even if
/// the future is dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // It panicked, or the async runtime is going down.
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// As [`blocking`], for work with errors of the runtime's own.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(RuntimeError::Work(io::Error::other(error))))
}
