//! `wasi:sockets`, by a guest that does one thing with it.

use std::{
    cell::Cell,
    fs,
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Instant,
};

use krustlet_model::{ContainerId, services::Transport};
use krustlet_protocol::{
    Destinations, GuestKind, HttpLimits, ListenPort, Names, NetworkReport, PodNetwork, Refusals,
    SandboxReply, SandboxRequest, ServiceAddress, ServiceName, ServicePort, SocketLimits, services,
};

use crate::{
    code::compiled,
    fixture::{LIMIT, Make, Sandbox, Zygote},
    guests::wait_until,
};

/// A pod's network with these addresses.
pub(crate) fn network(addresses: &[&str]) -> PodNetwork {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    PodNetwork { addresses, ..PodNetwork::default() }
}

fn net(pod: &str, args: &[&str]) -> Make {
    let args: Vec<_> = std::iter::once("net").chain(args.iter().copied()).collect();
    Make { pod: pod.into(), ..Make::command("net.wasm", &args) }
}

/// Starts a server and waits until it says that it listens.
pub(crate) fn serve(sandbox: &Sandbox, pod: &str, args: &[&str]) -> ContainerId {
    let id = sandbox.start(net(pod, args));
    wait_until(|| sandbox.output(&id).contains("listening on"));
    id
}

/// What a program says that runs to its end.
pub(crate) fn run(sandbox: &Sandbox, pod: &str, args: &[&str]) -> String {
    let (id, _) = sandbox.run(net(pod, args));
    sandbox.output(&id).trim().to_owned()
}

pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Sends, ends the direction, and reads to the end of the other.
pub(crate) fn echo(address: &str, text: &str) -> String {
    let mut stream = connect(address);
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn report(sandbox: &Sandbox) -> NetworkReport {
    match sandbox.ask(SandboxRequest::Stats) {
        SandboxReply::Stats { containers } => containers[0].network,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn a_server_answers_at_its_pods_address_and_nowhere_else() {
    let zygote = Zygote::start();
    let (one, two) = (zygote.sandbox(), zygote.sandbox());
    one.network("pod", &network(&["10.77.0.1"]));
    two.network("pod", &network(&["10.77.0.2"]));
    let id = serve(&one, "pod", &["tcp-echo", "8080"]);
    assert!(one.output(&id).contains("listening on 0.0.0.0:8080"));
    // The same port of another pod, by its own address.
    serve(&two, "pod", &["tcp-echo", "8080", "10.77.0.2"]);
    for address in ["10.77.0.1:8080", "10.77.0.2:8080"] {
        assert_eq!(echo(address, "hello"), "hello", "{address}");
    }
    for address in ["127.0.0.1:8080", "10.77.0.3:8080"] {
        assert!(TcpStream::connect(address).is_err(), "{address}");
    }
    let NetworkReport { received_bytes, sent_bytes, accepted, .. } = report(&one);
    assert_eq!((received_bytes, sent_bytes, accepted), (5, 5, 1));
    one.stop(&id, 0);
    one.exit(&id);
    assert!(TcpStream::connect("10.77.0.1:8080").is_err(), "nobody listens any more");
    wait_until(|| report(&one).sockets == 0);
}

pub(crate) fn a_server_answers_over_ipv6() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1", "fd00:77::1"]));
    serve(&sandbox, "pod", &["tcp-echo", "8080", "::"]);
    serve(&sandbox, "pod", &["udp-echo", "8080", "::"]);
    assert_eq!(echo("[fd00:77::1]:8080", "six"), "six");
    assert!(TcpStream::connect("10.77.0.1:8080").is_err(), "IPv6 does not take IPv4 along");
    for address in ["fd00:77::1", "::1"] {
        assert_eq!(run(&sandbox, "pod", &["tcp-get", address, "8080", "six"]), "six");
        assert_eq!(run(&sandbox, "pod", &["udp-get", address, "8080", "six"]), "six");
    }
    let mapped = ["tcp-get", "::ffff:10.77.0.1", "8080", "x"];
    assert_eq!(run(&sandbox, "pod", &mapped), "invalid-argument");
}

pub(crate) fn localhost_is_the_pods_own() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    for (pod, address) in [("one", "10.77.0.1"), ("two", "10.77.0.2")] {
        sandbox.network(pod, &network(&[address]));
    }
    serve(&sandbox, "one", &["tcp-echo", "8080"]);
    serve(&sandbox, "one", &["tcp-echo", "8081", "127.0.0.1"]);
    serve(&sandbox, "one", &["udp-echo", "8080"]);
    for port in ["8080", "8081"] {
        let echoed = run(&sandbox, "one", &["tcp-get", "127.0.0.1", port, "in the pod"]);
        assert_eq!(echoed, "in the pod");
        let other_pods = run(&sandbox, "two", &["tcp-get", "127.0.0.1", port, "x"]);
        assert_eq!(other_pods, "connection-refused");
    }
    assert_eq!(run(&sandbox, "one", &["udp-get", "127.0.0.1", "8080", "to me"]), "to me");
    // Only what is bound to the wildcard is there for others.
    assert_eq!(echo("10.77.0.1:8080", "x"), "x");
    assert!(TcpStream::connect("10.77.0.1:8081").is_err());
    // The namespace's own loopback is not to be had.
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = outside.local_addr().unwrap().port().to_string();
    for address in ["127.0.0.1", "127.0.0.9"] {
        let found = run(&sandbox, "one", &["connect", address, &port]);
        assert_eq!(found, "connection-refused");
    }
    let found = run(&sandbox, "one", &["connect", "127.0.0.1", "8080"]);
    let lines: Vec<_> = found.lines().collect();
    assert!(lines[1].starts_with("local 127.0.0.1:"), "{found}");
    assert_eq!((lines[0], lines[2]), ("ok", "remote 127.0.0.1:8080"));
}

pub(crate) fn a_pod_of_the_nodes_network_has_its_loopback() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let of_host = PodNetwork { is_host: true, shares_loopback: true, ..network(&["10.77.4.4"]) };
    sandbox.network("pod", &of_host);
    // Others' programs, and from where they are called.
    for (at, ip) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
        let outside = TcpListener::bind(at).unwrap();
        let port = outside.local_addr().unwrap().port().to_string();
        let said = run(&sandbox, "pod", &["connect", ip, &port]);
        assert!(said.starts_with("ok"), "{said}");
        assert_eq!(outside.accept().unwrap().1.ip(), ip.parse::<IpAddr>().unwrap());
    }
    // Its own, for others.
    serve(&sandbox, "pod", &["tcp-echo", "8090", "127.0.0.1"]);
    serve(&sandbox, "pod", &["tcp-echo", "8091"]);
    serve(&sandbox, "pod", &["tcp-echo", "8091", "::"]);
    serve(&sandbox, "pod", &["udp-echo", "8092", "127.0.0.1"]);
    for at in ["127.0.0.1:8090", "127.0.0.1:8091", "[::1]:8091", "10.77.4.4:8091"] {
        assert_eq!(echo(at, "to the node"), "to the node", "{at}");
    }
    assert!(TcpStream::connect("10.77.4.4:8090").is_err());
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    datagrams.set_read_timeout(Some(LIMIT)).unwrap();
    datagrams.send_to(b"datagram", "127.0.0.1:8092").unwrap();
    let mut buffer = [0; 16];
    let (length, from) = datagrams.recv_from(&mut buffer).unwrap();
    assert_eq!(
        (&buffer[..length], from.to_string().as_str()),
        (&b"datagram"[..], "127.0.0.1:8092")
    );
    for verb in ["tcp-get", "udp-get"] {
        let port = if verb == "tcp-get" { "8090" } else { "8092" };
        assert_eq!(run(&sandbox, "pod", &[verb, "127.0.0.1", port, "within"]), "within");
    }
    assert_eq!(run(&sandbox, "pod", &["bind", "10.77.4.5", "1"]), "address-not-bindable");

    // What was handed over is one address of a port, and another of it is free.
    let handed = TcpListener::bind("127.0.0.1:8094").unwrap();
    sandbox
        .start(Make { listener: Some(handed), ..net("pod", &["tcp-echo", "8094", "127.0.0.1"]) });
    serve(&sandbox, "pod", &["tcp-echo", "8094", "10.77.4.4"]);
    wait_until(|| TcpStream::connect("127.0.0.1:8094").is_ok());
    for at in ["127.0.0.1:8094", "10.77.4.4:8094"] {
        assert_eq!(echo(at, "each"), "each", "{at}");
    }
}

