//! What a program is, told by its bytes: module or component, what it imports,
//! what it exports. Pure. Whether the program is valid is the compiler's to say.
//!
//! The media type under which a registry gave it says nothing and is not asked.

use serde::{Deserialize, Serialize};
use wasmparser::{Encoding, Imports, Parser, Payload};

/// Names of imports and exports, in bytes over all of them.
///
/// Real programs stay below 100 KiB; the agent keeps these in memory.
const MAX_NAMES_BYTES: usize = 1 << 20;

/// What a program is and what it wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// How it is run.
    pub kind: ProgramKind,
    /// What the host must offer, in the program's order: `module::name` of each
    /// import of a module, `wasi:cli/stdout@0.2.3` of a component.
    pub imports: Vec<String>,
    /// What can be called: each exported function of a module, each export of a
    /// component.
    pub exports: Vec<String>,
}

/// How a program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProgramKind {
    /// A core module.
    Module,
    /// A component that exports `wasi:cli/run`; its exports say which version.
    Command,
    /// A component that exports `wasi:http/incoming-handler` (0.2) or
    /// `wasi:http/handler` (0.3), whether or not it can be run as a command too.
    Http,
    /// A component that exports neither.
    Other,
}

/// Why a file is not a program that can be inspected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum InspectError {
    #[error("it is empty")]
    Empty,

    #[error(
        "it is native or precompiled code (ELF), which is never accepted; give the .wasm file it was made of"
    )]
    Native,

    #[error(
        "it is WebAssembly text; convert it to binary first, for instance with `wasm-tools parse`"
    )]
    Text,

    #[error("it is not WebAssembly: it begins with {0}")]
    NotWasm(String),

    #[error("it is malformed: {0}")]
    Malformed(String),

    #[error("the names it imports and exports take more than {MAX_NAMES_BYTES} bytes")]
    TooManyNames,
}

/// Reads what a program is.
///
/// # Errors
///
/// If the bytes are no WebAssembly binary, or none this can follow.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, InspectError> {
    preamble(bytes)?;
    let mut found = Found::default();
    let mut encoding = Encoding::Module;
    // Components contain modules and components: only the outermost counts.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(malformed)? {
            Payload::Version { encoding: outer, .. } if depth == 0 => encoding = outer,
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ImportSection(section) if depth == 0 => {
                for imports in section {
                    found.module_imports(imports.map_err(malformed)?)?;
                }
            }
            Payload::ExportSection(section) if depth == 0 => {
                for export in section {
                    let export = export.map_err(malformed)?;
                    if export.kind == wasmparser::ExternalKind::Func {
                        found.export(export.name.to_owned())?;
                    }
                }
            }
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    found.import(import.map_err(malformed)?.name.name.to_owned())?;
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    found.export(export.map_err(malformed)?.name.name.to_owned())?;
                }
            }
            _ => {}
        }
    }
    let kind = match encoding {
        Encoding::Module => ProgramKind::Module,
        Encoding::Component => component_kind(&found.exports),
    };
    Ok(Inspection { kind, imports: found.imports, exports: found.exports })
}

fn preamble(bytes: &[u8]) -> Result<(), InspectError> {
    if bytes.is_empty() {
        return Err(InspectError::Empty);
    }
    if bytes.starts_with(b"\0asm") {
        return Ok(());
    }
    if bytes.starts_with(b"\x7fELF") {
        return Err(InspectError::Native);
    }
    let text = bytes.trim_ascii_start();
    if [&b"(module"[..], b"(component", b";;", b"(;"].iter().any(|&start| text.starts_with(start)) {
        return Err(InspectError::Text);
    }
    let start = &bytes[..bytes.len().min(8)];
    Err(InspectError::NotWasm(format!("{:?}", start.escape_ascii().to_string())))
}

fn malformed(error: wasmparser::Error) -> InspectError {
    InspectError::Malformed(error.to_string())
}

/// Source: runwasi's wasmtime shim, `instance.rs`: http before command.
fn component_kind(exports: &[String]) -> ProgramKind {
    let exports_any = |interfaces: &[&str]| {
        exports.iter().any(|export| {
            let name = export.split_once('@').map_or(export.as_str(), |(name, _)| name);
            interfaces.contains(&name)
        })
    };
    if exports_any(&["wasi:http/incoming-handler", "wasi:http/handler"]) {
        ProgramKind::Http
    } else if exports_any(&["wasi:cli/run"]) {
        ProgramKind::Command
    } else {
        ProgramKind::Other
    }
}

#[derive(Default)]
struct Found {
    imports: Vec<String>,
    exports: Vec<String>,
    bytes: usize,
}

