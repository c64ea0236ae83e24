//! An HTTP guest of WASI 0.3 (`wasi:http/handler`): each request does one small
//! thing, chosen by its path.
//!
//! ```text
//! GET  /              greets
//! GET  /env           the environment, one variable a line
//! GET  /headers       the request's method, path, authority and headers
//! GET  /count         how many requests this instance has answered
//! GET  /status?code=N answers with that status
//! GET  /sleep?ms=N    waits first; `&spin=M` uses a CPU after that
//! GET  /spin?ms=N     uses a CPU first
//! GET  /alloc?mib=N   holds that much memory while it answers
//! GET  /bytes?count=N a body of that many bytes
//! GET  /after         answers, and prints a line later
//! GET  /refuse        has an error for an answer
//! GET  /trap          runs into an `unreachable` instruction
//! POST /echo          sends the request's body back as it comes
//! POST /join          the same, and never sees a byte of it
//! GET  /fetch?url=URL the answer of another server; 502 if it has none
//! ```

use std::cell::Cell;
use std::fmt::Write as _;
use std::hint::black_box;

use wasip3::cli::environment;
use wasip3::clocks::monotonic_clock;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response, Scheme};
use wasip3::wit_bindgen::{StreamReader, StreamResult, spawn_local};
use wasip3::{wit_future, wit_stream};

wasip3::http::service::export!(Server);

struct Server;

thread_local! {
    static ANSWERED: Cell<u64> = const { Cell::new(0) };
}

impl wasip3::exports::http::handler::Guest for Server {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        ANSWERED.set(ANSWERED.get() + 1);
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let nanoseconds = || parameter(query, "ms") * 1_000_000;
        Ok(match path {
            "/" => answer(200, "Hello from WASI 0.3!\n"),
            "/env" => {
                let mut text = String::new();
                for (name, value) in environment::get_environment() {
                    let _ = writeln!(text, "{name}={value}");
                }
                answer(200, &text)
            }
            "/headers" => answer(200, &headers(&request)),
            "/count" => answer(200, &format!("{}\n", ANSWERED.get())),
            "/status" => {
                let code = u16::try_from(parameter(query, "code")).unwrap_or(500);
                answer(code, &format!("{code}\n"))
            }
            "/sleep" => {
                monotonic_clock::wait_for(nanoseconds()).await;
                spin(parameter(query, "spin") * 1_000_000);
                answer(200, "slept\n")
            }
            "/spin" => {
                spin(nanoseconds());
                answer(200, "spun\n")
            }
            "/alloc" => {
                let mib = usize::try_from(parameter(query, "mib")).unwrap_or(usize::MAX);
                let block = black_box(vec![1_u8; mib << 20]);
                answer(200, &format!("held {} bytes\n", block.len()))
            }
            "/bytes" => bytes(parameter(query, "count")),
            "/after" => {
                spawn_local(async {
                    monotonic_clock::wait_for(100_000_000).await;
                    println!("after");
                });
                answer(200, "before\n")
            }
            "/refuse" => return Err(ErrorCode::InternalError(Some("no".into()))),
            "/trap" => core::arch::wasm32::unreachable(),
            "/echo" => echo(request),
            "/join" => {
                let (_, done) = wit_future::new(|| Ok(()));
                let (body, trailers) = Request::consume_body(request, done);
                Response::new(Fields::new(), Some(body), trailers).0
            }
            "/fetch" => match fetch(text(query, "url")).await {
                Ok(response) => relay(response),
                Err(code) => answer(502, &format!("{code:?}\n")),
            },
            _ => answer(404, "no such path\n"),
        })
    }
}

/// A number from the query; 0 if it is not there or is none.
fn parameter(query: &str, name: &str) -> u64 {
    text(query, name).parse().unwrap_or(0)
}

/// A text from the query, as it is written there; empty if it is not there.
fn text<'query>(query: &'query str, name: &str) -> &'query str {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map_or("", |(_, value)| value)
}

fn headers(request: &Request) -> String {
    let mut text = format!(
        "{:?} {}\nauthority: {}\n",
        request.get_method(),
        request.get_path_with_query().unwrap_or_default(),
        request.get_authority().unwrap_or_default(),
    );
    for (name, value) in request.get_headers().copy_all() {
        let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(&value));
    }
    text
}

fn spin(nanoseconds: u64) {
    let start = monotonic_clock::now();
    let mut count = 0_u64;
    while monotonic_clock::now() - start < nanoseconds {
        for _ in 0..10_000 {
            count = black_box(count.wrapping_add(1));
        }
    }
}

/// An answer whose body is what `body` gives.
fn respond(status: u16, body: StreamReader<u8>) -> Response {
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(body), trailers);
    if response.set_status_code(status).is_err() {
        let _ = response.set_status_code(500);
    }
    response
}

/// Answers with a text. What the client does not take any more is dropped.
fn answer(status: u16, text: &str) -> Response {
    let (mut writer, reader) = wit_stream::new();
    let text = text.as_bytes().to_vec();
    spawn_local(async move {
        writer.write_all(text).await;
    });
    respond(status, reader)
}

fn bytes(count: u64) -> Response {
    let (mut writer, reader) = wit_stream::new();
    spawn_local(async move {
        let mut left = count;
        while left > 0 {
            let now = left.min(64 << 10);
            if !writer.write_all(vec![b'.'; now as usize]).await.is_empty() {
                return;
            }
            left -= now;
        }
    });
    respond(200, reader)
}

fn echo(request: Request) -> Response {
    let (_, done) = wit_future::new(|| Ok(()));
    let (body, _trailers) = Request::consume_body(request, done);
    copied(200, body)
}

/// An answer that is copied from a stream, piece by piece.
fn copied(status: u16, mut from: StreamReader<u8>) -> Response {
    let (mut writer, reader) = wit_stream::new();
    spawn_local(async move {
        loop {
            let (result, bytes) = from.read(Vec::with_capacity(64 << 10)).await;
            let refused = !writer.write_all(bytes).await.is_empty();
            if refused || !matches!(result, StreamResult::Complete(_)) {
                return;
            }
        }
    });
    respond(status, reader)
}

async fn fetch(url: &str) -> Result<Response, ErrorCode> {
    let (scheme, rest) = url.split_once("://").ok_or(ErrorCode::HttpRequestUriInvalid)?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, trailers, None);
    let invalid = |()| ErrorCode::HttpRequestUriInvalid;
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    request.set_method(&Method::Get).map_err(invalid)?;
    request.set_scheme(Some(&scheme)).map_err(invalid)?;
    request.set_authority(Some(authority)).map_err(invalid)?;
    request.set_path_with_query(Some(&format!("/{path}"))).map_err(invalid)?;
    client::send(request).await
}

fn relay(response: Response) -> Response {
    let status = response.get_status_code();
    let (_, done) = wit_future::new(|| Ok(()));
    let (body, _trailers) = Response::consume_body(response, done);
    copied(status, body)
}
