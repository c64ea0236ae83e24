//! HTTP on one connection: version 1.1, or 2 with whoever begins with its
//! preface (prior knowledge, RFC 9113, 3.3).
//!
//! ```text
//! open ──request──▶ busy ──last answer sent──▶ idle ──idle time──▶ told to leave ──▶ dropped
//!   └──────────────────────────────────────────▲
//! ```

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{sleep, timeout},
};

/// How long a client may take to send a request's head. nginx's default.
const HEAD_TIME: Duration = Duration::from_mins(1);

/// How long a client that was told to leave may stay.
const LEAVE_TIME: Duration = Duration::from_secs(10);

/// Requests at once on a connection of version 2; what browsers and proxies
/// expect at least (RFC 9113, 6.5.2).
const STREAMS: u32 = 100;

/// Streams that a client may have opened and reset before they were looked at;
/// beyond that it is cut off (CVE-2023-44487).
const RESETS: usize = 20;

/// Bytes of a request's head in version 2; version 1's bound is hyper's.
const HEAD: u32 = 64 << 10;

/// Bytes of an answer that may wait for a slow client, for each stream.
const SENDING: usize = 64 << 10;

/// Serves a connection until its client leaves, has been idle for so long, or
/// `stop` says true and what was asked is answered.
pub(super) async fn speak<I, F, B>(
    io: I,
    idle_time: Duration,
    mut stop: watch::Receiver<bool>,
    answer: impl Fn(Request<Incoming>) -> F + Send + Sync,
) where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let busy = watch::Sender::new(0);
    let service = service_fn(|request| {
        let open = Open::new(&busy);
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await.map(|body| Held { body, _open: open })) }
    });
    let builder = builder();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let is_idle = tokio::select! {
        biased;
        // What went wrong is the client's affair. The others may be dropped:
        // they only watch.
        _ = connection.as_mut() => return,
        () = told_to_leave(&mut stop) => false,
        () = idle(&busy, idle_time) => true,
    };
    connection.as_mut().graceful_shutdown();
    if !is_idle {
        drop(connection.await);
        return;
    }
    // A client of version 2 may take its time, or begin another request in the
    // same moment.
    while timeout(LEAVE_TIME, connection.as_mut()).await.is_err() {
        if *busy.borrow() == 0 {
            return;
        }
    }
}

async fn told_to_leave(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone tells it too.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESETS)
        .max_header_list_size(HEAD)
        .max_send_buf_size(SENDING);
    builder
}

/// Waits until nothing has been asked for so long.
async fn idle(busy: &watch::Sender<usize>, time: Duration) {
    let mut requests = busy.subscribe();
    loop {
        // Closed never: the sender is borrowed.
        let _ = requests.wait_for(|requests| *requests == 0).await;
        tokio::select! {
            biased;
            // Both may be dropped and asked again.
            _ = requests.changed() => {}
            () = sleep(time) => return,
        }
    }
}

/// A request that is not answered to its end yet.
struct Open(watch::Sender<usize>);

impl Open {
    fn new(busy: &watch::Sender<usize>) -> Self {
        busy.send_modify(|requests| *requests += 1);
        Self(busy.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|requests| *requests -= 1);
    }
}

/// An answer's body, which keeps its request open.
struct Held<B> {
    body: B,
    _open: Open,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Held<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty, Full};
    use hyper::client::conn;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        sync::mpsc,
        task::JoinSet,
    };

    use super::*;

    const IDLE: Duration = Duration::from_secs(5);

    /// A connection served: its client's end, the stop, and its end.
    struct Bed {
        client: DuplexStream,
        stop: watch::Sender<bool>,
        tasks: JoinSet<()>,
    }

    /// Answers with the version it was asked by, once the gate lets it.
    fn served(gate: Option<mpsc::Receiver<()>>) -> Bed {
        let (client, server) = tokio::io::duplex(1 << 16);
        let stop = watch::Sender::new(false);
        let gate = std::sync::Arc::new(tokio::sync::Mutex::new(gate));
        let answer = move |request: Request<Incoming>| {
            let gate = std::sync::Arc::clone(&gate);
            async move {
                if let Some(gate) = &mut *gate.lock().await {
                    gate.recv().await;
                }
                Response::new(Full::new(Bytes::from(format!("{:?}", request.version()))))
            }
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(speak(server, IDLE, stop.subscribe(), answer));
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
        for begun in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM", "GET / HTTP/1.1\r\nHost: "] {
            let mut bed = served(None);
            bed.client.write_all(begun.as_bytes()).await.unwrap();
            // Time passes as soon as nobody has anything to do.
            bed.tasks.join_next().await.unwrap().unwrap();
        }
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
        while let Some(ended) = bed.tasks.join_next().await {
            ended.unwrap();
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
        while let Some(ended) = bed.tasks.join_next().await {
            ended.unwrap();
        }
    }
}
