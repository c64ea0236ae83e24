//! An HTTP guest (`wasi:http/proxy` 0.2): each request does one small thing,
//! chosen by its path, so that one component can stand for every kind of server
//! in tests and examples.
//!
//! ```text
//! GET  /             greets
//! GET  /env          the environment, one variable a line
//! GET  /args         the arguments, one a line
//! GET  /headers      the request's method, path and headers, as they arrived
//! GET  /count        how many requests this instance has answered
//! GET  /status?code=N      answers with that status
//! GET  /sleep?ms=N         waits first
//! GET  /spin?ms=N          uses a CPU first
//! GET  /alloc?mib=N        holds that much memory while it answers
//! GET  /bytes?count=N      a body of that many bytes
//! GET  /trap               runs into an `unreachable` instruction
//! POST /echo               sends the request's body back as it comes
//! GET  /health?file=PATH   200 while the file says `ok`, else 503
//! POST /health?file=PATH   writes the request's body to the file
//! GET  /fetch?url=URL      the answer of another server; 502 if it has none
//! ```

mod files;

use std::cell::Cell;
use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use wasip2::cli::environment;
use wasip2::http::types::{
    Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{OutputStream, StreamError};

wasip2::http::proxy::export!(Server);

struct Server;

thread_local! {
    static ANSWERED: Cell<u64> = const { Cell::new(0) };
}

impl wasip2::exports::http::incoming_handler::Guest for Server {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        ANSWERED.set(ANSWERED.get() + 1);
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let milliseconds = || Duration::from_millis(parameter(query, "ms"));
        match path {
            "/" => answer(out, 200, "Hello from WebAssembly!\n"),
            "/env" => {
                let lines = environment::get_environment();
                answer(
                    out,
                    200,
                    &lines.iter().fold(String::new(), |mut text, (name, value)| {
                        let _ = writeln!(text, "{name}={value}");
                        text
                    }),
                );
            }
            "/args" => answer(out, 200, &(environment::get_arguments().join("\n") + "\n")),
            "/headers" => answer(out, 200, &headers(&request)),
            "/count" => answer(out, 200, &format!("{}\n", ANSWERED.get())),
            "/status" => {
                let code = u16::try_from(parameter(query, "code")).unwrap_or(500);
                answer(out, code, &format!("{code}\n"));
            }
            "/sleep" => {
                std::thread::sleep(milliseconds());
                answer(out, 200, "slept\n");
            }
            "/spin" => {
                spin(milliseconds());
                answer(out, 200, "spun\n");
            }
            "/alloc" => {
                let mib = usize::try_from(parameter(query, "mib")).unwrap_or(usize::MAX);
                let block = black_box(vec![1_u8; mib << 20]);
                answer(out, 200, &format!("held {} bytes\n", block.len()));
            }
            "/bytes" => bytes(out, parameter(query, "count")),
            "/trap" => core::arch::wasm32::unreachable(),
            "/echo" => echo(&request, out),
            "/health" => health(&request, text(query, "file"), out),
            "/fetch" => relay(text(query, "url"), out),
            _ => answer(out, 404, "no such path\n"),
        }
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

fn headers(request: &IncomingRequest) -> String {
    let method = match request.method() {
        Method::Get => "GET".to_owned(),
        Method::Head => "HEAD".to_owned(),
        Method::Post => "POST".to_owned(),
        Method::Put => "PUT".to_owned(),
        Method::Delete => "DELETE".to_owned(),
        Method::Connect => "CONNECT".to_owned(),
        Method::Options => "OPTIONS".to_owned(),
        Method::Trace => "TRACE".to_owned(),
        Method::Patch => "PATCH".to_owned(),
        Method::Other(name) => name,
    };
    let mut text = format!("{method} {}\n", request.path_with_query().unwrap_or_default());
    if let Some(authority) = request.authority() {
        let _ = writeln!(text, "authority: {authority}");
    }
    for (name, value) in request.headers().entries() {
        let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(&value));
    }
    text
}

fn spin(time: Duration) {
    let start = Instant::now();
    let mut count = 0_u64;
    while start.elapsed() < time {
        for _ in 0..10_000 {
            count = black_box(count.wrapping_add(1));
        }
    }
}

/// Answers with a text. What the client does not take any more is dropped.
fn answer(out: ResponseOutparam, status: u16, text: &str) {
    respond(out, status, |stream| send(stream, text.as_bytes()));
}

fn bytes(out: ResponseOutparam, count: u64) {
    respond(out, 200, |stream| {
        let block = [b'.'; 4096];
        let mut left = count;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(block.len()).min(block.len());
            send(stream, &block[..now])?;
            left -= now as u64;
        }
        Ok(())
    });
}

fn echo(request: &IncomingRequest, out: ResponseOutparam) {
    let Ok(body) = request.consume() else {
        return answer(out, 500, "the body is gone\n");
    };
    let Ok(from) = body.stream() else {
        return answer(out, 500, "the body has no stream\n");
    };
    respond(out, 200, |stream| {
        loop {
            match from.blocking_read(64 << 10) {
                Ok(chunk) => send(stream, &chunk)?,
                Err(StreamError::Closed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    });
}

fn health(request: &IncomingRequest, file: &str, out: ResponseOutparam) {
    if matches!(request.method(), Method::Post) {
        let Ok(body) = request.consume() else {
            return answer(out, 500, "the body is gone\n");
        };
        let Ok(stream) = body.stream() else {
            return answer(out, 500, "the body has no stream\n");
        };
        let mut bytes = Vec::new();
        while let Ok(more) = stream.blocking_read(4096) {
            bytes.extend(more);
        }
        return match files::write(file, &bytes) {
            Ok(()) => answer(out, 200, "written\n"),
            Err(error) => answer(out, 500, &format!("{file}: {}\n", error.name())),
        };
    }
    match files::read(file) {
        Ok(bytes) if bytes.trim_ascii() == b"ok" => answer(out, 200, "ok\n"),
        Ok(bytes) => answer(out, 503, &format!("{}\n", String::from_utf8_lossy(&bytes))),
        Err(error) => answer(out, 503, &format!("{file}: {}\n", error.name())),
    }
}

fn relay(url: &str, out: ResponseOutparam) {
    match fetch::get(url) {
        Ok(upstream) => respond(out, upstream.status(), |stream| {
            while let Ok(Some(bytes)) = upstream.piece() {
                send(stream, &bytes)?;
            }
            Ok(())
        }),
        Err(why) => answer(out, 502, &format!("{why}\n")),
    }
}

fn respond(
    out: ResponseOutparam,
    status: u16,
    write: impl FnOnce(&OutputStream) -> Result<(), StreamError>,
) {
    let response = OutgoingResponse::new(Fields::new());
    if response.set_status_code(status).is_err() {
        return answer(out, 500, "no such status\n");
    }
    let body = response.body().expect("a response's body is taken once");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("a body's stream is taken once");
    let written = write(&stream);
    drop(stream);
    if written.is_ok() {
        // An error here is the client's: it has gone.
        let _ = OutgoingBody::finish(body, None);
    }
}

/// Writes in the pieces the interface allows: at most 4096 bytes at once.
fn send(stream: &OutputStream, bytes: &[u8]) -> Result<(), StreamError> {
    for piece in bytes.chunks(4096) {
        stream.blocking_write_and_flush(piece)?;
    }
    Ok(())
}
