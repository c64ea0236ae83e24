//! A registry in this process: well-behaved, or misbehaving in the order it is told.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use krustlet_image::Digest;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Another status, and what it says.
    Status(u16, &'static str),
    /// Too busy; come back after so many seconds.
    Busy(u16, u64),
    /// The connection breaks after so many bytes.
    Break(usize),
    /// So many bytes, then nothing.
    Stall(usize),
    /// Somewhere else.
    Redirect(String),
    /// Other bytes.
    Body(Vec<u8>),
    /// The right bytes in pieces without a length, and these behind them.
    Endless(Vec<u8>),
    /// The whole, whatever part was asked for.
    IgnoreRange,
}

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// What a client has to show.
#[derive(Clone, Debug, Default)]
pub(crate) enum Login {
    #[default]
    None,
    /// `Basic` with this pair.
    Basic(&'static str),
    /// A token from `/token`, which wants this pair, or nothing.
    Token(Option<&'static str>),
}

#[derive(Default)]
struct Content {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    seen: Vec<Seen>,
    faults: Vec<(String, VecDeque<Fault>)>,
    login: Login,
}

#[derive(Clone)]
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    content: Arc<Mutex<Content>>,
    _server: Arc<JoinSet<()>>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let content: Arc<Mutex<Content>> = Arc::default();
        let router = Router::new().fallback(serve).with_state((address, Arc::clone(&content)));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, content, _server: Arc::new(server) }
    }

    /// A reference to something here.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub(crate) fn require(&self, login: Login) {
        self.content.lock().unwrap().login = login;
    }

    /// The next requests whose path contains `path` fail in this order.
    pub(crate) fn fail(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        let faults = faults.into_iter().collect();
        self.content.lock().unwrap().faults.push((path.to_owned(), faults));
    }

    pub(crate) fn seen(&self, path: &str) -> Vec<Seen> {
        let seen = self.content.lock().unwrap().seen.clone();
        seen.into_iter().filter(|seen| seen.path.contains(path)).collect()
    }

    pub(crate) fn forget_seen(&self) {
        self.content.lock().unwrap().seen.clear();
    }

    pub(crate) fn manifest_text(&self, reference: &str) -> Option<Vec<u8>> {
        let content = self.content.lock().unwrap();
        content.manifests.get(reference).map(|(_, bytes)| bytes.clone())
    }

    pub(crate) fn add_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.content.lock().unwrap().blobs.insert(digest.to_string(), bytes.to_vec());
        digest
    }

    /// Puts a document under `name:tag` and `name@digest`.
    pub(crate) fn add_document(
        &self,
        name: &str,
        tag: &str,
        kind: &str,
        document: &Value,
    ) -> Digest {
        let bytes = serde_json::to_vec(document).unwrap();
        let digest = Digest::of(&bytes);
        let mut content = self.content.lock().unwrap();
        for reference in [tag.to_owned(), digest.to_string()] {
            content
                .manifests
                .insert(format!("{name}/{reference}"), (kind.to_owned(), bytes.clone()));
        }
        digest
    }

    /// Adds an image of a configuration and layers, given by kind and bytes.
    pub(crate) fn add_image(
        &self,
        name: &str,
        tag: &str,
        config: (&str, &Value),
        layers: &[(&str, &[u8])],
    ) -> Digest {
        let manifest = self.manifest(config, layers);
        self.add_document(name, tag, OCI_MANIFEST, &manifest)
    }

    pub(crate) fn manifest(&self, config: (&str, &Value), layers: &[(&str, &[u8])]) -> Value {
        let (kind, config) = config;
        let config = serde_json::to_vec(config).unwrap();
        let layers: Vec<_> =
            layers.iter().map(|(kind, bytes)| self.descriptor(kind, bytes)).collect();
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.descriptor(kind, &config),
            "layers": layers,
        })
    }

    pub(crate) fn descriptor(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = self.add_blob(bytes);
        json!({ "mediaType": kind, "digest": digest.to_string(), "size": bytes.len() })
    }

    /// Adds the usual artifact with one program.
    pub(crate) fn add_module(&self, name: &str, tag: &str, program: &[u8]) -> Digest {
        let config = json!({ "architecture": "wasm", "os": "wasip1" });
        self.add_image(name, tag, (WASM_CONFIG, &config), &[("application/wasm", program)])
    }
}

type Shared = (SocketAddr, Arc<Mutex<Content>>);

