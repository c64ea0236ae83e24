//! A server and a client in one pod: they meet on its private loopback, so that
//! no packet leaves the process and time can be paused.

use std::{
    borrow::Cow,
    convert::Infallible,
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Waker},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use http::{StatusCode, Version};
use http_body_util::{Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use krustlet_protocol::{Destinations, Host, Limits, Names, PodNetwork};
use krustlet_testkit::Authority;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    runtime::Handle,
    sync::Notify,
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::*;
use crate::{
    net::{NetError, Options, Stream, tests::on_a_network},
    threads::Threads,
};

pub(super) fn stack() -> Stack {
    let host = |address: &str, name: &str| Host {
        address: address.parse().unwrap(),
        names: vec![name.to_owned()],
    };
    let stack = Stack::default();
    let network = PodNetwork {
        addresses: vec!["192.0.2.1".parse().unwrap()],
        refused: vec![Destinations {
            address: "169.254.0.0".parse().unwrap(),
            prefix: 16,
            port: None,
        }],
        names: Some(Names {
            hosts: vec![
                host("127.0.0.1", "web.test"),
                host("169.254.169.254", "rebound.test"),
                host("127.0.0.1", "two.test"),
                host("127.0.0.2", "two.test"),
                host("169.254.169.254", "denied.test"),
                host("127.0.0.1", "denied.test"),
            ],
            ..Names::default()
        }),
        ..PodNetwork::default()
    };
    stack.set(network, None);
    stack
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn full(text: &str) -> Body {
    Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed_unsync()
}

/// A container whose guests ask, where it does not matter whose they are.
fn whose() -> &'static Arc<Whose> {
    static WHOSE: LazyLock<Arc<Whose>> = LazyLock::new(|| asks(None));
    &WHOSE
}

/// One that believes these.
pub(super) fn asks(own: Option<Arc<OwnRoots>>) -> Arc<Whose> {
    Arc::new(Whose { own, usage: Arc::new(Usage::new(&Limits::default())) })
}

/// A server within the pod.
pub(super) struct Server {
    pub(super) at: SocketAddr,
    pub(super) connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Says by what version it was asked.
    pub(super) fn start(stack: &Stack, tls: Option<TlsAcceptor>) -> Self {
        Self::raw(stack, move |stream: Stream| {
            let tls = tls.clone();
            async move {
                let Some(tls) = tls else { return serve(stream).await };
                // A client that does not like the certificate goes away.
                if let Ok(stream) = tls.accept(stream).await {
                    serve(stream).await;
                }
            }
        })
    }

    /// Has `refuses` deal with the first connections, so many, and serves the others.
    fn refuses<F>(
        stack: &Stack,
        tls: TlsAcceptor,
        first: usize,
        refuses: impl Fn(TlsStream<Stream>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let served = Arc::new(AtomicUsize::new(0));
        Self::raw(stack, move |stream: Stream| {
            let (tls, refuses) = (tls.clone(), refuses.clone());
            let is_refused = served.fetch_add(1, SeqCst) < first;
            async move {
                let stream = tls.accept(stream).await.unwrap();
                if is_refused { refuses(stream).await } else { serve(stream).await }
            }
        })
    }

    fn raw<F>(stack: &Stack, serve: impl Fn(Stream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::raw_at("127.0.0.1:0".parse().unwrap(), stack, serve)
    }

    fn raw_at<F>(
        at: SocketAddr,
        stack: &Stack,
        serve: impl Fn(Stream) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let bound = stack.bind_tcp(at).unwrap();
        let mut listener = bound.listen(stack.permit().unwrap(), Options::default(), 16).unwrap();
        let at = listener.address();
        let connections = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let accepted = Arc::clone(&connections);
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let connection = listener.accept().await.unwrap();
                accepted.fetch_add(1, SeqCst);
                open.spawn(serve(Stream(Arc::new(connection))));
            }
        });
        Self { at, connections, _tasks: tasks }
    }

    /// Answers with these bytes, and then nothing more.
    fn says(stack: &Stack, bytes: &'static [u8]) -> Self {
        Self::raw(stack, async move |mut stream: Stream| {
            hear(&mut stream).await;
            stream.write_all(bytes).await.unwrap();
            std::future::pending::<()>().await;
        })
    }
}

/// Sends body and trailers back as they came.
async fn send_back(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = service_fn(async |request: Request<Incoming>| {
        let came = request.into_body().collect().await.unwrap();
        let trailers = came.trailers().cloned().unwrap_or_default();
        let answer = Response::builder().header("trailer", "x-sum");
        let body = with_trailers::<Infallible>(came.to_bytes(), trailers);
        Ok::<_, Infallible>(answer.body(body).unwrap())
    });
    let server = auto::Builder::new(TokioExecutor::new());
    drop(server.serve_connection(TokioIo::new(stream), service).await);
}

fn with_trailers<E: Send + 'static>(
    bytes: Bytes,
    trailers: http::HeaderMap,
) -> UnsyncBoxBody<Bytes, E> {
    let frames = [Frame::data(bytes), Frame::trailers(trailers)].map(Ok);
    StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
}

