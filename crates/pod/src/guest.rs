//! How a program is entered: a rule over what its inspection found.

use krustlet_protocol::{GuestKind, HttpLimits};

/// What the compiler found a program to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramShape {
    /// A core module with these exports.
    Module {
        /// Names of everything it exports.
        exports: Vec<String>,
    },
    /// A component that exports `wasi:cli/run`.
    Command,
    /// A component that exports `wasi:http/incoming-handler`.
    Http,
    /// A component that exports neither.
    Other {
        /// Names of everything it exports.
        exports: Vec<String>,
    },
}

/// Why a program cannot be entered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum EntryError {
    #[error(
        "the module does not export {wanted:?}, which would be called; its exports are: {exports}"
    )]
    NoExport { wanted: String, exports: String },

    #[error(
        "the component exports neither wasi:cli/run nor wasi:http/incoming-handler; \
         its exports are: {exports}"
    )]
    NoWorld { exports: String },

    #[error("an image of a component cannot name a function to call, but this one names {entry:?}")]
    EntryOfComponent { entry: String },
}

/// Chooses how to enter a program. `entry` is the export that the image's entry
/// point names (`path#export`), if it does.
///
/// Source of `path#export`: runwasi, `containerd-shim-wasm`, `sandbox/context.rs`.
///
/// # Errors
///
/// [`EntryError`] if there is nothing to enter.
pub fn guest_kind(
    shape: &ProgramShape,
    entry: Option<&str>,
    http: HttpLimits,
) -> Result<GuestKind, EntryError> {
    match (shape, entry) {
        (ProgramShape::Module { exports }, entry) => {
            let wanted = entry.unwrap_or("_start");
            if exports.iter().any(|export| export == wanted) {
                Ok(GuestKind::Module { export: wanted.to_owned() })
            } else {
                Err(EntryError::NoExport { wanted: wanted.to_owned(), exports: listed(exports) })
            }
        }
        (ProgramShape::Command | ProgramShape::Http | ProgramShape::Other { .. }, Some(entry)) => {
            Err(EntryError::EntryOfComponent { entry: entry.to_owned() })
        }
        (ProgramShape::Command, None) => Ok(GuestKind::Command),
        (ProgramShape::Http, None) => Ok(GuestKind::Http(http)),
        (ProgramShape::Other { exports }, None) => {
            Err(EntryError::NoWorld { exports: listed(exports) })
        }
    }
}

/// At most ten names: a program may export thousands, and a person reads this.
fn listed(exports: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = exports.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if exports.is_empty() {
        text.push_str("none");
    } else if exports.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: HttpLimits = HttpLimits {
        max_concurrent: 8,
        request_timeout_ms: 1000,
        idle_timeout_ms: 1000,
        max_body_bytes: None,
        max_instance_reuse: None,
        max_instance_concurrent_reuse: None,
        idle_instance_timeout_ms: 1000,
        backlog: None,
    };

    #[test]
    fn a_program_is_entered_by_what_it_exports() {
        let module = ProgramShape::Module { exports: vec!["memory".into(), "_start".into()] };
        let export = |name: &str| Ok(GuestKind::Module { export: name.to_owned() });
        assert_eq!(guest_kind(&module, None, HTTP), export("_start"));
        assert_eq!(guest_kind(&module, Some("memory"), HTTP), export("memory"));
        assert_eq!(guest_kind(&ProgramShape::Command, None, HTTP), Ok(GuestKind::Command));
        assert_eq!(guest_kind(&ProgramShape::Http, None, HTTP), Ok(GuestKind::Http(HTTP)));
    }

    #[test]
    fn what_cannot_be_entered_says_what_it_has() {
        let reactor = ProgramShape::Module { exports: vec!["_initialize".into()] };
        let error = guest_kind(&reactor, None, HTTP).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the module does not export \"_start\", which would be called; its exports are: _initialize",
        );
        let many = (0..30).map(|n| format!("e{n}")).collect();
        let error = guest_kind(&ProgramShape::Other { exports: many }, None, HTTP).unwrap_err();
        assert!(error.to_string().ends_with("e8, e9, …"), "{error}");
        assert!(guest_kind(&ProgramShape::Command, Some("f"), HTTP).is_err());
    }
}
