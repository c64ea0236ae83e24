//! The http guests of WASI 0.2 and 0.3, asked over real sockets.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use krustlet_model::ContainerId;
use krustlet_protocol::{
    GuestKind, HttpLimits, Limits, PodNetwork, SandboxReply, SandboxRequest, SocketLimits,
};
use tokio::task::JoinSet;

use crate::{
    code::compiled,
    fixture::{LIMIT, Make, Sandbox, Zygote},
    guests::wait_until,
    sockets::network,
};

pub(crate) struct Server {
    pub(crate) id: ContainerId,
    pub(crate) address: SocketAddr,
}

/// Those of a sandbox with one http server, when nobody asks it: `/dev/null` four
/// times and a dozen to spare, two events and two polls, six sockets (where agents connect and the one
/// that has, the listener, and the runtime's), the status, the log and the next one,
/// and the program.
const DESCRIPTORS: usize = 18 + 12;

/// Each does the same.
const PROGRAMS: [&str; 2] = ["http.wasm", "http3.wasm"];

fn serve(sandbox: &Sandbox, program: &str, request_timeout_ms: u64, memory: Option<u64>) -> Server {
    serve_as(sandbox, request_timeout_ms, |make| Make { memory, ..make.code(compiled(program)) })
}

/// Serves in a container that is not quite the usual one.
pub(crate) fn serve_as(
    sandbox: &Sandbox,
    request_timeout_ms: u64,
    change: impl FnOnce(Make) -> Make,
) -> Server {
    serve_within(sandbox, HttpLimits { request_timeout_ms, ..LIMITS }, change)
}

/// Four requests at once, and what the program does is waited for.
const LIMITS: HttpLimits = HttpLimits {
    max_concurrent: 4,
    request_timeout_ms: 3_600_000,
    idle_timeout_ms: 60_000,
    max_body_bytes: None,
    max_instance_reuse: None,
    max_instance_concurrent_reuse: None,
    idle_instance_timeout_ms: 1000,
    backlog: None,
};

fn serve_within(
    sandbox: &Sandbox,
    limits: HttpLimits,
    change: impl FnOnce(Make) -> Make,
) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let make = Make {
        guest: GuestKind::Http(limits),
        listener: Some(listener),
        env: vec![("COLOUR".into(), "green".into())],
        ..Make::module("return", &["web"]).code(compiled("http.wasm"))
    };
    let id = sandbox.start(change(make));
    sandbox.running(&id);
    Server { id, address }
}

/// In a container that may use one core.
fn on_one_thread(make: Make) -> Make {
    Make { cpu: Some(1000), ..make }
}

impl Server {
    /// Sends a request and leaves the connection open.
    pub(crate) fn send(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        stream
    }

    fn get(&self, path: &str) -> (u16, String) {
        read(self.send(path))
    }

    /// Which request of its instance one is.
    fn count(&self) -> u32 {
        let (code, text) = self.get("/count");
        assert_eq!(code, 200, "{text}");
        let body = text.split_once("\r\n\r\n").unwrap().1;
        // It may come in chunks.
        let number = body.lines().filter_map(|line| line.trim().parse().ok()).collect::<Vec<u32>>();
        match number[..] {
            [count] | [_, count, 0] => count,
            _ => panic!("{text:?}"),
        }
    }
}

/// Bytes that the guests of a sandbox with one container have, and the nanoseconds of
/// processor time that they took.
fn used(sandbox: &Sandbox) -> (u64, u64) {
    let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else { panic!() };
    (containers[0].memory_bytes, containers[0].cpu_ns)
}

fn read(mut stream: TcpStream) -> (u16, String) {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    (code.unwrap_or_else(|| panic!("no answer: {text:?}")), text)
}

pub(crate) fn an_idle_server_has_few_threads_and_descriptors() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let server = serve(&sandbox, program, 10_000, None);
        let counts = || {
            let of = |what| fs::read_dir(format!("/proc/{}/{what}", sandbox.pid)).unwrap();
            let descriptors: Vec<_> =
                of("fd").filter_map(|one| fs::read_link(one.unwrap().path()).ok()).collect();
            (of("task").count(), descriptors)
        };
        // The control thread, and that of the guests.
        let (threads, descriptors) = counts();
        assert_eq!((threads, descriptors.len()), (2, DESCRIPTORS), "{descriptors:#?}");
        // However many have asked.
        let open: Vec<_> = (0..20).map(|_| server.send("/env")).collect();
        for stream in open {
            assert_eq!(read(stream).0, 200);
        }
        wait_until(|| {
            let (threads, descriptors) = counts();
            (threads, descriptors.len()) == (2, DESCRIPTORS)
        });
    }
}

