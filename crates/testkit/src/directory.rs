//! Directories for tests.

use tempfile::TempDir;

/// A new empty directory, removed when dropped.
///
/// Its path is short: one of a unix socket has at most 107 bytes.
///
/// # Panics
///
/// If it cannot be made.
#[must_use]
pub fn directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("kt")
        .tempdir()
        .expect("a directory for temporary files can be made")
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_test_gets_an_empty_directory_of_its_own() {
        let (a, b) = (super::directory(), super::directory());
        assert_ne!(a.path(), b.path());
        assert_eq!(std::fs::read_dir(a.path()).unwrap().count(), 0);
    }
}