pub(crate) fn a_pod_of_the_nodes_network_calls_from_where_the_way_begins() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    // It is told of one address; the way to others begins at 10.77.0.1, and that to
    // another family elsewhere.
    let of_host = PodNetwork { is_host: true, shares_loopback: true, ..network(&["10.77.4.7"]) };
    sandbox.network("pod", &of_host);
    for (at, begins) in [("10.77.9.7:0", "10.77.0.1"), ("[fd00:77::1]:0", "fd00:77::1")] {
        let outside = TcpListener::bind(at).unwrap();
        let to = outside.local_addr().unwrap();
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        let said = run(&sandbox, "pod", &["connect", &ip, &port]);
        let from = outside.accept().unwrap().1;
        assert_eq!(from.ip(), begins.parse::<IpAddr>().unwrap());
        assert_eq!(said, format!("ok\nlocal {from}\nremote {to}"));
    }
    serve(&sandbox, "pod", &["udp-echo", "8097", "::"]);
    assert_eq!(run(&sandbox, "pod", &["udp-get", "fd00:77::1", "8097", "six"]), "six");
    // An address that the guest chose stays.
    serve(&sandbox, "pod", &["tcp-echo", "8098", "10.77.4.7"]);
    assert!(TcpStream::connect("10.77.0.1:8098").is_err());
}

pub(crate) fn an_address_of_another_is_not_bound() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    for verb in ["bind", "udp-bind"] {
        // Another pod's, one of no pod, the other family's.
        for address in ["10.77.0.2", "192.0.2.1", "fd00:77::1"] {
            let found = run(&sandbox, "pod", &[verb, address, "8080"]);
            assert_eq!(found, "address-not-bindable", "{verb} {address}");
        }
        for address in ["10.77.0.1", "0.0.0.0", "127.0.0.1", "127.9.9.9", "::1", "::"] {
            let found = run(&sandbox, "pod", &[verb, address, "8080"]);
            // The log says before it who is heard by nobody outside.
            assert!(found.lines().any(|line| line == "ok"), "{verb} {address}: {found}");
        }
        assert!(run(&sandbox, "pod", &[verb, "0.0.0.0", "0"]).starts_with("ok"));
    }
}

pub(crate) fn a_port_is_taken_once() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    let all = serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    for address in ["0.0.0.0", "127.0.0.1", "10.77.0.1"] {
        assert_eq!(run(&sandbox, "pod", &["bind", address, "8080"]), "address-in-use", "{address}");
    }
    assert!(run(&sandbox, "pod", &["udp-bind", "0.0.0.0", "8080"]).starts_with("ok"));
    // Old connections do not keep it.
    let _open = connect("10.77.0.1:8080");
    sandbox.stop(&all, 0);
    sandbox.exit(&all);
    serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    assert_eq!(echo("10.77.0.1:8080", "again"), "again");
}