/// Says by what version it was asked, and what came with it.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = service_fn(async |request: Request<Incoming>| {
        let (version, path) = (request.version(), request.uri().path().to_owned());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let text = format!("{version:?} {path}{}", String::from_utf8_lossy(&body));
        Ok::<_, Infallible>(Response::new(full(&text)))
    });
    let server = auto::Builder::new(TokioExecutor::new());
    drop(server.serve_connection(TokioIo::new(stream), service).await);
}

/// Waits for the beginning of a request: what comes before it is no answer.
async fn hear(stream: &mut Stream) {
    let mut some = [0; 1024];
    assert!(stream.read(&mut some).await.unwrap() > 0);
}

pub(super) fn request(uri: &str) -> Request<WasiBody> {
    let body = Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync();
    Request::get(uri).body(body).unwrap()
}

/// A body of what a guest writes.
fn from_channel(pieces: tokio::sync::mpsc::Receiver<Bytes>) -> WasiBody {
    let pieces = futures::stream::unfold(pieces, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((Ok::<_, HttpError>(Frame::data(piece)), pieces))
    });
    StreamBody::new(Box::pin(pieces)).boxed_unsync()
}

async fn ask(outgoing: &Outgoing, uri: &str) -> Result<String, HttpError> {
    ask_as(whose(), outgoing, uri).await
}

