//! What guests do, and what is reported of it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::OwnedFd,
};

use krustlet_model::ContainerId;
use krustlet_protocol::{
    DescriptorName, ExecOutcome, Failure, GuestKind, SandboxEvent, SandboxReply, SandboxRequest,
};

use crate::{
    code::compiled_text,
    fixture::{Make, Sandbox, Zygote, append, pipe, text_of},
};

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

pub(crate) fn a_module_runs_and_its_output_becomes_log_lines() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let id = sandbox.start(Make::module("hello.wasm", &["hello", "args", "one", "two words"]));
    let at = sandbox.running(&id);
    let exit = sandbox.exit(&id);
    assert_eq!((exit.exit_code, exit.reason.as_str(), exit.message.as_str()), (0, "Completed", ""));
    assert_eq!(exit.started_at, Some(at));
    assert!(exit.finished_at >= at);
    // The exit is told after the last line is in the file.
    let log = fs::read_to_string(sandbox.log(&id)).unwrap();
    assert_eq!(sandbox.output(&id), "one\ntwo words\n");
    for line in log.lines() {
        let fields: Vec<_> = line.splitn(4, ' ').collect();
        assert_eq!(fields[0].len(), "2026-11-23T20:38:40.123456789Z".len(), "{line}");
        assert_eq!((fields[1], fields[2]), ("stdout", "F"), "{line}");
    }
    let (id, _) = sandbox.run(Make::module("hello.wasm", &["hello", "stderr", "oh"]));
    assert!(fs::read_to_string(sandbox.log(&id)).unwrap().ends_with(" stderr F oh\n"));
}

pub(crate) fn a_command_component_runs_with_arguments_and_environment() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let env = |make: Make| Make { env: vec![("COLOUR".into(), "green".into())], ..make };
    for make in [
        Make::command("hello.p2.wasm", &["hello", "env"]),
        Make::module("hello.wasm", &["hello", "env"]),
    ] {
        let (id, exit) = sandbox.run(env(make));
        assert_eq!(exit.exit_code, 0, "{exit:?}");
        assert_eq!(sandbox.output(&id), "COLOUR=green\n");
    }
}

pub(crate) fn an_exit_code_is_the_programs_own() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    for (code, reason) in [(0, "Completed"), (3, "Error"), (130, "Error"), (255, "Error")] {
        let text = code.to_string();
        let (_, exit) = sandbox.run(Make::module("hello.wasm", &["hello", "exit", &text]));
        assert_eq!((exit.exit_code, exit.reason.as_str()), (code, reason));
    }
    // An error of `run` has no number.
    let (_, exit) = sandbox.run(Make::command("hello.p2.wasm", &["hello", "cat", "/nothing"]));
    assert_eq!((exit.exit_code, exit.reason.as_str()), (1, "Error"));
}

pub(crate) fn a_trap_is_134_and_tells_where() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    for make in [
        Make::module("hello.wasm", &["hello", "trap"]),
        Make::command("hello.p2.wasm", &["hello", "trap"]),
        Make::module("out-of-bounds", &["x"]),
        Make::module("recurse", &["x"]),
    ] {
        let (_, exit) = sandbox.run(make);
        assert_eq!((exit.exit_code, exit.reason.as_str()), (134, "Error"), "{exit:?}");
        assert!(exit.message.contains("wasm trap: "), "{}", exit.message);
        assert!(exit.message.contains("0: "), "no backtrace: {}", exit.message);
        assert!(exit.message.len() <= 4096);
        assert!(exit.started_at.is_some());
    }
    let named = r#"(module (func $dig (unreachable)) (func (export "_start") (call $dig)))"#;
    let (_, exit) = sandbox.run(Make::module("trap", &["x"]).code(compiled_text(named)));
    assert!(exit.message.contains("dig"), "{}", exit.message);
}