/// The threads of a sandbox that run guests, and whether each has computed for a while.
fn guests_threads(sandbox: &Sandbox) -> BTreeMap<String, bool> {
    let tasks = fs::read_dir(format!("/proc/{}/task", sandbox.pid)).unwrap();
    let threads = tasks.filter_map(|task| {
        let task = task.unwrap().path();
        // It may have ended.
        let name = fs::read_to_string(task.join("comm")).ok()?.trim().to_owned();
        let times = fs::read_to_string(task.join("schedstat")).ok()?;
        let nanoseconds: u64 = times.split(' ').next()?.parse().ok()?;
        name.starts_with("guests").then_some((name, nanoseconds > 100_000_000))
    });
    threads.collect()
}

pub(crate) fn connections_are_served_by_as_many_threads_as_a_container_may_use_cores() {
    let zygote = Zygote::start();
    let cores = thread::available_parallelism().unwrap().get();
    for program in PROGRAMS {
        for (cpu, threads) in [(None, cores.min(3)), (Some(1001), cores.min(2)), (Some(1000), 1)] {
            let sandbox = zygote.sandbox();
            let server =
                serve_as(&sandbox, 3_600_000, |make| Make { cpu, ..make.code(compiled(program)) });
            let open: Vec<_> = (0..3).map(|_| server.send("/spin?ms=3600000")).collect();
            let all_compute = || {
                let found = guests_threads(&sandbox);
                found.len() == threads && found.values().all(|computes| *computes)
            };
            wait_until(all_compute);
            // What they do is the container's.
            wait_until(|| used(&sandbox).1 > 100_000_000 * threads as u64);
            // Whoever comes is heard on each.
            assert_eq!(server.get("/env").0, 200);
            // Another limit holds for those who come then.
            let limits = Limits { memory_bytes: None, cpu_millis: Some(1000) };
            let update = SandboxRequest::UpdateContainer { id: server.id.clone(), limits };
            assert_eq!(sandbox.ask(update), SandboxReply::Done);
            drop(open);
            sandbox.stop(&server.id, 0);
            assert_eq!(sandbox.exit(&server.id).exit_code, 137);
        }
    }
}

pub(crate) fn requests_are_answered_each_by_its_own_instance() {
    let zygote = Zygote::start();
    // That is what an instance of 0.2 is for, and one of 0.3 if it is said.
    for (program, max_instance_reuse) in PROGRAMS.into_iter().zip([None, Some(1)]) {
        let sandbox = zygote.sandbox();
        let limits = HttpLimits { max_instance_reuse, ..LIMITS };
        let server = serve_within(&sandbox, limits, |make| make.code(compiled(program)));
        for _ in 0..3 {
            assert_eq!(server.count(), 1);
        }
        assert!(server.get("/env").1.contains("COLOUR=green"));
        assert_eq!(server.get("/status?code=418").0, 418);
        assert_eq!(server.get("/nowhere").0, 404);
        let (code, text) = server.get("/bytes?count=3000000");
        assert!(code == 200 && text.len() >= 3_000_000, "{code} {}", text.len());
        // More at once than may be served at once: all get their turn.
        let waiting: Vec<_> = (0..20).map(|_| server.send("/spin?ms=5")).collect();
        for stream in waiting {
            assert_eq!(read(stream).0, 200);
        }
        assert!(used(&sandbox).1 > 50_000_000);
        wait_until(|| used(&sandbox).0 == 0);
    }
}

