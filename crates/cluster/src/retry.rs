//! How long to wait before another try.

use std::time::Duration;

use rand::Rng;

/// Doubling waits, each shortened at random by up to a half, so that a fleet of
/// nodes does not come back in step.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits from `first` up to `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next wait; at least what the server asked for.
    pub(crate) fn wait(&mut self, asked: Option<Duration>) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.longest);
        let jittered = full.mul_f64(rand::rng().random_range(0.5..=1.0));
        jittered.max(asked.unwrap_or_default())
    }

    /// Begins anew: something succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_never_exceeds_the_longest_nor_undercuts_what_was_asked(
            tries in 1..40_usize,
            asked in prop::option::of(0..100_u64),
        ) {
            let longest = Duration::from_secs(5);
            let asked = asked.map(Duration::from_secs);
            let mut backoff = Backoff::new(Duration::from_millis(100), longest);
            for _ in 0..tries {
                let wait = backoff.wait(asked);
                prop_assert!(wait >= asked.unwrap_or_default());
                prop_assert!(wait <= longest.max(asked.unwrap_or_default()));
                prop_assert!(wait >= Duration::from_millis(50));
            }
        }
    }
}
