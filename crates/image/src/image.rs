//! An image as its users see it, and the choice of the program to run.
//!
//! Programs are found inside the image's own root: no link in an image leads out of it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::digest::{Algorithm, Hasher};
use crate::preamble::{self, NotWasm};
pub use crate::store::holds::Lease;

/// Where programs are looked for if the image sets no `PATH`.
///
/// Source: Moby, package `oci` (`DefaultPathEnv`).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image that is on this node.
///
/// Its content stays on disk while any clone of `lease` lives.
#[derive(Clone, Debug)]
pub struct Image {
    /// The canonical reference it was asked for by.
    pub reference: String,
    /// `repository@sha256:…`: the same for all references to the same image.
    pub id: String,
    /// The digest in `id`.
    pub digest: String,
    /// Size in bytes as transferred: compressed, where layers are.
    pub bytes: u64,
    /// How the image wants to be run.
    pub config: ProgramConfig,
    /// Where its content is.
    pub content: Content,
    /// Keeps the content on disk.
    pub lease: Lease,
}

/// Defaults that an image gives for running it. All empty for a plain Wasm artifact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProgramConfig {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or the program if there is no entry point.
    pub cmd: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
}

/// What an image is made of. Both are read-only and never change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// One program.
    Module {
        /// The `.wasm` file.
        path: PathBuf,
        /// Its digest, `sha256:…`.
        digest: String,
    },
    /// A root file system with programs in it.
    RootFs {
        /// Its directory.
        path: PathBuf,
    },
}

/// The program that a container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The `.wasm` file.
    pub path: PathBuf,
    /// Its digest, `sha256:…`.
    pub digest: String,
    /// The export to call instead of the usual one, from `path#export`.
    ///
    /// Source: runwasi, `containerd-shim-wasm`, `sandbox/context.rs`.
    pub entry: Option<String>,
}

/// Why an image has no such program.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ProgramError {
    #[error("image {image:?} names no program; give the container a command")]
    NoCommand { image: String },
    #[error("there is no program {program:?} in image {image:?}")]
    NotFound { image: String, program: String },
    #[error("{program:?} in image {image:?} cannot be run")]
    NotWasm {
        image: String,
        program: String,
        #[source]
        source: NotWasm,
    },
    #[error("cannot read {program:?} in image {image:?}")]
    Read {
        image: String,
        program: String,
        #[source]
        source: io::Error,
    },
}

impl ProgramError {
    /// Whether the same request may succeed later, with nothing changed here.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Read { .. } => true,
            // Content never changes.
            Self::NoCommand { .. } | Self::NotFound { .. } | Self::NotWasm { .. } => false,
        }
    }

    /// The waiting reason users see in `kubectl get pods`.
    ///
    /// Source: kubelet, `pkg/kubelet/kuberuntime/kuberuntime_container.go`, where a
    /// runtime that finds no such executable gives the same.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCommand { .. }
            | Self::NotFound { .. }
            | Self::NotWasm { .. }
            | Self::Read { .. } => "CreateContainerError",
        }
    }
}

impl Image {
    /// The program to run. `argv0` is the first word of the container's command line,
    /// after the pod's own `command` has been put in place of the image's; without it the
    /// image's entry point or command decides.
    ///
    /// An image of one program runs it whatever `argv0` says. In a root file system, a word
    /// without a slash is looked for in the working directory, in `/`, and along the image's
    /// `PATH`. Blocks: the first call for a program in a root file system reads all of it.
    ///
    /// # Errors
    ///
    /// [`ProgramError`] if there is no such program, or it is not WebAssembly.
    pub fn program(&self, argv0: Option<&str>) -> Result<Program, ProgramError> {
        let ProgramConfig { entrypoint, cmd, .. } = &self.config;
        let word = argv0.or_else(|| entrypoint.iter().chain(cmd).next().map(String::as_str));
        let (word, entry) = match word.and_then(|word| word.split_once('#')) {
            Some((word, entry)) => (Some(word), Some(entry)),
            None => (word, None),
        };
        let entry = entry.filter(|entry| !entry.is_empty()).map(str::to_owned);
        match &self.content {
            Content::Module { path, digest } => {
                Ok(Program { path: path.clone(), digest: digest.clone(), entry })
            }
            Content::RootFs { path } => {
                let Some(word) = word.filter(|word| !word.is_empty()) else {
                    return Err(ProgramError::NoCommand { image: self.reference.clone() });
                };
                let (path, digest) = self.find(path, word)?;
                Ok(Program { path, digest, entry })
            }
        }
    }

    fn find(&self, root: &Path, word: &str) -> Result<(PathBuf, String), ProgramError> {
        let read = |source| ProgramError::Read {
            image: self.reference.clone(),
            program: word.to_owned(),
            source,
        };
        for candidate in candidates(&self.config, word) {
            let Some((mut file, path)) = open_inside(root, &candidate).map_err(read)? else {
                continue;
            };
            if let Some(digest) = self.lease.known_program(&path) {
                return Ok((path, digest));
            }
            preamble::kind_of(&mut file).map_err(read)?.map_err(|source| {
                ProgramError::NotWasm {
                    image: self.reference.clone(),
                    program: word.to_owned(),
                    source,
                }
            })?;
            let digest = digest_of(&mut file).map_err(read)?;
            self.lease.remember_program(&path, &digest);
            return Ok((path, digest));
        }
        Err(ProgramError::NotFound { image: self.reference.clone(), program: word.to_owned() })
    }
}