impl Found {
    fn module_imports(&mut self, imports: Imports<'_>) -> Result<(), InspectError> {
        match imports {
            Imports::Single(_, import) => {
                self.import(format!("{}::{}", import.module, import.name))
            }
            Imports::Compact1 { module, items } => {
                for item in items {
                    self.import(format!("{module}::{}", item.map_err(malformed)?.name))?;
                }
                Ok(())
            }
            Imports::Compact2 { module, names, .. } => {
                for name in names {
                    self.import(format!("{module}::{}", name.map_err(malformed)?))?;
                }
                Ok(())
            }
        }
    }

    fn import(&mut self, name: String) -> Result<(), InspectError> {
        self.count(&name)?;
        self.imports.push(name);
        Ok(())
    }

    fn export(&mut self, name: String) -> Result<(), InspectError> {
        self.count(&name)?;
        self.exports.push(name);
        Ok(())
    }

    fn count(&mut self, name: &str) -> Result<(), InspectError> {
        // An empty name costs its place in the list.
        self.bytes += name.len() + size_of::<String>();
        if self.bytes > MAX_NAMES_BYTES { Err(InspectError::TooManyNames) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Inspection {
        inspect(&wat::parse_str(text).unwrap()).unwrap()
    }

    #[test]
    fn a_module_is_told_by_its_preamble_and_lists_what_it_wants() {
        let seen = of(r#"(module
                (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
                (import "env" "table" (table 1 funcref))
                (memory (export "memory") 1)
                (func (export "_start")))"#);
        assert_eq!(seen.kind, ProgramKind::Module);
        assert_eq!(seen.imports, ["wasi_snapshot_preview1::fd_write", "env::table"]);
        assert_eq!(seen.exports, ["_start"]);
    }

    #[test]
    fn only_the_outermost_component_counts() {
        let seen = of(r#"(component
                (import "wasi:cli/stdout@0.2.3" (instance))
                (core module (import "inner" "thing" (func)) (func (export "_start")))
                (component (import "inner:a/b" (instance)))
                (instance $run)
                (export "wasi:cli/run@0.2.3" (instance $run)))"#);
        assert_eq!(seen.kind, ProgramKind::Command);
        assert_eq!(seen.imports, ["wasi:cli/stdout@0.2.3"]);
        assert_eq!(seen.exports, ["wasi:cli/run@0.2.3"]);
    }

    #[test]
    fn a_component_that_serves_and_runs_is_taken_to_serve() {
        let seen = of(r#"(component
                (instance $a)
                (export "wasi:cli/run@0.2.3" (instance $a))
                (export "wasi:http/incoming-handler@0.2.3" (instance $a)))"#);
        assert_eq!(seen.kind, ProgramKind::Http);
        // Of WASI 0.3.
        for (export, kind) in [
            ("wasi:cli/run@0.3.0", ProgramKind::Command),
            ("wasi:http/handler@0.3.2", ProgramKind::Http),
        ] {
            let text = format!(r#"(component (instance $a) (export "{export}" (instance $a)))"#);
            assert_eq!(of(&text).kind, kind);
        }
        assert_eq!(of("(component)").kind, ProgramKind::Other);
        assert_eq!(
            of(r#"(component (instance $a) (export "wasi:cli/runner" (instance $a)))"#).kind,
            ProgramKind::Other
        );
    }

    #[test]
    fn what_is_no_wasm_is_refused_by_what_it_is() {
        assert_eq!(inspect(b""), Err(InspectError::Empty));
        assert_eq!(inspect(b"\x7fELF\x02\x01\x01\xc8"), Err(InspectError::Native));
        assert_eq!(inspect(b"\n(module)"), Err(InspectError::Text));
        assert!(
            matches!(inspect(b"#!/bin/sh\n"), Err(InspectError::NotWasm(start)) if start.contains("#!/bin/s"))
        );
        assert!(matches!(inspect(b"\0asm\x01\0\0\0\x02\xff"), Err(InspectError::Malformed(_))));
    }

    #[test]
    fn names_without_end_are_refused() {
        let mut text = String::from("(module (func $f)");
        for count in 0..50_000 {
            write!(text, "(export \"{count}\" (func $f))").unwrap();
        }
        text.push(')');
        assert_eq!(inspect(&wat::parse_str(&text).unwrap()), Err(InspectError::TooManyNames));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), component: bool) {
            let preamble: &[u8] = if component { b"\0asm\x0d\0\x01\0" } else { b"\0asm\x01\0\0\0" };
            let _ = inspect(&bytes);
            bytes.splice(0..0, preamble.iter().copied());
            let _ = inspect(&bytes);
        }
    }
}
