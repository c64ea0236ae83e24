//! HTTP on one connection: version 1.1, or 2 with whoever begins with its
//! preface (prior knowledge, RFC 9113, 3.3).
//!
//! ```text
//! open ──request──▶ busy ──last answer sent──▶ idle ──idle time──▶ told to leave ──▶ dropped
//!   │               └──────────────────────────▲                                       ▲
//!   └──a head does not come in time, or an answer is not sent in time, as of one ──────┘
//!      who does not read
//! ```
//!
//! What is open, and since when, is in [`progress`](super::progress).

use std::{convert::Infallible, pin::pin, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header};
use hyper::{
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::timeout,
};

use super::progress::{Coming, Heard, Progress};
use crate::{held::Held, ticker::Charged};

/// How long a client of version 1 may take to send a request's head, from its first
/// byte. nginx's default.
const HEAD_TIME: Duration = Duration::from_mins(1);

/// How long a client may stay after the stop, or after it was idle for too long.
const LEAVE_TIME: Duration = Duration::from_secs(10);

/// How much of that the next request of a client is waited for that asks nothing
/// when the stop comes. One that is on its way then would be lost with its
/// connection; with its answer the client is told to leave.
const PARTING_TIME: Duration = Duration::from_secs(1);

/// Requests at once on a connection of version 2; what browsers and proxies
/// expect at least (RFC 9113, 6.5.2).
const STREAMS: u32 = 100;

/// Streams that a client may have opened and reset before they were looked at;
/// beyond that it is cut off (CVE-2023-44487).
const RESETS: usize = 20;

/// Bytes of a connection of version 1 that wait each way, and of a request's head
/// there. hyper keeps as much room as it had last for a connection that rests, and no
/// limit counts it.
const BUFFER: usize = 16 << 10;

/// Bytes of a request's head in version 2, as HPACK counts them. What holds a head takes several times as much.
const HEAD: u32 = 16 << 10;

/// Bytes of requests' bodies that may wait for the guest, for each stream of
/// version 2 and for the connection.
pub(super) const RECEIVING: u32 = 64 << 10;
const RECEIVING_TOGETHER: u32 = 256 << 10;

/// Bytes of an answer that may wait for a slow client, for each stream.
const SENDING: usize = 64 << 10;

/// How long a connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// With nothing asked.
    pub(super) idle: Duration,
    /// From a request's head to the last of its answer that is handed to the
    /// system. Who answers cannot bound it: while a client does not read, hyper
    /// asks for nothing more, and hears of no end.
    pub(super) request: Duration,
}

/// A request's body as it comes.
pub(super) type Arriving = Held<Incoming, Option<Coming>>;

/// Serves a connection until its client leaves, has been idle for too long, takes too
/// long for a head or does not take its answer, or `stop` says true and what was asked
/// is answered. What does not run within it is run by `charged`.
pub(super) async fn speak<I, F, B>(
    io: I,
    times: Times,
    charged: Charged,
    stop: watch::Receiver<bool>,
    answer: impl Fn(Request<Arriving>) -> F + Send + Sync,
) where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let progress = Progress::default();
    tokio::select! {
        biased;
        // Whichever is dropped, the connection goes with it.
        () = converse(io, times.idle, builder(charged), (stop, &progress), answer) => {}
        () = progress.overdue(times.request) => {}
        () = progress.head_overdue(HEAD_TIME) => {}
    }
}

