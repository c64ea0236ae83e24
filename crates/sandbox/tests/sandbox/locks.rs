//! What someone could do who had broken out of WebAssembly: next to nothing.

use std::{fs, os::fd::OwnedFd};

use krustlet_protocol::{DescriptorName, Failure, ZygoteReply};

use crate::fixture::{Make, Sandbox, Zygote};

const ENOENT: &str = "errno 2";
const EBADF: &str = "errno 9";
const EROFS: &str = "errno 30";
const ENOSYS: &str = "errno 38";

fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap_or_else(|| panic!("no {field} in {status}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

pub(crate) fn a_sandbox_has_its_user_and_no_rights() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let (uid, pid) = (sandbox.uid, sandbox.pid);
    // A container's thread must have no more than the first.
    let id = sandbox.start(Make::module("sleep", &["x"]));
    sandbox.running(&id);
    let four = format!("{uid} {uid} {uid} {uid}");
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap().parse().unwrap();
        assert_eq!(status(thread, "Uid"), four);
        assert_eq!(status(thread, "Gid"), four);
        assert_eq!(status(thread, "Groups"), (uid + 1).to_string());
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(thread, set), "0000000000000000", "{set}");
        }
        // The zygote's two: without new privileges nothing can be had through it.
        assert_eq!(status(thread, "CapBnd"), "00000000000000c0");
        assert_eq!(status(thread, "NoNewPrivs"), "1");
        assert_eq!(status(thread, "Seccomp"), "2");
        assert_eq!(status(thread, "Seccomp_filters"), "3");
    }
    // Not dumpable: what shows its memory belongs to root.
    let owner =
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}/mem")).unwrap());
    assert_eq!(owner, 0);
}

pub(crate) fn a_sandbox_sees_an_empty_root() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let try_to = |attack: &str, argument: &str| sandbox.attack(attack, argument).unwrap();
    assert_eq!(try_to("list", "/"), "ok 0");
    for path in ["/etc/passwd", "/proc/self/maps", "/dev/null", "/sys", "/tmp"] {
        assert_eq!(try_to("open", path), ENOENT, "{path}");
    }
    assert_eq!(try_to("create", "/file"), EROFS);
}

pub(crate) fn what_only_exploits_call_kills() {
    let zygote = Zygote::start();
    let calls = [
        "ptrace",
        "mount",
        "execve",
        "unshare",
        "bpf",
        "io-uring",
        "keyctl",
        "userfaultfd",
        "perf",
    ];
    for call in calls {
        let sandbox = zygote.sandbox();
        assert_eq!(sandbox.attack(call, ""), None, "{call}");
        sandbox.ended();
        crate::guests::wait_until(|| zygote.journalled(sandbox.pid).is_some());
        let ended_by = zygote.journalled(sandbox.pid).unwrap() & 0x7f;
        assert_eq!(ended_by, libc::SIGSYS, "{call}");
    }
}

pub(crate) fn what_no_sandbox_needs_is_refused() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let calls = [
        "setuid",
        "fork",
        "clone3",
        "kill",
        "signal",
        "limit",
        "owner",
        "owner-of-a-kind",
        "owners-signal",
        "tell-the-owner",
        "lease",
        "seccomp",
        "netlink",
        "packet",
        "unix",
        "vsock",
        "raw",
        "seqpacket",
        "ping",
        "sctp",
        "mptcp",
        "attach-filter",
        "bind-to-device",
        "mark",
        "foreign-address",
        "transparent",
        "join-group",
        "upper-layer",
        "other-level",
        "tipc-pair",
        "datagram-pair",
        "raw-pair",
        "fast-open",
        "write-and-execute",
    ];
    for call in calls {
        assert_eq!(sandbox.attack(call, "").as_deref(), Some(ENOSYS), "{call}");
    }
    // What its guests' sockets need is not, so that the above is no lock on all.
    for call in ["tcp", "udp", "own-limit"] {
        assert!(sandbox.attack(call, "").unwrap().starts_with("ok "), "{call}");
    }
    for call in ["bind", "connect", "reuse-address", "flags"] {
        assert_eq!(sandbox.attack(call, "").as_deref(), Some(EBADF), "{call}");
    }
    // It still works.
    let (_, exit) = sandbox.run(Make::module("exit", &["x"]));
    assert_eq!(exit.exit_code, 3);
}

