use std::io::Write;

use proptest::prelude::*;

use super::*;

const MAX_FILES: usize = 5;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn write(fd: &OwnedFd, text: &str) {
    File::from(fd.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn read(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).unwrap()
}

#[test]
fn a_full_log_is_renamed_with_the_time_and_the_next_takes_its_name() {
    let home = tempfile::tempdir().unwrap();
    let pod = home.path().join("pod/container");
    let log = LogFile::new(pod.join("0.log"));
    let (first, second) = log.open().unwrap();
    write(&first, "first");
    write(&second, "second");
    let third = log.rotate(MAX_FILES, at("2026-11-23T20:38:40.9Z")).unwrap();
    log.supplied().unwrap();
    assert_eq!(names(&pod), [".0.log.next", "0.log", "0.log.20261123-203840"]);
    assert_eq!(read(&pod, "0.log.20261123-203840"), "first");
    assert_eq!(read(&pod, "0.log"), "second");
    write(&third, "third");
    assert_eq!(read(&pod, ".0.log.next"), "third");
}

#[test]
fn two_rotations_within_a_second_keep_both_logs() {
    let home = tempfile::tempdir().unwrap();
    let log = LogFile::new(home.path().join("0.log"));
    let (_first, mut next) = log.open().unwrap();
    let now = at("2026-11-23T20:38:59Z");
    for text in ["one", "two"] {
        write(&next, text);
        next = log.rotate(MAX_FILES, now).unwrap();
        log.supplied().unwrap();
    }
    assert_eq!(read(home.path(), "0.log.20261123-203900"), "one");
    assert_eq!(read(home.path(), "0.log"), "two");
}

#[test]
fn an_agent_that_comes_back_catches_up_with_a_switch() {
    let home = tempfile::tempdir().unwrap();
    let log = LogFile::new(home.path().join("3.log"));
    let (_first, second) = log.open().unwrap();
    let now = at("2026-01-02T03:04:05Z");
    assert!(matches!(log.resume(MAX_FILES, now).unwrap(), Resumed::Supplied));

    write(&second, "while it was away");
    assert!(matches!(log.resume(MAX_FILES, now).unwrap(), Resumed::Wants(_)));
    assert_eq!(read(home.path(), "3.log"), "while it was away");

    // It dies before it has handed the new one over, and the next one does.
    let Resumed::Wants(third) = log.resume(MAX_FILES, now).unwrap() else {
        panic!("nobody has handed it over")
    };
    // It dies after that, before it has noted it, and the sandbox goes on.
    write(&third, "and again");
    assert!(matches!(log.resume(MAX_FILES, now).unwrap(), Resumed::Wants(_)));
    assert_eq!(read(home.path(), "3.log"), "and again");
    log.supplied().unwrap();
    assert!(matches!(log.resume(MAX_FILES, now).unwrap(), Resumed::Supplied));
}

#[test]
fn a_log_that_was_handed_over_without_a_note_is_gone_on_with() {
    let home = tempfile::tempdir().unwrap();
    let log = LogFile::new(home.path().join("0.log"));
    let (first, second) = log.open().unwrap();
    write(&first, "first");
    write(&second, "second");
    let now = at("2026-01-02T03:04:05Z");
    let third = log.rotate(MAX_FILES, now).unwrap();
    assert!(!log.is_switched());
    write(&third, "third");
    assert!(log.is_switched());
    log.rotate(MAX_FILES, now).unwrap();
    log.supplied().unwrap();
    assert_eq!(read(home.path(), "0.log.20260102-030406"), "second");
    assert_eq!(read(home.path(), "0.log"), "third");

    // With nothing to go on with, the log keeps its name.
    fs::remove_file(home.path().join(".0.log.next")).unwrap();
    assert_eq!(log.rotate(MAX_FILES, now).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(read(home.path(), "0.log"), "third");
}

#[test]
fn nothing_waits_beside_a_closed_log() {
    let home = tempfile::tempdir().unwrap();
    let log = LogFile::new(home.path().join("0.log"));
    let (first, second) = log.open().unwrap();
    write(&first, "first");
    write(&second, "second");
    let now = at("2026-01-02T03:04:05Z");
    log.close(MAX_FILES, now).unwrap();
    log.close(MAX_FILES, now).unwrap();
    assert_eq!(names(home.path()), ["0.log", "0.log.20260102-030405"]);
    assert_eq!(read(home.path(), "0.log"), "second");
}

#[test]
fn other_files_are_no_logs_of_ours() {
    for other in [
        "0.log",
        "0.log.",
        "0.log.2026",
        "0.log.20261123-20384",
        "0.log.20261323-203840",
        "10.log.20261123-203840",
        "0.log.20261123-203840.tmp",
        ".0.log.next",
    ] {
        assert_eq!(stamp_of("0.log", other), None, "{other}");
    }
    assert!(stamp_of("0.log", "0.log.20261123-203840.gz").is_some());
}

/// Seconds of the years 1970 to 9999 and parts of them.
fn time() -> impl Strategy<Value = Timestamp> {
    (0..253_000_000_000_i64, 0..1_000_000_000_i32)
        .prop_map(|(seconds, nanos)| Timestamp::new(seconds, nanos).unwrap())
}

proptest! {
    #[test]
    fn a_name_tells_its_time(now in time()) {
        let stamp = next_stamp(now, None).strftime(STAMP).to_string();
        let back = stamp_of("7.log", &format!("7.log.{stamp}")).unwrap();
        prop_assert_eq!(TimeZone::UTC.to_timestamp(back).unwrap().as_second(), now.as_second());
    }

    #[test]
    fn names_grow_whatever_the_clock_does(times in prop::collection::vec(time(), 1..20)) {
        let mut newest: Option<DateTime> = None;
        let mut before = String::new();
        for now in times {
            let name = next_stamp(now, newest).strftime(STAMP).to_string();
            prop_assert!(name > before, "{name} after {before}");
            newest = stamp_of("l", &format!("l.{name}"));
            before = name;
        }
    }

    #[test]
    fn as_many_files_stay_as_are_allowed_and_they_are_the_newest(
        rotations in 0_usize..12, max_files in 0_usize..7,
    ) {
        let home = tempfile::tempdir().unwrap();
        let log = LogFile::new(home.path().join("0.log"));
        let (first, mut next) = log.open().unwrap();
        write(&first, "0");
        for n in 1..=rotations {
            write(&next, &n.to_string());
            next = log.rotate(max_files, at("2026-11-23T20:38:40Z")).unwrap();
            log.supplied().unwrap();
        }
        let kept: Vec<_> = log.rotated().unwrap().into_iter().map(|(_, path)| path).collect();
        prop_assert_eq!(kept.len(), rotations.min(max_files.max(2) - 1));
        let mut texts: Vec<_> = kept.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        texts.push(read(home.path(), "0.log"));
        let wanted: Vec<_> = (rotations - kept.len()..=rotations).map(|n| n.to_string()).collect();
        prop_assert_eq!(texts, wanted);
    }
}
