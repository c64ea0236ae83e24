use std::os::unix::fs::symlink;

use super::*;
use crate::VolumeOwner;

struct Bed {
    home: tempfile::TempDir,
    volumes: Volumes,
}

impl Bed {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("volumes/v")).unwrap();
        let volumes = Volumes::new(home.path(), VolumeOwner::current());
        Self { home, volumes }
    }

    fn mount(&self, guest: &str, writable: bool) -> VolumeMountDir {
        let (host, of) = (self.volumes.directory("v"), ("v".to_owned(), String::new()));
        VolumeMountDir { host, guest: guest.to_owned(), writable, of, _held: None }
    }

    fn image(&self) -> PathBuf {
        let image = self.home.path().join("image");
        fs::create_dir_all(image.join("dev")).unwrap();
        fs::write(image.join("dev/null"), "").unwrap();
        fs::create_dir_all(image.join("tmp")).unwrap();
        image
    }

    fn read(&self, path: &str, place: &MessagePlace) -> io::Result<String> {
        let bytes = self.volumes.message(&run(path, 0), place, 10)?;
        Ok(String::from_utf8(bytes).unwrap())
    }
}

fn run(path: &str, restart: u32) -> MessageRun<'_> {
    MessageRun { container: "main", restart, path }
}

#[test]
fn a_run_has_a_directory_of_its_own_for_its_message() {
    let bed = Bed::new();
    let file = bed.volumes.make_message(&run("/dev/termination-log", 0), None, &[]).unwrap();
    let directory = file.directory.unwrap();
    assert_eq!((directory.guest.as_str(), directory.writable), ("/dev", true));
    assert_eq!(bed.read("/dev/termination-log", &file.place).unwrap(), "");
    fs::write(directory.host.join("termination-log"), "0123456789abc").unwrap();
    assert_eq!(bed.read("/dev/termination-log", &file.place).unwrap(), "3456789abc", "its end");

    let next = bed.volumes.make_message(&run("/dev/termination-log", 1), None, &[]).unwrap();
    assert_eq!(bed.read("/dev/termination-log", &file.place).unwrap(), "", "it is gone");
    assert_ne!(next.directory.unwrap().host, directory.host);
    bed.volumes.tear_down().unwrap();
    assert!(!bed.home.path().join("containers").exists());
}

#[test]
fn a_volume_that_may_be_written_holds_the_file_itself() {
    let bed = Bed::new();
    let inside = bed.volumes.directory("v");
    fs::write(inside.join("message"), "from an earlier run").unwrap();
    let mounts = [bed.mount("/", true), bed.mount("/tmp", true)];
    let file = bed.volumes.make_message(&run("/tmp/message", 0), None, &mounts).unwrap();
    assert!(file.directory.is_none());
    assert_eq!(bed.read("/tmp/message", &file.place).unwrap(), "", "it is empty at the start");
    fs::write(inside.join("message"), "done").unwrap();
    assert_eq!(bed.read("/tmp/message", &file.place).unwrap(), "done");

    let file = bed.volumes.make_message(&run("/tmp/a/b/message", 0), None, &mounts).unwrap();
    let path = "a/b/message".to_owned();
    assert_eq!(file.place, MessagePlace::Volume { volume: "v".to_owned(), path });
    assert!(inside.join("a/b/message").exists());
}

#[test]
fn what_guests_put_in_the_place_of_the_file_leads_nowhere() {
    let bed = Bed::new();
    let (inside, mounts) = (bed.volumes.directory("v"), [bed.mount("/tmp", true)]);
    let secret = bed.home.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let make = || bed.volumes.make_message(&run("/tmp/message", 0), None, &mounts);
    let place = make().unwrap().place;

    fs::remove_file(inside.join("message")).unwrap();
    symlink(&secret, inside.join("message")).unwrap();
    assert!(bed.read("/tmp/message", &place).is_err());
    assert!(matches!(make().unwrap_err(), VolumeError::Message { .. }));
    fs::remove_file(inside.join("message")).unwrap();
    fs::create_dir(inside.join("message")).unwrap();
    assert!(bed.read("/tmp/message", &place).is_err());
    fs::remove_dir(inside.join("message")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        inside.join("message"),
        FileType::Fifo,
        Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    assert!(bed.read("/tmp/message", &place).is_err(), "nobody waits for a writer");

    symlink(bed.home.path(), inside.join("out")).unwrap();
    let place = MessagePlace::Volume { volume: "v".to_owned(), path: "out/secret".to_owned() };
    assert!(bed.read("/tmp/out/secret", &place).is_err());
    assert!(bed.volumes.make_message(&run("/tmp/out/secret", 0), None, &mounts).is_err());
    assert_eq!(fs::read_to_string(secret).unwrap(), "secret");
}

#[test]
fn nothing_of_the_image_is_hidden_but_dev() {
    let bed = Bed::new();
    let image = bed.image();
    let make = |path: &str| bed.volumes.make_message(&run(path, 0), Some(&image), &[]);
    for (path, guest) in [
        ("/dev/termination-log", "/dev"),
        ("/dev/../dev//log", "/dev"),
        ("/tmp/message", "/tmp"),
        ("/new/message", "/new"),
    ] {
        assert_eq!(make(path).unwrap().directory.unwrap().guest, guest, "{path}");
    }
    for path in ["/message", "/dev/null/message"] {
        assert!(matches!(make(path).unwrap_err(), VolumeError::MessageHides { .. }), "{path}");
    }
    for path in ["/", "/..", "/a/.."] {
        assert!(matches!(make(path).unwrap_err(), VolumeError::MessagePath { .. }), "{path}");
    }
    assert!(image.join("dev/null").exists());
}

#[test]
fn a_read_only_volume_is_neither_written_nor_hidden() {
    let bed = Bed::new();
    fs::create_dir(bed.volumes.directory("v").join("full")).unwrap();
    fs::write(bed.volumes.directory("v").join("full/file"), "").unwrap();
    let mounts = [bed.mount("/conf", false)];
    let make = |path: &str| bed.volumes.make_message(&run(path, 0), None, &mounts);
    for path in ["/conf/message", "/conf/full/message"] {
        let error = make(path).unwrap_err();
        assert!(matches!(&error, VolumeError::MessageReadOnly { volume, .. } if volume == "v"));
    }
    assert_eq!(make("/conf/new/message").unwrap().directory.unwrap().guest, "/conf/new");
    assert!(!bed.volumes.directory("v").join("new").exists());
}
