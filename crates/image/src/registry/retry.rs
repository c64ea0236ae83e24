//! How often and how soon a failed request is repeated.
//!
//! The wait doubles with each attempt and is chosen at random below that, so that the
//! nodes of a cluster do not come back together. A registry that names a time is believed.

use std::time::{Duration, SystemTime};

use rand::Rng as _;

use super::error::RequestError;
use crate::limits::PullLimits;

/// The attempts of one request.
#[derive(Debug)]
pub(crate) struct Retry<'a> {
    limits: &'a PullLimits,
    /// Failed attempts since the last headway.
    failed: u32,
}

impl<'a> Retry<'a> {
    pub(crate) fn new(limits: &'a PullLimits) -> Self {
        Self { limits, failed: 0 }
    }

    /// The transfer got somewhere: earlier failures no longer count.
    pub(crate) fn headway(&mut self) {
        self.failed = 0;
    }

    /// Counts a failure and waits. False if it is not worth another attempt.
    pub(crate) async fn again(&mut self, error: &RequestError) -> bool {
        self.failed += 1;
        if !error.is_repeatable() || self.failed >= self.limits.attempts {
            return false;
        }
        let share = rand::rng().random_range(0.5..1.0);
        let Some(wait) = wait(self.limits, self.failed, error.retry_after(), share) else {
            return false;
        };
        tokio::time::sleep(wait).await;
        true
    }
}

/// The wait after the `failed`-th failure. None if the registry asks for more patience
/// than a pull has: then the pod's own back-off is the better place to wait.
fn wait(limits: &PullLimits, failed: u32, asked: Option<Duration>, share: f64) -> Option<Duration> {
    let doubled = limits.backoff.saturating_mul(1 << failed.saturating_sub(1).min(16));
    let own = doubled.min(limits.backoff_limit).mul_f64(share);
    match asked {
        Some(asked) if asked > limits.backoff_limit => None,
        Some(asked) => Some(asked.max(own)),
        None => Some(own),
    }
}

/// Reads `Retry-After`: seconds or a date. Source: RFC 9110, section 10.2.3.
pub(crate) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_forms_of_retry_after_are_read() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(parse_retry_after("7", now), Some(Duration::from_secs(7)));
        let date = "Sun, 06 Nov 1994 08:49:47 GMT";
        assert_eq!(parse_retry_after(date, now), Some(Duration::from_secs(10)));
        let past = "Sun, 06 Nov 1994 08:49:07 GMT";
        assert_eq!(parse_retry_after(past, now), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("soon", now), None);
    }

    #[test]
    fn a_registry_that_asks_for_too_much_patience_is_left_to_the_pod() {
        let limits = PullLimits::default();
        assert_eq!(wait(&limits, 1, Some(limits.backoff_limit * 2), 0.5), None);
        assert_eq!(wait(&limits, 1, Some(limits.backoff_limit), 0.5), Some(limits.backoff_limit));
    }

    proptest! {
        #[test]
        fn the_wait_grows_and_stays_below_its_limit(failed in 1_u32..1000, share in 0.5..1.0) {
            let limits = PullLimits::default();
            let now = wait(&limits, failed, None, share).unwrap();
            let later = wait(&limits, failed + 1, None, share).unwrap();
            prop_assert!(now <= later && later <= limits.backoff_limit);
        }
    }
}
