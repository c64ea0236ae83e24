//! Looks at what the pod has on the disk, and ends it if that is too much.

use std::{sync::Arc, time::Duration};

use krustlet_model::observed::PodFailure;
use tokio::{task::spawn_blocking, time::Instant};

use super::{Done, Worker};
use crate::{
    decide::Phase,
    outside::EventType,
    storage::{Places, StorageLimits, exceeded},
    words,
};

/// Time between looks. Source: kubelet, `evictionMonitoringPeriod` in
/// `pkg/kubelet/kubelet.go`.
const PERIOD: Duration = Duration::from_secs(10);

/// The pod's limits and when they are looked at.
#[derive(Debug)]
pub(super) struct Storage {
    /// None: there is nothing to look at.
    limits: Option<Arc<StorageLimits>>,
    /// None while a look is under way.
    next: Option<Instant>,
}

impl Storage {
    pub(super) fn new(pod: &k8s_openapi::api::core::v1::Pod, now: Instant) -> Self {
        let limits = StorageLimits::of(pod).map(Arc::new);
        Self { limits, next: Some(now + PERIOD) }
    }

    /// When the next look is due, if ever.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.limits.as_ref()?;
        self.next
    }
}

impl Worker {
    /// Begins a look if one is due.
    pub(super) fn look_at_storage(&mut self, now: Instant) {
        let is_running = self.failure.is_none()
            && matches!(self.phase, Phase::Starting | Phase::Running)
            && self.files.are_set();
        let Some(limits) = self.storage.limits.clone() else { return };
        if self.storage.next.is_none_or(|at| at > now) {
            return;
        }
        if !is_running {
            self.storage.next = Some(now + PERIOD);
            return;
        }
        self.storage.next = None;
        let context = Arc::clone(&self.context);
        let logs = context.config.logs.pod(&self.key, &self.uid);
        let places = Places { volumes: self.volumes.clone(), logs };
        let name = self.key.clone();
        self.jobs.spawn(async move {
            // Never closed, so that there is always one in the end.
            let _alone = context.storage_looks.acquire().await.ok();
            let looked = spawn_blocking(move || exceeded(&limits, &places)).await;
            let found = looked.unwrap_or_else(|error| Err(error.into())).unwrap_or_else(|error| {
                tracing::warn!(pod = %name, %error, "cannot see what it has on the disk");
                None
            });
            Done::Stored(found)
        });
    }

    /// A look is over; `found` is the limit that was exceeded.
    pub(super) fn stored(&mut self, found: Option<String>) {
        self.storage.next = Some(Instant::now() + PERIOD);
        let Some(message) = found else { return };
        if self.failure.is_some() || !matches!(self.phase, Phase::Starting | Phase::Running) {
            return;
        }
        self.tell(EventType::Warning, words::EVICTED, message.clone());
        self.failure = Some(PodFailure { reason: words::EVICTED.to_owned(), message });
    }
}
