//! What a pod's worker does next, given what is asked and what is seen.
//!
//! ```text
//! Starting ──▶ Running ──▶ Terminating ──▶ Terminated
//!     └───────────────────────▲
//! ```
//!
//! Pure: no clock, no I/O, no channels. The worker (`worker.rs`) observes,
//! calls [`decide`], carries out the one action it is given, and observes
//! again. Which container's turn it is is left to [`order`](crate::order).

use krustlet_model::Grace;

/// Where a pod stands. It only ever moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Volumes and the sandbox are being made ready; nothing has run.
    Starting,
    /// Containers run, or wait for their turn.
    Running,
    /// Containers are being stopped; none may start.
    Terminating(Grace),
    /// Nothing runs; what is left is to clean up and to report.
    Terminated,
}

/// What is asked of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired {
    /// It is to run.
    Run,
    /// It is to end, within this time.
    Stop(Grace),
}

/// What is seen of a pod, as far as the next step depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether the volumes are in place and the sandbox is up.
    pub prepared: bool,
    /// Containers that run or may run without having said so yet.
    pub alive: usize,
    /// Whether no container of the spec will ever be started again, so that
    /// only sidecars may be left.
    pub finished: bool,
    /// The pod's own grace period, for the sidecars of one that has finished.
    pub own_grace: Grace,
    /// Whether nothing is left of a terminated pod but its record.
    pub cleaned: bool,
}

/// What the worker does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make ready whatever is not.
    Prepare,
    /// Start the containers whose turn it is.
    StartDue,
    /// Stop what runs.
    StopAll(Grace),
    /// Take the sandbox and the volumes down, report, and forget.
    CleanUp,
    /// Wait for news.
    Wait,
}

/// Chooses the next phase and action.
#[must_use]
pub fn decide(phase: Phase, desired: Desired, seen: Facts) -> (Phase, Action) {
    match (phase, desired) {
        (Phase::Terminated, _) if seen.cleaned => (Phase::Terminated, Action::Wait),
        (Phase::Terminated, _) => (Phase::Terminated, Action::CleanUp),

        // A second delete may shorten the wait. It may not lengthen it, and a
        // spec that arrives late does not bring the pod back.
        (Phase::Terminating(old), desired) => {
            let grace = match desired {
                Desired::Stop(new) => old.min(new),
                Desired::Run => old,
            };
            if seen.alive == 0 {
                (Phase::Terminated, Action::CleanUp)
            } else {
                (Phase::Terminating(grace), Action::StopAll(grace))
            }
        }

        (Phase::Starting | Phase::Running, Desired::Stop(grace)) => {
            (Phase::Terminating(grace), Action::StopAll(grace))
        }
        (Phase::Starting | Phase::Running, Desired::Run) if seen.finished => {
            (Phase::Terminating(seen.own_grace), Action::StopAll(seen.own_grace))
        }

        // A pod whose sandbox died is prepared anew; it has run all the same.
        (phase, Desired::Run) if !seen.prepared => (phase, Action::Prepare),
        (Phase::Starting | Phase::Running, Desired::Run) => (Phase::Running, Action::StartDue),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grace() -> impl Strategy<Value = Grace> {
        (1_i64..60).prop_map(Grace::from_seconds)
    }

    fn desired() -> impl Strategy<Value = Desired> {
        prop_oneof![3 => Just(Desired::Run), 1 => grace().prop_map(Desired::Stop)]
    }

    fn facts() -> impl Strategy<Value = Facts> {
        (any::<bool>(), 0_usize..3, prop::bool::weighted(0.1), grace(), any::<bool>()).prop_map(
            |(prepared, alive, finished, own_grace, cleaned)| Facts {
                prepared,
                alive,
                finished,
                own_grace,
                cleaned,
            },
        )
    }

    proptest! {
        #[test]
        fn a_pod_never_goes_back(steps in prop::collection::vec((desired(), facts()), 0..50)) {
            let mut phase = Phase::Starting;
            for (desired, seen) in steps {
                let (next, action) = decide(phase, desired, seen);
                if let (Phase::Terminating(old), Phase::Terminating(new)) = (phase, next) {
                    prop_assert!(new <= old, "the grace period grew");
                } else {
                    prop_assert!(next >= phase, "{phase:?} went back to {next:?}");
                }
                if !matches!(next, Phase::Starting | Phase::Running) {
                    let starts = matches!(action, Action::StartDue | Action::Prepare);
                    prop_assert!(!starts, "started while {next:?}");
                }
                if next == Phase::Terminated && phase != Phase::Terminated {
                    prop_assert_eq!(seen.alive, 0, "terminated while something ran");
                }
                phase = next;
            }
        }
    }
}
