//! Sockets of preview 1 modules.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use krustlet_model::ContainerId;
use krustlet_protocol::ListenPort;

use crate::{
    code::{compiled_go, compiled_text},
    fixture::{Make, Sandbox, Zygote},
    guests::wait_until,
    sockets::{connect, echo, network, run},
};

fn ports(ports: &[(Option<&str>, u16)]) -> Vec<ListenPort> {
    let port = |(name, port): &(Option<&str>, u16)| ListenPort {
        name: name.map(ToOwned::to_owned),
        port: *port,
    };
    ports.iter().map(port).collect()
}

pub(crate) fn a_module_serves_the_ports_of_its_container() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1", "fd00:77::1"]));
    let volume = sandbox.volume();
    let make = Make {
        listen_ports: ports(&[(Some("web"), 8080), (None, 9000)]),
        // So that the listeners are not at 3.
        mounts: vec![(volume.path().to_owned(), "/data".to_owned(), true)],
        ..Make::module("c-echo.wasm", &["echo"])
    };
    let id = sandbox.start(make);
    wait_until(|| sandbox.output(&id).contains("serving 2 listeners from descriptor 4 on"));
    for address in ["10.77.0.1:8080", "10.77.0.1:9000", "[fd00:77::1]:8080", "[fd00:77::1]:9000"] {
        assert_eq!(echo(address, "from C"), "from C", "{address}");
    }
    assert!(TcpStream::connect("127.0.0.1:8080").is_err());
    // Within the pod it is at the loopback too, and at the pod's address.
    for address in ["127.0.0.1", "10.77.0.1"] {
        let within = run(&sandbox, "pod", &["tcp-get", address, "9000", "from WASI 0.2"]);
        assert_eq!(within, "from WASI 0.2", "{address}");
    }
    // Many at once, and one that sends much and reads late.
    let mut open: Vec<_> = (0..300).map(|_| connect("10.77.0.1:8080")).collect();
    for (number, stream) in open.iter_mut().enumerate() {
        write!(stream, "{number}").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for (number, mut stream) in open.into_iter().enumerate() {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, number.to_string());
    }
    let stream = connect("10.77.0.1:9000");
    let mut writer = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        writer.write_all(&vec![7; 3_000_000]).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut answer = Vec::new();
    (&stream).read_to_end(&mut answer).unwrap();
    sending.join().unwrap();
    assert_eq!(answer.len(), 3_000_000);
    sandbox.stop(&id, 0);
    sandbox.exit(&id);
    assert!(TcpStream::connect("10.77.0.1:8080").is_err());
}

/// Non-blocking sockets, several of them and timers waited for at once.
pub(crate) fn a_server_of_go_serves_on_its_listener() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    let make = Make {
        listen_ports: ports(&[(None, 8080)]),
        ..Make::module("exit", &["server"]).code(compiled_go("go-http"))
    };
    let id = sandbox.start(make);
    wait_until(|| sandbox.output(&id).contains("serving"));
    let ask = |request: &str| {
        let mut stream = connect("10.77.0.1:8080");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let answer = |mut stream: TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let slow = ask("GET /slow?ms=1000 HTTP/1.0\r\n\r\n");
    // While it sleeps others are answered, and one sends its request in pieces.
    let mut pieces = ask("POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    let quick: Vec<_> = (0..50).map(|_| ask("GET /hello HTTP/1.0\r\n\r\n")).collect();
    for stream in quick {
        assert!(answer(stream).ends_with("Hello from Go!\n"));
    }
    let body = "b".repeat(1_000_000);
    write!(pieces, "Content-Length: {}\r\n\r\n", body.len()).unwrap();
    let mut reads = pieces.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        reads.read_to_string(&mut text).unwrap();
        text
    });
    pieces.write_all(body.as_bytes()).unwrap();
    let echoed = reader.join().unwrap();
    assert!(echoed.starts_with("HTTP/1.1 200") && echoed.len() > body.len(), "{}", echoed.len());
    assert!(answer(slow).ends_with("slept\n"));
}

