//! Removes trees that a guest has grown.
//!
//! A guest can nest directories deeper than a path is long and than a stack
//! is; so this goes by no recursion. Each directory that is found inside
//! another is first moved to the top and then emptied there.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// Removes a file, link or directory with all that is in it. It is no error if
/// it is not there. Links are never followed, and what is mounted inside is
/// never entered: that is an error.
///
/// Nothing else may write into the tree meanwhile.
pub(crate) fn tree(path: &Path) -> io::Result<()> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.is_dir() {
        return gone(fs::remove_file(path));
    }
    // `path` itself serves as the top: its own entries are worked off one by
    // one, and what was deeper comes up under names that none of them has.
    let mut number: u64 = 0;
    loop {
        let mut deeper = false;
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                deeper |= raise_directories(path, &entry.path(), &mut number)?;
                gone(fs::remove_dir(entry.path()))?;
            } else {
                gone(fs::remove_file(entry.path()))?;
            }
        }
        if !deeper {
            break;
        }
    }
    gone(fs::remove_dir(path))
}

/// Empties a directory: removes the files in it and moves the directories to
/// `top`. Says whether there were any.
fn raise_directories(top: &Path, directory: &Path, number: &mut u64) -> io::Result<bool> {
    let mut any = false;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let target = free_name(top, number)?;
            fs::rename(entry.path(), target)?;
            any = true;
        } else {
            gone(fs::remove_file(entry.path()))?;
        }
    }
    Ok(any)
}

fn free_name(top: &Path, number: &mut u64) -> io::Result<PathBuf> {
    loop {
        *number += 1;
        let path = top.join(format!("..raised-{number}"));
        match path.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
            // A guest has used the name. It has not used all of them.
            Ok(_) => {}
        }
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{Mode, OFlags, mkdirat, openat};

    use super::*;

    #[test]
    fn links_are_removed_and_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let kept = root.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        let tree_path = root.path().join("tree");
        fs::create_dir_all(tree_path.join("a/b")).unwrap();
        fs::create_dir(tree_path.join("..raised-1")).unwrap();
        fs::write(tree_path.join("a/b/file"), "").unwrap();
        symlink(&kept, tree_path.join("a/link")).unwrap();
        tree(&tree_path).unwrap();
        assert!(!tree_path.exists());
        assert!(kept.join("file").exists());
        tree(&tree_path).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_paths_are_long_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let tree_path = root.path().join("tree");
        fs::create_dir(&tree_path).unwrap();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = openat(rustix::fs::CWD, &tree_path, flags, Mode::empty()).unwrap();
        for _ in 0..5000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", flags, Mode::empty()).unwrap();
        }
        drop(at);
        tree(&tree_path).unwrap();
        assert!(!tree_path.exists());
    }
}
