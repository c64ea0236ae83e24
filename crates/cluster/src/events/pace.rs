//! How fast events are sent. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// A bound on the events that the API server is sent: pods that start at once
/// have statuses that people wait for, and four events each that nobody does.
///
/// Source: kubelet, `eventRecordQPS` and `eventBurst` with their defaults in
/// `pkg/kubelet/apis/config/v1beta1/defaults.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRate {
    /// Events per second in the long run; 0: no bound.
    pub per_second: u32,
    /// Events at once, after a time with fewer.
    pub burst: u32,
}

impl Default for EventRate {
    fn default() -> Self {
        Self { per_second: 50, burst: 100 }
    }
}

/// When the next event may go.
#[derive(Debug)]
pub(super) struct Pace {
    /// What one event takes of the rate.
    each: Duration,
    /// How far ahead of the rate a burst may be.
    ahead: Duration,
    /// When all that was sent is within the rate.
    even: Instant,
}

impl Pace {
    pub(super) fn new(rate: EventRate, now: Instant) -> Self {
        let each = Duration::from_secs(1).checked_div(rate.per_second).unwrap_or_default();
        let ahead = each.saturating_mul(rate.burst.saturating_sub(1));
        Self { each, ahead, even: now }
    }

    /// The moment from which on the next event may be sent.
    pub(super) fn next(&self) -> Instant {
        self.even.checked_sub(self.ahead).unwrap_or(self.even)
    }

    pub(super) fn sent(&mut self, now: Instant) {
        self.even = self.even.max(now) + self.each;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_second_has_more_than_its_share_and_the_burst(
            per_second in 1_u32..200,
            burst in 0_u32..300,
            pauses in proptest::collection::vec(0_u64..200, 1..500),
        ) {
            let mut now = Instant::now();
            let mut pace = Pace::new(EventRate { per_second, burst }, now);
            let mut sent = Vec::new();
            for pause in pauses {
                now = (now + Duration::from_millis(pause)).max(pace.next());
                pace.sent(now);
                sent.push(now);
            }
            let most = (per_second + burst.max(1)) as usize;
            for (index, from) in sent.iter().enumerate() {
                let until = *from + Duration::from_secs(1);
                let within = sent[index..].iter().take_while(|at| **at < until).count();
                prop_assert!(within <= most, "{within} of {most}");
            }
        }
    }

    #[test]
    fn a_burst_goes_at_once_and_none_is_unbounded() {
        let now = Instant::now();
        let mut pace = Pace::new(EventRate { per_second: 10, burst: 3 }, now);
        for _ in 0..3 {
            assert!(pace.next() <= now);
            pace.sent(now);
        }
        assert_eq!(pace.next(), now + Duration::from_millis(100));
        let mut pace = Pace::new(EventRate { per_second: 0, burst: 0 }, now);
        for _ in 0..1000 {
            pace.sent(now);
        }
        assert!(pace.next() <= now);
    }
}
