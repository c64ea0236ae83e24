//! When a container is probed, and what follows from the answers.
//!
//! ```text
//!                  startup: 1 success                readiness: n successes
//! begin ─▶ Starting ───────────────▶ Started: not ready ◀──────────▶ ready
//!             │                          │            n failures       │
//!             │ startup: n failures      │ liveness: n failures        │
//!             ▼                          ▼                             ▼
//!           Failed (by startup)        Failed (by liveness): the container is to be stopped
//! ```
//!
//! Without a startup probe a container is started as soon as it runs; without a
//! readiness probe it is ready as soon as it is started. Before it is started it
//! is probed for nothing else; once it has failed, for readiness only.
//!
//! Pure: moments are durations since the run's guest was entered. The pod's task
//! keeps the clock, asks [`Probes::due`], has those probes made and tells
//! [`Probes::take`] what came of them. What a probe does is in [`target`].
//!
//! Source: kubelet, `doProbe` in `pkg/kubelet/prober/worker.go` and
//! `UpdatePodStatus` in `pkg/kubelet/prober/prober_manager.go`.

pub mod path;
pub mod target;

use std::{fmt, time::Duration};

use k8s_openapi::api::core::v1::{Container, Probe};

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// Whether the container has started; it is stopped if it does not.
    Startup,
    /// Whether the pod may be sent requests.
    Readiness,
    /// Whether the container is to go on.
    Liveness,
}

impl ProbeKind {
    /// The probe of a container that is for this.
    #[must_use]
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
        }
    }

    const ALL: [Self; 3] = [Self::Startup, Self::Readiness, Self::Liveness];
}

/// Printed as in events: `Readiness`.
impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        })
    }
}

/// What came of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The container answered as it should.
    Success,
    /// It did not.
    Failure,
    /// The probe could not be made; that says nothing of the container.
    Unknown,
}

/// What follows from an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The container has started.
    Started,
    /// It has become ready.
    Ready,
    /// It is no longer ready.
    NotReady,
    /// It is to be stopped, and run again if its policy says so.
    Failed(ProbeKind),
}

/// How often a probe is made and how many outcomes in a row count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timing {
    initial_delay: Duration,
    period: Duration,
    successes: u32,
    failures: u32,
}

impl Timing {
    /// Reads a probe; what it leaves out is as the API server has it.
    ///
    /// Source: `SetDefaults_Probe` in `pkg/apis/core/v1/defaults.go`.
    fn of(probe: &Probe) -> Self {
        let count = |given: Option<i32>, default: u32| match u32::try_from(given.unwrap_or(0)) {
            Ok(0) | Err(_) => default,
            Ok(count) => count,
        };
        let seconds = |given, default| Duration::from_secs(count(given, default).into());
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        }
    }
}

/// How long a probe may take.
///
/// Source: `SetDefaults_Probe` in `pkg/apis/core/v1/defaults.go`.
#[must_use]
pub fn time_limit(probe: &Probe) -> Duration {
    let seconds = probe.timeout_seconds.unwrap_or(1).max(1);
    Duration::from_secs(u64::from(seconds.unsigned_abs()))
}

/// One probe of one run.
#[derive(Clone, Debug)]
struct One {
    kind: ProbeKind,
    timing: Timing,
    /// When it is made next.
    next: Duration,
    /// Whether it is being made.
    is_in_flight: bool,
    /// The last outcome, and how often in a row.
    streak: (Outcome, u32),
}

impl One {
    fn new(kind: ProbeKind, timing: Timing, next: Duration) -> Self {
        Self { kind, timing, next, is_in_flight: false, streak: (Outcome::Unknown, 0) }
    }

    /// Counts an outcome; whether as many as are needed came in a row.
    fn counts(&mut self, outcome: Outcome) -> bool {
        let (last, times) = self.streak;
        self.streak = (outcome, if last == outcome { times.saturating_add(1) } else { 1 });
        match outcome {
            Outcome::Success => self.streak.1 >= self.timing.successes,
            Outcome::Failure => self.streak.1 >= self.timing.failures,
            Outcome::Unknown => false,
        }
    }
}

/// The probes of one run of a container.
#[derive(Clone, Debug)]
pub struct Probes {
    all: Vec<One>,
    is_started: bool,
    is_ready: bool,
    has_failed: bool,
}