pub(crate) fn an_instance_answers_as_many_requests_as_it_may() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let limits = HttpLimits {
            max_instance_reuse: Some(3),
            idle_instance_timeout_ms: 3_600_000,
            ..LIMITS
        };
        let server = serve_within(&sandbox, limits, |make| make.code(compiled(program)));
        // One that is still about its last request is not handed the next.
        let counts: Vec<_> = (0..20).map(|_| server.count()).collect();
        assert_eq!(counts.iter().max(), Some(&3), "{counts:?}");
        wait_until(|| server.count() == 2);
        assert!(used(&sandbox).0 > 0, "it waits for another request");
        // One that it goes down with.
        assert_eq!(server.get("/trap").0, 500);
        assert_eq!(server.get("/").0, 200);
        // Nobody waits for those that wait.
        sandbox.stop(&server.id, 3_600_000);
        assert_eq!(sandbox.exit(&server.id).exit_code, 143);
    }
}

pub(crate) fn an_instance_that_is_not_asked_ends() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let limits =
            HttpLimits { max_instance_reuse: Some(1000), idle_instance_timeout_ms: 50, ..LIMITS };
        let server = serve_within(&sandbox, limits, |make| make.code(compiled(program)));
        assert_eq!(server.get("/").0, 200);
        wait_until(|| used(&sandbox).0 == 0);
        assert_eq!(server.count(), 1);
    }
}

pub(crate) fn requests_that_wait_share_an_instance_of_version_3() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let limits = HttpLimits {
        max_concurrent: 64,
        max_instance_reuse: Some(5),
        max_instance_concurrent_reuse: Some(4),
        idle_instance_timeout_ms: 3_600_000,
        ..LIMITS
    };
    let server =
        serve_within(&sandbox, limits, |make| on_one_thread(make).code(compiled("http3.wasm")));
    let mut waiting = vec![server.send("/sleep?ms=3600000")];
    // An instance that has answered nothing else counts from one.
    let mut last = 0;
    wait_until(|| {
        let count = server.count();
        let is_anothers = count != 1 && count != last + 1;
        last = count;
        is_anothers
    });
    // Four times as many as one may have at once are in four instances at least.
    waiting.extend((0..15).map(|_| server.send("/sleep?ms=3600000")));
    wait_until(|| used(&sandbox).0 >= 4 << 20);
}

pub(crate) fn an_instance_that_computes_keeps_nobody_waiting() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let limits = HttpLimits { idle_instance_timeout_ms: 3_600_000, ..LIMITS };
    let server =
        serve_within(&sandbox, limits, |make| on_one_thread(make).code(compiled("http3.wasm")));
    assert_eq!(server.count(), 1);
    // It waits, so that it would take another; then it computes for ever.
    let _busy = server.send("/sleep?ms=100&spin=3600000");
    wait_until(|| used(&sandbox).1 > 200_000_000);
    assert_eq!(server.count(), 1, "by a new one");
    assert_eq!(server.count(), 2);
}

pub(crate) fn containers_of_one_program_have_their_own_bounds() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    for (most, code) in [(Some(10), 413), (None, 200), (Some(1000), 200)] {
        let limits = HttpLimits { max_body_bytes: most, ..LIMITS };
        let server = serve_within(&sandbox, limits, |make| make);
        let mut stream = TcpStream::connect(server.address).unwrap();
        let head = "POST /echo HTTP/1.0\r\nHost: test\r\nContent-Length: 20\r\n\r\n";
        stream.write_all(format!("{head}{}", ".".repeat(20)).as_bytes()).unwrap();
        assert_eq!(read(stream).0, code, "{most:?}");
    }
}

pub(crate) fn a_request_that_traps_fails_alone_and_is_logged() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let server = serve(&sandbox, program, 10_000, None);
        assert_eq!(server.get("/trap").0, 500);
        assert_eq!(server.get("/").0, 200);
        wait_until(|| {
            let log = fs::read_to_string(sandbox.log(&server.id)).unwrap();
            log.contains("stderr F a request failed: wasm trap: ")
        });
        // HTTP/1.0 without a host.
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(read(stream).0, 400);
    }
}

pub(crate) fn a_request_that_takes_too_long_is_cut_off() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let server = serve(&sandbox, program, 300, None);
        for path in ["/sleep?ms=3600000", "/spin?ms=3600000"] {
            assert_eq!(server.get(path).0, 504, "{path}");
        }
        assert_eq!(server.get("/").0, 200);
    }
}

