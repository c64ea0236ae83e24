//! The names in a layer's archive: which are allowed, and what they mean.
//!
//! Pure. Names are bytes: an archive knows no encoding.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Longest name, in bytes: the kernel's `PATH_MAX`.
const LENGTH_LIMIT: usize = 4096;

/// Marks a file or directory of lower layers as deleted.
/// Source: OCI image specification, `layer.md`, "Whiteouts".
const WHITEOUT: &[u8] = b".wh.";
/// Marks all lower content of its directory as deleted.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of the file system that whiteouts come from; it means nothing here.
const BOOKKEEPING: &[u8] = b".wh..wh.";

/// Why a name in an archive is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum PathError {
    #[error("the name is absolute")]
    Absolute,
    #[error("the name contains `..`")]
    Climbs,
    #[error("the name contains a NUL character")]
    Nul,
    #[error("the name is longer than {LENGTH_LIMIT} bytes")]
    TooLong,
    #[error("it deletes a file without a name")]
    EmptyWhiteout,
}

/// What an entry's name asks for. Paths are relative, of plain parts only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// The root directory itself.
    Root,
    /// Something is put here.
    Put { parent: PathBuf, name: OsString },
    /// What lower layers have here goes.
    Delete { parent: PathBuf, name: OsString },
    /// All that lower layers have in here goes.
    Clear { directory: PathBuf },
    /// Nothing.
    Ignore,
}

/// Reads an entry's name.
pub(crate) fn name(bytes: &[u8]) -> Result<Name, PathError> {
    let path = plain_path(bytes)?;
    let Some(name) = path.file_name().map(OsStr::to_owned) else { return Ok(Name::Root) };
    let parent = path.parent().map(Path::to_owned).unwrap_or_default();
    let text = name.as_bytes();
    if text == OPAQUE {
        return Ok(Name::Clear { directory: parent });
    }
    if text.starts_with(BOOKKEEPING) {
        return Ok(Name::Ignore);
    }
    Ok(match text.strip_prefix(WHITEOUT) {
        None => Name::Put { parent, name },
        // `.wh..` and `.wh...` would name the directory itself and the one above.
        Some(b"" | b"." | b"..") => return Err(PathError::EmptyWhiteout),
        Some(deleted) => Name::Delete { parent, name: OsStr::from_bytes(deleted).to_owned() },
    })
}

/// A relative path of plain parts; `.` and repeated slashes are dropped.
pub(crate) fn plain_path(bytes: &[u8]) -> Result<PathBuf, PathError> {
    if bytes.len() > LENGTH_LIMIT {
        return Err(PathError::TooLong);
    }
    if bytes.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(bytes)).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err(PathError::Climbs),
            Component::RootDir | Component::Prefix(_) => return Err(PathError::Absolute),
        }
    }
    Ok(path)
}

/// What to write into a symbolic link that stands `depth` directories below the root, so
/// that it means what it would mean were the root `/`, but leads nowhere else.
///
/// The result is relative and has at most `depth` leading `..` and none elsewhere. So it also works
/// for a guest, which is refused absolute links.
pub(crate) fn contained_target(depth: usize, target: &[u8]) -> Result<PathBuf, PathError> {
    if target.len() > LENGTH_LIMIT {
        return Err(PathError::TooLong);
    }
    if target.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut up = 0;
    let mut down: Vec<&OsStr> = Vec::new();
    for part in Path::new(OsStr::from_bytes(target)).components() {
        match part {
            Component::Normal(part) => down.push(part),
            // The parent of the root is the root.
            Component::ParentDir if down.pop().is_none() => up = depth.min(up + 1),
            Component::CurDir | Component::ParentDir => {}
            Component::RootDir | Component::Prefix(_) => up = depth,
        }
    }
    let mut path: PathBuf = std::iter::repeat_n("..", up).chain([]).collect();
    path.extend(down);
    if path.as_os_str().is_empty() {
        path.push(".");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(parent: &str, name: &str) -> Name {
        Name::Put { parent: parent.into(), name: name.into() }
    }

    #[test]
    fn names_are_read() {
        assert_eq!(name(b"app.wasm"), Ok(put("", "app.wasm")));
        assert_eq!(name(b"./a//b/./c/"), Ok(put("a/b", "c")));
        assert_eq!(name(b"./"), Ok(Name::Root));
        let deleted = Name::Delete { parent: "a".into(), name: "b".into() };
        assert_eq!(name(b"a/.wh.b"), Ok(deleted));
        assert_eq!(name(b"a/.wh..wh..opq"), Ok(Name::Clear { directory: "a".into() }));
        assert_eq!(name(b".wh..wh..opq"), Ok(Name::Clear { directory: "".into() }));
        assert_eq!(name(b"a/.wh..wh.plnk"), Ok(Name::Ignore));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        assert_eq!(name(b"/etc/passwd"), Err(PathError::Absolute));
        assert_eq!(name(b"a/../../b"), Err(PathError::Climbs));
        assert_eq!(name(b".."), Err(PathError::Climbs));
        assert_eq!(name(b"a\0b"), Err(PathError::Nul));
        assert_eq!(name(b"a/.wh..."), Err(PathError::EmptyWhiteout));
        assert_eq!(name(b"a/.wh.."), Err(PathError::EmptyWhiteout));
        assert_eq!(name(b".wh."), Err(PathError::EmptyWhiteout));
        assert_eq!(name(&[b'a'; 5000]), Err(PathError::TooLong));
    }

    #[test]
    fn links_are_kept_inside() {
        let target = |depth, text: &str| contained_target(depth, text.as_bytes()).unwrap();
        assert_eq!(target(0, "/usr/bin"), Path::new("usr/bin"));
        assert_eq!(target(2, "/usr/bin"), Path::new("../../usr/bin"));
        assert_eq!(target(1, "../../../etc/passwd"), Path::new("../etc/passwd"));
        assert_eq!(target(0, "../x"), Path::new("x"));
        assert_eq!(target(3, "../lib/x"), Path::new("../lib/x"));
        assert_eq!(target(1, "a/../../../b"), Path::new("../b"));
        assert_eq!(target(0, "/"), Path::new("."));
    }

    proptest! {
        #[test]
        fn no_accepted_name_climbs_or_is_absolute(
            bytes in prop::collection::vec(prop::sample::select(b"ab./\0w h".to_vec()), 0..40)
        ) {
            let plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
            match name(&bytes) {
                Ok(Name::Put { parent, name } | Name::Delete { parent, name }) => {
                    prop_assert!(plain(&parent));
                    prop_assert!(plain(Path::new(&name)) && Path::new(&name).components().count() == 1);
                }
                Ok(Name::Clear { directory }) => prop_assert!(plain(&directory)),
                Ok(Name::Root | Name::Ignore) | Err(_) => {}
            }
        }

        #[test]
        fn no_link_climbs_above_the_root(depth in 0_usize..6, target in "[ab./]{0,40}") {
            let path = contained_target(depth, target.as_bytes()).unwrap();
            prop_assert!(path.is_relative());
            let parts: Vec<_> = path.components().collect();
            let up = parts.iter().take_while(|part| **part == Component::ParentDir).count();
            prop_assert!(up <= depth);
            prop_assert!(!parts[up..].contains(&Component::ParentDir));
        }
    }
}
