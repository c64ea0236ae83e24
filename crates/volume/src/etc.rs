//! The files that programs with a resolver of their own look for in `/etc`.
//!
//! A kubelet mounts single files over those of an image. A guest is given
//! directories only, so it gets these where nothing is hidden by them: where no
//! mount is at `/etc` and the image has nothing there. Volumes below `/etc` are
//! seen beside them.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use crate::{error::VolumeError, message::is_covered, mounts::VolumeMountDir, volumes::Volumes};

/// The files by name, with what is in them.
pub type EtcFiles = Vec<(&'static str, String)>;

/// Where guests find them.
const GUEST: &str = "/etc";

/// What a file is called until it is whole.
const UNFINISHED: &str = ".new";

/// See [`Volumes::make_etc`].
pub(crate) fn make<E: From<VolumeError>>(
    volumes: &Volumes,
    files: impl FnOnce() -> Result<EtcFiles, E>,
    image_root: Option<&Path>,
    mounts: &[VolumeMountDir],
) -> Result<Option<VolumeMountDir>, E> {
    if is_covered(Path::new(GUEST), image_root, mounts).map_err(VolumeError::Etc)? {
        return Ok(None);
    }
    let directory = volumes.etc();
    write(directory, &files()?).map_err(VolumeError::Etc)?;
    Ok(Some(VolumeMountDir::own(directory.to_owned(), GUEST.to_owned(), false)))
}

/// Each file is swapped whole: another container of the pod may be reading.
fn write(directory: &Path, files: &[(&str, String)]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    for (name, text) in files {
        let path = directory.join(name);
        if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            continue;
        }
        let unfinished = directory.join(format!("{name}{UNFINISHED}"));
        let mut options = fs::File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o644).open(&unfinished);
        io::Write::write_all(&mut file?, text.as_bytes())?;
        fs::rename(&unfinished, &path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::VolumeOwner;

    fn files(hosts: &str) -> EtcFiles {
        vec![("hosts", hosts.to_owned()), ("hostname", "p\n".to_owned())]
    }

    #[test]
    fn a_guest_has_its_pods_files_where_they_hide_nothing() {
        let home = tempfile::tempdir().unwrap();
        let (pod, image) = (home.path().join("pod"), home.path().join("image"));
        let volumes = Volumes::new(&pod, VolumeOwner::current());
        let asked = Cell::new(0);
        let files_for = |root: Option<&Path>, mounts: &[VolumeMountDir], hosts| {
            let files = || {
                asked.set(asked.get() + 1);
                Ok::<_, VolumeError>(files(hosts))
            };
            volumes.make_etc(files, root, mounts).unwrap()
        };
        let read = |name: &str| fs::read_to_string(pod.join("etc").join(name)).unwrap();
        let made = files_for(None, &[], "127.0.0.1\tlocalhost\n").unwrap();
        assert_eq!((made.guest.as_str(), made.writable), ("/etc", false));
        assert_eq!(made.host, pod.join("etc"));
        assert_eq!(
            (read("hosts").as_str(), read("hostname").as_str()),
            ("127.0.0.1\tlocalhost\n", "p\n")
        );
        // Anew for each container.
        files_for(None, &[], "10.0.0.1\tp\n").unwrap();
        assert_eq!(read("hosts"), "10.0.0.1\tp\n");
        assert_eq!(fs::read_dir(pod.join("etc")).unwrap().count(), 2);

        let mount =
            |guest: &str| VolumeMountDir::own(home.path().join("volume"), guest.to_owned(), false);
        fs::create_dir(home.path().join("volume")).unwrap();
        assert!(files_for(None, &[mount("/etc")], "").is_none());
        assert!(files_for(None, &[mount("/etc/tls"), mount("/data")], "").is_some());
        fs::create_dir_all(image.join("etc")).unwrap();
        assert!(files_for(Some(&image), &[], "").is_some(), "an empty one hides nothing");
        fs::write(image.join("etc/passwd"), "").unwrap();
        assert!(files_for(Some(&image), &[], "").is_none());
        assert_eq!(asked.get(), 4, "what nobody sees need not be known");

        volumes.tear_down().unwrap();
        assert!(!pod.join("etc").exists());
    }
}