pub(crate) fn a_request_that_waits_too_long_for_its_turn_is_turned_away() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let server = serve(&sandbox, program, 1000, None);
        // Four have their turn now and four when these are cut off; the rest has not.
        let asked: Vec<_> = (0..24).map(|_| server.send("/sleep?ms=3600000")).collect();
        let codes: Vec<_> = asked.into_iter().map(|stream| read(stream).0).collect();
        assert!(codes.iter().all(|code| [503, 504].contains(code)), "{codes:?}");
        assert!(codes.contains(&503) && codes.contains(&504), "{codes:?}");
        assert_eq!(server.get("/").0, 200);
    }
}

pub(crate) fn memory_is_counted_over_all_requests() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let server = serve(&sandbox, program, 10_000, Some(24 << 20));
        assert_eq!(server.get("/alloc?mib=8").0, 200);
        assert_eq!(server.get("/alloc?mib=64").0, 500);
        wait_until(|| sandbox.output(&server.id).contains("memory limit is 25165824 bytes"));
        assert_eq!(server.get("/alloc?mib=8").0, 200);
    }
}

pub(crate) fn a_stopped_server_finishes_what_it_has_begun() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let server = serve(&sandbox, program, 60_000, None);
        let begun = server.send("/sleep?ms=500");
        wait_until(|| used(&sandbox).0 > 0);
        sandbox.stop(&server.id, 20_000);
        assert_eq!(read(begun).0, 200);
        let exit = sandbox.exit(&server.id);
        assert_eq!((exit.exit_code, exit.reason.as_str()), (143, "Error"));
        assert!(TcpStream::connect(server.address).is_err(), "it listens no more");
    }
}

pub(crate) fn a_server_that_does_not_finish_in_time_is_killed() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let server = serve(&sandbox, program, 3_600_000, None);
        let _begun = server.send("/spin?ms=3600000");
        wait_until(|| used(&sandbox).1 > 10_000_000);
        // A second request shortens the first.
        sandbox.stop(&server.id, 3_600_000);
        let asked = Instant::now();
        sandbox.stop(&server.id, 200);
        assert_eq!(sandbox.exit(&server.id).exit_code, 137);
        assert!(asked.elapsed() >= Duration::from_millis(200));
    }
}

pub(crate) fn a_killed_server_computes_no_more() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let stats = |id: &ContainerId| {
            let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else {
                panic!()
            };
            containers.into_iter().find(|stats| stats.id == *id).unwrap()
        };
        let other = serve(&sandbox, program, 3_600_000, None);
        // At once, and after a grace period that does not suffice.
        for grace_ms in [0, 100] {
            let server = serve(&sandbox, program, 3_600_000, None);
            let _begun = server.send("/spin?ms=3600000");
            wait_until(|| stats(&server.id).cpu_ns > 10_000_000);
            sandbox.stop(&server.id, grace_ms);
            assert_eq!(sandbox.exit(&server.id).exit_code, 137);
            let end = stats(&server.id);
            assert_eq!(end.memory_bytes, 0, "its instances are gone");
            // A guest that lived on would get its share of the thread beside this one.
            assert_eq!(other.get("/spin?ms=50").0, 200);
            assert_eq!(stats(&server.id).cpu_ns, end.cpu_ns);
        }
    }
}

/// Posts a body in pieces and reads to the end of the answer's.
fn post(server: &Server, path: &str, body: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let head =
        format!("POST {path} HTTP/1.0\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len());
    let (mut writer, sent) = (stream.try_clone().unwrap(), body.to_vec());
    let sending = std::thread::spawn(move || {
        writer.write_all(head.as_bytes()).unwrap();
        writer.write_all(&sent).unwrap();
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    sending.join().unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head");
    answer.split_off(end + 4)
}

pub(crate) fn a_body_comes_back_as_it_goes_in() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let server = serve(&sandbox, "http3.wasm", 20_000, None);
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for path in ["/echo", "/join"] {
        let came = post(&server, path, &body);
        assert!(came == body, "{path}: {} of {} bytes", came.len(), body.len());
        assert_eq!(post(&server, path, b""), b"");
    }
}

pub(crate) fn trailers_come_and_go_with_their_bodies() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let server = serve(&sandbox, "http3.wasm", 20_000, None);
    let sum = HeaderValue::from_static("7");
    let trailers = HeaderMap::from_iter([(HeaderName::from_static("x-sum"), sum.clone())]);
    let frames = [Frame::data(Bytes::from_static(b"body")), Frame::trailers(trailers)];
    let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
    let request = Request::post("http://test/join").body(body).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let came = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let io = TokioIo::new(stream);
        let (mut client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let asks = async { client.send_request(request).await.unwrap().collect().await.unwrap() };
        tokio::select! {
            came = tokio::time::timeout(LIMIT, asks) => came.expect("it is answered"),
            ended = connection => panic!("the server has gone: {ended:?}"),
        }
    });
    // The guest gives back what it got.
    assert_eq!(came.trailers().unwrap()["x-sum"], sum);
    assert_eq!(came.to_bytes(), "body");
}

