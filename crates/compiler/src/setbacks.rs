//! Compilations that failed through no known fault of the program: how long each is left alone.
//!
//! Kept in memory only, so that the next agent, or a machine that has recovered, begins afresh. Pure but for the
//! clock it is handed.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::CompileError;
use crate::store::ModuleDigest;

/// First and longest wait. Source: kubelet, the back-off of image pulls (`MaxContainerBackOff` and
/// `imageBackOffPeriod` in `pkg/kubelet/kubelet.go`).
const WAITS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(5));

/// Failures of late, by program. As many as there are programs on the node.
#[derive(Debug, Default)]
pub(crate) struct Setbacks {
    by_program: HashMap<ModuleDigest, Setback>,
}

#[derive(Debug)]
struct Setback {
    error: CompileError,
    wait: Duration,
    until: Instant,
}

impl Setbacks {
    /// What to answer instead of trying again, if it is too early for that.
    pub(crate) fn stands(&self, digest: &ModuleDigest, now: Instant) -> Option<&CompileError> {
        let setback = self.by_program.get(digest)?;
        (now < setback.until).then_some(&setback.error)
    }

    /// Takes note of how a compilation ended.
    pub(crate) fn note(
        &mut self,
        digest: &ModuleDigest,
        error: Option<&CompileError>,
        now: Instant,
    ) {
        // Long over, and nobody has asked since.
        self.by_program.retain(|_, old| now < old.until + WAITS.1);
        let Some(error) = error.filter(|error| error.is_costly()) else {
            self.by_program.remove(digest);
            return;
        };
        let last = self.by_program.get(digest).map(|old| old.wait);
        let wait = last.map_or(WAITS.0, |last| (last * 2).min(WAITS.1));
        let setback = Setback { error: error.clone(), wait, until: now + wait };
        self.by_program.insert(digest.clone(), setback);
    }

    /// Lets a program be tried again at once.
    pub(crate) fn forget(&mut self, digest: &ModuleDigest) {
        self.by_program.remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: &str) -> ModuleDigest {
        format!("sha256:{}", byte.repeat(32)).parse().unwrap()
    }

    fn crash() -> CompileError {
        CompileError::Crashed { digest: digest("ab").to_string(), how: "signal 11".to_owned() }
    }

    #[test]
    fn waits_double_up_to_five_minutes_and_end_with_a_success() {
        let mut setbacks = Setbacks::default();
        let (program, mut now) = (digest("ab"), Instant::now());
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            setbacks.note(&program, Some(&crash()), now);
            let end = now + Duration::from_secs(seconds);
            let before = end.checked_sub(Duration::from_millis(1)).unwrap();
            assert!(setbacks.stands(&program, before).is_some(), "{seconds}");
            assert!(setbacks.stands(&program, end).is_none(), "{seconds}");
            assert!(setbacks.stands(&digest("cd"), now).is_none());
            now = end;
        }
        setbacks.note(&program, None, now);
        setbacks.note(&program, Some(&crash()), now);
        assert!(setbacks.stands(&program, now + WAITS.0).is_none());
    }

    #[test]
    fn what_fails_at_once_waits_for_nothing_and_what_is_long_over_is_forgotten() {
        let mut setbacks = Setbacks::default();
        let now = Instant::now();
        let broken = CompileError::Broken { message: "no threads".to_owned() };
        setbacks.note(&digest("ab"), Some(&broken), now);
        assert!(setbacks.stands(&digest("ab"), now).is_none());
        setbacks.note(&digest("ab"), Some(&crash()), now);
        setbacks.note(&digest("cd"), None, now + WAITS.0 + WAITS.1);
        assert!(setbacks.by_program.is_empty());
        setbacks.note(&digest("ab"), Some(&crash()), now);
        setbacks.forget(&digest("ab"));
        assert!(setbacks.stands(&digest("ab"), now).is_none());
    }
}