pub(crate) fn a_guest_that_exceeds_its_memory_limit_is_oom_killed() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    // A program that gives up when it is refused, as most do, after one more page
    // for its last words.
    let text = r#"(module (memory 1) (func (export "_start")
        (drop (memory.grow (i32.const 1024)))
        (drop (memory.grow (i32.const 1)))
        (unreachable)))"#;
    let make = Make::module("return", &["x"]).code(compiled_text(text));
    let (_, exit) = sandbox.run(Make { memory: Some(16 << 20), ..make });
    assert_eq!((exit.exit_code, exit.reason.as_str()), (137, "OOMKilled"), "{exit:?}");
    assert!(exit.message.contains("memory limit is 16777216 bytes"), "{}", exit.message);
    assert!(exit.message.contains("unreachable"), "{}", exit.message);
    // Not even the first page fits.
    let (_, exit) = sandbox.run(Make { memory: Some(1000), ..Make::module("return", &["x"]) });
    assert_eq!((exit.exit_code, exit.reason.as_str()), (137, "OOMKilled"), "{exit:?}");
    assert_eq!(exit.started_at, None);
}

pub(crate) fn a_guest_that_copes_with_its_memory_limit_is_not() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    // It asks until it is refused, and exits with the pages it got.
    let (_, exit) = sandbox.run(Make { memory: Some(20 << 16), ..Make::module("grow", &["x"]) });
    assert_eq!(exit.exit_code, 20, "{exit:?}");
}

/// Makes requests, each with a body, until it gets none; ends with 0 if it had 62
/// by then.
const UNSENT: &str = r#"(component
    (import "wasi:http/types@0.2.0" (instance $types
        (export "fields" (type $fields (sub resource)))
        (export "outgoing-request" (type $request (sub resource)))
        (export "outgoing-body" (type $body (sub resource)))
        (export "[constructor]fields" (func (result (own $fields))))
        (export "[constructor]outgoing-request"
            (func (param "headers" (own $fields)) (result (own $request))))
        (export "[method]outgoing-request.body"
            (func (param "self" (borrow $request)) (result (result (own $body)))))))
    (core module $memory (memory (export "memory") 1))
    (core instance $memory (instantiate $memory))
    (alias core export $memory "memory" (core memory $memory))
    (alias export $types "[constructor]fields" (func $new_fields))
    (alias export $types "[constructor]outgoing-request" (func $new_request))
    (alias export $types "[method]outgoing-request.body" (func $body_of))
    (core func $fields (canon lower (func $new_fields)))
    (core func $request (canon lower (func $new_request)))
    (core func $body (canon lower (func $body_of) (memory $memory)))
    (core module $code
        (import "host" "memory" (memory 1))
        (import "host" "fields" (func $fields (result i32)))
        (import "host" "request" (func $request (param i32) (result i32)))
        (import "host" "body" (func $body (param i32 i32)))
        (func (export "run") (result i32)
            (local $made i32)
            (loop $again
                (call $body (call $request (call $fields)) (i32.const 0))
                (if (i32.load8_u (i32.const 0))
                    (then (return (i32.ne (local.get $made) (i32.const 62)))))
                (local.set $made (i32.add (local.get $made) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $made) (i32.const 1000))))
            (i32.const 1)))
    (core instance $run (instantiate $code (with "host" (instance
        (export "memory" (memory $memory))
        (export "fields" (func $fields))
        (export "request" (func $request))
        (export "body" (func $body))))))
    (func $run (result (result)) (canon lift (core func $run "run")))
    (instance $entry (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $entry)))"#;

pub(crate) fn what_may_wait_in_bodies_is_memory_of_the_container() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    // Besides its one page of 64 KiB there is room for 62 bodies of 32.
    let make = Make::command("hello.p2.wasm", &["x"]).code(compiled_text(UNSENT));
    let (_, exit) = sandbox.run(Make { memory: Some(2 << 20), ..make });
    assert_eq!((exit.exit_code, exit.reason.as_str()), (0, "Completed"), "{exit:?}");
}