pub(crate) fn a_handler_sees_the_request_and_may_go_on_after_its_answer() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let server = serve(&sandbox, "http3.wasm", 20_000, None);
    let said = server.get("/headers?x=1").1;
    assert!(said.contains("/headers?x=1\nauthority: test\n"), "{said}");
    let (code, said) = server.get("/after");
    assert!(code == 200 && said.contains("before"), "{code} {said}");
    wait_until(|| sandbox.output(&server.id) == "after\n");
    assert_eq!(server.get("/refuse").0, 502);
    // Who leaves before the end of an answer holds nothing up.
    let mut stream = server.send("/bytes?count=1000000000");
    stream.read_exact(&mut vec![0; 100_000]).unwrap();
    drop(stream);
    wait_until(|| used(&sandbox).0 == 0);
}

pub(crate) fn a_handler_calls_other_servers_by_its_pods_network() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let other = TcpListener::bind("10.77.9.9:0").unwrap();
    let to = other.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, from) = other.accept().unwrap();
        let mut head = [0; 4096];
        let length = stream.read(&mut head).unwrap();
        stream.write_all(b"HTTP/1.1 418 x\r\nContent-Length: 4\r\n\r\ntea\n").unwrap();
        (from.ip().to_string(), String::from_utf8_lossy(&head[..length]).into_owned())
    });
    let server = serve(&sandbox, "http3.wasm", 20_000, None);
    let url = format!("/fetch?url=http://{to}/some/path");
    // A pod without network reaches nobody.
    assert!(server.get(&url).1.contains("DestinationIpProhibited"));
    sandbox.network("pod", &network(&["10.77.0.1"]));
    let (code, said) = server.get(&url);
    assert!(code == 418 && said.contains("tea"), "{code} {said}");
    let (from, head) = answering.join().unwrap();
    assert_eq!(from, "10.77.0.1");
    assert!(head.starts_with("GET /some/path HTTP/1.1\r\n"), "{head}");
}

pub(crate) fn so_many_requests_wait_and_no_more() {
    const SENT: usize = 300;
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let server = serve(&sandbox, "http.wasm", 3_600_000, None);
    let (tell, told) = std::sync::mpsc::channel();
    for _ in 0..SENT {
        let (stream, tell) = (server.send("/sleep?ms=3600000"), tell.clone());
        // Those that are not answered end with the sandbox.
        std::thread::spawn(move || {
            let mut head = [0; 12];
            let mut stream = stream;
            if stream.read_exact(&mut head).is_ok() {
                let _ = tell.send(String::from_utf8_lossy(&head).into_owned());
            }
        });
    }
    // Four are served, and 256 wait.
    for _ in 0..SENT - 4 - 256 {
        assert_eq!(told.recv_timeout(LIMIT).unwrap(), "HTTP/1.1 503");
    }
    assert_eq!(server.get("/").0, 503, "there is no place for it either");
    told.try_recv().unwrap_err();
}

pub(crate) fn who_sends_what_nobody_wants_hears_why() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let limits = HttpLimits { max_body_bytes: Some(10), ..LIMITS };
        let server = serve_within(&sandbox, limits, |make| make.code(compiled(program)));
        // More than is on its way at once, so that most of it comes after the answer.
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let length = 16 << 20;
        write!(stream, "POST /echo HTTP/1.0\r\nHost: test\r\nContent-Length: {length}\r\n\r\n")
            .unwrap();
        for _ in 0..length >> 20 {
            stream.write_all(&vec![b'.'; 1 << 20]).unwrap();
        }
        assert_eq!(read(stream).0, 413);
    }
}