pub(crate) fn a_module_that_cannot_accept_gets_no_listener() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    let make = Make { listen_ports: ports(&[(None, 8080)]), ..Make::module("sleep", &["x"]) };
    let id = sandbox.start(make);
    sandbox.running(&id);
    // A client is told at once, and does not wait for ever.
    assert!(TcpStream::connect("10.77.0.1:8080").is_err());
}

pub(crate) fn a_module_in_a_pod_without_network_runs_as_ever() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let make = Make { listen_ports: ports(&[(None, 8080)]), ..Make::module("exit", &["x"]) };
    assert_eq!(sandbox.run(make).1.exit_code, 3);
}

pub(crate) fn socket_calls_on_what_is_no_socket_fail_by_name() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    let make =
        Make { listen_ports: ports(&[(None, 8080)]), ..Make::module("c-wrong.wasm", &["wrong"]) };
    let (id, exit) = sandbox.run(make);
    assert_eq!(exit.exit_code, 0);
    let said = sandbox.output(&id);
    let of = |what: &str| -> Vec<_> {
        let lines = said.lines().filter(|line| line.contains(what));
        lines.filter_map(|line| line.split_once(": ")).map(|(_, error)| error.to_owned()).collect()
    };
    assert_eq!(of("stdout"), ["notsock"; 4], "{said}");
    assert_eq!(of("nothing"), ["badf"; 4], "{said}");
    assert_eq!(of("listener"), ["again", "notconn", "notconn", "notconn"], "{said}");
}

/// Opens the same file three times over listeners at 4 and 5, and says by its
/// exit code which number came first that is a listener's; 0 if none.
const OPENS: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_fdstat_get" (func $stat (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "sock_accept" (func (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "file")
    (data (i32.const 16) "\00\00\00\00\04\00\00\00")
    (func $check (param $ok i32) (param $code i32)
        (if (i32.eqz (local.get $ok)) (then (call $exit (local.get $code)))))
    (func $again (param $flags i32)
        ;; directory 3, create as told, read and write
        (call $check (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4)
            (local.get $flags) (i64.const 66) (i64.const 66) (i32.const 0) (i32.const 8)))
            (i32.const 10))
        (call $check (i32.gt_u (i32.load (i32.const 8)) (i32.const 5)) (i32.load (i32.const 8)))
        (call $check (i32.eqz (call $write (i32.load (i32.const 8)) (i32.const 16) (i32.const 1)
            (i32.const 24))) (i32.const 11)))
    (func $socket (param $fd i32)
        (call $check (i32.eqz (call $stat (local.get $fd) (i32.const 64))) (i32.const 12))
        (call $check (i32.eq (i32.load8_u (i32.const 64)) (i32.const 6)) (i32.const 13)))
    (func (export "_start")
        (call $again (i32.const 5))
        (call $again (i32.const 1))
        (call $socket (i32.const 4))
        (call $socket (i32.const 5))
        ;; A number is free when its socket is closed, and the file that was hidden with it.
        (call $check (i32.eqz (call $close (i32.const 4))) (i32.const 14))
        (call $check (i32.eq (call $stat (i32.const 4) (i32.const 64)) (i32.const 8))
            (i32.const 15))
        (call $socket (i32.const 5))
        (call $check (i32.eqz (call $close (i32.const 5))) (i32.const 16))
        (call $exit (i32.const 0))))"#;

pub(crate) fn files_and_sockets_do_not_share_numbers() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    let volume = sandbox.volume();
    let make = Make {
        listen_ports: ports(&[(None, 8080), (None, 8081)]),
        mounts: vec![(volume.path().to_owned(), "/data".to_owned(), true)],
        ..Make::module("exit", &["x"]).code(compiled_text(OPENS))
    };
    let (_, exit) = sandbox.run(make);
    assert_eq!((exit.exit_code, exit.message.as_str()), (0, ""));
    assert_eq!(std::fs::read(volume.path().join("file")).unwrap(), b"file");
}