pub(crate) fn a_connection_comes_from_the_pods_address() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.5", "fd00:77::1"]));
    for (outside, own) in [("10.77.9.9:0", "10.77.0.5"), ("[fd00:77::1]:0", "fd00:77::1")] {
        let outside = TcpListener::bind(outside).unwrap();
        let to = outside.local_addr().unwrap();
        let accepted = thread::spawn(move || {
            let (mut stream, from) = outside.accept().unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            stream.write_all(text.to_uppercase().as_bytes()).unwrap();
            from
        });
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        assert_eq!(run(&sandbox, "pod", &["tcp-get", &ip, &port, "who"]), "WHO");
        assert_eq!(accepted.join().unwrap().ip(), own.parse::<IpAddr>().unwrap());
    }
    let NetworkReport { opened, received_bytes, sent_bytes, .. } = report(&sandbox);
    assert_eq!((opened, received_bytes, sent_bytes), (2, 6, 6));
    // Its own server, by its own address.
    serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    assert_eq!(run(&sandbox, "pod", &["tcp-get", "10.77.0.5", "8080", "me"]), "me");
}

pub(crate) fn refused_destinations_are_refused_and_counted() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let outside = TcpListener::bind("10.77.8.1:0").unwrap();
    let port = outside.local_addr().unwrap().port();
    let mut pod = network(&["10.77.0.1"]);
    let range =
        Destinations { address: "10.77.8.0".parse().unwrap(), prefix: 24, port: Some(port) };
    pod.refused = vec![range];
    sandbox.network("pod", &pod);
    let port = port.to_string();
    assert_eq!(run(&sandbox, "pod", &["connect", "10.77.8.1", &port]), "access-denied");
    assert_eq!(run(&sandbox, "pod", &["udp-get", "10.77.8.1", &port, "x"]), "access-denied");
    for many in ["224.0.0.1", "255.255.255.255"] {
        let found = run(&sandbox, "pod", &["udp-get", many, "9", "x"]);
        assert_eq!(found, "access-denied", "{many}");
    }
    let expected = Refusals { destination: 4, ..Refusals::default() };
    assert_eq!(report(&sandbox).refusals, expected);
    // Another port, and a newer network.
    assert_eq!(run(&sandbox, "pod", &["connect", "10.77.8.1", "1"]), "connection-refused");
    pod.refused.clear();
    sandbox.network("pod", &pod);
    assert!(run(&sandbox, "pod", &["connect", "10.77.8.1", &port]).starts_with("ok"));
}

pub(crate) fn a_pod_without_network_has_no_socket() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    for args in [
        &["bind", "0.0.0.0", "8080"][..],
        &["bind", "127.0.0.1", "8080"],
        &["udp-bind", "127.0.0.1", "8080"],
        &["connect", "127.0.0.1", "8080"],
        &["connect", "10.77.0.1", "8080"],
    ] {
        assert_eq!(run(&sandbox, "pod", args), "access-denied", "{args:?}");
    }
}

pub(crate) fn datagrams_go_to_and_from_the_pods_address() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    serve(&sandbox, "pod", &["udp-echo", "5353"]);
    let outside = UdpSocket::bind("10.77.9.9:0").unwrap();
    outside.set_read_timeout(Some(LIMIT)).unwrap();
    for length in [0, 1, 1000, 60_000] {
        outside.send_to(&vec![b'u'; length], "10.77.0.1:5353").unwrap();
        let mut answer = vec![0; 65_536];
        let (got, from) = outside.recv_from(&mut answer).unwrap();
        assert_eq!((got, from), (length, "10.77.0.1:5353".parse::<SocketAddr>().unwrap()));
    }
    let asked = outside.local_addr().unwrap().port().to_string();
    let answers = thread::spawn(move || {
        let (length, from) = outside.recv_from(&mut [0; 16]).unwrap();
        outside.send_to(b"yes", from).unwrap();
        (length, from.ip())
    });
    assert_eq!(run(&sandbox, "pod", &["udp-get", "10.77.9.9", &asked, "no?"]), "yes");
    assert_eq!(answers.join().unwrap(), (3, "10.77.0.1".parse().unwrap()));
    assert_eq!(report(&sandbox).received_bytes, 61_001 + 3);
}

