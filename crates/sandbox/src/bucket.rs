//! A container's CPU limit: a bucket that fills with time and is emptied by
//! computing. Pure; who waits, and how, is [`ticker`](crate::ticker)'s.
//!
//! ```text
//! limit × time ──▶ ┌───────┐ ──▶ CPU time used
//!                  │ depth │
//!                  └───────┘ below empty: nobody of the container runs
//! ```
//!
//! A guest is charged after it has run, for up to a tick at a time, so the
//! bucket may fall below empty; the container then waits until the debt is
//! paid. Over any time it has at most the limit's share of it, the depth, and
//! one such run.

use std::time::{Duration, Instant};

/// Time whose share the bucket holds at most: the period of the kernel's CPU
/// quotas, as kubelet sets it (`cpuCFSQuotaPeriod`, 100 ms by default).
const PERIOD: Duration = Duration::from_millis(100);

/// Thousandths of a core that guests can use: a sandbox runs them on one thread.
const ONE_THREAD: u64 = 1000;

/// See the module. Amounts are thousandths of a nanosecond of CPU time, so that
/// a limit in thousandths of a core is a whole number of them per nanosecond.
#[derive(Debug)]
pub(crate) struct Bucket {
    millis: u64,
    depth: i64,
    /// Below 0: a debt.
    level: i64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket for a limit in thousandths of a core. `None` for what is no
    /// limit: 0, as for kubelet, and what one thread cannot exceed.
    pub(crate) fn new(millis: u64, now: Instant) -> Option<Self> {
        if millis == 0 || millis >= ONE_THREAD {
            return None;
        }
        let depth = share(PERIOD, millis);
        Some(Self { millis, depth, level: depth, filled_at: now })
    }

    /// Whether both are of one limit.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.millis == other.millis
    }

    /// Takes out CPU time that was used, in nanoseconds.
    pub(crate) fn charge(&mut self, now: Instant, used: u64) {
        self.fill(now);
        let used = i64::try_from(used).unwrap_or(i64::MAX).saturating_mul(1000);
        self.level = self.level.saturating_sub(used);
    }

    /// How long until the debt is paid; `None` if there is none.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.fill(now);
        let debt = u64::try_from(self.level.saturating_neg()).ok().filter(|&debt| debt > 0)?;
        Some(Duration::from_nanos(debt.div_ceil(self.millis)))
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at);
        self.filled_at = self.filled_at.max(now);
        self.level = self.level.saturating_add(share(passed, self.millis)).min(self.depth);
    }
}

/// What a time is worth under a limit.
fn share(time: Duration, millis: u64) -> i64 {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    i64::try_from(nanoseconds.saturating_mul(millis)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a guest did: it wanted nothing for a while, then ran for a while (if
    /// it might), in nanoseconds.
    fn steps() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0_u64..200_000_000, 0_u64..SLICE), 1..100)
    }

    /// The longest run without a charge.
    const SLICE: u64 = 10_000_000;

    proptest! {
        #[test]
        fn no_time_holds_more_than_its_share_the_depth_and_one_run(
            millis in 1_u64..1000,
            steps in steps(),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = Bucket::new(millis, now).unwrap();
            // When each run began and ended, and what it used.
            let mut runs = Vec::new();
            for (pause, wanted) in steps {
                now += Duration::from_nanos(pause);
                if bucket.wait(now).is_some() {
                    continue;
                }
                let began = now;
                now += Duration::from_nanos(wanted);
                bucket.charge(now, wanted);
                runs.push((began, now, u128::from(wanted)));
            }
            for (first, (began, ..)) in runs.iter().enumerate() {
                let mut used = 0;
                for (_, ended, more) in &runs[first..] {
                    used += more;
                    let share = (*ended - *began).as_nanos() * u128::from(millis) / 1000;
                    let depth = PERIOD.as_nanos() * u128::from(millis) / 1000;
                    prop_assert!(used <= share + depth + u128::from(SLICE) + 1);
                }
            }
        }

        #[test]
        fn who_always_wants_gets_the_whole_limit(millis in 1_u64..1000, slice in 1_u64..SLICE) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = Bucket::new(millis, now).unwrap();
            let mut used: u128 = 0;
            for _ in 0..200 {
                if let Some(wait) = bucket.wait(now) {
                    now += wait;
                    prop_assert_eq!(bucket.wait(now), None, "the wait is long enough");
                }
                now += Duration::from_nanos(slice);
                bucket.charge(now, slice);
                used += u128::from(slice);
            }
            let share = (now - start).as_nanos() * u128::from(millis) / 1000;
            // A wait is rounded up to a nanosecond.
            prop_assert!(used + 200 >= share, "{used} of {share}");
        }

        #[test]
        fn nothing_overflows(
            millis in 0_u64..2000,
            steps in prop::collection::vec((any::<u32>(), any::<u64>()), 0..20),
        ) {
            let mut now = Instant::now();
            let Some(mut bucket) = Bucket::new(millis, now) else {
                prop_assert!(millis == 0 || millis >= 1000);
                return Ok(());
            };
            for (seconds, used) in steps {
                now += Duration::from_secs(seconds.into());
                bucket.charge(now, used);
                let _ = bucket.wait(now);
                prop_assert!(bucket.level <= bucket.depth);
            }
        }
    }
}