/// Opens a file until that fails, by either name that preview 1 has had. Ends with
/// 101 if that was not at the 4096th file, its directory included, with 102 if it had
/// to close none to open another, and with 0 if all is as it should be.
const OPENS_ALL: &str = r#"(module
    (import "NAME" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "NAME" "fd_close" (func $close (param i32) (result i32)))
    (import "NAME" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "file")
    (func $again (result i32)
        (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0)
            (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 8)))
    (func (export "_start") (local $open i32) (local $error i32)
        (loop $next
            (local.set $open (i32.add (local.get $open) (i32.const 1)))
            (local.set $error (call $again))
            (br_if $next (i32.eqz (local.get $error))))
        (if (i32.ne (local.get $error) (i32.const 33)) (then (call $exit (local.get $error))))
        (if (i32.ne (local.get $open) (i32.const 4096)) (then (call $exit (i32.const 101))))
        (drop (call $close (i32.load (i32.const 8))))
        (if (call $again) (then (call $exit (i32.const 102))))
        (if (i32.eqz (call $again)) (then (call $exit (i32.const 102))))
        (call $exit (i32.const 0))))"#;

pub(crate) fn a_module_has_so_many_files_open_and_no_more() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let volume = sandbox.volume();
    std::fs::write(volume.path().join("file"), "").unwrap();
    for name in ["wasi_snapshot_preview1", "wasi_unstable"] {
        let code = compiled_text(&OPENS_ALL.replace("NAME", name));
        let mounts = vec![(volume.path().to_owned(), "/data".to_owned(), false)];
        let (_, exit) = sandbox.run(Make { mounts, ..Make::module("exit", &["x"]).code(code) });
        assert_eq!((exit.exit_code, exit.message.as_str()), (0, ""), "{name}");
    }
}

