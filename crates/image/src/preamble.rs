//! What a program's first bytes say it is.
//!
//! A program that was compiled before it reached the registry is native code under
//! another name, so it is recognised here and refused everywhere.

use std::io::{self, Read};
use std::path::Path;

/// Kind of a WebAssembly binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Module,
    Component,
}

/// Why bytes are not a program this node takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum NotWasm {
    #[error(
        "it is a precompiled artifact, which is native code; only WebAssembly itself is accepted"
    )]
    Precompiled,
    #[error("it is text, not a WebAssembly binary (.wat files serve local development only)")]
    Text,
    #[error("it is not a WebAssembly binary")]
    Other,
}

/// Length of the preamble, in bytes.
pub(crate) const LENGTH: usize = 8;

/// Reads magic number, version and layer. Source: the WebAssembly core specification,
/// "Binary Format, Modules", and the component model's `Binary.md`.
pub(crate) fn kind(bytes: &[u8]) -> Result<Kind, NotWasm> {
    match bytes {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(Kind::Module),
        [0, b'a', b's', b'm', _, 0, 1, 0, ..] => Ok(Kind::Component),
        // wasmtime writes its compiled code as an ELF file.
        [0x7f, b'E', b'L', b'F', ..] => Err(NotWasm::Precompiled),
        [b'(' | b';', ..] => Err(NotWasm::Text),
        _ => Err(NotWasm::Other),
    }
}

/// Reads the kind of an open file, from its present position.
pub(crate) fn kind_of(file: impl Read) -> io::Result<Result<Kind, NotWasm>> {
    let mut bytes = Vec::with_capacity(LENGTH);
    file.take(LENGTH as u64).read_to_end(&mut bytes)?;
    Ok(kind(&bytes))
}

/// Reads the kind of the file at `path`. Blocks.
pub(crate) fn kind_of_file(path: &Path) -> io::Result<Result<Kind, NotWasm>> {
    kind_of(std::fs::File::open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_by_their_first_bytes() {
        assert_eq!(kind(b"\0asm\x01\0\0\0rest"), Ok(Kind::Module));
        assert_eq!(kind(b"\0asm\x0d\0\x01\0"), Ok(Kind::Component));
        assert_eq!(kind(b"\x7fELF\x02\x01\x01\0"), Err(NotWasm::Precompiled));
        assert_eq!(kind(b"(module)"), Err(NotWasm::Text));
        assert_eq!(kind(b"\0asm"), Err(NotWasm::Other));
        assert_eq!(kind(b""), Err(NotWasm::Other));
    }
}
