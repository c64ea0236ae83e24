//! The time of day, as pods record it.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

/// Some 68 years: sums with it fit whatever the clock says.
const LONGEST: Duration = Duration::from_secs(1 << 31);

/// Tells the time of day. Waits go through `tokio::time`; this is for what is
/// written down, and tests have it follow the paused clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The system's.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// One that is told what to say.
    #[must_use]
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time of day now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }

    /// The moment that lies `wait` after a time of day; now, if that is past.
    ///
    /// A time of day that lies ahead, because the clock was set back, counts as
    /// now: nobody waits longer than `wait`.
    #[must_use]
    pub fn instant(&self, from: Timestamp, wait: Duration) -> Instant {
        let gone = Duration::try_from(self.now().duration_since(from)).unwrap_or_default();
        Instant::now() + wait.saturating_sub(gone).min(LONGEST)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
