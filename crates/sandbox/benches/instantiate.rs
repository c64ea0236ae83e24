//! How long a sandbox takes to be born, to load a program and to enter its
//! first function, as an agent sees it over the sandbox's socket.
//!
//!     benches/instantiate
//!
//! Programs are compiled before; see `benches/compile` for that.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints or panics")]

use std::{process::ExitCode, time::Instant};

use krustlet_protocol::{SandboxReply, SandboxRequest, VERSION};
use krustlet_testkit::Summary;

#[path = "../tests/sandbox/code.rs"]
#[expect(dead_code, reason = "made for the tests")]
mod code;
#[path = "../tests/sandbox/fixture.rs"]
#[expect(dead_code, reason = "made for the tests")]
mod fixture;

use fixture::{Make, Zygote};

/// Containers of each program, one after another; ids of the fixture are bytes.
const CONTAINERS: usize = 100;
/// Sandboxes, one after another.
const SANDBOXES: usize = 100;

fn main() -> ExitCode {
    // The benchmark is its own zygote, as the test is.
    if std::env::args().nth(1).is_some_and(|arg| arg == "zygote") {
        return krustlet_sandbox::zygote_main();
    }
    let zygote = Zygote::start();
    births(&zygote);
    starts(&zygote, "hello.wasm", Make::module);
    starts(&zygote, "hello.p2.wasm", Make::command);
    ExitCode::SUCCESS
}

/// From the request to the zygote to the first answer of the sandbox.
fn births(zygote: &Zygote) {
    let mut born = Vec::new();
    for _ in 0..SANDBOXES {
        let begin = Instant::now();
        let sandbox = zygote.sandbox();
        let hello = sandbox.ask(SandboxRequest::Hello { version: VERSION });
        assert!(matches!(hello, SandboxReply::Hello { .. }), "{hello:?}");
        born.push(begin.elapsed());
        assert_eq!(sandbox.ask(SandboxRequest::Shutdown), SandboxReply::Done);
        sandbox.ended();
    }
    println!("a sandbox\n  asked for → answers:      {}", Summary::of(born));
}

fn starts(zygote: &Zygote, guest: &str, make: fn(&str, &[&str]) -> Make) {
    let sandbox = zygote.sandbox();
    let (mut loaded, mut entered, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=CONTAINERS {
        let make = make(guest, &["hello"]);
        let begin = Instant::now();
        let id = sandbox.create(make).unwrap();
        let created = begin.elapsed();
        let begin = Instant::now();
        let start = SandboxRequest::StartContainer { id: id.clone() };
        assert_eq!(sandbox.ask(start), SandboxReply::Done);
        sandbox.running(&id);
        let running = begin.elapsed();
        assert_eq!(sandbox.exit(&id).exit_code, 0);
        let whole = begin.elapsed();
        assert_eq!(sandbox.ask(SandboxRequest::RemoveContainer { id }), SandboxReply::Done);
        // The first one starts the guests' thread.
        if round > 0 {
            loaded.push(created);
            entered.push(running);
            ended.push(whole);
        }
    }
    println!("{guest}");
    println!("  create → loaded, linked:  {}", Summary::of(loaded));
    println!("  start → first function:   {}", Summary::of(entered));
    println!("  start → ended:            {}", Summary::of(ended));
    assert_eq!(sandbox.ask(SandboxRequest::Shutdown), SandboxReply::Done);
}
