//! The termination message of a run: where it is written, and what is told.
//!
//! ```text
//! the guest's file ─┐
//! the run's own end ┼─▶ message ─▶ state.terminated.message
//! the log's end ────┘   (policy)
//! ```
//!
//! Pure: reading file and log is left to `pod`, cutting a pod's messages to
//! their share to [`status`](crate::status).
//!
//! Source: kubelet, `convertToKubeContainerStatus` and `getTerminationMessage`
//! in `pkg/kubelet/kuberuntime/kuberuntime_container.go`.

use k8s_openapi::api::core::v1::Container;

use crate::status::MAX_TERMINATION_MESSAGE;

/// Where a container writes its message if it does not say, as the API server
/// has it. Source: `TerminationMessagePathDefault` of the API.
pub const DEFAULT_PATH: &str = "/dev/termination-log";

/// Bytes of a message that is read from the log.
///
/// Source: kubelet, `MaxContainerTerminationMessageLogLength` in
/// `pkg/kubelet/container/runtime.go`.
pub const MAX_LOG_BYTES: usize = 2048;

/// Lines of such a message.
///
/// Source: kubelet, `MaxContainerTerminationMessageLogLines`, same file.
pub const MAX_LOG_LINES: usize = 80;

/// Bytes of a log's end in which the message lies whole: its text, and what
/// stands before each of its lines (a time of at most 35 bytes, stream, tag).
pub const LOG_WINDOW: usize = 8 << 10;

/// `terminationMessagePolicy` of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessagePolicy {
    /// The file alone.
    File,
    /// The end of the log, if the file is empty and the run failed.
    FallbackToLogsOnError,
}

impl MessagePolicy {
    /// Reads the API's word; none means `File`, as the API server has it.
    #[must_use]
    pub fn of(container: &Container) -> Self {
        match container.termination_message_policy.as_deref() {
            Some("FallbackToLogsOnError") => Self::FallbackToLogsOnError,
            Some(_) | None => Self::File,
        }
    }
}

/// `terminationMessagePath` of a container, absolute.
///
/// Source: kubelet, `MakeAbsolutePath` in `pkg/volume/util`.
#[must_use]
pub fn path(container: &Container) -> String {
    match container.termination_message_path.as_deref() {
        None | Some("") => DEFAULT_PATH.to_owned(),
        Some(path) if path.starts_with('/') => path.to_owned(),
        Some(path) => format!("/{path}"),
    }
}

/// What a run left to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// What its file holds.
    pub file: String,
    /// The end of its log; empty where the policy does not ask for it.
    pub log: String,
}

/// The message of a run that ended with this code; at most
/// [`MAX_TERMINATION_MESSAGE`] bytes.
///
/// `own` is what the sandbox says of the end: a trap with its backtrace, the
/// memory limit. A guest that has said something itself takes its place. What
/// is read from the log comes after it, as the kubelet puts a runtime's message
/// before the one it reads; of both the log's end is kept whole.
#[must_use]
pub fn message(policy: MessagePolicy, exit_code: i32, own: &str, written: &Written) -> String {
    if !written.file.is_empty() {
        return start(&written.file, MAX_TERMINATION_MESSAGE).to_owned();
    }
    let falls_back = policy == MessagePolicy::FallbackToLogsOnError && exit_code != 0;
    if !falls_back || written.log.is_empty() {
        return start(own, MAX_TERMINATION_MESSAGE).to_owned();
    }
    let log = end(&written.log, MAX_LOG_BYTES);
    if own.is_empty() {
        return log.to_owned();
    }
    format!("{}\n{log}", start(own, MAX_TERMINATION_MESSAGE - log.len() - 1))
}

/// The last lines of a log in the CRI's format: at most [`MAX_LOG_LINES`] lines
/// of the file and [`MAX_LOG_BYTES`] bytes of their text. `window` is the end of
/// the file, [`LOG_WINDOW`] bytes or all of it; a line that begins before it is
/// taken by its end.
///
/// Source: kubelet, `readLastStringFromContainerLogs` in
/// `pkg/kubelet/kuberuntime/kuberuntime_container.go`.
#[must_use]
pub fn log_tail(window: &[u8]) -> String {
    let mut lines: Vec<&[u8]> =
        window.split_inclusive(|byte| *byte == b'\n').rev().take(MAX_LOG_LINES).collect();
    lines.reverse();
    let mut text = Vec::new();
    for line in lines {
        match cri_text(line) {
            Some((content, is_whole)) => {
                text.extend_from_slice(content);
                text.extend_from_slice(if is_whole { b"\n" } else { b"" });
            }
            // The end of a line that is longer than all that is wanted.
            None => text.extend_from_slice(line),
        }
    }
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(MAX_LOG_BYTES)..]);
    end(&text, MAX_LOG_BYTES).to_owned()
}

