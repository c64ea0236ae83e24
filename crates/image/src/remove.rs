//! Why an image is not removed.

use std::io;

/// Why an image could not be removed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum RemoveError {
    #[error("there is no image {reference:?}")]
    NotFound { reference: String },
    #[error("image {reference:?} is in use")]
    InUse { reference: String },
    #[error("cannot remove image {reference:?}")]
    Io {
        reference: String,
        #[source]
        source: io::Error,
    },
    #[error("the removal of image {reference:?} died")]
    Died { reference: String },
    #[error("the agent is stopping")]
    Stopping,
}