/// Makes fields of 8000 bytes until it is told that it may have no more, and ends with 0
/// if the word was that for their size and it had 246 of them.
const FIELDS: &str = r#"(component
    (import "wasi:http/types@VERSION" (instance $types
        (export "fields" (type $fields (sub resource)))
        (type $error (variant CASES))
        (export "header-error" (type $told (eq $error)))
        (export "[constructor]fields" (func (result (own $fields))))
        (export "[method]fields.append" (func
            (param "self" (borrow $fields)) (param "name" string) (param "value" (list u8))
            (result (result (error $told)))))))
    (core module $memory
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (unreachable)))
    (core instance $memory (instantiate $memory))
    (alias core export $memory "memory" (core memory $memory))
    (alias core export $memory "realloc" (core func $realloc))
    (alias export $types "[constructor]fields" (func $new_fields))
    (alias export $types "[method]fields.append" (func $append_to))
    (core func $fields (canon lower (func $new_fields)))
    (core func $append
        (canon lower (func $append_to) (memory $memory) (realloc (core func $realloc))))
    (core module $code
        (import "host" "memory" (memory 1))
        (import "host" "fields" (func $fields (result i32)))
        (import "host" "append" (func $append (param i32 i32 i32 i32 i32 i32)))
        (func (export "run") (result i32)
            (local $made i32)
            (memory.fill (i32.const 1024) (i32.const 120) (i32.const 8000))
            (loop $again
                (call $append (call $fields)
                    (i32.const 1024) (i32.const 1) (i32.const 1024) (i32.const 8000) (i32.const 0))
                (if (i32.load8_u (i32.const 0)) (then (return (i32.or
                    (i32.ne (local.get $made) (i32.const 246))
                    (i32.ne (i32.load8_u (i32.const 4)) (i32.const 3))))))
                (local.set $made (i32.add (local.get $made) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $made) (i32.const 1000))))
            (i32.const 1)))
    (core instance $run (instantiate $code (with "host" (instance
        (export "memory" (memory $memory))
        (export "fields" (func $fields))
        (export "append" (func $append))))))
    (func $run (result (result)) (canon lift (core func $run "run")))
    (instance $entry (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $entry)))"#;

pub(crate) fn fields_of_http_are_memory_of_the_container() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let cases = r#"(case "invalid-syntax") (case "forbidden") (case "immutable")"#;
    let more = r#"(case "size-exceeded") (case "other" (option string))"#;
    for (version, cases, ends) in [
        // It has no word for size.
        ("0.2.0", cases.to_owned(), (137, "OOMKilled")),
        ("0.3.0", format!("{cases} {more}"), (0, "Completed")),
    ] {
        let text = FIELDS.replace("VERSION", version).replace("CASES", &cases);
        let make = Make::command("hello.p2.wasm", &["x"]).code(compiled_text(&text));
        let (_, exit) = sandbox.run(Make { memory: Some(2 << 20), ..make });
        assert_eq!((exit.exit_code, exit.reason.as_str()), ends, "{exit:?}");
    }
}

/// Calls a function of the host, which has to trap before it gives an answer.
const CALLS: &str = r#"(component
    IMPORT
    (core module $memory
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (unreachable)))
    (core instance $memory (instantiate $memory))
    (alias core export $memory "memory" (core memory $memory))
    (alias core export $memory "realloc" (core func $realloc))
    (core func $call
        (canon lower (func $called) (memory $memory) (realloc (core func $realloc))))
    (core module $code
        (import "host" "memory" (memory 1))
        (import "host" "call" (func $call (param PARAMS)))
        (func (export "run") (result i32)
            (local $entry i32)
            CODE
            (i32.const 0)))
    (core instance $run (instantiate $code (with "host" (instance
        (export "memory" (memory $memory))
        (export "call" (func $call))))))
    (func $run (result (result)) (canon lift (core func $run "run")))
    (instance $entry (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $entry)))"#;

/// 64 MiB of random bytes.
const DRAWN: [&str; 3] = [
    r#"(import "wasi:random/random@0.2.0" (instance $random
        (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
    (alias export $random "get-random-bytes" (func $called))"#,
    "i64 i32",
    "(call $call (i64.const 67108864) (i32.const 0))",
];

/// Two thousand fields, each of the same 16 KiB.
const PASSED: [&str; 3] = [
    r#"(import "wasi:http/types@0.2.0" (instance $types
        (export "fields" (type $fields (sub resource)))
        (type $error (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
        (export "header-error" (type $told (eq $error)))
        (export "[static]fields.from-list" (func
            (param "entries" (list (tuple string (list u8))))
            (result (result (own $fields) (error $told)))))))
    (alias export $types "[static]fields.from-list" (func $called))"#,
    "i32 i32 i32",
    "(memory.fill (i32.const 0) (i32.const 120) (i32.const 32768))
    (loop $again
        (i32.store offset=32768 (local.get $entry) (i32.const 0))
        (i32.store offset=32772 (local.get $entry) (i32.const 1))
        (i32.store offset=32776 (local.get $entry) (i32.const 0))
        (i32.store offset=32780 (local.get $entry) (i32.const 16384))
        (local.set $entry (i32.add (local.get $entry) (i32.const 16)))
        (br_if $again (i32.lt_u (local.get $entry) (i32.const 32000))))
    (call $call (i32.const 32768) (i32.const 2000) (i32.const 64800))",
];

pub(crate) fn one_call_of_a_component_is_no_large_one() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    for ([import, params, code], why) in
        [(DRAWN, "exceeds limit 4194304"), (PASSED, "too much data is being copied")]
    {
        let text = CALLS.replace("IMPORT", import).replace("PARAMS", params).replace("CODE", code);
        let make = Make::command("hello.p2.wasm", &["x"]).code(compiled_text(&text));
        let (_, exit) = sandbox.run(make);
        assert_eq!(exit.exit_code, 134, "{exit:?}");
        assert!(exit.message.contains(why), "{}", exit.message);
    }
}

