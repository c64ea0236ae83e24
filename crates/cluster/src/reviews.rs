//! Who may use the node's own API: the API server says.
//!
//! Answers are kept as long as the kubelet keeps them (two minutes for a token,
//! five minutes for a yes, thirty seconds for a no), at most [`MOST`] of each.
//! Tokens are kept as digests. Source: kubelet,
//! `pkg/kubelet/apis/config/v1beta1/defaults.go`, authentication and
//! authorization webhooks.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{
        NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
    },
};
use kube::{Resource, api::PostParams, core::Request};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::{Cluster, RequestError, request::LIMIT};

const TOKEN_KEPT: Duration = Duration::from_mins(2);
const YES_KEPT: Duration = Duration::from_mins(5);
const NO_KEPT: Duration = Duration::from_secs(30);

/// Answers kept at once of each sort; some 200 bytes each.
const MOST: usize = 1024;

/// Bytes of the longest token and path that are looked at: the kubelet's limit on
/// all headers of a request is 1 MiB, and tokens of the API server are about 1 KiB.
const LONGEST: usize = 16 << 10;

/// Why there is no answer; a caller has to refuse then.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ReviewError {
    #[error("cannot have a token reviewed")]
    Token {
        #[source]
        source: RequestError,
    },

    #[error("cannot have an access reviewed")]
    Access {
        #[source]
        source: RequestError,
    },

    #[error("the credentials or the path are longer than {LONGEST} bytes")]
    TooLong,
}

/// What is to be done, in the words of authorization.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Something with a node's subresource, such as `get nodes/log`.
    Node {
        /// `get`, `create`, …
        verb: String,
        /// The node's name.
        name: String,
        /// `proxy`, `stats`, `metrics`, `log`, `pods`, `healthz`, `configz`, …
        subresource: String,
    },
    /// Something with a path that is no resource.
    Path {
        /// `get`, `post`, …
        verb: String,
        /// The path.
        path: String,
    },
}

/// Asks, and remembers answers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reviews {
    cluster: Cluster,
    tokens: Arc<Mutex<Memory<[u8; 32], Option<UserInfo>>>>,
    accesses: Arc<Mutex<Memory<AccessKey, bool>>>,
}

/// Who asks for what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct AccessKey {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
    access: Access,
}

impl Reviews {
    /// The reviews of one cluster.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone(), tokens: Arc::default(), accesses: Arc::default() }
    }

    /// Whose bearer token this is; None if nobody's.
    ///
    /// # Errors
    ///
    /// [`ReviewError`] if the API server does not say.
    pub async fn token(&self, bearer: &str) -> Result<Option<UserInfo>, ReviewError> {
        if bearer.len() > LONGEST {
            return Err(ReviewError::TooLong);
        }
        let digest: [u8; 32] = Sha256::digest(bearer.as_bytes()).into();
        if let Some(known) = with(&self.tokens, |memory| memory.get(&digest)) {
            return Ok(known);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: bearer.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let review: TokenReview =
            self.create(&review).await.map_err(|source| ReviewError::Token { source })?;
        let status = review.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        with(&self.tokens, |memory| memory.keep(digest, user.clone(), TOKEN_KEPT));
        Ok(user)
    }

    /// Whether this user may do this.
    ///
    /// # Errors
    ///
    /// [`ReviewError`] if the API server does not say.
    pub async fn access(&self, user: &UserInfo, access: &Access) -> Result<bool, ReviewError> {
        if matches!(access, Access::Path { path, .. } if path.len() > LONGEST) {
            return Err(ReviewError::TooLong);
        }
        let key = AccessKey {
            user: user.username.clone().unwrap_or_default(),
            uid: user.uid.clone().unwrap_or_default(),
            groups: user.groups.clone().unwrap_or_default(),
            extra: user.extra.clone().unwrap_or_default(),
            access: access.clone(),
        };
        if let Some(known) = with(&self.accesses, |memory| memory.get(&key)) {
            return Ok(known);
        }
        let review: SubjectAccessReview = self
            .create(&SubjectAccessReview { spec: spec(&key), ..SubjectAccessReview::default() })
            .await
            .map_err(|source| ReviewError::Access { source })?;
        let status = review.status.unwrap_or_default();
        let allowed = status.allowed && status.denied != Some(true);
        let kept = if allowed { YES_KEPT } else { NO_KEPT };
        with(&self.accesses, |memory| memory.keep(key, allowed, kept));
        Ok(allowed)
    }

    async fn create<R>(&self, review: &R) -> Result<R, RequestError>
    where
        R: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Send + 'static,
    {
        let body = serde_json::to_vec(review).map_err(kube::core::request::Error::SerializeBody)?;
        let path = Request::new(R::url_path(&(), None));
        self.cluster.call(path.create(&PostParams::default(), body)?, LIMIT).await
    }
}

fn spec(key: &AccessKey) -> SubjectAccessReviewSpec {
    let mut spec = SubjectAccessReviewSpec {
        user: Some(key.user.clone()),
        uid: Some(key.uid.clone()).filter(|uid| !uid.is_empty()),
        groups: Some(key.groups.clone()),
        extra: Some(key.extra.clone()).filter(|extra| !extra.is_empty()),
        ..SubjectAccessReviewSpec::default()
    };
    match &key.access {
        Access::Node { verb, name, subresource } => {
            spec.resource_attributes = Some(ResourceAttributes {
                verb: Some(verb.clone()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(subresource.clone()),
                name: Some(name.clone()),
                ..ResourceAttributes::default()
            });
        }
        Access::Path { verb, path } => {
            spec.non_resource_attributes =
                Some(NonResourceAttributes { verb: Some(verb.clone()), path: Some(path.clone()) });
        }
    }
    spec
}

fn with<M, T>(memory: &Mutex<M>, change: impl FnOnce(&mut M) -> T) -> T {
    // A map operation that panicked leaves a map; never held across an await.
    change(&mut memory.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Answers with an end.
#[derive(Debug)]
struct Memory<Q, A> {
    answers: HashMap<Q, (A, Instant)>,
}

impl<Q, A> Default for Memory<Q, A> {
    fn default() -> Self {
        Self { answers: HashMap::new() }
    }
}

impl<Q: Eq + Hash, A: Clone> Memory<Q, A> {
    fn get(&self, question: &Q) -> Option<A> {
        let (answer, until) = self.answers.get(question)?;
        (Instant::now() < *until).then(|| answer.clone())
    }

    /// Keeps an answer; when full, those that ended go, or else all do: asking
    /// again is what an answer costs.
    fn keep(&mut self, question: Q, answer: A, kept: Duration) {
        let now = Instant::now();
        if self.answers.len() >= MOST {
            self.answers.retain(|_, (_, until)| now < *until);
        }
        if self.answers.len() >= MOST {
            self.answers.clear();
        }
        self.answers.insert(question, (answer, now + kept));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_remembered_until_its_end() {
        let mut memory = Memory::default();
        memory.keep(1, "yes", Duration::from_secs(30));
        assert_eq!(memory.get(&1), Some("yes"));
        advance(Duration::from_secs(30)).await;
        assert_eq!(memory.get(&1), None);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let mut memory = Memory::default();
        for question in 0..5 * MOST {
            memory.keep(question, (), Duration::from_secs(30));
            assert!(memory.answers.len() <= MOST);
        }
    }
}
