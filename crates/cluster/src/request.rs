//! One request and its answer.
//!
//! Every request of this crate goes through [`Cluster::call`], so that each has
//! a time limit, an answer of bounded size, and an error that says whether to
//! try again and when. Trying again is the caller's business: each knows best
//! what is stale by then.

use std::time::Duration;

use http::{Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kube::{client::Body, core::Status};
use serde::de::DeserializeOwned;
use tokio::{task::spawn_blocking, time::timeout};

use crate::Cluster;

/// How long an ordinary request may take. The API server gives up on its own
/// requests after 60 s, but a node that waits so long for one answer misses its
/// lease of 40 s.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// How long one page of a list may take: up to 500 objects.
pub(crate) const LIST_LIMIT: Duration = Duration::from_mins(1);

/// Bytes of the largest answer that is read: a page of 500 pods of 100 KiB. An
/// object itself always fits: it is at most about 1.5 MiB, etcd's limit, and six
/// times that as text. Of a list that does not, smaller pages are asked for.
const LARGEST_ANSWER: usize = 64 << 20;

/// Bytes of an answer that are parsed where they came in, within a few
/// milliseconds. Longer ones are parsed where nobody else waits meanwhile.
const SHORT_ANSWER: usize = 1 << 20;

/// Bytes of an error's body that are read; they are for people.
const LARGEST_REFUSAL: usize = 64 << 10;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum RequestError {
    #[error("the API server refused")]
    Refused {
        #[source]
        status: Box<Status>,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },

    #[error("the API server cannot be reached")]
    Unreachable {
        #[source]
        source: Box<kube::Error>,
    },

    #[error("the API server did not answer within {limit:?}")]
    TimedOut { limit: Duration },

    #[error("the answer of the API server broke off")]
    Broken {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("the answer of the API server is larger than {limit} bytes")]
    TooLarge { limit: usize },

    #[error("the answer of the API server cannot be understood")]
    Unreadable {
        #[source]
        source: serde_json::Error,
    },

    #[error("the request cannot be made")]
    Unsendable {
        #[source]
        source: Box<kube::core::request::Error>,
    },
}

impl RequestError {
    /// Whether the same request may succeed later, with nothing changed here.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { status, .. } => {
                // 401: the server's own view of credentials may lag.
                matches!(status.code, 401 | 408 | 429) || status.code >= 500
            }
            // Of what is too large less is asked for then.
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Broken { .. }
            | Self::TooLarge { .. } => true,
            Self::Unreadable { .. } | Self::Unsendable { .. } => false,
        }
    }

    /// Whether no server was there to answer.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. } => true,
            // Gateways in front of a dead server, and servers that start or end.
            Self::Refused { status, .. } => matches!(status.code, 502..=504),
            Self::TooLarge { .. } | Self::Unreadable { .. } | Self::Unsendable { .. } => false,
        }
    }

    /// The HTTP status of a refusal.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(status.code),
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Broken { .. }
            | Self::TooLarge { .. }
            | Self::Unreadable { .. }
            | Self::Unsendable { .. } => None,
        }
    }

    /// How long the server asked to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Broken { .. }
            | Self::TooLarge { .. }
            | Self::Unreadable { .. }
            | Self::Unsendable { .. } => None,
        }
    }

    /// Whether the server refused because of what this field says, as it does
    /// when a patch carries the uid of an earlier object of the name.
    pub(crate) fn names(&self, field: &str) -> bool {
        let Self::Refused { status, .. } = self else { return false };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.field == field)
    }

    /// Whether the server refused because an object of this name exists.
    pub(crate) fn is_already_exists(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.is_already_exists())
    }
}

impl From<kube::core::request::Error> for RequestError {
    fn from(source: kube::core::request::Error) -> Self {
        Self::Unsendable { source: Box::new(source) }
    }
}

impl Cluster {
    /// Sends a request and reads its answer as `T`, both within `limit`.
    pub(crate) async fn call<T: DeserializeOwned + Send + 'static>(
        &self,
        request: Request<Vec<u8>>,
        limit: Duration,
    ) -> Result<T, RequestError> {
        let whole = async {
            let response = send(&self.requests, request).await?;
            let body = read(response, LARGEST_ANSWER).await?;
            parse(body).await
        };
        timeout(limit, whole).await.map_err(|_| RequestError::TimedOut { limit })?
    }

    /// Opens a watch; `limit` is for the first byte only.
    pub(crate) async fn open_watch(
        &self,
        request: Request<Vec<u8>>,
        limit: Duration,
    ) -> Result<Response<Body>, RequestError> {
        timeout(limit, send(&self.watches, request))
            .await
            .map_err(|_| RequestError::TimedOut { limit })?
    }
}

/// Sends a request and turns every refusal into an error.
async fn send(
    client: &kube::Client,
    request: Request<Vec<u8>>,
) -> Result<Response<Body>, RequestError> {
    let response = client
        .send(request.map(Body::from))
        .await
        .map_err(|source| RequestError::Unreachable { source: Box::new(source) })?;
    let code = response.status();
    if code.is_success() {
        return Ok(response);
    }
    let header = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    // What cannot be read of a refusal is only its text.
    let body = read(response, LARGEST_REFUSAL).await.unwrap_or_default();
    let status = refusal(code, &body);
    let in_body = status
        .details
        .as_ref()
        .map(|details| Duration::from_secs(details.retry_after_seconds.into()))
        .filter(|wait| !wait.is_zero());
    Err(RequestError::Refused { status: Box::new(status), retry_after: header.or(in_body) })
}

/// The whole body, if it is not larger than `largest` bytes.
async fn read(response: Response<Body>, largest: usize) -> Result<Vec<u8>, RequestError> {
    let body = Limited::new(response.into_body(), largest).collect().await.map_err(|source| {
        if source.is::<LengthLimitError>() {
            RequestError::TooLarge { limit: largest }
        } else {
            RequestError::Broken { source }
        }
    })?;
    Ok(body.to_bytes().into())
}

/// What a body says.
async fn parse<T: DeserializeOwned + Send + 'static>(body: Vec<u8>) -> Result<T, RequestError> {
    let is_short = body.len() <= SHORT_ANSWER;
    let read =
        move || serde_json::from_slice(&body).map_err(|source| RequestError::Unreadable { source });
    if is_short {
        return read();
    }
    match spawn_blocking(read).await {
        Ok(parsed) => parsed,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The agent stops.
        Err(error) => Err(RequestError::Broken { source: Box::new(error) }),
    }
}

/// The refusal a body describes. Filters in front of the API's handlers answer
/// in plain text.
fn refusal(code: StatusCode, body: &[u8]) -> Status {
    if let Ok(mut status) = serde_json::from_slice::<Status>(body)
        && (status.code != 0 || !status.reason.is_empty())
    {
        if status.code == 0 {
            status.code = code.as_u16();
        }
        return status;
    }
    let text = String::from_utf8_lossy(body);
    Status::failure(text.trim(), code.canonical_reason().unwrap_or("Unknown"))
        .with_code(code.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_in_plain_text_keeps_its_code_and_words() {
        let status = refusal(StatusCode::TOO_MANY_REQUESTS, b"Too many requests\n");
        assert_eq!(status.code, 429);
        assert_eq!(status.message, "Too many requests");
    }

    #[test]
    fn a_refusal_as_a_status_is_taken_as_it_is() {
        let body = br#"{"kind":"Status","status":"Failure","message":"no","reason":"AlreadyExists","code":409}"#;
        assert!(refusal(StatusCode::CONFLICT, body).is_already_exists());
    }
}