/// Draws 10 MiB of random bytes, by either name that preview 1 has had; ends with 0
/// if there are some at both ends and none beyond.
const DRAWS: &str = r#"(module
    (import "NAME" "random_get" (func $draw (param i32 i32) (result i32)))
    (import "NAME" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 161)
    (func (export "_start")
        (if (call $draw (i32.const 0) (i32.const 10485760)) (then (call $exit (i32.const 1))))
        (if (i64.eqz (i64.load (i32.const 0))) (then (call $exit (i32.const 2))))
        (if (i64.eqz (i64.load (i32.const 10485752))) (then (call $exit (i32.const 3))))
        (if (i32.eqz (i64.eqz (i64.load (i32.const 10485760)))) (then (call $exit (i32.const 4))))
        (call $exit (i32.const 0))))"#;

pub(crate) fn a_module_draws_as_many_random_bytes_as_it_has_room_for() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    for name in ["wasi_snapshot_preview1", "wasi_unstable"] {
        let code = compiled_text(&DRAWS.replace("NAME", name));
        let (_, exit) = sandbox.run(Make::module("return", &["x"]).code(code));
        assert_eq!((exit.exit_code, exit.message.as_str()), (0, ""), "{name}");
    }
}

/// Makes four million objects, and keeps the last or all of them.
const OBJECTS: &str = r#"(module
    (type $node (struct (field i32) (field (ref null $node))))
    (memory (export "memory") 1)
    (func (export "_start")
        (local $count i32) (local $last (ref null $node))
        (loop $more
            (local.set $last (struct.new $node (local.get $count) KEPT))
            (local.set $count (i32.add (local.get $count) (i32.const 1)))
            (br_if $more (i32.lt_u (local.get $count) (i32.const 4000000))))
        (if (i32.ne (struct.get $node 0 (local.get $last)) (i32.const 3999999))
            (then (unreachable)))))"#;

pub(crate) fn objects_that_nobody_has_any_more_are_not_counted() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let run = |kept: &str| {
        let code = compiled_text(&OBJECTS.replace("KEPT", kept));
        let make = Make::module("return", &["x"]).code(code);
        sandbox.run(Make { memory: Some(64 << 20), ..make }).1
    };
    let exit = run("(ref.null $node)");
    assert_eq!((exit.exit_code, exit.reason.as_str()), (0, "Completed"), "{exit:?}");
    let exit = run("(local.get $last)");
    assert_eq!((exit.exit_code, exit.reason.as_str()), (137, "OOMKilled"), "{exit:?}");
    assert!(exit.message.contains("memory limit is 67108864 bytes"), "{}", exit.message);
}

/// Ends with what its global says: 1 for nothing called, 2 for made ready.
const LIBRARY: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (global $state (mut i32) (i32.const 1))
    (func (export "_initialize") (global.set $state (i32.const 2)))
    (func (export "_start") (call $exit (global.get $state)))
    (func (export "work") (call $exit (i32.add (global.get $state) (i32.const 10)))))"#;

fn run_export(text: &str, export: &str) -> i32 {
    let zygote = Zygote::start();
    let guest = GuestKind::Module { export: export.into() };
    let make = Make { guest, ..Make::module("return", &["x"]).code(compiled_text(text)) };
    zygote.sandbox().run(make).1.exit_code
}

pub(crate) fn a_module_is_entered_where_its_image_says() {
    let text = LIBRARY.replace("_initialize", "unused");
    assert_eq!(run_export(&text, "work"), 11);
    assert_eq!(run_export(&text, "_start"), 1);
}

