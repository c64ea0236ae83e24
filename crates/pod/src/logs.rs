//! Where the logs of containers lie. The files themselves are the runtime's.
//!
//! ```text
//! <logs>/<namespace>_<pod>_<uid>/<container>/<restart>.log
//! <links>/<pod>_<namespace>_<container>-<id>.log ──▶ the file above
//! ```
//!
//! Source: kubelet, `BuildPodLogsDirectory`, `buildContainerLogsPath` and
//! `legacyLogSymlink` in `pkg/kubelet/kuberuntime/`.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use krustlet_model::{ContainerId, ContainerName, PodKey, PodUid};

/// The longest name of a link, in bytes, before its extension. Source:
/// kubelet, `logSymlink` in `pkg/kubelet/kuberuntime/legacy.go` (255 less the
/// extension).
const LONGEST_LINK: usize = 251;

/// The directories that logs are kept in.
#[derive(Clone, Debug)]
pub struct LogPlaces {
    /// One directory per pod; kubelet's `/var/log/pods`.
    pub pods: PathBuf,
    /// Links for log collectors; kubelet's `/var/log/containers`. None for none.
    pub links: Option<PathBuf>,
}

impl LogPlaces {
    /// The directory of a pod's logs.
    #[must_use]
    pub fn pod(&self, key: &PodKey, uid: &PodUid) -> PathBuf {
        self.pods.join(format!("{}_{}_{uid}", key.namespace, key.name))
    }

    /// The log of one run of a container.
    #[must_use]
    pub fn run(
        &self,
        key: &PodKey,
        uid: &PodUid,
        container: &ContainerName,
        restart: u32,
    ) -> PathBuf {
        self.pod(key, uid).join(container.as_str()).join(file_name(restart))
    }

    /// Links a run's log for collectors. One that exists already is kept.
    ///
    /// # Errors
    ///
    /// What the system says of the link.
    pub fn link(
        &self,
        key: &PodKey,
        container: &ContainerName,
        id: &ContainerId,
        log: &Path,
    ) -> io::Result<()> {
        let Some(path) = self.link_path(key, container, id) else { return Ok(()) };
        match symlink(log, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// Removes the link of a run. One that is not there is no error.
    ///
    /// # Errors
    ///
    /// What the system says of the link.
    pub fn unlink(
        &self,
        key: &PodKey,
        container: &ContainerName,
        id: &ContainerId,
    ) -> io::Result<()> {
        let Some(path) = self.link_path(key, container, id) else { return Ok(()) };
        absent(fs::remove_file(path))
    }

    /// Removes the logs of one run: the file it wrote to last and those before.
    /// None is no error. Blocks.
    ///
    /// # Errors
    ///
    /// What the system says of a file that cannot be removed.
    pub fn remove_run(
        &self,
        key: &PodKey,
        uid: &PodUid,
        container: &ContainerName,
        restart: u32,
    ) -> io::Result<()> {
        let first = file_name(restart);
        let entries = match fs::read_dir(self.pod(key, uid).join(container.as_str())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(first.as_bytes()) {
                absent(fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    /// Removes a pod's logs. Blocks.
    ///
    /// # Errors
    ///
    /// What the system says of a file that cannot be removed.
    pub fn remove(&self, key: &PodKey, uid: &PodUid) -> io::Result<()> {
        absent(fs::remove_dir_all(self.pod(key, uid)))
    }

    /// Makes the directory of the links and removes links that lead nowhere,
    /// as an agent that was killed leaves them. Blocks.
    ///
    /// # Errors
    ///
    /// What the system says of the directory.
    pub fn sweep_links(&self) -> io::Result<()> {
        let Some(links) = &self.links else { return Ok(()) };
        fs::create_dir_all(links)?;
        for entry in fs::read_dir(links)? {
            let path = entry?.path();
            let is_ours = fs::read_link(&path).is_ok_and(|to| to.starts_with(&self.pods));
            if is_ours && !path.exists() {
                absent(fs::remove_file(path))?;
            }
        }
        Ok(())
    }

    fn link_path(
        &self,
        key: &PodKey,
        container: &ContainerName,
        id: &ContainerId,
    ) -> Option<PathBuf> {
        let mut name = format!("{}_{}_{container}-{}", key.name, key.namespace, id.digits());
        // All of it is ASCII: names of objects and hexadecimal digits.
        name.truncate(LONGEST_LINK);
        name.push_str(".log");
        self.links.as_ref().map(|links| links.join(name))
    }
}

/// The log of one run within its container's directory.
pub(crate) fn file_name(restart: u32) -> String {
    format!("{restart}.log")
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_leaves_no_logs_and_no_links() {
        let home = tempfile::tempdir().unwrap();
        let links = home.path().join("containers");
        fs::create_dir(&links).unwrap();
        let places = LogPlaces { pods: home.path().join("pods"), links: Some(links.clone()) };
        let (key, uid) = (PodKey::new("default", "web"), PodUid::new("1-2"));
        let (main, id) = (ContainerName::new("main"), ContainerId::from_bytes([0xab; 32]));

        let log = places.run(&key, &uid, &main, 3);
        assert!(log.ends_with("pods/default_web_1-2/main/3.log"));
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        fs::write(&log, "x").unwrap();
        places.link(&key, &main, &id, &log).unwrap();
        places.link(&key, &main, &id, &log).unwrap();
        let link = links.join(format!("web_default_main-{}.log", "ab".repeat(32)));
        assert_eq!(fs::read_to_string(&link).unwrap(), "x");

        places.remove(&key, &uid).unwrap();
        places.remove(&key, &uid).unwrap();
        assert!(!places.pod(&key, &uid).exists());
        places.unlink(&key, &main, &id).unwrap();
        places.unlink(&key, &main, &id).unwrap();
        assert!(link.symlink_metadata().is_err());
    }

    #[test]
    fn a_run_leaves_none_of_its_logs() {
        let home = tempfile::tempdir().unwrap();
        let places = LogPlaces { pods: home.path().to_owned(), links: None };
        let (key, uid) = (PodKey::new("default", "web"), PodUid::new("1-2"));
        let main = ContainerName::new("main");
        places.remove_run(&key, &uid, &main, 1).unwrap();

        let log = places.run(&key, &uid, &main, 1);
        let directory = log.parent().unwrap();
        fs::create_dir_all(directory).unwrap();
        for name in ["1.log", "1.log.20261123-203840", "11.log", "2.log"] {
            fs::write(directory.join(name), "x").unwrap();
        }
        places.remove_run(&key, &uid, &main, 1).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["11.log", "2.log"]);
    }

    #[test]
    fn links_that_lead_nowhere_are_swept() {
        let home = tempfile::tempdir().unwrap();
        let links = home.path().join("containers");
        let places = LogPlaces { pods: home.path().join("pods"), links: Some(links.clone()) };
        places.sweep_links().unwrap();
        symlink(places.pods.join("gone/main/0.log"), links.join("gone.log")).unwrap();
        symlink("/elsewhere/gone.log", links.join("foreign.log")).unwrap();
        places.sweep_links().unwrap();
        let left: Vec<_> = fs::read_dir(&links).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["foreign.log"], "only our own are swept");
    }

    #[test]
    fn a_links_name_fits_the_file_system() {
        let places = LogPlaces { pods: "/p".into(), links: Some("/c".into()) };
        let key = PodKey::new("n".repeat(63), "p".repeat(253));
        let path = places
            .link_path(&key, &ContainerName::new("main"), &ContainerId::from_bytes([0; 32]))
            .unwrap();
        assert_eq!(path.file_name().unwrap().len(), 255);
    }
}