impl Probes {
    /// Those of a run whose guest was entered just now. The first of each is
    /// made when its initial delay is over, at once if there is none.
    #[must_use]
    pub fn begin(container: &Container) -> Self {
        let has_startup = container.startup_probe.is_some();
        Self::new(container, !has_startup, false, |timing| timing.initial_delay)
    }

    /// Those of a run that an earlier agent saw: it keeps what it was, and the
    /// next probe of each kind comes within its period. `chance`, of 0 to 1, says
    /// when: lest all pods of a node be probed at once. `now` is the time since
    /// the guest was entered.
    #[must_use]
    pub fn resume(
        container: &Container,
        is_started: bool,
        is_ready: bool,
        now: Duration,
        mut chance: impl FnMut() -> f64,
    ) -> Self {
        let next = |timing: Timing| {
            let wait = timing.period.mul_f64(chance().clamp(0.0, 1.0));
            timing.initial_delay.max(now.saturating_add(wait))
        };
        let is_started = is_started || container.startup_probe.is_none();
        Self::new(container, is_started, is_ready, next)
    }

    fn new(
        container: &Container,
        is_started: bool,
        is_ready: bool,
        mut next: impl FnMut(Timing) -> Duration,
    ) -> Self {
        let all = ProbeKind::ALL.into_iter().filter_map(|kind| {
            let timing = Timing::of(kind.of(container)?);
            Some(One::new(kind, timing, next(timing)))
        });
        let all: Vec<One> = all.collect();
        let is_ready = is_ready || !all.iter().any(|one| one.kind == ProbeKind::Readiness);
        Self { all, is_started, is_ready, has_failed: false }
    }

    /// Whether it has started.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.is_started
    }

    /// Whether it is ready; never before it has started.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_started && self.is_ready
    }

    /// Has it probed for readiness only from now on: its pod ends.
    pub fn ends(&mut self) {
        self.has_failed = true;
    }

    /// The next moment at which a probe is to be made. None while each that
    /// may be made is being made.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.all.iter().filter(|one| self.may_run(one)).map(|one| one.next).min()
    }

    /// The probes to be made now. Each is taken to be in flight until
    /// [`Probes::take`] is told of it.
    pub fn due(&mut self, now: Duration) -> Vec<ProbeKind> {
        let due: Vec<bool> =
            self.all.iter().map(|one| self.may_run(one) && one.next <= now).collect();
        let mut kinds = Vec::new();
        for (one, _) in self.all.iter_mut().zip(due).filter(|(_, is_due)| *is_due) {
            one.is_in_flight = true;
            one.next = now.saturating_add(one.timing.period);
            kinds.push(one.kind);
        }
        kinds
    }

    fn may_run(&self, one: &One) -> bool {
        !one.is_in_flight && self.is_wanted(one.kind)
    }

    fn is_wanted(&self, kind: ProbeKind) -> bool {
        match kind {
            ProbeKind::Startup => !self.is_started && !self.has_failed,
            ProbeKind::Readiness => self.is_started,
            ProbeKind::Liveness => self.is_started && !self.has_failed,
        }
    }

    /// Takes note of what came of a probe, at the moment `now`.
    pub fn take(&mut self, kind: ProbeKind, outcome: Outcome, now: Duration) -> Option<Finding> {
        let is_wanted = self.is_wanted(kind);
        let one = self.all.iter_mut().find(|one| one.kind == kind && one.is_in_flight)?;
        one.is_in_flight = false;
        if !is_wanted || outcome == Outcome::Unknown || !one.counts(outcome) {
            return None;
        }
        match (kind, outcome == Outcome::Success) {
            (ProbeKind::Startup, true) => {
                self.is_started = true;
                // What waited for it is made at once.
                for other in &mut self.all {
                    other.next = other.timing.initial_delay.max(now);
                }
                Some(Finding::Started)
            }
            (ProbeKind::Startup | ProbeKind::Liveness, false) => {
                self.has_failed = true;
                Some(Finding::Failed(kind))
            }
            (ProbeKind::Readiness, is_ready) => {
                let was_ready = std::mem::replace(&mut self.is_ready, is_ready);
                match (was_ready, is_ready) {
                    (false, true) => Some(Finding::Ready),
                    (true, false) => Some(Finding::NotReady),
                    (true, true) | (false, false) => None,
                }
            }
            (ProbeKind::Liveness, true) => None,
        }
    }
}

/// Whether anything of a container is probed.
#[must_use]
pub fn has_any(container: &Container) -> bool {
    ProbeKind::ALL.into_iter().any(|kind| kind.of(container).is_some())
}

#[cfg(test)]
mod tests;
