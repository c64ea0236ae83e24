//! CPU limits, told by comparing what guests of one thread got of it: how fast
//! the machine is, and who else uses it, does not matter.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use krustlet_model::ContainerId;
use krustlet_protocol::{Failure, Limits, SandboxReply, SandboxRequest};

use crate::{
    fixture::{LIMIT, Make, Sandbox, Zygote},
    guests::{exec, wait_until},
    http::serve_as,
};

/// Thousandths of a core: the least there is.
const LEAST: Option<u64> = Some(10);

/// What the unlimited guest has used when the others are compared with it, in
/// nanoseconds: enough for what a full bucket allows to count for little.
const ENOUGH: u64 = 400_000_000;

fn used(sandbox: &Sandbox, id: &ContainerId) -> u64 {
    let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else { panic!() };
    containers.into_iter().find(|report| report.id == *id).unwrap().cpu_ns
}

/// Waits until `free` has had enough of the thread, and compares: without a
/// limit `limited` would have had as much, or more.
fn is_held_back(sandbox: &Sandbox, limited: &ContainerId, free: &ContainerId) {
    wait_until(|| used(sandbox, free) > ENOUGH);
    let (limited, free) = (used(sandbox, limited), used(sandbox, free));
    assert!(limited > 0, "it never ran");
    assert!(limited < free / 3, "{limited} of {free} ns");
}

pub(crate) fn a_container_over_its_cpu_limit_waits_and_others_do_not() {
    let zygote = Zygote::start();
    // Whatever its kind; the last is of WASI 0.3.
    let spin = || Make::module("spin", &["x"]);
    for limited in [spin(), Make::command("net3.wasm", &["net3", "spin"])] {
        let sandbox = zygote.sandbox();
        let limited = sandbox.start(Make { cpu: LEAST, ..limited });
        // What one thread cannot exceed is no limit.
        let free = sandbox.start(Make { cpu: Some(1000), ..spin() });
        for id in [&limited, &free] {
            sandbox.running(id);
        }
        is_held_back(&sandbox, &limited, &free);
        // Its debt is some hundred milliseconds at most times; a stop does not wait.
        sandbox.stop(&limited, 3_600_000);
        assert_eq!(sandbox.exit(&limited).exit_code, 143);
    }
}

pub(crate) fn another_limit_holds_for_a_guest_that_runs() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let id = sandbox.start(Make::module("spin", &["x"]));
    let free = sandbox.start(Make::module("spin", &["x"]));
    for id in [&id, &free] {
        sandbox.running(id);
    }
    let update = |memory_bytes, cpu_millis| {
        let limits = Limits { memory_bytes, cpu_millis };
        sandbox.ask(SandboxRequest::UpdateContainer { id: id.clone(), limits })
    };
    let before = (used(&sandbox, &id), used(&sandbox, &free));
    assert_eq!(update(None, LEAST), SandboxReply::Done);
    wait_until(|| used(&sandbox, &free) > before.1 + ENOUGH);
    let since = (used(&sandbox, &id) - before.0, used(&sandbox, &free) - before.1);
    assert!(since.0 < since.1 / 3, "{since:?} ns");
    // It has one page.
    let SandboxReply::Failed(Failure::Failed { message }) = update(Some(65_535), None) else {
        panic!()
    };
    assert!(message.contains("(65535) below current usage (65536)"), "{message}");
    assert_eq!(update(Some(65_536), Some(500)), SandboxReply::Done);
}

pub(crate) fn an_exec_is_within_its_containers_cpu_limit() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let limited = sandbox.start(Make { cpu: LEAST, ..Make::module("spin", &["x"]) });
    sandbox.running(&limited);
    let _streams = exec(&sandbox, &limited, &["x"]);
    let free = sandbox.start(Make::module("spin", &["x"]));
    sandbox.running(&free);
    is_held_back(&sandbox, &limited, &free);
}

pub(crate) fn requests_are_within_their_containers_cpu_limit() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let server = serve_as(&sandbox, 3_600_000, |make| Make { cpu: LEAST, ..make });
    let free = sandbox.start(Make::module("spin", &["x"]));
    sandbox.running(&free);
    let _open: Vec<_> = (0..4).map(|_| server.send("/spin?ms=3600000")).collect();
    is_held_back(&sandbox, &server.id, &free);
}

pub(crate) fn what_a_server_does_without_its_guest_counts_too() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let server = serve_as(&sandbox, 10_000, |make| make);
    assert_eq!(used(&sandbox, &server.id), 0);
    // No guest hears of what is no request.
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"what?\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    wait_until(|| used(&sandbox, &server.id) > 0);
}