pub(crate) fn who_does_not_read_is_not_written_to() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    serve(&sandbox, "pod", &["tcp-hold", "8080"]);
    for address in ["127.0.0.1", "10.77.0.1"] {
        let flood = sandbox.start(net("pod", &["tcp-flood", address, "8080", "64"]));
        wait_until(|| sandbox.output(&flood).contains("stalled after"));
        sandbox.stop(&flood, 0);
        sandbox.exit(&flood);
    }
}

pub(crate) fn much_is_carried_whole() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    serve(&sandbox, "pod", &["tcp-sink", "8081"]);
    for address in ["127.0.0.1", "10.77.0.1"] {
        let said = run(&sandbox, "pod", &["tcp-flood", address, "8081", "32"]);
        assert!(said.contains(&format!("sent {} bytes", 32 << 20)), "{said}");
    }
    // Every byte, in order, both ways at once.
    serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let stream = connect("10.77.0.1:8080");
    let (mut writer, sent) = (stream.try_clone().unwrap(), bytes.clone());
    let sending = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    (&stream).read_to_end(&mut got).unwrap();
    sending.join().unwrap();
    assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
    // All of it comes although the client does not end its own direction, and the
    // server then waits for more from it.
    let mut stream = connect("10.77.0.1:8080");
    let (mut writer, sent) = (stream.try_clone().unwrap(), bytes.clone());
    let sending = thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).unwrap();
    sending.join().unwrap();
    assert!(got == bytes);
}

pub(crate) fn hundreds_of_connections_are_served_at_once() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    for address in ["127.0.0.1", "10.77.0.1"] {
        let said = run(&sandbox, "pod", &["connections", "400", address, "8080"]);
        assert!(said.contains("400 echoed"), "{address}: {said}");
    }
    wait_until(|| report(&sandbox).sockets == 1);
}

pub(crate) fn a_server_has_all_the_connections_that_its_pod_may_have() {
    const SOCKETS: u32 = 410;
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let limits = SocketLimits { sockets: SOCKETS, ..SocketLimits::default() };
    sandbox.network("pod", &PodNetwork { limits, ..network(&["10.77.0.1"]) });
    serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    // Of each the guest has five handles: the socket, two streams, and what it waits
    // by for these.
    let mut open: Vec<_> = (1..SOCKETS).map(|_| connect("10.77.0.1:8080")).collect();
    wait_until(|| report(&sandbox).sockets == SOCKETS);
    // One more waits, and nobody loses what he has.
    open.push(connect("10.77.0.1:8080"));
    for mut stream in open {
        stream.write_all(b"x").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"x");
    }
}

pub(crate) fn there_are_no_more_sockets_than_allowed() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let mut pod = network(&["10.77.0.1"]);
    pod.limits = SocketLimits { sockets: 10, ..SocketLimits::default() };
    sandbox.network("pod", &pod);
    let outside = TcpListener::bind("10.77.9.9:0").unwrap();
    let port = outside.local_addr().unwrap().port().to_string();
    let said = run(&sandbox, "pod", &["connections", "20", "10.77.9.9", &port]);
    assert_eq!(said, "10 open\nnew-socket-limit");
    assert_eq!(report(&sandbox).refusals.bound, 1);
    assert_eq!(report(&sandbox).sockets, 0, "its end gives them back");
    // A server takes the others when there is room again.
    serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    let streams: Vec<_> = (0..20).map(|_| connect("10.77.0.1:8080")).collect();
    for mut stream in streams {
        stream.write_all(b"x").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"x");
        assert!(report(&sandbox).sockets <= 10);
    }
}

/// Bytes that `tcp-source` writes at once.
const PIECE: u64 = 64 << 10;

