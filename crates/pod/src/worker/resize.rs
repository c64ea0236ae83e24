//! Has what runs use what it is allotted.
//!
//! Compared, not replayed: at each step, a container that runs with other
//! resources than its spec names is told the new ones, or run again if its
//! policy says so. Whether the pod may have what its source wants was decided by
//! the owner of all pods; what it must not have is not in the spec here.
//!
//! Source: kubelet, `doPodResizeAction` in
//! `pkg/kubelet/kuberuntime/kuberuntime_manager.go`; the events are those of
//! `SyncPod` in `pkg/kubelet/kubelet.go`.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod};
use krustlet_model::{
    ContainerId,
    observed::{ResizeObserved, ResizePending},
    resize::{self, ContainerResources},
    restarts,
};
use tokio::time::Instant;

use super::{Done, Worker, own_grace};
use crate::{
    containers::Run,
    decide::Phase,
    launch,
    outside::{EventType, Refused, Why},
    words,
};

/// The wait after a sandbox did not take new limits: what it uses may change.
const RETRY: Duration = Duration::from_secs(10);

/// How far a resize is.
#[derive(Debug, Default)]
pub(super) struct Resizing {
    /// Whether one was begun and its end was not told.
    is_begun: bool,
    /// Why the last try failed.
    error: Option<String>,
    /// When the next may begin, after one that failed.
    retry: Option<Instant>,
    /// The wish, by its number, of which it was told that it has to wait.
    told: Option<(ResizePending, Option<i64>)>,
}

impl Resizing {
    pub(super) fn wake(&self) -> Option<Instant> {
        self.retry
    }
}

impl Worker {
    /// What keeps the pod from having what is wanted for it.
    pub(super) fn resize_observed(&self) -> ResizeObserved {
        let pending = self.wanted.borrow().pending.clone();
        ResizeObserved { pending, error: self.resizing.error.clone() }
    }

    /// Takes note of what the pod is allotted now.
    pub(super) fn take_resources(&mut self, old: &Pod) {
        if resize::is_resized(old, &self.pod) {
            self.resizing = Resizing { is_begun: true, ..Resizing::default() };
            let summary = resize::summary(&self.pod, None);
            let message = words::resize(words::RESIZE_STARTED, &summary);
            self.tell(EventType::Normal, words::RESIZE_STARTED, message);
        }
        let pending = self.wanted.borrow().pending.clone();
        let told = pending.map(|pending| (pending, self.pod.metadata.generation));
        let is_news = match (&told, &self.resizing.told) {
            (Some((now, wish)), Some((before, told))) => {
                now.reason != before.reason || wish != told
            }
            (Some(_), None) => true,
            (None, _) => false,
        };
        if is_news && let Some((pending, _)) = &told {
            let wish = self.wanted.borrow().wish.clone();
            let summary = resize::summary(&wish, Some(&pending.message));
            let message = words::resize(words::RESIZE_DEFERRED, &summary);
            self.tell(EventType::Warning, words::RESIZE_DEFERRED, message);
        }
        self.resizing.told = told;
    }

    /// Tells sandboxes what their containers may use, as far as that is not what
    /// they have.
    pub(super) fn resize(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Starting | Phase::Running)
            || self.resizing.retry.is_some_and(|at| at > now)
        {
            return;
        }
        let pod = Arc::clone(&self.pod);
        let mut is_done = true;
        for (index, (kind, container)) in restarts::containers(&pod).enumerate() {
            let Some(slot) = self.slots.get(index) else { break };
            let Some(id) = slot.live() else { continue };
            let allotted = ContainerResources::of(container);
            let Some(actual) = &slot.seen.resources else { continue };
            if actual.is_same(&allotted) {
                continue;
            }
            is_done = false;
            // One whose code is being loaded is told once the sandbox knows it.
            let is_loading = matches!(slot.run, Run::Launching { .. });
            if is_loading || slot.is_updating || slot.is_being_replaced() {
                continue;
            }
            self.resizing.is_begun = true;
            let id = id.clone();
            if resize::needs_restart(kind, container, actual) {
                self.restart_resized(index, id);
            } else {
                self.update(index, id, container, allotted);
            }
        }
        if is_done && std::mem::take(&mut self.resizing.is_begun) {
            self.resizing.error = None;
            let summary = resize::summary(&pod, None);
            let message = words::resize(words::RESIZE_COMPLETED, &summary);
            self.tell(EventType::Normal, words::RESIZE_COMPLETED, message);
        }
    }

    fn update(
        &mut self,
        index: usize,
        id: ContainerId,
        container: &Container,
        resources: ContainerResources,
    ) {
        let limits = match launch::limits(container) {
            Ok(limits) => limits,
            Err(error) => return self.resize_failed(&error.to_string()),
        };
        self.slots[index].is_updating = true;
        let runtime = &self.context.outside.runtime;
        let asked = runtime.update_container(self.uid.clone(), id.clone(), limits);
        self.jobs.spawn(async move {
            let result = asked.await;
            Done::Updated { index, id, resources, result }
        });
    }

    /// Has a container run again; the new run has what is allotted.
    fn restart_resized(&mut self, index: usize, id: ContainerId) {
        if !self.slots[index].replace() {
            return;
        }
        let name = self.slots[index].seen.name.clone();
        let message = words::resize_requires_restart(name.as_str());
        self.tell_of(index, EventType::Normal, words::KILLING, message);
        let grace = own_grace(&self.pod).duration();
        let runtime = &self.context.outside.runtime;
        let asked = runtime.stop_container(self.uid.clone(), id.clone(), grace);
        self.jobs.spawn(async move { Done::Stopped { index, id, result: asked.await } });
    }

    /// A sandbox was told what a container may use.
    pub(super) fn updated(
        &mut self,
        index: usize,
        id: &ContainerId,
        resources: ContainerResources,
        result: Result<(), Refused>,
    ) {
        let slot = &mut self.slots[index];
        slot.is_updating = false;
        if slot.live() != Some(id) {
            return;
        }
        match result {
            Ok(()) => {
                slot.seen.resources = Some(resources);
                self.resizing.error = None;
                // The next agent that does not know tells the sandbox again.
                self.touch_lazily();
            }
            Err(refused) => match refused.why {
                // Its end comes as an event, and maybe not at once.
                Why::Stopping | Why::Died => self.resizing.retry = Some(Instant::now() + RETRY),
                Why::Failed => self.resize_failed(&refused.message),
            },
        }
    }

    fn resize_failed(&mut self, why: &str) {
        self.resizing.retry = Some(Instant::now() + RETRY);
        if self.resizing.error.as_deref() == Some(why) {
            return;
        }
        let summary = resize::summary(&self.pod, Some(why));
        let message = words::resize(words::RESIZE_ERROR, &summary);
        self.tell(EventType::Warning, words::RESIZE_ERROR, message);
        self.resizing.error = Some(why.to_owned());
    }
}
