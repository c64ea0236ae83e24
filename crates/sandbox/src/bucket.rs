//! A bucket that fills with time and is emptied by what is used: a container's
//! CPU limit, and a pod's bandwidth in one direction. Pure; who waits, and how,
//! is [`ticker`](crate::ticker)'s and [`net`](crate::net)'s.
//!
//! ```text
//! limit × time ──▶ ┌───────┐ ──▶ used
//!                  │ depth │
//!                  └───────┘ below empty: nobody goes on
//! ```
//!
//! Use is charged afterwards (a guest runs for up to a tick at a time, a socket
//! moves up to [`most_bytes`] at once), so the bucket may fall below empty; who
//! wants more then waits until the debt is paid. Over any time no more is used
//! than the limit's share of it, the depth, and one such use for each thread.

use std::time::{Duration, Instant};

/// Time whose share the bucket holds at most: the period of the kernel's CPU
/// quotas, as kubelet sets it (`cpuCFSQuotaPeriod`, 100 ms by default).
const PERIOD: Duration = Duration::from_millis(100);

/// A packet of most networks, in bytes: less is not worth a system call.
const PACKET: u64 = 1500;

/// See the module. Amounts are kept in parts of what is charged so that the limit
/// is a whole number of them per nanosecond.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Parts per nanosecond.
    rate: u64,
    /// Parts of one that is charged.
    parts: u64,
    depth: i128,
    /// Below 0: a debt.
    level: i128,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket for a limit in thousandths of a core; it is charged
    /// nanoseconds. `None` for 0, which is no limit, as for kubelet.
    pub(crate) fn of_cpu(millis: u64, now: Instant) -> Option<Self> {
        (millis > 0).then(|| Self::full(millis, 1000, now))
    }

    /// A full bucket for a limit in bits per second; it is charged bytes.
    pub(crate) fn of_bits(per_second: u64, now: Instant) -> Self {
        Self::full(per_second.max(1), 8 * 1_000_000_000, now)
    }

    fn full(rate: u64, parts: u64, now: Instant) -> Self {
        let depth = share(PERIOD, rate);
        Self { rate, parts, depth, level: depth, filled_at: now }
    }

    /// Whether both are of one limit.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (self.rate, self.parts) == (other.rate, other.parts)
    }

    /// Takes out what was used.
    pub(crate) fn charge(&mut self, now: Instant, used: u64) {
        self.fill(now);
        self.level = self.level.saturating_sub(i128::from(used) * i128::from(self.parts));
    }

    /// How long until the debt is paid; `None` if there is none.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.fill(now);
        let debt = u128::try_from(self.level.saturating_neg()).ok().filter(|&debt| debt > 0)?;
        let nanoseconds = debt.div_ceil(u128::from(self.rate));
        Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at);
        self.filled_at = self.filled_at.max(now);
        self.level = self.level.saturating_add(share(passed, self.rate)).min(self.depth);
    }
}

/// Bytes that one socket moves at once under a limit in bits per second, so that
/// others have their turn: what the bucket holds, and a packet at least.
pub(crate) fn most_bytes(per_second: u64) -> usize {
    let period = u64::try_from(PERIOD.as_millis()).unwrap_or(u64::MAX);
    usize::try_from((per_second / 8 / 1000 * period).max(PACKET)).unwrap_or(usize::MAX)
}

/// What a time is worth under a limit.
fn share(time: Duration, rate: u64) -> i128 {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    i128::from(nanoseconds) * i128::from(rate)
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
            let mut bucket = Bucket::of_cpu(millis, now).unwrap();
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
        fn who_always_wants_gets_the_whole_limit(
            limit in 1_u64..1000,
            threads in 1_u64..9,
            slice in 1_u64..SLICE,
        ) {
            let millis = limit * threads;
            let start = Instant::now();
            let mut now = start;
            let mut bucket = Bucket::of_cpu(millis, now).unwrap();
            let mut used: u128 = 0;
            for _ in 0..200 {
                if let Some(wait) = bucket.wait(now) {
                    now += wait;
                    prop_assert_eq!(bucket.wait(now), None, "the wait is long enough");
                }
                now += Duration::from_nanos(slice);
                for _ in 0..threads {
                    bucket.charge(now, slice);
                    used += u128::from(slice);
                }
            }
            let share = (now - start).as_nanos() * u128::from(millis) / 1000;
            // A wait is rounded up to a nanosecond.
            prop_assert!(used + 200 * u128::from(threads) >= share, "{used} of {share}");
            let depth = PERIOD.as_nanos() * u128::from(millis) / 1000;
            prop_assert!(used <= share + depth + u128::from(slice * threads) + 1);
        }

        #[test]
        fn nothing_overflows(
            millis in 0_u64..2000,
            steps in prop::collection::vec((any::<u32>(), any::<u64>()), 0..20),
        ) {
            let mut now = Instant::now();
            let Some(mut bucket) = Bucket::of_cpu(millis, now) else {
                prop_assert_eq!(millis, 0);
                return Ok(());
            };
            for (seconds, used) in steps {
                now += Duration::from_secs(seconds.into());
                bucket.charge(now, used);
                let _ = bucket.wait(now);
                prop_assert!(bucket.level <= bucket.depth);
            }
        }

        #[test]
        fn no_time_holds_more_bytes_than_its_share_the_depth_and_one_move(
            bits in 1000_u64..10_000_000_000,
            steps in prop::collection::vec((0_u64..2_000_000_000, 1_usize..1 << 20), 1..100),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = Bucket::of_bits(bits, now);
            let most = most_bytes(bits);
            let mut moves: Vec<(Instant, u128)> = Vec::new();
            for (pause, wanted) in steps {
                now += Duration::from_nanos(pause);
                if bucket.wait(now).is_some() {
                    continue;
                }
                let moved = wanted.min(most);
                bucket.charge(now, moved as u64);
                moves.push((now, moved as u128));
            }
            for (first, (began, _)) in moves.iter().enumerate() {
                let mut moved = 0;
                for (at, more) in &moves[first..] {
                    moved += more * 8 * 1_000_000_000;
                    let time = (*at - *began + PERIOD).as_nanos();
                    let one = most as u128 * 8 * 1_000_000_000;
                    prop_assert!(moved <= time * u128::from(bits) + one);
                }
            }
        }

        #[test]
        fn who_always_sends_gets_the_whole_bandwidth(bits in 1000_u64..10_000_000_000) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = Bucket::of_bits(bits, now);
            let mut moved: u128 = 0;
            for _ in 0..100 {
                if let Some(wait) = bucket.wait(now) {
                    now += wait;
                    prop_assert_eq!(bucket.wait(now), None, "the wait is long enough");
                }
                bucket.charge(now, most_bytes(bits) as u64);
                moved += most_bytes(bits) as u128;
            }
            let share = (now - start).as_nanos() * u128::from(bits) / 8 / 1_000_000_000;
            // A wait is rounded up to a nanosecond.
            prop_assert!(moved + 100 * (1 + u128::from(bits) / 8_000_000_000) >= share);
        }

        #[test]
        fn no_bandwidth_overflows(
            bits in any::<u64>(),
            steps in prop::collection::vec((any::<u32>(), any::<u64>()), 0..20),
        ) {
            let mut now = Instant::now();
            let mut bucket = Bucket::of_bits(bits, now);
            prop_assert!(most_bytes(bits) >= 1500);
            for (seconds, moved) in steps {
                now += Duration::from_secs(seconds.into());
                bucket.charge(now, moved);
                let _ = bucket.wait(now);
                prop_assert!(bucket.level <= bucket.depth);
            }
        }
    }
}