/// A client of HTTP/2 that asks for `/` a hundred times and takes no byte of any answer.
fn takes_nothing(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).unwrap();
    let frame = |kind: u8, flags: u8, of: u32, payload: &[u8]| {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(of.to_be_bytes());
        frame.extend(payload);
        frame
    };
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    bytes.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for request in 0..100 {
        // GET, http, /, and an authority (RFC 7541, appendix A); the end of the
        // headers and of the stream.
        bytes.extend(frame(1, 5, 2 * request + 1, b"\x82\x86\x84\x01\x04test"));
    }
    stream.write_all(&bytes).unwrap();
    stream
}

pub(crate) fn answers_that_nobody_takes_are_bounded() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let server = serve(&sandbox, "http.wasm", 1000, None);
    // 256 may wait for their clients, and then four keep their turn. Some of a
    // hundred at once may wait for it too long.
    let mut clients = Vec::new();
    wait_until(|| {
        clients.push(takes_nothing(&server));
        server.get("/").0 == 503
    });
    assert!(clients.len() > 2, "{} clients", clients.len());
    // Nor is it a matter of time.
    assert_eq!(server.get("/").0, 503);
    drop(clients);
    wait_until(|| server.get("/").0 == 200);
}

pub(crate) fn clients_that_ask_nothing_make_room_for_others() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let server = serve(&sandbox, "http3.wasm", 60_000, None);
    let limits = SocketLimits { sockets: 8, ..SocketLimits::default() };
    sandbox.network("pod", &PodNetwork { limits, ..network(&["10.77.0.1"]) });
    let begun = server.send("/sleep?ms=3000");
    wait_until(|| used(&sandbox).0 > 0);
    let silent: Vec<_> = (0..12)
        .map(|number| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            // Half of them have begun to say something.
            if number % 2 == 0 {
                stream.write_all(b"GET / HT").unwrap();
            }
            stream
        })
        .collect();
    // Whoever is closed for others hears so, a second after he was let in, and all but
    // those of whom there may be as many are.
    for mut stream in &silent[..6] {
        let end = stream.read(&mut [0]).err().map(|error| error.kind());
        assert_ne!(end, Some(std::io::ErrorKind::WouldBlock));
    }
    assert_eq!(server.get("/").0, 200);
    // Sockets are left to the guest.
    let other = TcpListener::bind("10.77.9.9:0").unwrap();
    let to = other.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(b"HTTP/1.1 418 x\r\nContent-Length: 4\r\n\r\ntea\n").unwrap();
    });
    let (code, said) = server.get(&format!("/fetch?url=http://{to}/"));
    assert!(code == 418 && said.contains("tea"), "{code} {said}");
    answering.join().unwrap();
    assert_eq!(read(begun).0, 200, "whatever is answered is answered to its end");
}

pub(crate) fn bodies_of_requests_that_wait_are_bounded() {
    const SERVED: usize = 100;
    // What a pod's sockets may keep, by what a stream may send unasked.
    const WAITING: usize = (16 << 20) / (64 << 10);
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    // Without a body 400 could wait.
    let limits = HttpLimits { max_concurrent: 100, ..LIMITS };
    let server = serve_within(&sandbox, limits, |make| make.code(compiled("http3.wasm")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut asked, mut connections) = (JoinSet::new(), JoinSet::new());
        for _ in 0..5 {
            let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
            let io = TokioIo::new(stream);
            let (client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            connections.spawn(connection);
            for _ in 0..80 {
                let body = futures::stream::pending::<Result<Frame<Bytes>, Infallible>>();
                let request = Request::post("http://test/sleep?ms=3600000");
                let request = request.body(StreamBody::new(body)).unwrap();
                let mut client = client.clone();
                asked.spawn(async move { client.send_request(request).await.unwrap().status() });
            }
        }
        for _ in 0..5 * 80 - SERVED - WAITING {
            let answered = tokio::time::timeout(LIMIT, asked.join_next()).await;
            assert_eq!(answered.expect("it is turned away").unwrap().unwrap(), 503);
        }
        assert!(asked.try_join_next().is_none());
    });
}
