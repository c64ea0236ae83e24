//! How long a container may take to stop.

use std::time::Duration;

/// Time a container gets between the stop request and the kill.
///
/// At least one second; see [`Grace::from_seconds`]. Source: kubelet,
/// `calculateEffectiveGracePeriod` in `pkg/kubelet/pod_workers.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grace(Duration);

impl Grace {
    /// Reads `terminationGracePeriodSeconds`, raising anything below 1 to 1 and
    /// lowering what no clock could count, beyond 68 years.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Self {
        Self(Duration::from_secs(seconds.clamp(1, i32::MAX.into()).unsigned_abs()))
    }

    /// The wait itself.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grace_can_be_waited_for() {
        for (seconds, grace) in
            [(i64::MIN, 1), (0, 1), (30, 30), (i64::MAX, i32::MAX.unsigned_abs().into())]
        {
            assert_eq!(Grace::from_seconds(seconds).duration(), Duration::from_secs(grace));
        }
    }
}
