//! What pods and the server ask of the API server, passed on to the cluster's
//! handles.

use std::{collections::BTreeMap, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::{
    authentication::v1::UserInfo,
    core::v1::{ConfigMap, Node, Pod, PodStatus, Secret},
};
use krustlet_cluster as cluster;
use krustlet_model::{
    Chain, ContainerName, PodKey, PodUid, observed::ContainerKind, services::Services,
};
use krustlet_pod::outside::{
    About, DeleteFailure, EventSink, EventType, ObjectFailure, Objects, ServiceToken, StatusSink,
    TokenAsk,
};
use krustlet_server::{Attributes, ReviewFailed, Reviews, User};
use tokio::sync::watch;

/// What pods refer to, from the API server.
#[derive(Debug)]
pub(super) struct ClusterObjects {
    pub(super) objects: cluster::Objects,
    pub(super) tokens: Arc<cluster::Tokens>,
    pub(super) services: watch::Receiver<Option<Arc<Services>>>,
    pub(super) node: watch::Receiver<Option<Arc<Node>>>,
}

impl Objects for ClusterObjects {
    fn config_map(
        &self,
        namespace: String,
        name: String,
    ) -> BoxFuture<'static, Result<Option<Arc<ConfigMap>>, ObjectFailure>> {
        let objects = self.objects.clone();
        async move { objects.config_map(&namespace, &name).await.map_err(|error| failure(&error)) }
            .boxed()
    }

    fn secret(
        &self,
        namespace: String,
        name: String,
    ) -> BoxFuture<'static, Result<Option<Arc<Secret>>, ObjectFailure>> {
        let objects = self.objects.clone();
        async move { objects.secret(&namespace, &name).await.map_err(|error| failure(&error)) }
            .boxed()
    }

    fn token(&self, ask: TokenAsk) -> BoxFuture<'static, Result<ServiceToken, ObjectFailure>> {
        let tokens = Arc::clone(&self.tokens);
        let request = cluster::TokenRequest {
            namespace: ask.pod.namespace,
            service_account: ask.service_account,
            pod_name: ask.pod.name,
            pod_uid: ask.uid,
            audience: ask.audience,
            expiration_seconds: ask.expiration_seconds,
        };
        async move {
            let token = tokens.token(&request).await.map_err(|error| ObjectFailure {
                is_refused: error.is_refused(),
                ..failure(&error)
            })?;
            Ok(ServiceToken { token: token.token, expires: token.expires })
        }
        .boxed()
    }

    fn forget_tokens(&self, uid: &PodUid) {
        self.tokens.forget(uid);
    }

    fn services(&self) -> watch::Receiver<Option<Arc<Services>>> {
        self.services.clone()
    }

    fn node(&self) -> watch::Receiver<Option<Arc<Node>>> {
        self.node.clone()
    }
}

fn failure(error: &(dyn std::error::Error + 'static)) -> ObjectFailure {
    ObjectFailure { message: Chain(error).to_string(), is_refused: false }
}

/// Statuses, written to the API server.
#[derive(Debug)]
pub(super) struct ClusterStatus(pub(super) cluster::StatusWriter);

impl StatusSink for ClusterStatus {
    fn report(&self, pod: &Arc<Pod>, status: PodStatus) {
        self.0.report(pod, status);
    }

    fn delete(&self, pod: &Arc<Pod>) -> BoxFuture<'static, Result<(), DeleteFailure>> {
        let writer = self.0.clone();
        let metadata = &pod.metadata;
        let key = PodKey::new(
            metadata.namespace.clone().unwrap_or_default(),
            metadata.name.clone().unwrap_or_default(),
        );
        let uid = PodUid::new(metadata.uid.clone().unwrap_or_default());
        async move {
            let deleted = writer.delete(&key, &uid).await;
            deleted.map_err(|error| DeleteFailure { message: Chain(&error).to_string() })
        }
        .boxed()
    }
}

/// Events, written to the API server.
#[derive(Debug)]
pub(super) struct ClusterEvents(pub(super) cluster::Events);

impl EventSink for ClusterEvents {
    fn record(&self, about: About<'_>, kind: EventType, reason: &str, message: String) {
        let about = match about {
            About::Pod(pod) => cluster::About::pod(pod),
            About::Container(pod, kind, name) => container(pod, kind, name),
            About::Ephemeral(pod, name) => cluster::About::ephemeral(pod, name),
        };
        let kind = match kind {
            EventType::Normal => cluster::EventType::Normal,
            EventType::Warning => cluster::EventType::Warning,
        };
        self.0.record(&about, kind, reason, message);
    }
}

fn container(pod: &Pod, kind: ContainerKind, name: &ContainerName) -> cluster::About {
    cluster::About::container(pod, kind, name)
}

/// Who may use the node's API, asked of the API server.
#[derive(Debug)]
pub(super) struct ClusterReviews {
    pub(super) reviews: cluster::Reviews,
    pub(super) node: String,
}

impl Reviews for ClusterReviews {
    fn token(&self, bearer: String) -> BoxFuture<'_, Result<Option<User>, ReviewFailed>> {
        async move {
            let user = self.reviews.token(&bearer).await.map_err(|error| refused(&error))?;
            Ok(user.map(|user| User {
                name: user.username.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                uid: user.uid,
                extra: user.extra.unwrap_or_default(),
            }))
        }
        .boxed()
    }

    fn access(&self, user: User, wanted: Attributes) -> BoxFuture<'_, Result<bool, ReviewFailed>> {
        let access = cluster::reviews::Access::Node {
            verb: wanted.verb.to_owned(),
            name: self.node.clone(),
            subresource: wanted.subresource.to_owned(),
        };
        async move {
            self.reviews.access(&info(user), &access).await.map_err(|error| refused(&error))
        }
        .boxed()
    }
}

fn info(user: User) -> UserInfo {
    let some = |extra: BTreeMap<_, _>| (!extra.is_empty()).then_some(extra);
    UserInfo {
        username: Some(user.name),
        groups: Some(user.groups),
        uid: user.uid,
        extra: some(user.extra),
    }
}

fn refused(error: &(dyn std::error::Error + 'static)) -> ReviewFailed {
    ReviewFailed(Chain(error).to_string())
}