pub(crate) fn a_handed_directory_has_no_way_up() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let volume = sandbox.volume();
    fs::write(volume.path().join("only-this"), "").unwrap();
    let mounts = vec![(volume.path().to_owned(), "/data".to_owned(), true)];
    let id = sandbox.start(Make { mounts, ..Make::module("sleep", &["x"]) });
    sandbox.running(&id);
    let found = sandbox.attack("climb", "").unwrap();
    let places: Vec<_> = found.trim_start_matches("ok ").split("; ").collect();
    assert!(places.iter().any(|place| place.ends_with(": only-this")), "{found}");
    for place in &places {
        let names = place.split_once(": ").unwrap().1;
        assert!(["", "only-this", "artifact.cwasm"].contains(&names), "{found}");
    }
}

pub(crate) fn nothing_of_the_zygote_stays_open() {
    let zygote = Zygote::start();
    let first = zygote.sandbox();
    let second = zygote.sandbox();
    let names = |sandbox: &Sandbox| -> Vec<String> {
        fs::read_dir(format!("/proc/{}/fd", sandbox.pid))
            .unwrap()
            .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
            .collect()
    };
    for sandbox in [&first, &second] {
        // So that its control socket is surely accepted.
        sandbox.ask(krustlet_protocol::SandboxRequest::Stats);
        let open = names(sandbox);
        let files: Vec<_> = open.iter().filter(|name| name.starts_with('/')).collect();
        assert!(
            files.iter().all(|name| name.ends_with("null") || name.ends_with(".status")),
            "{open:?}"
        );
        // Standard streams, a null and a dozen spare ones, a listener, a connection, the
        // status file, the wake.
        assert!(open.len() <= 20, "{open:?}");
        let shown = fs::read_to_string(format!("/proc/{}/environ", sandbox.pid)).unwrap();
        assert_eq!(shown, "", "the environment of the agent");
    }
}

pub(crate) fn an_ordinary_user_has_the_empty_room_too() {
    const USER: u32 = 54_321;
    let zygote = Zygote::start_as(USER);
    let sandbox = zygote.sandbox();
    assert_eq!(status(sandbox.pid, "Uid"), [USER.to_string().as_str(); 4].join(" "));
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(sandbox.pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(sandbox.attack("list", "/").unwrap(), "ok 0");
    assert_eq!(sandbox.attack("open", "/etc/passwd").unwrap(), ENOENT);
    assert_eq!(sandbox.attack("fork", "").unwrap(), ENOSYS);
    let (id, exit) = sandbox.run(Make::module("hello.wasm", &["hello", "args", "x"]));
    assert_eq!((exit.exit_code, sandbox.output(&id).as_str()), (0, "x\n"));
    assert_eq!(sandbox.attack("mount", ""), None);
}

pub(crate) fn a_sandbox_may_be_neither_root_nor_the_zygotes_user() {
    let zygote = Zygote::start();
    for uid in [0, 1_999_999_999] {
        let (reply, none) = zygote.fork(uid);
        assert!(matches!(reply, ZygoteReply::Failed(Failure::Malformed { .. })), "{reply:?}");
        assert!(none.is_none());
    }
    let null: OwnedFd = fs::File::open("/dev/null").unwrap().into();
    let request = krustlet_protocol::ZygoteRequest::List;
    let (reply, _) = zygote.ask(request, &[(DescriptorName::Status, null)]);
    assert_eq!(reply, ZygoteReply::Sandboxes { running: vec![] });
}
