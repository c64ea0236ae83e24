//! How an ended guest is reported. Pure.
//!
//! | the guest | exit code | reason |
//! |---|---|---|
//! | returns, or exits with 0 | 0 | `Completed` |
//! | exits with `n` | the low eight bits of `n` | `Error` (`Completed` for 0) |
//! | a component's `run` returns an error | 1 | `Error` |
//! | traps | 134, as the wasmtime command has it | `Error` |
//! | traps after a refused growth of memory | 137 | `OOMKilled` |
//! | was told to stop, in time | 143 | `Error` |
//! | was told to stop, and the grace period passed | 137 | `Error` |
//! | could not be started | 128, as containerd has it | `StartError` |

use krustlet_protocol::ExitReport;
use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::state::Denied;

/// A trap's code: 128 and SIGABRT.
pub(crate) const TRAPPED: i32 = 134;
/// 128 and SIGKILL.
pub(crate) const KILLED: i32 = 137;
/// 128 and SIGTERM.
pub(crate) const STOPPED: i32 = 143;
/// What containerd reports for a container that could not be started.
const NOT_STARTED: i32 = 128;

/// The longest message in bytes; `maxTerminationMessageLength` of the kubelet
/// (`pkg/kubelet/container`).
pub(crate) const MAX_MESSAGE: usize = 4096;

/// How a guest ended, before it is put into a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// 0 to 255.
    pub(crate) code: i32,
    /// `Completed`, `Error`, `OOMKilled` or `StartError`.
    pub(crate) reason: &'static str,
    /// At most [`MAX_MESSAGE`] bytes.
    pub(crate) message: String,
}

impl Ending {
    fn new(code: i32, message: &str) -> Self {
        let reason = if code == 0 { "Completed" } else { "Error" };
        Self { code, reason, message: shorten(message, MAX_MESSAGE) }
    }

    /// Ended because the agent said so.
    pub(crate) fn stopped(code: i32) -> Self {
        Self::new(code, "")
    }

    /// The host failed, not the guest.
    pub(crate) fn host_failed(what: &str) -> Self {
        Self::new(TRAPPED, &format!("the sandbox failed: {what}"))
    }

    /// The guest never ran.
    pub(crate) fn not_started(why: &str) -> Self {
        Self { reason: "StartError", ..Self::new(NOT_STARTED, why) }
    }

    /// The guest's program returned, or was ended by an error of its own.
    /// `entered` says whether it got as far as its first function.
    pub(crate) fn of(
        result: Result<(), wasmtime::Error>,
        denied: Option<Denied>,
        entered: bool,
    ) -> Self {
        let error = match result {
            Ok(()) => return Self::new(0, ""),
            Err(error) => error,
        };
        if let Some(I32Exit(code)) = error.downcast_ref() {
            return Self::new(code & 0xff, "");
        }
        if let Some(Denied { wanted, limit, .. }) = denied {
            let message = format!(
                "the container's memory limit is {limit} bytes, and its program asked for \
                 {wanted}\n{}",
                describe(&error)
            );
            return Self { reason: "OOMKilled", ..Self::new(KILLED, &message) };
        }
        if entered || error.is::<Trap>() {
            Self::new(TRAPPED, &describe(&error))
        } else {
            Self::not_started(&format!("{error:#}"))
        }
    }

    /// Adds the times, in microseconds since the Unix epoch.
    pub(crate) fn report(self, started_at: Option<i64>, finished_at: i64) -> ExitReport {
        ExitReport {
            exit_code: self.code,
            reason: self.reason.into(),
            message: self.message,
            started_at,
            finished_at,
        }
    }
}

/// The cause first, then where the guest was.
pub(crate) fn describe(error: &wasmtime::Error) -> String {
    let cause = error.root_cause();
    match error.downcast_ref::<WasmBacktrace>() {
        Some(trace) if !trace.frames().is_empty() => format!("{cause}\n{trace}"),
        _ => cause.to_string(),
    }
}

/// Cuts a text to `limit` bytes, at a character's border.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    text[..text.floor_char_boundary(limit)].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DENIED: Option<Denied> = Some(Denied::EXAMPLE);

    #[test]
    fn a_program_that_exits_has_its_own_code() {
        for (given, reported) in [(0, 0), (3, 3), (126, 126), (255, 255), (256, 0), (-1, 255)] {
            let ending = Ending::of(Err(I32Exit(given).into()), None, true);
            assert_eq!(ending.code, reported);
            assert_eq!(ending.reason, if reported == 0 { "Completed" } else { "Error" });
        }
    }

    #[test]
    fn a_refused_growth_is_the_cause_of_a_trap_and_of_nothing_else() {
        let trap = || Err(Trap::UnreachableCodeReached.into());
        assert_eq!(Ending::of(trap(), DENIED, true).reason, "OOMKilled");
        assert_eq!(Ending::of(trap(), DENIED, true).code, KILLED);
        assert_eq!(Ending::of(trap(), None, true).code, TRAPPED);
        assert_eq!(Ending::of(Ok(()), DENIED, true).code, 0);
        assert_eq!(Ending::of(Err(I32Exit(2).into()), DENIED, true).code, 2);
    }

    #[test]
    fn a_guest_that_was_not_entered_was_not_started() {
        let failed = || Err(wasmtime::Error::msg("no such thing"));
        let ending = Ending::of(failed(), None, false);
        assert_eq!((ending.code, ending.reason), (128, "StartError"));
        assert_eq!(Ending::of(failed(), None, true).code, TRAPPED);
    }

    proptest! {
        #[test]
        fn a_report_fits_its_bounds(code: i32, message: String) {
            let ending = Ending::of(Err(I32Exit(code).into()), None, true);
            prop_assert!((0..=255).contains(&ending.code));
            prop_assert!(Ending::not_started(&message.repeat(300)).message.len() <= MAX_MESSAGE);
        }
    }
}
