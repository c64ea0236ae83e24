//! One GET, and the redirects that it leads to on the same host.
//!
//! Source: kubelet, `DoHTTPProbe` and `RedirectChecker` in
//! `pkg/probe/http/http.go`, `newProbeRequest` in `pkg/probe/http/request.go`;
//! what redirects take along is Go's `net/http`, `client.go`.

use std::{borrow::Cow, pin::pin, time::Duration};

use futures::future::BoxFuture;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode,
    header::{
        ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, LOCATION, TRAILER, TRANSFER_ENCODING, USER_AGENT,
    },
};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::{Body as _, Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use krustlet_model::{
    Chain,
    probes::target::{HttpTarget, join},
};
use krustlet_resolver::SystemLookups;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};
use url::{Position, Url};

use super::{
    dial::{DialError, Host},
    tls::Connector,
};
use crate::outside::ProbeAnswer;

/// Bytes of a body that are read; the rest is left. Source: `maxRespBodyLength`.
const LONGEST_BODY: usize = 10 << 10;

/// Bytes of a body that is taken though it leads elsewhere. Source:
/// `maxBodySlurpSize` in Go's `net/http`, `client.go`.
const SHORT_BODY: u64 = 2 << 10;

/// Bytes of an answer's head. Servers rarely send more than a few kilobytes.
const LONGEST_HEAD: usize = 64 << 10;

/// Requests of one probe, the first included. Source: `RedirectChecker`.
const HOPS: usize = 10;

/// Who asks. Source: `userAgent` in `pkg/probe/http/request.go`.
const AGENT: &str = "kube-probe/1.37";

/// A failure, as Go's client puts it.
fn failed(url: &str, why: &str) -> ProbeAnswer {
    ProbeAnswer::Failure(format!("Get {url:?}: {why}"))
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum GetError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("tls: {0}")]
    Tls(std::io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("net/http: invalid header field {what} {given:?}")]
    Header { what: &'static str, given: String },
    #[error("unsupported protocol scheme {0:?}")]
    Scheme(String),
    #[error("stopped after 10 redirects")]
    Redirects,
    #[error("failed to parse Location header {0:?}")]
    Location(String),
}

/// An answer's head; its body is still to come.
struct Answer {
    status: StatusCode,
    location: Option<String>,
    body: Incoming,
    connection: Connection,
    /// Without it the connection would be closed.
    _sender: SendRequest<Empty<Bytes>>,
}

/// Asks `host`, and judges what it says.
pub(super) async fn get(
    (tls, lookups): (&Connector, &SystemLookups),
    target: &HttpTarget,
    host: &str,
    limit: Duration,
) -> ProbeAnswer {
    let first = target.url(host);
    let url = match Url::parse(&first) {
        Ok(url) => url,
        Err(error) => return ProbeAnswer::Unknown(format!("parse {first:?}: {error}")),
    };
    let lines = match headers(target) {
        Ok(lines) => lines,
        Err(error) => return failed(&first, &error.to_string()),
    };
    let named = url.host_str().unwrap_or(host).trim_matches(['[', ']']);
    let mut host = match Host::new(named, lookups).await {
        Ok(host) => host,
        Err(error) => return failed(&first, &error.to_string()),
    };
    let until = Instant::now() + limit;
    let mut answer = match timeout_at(until, follow((tls, &mut host), (target, &first), url, lines))
        .await
    {
        Ok(Ok(answer)) => answer,
        Ok(Err(comes_to)) => return comes_to,
        Err(_) => {
            let why = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
            return failed(&first, why);
        }
    };
    match timeout_at(until, answer.start_of_body(LONGEST_BODY)).await {
        Ok(Ok(body)) => judge(answer.status, &body),
        Ok(Err(error)) => ProbeAnswer::Broken(Chain(&error).to_string()),
        Err(_) => ProbeAnswer::Broken(
            "context deadline exceeded (Client.Timeout or context cancellation while reading body)"
                .to_owned(),
        ),
    }
}

/// Asks, and asks again where the answers lead on the same host. What the last
/// one says counts; or else what the probe comes to.
async fn follow(
    (tls, host): (&Connector, &mut Host),
    (target, first): (&HttpTarget, &str),
    mut url: Url,
    (headers, mut authority): (HeaderMap, Option<String>),
) -> Result<Answer, ProbeAnswer> {
    let asked_host = url.host_str().map(str::to_owned);
    // Not as the URL has it: that leaves out what `..` leads back from.
    let mut path = target.path_and_query();
    for hop in 1.. {
        let answer =
            match ask((tls, &mut *host), (&url, &path), &headers, authority.as_deref()).await {
                Ok(answer) => answer,
                Err(error) => return Err(failed(first, &Chain(&error).to_string())),
            };
        let Some(location) = answer.location.as_deref().filter(|_| is_redirect(answer.status))
        else {
            return Ok(answer);
        };
        let Ok(next) = url.join(location) else {
            let error = GetError::Location(location.to_owned());
            return Err(failed(first, &error.to_string()));
        };
        if next.host_str() != asked_host.as_deref() {
            return Ok(answer);
        }
        let names_host = Url::parse(location).is_ok();
        answer.leave().await;
        if hop >= HOPS {
            return Err(failed(next.as_str(), &GetError::Redirects.to_string()));
        }
        // A host that the probe names stays in force until the server names one:
        // a path after that is on the server's.
        if names_host {
            authority = None;
        }
        next[Position::BeforePath..Position::AfterQuery].clone_into(&mut path);
        url = next;
    }
    unreachable!("the loop ends after {HOPS} requests")
}

