//! The directory of Services on disk.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File as DiskFile, Permissions},
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use krustlet_protocol::services::{ADDRESSES, COMPLETE, MAX_SERVICE, NAMES};

use super::table::{File, Table};

/// What a file is called until it is whole. No address or name has a dot first.
pub(super) const UNFINISHED: &str = ".unfinished";

/// Sandboxes have users of their own; nobody else can get at the directory, for
/// those above it are the agent's alone.
const DIRECTORY: u32 = 0o755;
const FILE: u32 = 0o644;

/// See the module.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    /// What each file holds, by a hash that nobody outside can aim at.
    written: HashMap<String, u64>,
    hasher: RandomState,
    /// Whether those that should not be there are gone.
    is_clean: bool,
}

/// Makes what is missing of the directories.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    for one in [directory.to_owned(), directory.join(ADDRESSES), directory.join(NAMES)] {
        DirBuilder::new().recursive(true).mode(DIRECTORY).create(&one)?;
        // Whatever the umask is.
        fs::set_permissions(&one, Permissions::from_mode(DIRECTORY))?;
    }
    Ok(())
}

/// This boot's own name.
fn boot() -> io::Result<Vec<u8>> {
    fs::read("/proc/sys/kernel/random/boot_id")
}

/// What was written before the machine was started may be long out of date, or
/// have been lost half: no sandbox has seen it, and one that finds a file does not
/// ask whether all are there. What this boot did not complete goes too: nobody
/// knows when it was written.
fn forget_earlier_boots(directory: &Path) -> io::Result<()> {
    let complete = directory.join(COMPLETE);
    match fs::read(&complete) {
        Ok(of) if of == boot()? => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for part in [ADDRESSES, NAMES] {
        for entry in fs::read_dir(directory.join(part))? {
            fs::remove_file(entry?.path())?;
        }
    }
    // Last: if this is broken off, it is begun again.
    match fs::remove_file(complete) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Files {
    /// Makes the directory if need be, and reads what is there.
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        make(&directory)?;
        forget_earlier_boots(&directory)?;
        let mut files = Self {
            directory,
            written: HashMap::new(),
            hasher: RandomState::new(),
            is_clean: false,
        };
        for part in [ADDRESSES, NAMES] {
            for entry in fs::read_dir(files.directory.join(part))? {
                let Ok(name) = entry?.file_name().into_string() else { continue };
                let path = format!("{part}/{name}");
                let mut bytes = Vec::new();
                let file = DiskFile::open(files.directory.join(&path))?;
                file.take(MAX_SERVICE as u64).read_to_end(&mut bytes)?;
                let hash = files.hasher.hash_one(&bytes);
                files.written.insert(path, hash);
            }
        }
        Ok(files)
    }

    /// Whether an agent has written all that there was once.
    pub(super) fn are_complete(&self) -> bool {
        self.directory.join(COMPLETE).exists()
    }

    /// Writes what is due. What could not be written is due as before.
    ///
    /// # Errors
    ///
    /// What the system said of the first that could not be written.
    pub(super) fn write(&mut self, table: &mut Table) -> io::Result<()> {
        let mut result = Ok(());
        for file in table.due().cloned().collect::<Vec<File>>() {
            // The API server takes no such names.
            let Some(path) = file.path() else {
                table.is_written(&file);
                continue;
            };
            match table.contents(&file).map_err(io::Error::from).and_then(|c| self.put(path, c)) {
                Ok(()) => table.is_written(&file),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result?;
        if !self.is_clean {
            let wanted = table.paths();
            let stale: Vec<String> =
                self.written.keys().filter(|path| !wanted.contains(*path)).cloned().collect();
            stale.into_iter().try_for_each(|path| self.put(path, None))?;
            self.publish(COMPLETE, &boot()?)?;
            self.is_clean = true;
        }
        Ok(())
    }

    fn put(&mut self, path: String, contents: Option<Vec<u8>>) -> io::Result<()> {
        let Some(contents) = contents else {
            match fs::remove_file(self.directory.join(&path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            self.written.remove(&path);
            return Ok(());
        };
        let hash = self.hasher.hash_one(&contents);
        if self.written.get(&path) != Some(&hash) {
            self.publish(&path, &contents)?;
            self.written.insert(path, hash);
        }
        Ok(())
    }

    /// Whoever opens it sees the old or the new one, whole. It need not outlast
    /// a crash of the machine: no sandbox does.
    fn publish(&self, path: &str, contents: &[u8]) -> io::Result<()> {
        let unfinished = self.directory.join(UNFINISHED);
        let mut options = DiskFile::options();
        let mut file =
            options.create(true).truncate(true).write(true).mode(FILE).open(&unfinished)?;
        file.set_permissions(Permissions::from_mode(FILE))?;
        file.write_all(contents)?;
        drop(file);
        fs::rename(unfinished, self.directory.join(path))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use krustlet_model::services::{Here, Services, Slices};
    use serde_json::json;

    use super::*;

    fn services(addresses: &[&str]) -> Services {
        let service = |address: &&str| {
            let name = address.replace('.', "-");
            let spec = json!({"clusterIP": address, "ports": [{"port": 80}]});
            let metadata = json!({"namespace": "n", "name": format!("s-{name}")});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
        };
        addresses.iter().map(service).collect()
    }

    fn write(files: &mut Files, addresses: &[&str]) {
        let mut table = Table::default();
        table.update(&services(addresses), &Slices::new(), &Here::default());
        files.write(&mut table).unwrap();
        assert_eq!(table.due().count(), 0);
    }

    fn inode(home: &Path, path: &str) -> Option<u64> {
        fs::metadata(home.join(path)).ok().map(|metadata| metadata.ino())
    }

    #[test]
    fn a_new_agent_writes_what_differs_and_removes_what_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let mut files = Files::open(home.to_owned()).unwrap();
        assert!(!files.are_complete());
        write(&mut files, &["10.96.0.1", "10.96.0.2"]);
        assert!(files.are_complete());
        let before = ["addresses/10.96.0.1", "names/n.s-10-96-0-1"].map(|path| inode(home, path));
        assert!(before.iter().all(Option::is_some));
        // Left half-way by an agent that was killed, or by somebody else.
        fs::write(home.join("addresses/odd"), "x").unwrap();
        fs::write(home.join(UNFINISHED), "x").unwrap();
        fs::write(home.join("addresses/10.96.0.3"), "{}").unwrap();

        let mut files = Files::open(home.to_owned()).unwrap();
        write(&mut files, &["10.96.0.1", "10.96.0.3"]);
        let after = ["addresses/10.96.0.1", "names/n.s-10-96-0-1"].map(|path| inode(home, path));
        assert_eq!(before, after, "what is as it should be is not touched");
        for gone in ["addresses/10.96.0.2", "names/n.s-10-96-0-2", "addresses/odd", UNFINISHED] {
            assert_eq!(inode(home, gone), None, "{gone}");
        }
        assert_ne!(fs::read(home.join("addresses/10.96.0.3")).unwrap(), b"{}");
    }

    #[test]
    fn what_was_written_before_the_machine_was_started_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let written = ["addresses/10.96.0.1", "names/n.s-10-96-0-1"];
        let are_there = || written.map(|path| home.join(path).exists());
        // Complete then, or not even that.
        let earlier: [&dyn Fn(); 2] =
            [&|| fs::write(home.join(COMPLETE), "another boot").unwrap(), &|| {
                fs::remove_file(home.join(COMPLETE)).unwrap();
            }];
        for begin_again in earlier {
            let mut files = Files::open(home.to_owned()).unwrap();
            write(&mut files, &["10.96.0.1"]);
            assert!(Files::open(home.to_owned()).unwrap().are_complete());
            assert_eq!(are_there(), [true, true]);
            begin_again();
            assert!(!Files::open(home.to_owned()).unwrap().are_complete());
            assert_eq!(are_there(), [false, false], "a sandbox would follow them");
        }
    }

    #[test]
    fn everybody_may_read_and_only_the_agent_write() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("services");
        let mut files = Files::open(directory.clone()).unwrap();
        write(&mut files, &["10.96.0.1"]);
        let mode = |path: &str| fs::metadata(directory.join(path)).unwrap().mode() & 0o777;
        for path in ["", ADDRESSES, NAMES] {
            assert_eq!(mode(path), DIRECTORY, "{path}");
        }
        for path in [COMPLETE, "addresses/10.96.0.1"] {
            assert_eq!(mode(path), FILE, "{path}");
        }
    }
}