/// Starts a server that sends without end, and a client that reads one byte and
/// then leaves the server waiting; how much the system has taken of what it wrote.
fn stalled_source(sandbox: &Sandbox) -> (ContainerId, TcpStream, u64) {
    sandbox.network("pod", &network(&["10.77.0.1"]));
    let source = serve(sandbox, "pod", &["tcp-source", "8080"]);
    let mut stream = connect("10.77.0.1:8080");
    stream.read_exact(&mut [0; 1]).unwrap();
    // A piece of which a part is taken waits for sure. Were the room a multiple of
    // it, then it waits whole, and nothing changes any more.
    let (sent, same) = (Cell::new(0), Cell::new(0));
    wait_until(|| {
        let now = report(sandbox).sent_bytes;
        same.set(if now == sent.replace(now) { same.get() + 1 } else { 0 });
        !now.is_multiple_of(PIECE) || now > 0 && same.get() > 1000
    });
    (source, stream, sent.get())
}

/// Reads to the end. All has to come that the source wrote, of which the system
/// had not taken the last piece yet, or not whole.
fn assert_is_whole(mut stream: TcpStream, taken: u64) {
    let length = 1 + std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    assert!(length > taken && length.is_multiple_of(PIECE), "{length}, and before its end {taken}");
}

pub(crate) fn what_a_guest_wrote_arrives_after_its_end() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let (source, stream, taken) = stalled_source(&sandbox);
    sandbox.stop(&source, 0);
    sandbox.exit(&source);
    // What comes ends in order, not with a reset.
    assert_is_whole(stream, taken);
}

pub(crate) fn the_end_of_a_guest_waits_for_what_it_wrote() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let (source, stream, taken) = stalled_source(&sandbox);
    sandbox.stop(&source, 3_600_000);
    let reading = thread::spawn(move || assert_is_whole(stream, taken));
    assert_eq!(sandbox.exit(&source).exit_code, 143);
    // As the agent does when it was the pod's last.
    sandbox.ask(SandboxRequest::Shutdown);
    reading.join().unwrap();
}

pub(crate) fn a_handed_socket_serves_while_the_guest_listens() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let handed = TcpListener::bind("10.77.3.3:8443").unwrap();
    let at = "10.77.3.3:8443";
    sandbox.network("pod", &PodNetwork { is_host: true, ..network(&["10.77.3.3"]) });
    let sleeper = sandbox.start(Make { listener: Some(handed), ..Make::module("sleep", &["x"]) });
    sandbox.running(&sleeper);
    assert!(TcpStream::connect(at).is_err(), "nobody listens yet");
    for _ in 0..2 {
        let server = serve(&sandbox, "pod", &["tcp-echo", "8443"]);
        assert_eq!(echo(at, "by hand"), "by hand");
        assert_eq!(run(&sandbox, "pod", &["tcp-get", "127.0.0.1", "8443", "inside"]), "inside");
        sandbox.stop(&server, 0);
        sandbox.exit(&server);
        assert!(TcpStream::connect(at).is_err(), "nobody listens any more");
    }
    sandbox.stop(&sleeper, 0);
    sandbox.exit(&sleeper);
    TcpListener::bind(at).expect("it is closed with its container");
}

pub(crate) fn http(port: u16) -> Make {
    let limits =
        HttpLimits { max_concurrent: 4, request_timeout_ms: 10_000, ..HttpLimits::default() };
    Make {
        guest: GuestKind::Http(limits),
        listen_ports: vec![ListenPort { name: Some("http".into()), port }],
        ..Make::module("return", &["web"]).code(compiled("http.wasm"))
    }
}

pub(crate) fn an_http_guest_listens_on_all_of_its_pods_addresses() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1", "fd00:77::1"]));
    let web = sandbox.start(http(8080));
    sandbox.running(&web);
    let request = "GET /status?code=418 HTTP/1.0\r\nHost: x\r\n\r\n";
    for address in ["10.77.0.1:8080", "[fd00:77::1]:8080"] {
        let mut stream = connect(address);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.0 418"), "{address}: {answer}");
    }
    assert!(TcpStream::connect("127.0.0.1:8080").is_err());
    for address in ["127.0.0.1", "::1"] {
        let found = run(&sandbox, "pod", &["connect", address, "8080"]);
        assert!(found.starts_with("ok"), "{address}: {found}");
    }
}

