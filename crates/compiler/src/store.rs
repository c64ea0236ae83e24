//! Artifacts on disk.
//!
//! ```text
//! root/                              0700: only the agent comes in here
//!   tmp/                             what is being made or thrown away
//!   <fingerprint>/<module's digest>/ published by one rename, never changed
//!     artifact.cwasm                 0444, as its readers have other users
//!     record.json                    what it is, with its checksum
//!     failure.json                   instead of both: why there is none
//! ```
//!
//! All of it is blocking; `artifacts.rs` calls it where that does no harm.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::engine::hex;
use crate::inspect::Inspection;
use crate::limits::CompileLimits;
use crate::report::Fault;

/// The artifact's name in its directory.
pub(crate) const ARTIFACT: &str = "artifact.cwasm";
const RECORD: &str = "record.json";
const FAILURE: &str = "failure.json";
const TMP: &str = "tmp";

/// What a record may have, in bytes: see `process.rs`.
const RECORD_BYTES: u64 = 8 << 20;

/// The SHA-256 of a module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ModuleDigest(String);

impl ModuleDigest {
    /// Its lower-case hexadecimal digits.
    pub(crate) fn hex(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModuleDigest {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_prefix("sha256:").ok_or(())?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        // It becomes the name of a directory: nothing else gets in.
        if digits.len() == 64 && digits.bytes().all(is_digit) {
            Ok(Self(digits.to_owned()))
        } else {
            Err(())
        }
    }
}

impl fmt::Display for ModuleDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// What tells one state of a file from any later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The state of an artifact as it is now.
    pub(crate) fn now(directory: &Path) -> io::Result<Self> {
        fs::symlink_metadata(directory.join(ARTIFACT)).map(|metadata| Self::of(&metadata))
    }
}

/// What is known about a module.
#[derive(Debug)]
pub(crate) enum Known {
    /// Its code is here and is what was published.
    Artifact { directory: PathBuf, inspection: Inspection, stamp: Stamp },
    /// It is at fault, under these limits.
    Failure { limits: CompileLimits, fault: Fault },
    /// Nothing, or nothing that can be trusted.
    Nothing,
}

#[derive(Serialize, Deserialize)]
struct Record {
    module: String,
    bytes: u64,
    sha256: String,
    inspection: Inspection,
}

#[derive(Serialize, Deserialize)]
struct Failure {
    module: String,
    limits: CompileLimits,
    #[serde(flatten)]
    fault: Fault,
}

/// A directory that will be published, or thrown away when dropped.
#[derive(Debug)]
pub(crate) struct Draft {
    directory: TempDir,
}

impl Draft {
    /// Makes the file that the code is to be written to.
    pub(crate) fn output(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.directory.path().join(ARTIFACT))
    }
}