/// The guest's text in a line `TIME STREAM TAG TEXT`, and whether the guest's own
/// line ends with it.
fn cri_text(line: &[u8]) -> Option<(&[u8], bool)> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (_time, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // Further tags may follow the first after a colon.
    let is_whole = match tag.first()? {
        b'F' => true,
        b'P' => false,
        _ => return None,
    };
    matches!(stream, b"stdout" | b"stderr").then_some((text, is_whole))
}

fn start(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn end(text: &str, bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: MessagePolicy = MessagePolicy::File;
    const LOGS: MessagePolicy = MessagePolicy::FallbackToLogsOnError;

    fn written(file: &str, log: &str) -> Written {
        Written { file: file.to_owned(), log: log.to_owned() }
    }

    #[test]
    fn the_guests_own_words_come_first() {
        let table = [
            (FILE, 0, "", "done", "", "done"),
            (FILE, 134, "a trap", "done", "log", "done"),
            (FILE, 134, "a trap", "", "log", "a trap"),
            (LOGS, 0, "", "", "log", ""),
            (LOGS, 1, "", "", "log", "log"),
            (LOGS, 1, "", "file", "log", "file"),
            (LOGS, 134, "a trap", "", "log", "a trap\nlog"),
            (LOGS, 134, "a trap", "", "", "a trap"),
        ];
        for (policy, code, own, file, log, expected) in table {
            let told = message(policy, code, own, &written(file, log));
            assert_eq!(told, expected, "{policy:?} {code} {own:?} {file:?} {log:?}");
        }
    }

    #[test]
    fn paths_are_absolute() {
        let path_of = |path: Option<&str>| {
            let path = path.map(str::to_owned);
            super::path(&Container { termination_message_path: path, ..Container::default() })
        };
        assert_eq!(path_of(None), "/dev/termination-log");
        assert_eq!(path_of(Some("")), "/dev/termination-log");
        assert_eq!(path_of(Some("tmp/x")), "/tmp/x");
        assert_eq!(path_of(Some("/tmp/x")), "/tmp/x");
    }

    #[test]
    fn the_end_of_a_log_is_the_guests_text() {
        let log = b"2026-11-24T10:00:00.5Z stdout F one\n\
            2026-11-24T10:00:01Z stderr P tw\n2026-11-24T10:00:01Z stderr F o \n";
        assert_eq!(log_tail(log), "one\ntwo \n");
        let lines: Vec<_> =
            (0..200).map(|n| format!("2026-11-24T10:00:00Z stdout F {n}\n")).collect();
        let many = lines.concat();
        let window = &many.as_bytes()[many.len() - 6000..];
        assert_eq!(log_tail(window).lines().collect::<Vec<_>>().len(), MAX_LOG_LINES);
        assert!(log_tail(window).starts_with("120\n"), "{}", log_tail(window));
    }

    #[test]
    fn a_line_longer_than_the_window_is_cut() {
        let long = format!("2026-11-24T10:00:00Z stdout P {}\n", "é".repeat(8000));
        let window = &long.as_bytes()[long.len() - LOG_WINDOW..];
        let tail = log_tail(window);
        assert!(tail.len() <= MAX_LOG_BYTES && tail.len() > MAX_LOG_BYTES - 8, "{}", tail.len());
        assert!(tail.trim_end().chars().all(|character| character == 'é'));
    }

    proptest! {
        #[test]
        fn a_message_is_never_too_long(
            own in "[aé]{0,3000}", file in "[aé]{0,3000}", log in "[aé]{0,3000}", code in 0..2,
        ) {
            for policy in [FILE, LOGS] {
                let told = message(policy, code, &own, &written(&file, &log));
                prop_assert!(told.len() <= MAX_TERMINATION_MESSAGE);
                prop_assert_eq!(told.is_empty(), file.is_empty() && own.is_empty()
                    && (policy == FILE || code == 0 || log.is_empty()));
            }
        }

        /// The window is enough: more of the file would not change the answer.
        #[test]
        fn a_window_holds_the_whole_message(
            lengths in prop::collection::vec(prop_oneof![0_usize..40, 0_usize..3000], 0..300),
        ) {
            let mut log = String::new();
            for (index, length) in lengths.iter().enumerate() {
                let text = char::from(b'a' + u8::try_from(index % 26).unwrap()).to_string();
                let time = "2026-11-24T10:00:00.123456789+00:00";
                log.extend([time, " stdout F ", &text.repeat(*length), "\n"]);
            }
            let bytes = log.as_bytes();
            let window = &bytes[bytes.len().saturating_sub(LOG_WINDOW)..];
            prop_assert_eq!(log_tail(window), log_tail(bytes));
        }

        #[test]
        fn no_log_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            prop_assert!(log_tail(&bytes).len() <= MAX_LOG_BYTES);
        }
    }
}
