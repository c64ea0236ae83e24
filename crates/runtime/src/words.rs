//! What sandboxes say in words, as far as it is listened to.
//!
//! A sandbox may have been broken out of, and its words go a long way: into events,
//! statuses, checkpoints and the log. A sound one keeps to these bounds itself.

use std::fmt::{self, Write};

use krustlet_protocol::{ContainerReport, ExitReport, Failure, RunState, SandboxReply};

/// Bytes of the longest text: those of a sandbox's own bound (`exit.rs` there), and of
/// an event's message.
const LONGEST: usize = 4096;

/// An answer with its texts cut.
pub(crate) fn of_reply(reply: SandboxReply) -> SandboxReply {
    match reply {
        SandboxReply::Failed(failure) => SandboxReply::Failed(of_failure(failure)),
        SandboxReply::Exec(mut outcome) => {
            cut(&mut outcome.message);
            SandboxReply::Exec(outcome)
        }
        SandboxReply::Containers { mut containers } => {
            for ContainerReport { state, .. } in &mut containers {
                if let RunState::Exited(exit) = state {
                    cut_exit(exit);
                }
            }
            SandboxReply::Containers { containers }
        }
        reply @ (SandboxReply::Done
        | SandboxReply::Hello { .. }
        | SandboxReply::Stats { .. }
        | SandboxReply::Listeners { .. }) => reply,
    }
}

/// An end with its texts cut.
pub(crate) fn of_exit(mut exit: ExitReport) -> ExitReport {
    cut_exit(&mut exit);
    exit
}

/// The beginning of what something is, for people.
pub(crate) fn of(what: &impl fmt::Debug) -> String {
    let mut text = Beginning(String::new());
    // It fails when there is enough.
    let _ = write!(text, "{what:?}");
    text.0
}

fn of_failure(mut failure: Failure) -> Failure {
    match &mut failure {
        Failure::UnknownVerb => {}
        Failure::Malformed { why: text }
        | Failure::NotFound { id: text }
        | Failure::Unlinkable { message: text }
        | Failure::Failed { message: text } => cut(text),
    }
    failure
}

fn cut_exit(exit: &mut ExitReport) {
    cut(&mut exit.reason);
    cut(&mut exit.message);
}

fn cut(text: &mut String) {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        // What it had is kept in memory otherwise.
        text.shrink_to_fit();
    }
}

/// Takes no more than the longest text.
struct Beginning(String);

impl Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LONGEST - self.0.len();
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        if text.len() > room { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use krustlet_model::{ContainerId, PodUid};
    use krustlet_protocol::ExecOutcome;

    use super::*;

    #[test]
    fn no_text_of_a_sandbox_is_longer_than_a_sound_ones() {
        let long = || "ä".repeat(LONGEST);
        let exit = ExitReport {
            exit_code: 1,
            reason: long(),
            message: long(),
            started_at: None,
            finished_at: 1,
        };
        let id = ContainerId::from_bytes([1; 32]);
        let report = |state| ContainerReport { id: id.clone(), pod: PodUid::new("a"), state };
        let failed = SandboxReply::Failed;
        let replies = [
            failed(Failure::Malformed { why: long() }),
            failed(Failure::NotFound { id: long() }),
            failed(Failure::Unlinkable { message: long() }),
            failed(Failure::Failed { message: long() }),
            SandboxReply::Exec(ExecOutcome { exit_code: 0, message: long() }),
            SandboxReply::Containers { containers: vec![report(RunState::Exited(exit.clone()))] },
        ];
        for reply in replies {
            let before = serde_json::to_string(&reply).unwrap().len();
            let cut = serde_json::to_string(&of_reply(reply.clone())).unwrap().len();
            assert!(cut < before && cut <= 2 * LONGEST + 512, "{cut} of {before}");
            let said = of(&reply);
            assert!(said.len() <= LONGEST && said.len() > LONGEST - 4, "{}", said.len());
        }
        assert_eq!(of_exit(exit).message.len(), LONGEST);
        assert_eq!(of(&"short"), "\"short\"");
        assert_eq!(of_reply(SandboxReply::Done), SandboxReply::Done);
    }
}
