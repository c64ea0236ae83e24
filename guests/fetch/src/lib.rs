//! Calls HTTP servers by `wasi:http/outgoing-handler` 0.2.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingResponse, OutgoingRequest, Scheme,
};
use wasip2::io::streams::{InputStream, StreamError};

/// What a server answered. The order of the fields is that in which they go.
pub struct Answer {
    stream: InputStream,
    _body: IncomingBody,
    response: IncomingResponse,
}

/// Gets what a URL names, `http://…` or `https://…`.
///
/// # Errors
///
/// The name of the host's error code, or what is wrong with the URL.
pub fn get(url: &str) -> Result<Answer, String> {
    let named = |code: ErrorCode| format!("{code:?}").replace("ErrorCode::", "");
    let request = request(url).ok_or_else(|| format!("{url:?} is not a URL of http or https"))?;
    let future = outgoing_handler::handle(request, None).map_err(named)?;
    future.subscribe().block();
    let response = future
        .get()
        .expect("the answer is there")
        .expect("the answer is taken once")
        .map_err(named)?;
    let body = response.consume().expect("the body is taken once");
    let stream = body.stream().expect("the stream is taken once");
    Ok(Answer { stream, _body: body, response })
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.response.status()
    }

    /// The next piece of the body; none at its end.
    ///
    /// # Errors
    ///
    /// What the host says of a connection that breaks.
    pub fn piece(&self) -> Result<Option<Vec<u8>>, String> {
        match self.stream.blocking_read(64 << 10) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StreamError::Closed) => Ok(None),
            Err(StreamError::LastOperationFailed(error)) => Err(error.to_debug_string()),
        }
    }
}

fn request(url: &str) -> Option<OutgoingRequest> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&scheme)).ok()?;
    request.set_authority(Some(authority)).ok()?;
    request.set_path_with_query(Some(&path)).ok()?;
    Some(request)
}
