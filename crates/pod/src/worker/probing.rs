//! Probing the pod's containers: the worker's timer wakes it when a probe is
//! due, a job makes it, and what follows is a rule of
//! [`probes`](krustlet_model::probes).

use std::{net::IpAddr, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod};
use krustlet_model::{
    ContainerId, Grace,
    observed::ContainerState,
    probes::{Finding, Outcome, ProbeKind, target::target, time_limit},
    restarts,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Done, Worker, own_grace, stop::LEAST_GRACE};
use crate::{
    containers::{Probing, Run},
    outside::{EventType, ProbeAnswer, ProbeAsk},
    words,
};

impl Worker {
    /// Has the probes made that are due.
    pub(super) fn probe(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let (Run::Entered { id, .. }, Some(probing)) = (&slot.run, &mut slot.probing) else {
                continue;
            };
            let (id, due, over) = (id.clone(), probing.due(now), probing.over());
            for kind in due {
                self.ask(index, id.clone(), kind, over.clone());
            }
        }
    }

    /// Has a probe made, unless the run is over before its answer comes: then the
    /// next run's is the only one of its kind, as a kubelet has it.
    fn ask(&mut self, index: usize, id: ContainerId, kind: ProbeKind, over: CancellationToken) {
        let Some((_, container)) = restarts::containers(&self.pod).nth(index) else { return };
        let Some(probe) = kind.of(container) else { return };
        let ask = match (target(container, probe), self.pod_ips().first()) {
            (Ok(target), Some(&address)) => ProbeAsk { target, address, limit: time_limit(probe) },
            (Err(error), _) => return self.unmade(index, id, kind, error.to_string()),
            (Ok(_), None) => {
                return self.unmade(index, id, kind, "the pod has no address".to_owned());
            }
        };
        let made = self.prober.probe(ask);
        self.jobs.spawn(async move {
            let answer = over.run_until_cancelled(made).await;
            let answer = answer.unwrap_or_else(|| ProbeAnswer::Unknown("its run is over".into()));
            Done::Probed { index, id, kind, answer }
        });
    }

    /// A probe that cannot be made. Told as a job's answer: another follows only
    /// after its period.
    fn unmade(&mut self, index: usize, id: ContainerId, kind: ProbeKind, why: String) {
        let answer = ProbeAnswer::Unknown(why);
        self.jobs.spawn(async move { Done::Probed { index, id, kind, answer } });
    }

    /// Takes note of what came of a probe.
    ///
    /// Source: kubelet, `probe` in `pkg/kubelet/prober/prober.go`.
    pub(super) fn probed(
        &mut self,
        index: usize,
        id: &ContainerId,
        kind: ProbeKind,
        answer: ProbeAnswer,
    ) {
        let slot = &mut self.slots[index];
        if slot.live() != Some(id) {
            return;
        }
        let Some(probing) = &mut slot.probing else { return };
        let (outcome, told) = match answer {
            ProbeAnswer::Success => (Outcome::Success, None),
            ProbeAnswer::Warning(why) => {
                let message = words::probe_warning(kind, &why);
                (Outcome::Success, Some((words::PROBE_WARNING, message)))
            }
            ProbeAnswer::Failure(why) => {
                (Outcome::Failure, Some((words::UNHEALTHY, words::probe_failed(kind, &why))))
            }
            ProbeAnswer::Broken(why) => {
                let message = words::probe_errored(kind, "failure", &why);
                (Outcome::Unknown, Some((words::UNHEALTHY, message)))
            }
            ProbeAnswer::Unknown(why) => {
                let message = words::probe_errored(kind, "unknown", &why);
                (Outcome::Unknown, Some((words::UNHEALTHY, message)))
            }
        };
        let finding = probing.take(kind, outcome, Instant::now());
        (slot.seen.started, slot.seen.ready) = (probing.is_started(), probing.is_ready());
        if let Some((reason, message)) = told {
            self.tell_of(index, EventType::Warning, reason, message);
        }
        match finding {
            None => {}
            // On disk at once: the next agent is to know it, lest it flaps.
            Some(Finding::Started | Finding::Ready | Finding::NotReady) => self.touch(),
            Some(Finding::Failed(kind)) => self.stop_failed(index, id.clone(), kind),
        }
    }

    /// Stops a container that failed a probe.
    ///
    /// Source: kubelet, `computePodActions` in
    /// `pkg/kubelet/kuberuntime/kuberuntime_manager.go`.
    fn stop_failed(&mut self, index: usize, id: ContainerId, kind: ProbeKind) {
        let Some((_, container)) = restarts::containers(&self.pod).nth(index) else { return };
        let grace = grace_of(&self.pod, container, kind);
        let slot = &mut self.slots[index];
        let restarts = slot.failed_probe();
        let message = words::failed_probe(slot.seen.name.as_str(), slot.seen.kind, kind, restarts);
        self.tell_of(index, EventType::Normal, words::KILLING, message);
        let runtime = &self.context.outside.runtime;
        let asked = runtime.stop_container(self.uid.clone(), id.clone(), grace);
        self.jobs.spawn(async move { Done::Stopped { index, id, result: asked.await } });
    }

    /// Begins to probe a run whose guest was entered just now.
    pub(super) fn probing(&self, index: usize) -> Option<Probing> {
        let (_, container) = restarts::containers(&self.pod).nth(index)?;
        Probing::begin(container)
    }

    /// Goes on probing a run that an earlier agent saw.
    pub(super) fn resume_probing(&mut self, index: usize) {
        let slot = &self.slots[index];
        let ContainerState::Running { started_at } = slot.seen.state else { return };
        let now = self.context.config.clock.now();
        let gone = Duration::try_from(now.duration_since(started_at)).unwrap_or_default();
        let Some((_, container)) = restarts::containers(&self.pod).nth(index) else { return };
        let probing = Probing::resume(container, slot.seen.started, slot.seen.ready, gone);
        self.slots[index].probing = probing;
    }

    /// The addresses of this pod.
    pub(super) fn pod_ips(&self) -> &[IpAddr] {
        self.place.as_ref().map_or(&[], |place| &place.addresses)
    }
}

/// How long a container gets that failed a probe.
///
/// Source: kubelet, `setTerminationGracePeriod` in
/// `pkg/kubelet/kuberuntime/kuberuntime_container.go`.
fn grace_of(pod: &Pod, container: &Container, kind: ProbeKind) -> Duration {
    let own = kind.of(container).and_then(|probe| probe.termination_grace_period_seconds);
    let grace = own.map_or_else(|| own_grace(pod), Grace::from_seconds);
    grace.duration().max(LEAST_GRACE)
}
