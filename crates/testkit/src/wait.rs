//! Waiting for a condition, never for a length of time alone.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How often a condition is looked at. Short, as tests add up; not so short
/// that looking takes the processor from what is waited for.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until a condition holds.
///
/// # Panics
///
/// With `what` in the message, if it does not hold within `limit`.
pub async fn eventually(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    eventually_some(what, limit, async || condition().await.then_some(())).await;
}

/// Waits until there is a value, and returns it.
///
/// # Panics
///
/// With `what` in the message, if there is none within `limit`.
pub async fn eventually_some<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_condition_is_looked_at_until_it_holds() {
        let mut left = 3;
        let count = eventually_some("it counts down", Duration::from_secs(1), async || {
            left -= 1;
            (left == 0).then_some("done")
        });
        assert_eq!(count.await, "done");
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "not within 1s: pigs fly")]
    async fn what_never_happens_fails_by_name() {
        eventually("pigs fly", Duration::from_secs(1), async || false).await;
    }
}
