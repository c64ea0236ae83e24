//! How long a container may take to stop.

use std::time::Duration;

/// Time a container gets between the stop request and the kill.
///
/// At least one second; see [`Grace::from_seconds`]. Source: kubelet,
/// `calculateEffectiveGracePeriod` in `pkg/kubelet/pod_workers.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grace(Duration);

impl Grace {
    /// Reads `terminationGracePeriodSeconds`, raising anything below 1 to 1.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Self {
        Self(Duration::from_secs(seconds.max(1).unsigned_abs()))
    }

    /// The wait itself.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }
}