pub(crate) fn a_library_is_made_ready_before_it_is_entered() {
    assert_eq!(run_export(LIBRARY, "work"), 12);
    // A command does so itself.
    assert_eq!(run_export(LIBRARY, "_start"), 1);
}

pub(crate) fn a_missing_import_is_named_before_the_start() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let failure = sandbox.create(Make::module("missing-import", &["x"])).unwrap_err();
    let Failure::Unlinkable { message } = &failure else { panic!("{failure:?}") };
    assert!(message.contains("wasi_snapshot_preview1::fd_fly"), "{message}");
    assert!(message.contains("env::launch"), "{message}");
    let wrong = r#"(module
        (import "wasi_snapshot_preview1" "fd_close" (func (param i64)))
        (func (export "_start")))"#;
    let make = Make::module("return", &["x"]).code(compiled_text(wrong));
    let failure = sandbox.create(make).unwrap_err();
    assert!(matches!(&failure, Failure::Unlinkable { message } if message.contains("fd_close")));
}

pub(crate) fn a_missing_interface_is_named_with_what_there_is() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let text = r#"(component
        (import "wasi:keyvalue/store@0.3.0" (instance (export "open" (func))))
        (import "wasi:cli/environment@0.4.0" (instance (export "get-it" (func))))
        (import "wasi:cli/exit@0.2.0" (instance))
        (core module $code)
        (core instance (instantiate $code)))"#;
    let make = Make::command("hello.p2.wasm", &["x"]).code(compiled_text(text));
    let failure = sandbox.create(make).unwrap_err();
    let Failure::Unlinkable { message } = &failure else { panic!("{failure:?}") };
    assert!(message.contains("wasi:keyvalue/store@0.3.0"), "{message}");
    assert!(message.contains("wasi:cli/environment@0.2.12"), "{message}");
    assert!(!message.contains("wasi:cli/exit"), "{message}");
}

pub(crate) fn an_endless_name_does_not_end_the_connection() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let name = "a".repeat(90_000);
    let text = format!(
        r#"(component
        (import "wasi:cli/exit@0.2.0" (instance (export "{name}" (func))))
        (core module $code)
        (core instance (instantiate $code)))"#
    );
    let make = Make::command("hello.p2.wasm", &["x"]).code(compiled_text(&text));
    let failure = sandbox.create(make).unwrap_err();
    let Failure::Unlinkable { message } = &failure else { panic!("{failure:?}") };
    assert!(message.len() <= 4096, "{} bytes", message.len());
    assert!(message.contains("does not fit what this node offers"), "{message}");
}

pub(crate) fn a_module_without_an_entry_is_refused() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let failure = sandbox.create(Make::module("no-start", &["x"])).unwrap_err();
    assert!(matches!(&failure, Failure::Failed { message } if message.contains("_start")));
    let failure = sandbox.create(Make::command("other-component", &["x"])).unwrap_err();
    assert!(matches!(&failure, Failure::Failed { .. }), "{failure:?}");
    // A module where a component was announced.
    let make = Make::command("hello.p2.wasm", &["x"]);
    let failure = sandbox.create(make.code(crate::code::compiled("return"))).unwrap_err();
    assert!(matches!(&failure, Failure::Failed { .. }), "{failure:?}");
    let names = sandbox.ask(SandboxRequest::ListContainers);
    assert_eq!(names, SandboxReply::Containers { containers: vec![] });
}

pub(crate) fn directories_are_where_the_spec_says_and_as_writable() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let (data, config) = (sandbox.volume(), sandbox.volume());
    fs::write(config.path().join("greeting"), "hello from a volume\n").unwrap();
    let mounts = || {
        vec![
            (data.path().to_owned(), "/data".to_owned(), true),
            (config.path().to_owned(), "/etc/config".to_owned(), false),
        ]
    };
    for hello in ["hello.wasm", "hello.p2.wasm"] {
        let make = |args: &[&str]| {
            let args = [&["hello"], args].concat();
            let make = if hello == "hello.wasm" {
                Make::module(hello, &args)
            } else {
                Make::command(hello, &args)
            };
            Make { mounts: mounts(), ..make }
        };
        let (id, exit) = sandbox.run(make(&["cat", "/etc/config/greeting"]));
        assert_eq!((exit.exit_code, sandbox.output(&id)), (0, "hello from a volume\n".into()));
        let (_, exit) = sandbox.run(make(&["write", "/data/new", hello]));
        assert_eq!(exit.exit_code, 0, "{exit:?}");
        let written = data.path().join("new");
        assert_eq!(fs::read_to_string(&written).unwrap(), format!("{hello}\n"));
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&written).unwrap());
        assert_eq!(owner, sandbox.uid);
        let (_, exit) = sandbox.run(make(&["write", "/etc/config/greeting", "no"]));
        assert_ne!(exit.exit_code, 0);
        let (_, exit) = sandbox.run(make(&["cat", "/data/../../../../etc/passwd"]));
        assert_ne!(exit.exit_code, 0);
    }
    assert_eq!(
        fs::read_to_string(config.path().join("greeting")).unwrap(),
        "hello from a volume\n"
    );
}

