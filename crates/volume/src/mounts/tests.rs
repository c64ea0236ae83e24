use std::{collections::BTreeMap, fs, os::unix::fs::symlink};

use serde_json::json;

use super::*;
use crate::payload::Sources;

struct Set {
    directory: tempfile::TempDir,
    volumes: Volumes,
    pod: Pod,
}

/// A pod with an emptyDir `scratch` and a configMap `conf`, set up.
fn set() -> Set {
    let directory = tempfile::tempdir().unwrap();
    let volumes = Volumes::new(directory.path(), VolumeOwner::current());
    let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [
        {"name": "scratch", "emptyDir": {}},
        {"name": "conf", "configMap": {"name": "conf"}},
    ]}}))
    .unwrap();
    let config = serde_json::from_value(json!({"data": {"key": "value"}})).unwrap();
    let sources = Sources {
        pod: &pod,
        config_maps: &BTreeMap::from([("conf".to_owned(), config)]),
        secrets: &BTreeMap::new(),
        tokens: &BTreeMap::new(),
        field: &|_| Err("none".into()),
        resource: &|_| Err("none".into()),
    };
    assert!(volumes.set_up(&sources).unwrap());
    assert!(!volumes.set_up(&sources).unwrap(), "a second time changes nothing");
    Set { directory, volumes, pod }
}

impl Set {
    fn mount(&self, mount: serde_json::Value) -> Result<VolumeMountDir, VolumeError> {
        let container =
            serde_json::from_value(json!({"name": "app", "volumeMounts": [mount]})).unwrap();
        let expand = |text: &str| text.replace("$(POD)", "web");
        self.volumes.mounts(&self.pod, &container, &expand).map(|mut mounts| mounts.remove(0))
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join("volumes").join(below)
    }
}

#[test]
fn a_whole_volume_is_its_directory() {
    let set = set();
    let mount = set.mount(json!({"name": "scratch", "mountPath": "/tmp"})).unwrap();
    assert_eq!((mount.host.clone(), mount.guest.as_str()), (set.path("scratch"), "/tmp"));
    assert!(mount.writable);
    assert!(!set.mount(json!({"name": "conf", "mountPath": "/c"})).unwrap().writable);
    let read_only = json!({"name": "scratch", "mountPath": "/tmp", "readOnly": true});
    assert!(!set.mount(read_only).unwrap().writable);
}

#[test]
fn a_sub_path_is_made_and_found_again() {
    let set = set();
    let mount = json!({"name": "scratch", "mountPath": "/d", "subPathExpr": "a/$(POD)"});
    let made = set.mount(mount.clone()).unwrap();
    fs::write(made.host.join("file"), "x").unwrap();
    assert_eq!(fs::read(set.path("scratch/a/web/file")).unwrap(), b"x");
    let again = set.mount(mount).unwrap();
    assert_eq!(fs::read(again.host.join("file")).unwrap(), b"x");
}

#[test]
fn a_sub_path_that_leaves_the_volume_is_refused() {
    let set = set();
    symlink("/etc", set.path("scratch/link")).unwrap();
    symlink("../conf", set.path("scratch/up")).unwrap();
    for path in ["../conf", "link", "up", "a/../../conf", "/etc", "link/new"] {
        let mount = json!({"name": "scratch", "mountPath": "/d", "subPath": path});
        let error = set.mount(mount).unwrap_err();
        assert!(matches!(error, VolumeError::SubPath { .. }), "{path}: {error}");
    }
}

#[test]
fn a_sub_path_to_a_file_says_what_to_do() {
    let set = set();
    let error =
        set.mount(json!({"name": "conf", "mountPath": "/c/key", "subPath": "key"})).unwrap_err();
    assert!(error.to_string().contains("mount the whole volume instead"), "{error}");
    let error =
        set.mount(json!({"name": "conf", "mountPath": "/c", "subPath": "other"})).unwrap_err();
    assert!(matches!(error, VolumeError::SubPath { .. }), "{error}");
}

#[test]
fn a_mount_of_no_volume_is_named() {
    let error = set().mount(json!({"name": "none", "mountPath": "/x"})).unwrap_err();
    assert!(matches!(error, VolumeError::NoSuchVolume { .. }), "{error}");
}

#[test]
fn nothing_is_left_after_tearing_down() {
    let set = set();
    set.volumes.tear_down().unwrap();
    assert!(!set.path("").exists());
    set.volumes.tear_down().unwrap();
}

#[test]
fn memory_is_a_file_system_of_its_own_with_its_limit() {
    assert!(rustix::process::geteuid().is_root(), "mounting needs root: run the tests as root");
    let directory = tempfile::tempdir().unwrap();
    let volumes = Volumes::new(directory.path(), VolumeOwner::current());
    let source = json!({"medium": "Memory", "sizeLimit": "1Mi"});
    let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [
        {"name": "fast", "emptyDir": source},
    ]}}))
    .unwrap();
    let sources = Sources {
        pod: &pod,
        config_maps: &BTreeMap::new(),
        secrets: &BTreeMap::new(),
        tokens: &BTreeMap::new(),
        field: &|_| Err("none".into()),
        resource: &|_| Err("none".into()),
    };
    volumes.set_up(&sources).unwrap();
    let path = directory.path().join("volumes/fast");
    fs::write(path.join("small"), "x").unwrap();
    assert!(fs::write(path.join("large"), vec![0; 2 << 20]).is_err());
    assert!(!volumes.set_up(&sources).unwrap(), "adopted, not mounted twice");
    volumes.tear_down().unwrap();
    assert!(!path.exists());
}
