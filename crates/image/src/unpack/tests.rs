use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

/// An entry by name, kind and target; files hold their own name.
type Entry = (String, EntryType, String);

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, target) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4711);
        header.set_mtime(1);
        let content = if *kind == EntryType::Regular { name.as_bytes() } else { b"" };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn layer(entries: &[Entry]) -> Layer {
    let bytes = archive(entries);
    let mut archive = tempfile::tempfile().unwrap();
    archive.write_all(&bytes).unwrap();
    std::io::Seek::rewind(&mut archive).unwrap();
    Layer { archive, compression: Compression::None, diff_id: Digest::of(&bytes) }
}

fn file(name: &str) -> Entry {
    (name.to_owned(), EntryType::Regular, String::new())
}

fn link(name: &str, target: &str) -> Entry {
    (name.to_owned(), EntryType::Symlink, target.to_owned())
}

/// Everything below a directory: files with their text, links with their target.
fn contents(directory: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, directory: &Path, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let kind = path.symlink_metadata().unwrap();
            if kind.is_dir() {
                found.insert(format!("{name}/"), String::new());
                walk(root, &path, found);
            } else if kind.is_symlink() {
                let target = std::fs::read_link(&path).unwrap();
                found.insert(name, format!("-> {}", target.display()));
            } else {
                found.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(directory, directory, &mut found);
    found
}

fn unpacked(layers: &[&[Entry]]) -> BTreeMap<String, String> {
    let root = tempfile::tempdir().unwrap();
    let layers = layers.iter().map(|entries| layer(entries)).collect();
    unpack(root.path(), layers, &Budget::new(1 << 20, 1000)).unwrap();
    contents(root.path())
}

fn names(layers: &[&[Entry]]) -> Vec<String> {
    unpacked(layers).into_keys().collect()
}

#[test]
fn a_deletion_is_of_lower_layers_whatever_its_place_in_the_archive() {
    let low = [file("a"), file("d/x"), file("d/y")];
    assert_eq!(names(&[&low, &[file(".wh.a"), file("d/.wh.x")]]), ["d/", "d/y"]);
    assert_eq!(names(&[&low, &[file("a"), file(".wh.a")]]), ["a", "d/", "d/x", "d/y"]);
    assert_eq!(names(&[&low, &[file("d/new"), file(".wh.d")]]), ["a", "d/", "d/new"]);
    assert_eq!(names(&[&low, &[file("absent/.wh.x")]]), ["a", "d/", "d/x", "d/y"]);
}

#[test]
fn an_opaque_directory_keeps_only_its_own_layer() {
    let low = [file("d/x"), file("d/sub/y"), file("e")];
    let high = [file("d/sub/new"), file("d/.wh..wh..opq")];
    assert_eq!(names(&[&low, &high]), ["d/", "d/sub/", "d/sub/new", "e"]);
    assert_eq!(names(&[&low, &[file(".wh..wh..opq"), file("f")]]), ["f"]);
}

#[test]
fn a_file_takes_the_place_of_what_was_there() {
    let low = [file("a/x"), link("b", "a"), file("c")];
    let high = [file("a"), file("b"), (("c/").to_owned(), EntryType::Directory, String::new())];
    let found = unpacked(&[&low, &high]);
    assert_eq!(found.get("a").map(String::as_str), Some("a"));
    assert_eq!(found.get("b").map(String::as_str), Some("b"));
    assert!(found.contains_key("c/"));
    assert!(!found.contains_key("a/x"));
}

#[test]
fn rights_are_plain_and_dates_are_kept() {
    let root = tempfile::tempdir().unwrap();
    unpack(root.path(), vec![layer(&[file("d/a")])], &Budget::new(1 << 20, 10)).unwrap();
    let metadata = std::fs::metadata(root.path().join("d/a")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
    assert_eq!(metadata.modified().unwrap(), UNIX_EPOCH + Duration::from_secs(1));
    let directory = std::fs::metadata(root.path().join("d")).unwrap();
    assert_eq!(directory.permissions().mode() & 0o7777, 0o755);
}

#[test]
fn a_sparse_file_is_refused_before_its_holes_are_read() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("a").unwrap();
    header.set_size(0);
    let endless = header.as_gnu_mut().unwrap();
    // 2^60 bytes, all of them a hole.
    endless.realsize = [0x80, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0];
    endless.sparse[0].offset = [0x80, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0];
    endless.sparse[0].numbytes = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, std::io::empty()).unwrap();
    let bytes = builder.into_inner().unwrap();
    let mut archive = tempfile::tempfile().unwrap();
    archive.write_all(&bytes).unwrap();
    std::io::Seek::rewind(&mut archive).unwrap();
    let layer = Layer { archive, compression: Compression::None, diff_id: Digest::of(&bytes) };
    let root = tempfile::tempdir().unwrap();
    let refused = unpack(root.path(), vec![layer], &Budget::new(1 << 20, 10));
    // Either the archive reader finds it damaged, or it is refused by kind.
    assert!(
        matches!(refused, Err((1, UnpackError::Kind { .. } | UnpackError::Read { .. }))),
        "{refused:?}"
    );
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let part = || {
        prop::sample::select(vec!["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq", "canary"])
    };
    let path = || prop::collection::vec(part(), 1..5).prop_map(|parts| parts.join("/"));
    let kind = prop::sample::select(vec![
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Symlink,
        EntryType::Link,
    ]);
    (path(), kind, path())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_archive_changes_anything_outside_its_root(
        layers in prop::collection::vec(prop::collection::vec(any_entry(), 0..8), 1..4)
    ) {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("canary"), "sings").unwrap();
        std::fs::create_dir(outside.path().join("a")).unwrap();
        let root = outside.path().join("root");
        std::fs::create_dir(&root).unwrap();
        for entries in &layers {
            // Whatever is refused: what came before it must not have got out either.
            let _ = unpack(&root, vec![layer(entries)], &Budget::new(1 << 20, 1000));
        }
        let mut found = contents(outside.path());
        found.retain(|name, _| !name.starts_with("root/"));
        let expected = [("a/".to_owned(), String::new()), ("canary".to_owned(), "sings".to_owned())];
        prop_assert_eq!(found, BTreeMap::from(expected));
        // No link that was made leads out, whoever follows it. A loop leads nowhere.
        for (name, _) in contents(&root).iter().filter(|(_, text)| text.starts_with("-> ")) {
            if let Ok(target) = std::fs::canonicalize(root.join(name)) {
                prop_assert!(target.starts_with(root.canonicalize().unwrap()), "{name} leads to {target:?}");
            }
        }
    }
}