pub(crate) fn a_working_directory_reaches_both_kinds_of_guests() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let make = |make| Make { working_directory: Some("/data".into()), ..make };
    let (id, _) = sandbox.run(make(Make::module("hello.wasm", &["hello", "env", "PWD"])));
    assert!(sandbox.output(&id).contains("/data"), "{}", sandbox.output(&id));
    let (id, exit) = sandbox.run(make(Make::command("hello.p2.wasm", &["hello", "env", "PWD"])));
    assert!(sandbox.output(&id).contains("/data"), "{} {exit:?}", sandbox.output(&id));
}

pub(crate) fn two_sandboxes_draw_different_random_bytes() {
    let zygote = Zygote::start();
    let (one, other) = (zygote.sandbox(), zygote.sandbox());
    let mut drawn = Vec::new();
    for sandbox in [&one, &other] {
        for guest in [
            Make::module("hello.wasm", &["hello", "random"]),
            Make::command("hello.p2.wasm", &["hello", "random"]),
        ] {
            let (id, exit) = sandbox.run(guest);
            assert_eq!(exit.exit_code, 0);
            drawn.push(sandbox.output(&id));
        }
    }
    let all = drawn.len();
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), all, "{drawn:?}");
}

pub(crate) fn a_full_log_goes_on_in_the_next_file() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let make = Make::module("hello.wasm", &["hello", "log-lines", "100"]);
    // 100 lines of 64 bytes with a head of 40: two files of 6000 hold all but a few hundred bytes.
    let id = sandbox.create(Make { log_bytes: 4000, ..make }).unwrap();
    let third = sandbox.files.path().join("third");
    let fds = [(DescriptorName::NextLog, append(&third).into())];
    let next = SandboxRequest::NextLog { id: id.clone() };
    assert_eq!(sandbox.connection.ask(next, &fds), SandboxReply::Done);
    sandbox.ask(SandboxRequest::StartContainer { id: id.clone() });
    sandbox.connection.event(|event| {
        matches!(event, SandboxEvent::LogRotated { id: of } if *of == id).then_some(())
    });
    sandbox.exit(&id);
    let (first, second) = (sandbox.log(&id), sandbox.log(&id).with_extension("next"));
    let mut all = String::new();
    for file in [&first, &second, &third] {
        assert!(fs::metadata(file).unwrap().len() <= 4000);
        all += &text_of(file);
    }
    let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else { panic!() };
    let written: u64 =
        [&first, &second, &third].map(|file| fs::metadata(file).unwrap().len()).iter().sum();
    let lost = containers[0].log_dropped_bytes;
    assert_eq!(lines(&all).len() as u64 + lost / (written / lines(&all).len() as u64), 100);
}

/// Starts an exec; its request, and the ends of its streams.
pub(crate) fn exec(
    sandbox: &Sandbox,
    id: &ContainerId,
    args: &[&str],
) -> (u64, OwnedFd, File, File) {
    let (stdin, our_stdin) = pipe();
    let (our_stdout, stdout) = pipe();
    let (our_stderr, stderr) = pipe();
    let args = args.iter().map(ToString::to_string).collect();
    let fds = [
        (DescriptorName::Stdin, stdin.into()),
        (DescriptorName::Stdout, stdout),
        (DescriptorName::Stderr, stderr),
    ];
    let request = SandboxRequest::Exec { id: id.clone(), args };
    (sandbox.connection.send(request, &fds), our_stdin, our_stdout, our_stderr)
}

