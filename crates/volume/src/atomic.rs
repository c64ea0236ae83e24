//! Swaps all files of a volume at once, under a guest that may be reading.
//!
//! The layout is that of Kubernetes' `AtomicWriter`
//! (`pkg/volume/util/atomic_writer.go`), which programs know:
//!
//! ```text
//! ..2026_11_24_10_00_00.1/   the files
//! ..data ──▶ ..2026_11_24_10_00_00.1     replaced by rename: the swap
//! KEY ──▶ ..data/KEY                     for each first part of a path
//! ```
//!
//! All links are relative, so that they hold wherever the directory is mounted.
//! What a killed agent left behind is removed by the next write.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::{payload::Payload, volumes::VolumeOwner};

/// The link that is swapped.
const DATA: &str = "..data";

/// The link's name before the rename.
const DATA_NEW: &str = "..data_tmp";

/// Makes the directory hold exactly these files. Does nothing if it does.
/// Returns whether anything changed.
pub(crate) fn write(directory: &Path, payload: &Payload, owner: VolumeOwner) -> io::Result<bool> {
    make_directory(directory, owner)?;
    let current = fs::read_link(directory.join(DATA)).ok();
    sweep(directory, current.as_deref())?;
    if let Some(current) = &current
        && holds(&directory.join(current), payload, owner)?
        && links(directory)? == first_parts(payload)
    {
        return Ok(false);
    }

    let fresh = fresh_name(directory);
    let fresh_path = directory.join(&fresh);
    make_directory(&fresh_path, owner)?;
    for (path, file) in payload {
        write_file(&fresh_path, path, &file.bytes, file.mode, owner)?;
    }
    symlink(&fresh, directory.join(DATA_NEW))?;
    fs::rename(directory.join(DATA_NEW), directory.join(DATA))?;

    // New names appear after the swap and old ones go after it: a name that a
    // reader finds always leads somewhere while it is wanted.
    let (wanted, found) = (first_parts(payload), links(directory)?);
    for name in wanted.difference(&found) {
        symlink(Path::new(DATA).join(name), directory.join(name))?;
    }
    for name in found.difference(&wanted) {
        fs::remove_file(directory.join(name))?;
    }
    if let Some(current) = current {
        remove_tree(&directory.join(current))?;
    }
    Ok(true)
}

/// A directory that its owner and everyone may look into.
fn make_directory(path: &Path, owner: VolumeOwner) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        result => result?,
    }
    // The mode given at creation is cut by the agent's own mask.
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    owner.give(path)
}

fn write_file(
    root: &Path,
    path: &str,
    bytes: &[u8],
    mode: u32,
    owner: VolumeOwner,
) -> io::Result<()> {
    use io::Write;

    let full = root.join(path);
    let mut directory = root.to_owned();
    for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
        directory.push(part);
        make_directory(&directory, owner)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&full)?;
    file.write_all(bytes)?;
    owner.give(&full)?;
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// Removes what an interrupted write left.
fn sweep(directory: &Path, current: Option<&Path>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name.to_string_lossy().starts_with("..");
        if !is_ours || name == DATA || current == Some(Path::new(&name)) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The names that users see.
fn links(directory: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") {
            names.insert(name);
        }
    }
    Ok(names)
}

fn first_parts(payload: &Payload) -> BTreeSet<String> {
    payload.keys().filter_map(|path| path.split('/').next()).map(str::to_owned).collect()
}