async fn serve(State((address, content)): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let full = parts.uri.path_and_query().map_or_else(|| path.clone(), ToString::to_string);
    let body = to_bytes(body, 64 << 20).await.unwrap_or_default();
    let mut content = content.lock().unwrap();
    content.seen.push(Seen { path: full.clone(), headers: parts.headers.clone() });
    if path == "/token" {
        return token(&content.login, &parts.headers);
    }
    if let Some(refusal) = refuse(&content.login, address, &parts.headers) {
        return refusal;
    }
    let is_meant = |(pattern, faults): &&mut (String, VecDeque<Fault>)| {
        full.contains(pattern.as_str()) && !faults.is_empty()
    };
    let fault = content.faults.iter_mut().find(is_meant).and_then(|(_, faults)| faults.pop_front());

    let Some(rest) = path.strip_prefix("/v2/") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if let Some((name, reference)) = rest.split_once("/manifests/") {
        let key = format!("{name}/{reference}");
        if parts.method == Method::PUT {
            if let Some(fault) = fault {
                return misbehave(fault, &[], 0);
            }
            let kind = parts.headers[header::CONTENT_TYPE].to_str().unwrap().to_owned();
            content.manifests.insert(key, (kind.clone(), body.to_vec()));
            let digest = Digest::of(&body);
            content.manifests.insert(format!("{name}/{digest}"), (kind, body.to_vec()));
            return StatusCode::CREATED.into_response();
        }
        return match (content.manifests.get(&key), fault) {
            (found, Some(fault)) => misbehave(fault, found.map_or(&[], |(_, bytes)| bytes), 0),
            (Some((kind, bytes)), None) => {
                ([(header::CONTENT_TYPE, kind.clone())], bytes.clone()).into_response()
            }
            (None, None) => {
                let text =
                    r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
                (StatusCode::NOT_FOUND, text).into_response()
            }
        };
    }
    if let Some((name, upload)) = rest.split_once("/blobs/uploads/") {
        if let Some(fault) = fault {
            return misbehave(fault, &[], 0);
        }
        if parts.method == Method::POST {
            let location = format!("/v2/{name}/blobs/uploads/one?state=x");
            return (StatusCode::ACCEPTED, [(header::LOCATION, location)]).into_response();
        }
        let digest = Digest::of(&body).to_string();
        let is_told = full.ends_with(&format!("digest={}", digest.replace(':', "%3A")));
        if upload != "one" || !is_told {
            return StatusCode::BAD_REQUEST.into_response();
        }
        content.blobs.insert(digest, body.to_vec());
        return StatusCode::CREATED.into_response();
    }
    let Some((_, digest)) = rest.split_once("/blobs/") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Some(blob) = content.blobs.get(digest) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = parts.headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let start =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start = match fault {
        Some(Fault::IgnoreRange) => None,
        Some(fault) => return misbehave(fault, blob, start.unwrap_or(0)),
        None => start,
    };
    match start {
        None => blob.clone().into_response(),
        Some(start) if start >= blob.len() => StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
        Some(start) => part(blob, start).into_response(),
    }
}

fn part(blob: &[u8], start: usize) -> impl IntoResponse {
    let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
    (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, range)], blob[start..].to_vec())
}

fn misbehave(fault: Fault, bytes: &[u8], start: usize) -> Response {
    let rest = bytes.get(start..).unwrap_or_default();
    let cut = |count: usize| Ok(Bytes::copy_from_slice(&rest[..count.min(rest.len())]));
    let streamed = |stream| {
        let status = if start > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        let length = rest.len().to_string();
        let range = format!("bytes {start}-{}/{}", bytes.len().max(1) - 1, bytes.len());
        let headers = [(header::CONTENT_LENGTH, length), (header::CONTENT_RANGE, range)];
        (status, headers, Body::from_stream(stream)).into_response()
    };
    match fault {
        Fault::Status(status, text) => {
            (StatusCode::from_u16(status).unwrap(), text).into_response()
        }
        Fault::Busy(status, seconds) => {
            let headers = [(header::RETRY_AFTER, seconds.to_string())];
            (StatusCode::from_u16(status).unwrap(), headers).into_response()
        }
        Fault::Break(count) => {
            let end = Err(io::Error::from(io::ErrorKind::ConnectionReset));
            streamed(stream::iter([cut(count), end]).boxed())
        }
        Fault::Stall(count) => {
            streamed(stream::iter([cut(count)]).chain(stream::pending()).boxed())
        }
        Fault::Redirect(to) => {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response()
        }
        Fault::Body(bytes) => bytes.into_response(),
        Fault::Endless(more) => {
            let pieces: Vec<io::Result<Bytes>> = vec![cut(usize::MAX), Ok(more.into())];
            Body::from_stream(stream::iter(pieces)).into_response()
        }
        Fault::IgnoreRange => bytes.to_vec().into_response(),
    }
}

fn given(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok())
}

fn refuse(login: &Login, address: SocketAddr, headers: &HeaderMap) -> Option<Response> {
    let (wanted, challenge) = match login {
        Login::None => return None,
        Login::Basic(pair) => (format!("Basic {pair}"), "Basic realm=\"here\"".to_owned()),
        Login::Token(_) => (
            "Bearer good".to_owned(),
            format!(
                "Bearer realm=\"http://{address}/token\",service=\"here\",scope=\"repository:a:pull\""
            ),
        ),
    };
    if given(headers) == Some(&wanted) {
        return None;
    }
    let text = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    let headers = [(header::WWW_AUTHENTICATE, challenge)];
    Some((StatusCode::UNAUTHORIZED, headers, text).into_response())
}

fn token(login: &Login, headers: &HeaderMap) -> Response {
    let wanted = match login {
        Login::Token(Some(pair)) => Some(format!("Basic {pair}")),
        Login::Token(None) | Login::None | Login::Basic(_) => None,
    };
    if wanted.is_some() && given(headers) != wanted.as_deref() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    r#"{"token":"good","expires_in":60}"#.into_response()
}