/// The header lines of every request, and the host that they name.
fn headers(target: &HttpTarget) -> Result<(HeaderMap, Option<String>), GetError> {
    let mut headers = HeaderMap::new();
    let mut host = None;
    for (name, value) in &target.headers {
        let bad = |what, given: &str| GetError::Header { what, given: given.to_owned() };
        let key: HeaderName = name.parse().map_err(|_| bad("name", name))?;
        // Of any bytes but control characters.
        let line = value.trim_matches([' ', '\t']).as_bytes();
        let line = HeaderValue::from_bytes(line).map_err(|_| bad("value for", name))?;
        if key == HOST {
            host.get_or_insert_with(|| value.clone());
        } else if ![CONNECTION, CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING].contains(&key) {
            headers.append(key, line);
        }
    }
    headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
    headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    // Set to nothing is left out.
    for name in [USER_AGENT, ACCEPT] {
        if headers.get(&name).is_some_and(HeaderValue::is_empty) {
            headers.remove(name);
        }
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok((headers, host.filter(|host| !host.is_empty())))
}

/// A host as Go writes it: a name with other letters as DNS has it, and one that
/// no host can have as none at all.
///
/// Source: Go's `net/http`, `write` in `request.go`; `PunycodeHostPort` and
/// `ValidHostHeader` in `golang.org/x/net/http/httpguts`.
fn host_line(authority: &str) -> Result<HeaderValue, GetError> {
    let bad = || GetError::Header { what: "value for", given: "Host".to_owned() };
    let authority = if authority.is_ascii() {
        Cow::Borrowed(authority)
    } else {
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (authority, None),
        };
        let name = url::Host::parse(name).map_err(|_| bad())?;
        Cow::Owned(port.map_or_else(|| name.to_string(), |port| format!("{name}:{port}")))
    };
    let may_be = |byte: u8| byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(&byte);
    if !authority.bytes().all(may_be) {
        return Ok(HeaderValue::from_static(""));
    }
    HeaderValue::from_str(&authority).map_err(|_| bad())
}

async fn ask(
    (tls, host): (&Connector, &mut Host),
    (url, path): (&Url, &str),
    headers: &HeaderMap,
    authority: Option<&str>,
) -> Result<Answer, GetError> {
    let scheme = || GetError::Scheme(url.scheme().to_owned());
    let port = url.port_or_known_default().ok_or_else(scheme)?;
    let mut request = Request::get(path)
        .body(Empty::<Bytes>::new())
        .map_err(|error| GetError::Location(error.to_string()))?;
    request.headers_mut().clone_from(headers);
    let authority = authority.map_or_else(|| join(host.name(), port), str::to_owned);
    request.headers_mut().insert(HOST, host_line(&authority)?);
    match url.scheme() {
        "http" => exchange(host.connect(port).await?, request).await,
        "https" => {
            let stream = host.connect(port).await?;
            exchange(tls.connect(host.name(), stream).await.map_err(GetError::Tls)?, request).await
        }
        _ => Err(scheme()),
    }
}

/// Sends a request over a connection of its own, and waits for the head of its
/// answer.
async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Answer, GetError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .max_buf_size(LONGEST_HEAD)
        .handshake(TokioIo::new(stream))
        .await?;
    // Its own end is of no interest: what it failed of, the exchange is told.
    let mut connection: Connection = Some(Box::pin(async move { drop(connection.await) }));
    let response = beside(&mut connection, sender.send_request(request)).await?;
    let (head, body) = response.into_parts();
    let location = head.headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.map(str::to_owned);
    Ok(Answer { status: head.status, location, body, connection, _sender: sender })
}

/// What brings bytes, until it ends.
type Connection = Option<BoxFuture<'static, ()>>;

/// Waits for `work`, which needs the connection to go on. Cancel-safe if that is.
async fn beside<T>(connection: &mut Connection, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        let Some(going_on) = connection else { return work.await };
        // Both are only polled on.
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = going_on => *connection = None,
        }
    }
}

impl Answer {
    /// Reads the body, or the first bytes of it.
    async fn start_of_body(&mut self, longest: usize) -> Result<String, hyper::Error> {
        let body = &mut self.body;
        let read = async {
            let mut bytes = Vec::new();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    bytes.extend_from_slice(&data);
                }
                if bytes.len() >= longest {
                    bytes.truncate(longest);
                    break;
                }
            }
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        beside(&mut self.connection, read).await
    }

    /// Takes a short body, as Go's client does before it goes elsewhere. What
    /// becomes of it is of no interest.
    async fn leave(mut self) {
        if self.body.size_hint().exact().is_none_or(|bytes| bytes <= SHORT_BODY) {
            let longest = usize::try_from(SHORT_BODY).unwrap_or(usize::MAX);
            drop(self.start_of_body(longest).await);
        }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn judge(status: StatusCode, body: &str) -> ProbeAnswer {
    match status.as_u16() {
        200..300 => ProbeAnswer::Success,
        300..400 => {
            ProbeAnswer::Warning(format!("Probe terminated redirects, Response body: {body}"))
        }
        // Without the body, which may hold what events should not.
        code => ProbeAnswer::Failure(format!("HTTP probe failed with statuscode: {code}")),
    }
}
