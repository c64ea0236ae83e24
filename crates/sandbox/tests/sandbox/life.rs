//! Starting, stopping, dying, and being found again.

use std::fs;

use krustlet_model::{ContainerId, PodUid};
use krustlet_protocol::{
    DescriptorName, ExitReport, Failure, RunState, SandboxReply, SandboxRequest, VERSION,
    ZygoteMessage, ZygoteReply, ZygoteRequest, socket,
};
use rustix::event::{PollFd, PollFlags};
use serde::Serialize;

use crate::{
    code::compiled_text,
    fixture::{Connection, Make, Sandbox, Zygote, ask_on, receive},
    guests::wait_until,
};

fn containers(sandbox: &Sandbox) -> Vec<(ContainerId, RunState)> {
    match sandbox.ask(SandboxRequest::ListContainers) {
        SandboxReply::Containers { containers } => {
            containers.into_iter().map(|report| (report.id, report.state)).collect()
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) fn a_guest_that_computes_is_stopped_at_once() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let id = sandbox.start(Make::module("spin", &["x"]));
    sandbox.running(&id);
    sandbox.stop(&id, 3_600_000);
    let exit = sandbox.exit(&id);
    assert_eq!((exit.exit_code, exit.reason.as_str()), (143, "Error"));
}

pub(crate) fn a_guest_that_waits_is_stopped_at_once() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    for make in
        [Make::module("sleep", &["x"]), Make::command("hello.p2.wasm", &["hello", "sleep", "3600"])]
    {
        let id = sandbox.start(make);
        sandbox.running(&id);
        sandbox.stop(&id, 3_600_000);
        assert_eq!(sandbox.exit(&id).exit_code, 143);
    }
    // One that was never started has no guest to wait for.
    let id = sandbox.create(Make::module("sleep", &["x"])).unwrap();
    sandbox.stop(&id, 1000);
    let exit = sandbox.exit(&id);
    assert_eq!((exit.exit_code, exit.started_at), (143, None));
    let again = sandbox.ask(SandboxRequest::StartContainer { id });
    assert!(matches!(again, SandboxReply::Failed(_)), "{again:?}");
}

pub(crate) fn without_grace_a_guest_is_killed() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let id = sandbox.start(Make::module("spin", &["x"]));
    sandbox.running(&id);
    sandbox.stop(&id, 0);
    assert_eq!(sandbox.exit(&id).exit_code, 137);
    assert!(matches!(containers(&sandbox)[..], [(_, RunState::Exited(_))]));
    let remove = |id: &ContainerId| sandbox.ask(SandboxRequest::RemoveContainer { id: id.clone() });
    assert_eq!(remove(&id), SandboxReply::Done);
    assert_eq!(containers(&sandbox), []);
    assert!(matches!(remove(&id), SandboxReply::Failed(Failure::NotFound { .. })));
}

pub(crate) fn a_sandbox_can_host_many_pods() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let make = |pod: &str| Make { pod: pod.into(), ..Make::module("sleep", &["x"]) };
    let (one, two) = (sandbox.start(make("one")), sandbox.start(make("two")));
    let created = sandbox.create(make("one")).unwrap();
    for id in [&one, &two] {
        sandbox.running(id);
    }
    assert_eq!(
        containers(&sandbox).iter().map(|(id, _)| id).collect::<Vec<_>>(),
        [&one, &two, &created]
    );
    // The answer comes when the pod's last container has ended.
    assert_eq!(
        sandbox.ask(SandboxRequest::StopPod { pod: PodUid::new("one") }),
        SandboxReply::Done
    );
    assert_eq!(sandbox.exit(&one).exit_code, 137);
    assert!(matches!(&containers(&sandbox)[..], [(id, RunState::Running { .. })] if *id == two));
    assert_eq!(
        sandbox.ask(SandboxRequest::StopPod { pod: PodUid::new("one") }),
        SandboxReply::Done
    );
    let (_, exit) = sandbox.run(Make { pod: "three".into(), ..Make::module("exit", &["x"]) });
    assert_eq!(exit.exit_code, 3);
}

pub(crate) fn a_list_longer_than_a_packet_arrives() {
    const COUNT: usize = 700;
    let zygote = Zygote::start();
    let mut sandbox = zygote.sandbox();
    let created: Vec<_> = (0..COUNT)
        .map(|number| {
            let pod = format!("pod-{number}");
            sandbox.create(Make { pod, ..Make::module("sleep", &["x"]) }).unwrap()
        })
        .collect();
    // To an agent of an older version, which would not understand it, it says so.
    let refused = sandbox.ask(SandboxRequest::ListContainers);
    assert!(matches!(refused, SandboxReply::Failed(Failure::Failed { .. })), "it was sent whole");
    sandbox.reconnect();
    sandbox.ask(SandboxRequest::Hello { version: VERSION });
    let listed: Vec<_> = containers(&sandbox).into_iter().map(|(id, _)| id).collect();
    assert!(listed == created, "{} of {COUNT}", listed.len());
    let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else { panic!() };
    assert_eq!(containers.len(), COUNT);
}

