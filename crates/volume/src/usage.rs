//! How much of the disk a tree takes that a guest may be changing meanwhile.
//!
//! Goes from open directory to open directory, never by a path that the guest
//! could lead elsewhere, and has bounds: what a guest may make without end, the
//! agent must not walk without end.

use std::{collections::HashSet, io, path::Path};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat},
    io::Errno,
};

/// Directories within each other, each of which is an open descriptor.
const DEEPEST: usize = 256;

/// Files and directories: about a second's work.
const MOST: u64 = 1_000_000;

/// Bytes of a block as `stat` counts them, whatever the file system's are.
const BLOCK: u64 = 512;

/// Why the use of a tree is not known.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum UsageError {
    #[error("more than {DEEPEST} directories within each other")]
    TooDeep,

    #[error("more than {MOST} files")]
    TooMany,

    #[error("the disk cannot be read")]
    Disk(#[from] io::Error),
}

/// The bytes that a directory takes with everything below it, as `du` counts
/// them: a file of several names counts once. 0 if it is not there. Links are
/// not followed, and what is mounted below is not entered. Blocks.
///
/// # Errors
///
/// [`UsageError`], which says whether the tree has outgrown what is walked.
pub fn disk_usage(path: &Path) -> Result<u64, UsageError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match openat(CWD, path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(0),
        opened => opened.map_err(io::Error::from)?,
    };
    let metadata = fstat(&top).map_err(io::Error::from)?;
    let (device, mut bytes) = (metadata.st_dev, blocks(&metadata));
    let mut seen = 0;
    // Bounded by the number of files that are looked at: some 16 MiB. Names
    // that lie outside the tree do no harm.
    let mut counted = HashSet::new();
    let mut open = vec![Dir::new(top).map_err(io::Error::from)?];
    loop {
        let depth = open.len();
        let Some(directory) = open.last_mut() else { return Ok(bytes) };
        let Some(entry) = directory.read() else {
            open.pop();
            continue;
        };
        let entry = entry.map_err(io::Error::from)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        seen += 1;
        if seen > MOST {
            return Err(UsageError::TooMany);
        }
        let above = directory.fd().map_err(io::Error::from)?;
        let metadata = match statat(above, name, AtFlags::SYMLINK_NOFOLLOW) {
            // The guest was faster.
            Err(Errno::NOENT) => continue,
            metadata => metadata.map_err(io::Error::from)?,
        };
        if metadata.st_dev != device {
            continue;
        }
        let is_directory = FileType::from_raw_mode(metadata.st_mode) == FileType::Directory;
        // A directory has one name, and a link for each directory in it.
        let has_names = !is_directory && metadata.st_nlink > 1;
        if !has_names || counted.insert(metadata.st_ino) {
            bytes += blocks(&metadata);
        }
        if !is_directory {
            continue;
        }
        if depth >= DEEPEST {
            return Err(UsageError::TooDeep);
        }
        let below = openat(above, name, flags, Mode::empty());
        match below {
            Ok(below) => open.push(Dir::new(below).map_err(io::Error::from)?),
            // It is something else by now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

fn blocks(metadata: &rustix::fs::Stat) -> u64 {
    u64::try_from(metadata.st_blocks).unwrap_or_default() * BLOCK
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn what_lies_below_counts_and_what_links_lead_to_does_not() {
        let root = tempfile::tempdir().unwrap();
        let (tree, other) = (root.path().join("tree"), root.path().join("other"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), vec![1; 1 << 20]).unwrap();
        symlink(&other, tree.join("a/link")).unwrap();
        symlink(&tree, tree.join("a/loop")).unwrap();
        let empty = disk_usage(&tree).unwrap();
        assert!(empty < 1 << 20, "{empty}");
        fs::write(tree.join("a/b/file"), vec![1; 3 << 20]).unwrap();
        let full = disk_usage(&tree).unwrap();
        assert!((3 << 20..4 << 20).contains(&(full - empty)), "{full} after {empty}");
        assert_eq!(disk_usage(&root.path().join("none")).unwrap(), 0);
    }

    #[test]
    fn a_file_of_several_names_counts_once() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path();
        fs::create_dir(tree.join("a")).unwrap();
        fs::write(tree.join("file"), vec![1; 1 << 20]).unwrap();
        let one = disk_usage(tree).unwrap();
        for name in ["again", "a/again", "a/once-more"] {
            fs::hard_link(tree.join("file"), tree.join(name)).unwrap();
        }
        let linked = disk_usage(tree).unwrap();
        assert!(linked < one + (1 << 20), "{linked} after {one}");
        fs::write(tree.join("a/other"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(tree.join("a/other"), tree.join("other")).unwrap();
        let two = disk_usage(tree).unwrap();
        assert!((1 << 20..2 << 20).contains(&(two - linked)), "{two} after {linked}");
    }

    #[test]
    fn a_tree_too_deep_to_walk_is_said_to_be() {
        let root = tempfile::tempdir().unwrap();
        let mut path = root.path().to_owned();
        for _ in 0..DEEPEST - 1 {
            path.push("d");
        }
        fs::create_dir_all(&path).unwrap();
        assert!(disk_usage(root.path()).is_ok());
        fs::create_dir(path.join("d")).unwrap();
        assert!(matches!(disk_usage(root.path()), Err(UsageError::TooDeep)));
    }
}
