//! An image from the pod's point of view: when to ask for it, and what to say
//! while it is not there.
//!
//! Downloading, retrying a broken transfer and telling transient from lasting
//! failures is left to `image`.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod};
use krustlet_image::{Asker, ImageRequest, PullPolicy};
use krustlet_model::{ContainerName, observed::ContainerKind};
use tokio::time::{Instant, sleep};

use crate::{
    config::Context,
    objects,
    outside::{About, EventType, ImageFailure, PulledImage},
    words::{self, waiting},
};

/// How long `ErrImagePull` stands before it becomes `ImagePullBackOff`. Kubelet
/// changes it when it next looks at the pod; a moment is enough to be seen.
pub(crate) const SHOW_ERROR: Duration = Duration::from_secs(1);

/// How long an image may take to be here before people are told that it is
/// pulled. One that is on the node is found within a millisecond.
const TELL_AFTER: Duration = Duration::from_millis(100);

/// A container's image, to be had.
pub(crate) struct ImageQuestion {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) kind: ContainerKind,
    pub(crate) name: ContainerName,
    pub(crate) image: String,
    pub(crate) policy: PullPolicy,
}

/// What became of it.
pub(crate) struct ImageAnswer {
    pub(crate) result: Result<Arc<dyn PulledImage>, ImageFailure>,
    /// Whether people were told that it is pulled.
    pub(crate) is_told: bool,
}

/// Has the image on this node, and tells of it if that takes time.
pub(crate) async fn ask_for_image(question: ImageQuestion) -> ImageAnswer {
    let ImageQuestion { context, pod, kind, name, image, policy } = question;
    let outside = &context.outside;
    let (credentials, useless) = objects::credentials(&*outside.objects, &pod).await;
    if let Some(message) = useless {
        let about = About::Pod(&pod);
        outside.events.record(about, EventType::Warning, words::PULL_SECRET, message);
    }
    let tell = || {
        let about = About::Container(&pod, kind, &name);
        outside.events.record(about, EventType::Normal, words::PULLING, words::pulling(&image));
    };
    let request = ImageRequest { asker: Asker::Pod, reference: image.clone(), policy, credentials };
    let mut pull = outside.programs.ensure(request);
    // Cancel-safe: the pull is waited for on.
    let early = tokio::select! {
        biased;
        result = &mut pull => Some(result),
        () = sleep(TELL_AFTER) => None,
    };
    if let Some(result) = early {
        return ImageAnswer { result, is_told: false };
    }
    tell();
    ImageAnswer { result: pull.await, is_told: true }
}

/// A pull that failed and will be tried again.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    /// Why.
    pub(crate) failure: ImageFailure,
    /// When it becomes a back-off in the status, if it does and has not.
    pub(crate) shown_as_error_until: Option<Instant>,
    /// When it is tried again.
    pub(crate) retry_at: Instant,
}

impl Failed {
    pub(crate) fn new(failure: ImageFailure, now: Instant, wait: Duration) -> Self {
        let shown_as_error_until = is_pull(failure.reason).then(|| now + SHOW_ERROR.min(wait / 2));
        Self { failure, shown_as_error_until, retry_at: now + wait }
    }

    /// The waiting reason and message once the failure has been shown.
    pub(crate) fn back_off(&self, image: &str) -> (String, String) {
        let ImageFailure { reason, message } = &self.failure;
        let message = format!("Back-off pulling image {image:?}: {reason}: {message}");
        (waiting::PULL_BACK_OFF.to_owned(), message)
    }

    /// When something is to be done next.
    pub(crate) fn wake(&self) -> Instant {
        self.shown_as_error_until.unwrap_or(self.retry_at)
    }
}

/// Whether the failure is one of a download, which backs off; the others keep
/// their reason while they are looked at again.
pub(crate) fn is_pull(reason: &str) -> bool {
    !matches!(reason, waiting::NEVER_PULL | waiting::INVALID_NAME)
}

/// A container's pull policy. Without one: `Always` for an image that may
/// change under its name (no digest, and no tag or `latest`), as the API server
/// would set it.
///
/// Source: `SetDefaults_Container` in `pkg/apis/core/v1/defaults.go`.
pub(crate) fn policy(container: &Container) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        Some(_) | None => {
            let image = container.image.as_deref().unwrap_or_default();
            if may_change(image) { PullPolicy::Always } else { PullPolicy::IfNotPresent }
        }
    }
}

fn may_change(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    // A colon before the last slash is a port's.
    let name = image.rsplit('/').next().unwrap_or_default();
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_that_may_change_is_asked_for_again() {
        let table = [
            ("web", PullPolicy::Always),
            ("web:latest", PullPolicy::Always),
            ("web:1", PullPolicy::IfNotPresent),
            ("host:5000/web", PullPolicy::Always),
            ("host:5000/web:1", PullPolicy::IfNotPresent),
            ("web@sha256:00", PullPolicy::IfNotPresent),
        ];
        for (image, expected) in table {
            let container: Container =
                serde_json::from_value(json!({"name": "main", "image": image})).unwrap();
            assert_eq!(policy(&container), expected, "{image}");
        }
        let never: Container = serde_json::from_value(
            json!({"name": "main", "image": "web", "imagePullPolicy": "Never"}),
        )
        .unwrap();
        assert_eq!(policy(&never), PullPolicy::Never);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_pull_becomes_a_back_off() {
        let failure = ImageFailure { reason: "ErrImagePull", message: "no such host".into() };
        let now = Instant::now();
        let failed = Failed::new(failure, now, Duration::from_secs(10));
        assert_eq!(failed.wake(), now + SHOW_ERROR);
        let (reason, message) = failed.back_off("web:1");
        assert_eq!(reason, "ImagePullBackOff");
        assert_eq!(message, "Back-off pulling image \"web:1\": ErrImagePull: no such host");
        let failure = ImageFailure { reason: "ErrImageNeverPull", message: String::new() };
        let failed = Failed::new(failure, now, Duration::from_secs(10));
        assert_eq!(failed.wake(), now + Duration::from_secs(10));
    }
}