pub(crate) fn guests_of_one_sandbox_share_its_thread() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let spinning = [(); 2].map(|()| sandbox.start(Make::module("spin", &["x"])));
    for id in &spinning {
        sandbox.running(id);
    }
    let (_, exit) = sandbox.run(Make::module("hello.wasm", &["hello", "exit", "5"]));
    assert_eq!(exit.exit_code, 5);
    wait_until(|| {
        let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else {
            panic!()
        };
        containers.iter().take(2).all(|report| report.cpu_ns > 20_000_000)
    });
}

pub(crate) fn a_sandbox_outlives_its_agent_and_tells_the_next() {
    let zygote = Zygote::start();
    let mut sandbox = zygote.sandbox();
    let running = sandbox.start(Make::module("sleep", &["x"]));
    let at = sandbox.running(&running);
    let (ended, exit) = sandbox.run(Make::module("exit", &["x"]));
    sandbox.reconnect();
    let hello = sandbox.ask(SandboxRequest::Hello { version: VERSION });
    let pid = sandbox.pid.cast_unsigned();
    assert_eq!(hello, SandboxReply::Hello { version: VERSION, pid });
    let expected =
        [(running.clone(), RunState::Running { started_at: at }), (ended, RunState::Exited(exit))];
    assert_eq!(containers(&sandbox), expected);
    sandbox.stop(&running, 1000);
    assert_eq!(sandbox.exit(&running).exit_code, 143);
}

pub(crate) fn exits_are_in_the_status_file_and_the_journal() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let (one, exit) = sandbox.run(Make::module("exit", &["x"]));
    let left = sandbox.start(Make::module("spin", &["x"]));
    sandbox.running(&left);
    assert_eq!(sandbox.ask(SandboxRequest::Shutdown), SandboxReply::Done);
    sandbox.ended();
    let status = fs::read_to_string(&sandbox.status).unwrap();
    let lines: Vec<(ContainerId, ExitReport)> =
        status.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], (one, exit));
    // What was still running was killed with the process, and that is noted too.
    assert_eq!((&lines[1].0, lines[1].1.exit_code), (&left, 137));
    wait_until(|| zygote.journalled(sandbox.pid) == Some(0));
}

pub(crate) fn a_verb_of_a_newer_version_is_refused_by_name() {
    #[derive(Serialize)]
    struct Newer {
        verb: &'static str,
    }
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let request = sandbox.connection.send(Newer { verb: "teleport" }, &[]);
    let unknown = SandboxReply::Failed(Failure::UnknownVerb);
    assert_eq!(sandbox.connection.answer(request), Some(unknown));
    let (reply, _): (ZygoteReply, _) = ask_on(&zygote.connect(), Newer { verb: "teleport" }, &[]);
    assert_eq!(reply, ZygoteReply::Failed(Failure::UnknownVerb));
}

pub(crate) fn wrong_descriptors_are_refused() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let null = || fs::File::open("/dev/null").unwrap().into();
    for fds in [vec![], vec![(DescriptorName::Spec, null())]] {
        let reply = sandbox.connection.ask(SandboxRequest::CreateContainer, &fds);
        assert!(matches!(reply, SandboxReply::Failed(Failure::Malformed { .. })), "{reply:?}");
    }
    let request = ZygoteRequest::RunSandbox { id: "x".into(), uid: 1, gid: 1, groups: vec![] };
    let (reply, _) = zygote.ask(request, &[(DescriptorName::Status, null())]);
    assert!(matches!(reply, ZygoteReply::Failed(Failure::Malformed { .. })), "{reply:?}");
}

/// Opens a file until that fails, says so, and waits for an hour. First it waits a
/// little: while the agent is served, as by the answer to its start, what is kept for
/// agents may be had by guests too.
const GREEDY: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff"
        (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "file")
    (data (i32.const 16) "\20\00\00\00\04\00\00\00")
    (data (i32.const 32) "all\n")
    ;; on clock 1, not to be passed
    (func $sleep (param $nanoseconds i64)
        (i32.store (i32.const 144) (i32.const 1))
        (i64.store (i32.const 152) (local.get $nanoseconds))
        (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 8))))
    (func (export "_start")
        (call $sleep (i64.const 200000000))
        (loop $next
            (br_if $next (i32.eqz
                (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0)
                    (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 8)))))
        (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 8)))
        (call $sleep (i64.const 3600000000000))))"#;

