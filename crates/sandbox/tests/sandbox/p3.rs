//! Guests of WASI 0.3: commands and their sockets.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use krustlet_model::ContainerId;
use krustlet_protocol::{
    Destinations, ExecOutcome, Host, Names, PodNetwork, SandboxReply, SandboxRequest, SocketLimits,
};

use crate::{
    code::compiled_text,
    fixture::{LIMIT, Make, Sandbox, Zygote},
    guests::{exec, wait_until},
    sockets::{connect, echo, network, report},
};

fn net3(args: &[&str]) -> Make {
    let args: Vec<_> = std::iter::once("net3").chain(args.iter().copied()).collect();
    Make::command("net3.wasm", &args)
}

/// Starts a server and waits until it says that it listens.
fn serve(sandbox: &Sandbox, args: &[&str]) -> ContainerId {
    let id = sandbox.start(net3(args));
    wait_until(|| sandbox.output(&id).contains("listening on"));
    id
}

/// What a program says that runs to its end.
fn run(sandbox: &Sandbox, args: &[&str]) -> String {
    let (id, exit) = sandbox.run(net3(args));
    assert!([0, 1].contains(&exit.exit_code), "{args:?}: {exit:?}");
    sandbox.output(&id).trim().to_owned()
}

fn pod(zygote: &Zygote, addresses: &[&str]) -> Sandbox {
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(addresses));
    sandbox
}

pub(crate) fn a_command_sees_its_arguments_environment_and_directories() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let (data, config) = (sandbox.volume(), sandbox.volume());
    fs::write(config.path().join("greeting"), "hello from a volume\n").unwrap();
    let make = |args: &[&str]| Make {
        env: vec![("COLOUR".into(), "green".into())],
        working_directory: Some("/data".into()),
        mounts: vec![
            (data.path().to_owned(), "/data".into(), true),
            (config.path().to_owned(), "/config".into(), false),
        ],
        ..net3(args)
    };
    let (id, exit) = sandbox.run(make(&["world"]));
    assert_eq!((exit.exit_code, exit.reason.as_str()), (0, "Completed"), "{exit:?}");
    let said = "argument net3\nargument world\nvariable COLOUR=green\nvariable PWD=/data\n\
                directory /data\ndirectory /config\nstands in /data\n";
    assert_eq!(sandbox.output(&id), said);
    let log = fs::read_to_string(sandbox.log(&id)).unwrap();
    assert!(log.lines().all(|line| line.contains(" stdout F ")), "{log}");
    let (id, exit) = sandbox.run(make(&["copy", "/config/greeting", "/data/new"]));
    assert_eq!(exit.exit_code, 0, "{exit:?}");
    assert_eq!(sandbox.output(&id), "hello from a volume\n");
    let copied = fs::read_to_string(data.path().join("new")).unwrap();
    assert_eq!(copied, "hello from a volume\n");
    for (from, to) in [("/data/new", "/config/new"), ("/data/../../etc/passwd", "/data/new")] {
        let (_, exit) = sandbox.run(make(&["copy", from, to]));
        assert_eq!(exit.exit_code, 1, "{from} to {to}: {exit:?}");
    }
}

pub(crate) fn a_command_ends_as_it_says() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    for (code, reason) in [(0, "Completed"), (3, "Error"), (130, "Error"), (255, "Error")] {
        let (_, exit) = sandbox.run(net3(&["exit", &code.to_string()]));
        assert_eq!((exit.exit_code, exit.reason.as_str()), (code, reason), "{exit:?}");
    }
    // An error of `run` has no number.
    let (id, exit) = sandbox.run(net3(&["no-such-thing"]));
    assert_eq!((exit.exit_code, exit.reason.as_str()), (1, "Error"));
    assert!(sandbox.output(&id).starts_with("unknown call"));
    let (_, exit) = sandbox.run(net3(&["trap"]));
    assert_eq!((exit.exit_code, exit.reason.as_str()), (134, "Error"), "{exit:?}");
    assert!(exit.message.contains("wasm trap: "), "{}", exit.message);
    assert!(exit.message.contains("0: "), "no backtrace: {}", exit.message);
    let (_, exit) = sandbox.run(Make { memory: Some(16 << 20), ..net3(&["grow", "64"]) });
    assert_eq!((exit.exit_code, exit.reason.as_str()), (137, "OOMKilled"), "{exit:?}");
    // What it leaves running when `run` returns ends with it.
    let (id, exit) = sandbox.run(net3(&["later"]));
    assert_eq!((exit.exit_code, sandbox.output(&id)), (0, "returning\n".into()));
}