/// As a guest of a container.
pub(super) async fn ask_as(
    whose: &Arc<Whose>,
    outgoing: &Outgoing,
    uri: &str,
) -> Result<String, HttpError> {
    let answer = outgoing.send(request(uri), RequestOptions::default(), whose).await?;
    assert_eq!(answer.status(), StatusCode::OK);
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

/// An authority, and a server that has its word for this name.
fn trusted(name: &str) -> (Roots, TlsAcceptor) {
    let authority = Authority::new();
    let roots = Roots::new(Cow::Owned(authority.pem().to_owned().into_bytes()));
    (roots, speaker(&authority, name))
}

/// One that has an authority's word for this name, and speaks both versions.
pub(super) fn speaker(authority: &Authority, name: &str) -> TlsAcceptor {
    let mut config = authority.server(name);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

pub(super) fn nobody() -> Roots {
    Roots::new(Cow::Borrowed(b""))
}

#[tokio::test]
async fn connections_are_used_again() {
    let stack = stack();
    let server = Server::start(&stack, None);
    let outgoing = Outgoing::trusting(&stack, nobody());
    for path in ["/a", "/b", "/c"] {
        let answer = ask(&outgoing, &format!("http://web.test:{}{path}", server.at.port())).await;
        assert_eq!(answer.unwrap(), format!("{:?} {path}", Version::HTTP_11));
    }
    assert_eq!(server.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn each_thread_has_connections_of_its_own() {
    let stack = stack();
    let server = Server::start(&stack, None);
    let outgoing = Arc::new(Outgoing::trusting(&stack, nobody()));
    let uri = format!("http://web.test:{}/", server.at.port());
    let threads = Threads::new(Handle::current(), 2);
    let places = [(); 2].map(|()| threads.place(2));
    for place in places.iter().cycle().take(6) {
        let (outgoing, uri) = (Arc::clone(&outgoing), uri.clone());
        let asks = async move { ask(&outgoing, &uri).await.unwrap() };
        place.handle().spawn(asks).await.unwrap();
    }
    assert_eq!(server.connections.load(SeqCst), 2);
}

#[tokio::test]
async fn what_requests_take_is_charged_to_the_container_that_sends_them() {
    let stack = stack();
    let (roots, tls) = trusted("web.test");
    let server = Server::start(&stack, Some(tls));
    let outgoing = Outgoing::trusting(&stack, roots);
    let uri = format!("https://web.test:{}/", server.at.port());
    let [one, other] = [(); 2].map(|()| asks(None));
    ask_as(&one, &outgoing, &uri).await.unwrap();
    assert!(one.usage.cpu() > 0 && other.usage.cpu() == 0);
    // The other has a connection of its own.
    ask_as(&other, &outgoing, &uri).await.unwrap();
    assert!(other.usage.cpu() > 0);
    assert_eq!(server.connections.load(SeqCst), 2);
    ask_as(&one, &outgoing, &uri).await.unwrap();
    assert_eq!(server.connections.load(SeqCst), 2, "it is kept");
    drop(other);
    ask_as(&one, &outgoing, &uri).await.unwrap();
    assert_eq!(outgoing.callers.lock().unwrap().len(), 1, "its connections go with it");
}

#[tokio::test]
async fn trailers_go_and_come_in_both_versions() {
    let stack = stack();
    let (roots, tls) = trusted("web.test");
    let outgoing = Outgoing::trusting(&stack, roots);
    let plain = Server::raw(&stack, send_back);
    let encrypted = Server::raw(&stack, move |stream| {
        let tls = tls.clone();
        async move { send_back(tls.accept(stream).await.unwrap()).await }
    });
    for (scheme, server, version) in
        [("http", plain, Version::HTTP_11), ("https", encrypted, Version::HTTP_2)]
    {
        let trailers = [("x-sum", "7")].map(|(name, value)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        });
        let trailers = trailers.into_iter().collect();
        let request = Request::post(format!("{scheme}://web.test:{}/", server.at.port()))
            .header("te", "trailers")
            .header("trailer", "x-sum")
            .body(with_trailers(Bytes::from_static(b"body"), trailers))
            .unwrap();
        let answer = outgoing.send(request, RequestOptions::default(), whose()).await.unwrap();
        assert_eq!(answer.version(), version);
        let came = answer.into_body().collect().await.unwrap();
        assert_eq!(came.trailers().unwrap()["x-sum"], "7", "{version:?}");
        assert_eq!(came.to_bytes(), "body");
    }
}

#[tokio::test]
async fn tls_is_spoken_with_those_who_have_an_authoritys_word() {
    let stack = stack();
    let (roots, tls) = trusted("web.test");
    let server = Server::start(&stack, Some(tls));
    let outgoing = Outgoing::trusting(&stack, roots);
    let port = server.at.port();
    let answer = ask(&outgoing, &format!("https://web.test:{port}/")).await.unwrap();
    assert_eq!(answer, format!("{:?} /", Version::HTTP_2));
    // By another name it is somebody else.
    let other = ask(&outgoing, &format!("https://localhost:{port}/")).await;
    assert!(matches!(other, Err(HttpError::TlsCertificateError)), "{other:?}");
    let (strangers, _) = trusted("web.test");
    let stranger = Outgoing::trusting(&stack, strangers);
    let refused = ask(&stranger, &format!("https://web.test:{port}/")).await;
    assert!(matches!(refused, Err(HttpError::TlsCertificateError)), "{refused:?}");
    let nobody = Outgoing::trusting(&stack, nobody());
    let refused = ask(&nobody, &format!("https://web.test:{port}/")).await;
    assert!(matches!(refused, Err(HttpError::ConfigurationError)), "{refused:?}");
}

#[tokio::test]
async fn what_answers_no_tls_is_told_apart() {
    let stack = stack();
    let (roots, _) = trusted("web.test");
    let outgoing = Outgoing::trusting(&stack, roots);
    let server = Server::says(&stack, b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let failed = ask(&outgoing, &format!("https://web.test:{}/", server.at.port())).await;
    assert!(matches!(failed, Err(HttpError::TlsProtocolError)), "{failed:?}");
}

#[tokio::test]
async fn the_address_that_is_connected_to_is_what_is_checked() {
    let stack = stack();
    let outgoing = Outgoing::trusting(&stack, nobody());
    for uri in ["http://169.254.169.254/", "http://rebound.test/", "http://[::ffff:a9fe:a9fe]/"] {
        let refused = ask(&outgoing, uri).await;
        assert!(matches!(refused, Err(HttpError::DestinationIpProhibited)), "{uri}: {refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_does_not_answer_keeps_nobody_from_another() {
    let stack = stack();
    let outgoing = Outgoing::trusting(&stack, nobody());
    // Its queue is full, so that it swallows whoever comes.
    let bound = stack.bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = bound.listen(stack.permit().unwrap(), Options::default(), 1).unwrap();
    let at = listener.address();
    let _waits = stack.connect_tcp(stack.permit().unwrap(), Options::default(), at).await.unwrap();
    let uri = format!("http://two.test:{}/", at.port());
    let begun = Instant::now();
    // The other refuses: it is waited for until the guest has had enough.
    let soon = RequestOptions {
        connect_timeout: Some(Duration::from_mins(1)),
        ..RequestOptions::default()
    };
    let left = outgoing.send(request(&uri), soon, whose()).await.map(drop);
    assert!(matches!(left, Err(HttpError::ConnectionTimeout)), "{left:?}");
    assert!(begun.elapsed() >= Duration::from_mins(1));

    let other = SocketAddr::new("127.0.0.2".parse().unwrap(), at.port());
    let server = Server::raw_at(other, &stack, serve);
    let (begun, before) = (Instant::now(), stack.report().sockets);
    assert_eq!(ask(&outgoing, &uri).await.unwrap(), format!("{:?} /", Version::HTTP_11));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(server.connections.load(SeqCst), 1);
    // The one that lost is let go; of the other there are two ends.
    assert_eq!(stack.report().sockets, before + 2);
}

#[tokio::test(start_paused = true)]
async fn addresses_that_are_tried_leave_sockets_to_others() {
    let stack = small_stack(8);
    let outgoing = Outgoing::trusting(&stack, nobody());
    // Swallows whoever comes; the other is there.
    let bound = stack.bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = bound.listen(stack.permit().unwrap(), Options::default(), 1).unwrap();
    let at = listener.address();
    let _waits = stack.connect_tcp(stack.permit().unwrap(), Options::default(), at).await.unwrap();
    let other = SocketAddr::new("127.0.0.2".parse().unwrap(), at.port());
    let _server = Server::raw_at(other, &stack, serve);
    let mut held = Vec::new();
    while stack.report().sockets < 5 {
        held.push(stack.permit().unwrap());
    }
    let uri = format!("http://two.test:{}/", at.port());
    let mut asked = std::pin::pin!(ask(&outgoing, &uri));
    let early = timeout(Duration::from_secs(10), asked.as_mut()).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(stack.report().sockets, 6, "a quarter is free");
    drop(held);
    assert_eq!(asked.await.unwrap(), format!("{:?} /", Version::HTTP_11));
}

#[tokio::test]
async fn who_may_not_go_to_one_of_the_addresses_is_told_that() {
    let stack = stack();
    let outgoing = Outgoing::trusting(&stack, nobody());
    // Nobody listens at the other.
    let denied = ask(&outgoing, "http://denied.test:1/").await;
    assert!(matches!(denied, Err(HttpError::DestinationIpProhibited)), "{denied:?}");
    let refused = ask(&outgoing, "http://two.test:1/").await;
    assert!(matches!(refused, Err(HttpError::ConnectionRefused)), "{refused:?}");
}

#[tokio::test]
async fn a_failure_is_told_in_the_words_of_wasi() {
    let stack = stack();
    let outgoing = Outgoing::trusting(&stack, nobody());
    let refused = ask(&outgoing, "http://localhost:1/").await;
    assert!(matches!(refused, Err(HttpError::ConnectionRefused)), "{refused:?}");
    let unknown = ask(&outgoing, "http://nowhere.test/").await;
    assert!(matches!(unknown, Err(HttpError::ConfigurationError)), "no servers: {unknown:?}");
    for odd in ["http://a..b/", "http://localhost:99999/"] {
        let told = ask(&outgoing, odd).await;
        assert!(matches!(told, Err(HttpError::HttpRequestUriInvalid)), "{odd}: {told:?}");
    }
    let without = Stack::default();
    let none = Outgoing::trusting(&without, nobody());
    let denied = ask(&none, "http://192.0.2.9/").await;
    assert!(matches!(denied, Err(HttpError::DestinationIpProhibited)), "{denied:?}");
    let server = Server::raw(&stack, async |stream: Stream| drop(stream));
    let gone = ask(&outgoing, &format!("http://web.test:{}/", server.at.port())).await;
    assert!(
        matches!(gone, Err(HttpError::ConnectionTerminated | HttpError::HttpResponseIncomplete)),
        "{gone:?}"
    );
    let server = Server::says(&stack, b"what?\r\n\r\n");
    let odd = ask(&outgoing, &format!("http://web.test:{}/", server.at.port())).await;
    assert!(matches!(odd, Err(HttpError::HttpProtocolError)), "{odd:?}");
}

#[tokio::test(start_paused = true)]
async fn who_keeps_a_guest_waiting_is_left() {
    let stack = stack();
    let outgoing = Outgoing::trusting(&stack, nobody());
    let second = Duration::from_secs(1);
    let all = RequestOptions {
        connect_timeout: Some(second),
        first_byte_timeout: Some(second),
        between_bytes_timeout: Some(second),
    };
    let silent = Server::says(&stack, b"");
    let uri = format!("http://web.test:{}/", silent.at.port());
    let left = outgoing.send(request(&uri), all, whose()).await.map(drop);
    assert!(matches!(left, Err(HttpError::ConnectionReadTimeout)), "{left:?}");

    let begun = Instant::now();
    let first = RequestOptions { first_byte_timeout: Some(second), ..RequestOptions::default() };
    let left = outgoing.send(request(&uri), first, whose()).await.map(drop);
    assert!(matches!(left, Err(HttpError::ConnectionReadTimeout)), "{left:?}");
    assert!(begun.elapsed() < PATIENCE, "the time for a connection is not added to it");

    let stalls = Server::says(&stack, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf");
    let uri = format!("http://web.test:{}/", stalls.at.port());
    let answer = outgoing.send(request(&uri), all, whose()).await.unwrap();
    let left = answer.into_body().collect().await.map(drop);
    assert!(matches!(left, Err(HttpError::ConnectionReadTimeout)), "{left:?}");

    // Its handshake is part of connecting.
    let (roots, _) = trusted("web.test");
    let outgoing = Outgoing::trusting(&stack, roots);
    let uri = format!("https://web.test:{}/", silent.at.port());
    let left = outgoing.send(request(&uri), all, whose()).await.map(drop);
    assert!(matches!(left, Err(HttpError::ConnectionTimeout)), "{left:?}");
}

#[tokio::test]
async fn an_answers_head_is_bounded() {
    let stack = stack();
    let server = Server::raw(&stack, async |mut stream: Stream| {
        hear(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await.unwrap();
        // Ends when the client has had enough.
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    });
    let outgoing = Outgoing::trusting(&stack, nobody());
    let failed = ask(&outgoing, &format!("http://web.test:{}/", server.at.port())).await;
    assert!(matches!(failed, Err(HttpError::HttpResponseHeaderSectionSize(None))), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_requests_than_allowed_are_under_way() {
    let stack = stack();
    let outgoing = Outgoing::trusting(&stack, nobody());
    let server = Server::says(&stack, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n");
    let uri = format!("http://web.test:{}/", server.at.port());
    let mut held = Vec::new();
    for _ in 0..REQUESTS {
        held.push(outgoing.send(request(&uri), RequestOptions::default(), whose()).await.unwrap());
    }
    let soon = RequestOptions {
        connect_timeout: Some(Duration::from_secs(1)),
        ..RequestOptions::default()
    };
    let refused = outgoing.send(request(&uri), soon, whose()).await.map(drop);
    assert!(matches!(refused, Err(HttpError::ConnectionLimitReached)), "{refused:?}");
    held.pop();
    assert!(outgoing.send(request(&uri), soon, whose()).await.is_ok());
}

#[tokio::test]
async fn a_stack_is_not_kept_by_what_it_keeps() {
    let stack = stack();
    let _: IpAddr = stack.lookup("web.test").await.unwrap()[0];
    let _ = ask(&stack.outgoing(), "http://localhost:1/").await;
    let weak = stack.downgrade();
    drop(stack);
    assert!(weak.upgrade().is_none());
}

#[tokio::test]
async fn no_connection_is_kept_for_other_rules() {
    let stack = stack();
    let first = stack.outgoing();
    let mut network = (*stack.network()).clone();
    stack.set(network.clone(), None);
    assert!(Arc::ptr_eq(&first, &stack.outgoing()), "nothing has changed");
    network.limits.sockets += 1;
    stack.set(network, None);
    assert!(!Arc::ptr_eq(&first, &stack.outgoing()));
}

#[test]
fn what_look_ups_found_is_bounded() {
    let stack = stack();
    let held: Vec<_> = (0..100_000).map_while(|_| stack.lookup_handle()).collect();
    assert!(held.len() < 100_000);
    drop(held);
    assert!(stack.lookup_handle().is_some());
}

/// As `stack`, with room for so many sockets.
fn small_stack(sockets: u32) -> Stack {
    let stack = stack();
    let mut network = (*stack.network()).clone();
    network.limits.sockets = sockets;
    stack.set(network, None);
    stack
}

#[tokio::test]
async fn a_connection_that_is_kept_makes_room_for_one_that_is_needed() {
    // Two listeners, and both ends of one connection within the pod.
    let stack = small_stack(4);
    let servers = [(); 2].map(|()| Server::start(&stack, None));
    let outgoing = Outgoing::trusting(&stack, nobody());
    let uri = |server: &Server| format!("http://web.test:{}/", server.at.port());
    for _ in 0..3 {
        for server in &servers {
            let answer = ask(&outgoing, &uri(server)).await;
            assert_eq!(answer.unwrap(), format!("{:?} /", Version::HTTP_11));
        }
    }
    assert_eq!(stack.report().refused, 0);
    // The guest's own: it is told so, and has it the next time.
    let mut kept = stack.permit().map(drop);
    assert_eq!(kept, Err(NetError::NewSocketLimit));
    while kept.is_err() {
        tokio::task::yield_now().await;
        kept = stack.permit().map(drop);
    }
}

#[tokio::test]
async fn one_of_version_2_makes_room_when_no_stream_of_it_is_open() {
    let stack = small_stack(4);
    let (roots, tls) = trusted("web.test");
    let servers = [(); 2].map(|()| Server::start(&stack, Some(tls.clone())));
    let outgoing = Outgoing::trusting(&stack, roots);
    let [one, other] = &servers.each_ref().map(|of| format!("https://web.test:{}/", of.at.port()));
    for uri in [one, other, one] {
        assert_eq!(ask(&outgoing, uri).await.unwrap(), format!("{:?} /", Version::HTTP_2));
    }
    // As long as somebody has a body in his hands it is in use, and others share it.
    let held = outgoing.send(request(one), RequestOptions::default(), whose()).await.unwrap();
    for uri in [other, one] {
        let answer = ask(&outgoing, uri).await;
        assert_eq!(answer.is_ok(), uri == one, "{uri}: {answer:?}");
    }
    drop(held);
    assert!(ask(&outgoing, other).await.is_ok());
}

#[test]
fn a_server_that_has_closed_a_connection_meanwhile_is_asked_on_another() {
    on_a_network(async |_, stack| {
        let listener = std::net::TcpListener::bind("10.77.0.2:0").unwrap();
        let uri = format!("http://{}/", listener.local_addr().unwrap());
        let outgoing = Outgoing::trusting(&stack, nobody());
        for _ in 0..3 {
            let listener = listener.try_clone().unwrap();
            let answers = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").unwrap();
                stream
            });
            assert_eq!(ask(&outgoing, &uri).await.unwrap(), "good");
            // The client keeps it by then.
            for _ in 0..16 {
                yield_now().await;
            }
            // It hears of nothing before the next request.
            drop(answers.join().unwrap());
        }
    });
}

/// Types of frames of version 2 (RFC 9113, 6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// Takes the head of a request of version 2, and says this of its stream or of the
/// connection; then it says nothing.
async fn says_of_the_first(mut stream: TlsStream<Stream>, kind: u8, what: &[u8]) {
    stream.read_exact(&mut [0; 24]).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, &[])).await.unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize]).await.unwrap();
        if head[3] == HEADERS {
            break;
        }
    }
    let number = u8::from(kind == RST_STREAM);
    stream.write_all(&frame(kind, number, what)).await.unwrap();
    while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
}

fn frame(kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, 0, 0, 0, 0, stream], payload].concat()
}

/// A stream that is refused; and a server that leaves, and has begun with none.
const REFUSALS: [(u8, &[u8]); 2] = [(RST_STREAM, &[0, 0, 0, 7]), (GOAWAY, &[0; 8])];

#[tokio::test]
async fn what_a_server_has_surely_not_begun_with_is_sent_once_more() {
    for (kind, what) in REFUSALS {
        for (refusals, is_answered) in [(1, true), (2, false)] {
            let stack = stack();
            let (roots, tls) = trusted("web.test");
            let refuses = move |stream| says_of_the_first(stream, kind, what);
            let server = Server::refuses(&stack, tls, refusals, refuses);
            let outgoing = Outgoing::trusting(&stack, roots);
            let uri = format!("https://web.test:{}/", server.at.port());
            let mut asked = request(&uri);
            *asked.method_mut() = http::Method::POST;
            let answer = outgoing.send(asked, RequestOptions::default(), whose()).await;
            assert_eq!(answer.is_ok(), is_answered, "{kind}");
            if let Ok(answer) = answer {
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, format!("{:?} /", Version::HTTP_2));
            }
            assert_eq!(server.connections.load(SeqCst), 2, "{kind}");
            while outgoing.permits.available_permits() < REQUESTS {
                yield_now().await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_once_more_has_no_more_time() {
    let second = Duration::from_secs(1);
    // How long the server takes to connect the first time, and then to refuse.
    for (connects, refuses, is_answered) in [(15, 0, false), (0, 15, true)] {
        let stack = stack();
        let (roots, tls) = trusted("web.test");
        let calls = Arc::new(AtomicUsize::new(0));
        let server = Server::raw(&stack, move |stream: Stream| {
            let (tls, is_first) = (tls.clone(), calls.fetch_add(1, SeqCst) == 0);
            async move {
                sleep(second * if is_first { connects } else { 15 }).await;
                // A client that has no time left goes away.
                let Ok(stream) = tls.accept(stream).await else { return };
                if is_first {
                    sleep(second * refuses).await;
                    says_of_the_first(stream, RST_STREAM, &[0, 0, 0, 7]).await;
                } else {
                    serve(stream).await;
                }
            }
        });
        let outgoing = Outgoing::trusting(&stack, roots);
        let uri = format!("https://web.test:{}/", server.at.port());
        let begun = Instant::now();
        let options =
            RequestOptions { connect_timeout: Some(second * 20), ..RequestOptions::default() };
        let answer = outgoing.send(request(&uri), options, whose()).await.map(drop);
        assert_eq!(server.connections.load(SeqCst), 2);
        if is_answered {
            assert!(answer.is_ok(), "a wait for an answer is none for a connection: {answer:?}");
        } else {
            assert!(matches!(answer, Err(HttpError::ConnectionTimeout)), "{answer:?}");
            assert!(begun.elapsed() < second * 21, "{:?}", begun.elapsed());
        }
    }
}

#[tokio::test]
async fn a_body_goes_along_if_nothing_of_it_was_sent() {
    for (is_ready, is_answered) in [(false, true), (true, false)] {
        let stack = stack();
        let (roots, tls) = trusted("web.test");
        let (more, pieces) = tokio::sync::mpsc::channel::<Bytes>(1);
        let refuses = |stream| says_of_the_first(stream, RST_STREAM, &[0, 0, 0, 7]);
        let server = Server::refuses(&stack, tls, 1, refuses);
        let outgoing = Outgoing::trusting(&stack, roots);
        let uri = format!("https://web.test:{}/", server.at.port());
        let asked = Request::post(&uri).body(from_channel(pieces)).unwrap();
        let write = async {
            // Else not before it is on its second connection.
            while !is_ready && server.connections.load(SeqCst) < 2 {
                yield_now().await;
            }
            more.send(Bytes::from_static(b"piece")).await.unwrap();
            drop(more);
        };
        let send = outgoing.send(asked, RequestOptions::default(), whose());
        let (answer, ()) = tokio::join!(send, write);
        assert_eq!(answer.is_ok(), is_answered);
        if let Ok(answer) = answer {
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, format!("{:?} /piece", Version::HTTP_2));
        }
    }
}

#[tokio::test]
async fn a_connection_that_was_kept_and_is_lost_before_the_answer_is_made_anew() {
    let stack = stack();
    // Answers one request, and leaves when it has heard another.
    let server = Server::raw(&stack, async |mut stream: Stream| {
        hear(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await.unwrap();
        hear(&mut stream).await;
    });
    let outgoing = Outgoing::trusting(&stack, nobody());
    let uri = format!("http://web.test:{}/", server.at.port());
    for connections in [1, 2] {
        assert_eq!(ask(&outgoing, &uri).await.unwrap(), "good");
        assert_eq!(server.connections.load(SeqCst), connections);
        // The client keeps it by then.
        for _ in 0..16 {
            yield_now().await;
        }
    }
    // The second was made for one request, and is kept by nobody.
    assert_eq!(ask(&outgoing, &uri).await.unwrap(), "good");
    for _ in 0..16 {
        yield_now().await;
    }
    let mut asked = request(&uri);
    *asked.method_mut() = http::Method::POST;
    let lost = outgoing.send(asked, RequestOptions::default(), whose()).await.map(drop);
    assert!(
        matches!(lost, Err(HttpError::ConnectionTerminated | HttpError::HttpResponseIncomplete)),
        "it may have been heard: {lost:?}"
    );
    assert_eq!(server.connections.load(SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_use_makes_no_room() {
    let stack = small_stack(4);
    let [busy, other] =
        [(); 2].map(|()| Server::says(&stack, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"));
    let outgoing = Outgoing::trusting(&stack, nobody());
    let uri = |server: &Server| format!("http://web.test:{}/", server.at.port());
    let answer =
        outgoing.send(request(&uri(&busy)), RequestOptions::default(), whose()).await.unwrap();
    let refused =
        outgoing.send(request(&uri(&other)), RequestOptions::default(), whose()).await.map(drop);
    assert!(matches!(refused, Err(HttpError::ConnectionLimitReached)), "{refused:?}");
    // It goes on.
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "half");
}

#[tokio::test]
async fn so_many_requests_wait_for_others_and_no_more() {
    let stack = stack();
    let server = Server::start(&stack, None);
    let outgoing = Outgoing::trusting(&stack, nobody());
    let uri = format!("http://web.test:{}/", server.at.port());
    let all = u32::try_from(REQUESTS).unwrap();
    let under_way = Arc::clone(&outgoing.permits).acquire_many_owned(all).await.unwrap();
    let mut waiting: FuturesUnordered<_> = (0..WAITING).map(|_| ask(&outgoing, &uri)).collect();
    let noop = &mut Context::from_waker(Waker::noop());
    assert!(waiting.poll_next_unpin(noop).is_pending());
    let refused = ask(&outgoing, &uri).await;
    assert!(matches!(refused, Err(HttpError::ConnectionLimitReached)), "{refused:?}");
    // The others have their turn.
    drop(under_way);
    while let Some(answer) = waiting.next().await {
        answer.unwrap();
    }
}

#[tokio::test]
async fn a_request_is_under_way_until_its_own_body_is_sent() {
    let stack = stack();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    // Answers before it has heard the request's body.
    let server = Server::raw(&stack, move |mut stream: Stream| {
        let tell = tell.clone();
        async move {
            hear(&mut stream).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            let mut some = [0; 1024];
            while let Ok(read @ 1..) = stream.read(&mut some).await {
                let _ = tell.send(some[..read].to_vec());
            }
        }
    });
    let outgoing = Outgoing::trusting(&stack, nobody());
    let (more, pieces) = tokio::sync::mpsc::channel::<Bytes>(1);
    let uri = format!("http://web.test:{}/", server.at.port());
    let request = Request::post(&uri).body(from_channel(pieces)).unwrap();
    more.send(Bytes::from_static(b"first")).await.unwrap();
    let answer = outgoing.send(request, RequestOptions::default(), whose()).await.unwrap();
    assert_eq!(outgoing.permits.available_permits(), REQUESTS - 1);
    drop(answer);
    // The guest writes on.
    more.send(Bytes::from_static(b"second")).await.unwrap();
    while !told.recv().await.unwrap().windows(6).any(|some| some == b"second") {}
    assert_eq!(outgoing.permits.available_permits(), REQUESTS - 1, "the body is there");
    drop(more);
    while outgoing.permits.available_permits() < REQUESTS {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_of_version_2_is_told_how_much_is_taken() {
    let stack = stack();
    let (roots, tls) = trusted("web.test");
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::raw(&stack, move |stream: Stream| {
        let (tls, tell) = (tls.clone(), tell.clone());
        async move {
            let mut stream = tls.accept(stream).await.unwrap();
            let mut bytes = [0; 24 + 9];
            stream.read_exact(&mut bytes).await.unwrap();
            let length = u32::from_be_bytes([0, bytes[24], bytes[25], bytes[26]]);
            // Its settings, and the frame that widens the window.
            let mut rest = vec![0; length as usize + 13];
            stream.read_exact(&mut rest).await.unwrap();
            tell.send(rest).unwrap();
        }
    });
    let outgoing = Outgoing::trusting(&stack, roots);
    let _ = ask(&outgoing, &format!("https://web.test:{}/", server.at.port())).await;
    let bytes = told.recv().await.unwrap();
    let (settings, widening) = bytes.split_at(bytes.len() - 13);
    let value = |wanted: u16| {
        let one = settings.chunks_exact(6).find(|one| one[..2] == wanted.to_be_bytes())?;
        Some(u32::from_be_bytes([one[2], one[3], one[4], one[5]]))
    };
    // RFC 9113, 6.5.2; 65,535 is the connection's window without a word.
    assert_eq!(value(4), Some(WINDOW));
    assert_eq!(value(6), Some(u32::try_from(HEAD).unwrap()));
    assert_eq!(widening[3], 8, "{bytes:?}");
    assert_eq!(widening[9..], (CONNECTION_WINDOW - 65_535).to_be_bytes());
}

#[tokio::test(start_paused = true)]
async fn a_server_of_version_2_that_is_gone_is_left() {
    let stack = stack();
    let (roots, tls) = trusted("web.test");
    let server = Server::raw(&stack, move |stream: Stream| {
        let tls = tls.clone();
        async move {
            let stream = tls.accept(stream).await.unwrap();
            let asked = Arc::new(Notify::new());
            let hears = Arc::clone(&asked);
            let service = service_fn(move |_: Request<Incoming>| {
                hears.notify_one();
                std::future::pending::<Result<Response<Body>, Infallible>>()
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let mut serves = pin!(builder.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                _ = serves.as_mut() => {}
                () = asked.notified() => {}
            }
            // It is there, and does nothing any more.
            std::future::pending::<()>().await;
        }
    });
    let outgoing = Outgoing::trusting(&stack, roots);
    let uri = format!("https://web.test:{}/", server.at.port());
    let begun = Instant::now();
    let left = outgoing.send(request(&uri), RequestOptions::default(), whose()).await.map(drop);
    assert!(
        matches!(left, Err(HttpError::HttpResponseTimeout | HttpError::ConnectionTerminated)),
        "{left:?}"
    );
    assert!(begun.elapsed() < (PING_AFTER + PING_TIME) * 2, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_got_the_connection_of_another_waits_for_an_answer_from_then_on() {
    let (stack, second) = (stack(), Duration::from_secs(1));
    let bound = stack.bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut listener = bound.listen(stack.permit().unwrap(), Options::default(), 1).unwrap();
    let (at, is_full) = (listener.address(), Notify::new());
    let outgoing = Outgoing::trusting(&stack, nobody());
    let uri = format!("http://web.test:{}/", at.port());
    let serves = async {
        let mut first = Stream(Arc::new(listener.accept().await.unwrap()));
        hear(&mut first).await;
        // Another connection has to wait.
        let permit = stack.permit().unwrap();
        let waits = stack.connect_tcp(permit, Options::default(), at).await.unwrap();
        is_full.notify_one();
        sleep(second).await;
        first.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        hear(&mut first).await;
        // That one is made now, for nobody.
        sleep(second * 5).await;
        let accepted = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
        drop((waits, accepted));
    };
    let first = async {
        drop(outgoing.send(request(&uri), RequestOptions::default(), whose()).await.unwrap());
    };
    let other = async {
        is_full.notified().await;
        let begun = Instant::now();
        let options = RequestOptions {
            connect_timeout: Some(second * 60),
            first_byte_timeout: Some(second * 10),
            between_bytes_timeout: None,
        };
        let left = outgoing.send(request(&uri), options, whose()).await.map(drop);
        assert!(matches!(left, Err(HttpError::ConnectionReadTimeout)), "{left:?}");
        begun.elapsed()
    };
    tokio::select! {
        biased;
        () = serves => unreachable!("it has no end"),
        ((), waited) = async { tokio::join!(first, other) } => {
            assert!((second * 11..second * 12).contains(&waited), "{waited:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_made_for_nobody_makes_room_for_one_that_is_needed() {
    const SOCKETS: u32 = 8;
    let (stack, second) = (small_stack(SOCKETS), Duration::from_secs(1));
    let bound = stack.bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut listener = bound.listen(stack.permit().unwrap(), Options::default(), 1).unwrap();
    let (at, is_full) = (listener.address(), Notify::new());
    let outgoing = Outgoing::trusting(&stack, nobody());
    let uri = format!("http://web.test:{}/", at.port());
    let serves = async {
        let mut first = Stream(Arc::new(listener.accept().await.unwrap()));
        hear(&mut first).await;
        // Another connection has to wait.
        let permit = stack.permit().unwrap();
        let _waits = stack.connect_tcp(permit, Options::default(), at).await.unwrap();
        is_full.notify_one();
        sleep(second).await;
        first.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        // The other request comes by this one, and stays; its own is made for nobody.
        hear(&mut first).await;
        let _accepted = listener.accept().await.unwrap();
        let mut held = Vec::new();
        while stack.report().sockets < SOCKETS {
            held.push(stack.permit().unwrap());
        }
        let mut room = stack.permit().map(drop);
        for _ in 0..1000 {
            if room.is_err() {
                yield_now().await;
                room = stack.permit().map(drop);
            }
        }
        room
    };
    let ask = async || {
        let answer = outgoing.send(request(&uri), RequestOptions::default(), whose()).await;
        drop(answer.unwrap());
    };
    let other = async {
        is_full.notified().await;
        ask().await;
    };
    tokio::select! {
        biased;
        room = serves => assert_eq!(room, Ok(())),
        _ = async { tokio::join!(ask(), other) } => unreachable!("the other has no answer"),
    }
}