pub(crate) fn agents_are_heard_where_a_guest_has_taken_all_descriptors() {
    let zygote = Zygote::start_within(200);
    let mut sandbox = zygote.sandbox();
    let volume = sandbox.volume();
    fs::write(volume.path().join("file"), "").unwrap();
    let mounts = |count| vec![(volume.path().to_owned(), "/data".to_owned(), false); count];
    let greedy = compiled_text(GREEDY);
    let make = Make { mounts: mounts(1), ..Make::module("exit", &["x"]).code(greedy) };
    let greedy = sandbox.start(make);
    wait_until(|| sandbox.output(&greedy) == "all\n");
    let open = fs::read_dir(format!("/proc/{}/fd", sandbox.pid)).unwrap().count();
    assert!(open > 150, "{open}");
    let other = sandbox.create(Make::module("sleep", &["x"])).unwrap();
    // A new agent comes in while the last is there.
    let next = Connection::new(socket::connect(&sandbox.path).unwrap());
    let _last = std::mem::replace(&mut sandbox.connection, next);
    let hello = sandbox.ask(SandboxRequest::Hello { version: VERSION });
    assert!(matches!(hello, SandboxReply::Hello { .. }), "{hello:?}");
    // More than can be had is refused, and the agent is heard on.
    let many = sandbox.create(Make { mounts: mounts(40), ..Make::module("sleep", &["x"]) });
    assert!(matches!(many, Err(Failure::Failed { .. })), "{many:?}");
    let ids: Vec<_> = containers(&sandbox).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [greedy.clone(), other]);
    sandbox.stop(&greedy, 0);
    assert_eq!(sandbox.exit(&greedy).exit_code, 137);
    assert_eq!(sandbox.run(Make::module("exit", &["x"])).1.exit_code, 3);
}

pub(crate) fn an_agent_may_leave_as_a_sandbox_ends() {
    let zygote = Zygote::start();
    let other = zygote.connect();
    let (_, _): (ZygoteReply, _) = ask_on(&other, ZygoteRequest::List, &[]);
    let sandbox = zygote.sandbox();
    // Held, so that it hears of both at once.
    zygote.signal(rustix::process::Signal::STOP);
    rustix::process::pidfd_send_signal(&sandbox.pidfd, rustix::process::Signal::KILL).unwrap();
    let mut ended = [PollFd::new(&sandbox.pidfd, PollFlags::IN)];
    rustix::event::poll(&mut ended, None).unwrap();
    drop(other);
    zygote.signal(rustix::process::Signal::CONT);
    let news = receive::<ZygoteMessage>(&zygote.socket).0.body;
    assert!(matches!(news, ZygoteMessage::Exited { .. }), "{news:?}");
    let (reply, _) = zygote.ask(ZygoteRequest::List, &[]);
    assert_eq!(reply, ZygoteReply::Sandboxes { running: vec![] });
}

pub(crate) fn a_killed_sandbox_is_reaped_and_told() {
    let zygote = Zygote::start();
    let other = zygote.connect();
    // So that it is surely connected when the news come.
    let (_, _): (ZygoteReply, _) = ask_on(&other, ZygoteRequest::List, &[]);
    let sandbox = zygote.sandbox();
    rustix::process::pidfd_send_signal(&sandbox.pidfd, rustix::process::Signal::KILL).unwrap();
    for agent in [&zygote.socket, &other] {
        let news = receive::<ZygoteMessage>(agent).0.body;
        let expected = ZygoteMessage::Exited {
            id: format!("s{}", sandbox.uid),
            pid: sandbox.pid,
            wait_status: 9,
        };
        assert_eq!(news, expected);
    }
    assert_eq!(zygote.journalled(sandbox.pid), Some(9));
}

pub(crate) fn a_zygote_that_retires_ends_with_its_last_sandbox() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let (reply, _) = zygote.ask(ZygoteRequest::Retire, &[]);
    assert_eq!(reply, ZygoteReply::Retiring);
    let (reply, none) = zygote.fork(300_000);
    assert!(matches!(reply, ZygoteReply::Failed(_)) && none.is_none(), "{reply:?}");
    let (_, exit) = sandbox.run(Make::module("exit", &["x"]));
    assert_eq!(exit.exit_code, 3);
    sandbox.ask(SandboxRequest::Shutdown);
    zygote.ended();
}

pub(crate) fn a_panic_of_the_host_ends_the_process_not_the_report() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let id = sandbox.start(Make::module("sleep", &["x"]));
    sandbox.running(&id);
    assert_eq!(sandbox.attack("panic", ""), None);
    sandbox.ended();
    wait_until(|| zygote.journalled(sandbox.pid).is_some_and(|status| status >> 8 == 134));
    let status = fs::read_to_string(&sandbox.status).unwrap();
    let (of, exit): (ContainerId, ExitReport) = serde_json::from_str(status.trim()).unwrap();
    assert_eq!((of, exit.exit_code), (id, 134));
}
