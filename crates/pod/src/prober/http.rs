//! One GET, and the redirects that it leads to on the same host.
//!
//! Source: kubelet, `DoHTTPProbe` and `RedirectChecker` in
//! `pkg/probe/http/http.go`, `newProbeRequest` in `pkg/probe/http/request.go`;
//! what redirects take along is Go's `net/http`, `client.go`.

use std::{borrow::Cow, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode,
    header::{
        ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, REFERER, TRAILER, TRANSFER_ENCODING, USER_AGENT,
    },
};
use krustlet_model::{
    Chain,
    probes::target::{HttpTarget, join},
};
use krustlet_resolver::SystemLookups;
use tokio::time::{Instant, timeout_at};
use url::{Position, Url};

use super::{
    dial::{DialError, Host},
    exchange::{self, Answer},
    tls::{Connector, is_version_2},
};
use crate::outside::ProbeAnswer;

/// Bytes of a body that are read; the rest is left. Source: `maxRespBodyLength`.
const LONGEST_BODY: usize = 10 << 10;

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
    #[error("http2: invalid Host header")]
    Host(#[source] http::Error),
    #[error("unsupported protocol scheme {0:?}")]
    Scheme(String),
    #[error("stopped after 10 redirects")]
    Redirects,
    #[error("failed to parse Location header {0:?}")]
    Location(String),
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
    (mut headers, mut authority): (HeaderMap, Option<String>),
) -> Result<Answer, ProbeAnswer> {
    let asked_host = url.host_str().map(str::to_owned);
    let has_referer = headers.get(REFERER).is_some_and(|line| !line.is_empty());
    let mut asked = first.to_owned();
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
        if !has_referer {
            refer(&mut headers, &asked, url.scheme(), &next)
                .map_err(|error| failed(first, &error.to_string()))?;
        }
        next[Position::BeforePath..Position::AfterQuery].clone_into(&mut path);
        asked = without_user(&next);
        url = next;
    }
    unreachable!("the loop ends after {HOPS} requests")
}

/// Says from where a redirect leads on, but tells nobody in the clear who was asked
/// in secret.
///
/// Source: Go's `net/http`, `refererForURL` in `client.go`.
fn refer(headers: &mut HeaderMap, from: &str, scheme: &str, to: &Url) -> Result<(), GetError> {
    if (scheme, to.scheme()) == ("https", "http") {
        headers.remove(REFERER);
        return Ok(());
    }
    let bad = |_| GetError::Header { what: "value for", given: "Referer".to_owned() };
    headers.insert(REFERER, HeaderValue::from_str(from).map_err(bad)?);
    Ok(())
}

/// A URL without who asks.
fn without_user(url: &Url) -> String {
    format!("{}://{}", url.scheme(), &url[Position::BeforeHost..])
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
        .body(exchange::Nothing::new())
        .map_err(|error| GetError::Location(error.to_string()))?;
    request.headers_mut().clone_from(headers);
    let authority = authority.map_or_else(|| join(host.name(), port), str::to_owned);
    let authority = host_line(&authority)?;
    match url.scheme() {
        "http" => {
            request.headers_mut().insert(HOST, authority);
            Ok(exchange::by_version_1(host.connect(port).await?, request).await?)
        }
        "https" => {
            let stream = host.connect(port).await?;
            let stream = tls.connect(host.name(), stream).await.map_err(GetError::Tls)?;
            if is_version_2(&stream) {
                let request =
                    exchange::for_version_2(request, &authority).map_err(GetError::Host)?;
                return Ok(exchange::by_version_2(stream, request).await?);
            }
            request.headers_mut().insert(HOST, authority);
            Ok(exchange::by_version_1(stream, request).await?)
        }
        _ => Err(scheme()),
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