/// The directory of all artifacts. Only one agent uses it at a time.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    /// Prepares the directory, and clears away what an agent that was killed
    /// had begun.
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        fs::set_permissions(&root, Permissions::from_mode(0o700))?;
        let tmp = root.join(TMP);
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&tmp)?;
        Ok(Self { root })
    }

    fn tmp(&self) -> PathBuf {
        self.root.join(TMP)
    }

    fn directory(&self, fingerprint: &str, digest: &ModuleDigest) -> PathBuf {
        self.root.join(fingerprint).join(digest.hex())
    }

    /// Looks for what an earlier compilation left, and checks every byte of it.
    ///
    /// # Errors
    ///
    /// If the disk cannot be read. What does not match its record is
    /// [`Known::Nothing`], with a word in the log.
    pub(crate) fn load(&self, fingerprint: &str, digest: &ModuleDigest) -> io::Result<Known> {
        let directory = self.directory(fingerprint, digest);
        if let Some(bytes) = read_small(&directory.join(FAILURE))? {
            return Ok(match serde_json::from_slice::<Failure>(&bytes) {
                Ok(failure) if failure.module == digest.to_string() => {
                    Known::Failure { limits: failure.limits, fault: failure.fault }
                }
                _ => Known::Nothing,
            });
        }
        let Some(bytes) = read_small(&directory.join(RECORD))? else {
            return Ok(Known::Nothing);
        };
        let Ok(record) = serde_json::from_slice::<Record>(&bytes) else {
            tracing::warn!(%digest, "the record of a compiled program cannot be read; it is compiled again");
            return Ok(Known::Nothing);
        };
        let (stamp, bytes, sha256) = match checksum(&directory.join(ARTIFACT)) {
            Ok(seen) => seen,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Known::Nothing),
            Err(error) => return Err(error),
        };
        if record.module != digest.to_string() || record.bytes != bytes || record.sha256 != sha256 {
            tracing::warn!(%digest, "compiled code does not match its record; it is compiled again");
            return Ok(Known::Nothing);
        }
        Ok(Known::Artifact { directory, inspection: record.inspection, stamp })
    }

    /// Begins something to be published.
    pub(crate) fn draft(&self) -> io::Result<Draft> {
        tempfile::tempdir_in(self.tmp()).map(|directory| Draft { directory })
    }

    /// Publishes the code in a draft. It is on disk, whole, before its name is.
    pub(crate) fn publish(
        &self,
        draft: Draft,
        fingerprint: &str,
        digest: &ModuleDigest,
        inspection: Inspection,
    ) -> io::Result<Known> {
        let artifact = draft.directory.path().join(ARTIFACT);
        fs::set_permissions(&artifact, Permissions::from_mode(0o444))?;
        let (_, bytes, sha256) = checksum(&artifact)?;
        File::open(&artifact)?.sync_all()?;
        let record = Record { module: digest.to_string(), bytes, sha256, inspection };
        write_json(&draft.directory.path().join(RECORD), &record)?;
        let directory = self.install(draft, fingerprint, digest)?;
        let stamp = Stamp::now(&directory)?;
        Ok(Known::Artifact { directory, inspection: record.inspection, stamp })
    }

    /// Publishes why there is no code.
    pub(crate) fn publish_failure(
        &self,
        fingerprint: &str,
        digest: &ModuleDigest,
        limits: &CompileLimits,
        fault: &Fault,
    ) -> io::Result<()> {
        let draft = self.draft()?;
        let failure =
            Failure { module: digest.to_string(), limits: limits.clone(), fault: fault.clone() };
        write_json(&draft.directory.path().join(FAILURE), &failure)?;
        self.install(draft, fingerprint, digest).map(drop)
    }

    fn install(
        &self,
        draft: Draft,
        fingerprint: &str,
        digest: &ModuleDigest,
    ) -> io::Result<PathBuf> {
        let path = draft.directory.path();
        // Sandboxes look into it under other users; the root keeps others out.
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
        File::open(path)?.sync_all()?;

        let directory = self.directory(fingerprint, digest);
        let parent = self.root.join(fingerprint);
        DirBuilder::new().recursive(true).mode(0o700).create(&parent)?;
        self.discard(&directory)?;
        fs::rename(path, &directory)?;
        // Nothing is left at the draft's path; dropping it has nothing to do.
        let _ = draft.directory.keep();
        File::open(&parent)?.sync_all()?;
        File::open(&self.root)?.sync_all()?;
        Ok(directory)
    }

    /// Takes a published directory away in one step, then deletes it. Sandboxes
    /// that have mapped it keep what they have.
    fn discard(&self, directory: &Path) -> io::Result<()> {
        let grave = tempfile::tempdir_in(self.tmp())?;
        match fs::rename(directory, grave.path().join("old")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => grave.close(),
        }
    }

    /// Forgets a module, for all engines.
    pub(crate) fn remove(&self, digest: &ModuleDigest) -> io::Result<()> {
        for fingerprint in self.fingerprints()? {
            self.discard(&self.directory(&fingerprint, digest))?;
        }
        Ok(())
    }

    /// Forgets everything that was made for other engines than this one: it
    /// will not be asked for again.
    pub(crate) fn keep_only(&self, fingerprint: &str) -> io::Result<()> {
        for other in self.fingerprints()? {
            if other != fingerprint {
                self.discard(&self.root.join(other))?;
            }
        }
        Ok(())
    }

    fn fingerprints(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            if let Ok(name) = entry?.file_name().into_string()
                && name != TMP
            {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// Reads a small file; [`None`] if there is none.
fn read_small(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match File::open(path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(RECORD_BYTES).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()
}

/// The state, size and SHA-256 of a file.
fn checksum(path: &Path) -> io::Result<(Stamp, u64, String)> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let stamp = Stamp::of(&file.metadata()?);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((stamp, bytes, hex(&hasher.finalize()))),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::ProgramKind;

    const ENGINE: &str = "engine";

    fn digest() -> ModuleDigest {
        format!("sha256:{}", "ab".repeat(32)).parse().unwrap()
    }

    fn inspection() -> Inspection {
        Inspection {
            kind: ProgramKind::Command,
            imports: vec!["a".to_owned()],
            exports: Vec::new(),
        }
    }

    fn published(store: &Store, code: &[u8]) -> PathBuf {
        let draft = store.draft().unwrap();
        draft.output().unwrap().write_all(code).unwrap();
        match store.publish(draft, ENGINE, &digest(), inspection()).unwrap() {
            Known::Artifact { directory, .. } => directory,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_whole_digest_names_a_directory() {
        for text in [
            "",
            "sha256:",
            "sha256:../../etc",
            &format!("sha256:{}", "AB".repeat(32)),
            &"ab".repeat(32),
        ] {
            assert!(text.parse::<ModuleDigest>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_was_published_is_found_with_its_modes() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().join("new")).unwrap();
        let directory = published(&store, b"code");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&root.path().join("new")), 0o700);
        assert_eq!(mode(&directory), 0o755);
        assert_eq!(mode(&directory.join(ARTIFACT)), 0o444);

        let again = Store::open(root.path().join("new")).unwrap();
        match again.load(ENGINE, &digest()).unwrap() {
            Known::Artifact { inspection: seen, stamp, .. } => {
                assert_eq!(seen, inspection());
                assert_eq!(stamp, Stamp::now(&directory).unwrap());
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(again.load("another engine", &digest()).unwrap(), Known::Nothing));
    }

    #[test]
    fn code_that_differs_from_its_record_is_nothing() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().to_owned()).unwrap();
        let directory = published(&store, b"code");
        let before = Stamp::now(&directory).unwrap();
        fs::remove_file(directory.join(ARTIFACT)).unwrap();
        fs::write(directory.join(ARTIFACT), b"evil").unwrap();
        assert_ne!(before, Stamp::now(&directory).unwrap());
        assert!(matches!(store.load(ENGINE, &digest()).unwrap(), Known::Nothing));

        // And it is replaced as a whole.
        published(&store, b"code");
        assert!(matches!(store.load(ENGINE, &digest()).unwrap(), Known::Artifact { .. }));
    }

    #[test]
    fn a_failure_is_remembered_with_its_limits_until_code_replaces_it() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().to_owned()).unwrap();
        let limits = CompileLimits::default();
        let fault = Fault::TooSlow { seconds: 7 };
        store.publish_failure(ENGINE, &digest(), &limits, &fault).unwrap();
        match store.load(ENGINE, &digest()).unwrap() {
            Known::Failure { limits: seen, fault: why } => assert_eq!((seen, why), (limits, fault)),
            other => panic!("{other:?}"),
        }
        published(&store, b"code");
        assert!(matches!(store.load(ENGINE, &digest()).unwrap(), Known::Artifact { .. }));
    }

    #[test]
    fn what_a_killed_agent_had_begun_is_cleared_away() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().to_owned()).unwrap();
        let draft = store.draft().unwrap();
        draft.output().unwrap().write_all(b"half").unwrap();
        let left = draft.directory.keep();
        Store::open(root.path().to_owned()).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn modules_and_other_engines_are_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().to_owned()).unwrap();
        let directory = published(&store, b"code");
        store.keep_only(ENGINE).unwrap();
        assert!(directory.exists());
        store.remove(&digest()).unwrap();
        assert!(!directory.exists());

        let directory = published(&store, b"code");
        store.keep_only("another engine").unwrap();
        assert!(!directory.exists());
        assert_eq!(fs::read_dir(store.tmp()).unwrap().count(), 0);
    }
}