async fn converse<I, F, B>(
    io: I,
    idle_time: Duration,
    builder: auto::Builder<Charged>,
    (stop, progress): (watch::Receiver<bool>, &Progress),
    answer: impl Fn(Request<Arriving>) -> F + Send + Sync,
) where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let service = service_fn(|request: Request<Incoming>| {
        let (open, coming) = progress.asked(!request.body().is_end_stream());
        let is_2 = request.version() == Version::HTTP_2;
        let (answered, stop) = (answer(request.map(|body| Held::new(body, coming))), stop.clone());
        async move {
            let mut answer = answered.await.map(|body| Held::new(body, open));
            if !is_2 && *stop.borrow() {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut told = stop.clone();
    let io = TokioIo::new(Heard::new(io, progress.clone()));
    let mut connection = pin!(builder.serve_connection(io, service));
    tokio::select! {
        biased;
        // What went wrong is the client's affair. The others may be dropped:
        // they only watch.
        _ = connection.as_mut() => return,
        () = told_to_leave(&mut told, progress) => {}
        () = progress.idle(idle_time) => {}
    }
    connection.as_mut().graceful_shutdown();
    // A client of version 2 may take its time, or begin another request in the
    // same moment; one of version 1 may never end the head that it began.
    let stay = LEAVE_TIME.saturating_sub(PARTING_TIME);
    while timeout(stay, connection.as_mut()).await.is_err() {
        if !progress.is_busy() {
            return;
        }
    }
}

/// Waits until the connection may be closed where no request is open. One of
/// version 2 tells its client which requests it takes still.
async fn told_to_leave(stop: &mut watch::Receiver<bool>, progress: &Progress) {
    // A sender that is gone tells it too.
    let _ = stop.wait_for(|stop| *stop).await;
    tokio::select! {
        biased;
        // Both only watch.
        () = progress.is_2() => {}
        // What is open may have been begun to be answered before the stop, without the
        // word to leave.
        () = progress.answered(PARTING_TIME) => {}
    }
}

fn builder(charged: Charged) -> auto::Builder<Charged> {
    let mut builder = auto::Builder::new(charged);
    // hyper's time for a head begins with the end of the answer before it, and is one
    // for idle connections too.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESETS)
        .max_header_list_size(HEAD)
        .initial_stream_window_size(RECEIVING)
        .initial_connection_window_size(RECEIVING_TOGETHER)
        .max_send_buf_size(SENDING);
    builder
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use http_body_util::{BodyExt, Empty, Full, StreamBody};
    use hyper::{body::Frame, client::conn};
    use hyper_util::rt::TokioExecutor;
    use krustlet_protocol::Limits;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        sync::mpsc,
        task::JoinSet,
        time::{Instant, sleep},
    };

    use super::*;
    use crate::{state::Usage, ticker::thread_time};

    const IDLE: Duration = Duration::from_secs(5);

    const TIMES: Times = Times { idle: IDLE, request: Duration::from_mins(3) };

    /// Longer than anything here takes. Time passes as soon as nobody has anything to do.
    const LIMIT: Duration = Duration::from_hours(1);

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n";

    /// The preface of version 2, and settings.
    const SETTINGS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    /// A connection served: its client's end, the stop, and its end.
    struct Bed {
        client: DuplexStream,
        stop: watch::Sender<bool>,
        tasks: JoinSet<()>,
    }

    /// On nobody's account.
    fn charged() -> Charged {
        Charged::new(Arc::new(Usage::new(&Limits::default())))
    }

    /// The next task ends.
    async fn end(tasks: &mut JoinSet<()>) {
        let ended = timeout(LIMIT, tasks.join_next()).await.expect("it ends");
        ended.expect("one is left").unwrap();
    }

    /// Answers with the version it was asked by, once the gate lets it.
    fn served(gate: Option<mpsc::Receiver<()>>) -> Bed {
        served_for(TIMES, gate)
    }

    fn served_for(times: Times, gate: Option<mpsc::Receiver<()>>) -> Bed {
        let (client, server) = tokio::io::duplex(1 << 16);
        let stop = watch::Sender::new(false);
        let gate = Arc::new(tokio::sync::Mutex::new(gate));
        let answer = move |request: Request<Arriving>| {
            let gate = Arc::clone(&gate);
            async move {
                if let Some(gate) = &mut *gate.lock().await {
                    gate.recv().await;
                }
                Response::new(Full::new(Bytes::from(format!("{:?}", request.version()))))
            }
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(speak(server, times, charged(), stop.subscribe(), answer));
        Bed { client, stop, tasks }
    }

    /// Answers with 10 MiB, which is more than may be on its way at once.
    fn serves_much() -> Bed {
        let (client, server) = tokio::io::duplex(1 << 16);
        let stop = watch::Sender::new(false);
        let answer = |_| async {
            let piece = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'.'; 1 << 14])));
            Response::new(StreamBody::new(futures::stream::iter((0..640).map(move |_| piece()))))
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(speak(server, TIMES, charged(), stop.subscribe(), answer));
        Bed { client, stop, tasks }
    }

    fn get() -> Request<Empty<Bytes>> {
        Request::get("http://web.test/").body(Empty::new()).unwrap()
    }

    type Two = conn::http2::SendRequest<Empty<Bytes>>;

    async fn by_version_2(client: DuplexStream, tasks: &mut JoinSet<()>) -> Two {
        let io = TokioIo::new(client);
        let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tasks.spawn(async move { drop(connection.await) });
        sender
    }

    async fn text(response: Response<Incoming>) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asks_nothing_is_let_go() {
        let no_head = ["", "P", "PRI * HTTP/2.0\r\n\r\nSM", "GET / HTTP/1.1\r\nHost: "];
        for (begun, time) in no_head.into_iter().zip([IDLE, HEAD_TIME, HEAD_TIME, HEAD_TIME]) {
            let mut bed = served(None);
            let begin = Instant::now();
            bed.client.write_all(begun.as_bytes()).await.unwrap();
            end(&mut bed.tasks).await;
            let took = begin.elapsed();
            assert!((time..time + LEAVE_TIME).contains(&took), "{begun:?}: {took:?}");
        }
        // One of version 2, which may take its time to leave.
        let mut bed = served(None);
        let begin = Instant::now();
        bed.client.write_all(SETTINGS).await.unwrap();
        end(&mut bed.tasks).await;
        assert!((IDLE..HEAD_TIME).contains(&begin.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_for_as_long_as_it_is_said() {
        let mut bed = served_for(Times { idle: 5 * HEAD_TIME, ..TIMES }, None);
        for _ in 0..3 {
            bed.client.write_all(ASK).await.unwrap();
            answer(&mut bed.client).await;
            sleep(4 * HEAD_TIME).await;
        }
        let mut bed = served_for(Times { idle: 5 * HEAD_TIME, ..TIMES }, None);
        let mut client = by_version_2(bed.client, &mut bed.tasks).await;
        for _ in 0..3 {
            let response = client.send_request(get()).await.unwrap();
            assert_eq!(text(response).await, "HTTP/2.0");
            sleep(4 * HEAD_TIME).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_is_on_its_way_has_its_time() {
        let mut bed = served(None);
        let (first, rest) = ASK.split_at(20);
        // The first of its connection, and another.
        for _ in 0..2 {
            sleep(IDLE / 2).await;
            bed.client.write_all(first).await.unwrap();
            sleep(HEAD_TIME.checked_sub(IDLE).unwrap()).await;
            bed.client.write_all(rest).await.unwrap();
            answer(&mut bed.client).await;
        }
        // But no more than that, however it comes.
        let begin = Instant::now();
        for byte in first {
            bed.client.write_all(&[*byte]).await.unwrap();
            sleep(HEAD_TIME / 20).await;
        }
        end(&mut bed.tasks).await;
        assert!(begin.elapsed() <= HEAD_TIME + IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_after_its_answer_is_no_head() {
        const TIME: Duration = Duration::from_mins(10);
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let stop = watch::Sender::new(false);
        let (tell, mut told) = mpsc::channel(1);
        let answer = move |request: Request<Arriving>| {
            tell.try_send(request.into_body()).ok().unwrap();
            async { Response::new(Full::new(Bytes::from_static(b"HTTP/1.1"))) }
        };
        let mut tasks = JoinSet::new();
        let times = Times { idle: TIME, ..TIMES };
        tasks.spawn(speak(server, times, charged(), stop.subscribe(), answer));
        let head = b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 4\r\n\r\n";
        client.write_all(head).await.unwrap();
        self::answer(&mut client).await;
        let mut bodies = JoinSet::new();
        bodies.spawn(told.recv().await.unwrap().collect());
        for byte in b"body" {
            client.write_all(&[*byte]).await.unwrap();
            sleep(HEAD_TIME).await;
        }
        let body = bodies.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(body.to_bytes(), "body");
        client.write_all(ASK).await.unwrap();
        self::answer(&mut client).await;
    }

    #[tokio::test(start_paused = true)]
    async fn both_versions_are_spoken() {
        let mut bed = served(None);
        let mut client = by_version_2(bed.client, &mut bed.tasks).await;
        let response = client.send_request(get()).await.unwrap();
        assert_eq!(text(response).await, "HTTP/2.0");

        let mut bed = served(None);
        let asked = b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n";
        bed.client.write_all(asked).await.unwrap();
        let mut answer = String::new();
        bed.client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("HTTP/1.1"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
        let (open, gate) = mpsc::channel(1);
        let mut bed = served(Some(gate));
        let mut client = by_version_2(bed.client, &mut bed.tasks).await;
        let mut asked = JoinSet::new();
        asked.spawn(client.send_request(get()));
        sleep(IDLE * 10).await;
        open.send(()).await.unwrap();
        let response = asked.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(text(response).await, "HTTP/2.0");
        // Both ends, with the client still there.
        while !bed.tasks.is_empty() {
            end(&mut bed.tasks).await;
        }
        assert!(client.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_before_the_stop_is_answered() {
        let (open, gate) = mpsc::channel(1);
        let mut bed = served(Some(gate));
        let mut client = by_version_2(bed.client, &mut bed.tasks).await;
        let response = client.send_request(get());
        let mut asked = JoinSet::new();
        asked.spawn(response);
        sleep(Duration::from_secs(1)).await;
        bed.stop.send(true).unwrap();
        sleep(Duration::from_secs(1)).await;
        open.send(()).await.unwrap();
        let response = asked.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(text(response).await, "HTTP/2.0");
        while !bed.tasks.is_empty() {
            end(&mut bed.tasks).await;
        }
    }

    /// The next answer of version 1, to its body.
    async fn answer(client: &mut DuplexStream) -> String {
        let mut text = String::new();
        while !text.ends_with("\r\n\r\nHTTP/1.1") {
            let byte = client.read_u8().await.expect("an answer comes");
            text.push(byte.into());
        }
        text
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_as_the_stop_comes_is_answered_with_the_word_to_leave() {
        // The first request of a connection, and the second.
        for before in 0..2 {
            let (open, gate) = mpsc::channel(1);
            let mut bed = served(Some(gate));
            for _ in 0..before {
                bed.client.write_all(ASK).await.unwrap();
                open.send(()).await.unwrap();
                assert!(!answer(&mut bed.client).await.contains("connection: close"));
            }
            bed.stop.send(true).unwrap();
            // All have heard of it when time passes.
            sleep(Duration::from_millis(1)).await;
            bed.client.write_all(ASK).await.unwrap();
            sleep(Duration::from_millis(1)).await;
            open.send(()).await.unwrap();
            assert!(answer(&mut bed.client).await.contains("connection: close"));
            end(&mut bed.tasks).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_had_the_head_of_an_answer_before_the_stop_is_told_with_the_next() {
        async fn until(end: &str, client: &mut DuplexStream) -> String {
            let mut text = String::new();
            while !text.ends_with(end) {
                text.push(client.read_u8().await.expect("it goes on").into());
            }
            text
        }
        let (open, gate) = mpsc::channel(1);
        let gate = Arc::new(tokio::sync::Mutex::new(gate));
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let stop = watch::Sender::new(false);
        let answer = move |_| {
            let gate = Arc::clone(&gate);
            let end = async move {
                gate.lock().await.recv().await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"end")))
            };
            let body = StreamBody::new(Box::pin(futures::stream::once(end)));
            async move { Response::new(body) }
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(speak(server, TIMES, charged(), stop.subscribe(), answer));
        client.write_all(ASK).await.unwrap();
        assert!(!until("\r\n\r\n", &mut client).await.contains("connection: close"));
        stop.send(true).unwrap();
        // All have heard of it when time passes.
        sleep(Duration::from_millis(1)).await;
        open.send(()).await.unwrap();
        until("0\r\n\r\n", &mut client).await;
        sleep(Duration::from_millis(1)).await;
        client.write_all(ASK).await.unwrap();
        open.send(()).await.unwrap();
        assert!(until("0\r\n\r\n", &mut client).await.contains("connection: close"));
        end(&mut tasks).await;
    }

    #[tokio::test(start_paused = true)]
    async fn no_client_holds_up_the_end_without_a_request() {
        // A head that is never ended; settings, and no answer to any ping.
        for begun in [&b"GET / HTTP/1.1\r\nHost: "[..], SETTINGS] {
            let mut bed = served(None);
            bed.client.write_all(begun).await.unwrap();
            sleep(Duration::from_secs(1)).await;
            bed.stop.send(true).unwrap();
            let begin = Instant::now();
            end(&mut bed.tasks).await;
            assert!(begin.elapsed() <= LEAVE_TIME);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_take_its_answer_is_let_go() {
        let mut bed = serves_much();
        bed.client.write_all(ASK).await.unwrap();
        let begin = Instant::now();
        timeout(TIMES.request * 2, bed.tasks.join_next()).await.unwrap().unwrap().unwrap();
        assert!(begin.elapsed() >= TIMES.request);

        // In version 2 it is the stream that is full: the connection answers pings.
        let mut bed = serves_much();
        let mut client = by_version_2(bed.client, &mut bed.tasks).await;
        let response = client.send_request(get()).await.unwrap();
        let begin = Instant::now();
        timeout(TIMES.request * 2, bed.tasks.join_all()).await.unwrap();
        assert!(begin.elapsed() >= TIMES.request);
        assert!(response.into_body().collect().await.is_err(), "it was cut off");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_its_answers_stays() {
        let mut bed = serves_much();
        let mut client = by_version_2(bed.client, &mut bed.tasks).await;
        let begin = Instant::now();
        while begin.elapsed() < TIMES.request * 2 {
            let response = client.send_request(get()).await.unwrap();
            sleep(TIMES.request / 2).await;
            assert_eq!(text(response).await.len(), 10 << 20);
        }
    }

    /// The next frame of version 2: its kind and what it holds.
    async fn frame(client: &mut DuplexStream) -> (u8, Vec<u8>) {
        let mut head = [0; 9];
        client.read_exact(&mut head).await.unwrap();
        let [high, middle, low, kind, ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        let mut payload = vec![0; length as usize];
        client.read_exact(&mut payload).await.unwrap();
        (kind, payload)
    }

    #[tokio::test(start_paused = true)]
    async fn who_opens_and_resets_many_is_cut_off() {
        // Why it is to leave: it is idle, or it does too much (RFC 9113, 7).
        for (resets, why) in [(RESETS, 0), (RESETS + 1, 0xb)] {
            let mut bed = served(None);
            let mut bytes = SETTINGS.to_vec();
            for number in 0..resets {
                let of = u32::try_from(2 * number + 1).unwrap().to_be_bytes();
                // GET, http, /, and an authority (RFC 7541, appendix A); the end of the
                // headers and of the stream. Then its reset, as nobody wants it any more.
                bytes.extend(b"\0\0\x09\x01\x05");
                bytes.extend(of);
                bytes.extend(b"\x82\x86\x84\x01\x04test");
                bytes.extend(b"\0\0\x04\x03\0");
                bytes.extend(of);
                bytes.extend(b"\0\0\0\x08");
            }
            bed.client.write_all(&bytes).await.unwrap();
            let told = loop {
                let next = timeout(LIMIT, frame(&mut bed.client)).await;
                if let (7, payload) = next.expect("it says why") {
                    break payload[7];
                }
            };
            assert_eq!(told, why, "{resets} resets");
        }
    }

    #[tokio::test]
    async fn what_a_request_takes_is_charged_in_version_2_too() {
        const SOME: u64 = 20_000_000;
        let usage = Arc::new(Usage::new(&Limits::default()));
        let (client, server) = tokio::io::duplex(1 << 16);
        let stop = watch::Sender::new(false);
        let answer = |_| async {
            let end = thread_time() + SOME;
            while thread_time() < end {}
            Response::new(Full::new(Bytes::new()))
        };
        let mut tasks = JoinSet::new();
        let charged = Charged::new(Arc::clone(&usage));
        tasks.spawn(speak(server, TIMES, charged, stop.subscribe(), answer));
        let mut client = by_version_2(client, &mut tasks).await;
        client.send_request(get()).await.unwrap();
        // The connection itself is whoever's who runs it.
        assert!(usage.cpu() >= SOME, "{} ns", usage.cpu());
    }

    /// What a server of version 2 says of its bounds: its settings by number, and
    /// by how much it widens the connection's window.
    async fn bounds(client: &mut DuplexStream) -> (BTreeMap<u16, u32>, u32) {
        let mut settings = BTreeMap::new();
        loop {
            let (kind, payload) = frame(client).await;
            match kind {
                4 => settings.extend(payload.chunks_exact(6).map(|one| {
                    let number = u16::from_be_bytes([one[0], one[1]]);
                    (number, u32::from_be_bytes([one[2], one[3], one[4], one[5]]))
                })),
                8 => {
                    let more: [u8; 4] = payload.try_into().unwrap();
                    return (settings, u32::from_be_bytes(more));
                }
                _ => {}
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn version_2_is_told_how_much_is_taken() {
        let mut bed = served(None);
        bed.client.write_all(SETTINGS).await.unwrap();
        let (settings, more) = bounds(&mut bed.client).await;
        // RFC 9113, 6.5.2; 65,535 is the connection's window without a word.
        for (number, value) in [(3, STREAMS), (4, RECEIVING), (6, HEAD)] {
            assert_eq!(settings.get(&number), Some(&value), "setting {number}: {settings:?}");
        }
        assert_eq!(more, RECEIVING_TOGETHER - 65_535);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_of_version_1_is_bounded() {
        let mut bed = served(None);
        bed.client.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\nX: ").await.unwrap();
        // It may be cut off before it is written.
        let _ = bed.client.write_all(&[b'x'; 16 << 10]).await;
        let mut answer = String::new();
        bed.client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        // Half of it is none too large.
        let mut bed = served(None);
        bed.client.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\nX: ").await.unwrap();
        bed.client.write_all(&[b'x'; 8 << 10]).await.unwrap();
        bed.client.write_all(b"\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        bed.client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}
