//! Why a request to a registry failed.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::guard::GuardError;
use super::rules::EndpointError;
use crate::digest::Digest;

/// Why a request to a registry failed. `host` is the one that was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum RequestError {
    #[error("cannot reach {host}")]
    Unreachable {
        host: String,
        #[source]
        source: Arc<reqwest::Error>,
    },
    #[error("no secure connection to {host}")]
    Tls {
        host: String,
        #[source]
        source: Arc<reqwest::Error>,
    },
    #[error("{host} was silent for {limit:?}")]
    Stalled { host: String, limit: Duration },
    #[error("the transfer from {host} broke after {received} bytes")]
    Broken {
        host: String,
        received: u64,
        #[source]
        source: Option<Arc<reqwest::Error>>,
    },
    #[error("{host} refused access{detail}")]
    Denied { host: String, detail: String },
    #[error("{host} has no such image{detail}")]
    NotFound { host: String, detail: String },
    #[error("{host} answered with status {status}{detail}")]
    Status { host: String, status: u16, detail: String, retry_after: Option<Duration> },
    #[error("{host} sends the node where it does not go")]
    Guarded {
        host: String,
        #[source]
        source: GuardError,
    },
    #[error("{host} gave an answer that is not understood: {what}")]
    Answer { host: String, what: String },
    #[error("{what} is larger than the {limit} bytes this node allows")]
    TooBig { what: String, limit: u64 },
    #[error("{host} sent {actual} bytes for {digest}, whose manifest says {expected}")]
    Size { host: String, digest: Digest, expected: u64, actual: u64 },
    #[error("what {host} sent for {expected} has the digest {actual}")]
    Mismatch { host: String, expected: Digest, actual: Digest },
    #[error("cannot store what {host} sent")]
    Store {
        host: String,
        #[source]
        source: Arc<io::Error>,
    },
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

impl RequestError {
    /// Sorts a failure of the HTTP client. Its text would repeat the URL, whose query may
    /// hold a signature that is a secret.
    pub(crate) fn client(host: &str, error: reqwest::Error) -> Self {
        let error = error.without_url();
        let host = host.to_owned();
        if let Some(source) = cause::<GuardError>(&error) {
            return Self::Guarded { host, source: source.clone() };
        }
        let is_tls = cause::<rustls::Error>(&error).is_some();
        let source = Arc::new(error);
        if is_tls { Self::Tls { host, source } } else { Self::Unreachable { host, source } }
    }

    pub(crate) fn store(host: &str, source: io::Error) -> Self {
        Self::Store { host: host.to_owned(), source: Arc::new(source) }
    }

    /// Whether the same request may do better at once, within the same pull.
    pub(crate) fn is_repeatable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Stalled { .. } | Self::Broken { .. } => true,
            // Request Timeout, Too Early, Too Many Requests, and what gateways say.
            Self::Status { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
            }
            Self::Tls { .. }
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::Guarded { .. }
            | Self::Answer { .. }
            | Self::TooBig { .. }
            | Self::Size { .. }
            | Self::Mismatch { .. }
            | Self::Store { .. }
            | Self::Endpoint(_) => false,
        }
    }

    /// Whether the same pull may succeed later, with nothing changed here.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            // What a registry holds, allows or answers can be mended there, and disks emptied.
            Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::Stalled { .. }
            | Self::Broken { .. }
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::Status { .. }
            | Self::Guarded { .. }
            | Self::Answer { .. }
            | Self::Size { .. }
            | Self::Mismatch { .. }
            | Self::Store { .. } => true,
            Self::TooBig { .. } | Self::Endpoint(_) => false,
        }
    }

    /// Whether the registry cannot be used at all at the moment.
    pub(crate) fn is_unavailable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Tls { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            Self::Broken { .. }
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::Guarded { .. }
            | Self::Answer { .. }
            | Self::TooBig { .. }
            | Self::Size { .. }
            | Self::Mismatch { .. }
            | Self::Store { .. }
            | Self::Endpoint(_) => false,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::Stalled { .. }
            | Self::Broken { .. }
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::Guarded { .. }
            | Self::Answer { .. }
            | Self::TooBig { .. }
            | Self::Size { .. }
            | Self::Mismatch { .. }
            | Self::Store { .. }
            | Self::Endpoint(_) => None,
        }
    }
}

/// The first cause of a kind, also where it is wrapped in an I/O error.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // `source` of an I/O error skips the error it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}