pub(crate) fn a_command_is_stopped_as_any_other() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    for what in ["spin", "sleep"] {
        for (grace, code) in [(3_600_000, 143), (0, 137)] {
            let id = sandbox.start(net3(&[what]));
            sandbox.running(&id);
            sandbox.stop(&id, grace);
            assert_eq!(sandbox.exit(&id).exit_code, code, "{what}, {grace} ms");
        }
    }
    // One that computes lets others run, and is charged for it.
    let spinning = sandbox.start(net3(&["spin"]));
    sandbox.running(&spinning);
    assert_eq!(sandbox.run(net3(&["world"])).1.exit_code, 0);
    wait_until(|| {
        let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else {
            panic!()
        };
        containers.iter().any(|of| of.id == spinning && of.cpu_ns > 10_000_000)
    });
}

pub(crate) fn calls_that_wait_and_streams_have_a_bound() {
    let zygote = Zygote::start();
    let sandbox = pod(&zygote, &["10.77.0.1"]);
    for (what, why) in
        [("tasks", "store handle limit exceeded"), ("streams", "resource table has no free keys")]
    {
        let (_, exit) = sandbox.run(net3(&[what]));
        assert_eq!((exit.exit_code, exit.reason.as_str()), (134, "Error"), "{exit:?}");
        assert!(exit.message.contains(why), "{}", exit.message);
    }
    // The sandbox goes on.
    assert_eq!(sandbox.run(net3(&["world"])).1.exit_code, 0);
}

pub(crate) fn much_output_is_in_the_log_whole() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let (id, exit) = sandbox.run(net3(&["lines", "20000"]));
    assert_eq!(exit.exit_code, 0, "{exit:?}");
    assert_eq!(sandbox.output(&id), format!("{:.<99}\n", "").repeat(20_000));
}

pub(crate) fn a_command_runs_beside_its_container() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let id = sandbox.start(net3(&["sleep"]));
    sandbox.running(&id);
    let (request, _stdin, mut stdout, _stderr) = exec(&sandbox, &id, &["net3", "world"]);
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("argument net3\nargument world\n"), "{said}");
    let ended = ExecOutcome { exit_code: 0, message: String::new() };
    assert_eq!(sandbox.connection.answer(request), Some(SandboxReply::Exec(ended)));
}

pub(crate) fn a_version_that_is_not_there_is_named() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let text = r#"(component
        (import "wasi:cli/environment@0.4.0" (instance (export "get-it" (func))))
        (import "wasi:sockets/types@0.3.1" (instance))
        (core module $code)
        (core instance (instantiate $code)))"#;
    let failure = sandbox.create(net3(&[]).code(compiled_text(text))).unwrap_err();
    let message = format!("{failure:?}");
    let offered = "wasi:cli/environment@0.2.12 and wasi:cli/environment@0.3.0";
    assert!(message.contains(offered), "{message}");
    assert!(!message.contains("wasi:sockets"), "{message}");
    let text = r#"(component
        (instance $run)
        (export "wasi:cli/run@0.3.0" (instance $run)))"#;
    let failure = sandbox.create(net3(&[]).code(compiled_text(text))).unwrap_err();
    assert!(format!("{failure:?}").contains("cannot be entered"), "{failure:?}");
}

pub(crate) fn servers_and_clients_are_at_the_pods_addresses() {
    let zygote = Zygote::start();
    let sandbox = pod(&zygote, &["10.77.0.1", "fd00:77::1"]);
    serve(&sandbox, &["tcp-echo", "8080"]);
    serve(&sandbox, &["tcp-echo", "8080", "::"]);
    serve(&sandbox, &["tcp-echo", "8081", "127.0.0.1"]);
    serve(&sandbox, &["udp-echo", "8080"]);
    serve(&sandbox, &["udp-echo", "8080", "::"]);
    for address in ["10.77.0.1:8080", "[fd00:77::1]:8080"] {
        assert_eq!(echo(address, "hello"), "hello", "{address}");
    }
    for address in ["10.77.0.1", "127.0.0.1", "fd00:77::1", "::1"] {
        assert_eq!(run(&sandbox, &["tcp-get", address, "8080", "over TCP"]), "over TCP");
        assert_eq!(run(&sandbox, &["udp-get", address, "8080", "over UDP"]), "over UDP");
    }
    // What is bound to the loopback is there for the pod only, whose loopback is
    // its own.
    assert_eq!(run(&sandbox, &["tcp-get", "127.0.0.1", "8081", "x"]), "x");
    assert!(TcpStream::connect("10.77.0.1:8081").is_err());
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = outside.local_addr().unwrap().port().to_string();
    assert_eq!(run(&sandbox, &["connect", "127.0.0.1", &port]), "connection-refused");
    let said = run(&sandbox, &["connect", "127.0.0.1", "8080"]);
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[1].starts_with("local 127.0.0.1:"), "{said}");
    assert_eq!((lines[0], lines[2]), ("ok", "remote 127.0.0.1:8080"));
    for verb in ["bind", "udp-bind"] {
        assert_eq!(run(&sandbox, &[verb, "10.77.0.2", "90"]), "address-not-bindable");
        assert_eq!(run(&sandbox, &[verb, "0.0.0.0", "8080"]), "address-in-use");
        assert_eq!(run(&sandbox, &[verb, "::ffff:10.77.0.1", "90"]), "invalid-argument");
    }
    let said = report(&sandbox);
    assert!(said.accepted >= 4 && said.received_bytes > 0 && said.sent_bytes > 0, "{said:?}");
}

