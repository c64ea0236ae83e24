//! The CNCF Wasm artifact: the format that `push` writes and `import` assumes for a bare file.
//!
//! One configuration, one layer. It is a function of the file alone (its date is the file's), so the
//! same file has the same digest wherever it is pushed or imported.
//!
//! Source: CNCF TAG Runtime, "Wasm OCI Artifact layout".

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use wasmparser::{BinaryReader, ComponentExportSectionReader, ComponentImportSectionReader};

use crate::digest::{Algorithm, Digest, Hasher};
use crate::format::{WASM_CONFIG, WASM_LAYER};
use crate::manifest::OCI_MANIFEST;
use crate::preamble::{self, Kind, NotWasm};

/// Longest list of imports or exports read, in bytes: names only, some 50 each.
const NAMES_LIMIT: u64 = 1 << 20;

/// Section numbers of a component. Source: the component model's `Binary.md`.
const IMPORTS: u8 = 10;
const EXPORTS: u8 = 11;

/// A file and the documents that describe it.
#[derive(Clone, Debug)]
pub(crate) struct Artifact {
    pub layer: Digest,
    pub size: u64,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

/// Why a file is not fit to be an artifact.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ArtifactError {
    #[error("cannot read it")]
    Read(#[source] std::sync::Arc<io::Error>),
    #[error(transparent)]
    NotWasm(#[from] NotWasm),
    #[error("it is a damaged component")]
    Damaged(#[source] std::sync::Arc<wasmparser::BinaryReaderError>),
    #[error("it has {bytes} bytes, more than the {limit} this node allows")]
    TooBig { bytes: u64, limit: u64 },
}

impl From<io::Error> for ArtifactError {
    fn from(error: io::Error) -> Self {
        Self::Read(error.into())
    }
}

impl From<wasmparser::BinaryReaderError> for ArtifactError {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        Self::Damaged(error.into())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    created: Timestamp,
    architecture: &'static str,
    os: &'static str,
    layer_digests: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    component: Option<Interface>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Interface {
    exports: Vec<String>,
    imports: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: u64,
}

/// Describes the program at `path`, of at most `limit` bytes. Blocks: reads all of it.
pub(crate) fn describe(path: &Path, limit: u64) -> Result<Artifact, ArtifactError> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
    }
    let size = metadata.len();
    if size > limit {
        return Err(ArtifactError::TooBig { bytes: size, limit });
    }
    let mut file = BufReader::with_capacity(64 << 10, file);
    let kind = preamble::kind_of(&mut file)??;
    let (os, component) = match kind {
        // Artifacts have no better word for a plain module.
        Kind::Module => ("wasip1", None),
        Kind::Component => ("wasip2", Some(interface(&mut file)?)),
    };
    file.seek(SeekFrom::Start(0))?;
    let layer = digest(&mut file, size)?;

    // No program is older than the epoch; a date that cannot be told stands for it.
    let created = metadata.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
    let config = Config {
        created: created.unwrap_or_default(),
        architecture: "wasm",
        os,
        layer_digests: vec![layer.to_string()],
        component,
    };
    let config = serde_json::to_vec(&config).map_err(io::Error::from)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST,
        config: Descriptor {
            media_type: WASM_CONFIG,
            digest: Digest::of(&config).to_string(),
            size: config.len() as u64,
        },
        layers: vec![Descriptor { media_type: WASM_LAYER, digest: layer.to_string(), size }],
    };
    let manifest = serde_json::to_vec(&manifest).map_err(io::Error::from)?;
    Ok(Artifact { layer, size, config, manifest })
}

/// Reads exactly what the file had when it was opened.
fn digest(file: impl Read, size: u64) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    let mut left = file.take(size);
    loop {
        match left.read(&mut buffer)? {
            0 if left.limit() == 0 => return Ok(hasher.finish()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// What a component imports and exports: its outermost sections of these kinds, without
/// reading the code between them. `file` stands after the preamble.
fn interface(file: &mut (impl Read + Seek)) -> Result<Interface, ArtifactError> {
    let mut interface = Interface::default();
    let mut id = [0];
    while file.read(&mut id)? == 1 {
        let size = leb128(file)?;
        if !matches!(id[0], IMPORTS | EXPORTS) {
            // A 32-bit length always fits.
            file.seek(SeekFrom::Current(i64::from(size)))?;
            continue;
        }
        if u64::from(size) > NAMES_LIMIT {
            return Err(ArtifactError::TooBig { bytes: u64::from(size), limit: NAMES_LIMIT });
        }
        let mut section = Vec::new();
        file.take(u64::from(size)).read_to_end(&mut section)?;
        if section.len() as u64 != u64::from(size) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let reader = BinaryReader::new(&section, 0);
        if id[0] == IMPORTS {
            for import in ComponentImportSectionReader::new(reader)? {
                interface.imports.push(import?.name.name.to_owned());
            }
        } else {
            for export in ComponentExportSectionReader::new(reader)? {
                interface.exports.push(export?.name.name.to_owned());
            }
        }
    }
    Ok(interface)
}

fn leb128(file: &mut impl Read) -> io::Result<u32> {
    let mut value = 0_u32;
    for shift in (0..32).step_by(7) {
        let mut byte = [0];
        file.read_exact(&mut byte)?;
        let bits = u32::from(byte[0] & 0x7f);
        if shift == 28 && bits > 0x0f {
            break;
        }
        value |= bits << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a section's length is damaged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(bytes: &[u8]) -> Result<Artifact, ArtifactError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.wasm");
        std::fs::write(&path, bytes).unwrap();
        describe(&path, 1000)
    }

    #[test]
    fn a_module_is_described_by_the_conventions_field_names() {
        let artifact = described(b"\0asm\x01\0\0\0").unwrap();
        let config: serde_json::Value = serde_json::from_slice(&artifact.config).unwrap();
        assert_eq!(config["architecture"], "wasm");
        assert_eq!(config["os"], "wasip1");
        assert_eq!(config["layerDigests"][0], artifact.layer.to_string());
        let manifest: serde_json::Value = serde_json::from_slice(&artifact.manifest).unwrap();
        assert_eq!(manifest["schemaVersion"], 2);
        assert_eq!(manifest["mediaType"], OCI_MANIFEST);
        assert_eq!(manifest["config"]["mediaType"], WASM_CONFIG);
        assert_eq!(manifest["config"]["digest"], Digest::of(&artifact.config).to_string());
        assert_eq!(manifest["layers"][0]["mediaType"], WASM_LAYER);
        assert_eq!(manifest["layers"][0]["size"], 8);
    }

    #[test]
    fn a_component_names_its_imports_and_exports() {
        // An import of an instance type, which an export passes on.
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        // Type section: one instance type without declarations.
        bytes.extend([7, 3, 1, 0x42, 0]);
        let name = b"a:b/c@1.0.0";
        let length = u8::try_from(name.len()).unwrap();
        bytes.extend([IMPORTS, length + 5, 1, 0, length]);
        bytes.extend(name);
        bytes.extend([5, 0]);
        let name = b"d:e/f@2.0.0";
        bytes.extend([EXPORTS, length + 6, 1, 0, length]);
        bytes.extend(name);
        bytes.extend([5, 0, 0]);
        let artifact = described(&bytes).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&artifact.config).unwrap();
        assert_eq!(config["os"], "wasip2");
        assert_eq!(config["component"]["imports"][0], "a:b/c@1.0.0");
        assert_eq!(config["component"]["exports"][0], "d:e/f@2.0.0");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(matches!(
            described(b"\x7fELF").unwrap_err(),
            ArtifactError::NotWasm(NotWasm::Precompiled)
        ));
        assert!(matches!(
            described(b"(module)").unwrap_err(),
            ArtifactError::NotWasm(NotWasm::Text)
        ));
        assert!(matches!(described(&[0; 1001]).unwrap_err(), ArtifactError::TooBig { .. }));
        let cut = b"\0asm\x0d\0\x01\0\x0a\x05\x01";
        assert!(matches!(described(cut).unwrap_err(), ArtifactError::Read(_)));
    }
}
