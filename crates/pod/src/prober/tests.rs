//! Probes of real sockets.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use ::http::{Request, Response, Version};
use futures::poll;
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use krustlet_model::probes::target::HttpTarget;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::ParsedCertificate,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// A probe that hangs must fail here, by name.
const LIMIT: Duration = Duration::from_secs(20);

/// Both families' own addresses of this machine.
const NEAR: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Answers each connection with what is made of its request's target.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self::at(NEAR[0], answer, None).await
    }

    async fn at(
        ip: IpAddr,
        answer: impl Fn(&str) -> String + Send + Sync + 'static,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&asked);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                match &tls {
                    None => serve(stream, &heard, &answer).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(stream, &heard, &answer).await;
                        }
                    }
                }
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    fn target(&self, path: &str) -> HttpTarget {
        HttpTarget {
            scheme: "http".to_owned(),
            host: None,
            port: self.address.port(),
            path: path.to_owned(),
            headers: Vec::new(),
        }
    }

    async fn probe(&self, path: &str) -> ProbeAnswer {
        self.ask(self.target(path)).await
    }

    async fn ask(&self, target: HttpTarget) -> ProbeAnswer {
        probe(self.address.ip(), Target::Http(target), LIMIT).await
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve<S>(mut stream: S, heard: &Mutex<Vec<String>>, answer: &impl Fn(&str) -> String)
where
    S: AsyncWrite + tokio::io::AsyncRead + Unpin,
{
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    // Byte by byte: lines may have any.
    let request: String = request.into_iter().map(char::from).collect();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    heard.lock().unwrap().push(request);
    let _ = stream.write_all(answer(&path).as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn probe(address: IpAddr, target: Target, limit: Duration) -> ProbeAnswer {
    NetProber::new(1).probe(ProbeAsk { target, address, limit }).await
}

fn status(code: u16) -> String {
    format!("HTTP/1.1 {code} Any\r\nContent-Length: 4\r\n\r\nbody")
}

fn to(location: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 4\r\n\r\nbody")
}

#[tokio::test]
async fn statuses_from_200_to_399_are_good() {
    let server = Server::start(|path| status(path[1..].parse().unwrap())).await;
    for (path, expected) in [
        ("/200", ProbeAnswer::Success),
        ("/299", ProbeAnswer::Success),
        ("/304", ProbeAnswer::Warning("Probe terminated redirects, Response body: ".to_owned())),
        ("/400", ProbeAnswer::Failure("HTTP probe failed with statuscode: 400".to_owned())),
        ("/503", ProbeAnswer::Failure("HTTP probe failed with statuscode: 503".to_owned())),
    ] {
        assert_eq!(server.probe(path).await, expected, "{path}");
    }
}

#[tokio::test]
async fn a_probe_says_who_asks() {
    for ip in NEAR {
        let server = Server::at(ip, |_| status(200), None).await;
        assert_eq!(server.probe("/healthz?deep=1").await, ProbeAnswer::Success);
        let port = server.address.port();
        let authority = if ip.is_ipv4() { "127.0.0.1" } else { "[::1]" };
        assert_eq!(
            server.asked(),
            [format!(
                "GET /healthz?deep=1 HTTP/1.1\r\nUser-Agent: kube-probe/1.37\r\nAccept: */*\r\n\
                 Connection: close\r\nHost: {authority}:{port}\r\n\r\n"
            )],
        );
    }
}

#[tokio::test]
async fn a_probe_has_its_own_header_lines() {
    let server = Server::start(|_| status(200)).await;
    let mut target = server.target("/");
    let headers =
        [("host", "pod.example"), ("X-A", "1"), ("X-A", "2"), ("user-agent", "me"), ("Accept", "")];
    target.headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    assert_eq!(server.ask(target.clone()).await, ProbeAnswer::Success);
    let asked = server.asked().remove(0);
    for line in ["Host: pod.example\r\n", "X-A: 1\r\n", "X-A: 2\r\n", "User-Agent: me\r\n"] {
        assert!(asked.contains(line), "{line} {asked}");
    }
    assert!(!asked.contains("Accept"), "{asked}");

    target.headers = vec![("a b".to_owned(), String::new())];
    let why = "net/http: invalid header field name \"a b\"";
    let expected = ProbeAnswer::Failure(format!("Get \"http://{}/\": {why}", server.address));
    assert_eq!(server.ask(target).await, expected);
}

#[tokio::test]
async fn a_path_is_sent_as_it_is_written() {
    let server = Server::start(|path| match path {
        "/a/../b?c" => to("../d/../e"),
        _ => status(200),
    })
    .await;
    assert_eq!(server.probe("/a/../b?c").await, ProbeAnswer::Success);
    let asked = server.asked();
    let asked: Vec<_> = asked.iter().filter_map(|request| request.split(' ').nth(1)).collect();
    assert_eq!(asked, ["/a/../b?c", "/e"], "where it leads to is worked out");
}

#[tokio::test]
async fn header_values_may_have_any_letters() {
    let server = Server::start(|_| status(200)).await;
    for (host, line) in
        [("b\u{fc}cher.example:80", "Host: xn--bcher-kva.example:80\r\n"), ("a b", "Host: \r\n")]
    {
        let headers = [("X-A", " \u{e9} "), ("Host", host)];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let target = HttpTarget { headers, ..server.target("/") };
        assert_eq!(server.ask(target).await, ProbeAnswer::Success);
        let asked = server.asked().pop().unwrap();
        for line in ["X-A: \u{c3}\u{a9}\r\n", line] {
            assert!(asked.contains(line), "{line:?} {asked:?}");
        }
    }
    let headers = vec![("X-A".to_owned(), "a\nb".to_owned())];
    let answer = server.ask(HttpTarget { headers, ..server.target("/") }).await;
    let ProbeAnswer::Failure(why) = answer else { panic!("{answer:?}") };
    assert!(why.ends_with("invalid header field value for \"X-A\""), "{why}");
}

/// As Go's client does: the second path is on the host that the server named.
#[tokio::test]
async fn a_host_that_the_probe_names_holds_until_the_server_names_one() {
    let port = Arc::new(OnceLock::new());
    let known = Arc::clone(&port);
    let server = Server::start(move |path| match path {
        "/1" => to("/2"),
        "/2" => to(&format!("http://127.0.0.1:{}/3", known.get().unwrap())),
        "/3" => to("/4"),
        _ => status(200),
    })
    .await;
    port.set(server.address.port()).unwrap();
    let headers = vec![("Host".to_owned(), "pod.example".to_owned())];
    let target = HttpTarget { headers, ..server.target("/1") };
    assert_eq!(server.ask(target).await, ProbeAnswer::Success);
    let own = format!("Host: {}\r\n", server.address);
    for (request, host) in
        server.asked().iter().zip(["Host: pod.example\r\n", "Host: pod.example\r\n", &own, &own])
    {
        assert!(request.contains(host), "{host} {request}");
    }
}

#[tokio::test]
async fn redirects_are_followed_on_the_same_host_only() {
    for ip in NEAR {
        let server = Server::at(
            ip,
            |path| match path {
                "/there" => to("here"),
                "/here" => status(204),
                "/away" => to("http://other.example/"),
                "/silent" => status(301),
                _ => to("/round"),
            },
            None,
        )
        .await;
        assert_eq!(server.probe("/there").await, ProbeAnswer::Success);
        let warning =
            ProbeAnswer::Warning("Probe terminated redirects, Response body: body".to_owned());
        assert_eq!(server.probe("/away").await, warning);
        assert_eq!(server.probe("/silent").await, warning);
        let asked = server.asked().len();
        let answer = server.probe("/round").await;
        let ProbeAnswer::Failure(why) = answer else { panic!("{answer:?}") };
        assert!(why.ends_with("stopped after 10 redirects"), "{why}");
        assert_eq!(server.asked().len(), asked + 10);
    }
}

/// The lines of that name in requests.
fn lines(requests: &[String], name: &str) -> Vec<Option<String>> {
    let start = format!("{name}: ");
    let line = |request: &String| {
        request.split("\r\n").find_map(|line| line.strip_prefix(&start).map(str::to_owned))
    };
    requests.iter().map(line).collect()
}

#[tokio::test]
async fn a_redirect_says_where_it_comes_from_unless_the_probe_does() {
    let port = Arc::new(OnceLock::new());
    let known = Arc::clone(&port);
    let server = Server::start(move |path| match path {
        "/1" => to("/2?x=1#part"),
        "/2?x=1" => to(&format!("http://me:secret@127.0.0.1:{}/3", known.get().unwrap())),
        "/3" => to("/4"),
        _ => status(200),
    })
    .await;
    port.set(server.address.port()).unwrap();
    assert_eq!(server.probe("/1").await, ProbeAnswer::Success);
    let at = |path: &str| Some(format!("http://{}{path}", server.address));
    let told = lines(&server.asked(), "Referer");
    assert_eq!(told, [None, at("/1"), at("/2?x=1#part"), at("/3")]);

    let headers = vec![("Referer".to_owned(), "me".to_owned())];
    let target = HttpTarget { headers, ..server.target("/1") };
    assert_eq!(server.ask(target).await, ProbeAnswer::Success);
    let told = lines(&server.asked()[4..], "Referer");
    assert_eq!(told, [(); 4].map(|()| Some("me".to_owned())));

    // Nobody is told in the clear.
    let plain = server.address;
    let answer = move |path: &str| match path {
        "/secret" => to("/other"),
        _ => to(&format!("http://{plain}/")),
    };
    let secret = Server::at(NEAR[0], answer, Some(acceptor(&[]))).await;
    let target = HttpTarget { scheme: "https".to_owned(), ..secret.target("/secret") };
    assert_eq!(secret.ask(target).await, ProbeAnswer::Success);
    let first = Some(format!("https://{}/secret", secret.address));
    assert_eq!(lines(&secret.asked(), "Referer"), [None, first]);
    assert_eq!(lines(&server.asked()[8..], "Referer"), [None]);
}

/// Serves by TLS those who offer one of these protocols; all if there are none.
fn acceptor(protocols: &[&str]) -> TlsAcceptor {
    let pair = rcgen::generate_simple_self_signed(vec!["elsewhere.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// A server of HTTP/2 alone. What it is asked, and of whom.
async fn of_version_2(asked: mpsc::UnboundedSender<Request<()>>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind((NEAR[0], 0)).await.unwrap();
    let (address, acceptor, mut tasks) =
        (listener.local_addr().unwrap(), acceptor(&["h2"]), JoinSet::new());
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let answer = service_fn(|request: Request<Incoming>| {
                let response = match request.uri().path() {
                    "/there" => Response::builder().status(302).header("Location", "/here?x"),
                    _ => Response::builder().status(200),
                };
                asked.send(request.map(drop)).unwrap();
                let body = Full::new(Bytes::from("body"));
                std::future::ready(Ok::<_, Infallible>(response.body(body).unwrap()))
            });
            let server = server::conn::http2::Builder::new(TokioExecutor::new());
            // Until its client leaves, whatever way that goes.
            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn https_is_spoken_in_version_2_where_the_server_chooses_it() {
    let (asked, mut heard) = mpsc::unbounded_channel();
    let (address, _tasks) = of_version_2(asked).await;
    let target = |path: &str, headers: &[(&str, &str)]| {
        let line = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        Target::Http(HttpTarget {
            scheme: "https".to_owned(),
            host: None,
            port: address.port(),
            path: path.to_owned(),
            headers: headers.iter().map(line).collect(),
        })
    };
    let named = [("Host", "pod.example"), ("X-A", "1")];
    let answer = probe(address.ip(), target("/there", &named), LIMIT).await;
    assert_eq!(answer, ProbeAnswer::Success);
    let referer = format!("https://{address}/there");
    for (path, referer) in [("/there", None), ("/here?x", Some(&referer))] {
        let request = heard.recv().await.unwrap();
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.uri().to_string(), format!("https://pod.example{path}"));
        let line = |name| request.headers().get(name).map(|line| line.to_str().unwrap());
        assert_eq!(line("x-a"), Some("1"));
        assert_eq!(line("user-agent"), Some("kube-probe/1.37"));
        assert_eq!(line("referer"), referer.map(String::as_str));
        assert_eq!((line("host"), line("connection")), (None, None));
    }
    // What is no host is left out in version 1 alone.
    let answer = probe(address.ip(), target("/", &[("Host", "a b")]), LIMIT).await;
    let ProbeAnswer::Failure(why) = answer else { panic!("{answer:?}") };
    assert!(why.contains("http2: invalid Host header"), "{why}");

    for protocols in [&[] as &[_], &["http/1.1"]] {
        let server = Server::at(NEAR[0], |_| status(200), Some(acceptor(protocols))).await;
        let target = HttpTarget { scheme: "https".to_owned(), ..server.target("/") };
        assert_eq!(server.ask(target).await, ProbeAnswer::Success);
        assert!(server.asked()[0].starts_with("GET / HTTP/1.1\r\n"));
    }
}

#[tokio::test]
async fn a_body_is_read_as_far_as_it_counts() {
    let server = Server::start(|_| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n{}", ".".repeat(20 << 10))
    })
    .await;
    assert_eq!(server.probe("/").await, ProbeAnswer::Success);
}

/// An answer whose body breaks off, or goes on in a moment.
const HALF: &str = "HTTP/1.1 500 Any\r\nContent-Length: 9\r\n\r\nhalf";

#[tokio::test]
async fn an_answer_that_breaks_off_is_asked_for_three_times_and_says_nothing() {
    let server = Server::start(|_| HALF.to_owned()).await;
    let answer = server.probe("/").await;
    assert!(matches!(answer, ProbeAnswer::Broken(_)), "{answer:?}");
    assert_eq!(server.asked().len(), 3);

    let times = AtomicUsize::new(0);
    let server = Server::start(move |_| match times.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => HALF.to_owned(),
        _ => status(200),
    })
    .await;
    assert_eq!(server.probe("/").await, ProbeAnswer::Success);
    // Whatever becomes of the body of an answer that leads elsewhere.
    let server = Server::start(|path| match path {
        "/" => HALF.replace("500 Any", "302 Found\r\nLocation: /there"),
        _ => status(200),
    })
    .await;
    assert_eq!(server.probe("/").await, ProbeAnswer::Success);
}

#[tokio::test]
async fn a_body_that_takes_too_long_says_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut served = JoinSet::new();
    served.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(HALF.as_bytes()).await.unwrap();
        // Open for as long as the client has it open.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let target = HttpTarget {
        scheme: "http".to_owned(),
        host: None,
        port: address.port(),
        path: "/".to_owned(),
        headers: Vec::new(),
    };
    let prober = NetProber::new(1);
    // Long enough for the head on a busy machine.
    let limit = Duration::from_secs(2);
    let answer = http::get((&prober.tls, &prober.lookups), &target, "127.0.0.1", limit).await;
    let ProbeAnswer::Broken(why) = answer else { panic!("{answer:?}") };
    assert!(why.ends_with("while reading body)"), "{why}");
}

#[tokio::test]
async fn nobody_there_is_a_failure() {
    for ip in NEAR {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (host, port) = (None, address.port());
        let tcp = Target::Tcp { host, port };
        assert_eq!(probe(ip, tcp.clone(), LIMIT).await, ProbeAnswer::Success);
        drop(listener);
        let why = format!("dial tcp {address}: connect: connection refused");
        assert_eq!(probe(ip, tcp, LIMIT).await, ProbeAnswer::Failure(why.clone()));
        let http = HttpTarget {
            scheme: "http".to_owned(),
            host: None,
            port,
            path: "/".to_owned(),
            headers: Vec::new(),
        };
        let expected = ProbeAnswer::Failure(format!("Get \"http://{address}/\": {why}"));
        assert_eq!(probe(ip, Target::Http(http), LIMIT).await, expected);
    }
}

#[tokio::test]
async fn a_probe_has_a_time_limit() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = HttpTarget {
        scheme: "http".to_owned(),
        host: None,
        port: address.port(),
        path: String::new(),
        headers: Vec::new(),
    };
    let answer = probe(NEAR[0], Target::Http(target), Duration::from_millis(50)).await;
    let why = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    assert_eq!(answer, ProbeAnswer::Failure(format!("Get \"http://{address}\": {why}")));
}

#[tokio::test]
async fn a_pod_whose_probes_hang_holds_up_its_own_alone() {
    // The system takes connections here, and nobody answers.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let silent = silent.local_addr().unwrap();
    let server = Server::start(|_| status(200)).await;
    let probe = |pod: &Arc<dyn Prober>, port| {
        let target = Target::Http(HttpTarget { port, ..server.target("/") });
        pod.probe(ProbeAsk { target, address: NEAR[0], limit: LIMIT })
    };
    let prober = NetProber::new(1);
    let (pod, other) = (prober.for_pod(), prober.for_pod());
    let mut hangs = probe(&pod, silent.port());
    assert!(poll!(&mut hangs).is_pending());
    let mut waits = probe(&pod, server.address.port());
    assert!(poll!(&mut waits).is_pending());
    assert_eq!(probe(&other, server.address.port()).await, ProbeAnswer::Success);
    assert!(poll!(&mut waits).is_pending(), "its pod has no other turn");
    drop(hangs);
    assert_eq!(waits.await, ProbeAnswer::Success);
}

#[tokio::test]
async fn what_waits_for_the_names_of_others_is_within_its_time() {
    let server = Server::start(|_| status(200)).await;
    let (host, port) = (Some("localhost".to_owned()), server.address.port());
    let targets = [
        Target::Tcp { host: host.clone(), port },
        Target::Http(HttpTarget { host, ..server.target("/") }),
    ];
    let prober = NetProber::new(2);
    for target in targets {
        let (slow, pod) = (prober.of_pod(), prober.of_pod());
        let ask = ProbeAsk { target, address: NEAR[0], limit: LIMIT };
        // One pod's name takes one turn only, however many it has looked up.
        let mut taken = vec![slow.lookups.turn().await.unwrap()];
        assert_eq!(pod.probe(ask.clone()).await, ProbeAnswer::Success);
        taken.push(prober.lookups.turn().await.unwrap());
        let mut waits = pod.probe(ask);
        assert!(poll!(&mut waits).is_pending());
        tokio::time::pause();
        tokio::time::advance(LIMIT * 2).await;
        assert!(poll!(&mut waits).is_pending(), "it has not begun");
        tokio::time::resume();
        drop(taken);
        assert_eq!(waits.await, ProbeAnswer::Success);
    }
}

#[test]
fn the_shares_of_all_pods_fit_in_a_part_of_the_descriptors() {
    for (descriptors, pods, expected) in [
        (None, 110, 16),
        (Some(1 << 20), 110, 16),
        (Some(4096), 110, 9),
        (Some(1024), 110, 2),
        (Some(1024), 10_000, 1),
        (Some(0), 0, 1),
    ] {
        assert_eq!(share(descriptors, pods), expected, "{descriptors:?} {pods}");
    }
}

/// A certificate of X.509 v1 as such servers have it that were set up by hand, out
/// of one of v3: its body begins with the version and ends with the extensions,
/// which v1 has not. Its signature holds no more; nobody looks at it.
fn of_version_1(certificate: &[u8]) -> Vec<u8> {
    /// One value and what follows it: (tag, content, rest).
    fn value(der: &[u8]) -> (u8, &[u8], &[u8]) {
        let (start, length) = match der[1] {
            short @ 0..0x80 => (2, usize::from(short)),
            long => {
                let start = 2 + usize::from(long & 0x7f);
                let bytes = der[2..start].iter();
                (start, bytes.fold(0, |all, byte| (all << 8) | usize::from(*byte)))
            }
        };
        (der[0], &der[start..start + length], &der[start + length..])
    }
    fn sequence(content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[0x30, 0x82], &length[..], content].concat()
    }
    let (_, all, _) = value(certificate);
    let (_, body, signature) = value(all);
    let (mut kept, mut rest) = (Vec::new(), body);
    while !rest.is_empty() {
        let (tag, _, next) = value(rest);
        if !matches!(tag, 0xa0 | 0xa3) {
            kept.extend_from_slice(&rest[..rest.len() - next.len()]);
        }
        rest = next;
    }
    sequence(&[&sequence(&kept), signature].concat())
}

#[tokio::test]
async fn any_certificate_will_do() {
    let pair = rcgen::generate_simple_self_signed(vec!["elsewhere.example".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let old = CertificateDer::from(of_version_1(pair.cert.der()));
    assert!(ParsedCertificate::try_from(&old).is_err(), "it is no test");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for certificate in [pair.cert.der().clone(), old.clone()] {
            let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
            let key = provider.key_provider.load_private_key(key).unwrap();
            let shown = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
            let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(shown));
            let acceptor = TlsAcceptor::from(Arc::new(config));
            for ip in NEAR {
                let server = Server::at(ip, |_| status(200), Some(acceptor.clone())).await;
                let target = HttpTarget { scheme: "https".to_owned(), ..server.target("/") };
                assert_eq!(server.ask(target).await, ProbeAnswer::Success);
                let answer = server.probe("/").await;
                assert!(matches!(answer, ProbeAnswer::Failure(_)), "{answer:?}");
            }
        }
    }
}