pub(crate) fn a_client_comes_from_the_pods_address() {
    let zygote = Zygote::start();
    let sandbox = pod(&zygote, &["10.77.0.5"]);
    let outside = TcpListener::bind("10.77.9.9:0").unwrap();
    let to = outside.local_addr().unwrap();
    let accepted = thread::spawn(move || {
        let (mut stream, from) = outside.accept().unwrap();
        // Its end is heard while it still listens.
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(text.to_uppercase().as_bytes()).unwrap();
        from
    });
    let port = to.port().to_string();
    assert_eq!(run(&sandbox, &["tcp-get", "10.77.9.9", &port, "half-closed"]), "HALF-CLOSED");
    assert_eq!(accepted.join().unwrap().ip(), SocketAddr::from(([10, 77, 0, 5], 0)).ip());
    let outside = UdpSocket::bind("10.77.9.9:0").unwrap();
    outside.set_read_timeout(Some(LIMIT)).unwrap();
    let port = outside.local_addr().unwrap().port().to_string();
    let answers = thread::spawn(move || {
        let (length, from) = outside.recv_from(&mut [0; 16]).unwrap();
        outside.send_to(b"yes", from).unwrap();
        (length, from.ip())
    });
    assert_eq!(run(&sandbox, &["udp-get", "10.77.9.9", &port, "no?"]), "yes");
    assert_eq!(answers.join().unwrap(), (3, "10.77.0.5".parse().unwrap()));
}

pub(crate) fn destinations_limits_and_pods_without_network_are_refused() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    for args in [
        &["bind", "0.0.0.0", "8080"][..],
        &["udp-bind", "127.0.0.1", "8080"],
        &["connect", "127.0.0.1", "8080"],
        &["lookup", "localhost"],
    ] {
        assert_eq!(run(&sandbox, args), "access-denied", "{args:?}");
    }
    let refused = report(&sandbox).refusals.destination;
    let outside = TcpListener::bind("10.77.8.1:0").unwrap();
    let port = outside.local_addr().unwrap().port();
    let (address, prefix) = ("10.77.8.0".parse().unwrap(), 24);
    let pod = PodNetwork {
        refused: vec![Destinations { address, prefix, port: Some(port) }],
        limits: SocketLimits { sockets: 10, ..SocketLimits::default() },
        ..network(&["10.77.0.1"])
    };
    sandbox.network("pod", &pod);
    let port = port.to_string();
    assert_eq!(run(&sandbox, &["connect", "10.77.8.1", &port]), "access-denied");
    assert_eq!(run(&sandbox, &["udp-get", "10.77.8.1", &port, "x"]), "access-denied");
    assert_eq!(run(&sandbox, &["udp-get", "224.0.0.1", "9", "x"]), "access-denied");
    assert_eq!(report(&sandbox).refusals.destination, refused + 3);
    let outside = TcpListener::bind("10.77.9.9:0").unwrap();
    let port = outside.local_addr().unwrap().port().to_string();
    let said = run(&sandbox, &["connections", "20", "10.77.9.9", &port]);
    assert_eq!(said, "10 open\nother: there are too many sockets");
    assert_eq!(report(&sandbox).sockets, 0, "its end gives them back");
}

pub(crate) fn hundreds_of_connections_of_one_guest_are_served_at_once() {
    let zygote = Zygote::start();
    let sandbox = pod(&zygote, &["10.77.0.1"]);
    serve(&sandbox, &["tcp-echo", "8080"]);
    serve(&sandbox, &["tcp-join", "8081"]);
    for address in ["127.0.0.1", "10.77.0.1"] {
        for port in ["8080", "8081"] {
            let said = run(&sandbox, &["connections", "400", address, port]);
            assert_eq!(said, "400 open\n400 echoed", "{address}");
        }
    }
    wait_until(|| report(&sandbox).sockets == 2);
}