pub(crate) fn an_exec_is_a_program_beside_the_container() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    // WASI 0.2 knows only success and failure; what the program says becomes 1.
    for (make, exit_code) in [
        (Make::module("hello.wasm", &["hello", "sleep", "3600"]), 7),
        (Make::command("hello.p2.wasm", &["hello", "sleep", "3600"]), 1),
    ] {
        let id = sandbox.start(Make { env: vec![("A".into(), "b".into())], ..make });
        sandbox.running(&id);
        let (request, stdin, mut stdout, _stderr) = exec(&sandbox, &id, &["hello", "cat"]);
        let input = "some text\n".repeat(20_000);
        let writer = std::thread::spawn({
            let input = input.clone();
            move || File::from(stdin).write_all(input.as_bytes()).unwrap()
        });
        let mut output = String::new();
        stdout.read_to_string(&mut output).unwrap();
        writer.join().unwrap();
        assert_eq!(output.len(), input.len());
        let ended =
            |exit_code| Some(SandboxReply::Exec(ExecOutcome { exit_code, message: String::new() }));
        assert_eq!(sandbox.connection.answer(request), ended(0));

        let (request, _stdin, _stdout, _stderr) = exec(&sandbox, &id, &["hello", "exit", "7"]);
        assert_eq!(sandbox.connection.answer(request), ended(exit_code));
        let (request, _, mut stdout, _) = exec(&sandbox, &id, &["hello", "env"]);
        assert_eq!(sandbox.connection.answer(request), ended(0));
        let mut output = String::new();
        stdout.read_to_string(&mut output).unwrap();
        assert_eq!(output, "A=b\n");
    }
}

pub(crate) fn an_exec_ends_with_its_container() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let id = sandbox.start(Make::module("sleep", &["x"]));
    sandbox.running(&id);
    let (request, _stdin, _stdout, _stderr) = exec(&sandbox, &id, &["x"]);
    sandbox.connection.send(SandboxRequest::StopContainer { id: id.clone(), grace_ms: 1000 }, &[]);
    // Two answers, in the order in which they are ready: the stop is at once.
    assert_eq!(sandbox.connection.answer(request + 1), Some(SandboxReply::Done));
    let outcome = sandbox.connection.answer(request);
    assert!(
        matches!(&outcome, Some(SandboxReply::Exec(outcome)) if outcome.exit_code == 137),
        "{outcome:?}"
    );
    assert_eq!(sandbox.exit(&id).exit_code, 143);
    let (request, ..) = exec(&sandbox, &id, &["x"]);
    assert!(matches!(sandbox.connection.answer(request), Some(SandboxReply::Failed(_))));
}

pub(crate) fn an_exec_ends_with_those_who_read_it() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let id = sandbox.start(Make::module("spin", &["x"]));
    sandbox.running(&id);
    let (request, stdin, stdout, stderr) = exec(&sandbox, &id, &["x"]);
    drop((stdin, stdout));
    // Who reads one of them still wants it.
    wait_until(|| stats(&sandbox)[0].memory_bytes == 2 * 65_536);
    drop(stderr);
    // It computes for ever, and the container goes on.
    let outcome = sandbox.connection.answer(request);
    assert!(
        matches!(&outcome, Some(SandboxReply::Exec(outcome)) if outcome.exit_code == 137),
        "{outcome:?}"
    );
    wait_until(|| stats(&sandbox)[0].memory_bytes == 65_536);
}

fn stats(sandbox: &Sandbox) -> Vec<krustlet_protocol::StatsReport> {
    match sandbox.ask(SandboxRequest::Stats) {
        SandboxReply::Stats { containers } => containers,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn statistics_tell_memory_and_processor_time() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let id = sandbox.start(Make::module("spin", &["x"]));
    sandbox.running(&id);
    let stats = || {
        let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else {
            panic!()
        };
        containers.into_iter().next().unwrap()
    };
    wait_until(|| stats().cpu_ns > 50_000_000);
    assert_eq!(stats().memory_bytes, 65_536);
    sandbox.stop(&id, 0);
    sandbox.exit(&id);
    wait_until(|| stats().memory_bytes == 0);
}

/// Waits for a condition, within the limit of all waits here.
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + crate::fixture::LIMIT;
    while !condition() {
        assert!(std::time::Instant::now() < end, "it does not come true");
        std::thread::yield_now();
    }
}