/// The paths that a command's first word may mean, in order. Pure.
fn candidates(config: &ProgramConfig, word: &str) -> Vec<PathBuf> {
    let working = Path::new("/").join(config.working_dir.as_deref().unwrap_or("/"));
    if word.contains('/') {
        return vec![working.join(word)];
    }
    let path = config.env.iter().rev().find_map(|pair| pair.strip_prefix("PATH="));
    let folders = path.unwrap_or(DEFAULT_PATH).split(':').filter(|folder| folder.starts_with('/'));
    [working, PathBuf::from("/")]
        .into_iter()
        .chain(folders.map(PathBuf::from))
        .map(|folder| folder.join(word))
        .collect()
}

/// Opens a regular file as seen from `root` and finds its true path. None if there is none.
fn open_inside(root: &Path, path: &Path) -> io::Result<Option<(File, PathBuf)>> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, directory, Mode::empty())?;
    // A pipe or device cannot be in an image; not to wait on one costs nothing.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(&root, path, flags, Mode::empty(), inside) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL) => {
            return Ok(None);
        }
        Err(errno) => return Err(errno.into()),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok(Some((file, path)))
}

fn digest_of(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish().to_string()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::digest::Digest;

    const MODULE: &[u8] = b"\0asm\x01\0\0\0";

    fn image(root: &Path, config: ProgramConfig) -> Image {
        Image {
            reference: "h.io/a:1".to_owned(),
            id: "h.io/a@sha256:0".to_owned(),
            digest: "sha256:0".to_owned(),
            bytes: 0,
            config,
            content: Content::RootFs { path: root.to_owned() },
            lease: Lease::default(),
        }
    }

    #[test]
    fn a_program_is_found_by_path_by_working_directory_and_along_the_path() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        std::fs::create_dir_all(root.path().join("work")).unwrap();
        std::fs::write(root.path().join("app.wasm"), MODULE).unwrap();
        std::fs::write(root.path().join("usr/bin/tool"), MODULE).unwrap();
        std::fs::write(root.path().join("work/here.wasm"), MODULE).unwrap();
        let config = ProgramConfig {
            entrypoint: vec!["/app.wasm".to_owned()],
            working_dir: Some("/work".to_owned()),
            ..ProgramConfig::default()
        };
        let image = image(root.path(), config);
        let path = |argv0| image.program(argv0).map(|program| program.path);
        let real = root.path().canonicalize().unwrap();
        assert_eq!(path(None).unwrap(), real.join("app.wasm"));
        assert_eq!(path(Some("app.wasm")).unwrap(), real.join("app.wasm"));
        assert_eq!(path(Some("tool")).unwrap(), real.join("usr/bin/tool"));
        assert_eq!(path(Some("./here.wasm")).unwrap(), real.join("work/here.wasm"));
        assert_eq!(path(Some("../app.wasm")).unwrap(), real.join("app.wasm"));
        assert!(matches!(path(Some("absent")), Err(ProgramError::NotFound { .. })));
        let program = image.program(Some("/app.wasm#run")).unwrap();
        assert_eq!(program.entry.as_deref(), Some("run"));
        assert_eq!(program.digest, Digest::of(MODULE).to_string());
    }

    #[test]
    fn no_link_in_an_image_leads_out_of_it() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret.wasm"), MODULE).unwrap();
        std::fs::write(root.path().join("inside.wasm"), MODULE).unwrap();
        symlink(outside.path().join("secret.wasm"), root.path().join("absolute")).unwrap();
        symlink("../../../../../../etc/passwd", root.path().join("climbing")).unwrap();
        symlink("/inside.wasm", root.path().join("good")).unwrap();
        symlink("loop", root.path().join("loop")).unwrap();
        symlink("/proc/self/exe", root.path().join("magic")).unwrap();
        let image = image(root.path(), ProgramConfig::default());
        for name in ["/absolute", "/climbing", "/loop", "/magic", "/../../etc/passwd"] {
            let found = image.program(Some(name));
            assert!(matches!(found, Err(ProgramError::NotFound { .. })), "{name}: {found:?}");
        }
        let good = image.program(Some("/good")).unwrap();
        assert_eq!(good.path, root.path().canonicalize().unwrap().join("inside.wasm"));
    }

    #[test]
    fn what_is_not_webassembly_is_not_run() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("sh"), b"\x7fELF\x02\x01\x01\0").unwrap();
        let image = image(root.path(), ProgramConfig::default());
        let error = image.program(Some("/sh")).unwrap_err();
        assert!(matches!(error, ProgramError::NotWasm { source: NotWasm::Precompiled, .. }));
        assert!(matches!(image.program(None), Err(ProgramError::NoCommand { .. })));
    }
}