/// Waits for connections on the listener at 3; to be followed by `_start`.
const ACCEPTS: &str = r#"(module
    (import "wasi_snapshot_preview1" "poll_oneoff"
        (func $poll (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "sock_accept"
        (func $sock_accept (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read"
        (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "sock_recv"
        (func $recv (param i32 i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "sock_shutdown"
        (func $shutdown (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 256)
    (func $check (param $ok i32) (param $code i32)
        (if (i32.eqz (local.get $ok)) (then (call $exit (local.get $code)))))
    ;; A subscription to read: 48 bytes, whose user data is the descriptor.
    (func $subscribe (param $at i32) (param $fd i32)
        (i32.store (local.get $at) (local.get $fd))
        (i32.store8 offset=8 (local.get $at) (i32.const 1))
        (i32.store offset=16 (local.get $at) (local.get $fd)))
    (func $accept (result i32)
        (call $subscribe (i32.const 0) (i32.const 3))
        (loop $again
            (call $check (i32.eqz (call $poll (i32.const 0) (i32.const 256) (i32.const 1)
                (i32.const 512))) (i32.const 10))
            ;; The connection may wait, unlike the listener.
            (br_if $again (call $sock_accept (i32.const 3) (i32.const 0) (i32.const 520))))
        (i32.load (i32.const 520)))
    (func $buffer (param $at i32) (param $length i32)
        (i32.store (i32.const 600) (local.get $at))
        (i32.store (i32.const 604) (local.get $length)))
    ;; How many bytes came; nothing is ever cut off.
    (func $receive (param $fd i32) (param $at i32) (param $length i32) (param $flags i32)
        (result i32)
        (call $buffer (local.get $at) (local.get $length))
        (i32.store16 (i32.const 616) (i32.const 1))
        (call $check (i32.eqz (call $recv (local.get $fd) (i32.const 600) (i32.const 1)
            (local.get $flags) (i32.const 612) (i32.const 616))) (i32.const 20))
        (call $check (i32.eqz (i32.load16_u (i32.const 616))) (i32.const 21))
        (i32.load (i32.const 612)))
    (func $send (param $fd i32) (param $at i32) (param $length i32)
        (call $buffer (local.get $at) (local.get $length))
        (call $check (i32.eqz (call $write (local.get $fd) (i32.const 600) (i32.const 1)
            (i32.const 612))) (i32.const 22))
        (call $check (i32.eq (i32.load (i32.const 612)) (local.get $length)) (i32.const 23)))
"#;

/// Runs a program that accepts connections at its pod's address, and its sandbox with
/// it; the zygote is there as long as it is kept.
fn serving(start: &str) -> (Zygote, Sandbox, ContainerId) {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    let id = sandbox.start(accepting(start));
    sandbox.running(&id);
    (zygote, sandbox, id)
}

fn accepting(start: &str) -> Make {
    let text = format!("{ACCEPTS}{start})");
    Make {
        listen_ports: ports(&[(None, 8080)]),
        ..Make::module("exit", &["x"]).code(compiled_text(&text))
    }
}

pub(crate) fn what_is_said_to_be_readable_is() {
    // Reads five bytes from whoever has some, and sends them back.
    let start = r#"(func (export "_start")
        (local $first i32) (local $fd i32)
        (local.set $first (call $accept))
        (call $subscribe (i32.const 48) (call $accept))
        (call $subscribe (i32.const 0) (local.get $first))
        (loop $again
            (call $check (i32.eqz (call $poll (i32.const 0) (i32.const 256) (i32.const 2)
                (i32.const 512))) (i32.const 11))
            (local.set $fd (i32.load (i32.const 256)))
            (i32.store (i32.const 600) (i32.const 700))
            (i32.store (i32.const 604) (i32.const 5))
            (call $check (i32.eqz (call $read (local.get $fd) (i32.const 600) (i32.const 1)
                (i32.const 612))) (i32.const 12))
            (if (i32.eqz (i32.load (i32.const 612))) (then (call $exit (i32.const 0))))
            (call $check (i32.eqz (call $write (local.get $fd) (i32.const 600) (i32.const 1)
                (i32.const 612))) (i32.const 13))
            (br $again)))"#;
    let (_zygote, sandbox, id) = serving(start);
    let mut clients = [(); 2].map(|()| connect("10.77.0.1:8080"));
    // Exactly what is read at once, so that nothing tells that there is no more.
    for _ in 0..3 {
        for client in &mut clients {
            client.write_all(b"12345").unwrap();
            let mut answer = [0; 5];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(answer, *b"12345");
        }
    }
    drop(clients);
    assert_eq!(sandbox.exit(&id).exit_code, 0);
}

pub(crate) fn a_connection_that_was_broken_off_is_told_as_such() {
    /// `ECONNRESET`.
    const RESET: i32 = 15;
    // Says that it is there, waits for something to read, and ends with the number
    // of the error that it finds.
    let start = r#"(func (export "_start")
        (local $fd i32)
        (local.set $fd (call $accept))
        (i32.store (i32.const 600) (i32.const 700))
        (i32.store (i32.const 604) (i32.const 1))
        (call $check (i32.eqz (call $write (local.get $fd) (i32.const 600) (i32.const 1)
            (i32.const 612))) (i32.const 101))
        (call $subscribe (i32.const 0) (local.get $fd))
        (call $check (i32.eqz (call $poll (i32.const 0) (i32.const 256) (i32.const 1)
            (i32.const 512))) (i32.const 102))
        ;; Nothing more will come.
        (call $check (i32.eq (i32.load16_u (i32.const 280)) (i32.const 1)) (i32.const 103))
        (call $exit (call $read (local.get $fd) (i32.const 600) (i32.const 1)
            (i32.const 612))))"#;
    let (_zygote, sandbox, id) = serving(start);
    let mut client = connect("10.77.0.1:8080");
    client.read_exact(&mut [0]).unwrap();
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(sandbox.exit(&id).exit_code, RESET);
}

pub(crate) fn lists_are_no_longer_than_linux_takes() {
    let start = r#"(func (export "_start")
        (local $fd i32) (local $at i32)
        (local.set $fd (call $accept))
        ;; A million buffers, and half as many subscriptions: invalid.
        (call $check (i32.eq (call $write (local.get $fd) (i32.const 65536) (i32.const 1000000)
            (i32.const 612)) (i32.const 28)) (i32.const 11))
        (call $check (i32.eq (call $read (local.get $fd) (i32.const 65536) (i32.const 1000000)
            (i32.const 612)) (i32.const 28)) (i32.const 12))
        (call $check (i32.eq (call $poll (i32.const 65536) (i32.const 65536) (i32.const 300000)
            (i32.const 612)) (i32.const 28)) (i32.const 13))
        ;; As many as there may be, of one byte each.
        (local.set $at (i32.const 65536))
        (loop $more
            (i32.store offset=4 (local.get $at) (i32.const 1))
            (local.set $at (i32.add (local.get $at) (i32.const 8)))
            (br_if $more (i32.lt_u (local.get $at) (i32.const 73728))))
        (call $check (i32.eqz (call $write (local.get $fd) (i32.const 65536) (i32.const 1024)
            (i32.const 612))) (i32.const 14))
        (call $check (i32.eq (i32.load (i32.const 612)) (i32.const 1024)) (i32.const 15)))"#;
    let (_zygote, sandbox, id) = serving(start);
    let mut all = Vec::new();
    connect("10.77.0.1:8080").read_to_end(&mut all).unwrap();
    assert_eq!((all.len(), sandbox.exit(&id).exit_code), (1024, 0));
}

pub(crate) fn what_is_looked_at_is_still_there() {
    // Looks at what is there twice before it reads it, and sends back all three.
    let start = r#"(func (export "_start")
        (local $fd i32)
        (local.set $fd (call $accept))
        (call $check (i32.eq (call $receive (local.get $fd) (i32.const 700) (i32.const 8)
            (i32.const 1)) (i32.const 5)) (i32.const 11))
        (call $check (i32.eq (call $receive (local.get $fd) (i32.const 720) (i32.const 8)
            (i32.const 1)) (i32.const 5)) (i32.const 12))
        (call $check (i32.eq (call $receive (local.get $fd) (i32.const 740) (i32.const 8)
            (i32.const 0)) (i32.const 5)) (i32.const 13))
        ;; A flag that there is not.
        (call $check (i32.eq (call $recv (local.get $fd) (i32.const 600) (i32.const 1)
            (i32.const 4) (i32.const 612) (i32.const 616)) (i32.const 28)) (i32.const 14))
        (call $send (local.get $fd) (i32.const 700) (i32.const 5))
        (call $send (local.get $fd) (i32.const 720) (i32.const 5))
        (call $send (local.get $fd) (i32.const 740) (i32.const 5)))"#;
    let (_zygote, sandbox, id) = serving(start);
    let mut client = connect("10.77.0.1:8080");
    client.write_all(b"hello").unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!((all.as_str(), sandbox.exit(&id).exit_code), ("hellohellohello", 0));
}

pub(crate) fn who_waits_for_all_gets_all() {
    // Tells of the first byte of each eight, waits for all of them in two buffers,
    // and sends them back; what comes before the end may be fewer.
    let start = r#"(func (export "_start")
        (local $fd i32)
        (local.set $fd (call $accept))
        (i32.store (i32.const 632) (i32.const 720))
        (i32.store (i32.const 636) (i32.const 5))
        (i32.store (i32.const 640) (i32.const 725))
        (i32.store (i32.const 644) (i32.const 3))
        (loop $again
            (if (i32.eqz (call $receive (local.get $fd) (i32.const 700) (i32.const 1)
                (i32.const 1))) (then (call $exit (i32.const 0))))
            (call $send (local.get $fd) (i32.const 700) (i32.const 1))
            (call $check (i32.eqz (call $recv (local.get $fd) (i32.const 632) (i32.const 2)
                (i32.const 2) (i32.const 612) (i32.const 616))) (i32.const 11))
            (call $send (local.get $fd) (i32.const 720) (i32.load (i32.const 612)))
            (br $again)))"#;
    let (_zygote, sandbox, id) = serving(start);
    let mut client = connect("10.77.0.1:8080");
    let told = |client: &mut TcpStream, first: &[u8]| {
        client.write_all(first).unwrap();
        let mut told = [0];
        client.read_exact(&mut told).unwrap();
        assert_eq!(told[0], first[0]);
    };
    // Once the rest might be there before it is waited for, but not so often.
    for _ in 0..20 {
        told(&mut client, b"abc");
        client.write_all(b"defgh").unwrap();
        let mut all = [0; 8];
        client.read_exact(&mut all).unwrap();
        assert_eq!(all, *b"abcdefgh");
    }
    told(&mut client, b"xyz");
    client.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), sandbox.exit(&id).exit_code), ("xyz", 0));
}

pub(crate) fn one_direction_ends_and_the_other_goes_on() {
    // Ends what it sends, and then hears all that comes; twice.
    let ends_sending = r#"(data (i32.const 700) "bye") (data (i32.const 710) "after")
        (func $serve (param $fd i32)
            (call $check (i32.eq (call $shutdown (local.get $fd) (i32.const 0))
                (i32.const 28)) (i32.const 11))
            (call $send (local.get $fd) (i32.const 700) (i32.const 3))
            (call $check (i32.eqz (call $shutdown (local.get $fd) (i32.const 2)))
                (i32.const 12))
            (call $buffer (i32.const 700) (i32.const 3))
            (call $check (i32.eq (call $write (local.get $fd) (i32.const 600) (i32.const 1)
                (i32.const 612)) (i32.const 64)) (i32.const 13))
            (call $check (i32.eq (call $receive (local.get $fd) (i32.const 720) (i32.const 5)
                (i32.const 2)) (i32.const 5)) (i32.const 14))
            (call $check (i32.eq (i32.load (i32.const 720)) (i32.load (i32.const 710)))
                (i32.const 15))
            (call $check (i32.eqz (call $receive (local.get $fd) (i32.const 720) (i32.const 5)
                (i32.const 0))) (i32.const 16)))
        (func (export "_start") (call $serve (call $accept)) (call $serve (call $accept))
            (drop (call $accept)))"#;
    // Wants to hear nothing, hears the end at once, and still sends.
    let ends_receiving = r#"(data (i32.const 700) "still")
        (func $serve (param $fd i32)
            (call $check (i32.eqz (call $shutdown (local.get $fd) (i32.const 1)))
                (i32.const 11))
            (call $check (i32.eqz (call $receive (local.get $fd) (i32.const 720) (i32.const 5)
                (i32.const 0))) (i32.const 12))
            (call $send (local.get $fd) (i32.const 700) (i32.const 5))
            (call $check (i32.eqz (call $shutdown (local.get $fd) (i32.const 3)))
                (i32.const 13)))
        (func (export "_start") (call $serve (call $accept)) (call $serve (call $accept))
            (drop (call $accept)))"#;
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    for (program, said) in [(ends_sending, "bye"), (ends_receiving, "still")] {
        let id = sandbox.start(accepting(program));
        sandbox.running(&id);
        let mut client = connect("10.77.0.1:8080");
        let mut heard = String::new();
        client.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, said);
        if program == ends_sending {
            // Only now, when it has seen the end.
            client.write_all(b"after").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        }
        // A client within the pod, by its loopback.
        assert_eq!(run(&sandbox, "pod", &["tcp-get", "127.0.0.1", "8080", "after"]), said);
        // Only now it ends: who sends to one that is gone would hear of that.
        let _last = connect("10.77.0.1:8080");
        assert_eq!(sandbox.exit(&id).exit_code, 0, "{said}");
    }
}

