//! The guests of `guests/`: prebuilt programs, and text for the smallest ones.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the guests' sources and of what they build to.
#[must_use]
pub fn guests_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests")
}

/// The path of a prebuilt guest, such as `hello.wasm`.
///
/// # Panics
///
/// If there is none of that name.
#[must_use]
pub fn guest(name: &str) -> PathBuf {
    let path = guests_directory().join("prebuilt").join(name);
    assert!(path.is_file(), "there is no guest {name}: {} is missing", path.display());
    path
}

/// The binary of a guest written as text: `wat("exit")` is `guests/wat/exit.wat`.
///
/// # Panics
///
/// If there is none of that name, or its text is wrong.
#[must_use]
pub fn wat(name: &str) -> Vec<u8> {
    let path = guests_directory().join("wat").join(name).with_extension("wat");
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    wat::parse_str(text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn prebuilt_guests_are_those_of_the_checksums() {
        for (folder, least, mend) in [
            ("prebuilt", 3, "run guests/build.sh"),
            ("third-party", 1, "get it as guests/third-party/README.md says"),
        ] {
            let folder = guests_directory().join(folder);
            let sums = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
            assert!(sums.lines().count() >= least);
            for line in sums.lines() {
                let (sum, name) = line.split_once("  ").unwrap();
                let bytes = fs::read(folder.join(name)).unwrap();
                let seen = Sha256::digest(&bytes).iter().fold(String::new(), |mut text, byte| {
                    write!(text, "{byte:02x}").unwrap();
                    text
                });
                assert_eq!(seen, sum, "{name}: {mend}");
            }
        }
    }

    #[test]
    fn the_examples_use_the_prebuilt_guests() {
        let examples = guests_directory().join("../examples");
        for (example, name) in
            [("hello", "hello.wasm"), ("http", "http.wasm"), ("volumes", "hello.wasm")]
        {
            let copy = fs::read(examples.join(example).join(name)).unwrap();
            assert!(copy == fs::read(guest(name)).unwrap(), "{example}: run guests/build.sh");
        }
    }

    #[test]
    fn every_text_is_a_program() {
        let mut count = 0;
        for entry in fs::read_dir(guests_directory().join("wat")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(wat(name.trim_end_matches(".wat")).starts_with(b"\0asm"), "{name}");
            count += 1;
        }
        assert!(count > 5);
    }
}
