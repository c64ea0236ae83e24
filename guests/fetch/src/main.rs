//! A command that calls HTTP servers (`wasi:http/outgoing-handler` 0.2).
//!
//! ```text
//! fetch URL...     print the status and the body of each answer
//! ```
//!
//! What fails is printed as the host's error, on a line of standard output; the
//! exit code is then 1. Exit code 2 is for a wrong call.

use std::io::Write as _;
use std::process::ExitCode;

use wasip2::http::outgoing_handler;
use wasip2::http::types::{ErrorCode, Fields, OutgoingRequest, Scheme};
use wasip2::io::streams::StreamError;

fn main() -> ExitCode {
    let urls: Vec<String> = std::env::args().skip(1).collect();
    if urls.is_empty() {
        eprintln!("usage: fetch URL...");
        return ExitCode::from(2);
    }
    for url in &urls {
        let Some(request) = get(url) else {
            eprintln!("fetch: {url:?} is not a URL of http or https");
            return ExitCode::from(2);
        };
        if let Err(why) = fetch(request) {
            println!("{why}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn get(url: &str) -> Option<OutgoingRequest> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&scheme)).ok()?;
    request.set_authority(Some(authority)).ok()?;
    request.set_path_with_query(Some(if path.is_empty() { "/" } else { path })).ok()?;
    Some(request)
}

fn fetch(request: OutgoingRequest) -> Result<(), String> {
    let named = |code: ErrorCode| format!("{code:?}");
    let answer = outgoing_handler::handle(request, None).map_err(named)?;
    answer.subscribe().block();
    let response = answer
        .get()
        .expect("the answer is ready")
        .expect("the answer is taken once")
        .map_err(named)?;
    println!("{}", response.status());
    let body = response.consume().map_err(|()| "the body is gone")?;
    let stream = body.stream().map_err(|()| "the body has no stream")?;
    let mut out = std::io::stdout().lock();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(bytes) => out.write_all(&bytes).map_err(|error| error.to_string())?,
            Err(StreamError::Closed) => return Ok(()),
            Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
        }
    }
}