/// Prints its environment, and could accept.
const ENVIRONMENT: &str = r#"(module
    (import "wasi_snapshot_preview1" "environ_sizes_get"
        (func $sizes (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "sock_accept" (func (param i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (local $at i32) (local $end i32)
        (drop (call $sizes (i32.const 0) (i32.const 4)))
        (drop (call $get (i32.const 64) (i32.const 4096)))
        (local.set $at (i32.const 4096))
        (local.set $end (i32.add (local.get $at) (i32.load (i32.const 4))))
        ;; A line for each.
        (loop $next
            (if (i32.eqz (i32.load8_u (local.get $at)))
                (then (i32.store8 (local.get $at) (i32.const 10))))
            (local.set $at (i32.add (local.get $at) (i32.const 1)))
            (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
        (i32.store (i32.const 16) (i32.const 4096))
        (i32.store (i32.const 20) (i32.load (i32.const 4)))
        (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))))"#;

pub(crate) fn a_module_is_told_which_listener_is_which() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    let volume = sandbox.volume();
    let make = Make {
        listen_ports: ports(&[(Some("web"), 8080), (None, 9000), (Some("admin"), 9001)]),
        mounts: vec![(volume.path().to_owned(), "/data".to_owned(), true)],
        ..Make::module("exit", &["x"]).code(compiled_text(ENVIRONMENT))
    };
    let (id, _) = sandbox.run(make);
    let said = sandbox.output(&id);
    for line in ["LISTEN_FDS=3", "LISTEN_FDS_FIRST=4", "LISTEN_FDNAMES=web:unknown:admin"] {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
}
