//! The http guests of WASI 0.2 and 0.3, asked over real sockets.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use krustlet_model::ContainerId;
use krustlet_protocol::{GuestKind, HttpLimits, SandboxReply, SandboxRequest};

use crate::{
    code::compiled,
    fixture::{LIMIT, Make, Sandbox, Zygote},
    guests::wait_until,
};

pub(crate) struct Server {
    pub(crate) id: ContainerId,
    pub(crate) address: SocketAddr,
}

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
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let limits = HttpLimits { max_concurrent: 4, request_timeout_ms, ..HttpLimits::default() };
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
}

fn read(mut stream: TcpStream) -> (u16, String) {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    (code.unwrap_or_else(|| panic!("no answer: {text:?}")), text)
}

pub(crate) fn requests_are_answered_each_by_its_own_instance() {
    let zygote = Zygote::start();
    for program in PROGRAMS {
        let sandbox = zygote.sandbox();
        let server = serve(&sandbox, program, 10_000, None);
        for _ in 0..3 {
            let (code, text) = server.get("/count");
            assert_eq!(code, 200);
            assert!(text.contains("\r\n1\n") || text.ends_with("1\n\r\n0\r\n\r\n"), "{text}");
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
        let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else {
            panic!()
        };
        assert!(containers[0].cpu_ns > 50_000_000, "{containers:?}");
        wait_until(|| {
            let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else {
                panic!()
            };
            containers[0].memory_bytes == 0
        });
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
        wait_until(|| {
            let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else {
                panic!()
            };
            containers[0].memory_bytes > 0
        });
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
        wait_until(|| {
            let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else {
                panic!()
            };
            containers[0].cpu_ns > 10_000_000
        });
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
    wait_until(|| {
        let SandboxReply::Stats { containers } = sandbox.ask(SandboxRequest::Stats) else {
            panic!()
        };
        containers[0].memory_bytes == 0
    });
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
    sandbox.network("pod", &crate::sockets::network(&["10.77.0.1"]));
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
