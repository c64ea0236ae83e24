//! What benchmarks print of many measurements of one kind. `tests/cluster/bench`
//! has the same for the benchmarks in a cluster.

use std::{fmt, time::Duration};

/// How measurements are spread. Percentiles are nearest ranks: values that were seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    sorted: Vec<Duration>,
}

impl Summary {
    /// Of these measurements.
    ///
    /// # Panics
    ///
    /// If there are none.
    #[must_use]
    pub fn of(mut measured: Vec<Duration>) -> Self {
        assert!(!measured.is_empty(), "nothing was measured");
        measured.sort_unstable();
        Self { sorted: measured }
    }

    /// The smallest value that at least `percent` (1 to 100) of them do not exceed.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted[rank.min(self.sorted.len()) - 1]
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        write!(
            f,
            "p50 {:.3}  min {:.3}  p90 {:.3}  p99 {:.3}  max {:.3} ms (n={})",
            ms(self.percentile(50)),
            ms(self.sorted[0]),
            ms(self.percentile(90)),
            ms(self.percentile(99)),
            ms(self.percentile(100)),
            self.sorted.len(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let summary = Summary::of((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!(summary.percentile(50), Duration::from_millis(50));
        assert_eq!(summary.percentile(99), Duration::from_millis(99));
        let few = Summary::of(vec![Duration::from_millis(3), Duration::from_millis(1)]);
        assert_eq!(few.percentile(50), Duration::from_millis(1));
        assert_eq!(few.percentile(99), Duration::from_millis(3));
        assert_eq!(
            few.to_string(),
            "p50 1.000  min 1.000  p90 3.000  p99 3.000  max 3.000 ms (n=2)"
        );
    }
}
