//! What the compiler's child says about its work: one line of JSON, the last it
//! writes to standard error.

use serde::{Deserialize, Serialize};

use crate::inspect::Inspection;

/// Why a program cannot be compiled. The program's own fault: the same program
/// fails the same way each time, under the same limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "fault")]
#[expect(missing_docs, reason = "each message is the description")]
pub enum Fault {
    #[error("it cannot be run: {message}")]
    Invalid { message: String },

    #[error("it has more than {limit} bytes, the most this node compiles")]
    TooLarge { limit: u64 },

    #[error("compiling it takes more than {seconds} s of processor time")]
    TooSlow { seconds: u64 },

    #[error("compiling it takes more than {bytes} bytes of memory")]
    TooMuchMemory { bytes: u64 },

    #[error("its compiled code has more than {bytes} bytes")]
    TooMuchCode { bytes: u64 },
}

/// How a compilation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// The output holds the code of a module with this SHA-256.
    Compiled {
        /// Lower-case hexadecimal digits.
        module_sha256: String,
        inspection: Inspection,
    },
    /// The module is at fault.
    Refused {
        /// Lower-case hexadecimal digits; not known of a module too large to read.
        module_sha256: Option<String>,
        fault: Fault,
    },
    /// The child could not do its work.
    Failed { message: String },
}

/// The end of what a child wrote, in bytes, that goes into a message.
const TAIL_BYTES: usize = 1000;

impl Outcome {
    /// The line to write, with its end.
    pub(crate) fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("strings and numbers are always JSON");
        line.push(b'\n');
        line
    }

    /// Finds the report in what a child wrote; before it there may be anything.
    pub(crate) fn from_output(output: &[u8]) -> Option<Self> {
        let line = output.strip_suffix(b"\n")?.rsplit(|&byte| byte == b'\n').next()?;
        serde_json::from_slice(line).ok()
    }
}

/// The end of a child's last words, for a message: its last non-empty lines.
pub(crate) fn tail(output: &[u8]) -> String {
    let output = &output[output.len().saturating_sub(TAIL_BYTES)..];
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_report_is_found_behind_other_words() {
        let outcome = Outcome::Refused {
            module_sha256: Some("00".to_owned()),
            fault: Fault::Invalid { message: "a\nb".to_owned() },
        };
        let mut output = b"thread panicked\nnote: something\n".to_vec();
        output.extend(outcome.to_line());
        assert_eq!(Outcome::from_output(&output), Some(outcome));
    }

    #[test]
    fn half_a_report_is_none() {
        let line = Outcome::Failed { message: "x".to_owned() }.to_line();
        assert_eq!(Outcome::from_output(&line[..line.len() - 1]), None);
        assert_eq!(Outcome::from_output(b""), None);
    }

    proptest! {
        #[test]
        fn last_words_are_short_and_on_one_line(output in prop::collection::vec(any::<u8>(), 0..3000)) {
            let tail = tail(&output);
            prop_assert!(!tail.contains('\n'));
            // Each broken byte becomes a sign of three, and each line's end two.
            prop_assert!(tail.len() <= TAIL_BYTES * 3);
        }
    }
}