pub(crate) fn where_an_http_guest_is_listened_for_counts_as_no_socket() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let limits = SocketLimits { sockets: 1, ..SocketLimits::default() };
    sandbox.network("pod", &PodNetwork { limits, ..network(&["10.77.0.1", "fd00:77::1"]) });
    let web = sandbox.start(http(8080));
    sandbox.running(&web);
    for address in ["10.77.0.1:8080", "[fd00:77::1]:8080", "10.77.0.1:8080"] {
        let mut stream = connect(address);
        stream.write_all(b"GET /status?code=418 HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.0 418"), "{address}: {answer}");
    }
    wait_until(|| report(&sandbox).sockets == 0);
}

pub(crate) fn a_port_of_an_http_guest_that_is_in_use_is_named() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &network(&["10.77.0.1"]));
    let _taken = TcpListener::bind("10.77.0.1:8080").unwrap();
    let (_, exit) = sandbox.run(http(8080));
    assert_eq!(exit.reason, "StartError");
    assert!(exit.message.contains("port 8080 of 10.77.0.1 is in use"), "{}", exit.message);
}

/// A directory in which 10.96.0.7 is the Service `n/web`, which leads its port 80
/// to these.
fn services_of(endpoints: &[(Transport, &str)]) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    // For the sandbox's user.
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let service = "10.96.0.7".parse().unwrap();
    let ports = endpoints.iter().map(|(transport, endpoint)| ServicePort {
        transport: *transport,
        port: 80,
        of: "n/web:".into(),
        endpoints: vec![endpoint.parse().unwrap()],
        is_silent: false,
        affinity_s: 0,
        sources: vec![],
    });
    let address = ServiceAddress { is_only: true, ports: ports.collect() };
    let write = |path: String, bytes: Vec<u8>| {
        let path = home.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    write(services::address_file(service), serde_json::to_vec(&address).unwrap());
    let name = ServiceName::Addresses(vec![service]);
    write(format!("{}/n.web", services::NAMES), serde_json::to_vec(&name).unwrap());
    write(services::COMPLETE.into(), Vec::new());
    home
}

pub(crate) fn pods_are_led_to_services_by_the_one_directory_they_were_handed() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let home =
        services_of(&[(Transport::Tcp, "10.77.0.1:8080"), (Transport::Udp, "10.77.0.1:8080")]);
    sandbox.led_network("one", &network(&["10.77.0.1"]), home.path());
    serve(&sandbox, "one", &["tcp-echo", "8080"]);
    serve(&sandbox, "one", &["udp-echo", "8080"]);
    let open = || {
        let all = fs::read_dir(format!("/proc/{}/fd", sandbox.pid)).unwrap();
        let of = all.filter_map(|entry| fs::metadata(entry.unwrap().path()).ok());
        of.filter(fs::Metadata::is_dir).count()
    };
    let before = open();
    sandbox.led_network("two", &network(&["10.77.0.2"]), home.path());
    sandbox.led_network("one", &network(&["10.77.0.1"]), home.path());
    assert_eq!(open(), before, "one descriptor is enough for all");
    // Also to oneself.
    for pod in ["one", "two"] {
        assert_eq!(run(&sandbox, pod, &["tcp-get", "10.96.0.7", "80", "x"]), "x");
        assert_eq!(run(&sandbox, pod, &["udp-get", "10.96.0.7", "80", "x"]), "x");
        let said = run(&sandbox, pod, &["connect", "10.96.0.7", "80"]);
        assert!(said.ends_with("remote 10.96.0.7:80"), "{said}");
        assert_eq!(run(&sandbox, pod, &["connect", "10.96.0.7", "81"]), "connection-refused");
    }
    fs::write(home.path().join("addresses/10.96.0.7"), "damaged").unwrap();
    assert_eq!(run(&sandbox, "two", &["connect", "10.96.0.7", "80"]), "remote-unreachable");
    assert!(sandbox.complaint().contains("addresses/10.96.0.7"));
    // One that is not led any more goes there itself, where nobody is.
    sandbox.network("two", &network(&["10.77.0.2"]));
    let said = run(&sandbox, "two", &["connect", "10.77.0.1", "8080"]);
    assert!(said.ends_with("remote 10.77.0.1:8080"), "{said}");
}