/// Whether a directory holds exactly these files, with their modes and owner.
fn holds(root: &Path, payload: &Payload, owner: VolumeOwner) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    let mut left = vec![PathBuf::new()];
    while let Some(relative) = left.pop() {
        let entries = match fs::read_dir(root.join(&relative)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                left.push(path);
            } else {
                found.insert(path.to_string_lossy().into_owned());
            }
        }
    }
    if !found.iter().eq(payload.keys()) {
        return Ok(false);
    }
    for (path, file) in payload {
        let full = root.join(path);
        let metadata = fs::metadata(&full)?;
        if metadata.mode() & 0o7777 != file.mode
            || metadata.len() != file.bytes.len() as u64
            || !owner.owns(&metadata)
            || fs::read(&full)? != file.bytes
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A name after the time, made unique by a number.
fn fresh_name(directory: &Path) -> String {
    let stamp = Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let mut number = 0u32;
    loop {
        let name = format!("{stamp}.{number}");
        if !directory.join(&name).exists() {
            return name;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::payload::File;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File { bytes: text.into(), mode: 0o644 };
        files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    fn write_into(directory: &Path, files: &[(&str, &str)]) -> bool {
        write(directory, &payload(files), VolumeOwner::current()).unwrap()
    }

    fn read(directory: &Path, path: &str) -> Option<String> {
        fs::read_to_string(directory.join(path)).ok()
    }

    #[test]
    fn files_appear_are_replaced_and_go() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("volume");
        assert!(write_into(&dir, &[("a", "1"), ("sub/b", "2")]));
        assert_eq!(read(&dir, "a").as_deref(), Some("1"));
        assert_eq!(read(&dir, "sub/b").as_deref(), Some("2"));
        assert!(write_into(&dir, &[("a", "3"), ("c", "4")]));
        assert_eq!(read(&dir, "a").as_deref(), Some("3"));
        assert_eq!(read(&dir, "c").as_deref(), Some("4"));
        assert_eq!(read(&dir, "sub/b"), None);
        assert!(fs::symlink_metadata(dir.join("sub")).is_err());
    }

    #[test]
    fn nothing_is_written_when_nothing_changed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("volume");
        write_into(&dir, &[("a", "1")]);
        let before = fs::read_link(dir.join(DATA)).unwrap();
        assert!(!write_into(&dir, &[("a", "1")]));
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), before);
    }

    #[test]
    fn a_changed_mode_is_a_change() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("volume");
        write_into(&dir, &[("a", "1")]);
        let mut strict = payload(&[("a", "1")]);
        strict.insert("a".into(), File { bytes: b"1".to_vec(), mode: 0o400 });
        assert!(write(&dir, &strict, VolumeOwner::current()).unwrap());
        assert_eq!(fs::metadata(dir.join("a")).unwrap().mode() & 0o777, 0o400);
    }

    #[test]
    fn what_an_interrupted_write_left_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("volume");
        write_into(&dir, &[("a", "1")]);
        // Killed after writing the new directory and link, before the rename.
        fs::create_dir(dir.join("..2020_01_01_00_00_00.0")).unwrap();
        symlink("..2020_01_01_00_00_00.0", dir.join(DATA_NEW)).unwrap();
        write_into(&dir, &[("a", "2")]);
        assert_eq!(read(&dir, "a").as_deref(), Some("2"));
        let own = fs::read_dir(&dir)
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(".."));
        assert_eq!(own.count(), 2, "..data and one directory");
    }

    #[test]
    fn a_name_that_was_not_linked_before_the_kill_is_linked() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("volume");
        write_into(&dir, &[("a", "1"), ("b", "2")]);
        fs::remove_file(dir.join("b")).unwrap();
        assert!(write_into(&dir, &[("a", "1"), ("b", "2")]));
        assert_eq!(read(&dir, "b").as_deref(), Some("2"));
    }

    proptest! {
        #[test]
        fn the_directory_ends_as_the_last_payload(
            steps in prop::collection::vec(prop::collection::btree_map("[a-c](/[a-c])?", "[xy]{0,2}", 0..4), 1..5)
        ) {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("volume");
            for step in steps {
                // A name cannot be a file and a directory at once.
                let files: Vec<_> = step
                    .iter()
                    .filter(|(path, _)| !step.keys().any(|other| other.starts_with(&format!("{path}/"))))
                    .map(|(path, text)| (path.as_str(), text.as_str()))
                    .collect();
                write_into(&dir, &files);
                for (path, text) in &files {
                    prop_assert_eq!(read(&dir, path), Some((*text).to_owned()));
                }
                prop_assert_eq!(links(&dir).unwrap(), first_parts(&payload(&files)));
            }
        }
    }
}
