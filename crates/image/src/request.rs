//! What is asked of the image store, and what is answered.

use std::time::Duration;

use crate::credential::Credential;
use crate::image::Image;

/// Whether a registry is asked for an image. The words are Kubernetes'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// Ask what the tag means now, and fetch that if it is not here.
    Always,
    /// Ask only if the reference is not known here.
    #[default]
    IfNotPresent,
    /// Do not ask.
    Never,
}

/// Who wants an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asker {
    /// A pod. An image that is here is only given to it if its credentials allow; see
    /// [`crate::VerificationPolicy`].
    Pod,
    /// Whoever runs the node. The image is preloaded by this: pods get it without being verified, unless
    /// the policy says otherwise.
    Operator,
}

/// A wish for an image.
#[derive(Clone, Debug)]
pub struct ImageRequest {
    /// Who wants it.
    pub asker: Asker,
    /// As the pod's author wrote it.
    pub reference: String,
    /// Whether a registry is asked.
    pub policy: PullPolicy,
    /// Tried before those of the Docker configuration, the most particular first.
    pub credentials: Vec<Credential>,
}

/// An image that is on this node and stays while it is held.
#[derive(Clone, Debug)]
pub struct Ensured {
    /// The image.
    pub image: Image,
    /// What its pull took. None if it was there and no registry was asked.
    pub pull: Option<PullReport>,
}

/// What one pull took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullReport {
    /// From the first request to the stored image, without `waited`.
    pub took: Duration,
    /// Spent waiting for other pulls to leave a place free.
    pub waited: Duration,
    /// Bytes of layers that were fetched: 0 if all of them were here.
    pub bytes: u64,
}