pub(crate) fn a_guest_asks_a_service_for_a_page_by_its_name() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let listener = TcpListener::bind("10.77.0.9:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let home = services_of(&[(Transport::Tcp, &at)]);
    let names = Names { cluster_domain: "c".into(), attempts: 1, ..Names::default() };
    let network = PodNetwork { names: Some(names), ..network(&["10.77.0.1"]) };
    sandbox.led_network("pod", &network, home.path());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut asked = [0; 4096];
        let length = stream.read(&mut asked).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes").unwrap();
        String::from_utf8_lossy(&asked[..length]).into_owned()
    });
    let url = "http://web.n.svc.c/page";
    let make = Make { pod: "pod".into(), ..Make::command("fetch.wasm", &["fetch", url]) };
    let (id, _) = sandbox.run(make);
    assert_eq!(sandbox.output(&id).trim(), "200\nyes");
    assert!(server.join().unwrap().contains("host: web.n.svc.c"));
}

pub(crate) fn all_sockets_of_a_pod_share_its_bandwidth() {
    const IN: u64 = 2_000_000;
    const OUT: u64 = 1_000_000;
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let limits =
        SocketLimits { ingress_bits: Some(IN), egress_bits: Some(OUT), ..SocketLimits::default() };
    let begin = Instant::now();
    sandbox.network("pod", &PodNetwork { limits, ..network(&["10.77.0.1"]) });
    serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    serve(&sandbox, "pod", &["udp-echo", "8081"]);
    let streams = [(); 3].map(|()| connect("10.77.0.1:8080"));
    let datagrams = UdpSocket::bind("10.77.0.254:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"));
    let datagrams = datagrams.unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|threads| {
        for stream in &streams {
            // More than buffers hold; at the end it is cut off.
            threads.spawn(move || (&*stream).write_all(&vec![b'.'; 64 << 20]));
            threads.spawn(move || std::io::copy(&mut &*stream, &mut std::io::sink()));
        }
        threads.spawn(|| {
            while !is_over.load(Relaxed) {
                let _ = datagrams.send_to(&[b'.'; 1000], "10.77.0.1:8081");
                thread::yield_now();
            }
        });
        let is_enough = || {
            let NetworkReport { received_bytes, sent_bytes, .. } = report(&sandbox);
            received_bytes > 400_000 && sent_bytes > 200_000
        };
        wait_until(is_enough);
        let NetworkReport { received_bytes, sent_bytes, .. } = report(&sandbox);
        let time = begin.elapsed();
        is_over.store(true, Relaxed);
        for stream in &streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Its share, what the bucket held, and one move.
        let most = |bits: u64| {
            (time.as_millis() + 1) * u128::from(bits / 8000) + 2 * u128::from(bits / 80)
        };
        assert!(u128::from(received_bytes) <= most(IN), "{received_bytes} in {time:?}");
        assert!(u128::from(sent_bytes) <= most(OUT), "{sent_bytes} in {time:?}");
    });
    // Within the pod there is no limit, and nothing counts as sent: this would take
    // nine minutes.
    serve(&sandbox, "pod", &["tcp-sink", "8082"]);
    let within = run(&sandbox, "pod", &["tcp-flood", "127.0.0.1", "8082", "64"]);
    assert!(within.contains(&format!("sent {} bytes", 64 << 20)), "{within}");
    assert!(report(&sandbox).sent_bytes < 64 << 20);
}