pub(crate) fn much_goes_through_whole_and_waits_for_who_reads() {
    let zygote = Zygote::start();
    let sandbox = pod(&zygote, &["10.77.0.1"]);
    serve(&sandbox, &["tcp-hold", "8082"]);
    for address in ["127.0.0.1", "10.77.0.1"] {
        let flood = sandbox.start(net3(&["tcp-flood", address, "8082", "64"]));
        wait_until(|| sandbox.output(&flood).contains("stalled after"));
        sandbox.stop(&flood, 0);
        sandbox.exit(&flood);
    }
    serve(&sandbox, &["tcp-echo", "8080"]);
    serve(&sandbox, &["tcp-join", "8081"]);
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    for address in ["10.77.0.1:8080", "10.77.0.1:8081"] {
        let stream = connect(address);
        let (mut writer, sent) = (stream.try_clone().unwrap(), bytes.clone());
        let sending = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        (&stream).read_to_end(&mut got).unwrap();
        sending.join().unwrap();
        assert!(got == bytes, "{address}: {} of {} bytes", got.len(), bytes.len());
    }
}

pub(crate) fn connections_joined_by_a_guest_do_not_keep_its_thread() {
    let zygote = Zygote::start();
    let sandbox = pod(&zygote, &["10.77.0.1"]);
    let server = serve(&sandbox, &["tcp-join", "8080"]);
    let stream = connect("10.77.0.1:8080");
    let (mut writer, mut reader) = (stream.try_clone().unwrap(), stream);
    // As fast as it goes, until the server is stopped.
    let piece = vec![b'.'; 65_536];
    let writing = thread::spawn(move || while writer.write_all(&piece).is_ok() {});
    let reading = thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    wait_until(|| report(&sandbox).sent_bytes > 64 << 20);
    assert_eq!(sandbox.run(net3(&["world"])).1.exit_code, 0);
    sandbox.stop(&server, 3_600_000);
    assert_eq!(sandbox.exit(&server).exit_code, 143);
    writing.join().unwrap();
    let _ = reading.join().unwrap();
}

pub(crate) fn datagrams_of_any_length_come_back() {
    let zygote = Zygote::start();
    let sandbox = pod(&zygote, &["10.77.0.1"]);
    serve(&sandbox, &["udp-echo", "5353"]);
    let outside = UdpSocket::bind("10.77.9.9:0").unwrap();
    outside.set_read_timeout(Some(LIMIT)).unwrap();
    for length in [0, 1, 1000, 60_000] {
        outside.send_to(&vec![b'u'; length], "10.77.0.1:5353").unwrap();
        let mut answer = vec![0; 65_536];
        let (got, from) = outside.recv_from(&mut answer).unwrap();
        assert_eq!((got, from), (length, "10.77.0.1:5353".parse::<SocketAddr>().unwrap()));
    }
}

pub(crate) fn options_are_kept_and_calls_out_of_order_are_refused() {
    let zygote = Zygote::start();
    let sandbox = pod(&zygote, &["10.77.0.1"]);
    let family = "invalid-argument\n".repeat(7)
        + "tcp true 77000000000 7000000000 5 9 20000 30000\nudp 9 20000 30000\n";
    assert_eq!(run(&sandbox, &["options"]), family.repeat(2).trim());
    let said = run(&sandbox, &["order"]);
    let expected = [
        "local: invalid-state",
        "remote: invalid-state",
        "receive: invalid-state",
        "send: invalid-state",
        "connect nowhere: invalid-argument",
        "listen unbound: ok",
        "is listening: true",
        "listen again: invalid-state",
        "bind a listener: invalid-state",
        "connect a listener: invalid-state",
        "connect to nobody: connection-refused",
        "bind a failed one: invalid-state",
        "udp receive: invalid-state",
        "udp send nowhere: invalid-argument",
        "udp send too much: datagram-too-large",
        "udp disconnect: invalid-state",
        "udp send: ok",
        "udp local: ok",
        "udp connect: ok",
        "udp send elsewhere: invalid-argument",
        "udp disconnect one: ok",
        "udp bind again: invalid-state",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
}

pub(crate) fn names_are_the_pods() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let host = Host { address: "10.77.3.4".parse().unwrap(), names: vec!["db.internal".into()] };
    let names = Names { hosts: vec![host], ..Names::default() };
    sandbox.network("pod", &PodNetwork { names: Some(names), ..network(&["10.77.0.1"]) });
    assert_eq!(run(&sandbox, &["lookup", "db.internal"]), "10.77.3.4");
    assert_eq!(run(&sandbox, &["lookup", "10.77.9.9"]), "10.77.9.9");
    assert_eq!(run(&sandbox, &["lookup", ""]), "invalid-argument");
    assert_eq!(run(&sandbox, &["lookup", "elsewhere.example"]), "permanent-resolver-failure");
}
