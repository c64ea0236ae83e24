//! Service account tokens, each bound to one pod.
//!
//! Source: kubelet, `pkg/kubelet/token/token_manager.go`.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest as ApiTokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use krustlet_model::{Chain, PodUid, time::from_api_time};
use kube::{Resource, api::PostParams, core::Request};
use rand::Rng;

use crate::{Cluster, RequestError, request::LIMIT};

/// A token older than this is renewed whatever its life. Source: `maxTTL`.
const OLDEST: SignedDuration = SignedDuration::from_hours(24);

/// A renewal is put off by up to this at random. Source: `maxJitter`.
const JITTER: Duration = Duration::from_secs(10);

/// Tokens kept at once: a few for each of ten thousand pods.
const MOST: usize = 40_000;

/// Which token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenRequest {
    /// The pod's namespace and the account's.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
    /// The name of the pod it is bound to.
    pub pod_name: String,
    /// The uid of the pod it is bound to.
    pub pod_uid: PodUid,
    /// For whom; None means for the API server itself.
    pub audience: Option<String>,
    /// How long it is to live, in seconds; the API server takes 600 and more.
    pub expiration_seconds: i64,
}

/// A token and when it ends.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What a guest sends; not to be printed.
    pub token: String,
    /// When the API server stops taking it.
    pub expires: Timestamp,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum TokenError {
    #[error("cannot get a token of service account {namespace}/{service_account}")]
    Request {
        namespace: String,
        service_account: String,
        #[source]
        source: RequestError,
    },

    #[error("the API server gave no token for service account {namespace}/{service_account}")]
    Empty { namespace: String, service_account: String },
}

impl TokenError {
    /// Whether asking again may help, with nothing changed here. A refusal (403)
    /// may be one of the first moments of a pod, and a missing account (404) may
    /// be made yet.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Request { source, .. } => {
                source.is_transient() || matches!(source.code(), Some(403 | 404))
            }
            Self::Empty { .. } => false,
        }
    }

    /// Whether the API server refuses it (403): this node may not have it, or
    /// the node authorizer has not heard yet that the pod is this node's.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        match self {
            Self::Request { source, .. } => source.code() == Some(403),
            Self::Empty { .. } => false,
        }
    }
}

/// Asks for tokens and keeps them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokens {
    cluster: Cluster,
    /// Shared by the pods' tasks; held for map operations only.
    kept: Arc<Mutex<HashMap<TokenRequest, Kept>>>,
}

#[derive(Clone, Debug)]
struct Kept {
    token: Token,
    renew_at: Timestamp,
}

impl Tokens {
    /// The tokens of one cluster.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone(), kept: Arc::default() }
    }

    /// The token, renewed when four fifths of its life or a day are over. One
    /// that cannot be renewed is given out as long as it lives.
    ///
    /// # Errors
    ///
    /// [`TokenError`] if there is none to give.
    pub async fn token(&self, request: &TokenRequest) -> Result<Token, TokenError> {
        let now = Timestamp::now();
        let kept = self.with(|kept| kept.get(request).cloned());
        if let Some(kept) = &kept
            && now < kept.renew_at
        {
            return Ok(kept.token.clone());
        }
        match self.ask(request).await {
            Ok(token) => {
                let renew_at = renew_at(now, token.expires, jitter());
                let fresh = Kept { token: token.clone(), renew_at };
                self.with(|kept| {
                    if kept.len() >= MOST {
                        kept.retain(|_, kept| now < kept.token.expires);
                    }
                    if kept.len() < MOST {
                        kept.insert(request.clone(), fresh);
                    }
                });
                Ok(token)
            }
            Err(error) => match kept {
                Some(kept) if now < kept.token.expires => {
                    tracing::warn!(
                        pod = request.pod_name,
                        namespace = request.namespace,
                        error = %Chain(&error),
                        "cannot renew a token; it stays as it is"
                    );
                    Ok(kept.token)
                }
                Some(_) | None => Err(error),
            },
        }
    }

    /// Forgets the tokens of a pod that is gone.
    pub fn forget(&self, pod: &PodUid) {
        self.with(|kept| kept.retain(|request, _| request.pod_uid != *pod));
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<TokenRequest, Kept>) -> T) -> T {
        // A map operation that panicked leaves a map.
        change(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ask(&self, request: &TokenRequest) -> Result<Token, TokenError> {
        let account = || (request.namespace.clone(), request.service_account.clone());
        let answer = self.create(request).await.map_err(|source| {
            let (namespace, service_account) = account();
            TokenError::Request { namespace, service_account, source }
        })?;
        let status = answer.status.unwrap_or_default();
        let token = status.token.filter(|token| !token.is_empty());
        if let (Some(token), Some(expires)) = (token, status.expiration_timestamp) {
            return Ok(Token { token, expires: from_api_time(&expires) });
        }
        let (namespace, service_account) = account();
        Err(TokenError::Empty { namespace, service_account })
    }

    async fn create(&self, request: &TokenRequest) -> Result<ApiTokenRequest, RequestError> {
        let body = ApiTokenRequest {
            spec: Some(TokenRequestSpec {
                // None: the API server's own audiences, which has to be sent as
                // an empty list.
                audiences: Some(request.audience.iter().cloned().collect()),
                expiration_seconds: Some(request.expiration_seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(request.pod_name.clone()),
                    uid: Some(request.pod_uid.as_str().to_owned()),
                }),
                ..TokenRequestSpec::default()
            }),
            ..ApiTokenRequest::default()
        };
        let body = serde_json::to_vec(&body).map_err(kube::core::request::Error::SerializeBody)?;
        let path = Request::new(ServiceAccount::url_path(&(), Some(&request.namespace)));
        let account = &request.service_account;
        let call = path.create_subresource("token", account, &PostParams::default(), body)?;
        self.cluster.call(call, LIMIT).await
    }
}

fn jitter() -> Duration {
    rand::rng().random_range(Duration::ZERO..=JITTER)
}

/// When a token given at `now` is to be renewed: at four fifths of its life, but
/// within a day, later by `jitter` and before its end.
fn renew_at(now: Timestamp, expires: Timestamp, jitter: Duration) -> Timestamp {
    let life = expires.duration_since(now).max(SignedDuration::ZERO);
    let wait = (life * 4 / 5).min(OLDEST);
    let later = SignedDuration::try_from(jitter).unwrap_or_default().min((life - wait) / 2);
    now.checked_add(wait + later).unwrap_or(expires)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_at_four_fifths_of_its_life_or_after_a_day() {
        let now = Timestamp::UNIX_EPOCH;
        let at = |seconds| now + SignedDuration::from_secs(seconds);
        assert_eq!(renew_at(now, at(3600), Duration::ZERO), at(2880));
        assert_eq!(renew_at(now, at(86_400 * 365), Duration::ZERO), at(86_400));
        assert_eq!(renew_at(at(10), now, JITTER), at(10));
    }

    #[test]
    fn a_printed_token_shows_nothing_to_use() {
        let token = Token { token: "secret".to_owned(), expires: Timestamp::UNIX_EPOCH };
        assert!(!format!("{token:?}").contains("secret"));
    }
}
