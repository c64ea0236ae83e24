//! Fetching manifests and blobs, checked while they arrive.
//!
//! A blob goes to disk as it comes. A transfer that breaks goes on where it stopped
//! (`Range`); one that gives other bytes than the digest says is an error, and the next
//! place that has the image is asked.

use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE,
};
use reqwest::{Method, Response, StatusCode};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt, BufWriter};

use super::error::RequestError;
use super::http::{Access, Ask, Http, Purpose};
use super::retry::Retry;
use super::rules::RegistryRules;
use crate::access::{Right, SecretRight};
use crate::credential::{self, Credential};
use crate::digest::{Digest, Hasher};
use crate::limits::DOCUMENT_LIMIT;
use crate::manifest::{ACCEPTED, Descriptor};
use crate::reference::Reference;

/// Bytes gathered before they are written.
const BUFFER: usize = 256 << 10;

/// Bytes that count as headway: an attempt that brought this much is not held against a
/// registry whose connections keep breaking.
const HEADWAY: u64 = 1 << 20;

/// A manifest or index as it was sent.
#[derive(Clone, Debug)]
pub(crate) struct RawDocument {
    pub bytes: Vec<u8>,
    pub digest: Digest,
    pub content_type: Option<String>,
}

/// All places and logins for one image, and the one that works.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    http: &'a Http,
    /// Place by place, login by login.
    accesses: Vec<Access>,
    current: usize,
    /// The Secret whose login gave out some of it.
    secret: Option<SecretRight>,
}

impl<'a> Session<'a> {
    /// `credentials` in the order they are to be tried. A credential only goes to hosts that it is for;
    /// where one fits, nothing is tried without.
    pub(crate) fn new(
        http: &'a Http,
        rules: &RegistryRules,
        reference: &Reference,
        credentials: &[Credential],
    ) -> Result<Self, RequestError> {
        let mut accesses = Vec::new();
        for endpoint in rules.endpoints(reference)? {
            let fitting = credential::matching(credentials, &endpoint.host, &endpoint.repository);
            if fitting.is_empty() {
                accesses.push(Access::new(endpoint, Purpose::Pull, None));
                continue;
            }
            accesses.extend(fitting.into_iter().map(|credential| {
                Access::new(endpoint.clone(), Purpose::Pull, Some(credential.clone()))
            }));
        }
        Ok(Self { http, accesses, current: 0, secret: None })
    }

    /// What was proved by what was fetched. Every pod may have it only if all of it was given to everyone;
    /// of several logins the last was not refused.
    pub(crate) fn right(&self) -> Right {
        self.secret.clone().map_or(Right::NodePods, Right::Secret)
    }

    fn note_right(&mut self) {
        if let Right::Secret(right) = self.accesses[self.current].right() {
            self.secret = Some(right);
        }
    }

    /// Fetches a manifest or index by tag or digest.
    pub(crate) async fn document(
        &mut self,
        tag: &str,
        digest: Option<&Digest>,
    ) -> Result<RawDocument, RequestError> {
        loop {
            let access = &mut self.accesses[self.current];
            match document(self.http, access, tag, digest).await {
                Ok(document) => {
                    self.note_right();
                    return Ok(document);
                }
                Err(error) if self.move_on(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Fetches a blob into `file`, which is empty, and returns once all of it is there and checked.
    pub(crate) async fn blob(
        &mut self,
        blob: &Descriptor,
        file: std::fs::File,
    ) -> Result<(), RequestError> {
        let mut sink = Sink::new(file, blob);
        loop {
            let access = &mut self.accesses[self.current];
            match fetch_blob(self.http, access, blob, &mut sink).await {
                Ok(()) => {
                    self.note_right();
                    return Ok(());
                }
                Err(error) if self.move_on(&error) => {
                    let host = &self.accesses[self.current].endpoint.host;
                    sink.restart().await.map_err(|error| RequestError::store(host, error))?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Turns to the next login, or to the next place. False if there is none.
    fn move_on(&mut self, error: &RequestError) -> bool {
        // A full disk is full wherever the bytes come from.
        if matches!(error, RequestError::Store { .. } | RequestError::TooBig { .. }) {
            return false;
        }
        let here = self.accesses[self.current].endpoint.base.clone();
        let is_denied = matches!(error, RequestError::Denied { .. });
        let rest = self.accesses.iter().enumerate().skip(self.current + 1);
        let next = rest.into_iter().find(|(_, next)| is_denied || next.endpoint.base != here);
        match next {
            Some((index, next)) => {
                tracing::debug!(%error, next = %next.endpoint.host, "asking again elsewhere");
                self.current = index;
                true
            }
            None => false,
        }
    }
}

async fn document(
    http: &Http,
    access: &mut Access,
    tag: &str,
    digest: Option<&Digest>,
) -> Result<RawDocument, RequestError> {
    let name = digest.map_or_else(|| tag.to_owned(), Digest::to_string);
    let mut headers = HeaderMap::new();
    for kind in ACCEPTED {
        headers.append(ACCEPT, HeaderValue::from_static(kind));
    }
    let ask = Ask {
        method: Method::GET,
        url: access.url(&format!("manifests/{name}"))?,
        headers,
        body: None,
    };
    let mut retry = Retry::new(&http.limits);
    loop {
        match document_once(http, access, &ask, digest).await {
            Ok(document) => return Ok(document),
            Err(error) if retry.again(&error).await => {}
            Err(error) => return Err(error),
        }
    }
}

async fn document_once(
    http: &Http,
    access: &mut Access,
    ask: &Ask,
    expected: Option<&Digest>,
) -> Result<RawDocument, RequestError> {
    let response = http.ask(access, ask).await?;
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.map(str::to_owned);
    let host = &access.endpoint.host;
    let limit = usize::try_from(DOCUMENT_LIMIT).unwrap_or(usize::MAX);
    let bytes = http.body(host, response, limit).await?;
    let digest = match expected {
        None => Digest::of(&bytes),
        Some(expected) => {
            let mut hasher = Hasher::new(expected.algorithm());
            hasher.update(&bytes);
            let actual = hasher.finish();
            if actual != *expected {
                let (host, expected) = (host.clone(), expected.clone());
                return Err(RequestError::Mismatch { host, expected, actual });
            }
            actual
        }
    };
    Ok(RawDocument { bytes, digest, content_type })
}

/// A blob on its way to disk.
#[derive(Debug)]
struct Sink {
    file: BufWriter<File>,
    hasher: Hasher,
    digest: Digest,
    received: u64,
}

impl Sink {
    fn new(file: std::fs::File, blob: &Descriptor) -> Self {
        Self {
            file: BufWriter::with_capacity(BUFFER, File::from_std(file)),
            hasher: Hasher::new(blob.digest.algorithm()),
            digest: blob.digest.clone(),
            received: 0,
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes).await?;
        self.hasher.update(bytes);
        self.received += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what came so far.
    async fn restart(&mut self) -> std::io::Result<()> {
        self.file.flush().await?;
        self.file.get_mut().set_len(0).await?;
        self.file.rewind().await?;
        self.hasher = Hasher::new(self.digest.algorithm());
        self.received = 0;
        Ok(())
    }
}

async fn fetch_blob(
    http: &Http,
    access: &mut Access,
    blob: &Descriptor,
    sink: &mut Sink,
) -> Result<(), RequestError> {
    let mut retry = Retry::new(&http.limits);
    loop {
        let before = sink.received;
        let error = match fetch_rest(http, access, blob, sink).await {
            Ok(()) => break,
            Err(error) => error,
        };
        if sink.received >= before + HEADWAY {
            retry.headway();
        }
        if !retry.again(&error).await {
            return Err(error);
        }
    }
    let host = &access.endpoint.host;
    sink.file.flush().await.map_err(|error| RequestError::store(host, error))?;
    let actual = sink.hasher.clone().finish();
    if actual == blob.digest {
        return Ok(());
    }
    Err(RequestError::Mismatch { host: host.clone(), expected: blob.digest.clone(), actual })
}

/// Asks for what is missing and takes what comes.
async fn fetch_rest(
    http: &Http,
    access: &mut Access,
    blob: &Descriptor,
    sink: &mut Sink,
) -> Result<(), RequestError> {
    // A transfer may break after its last byte; there is nothing more to ask for then.
    if sink.received == blob.size && blob.size > 0 {
        return Ok(());
    }
    let mut headers = HeaderMap::new();
    // A range of a compressed transfer would be of other bytes.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if sink.received > 0 {
        let range = format!("bytes={}-", sink.received);
        headers.extend(HeaderValue::from_str(&range).map(|range| (RANGE, range)));
    }
    let ask = Ask {
        method: Method::GET,
        url: access.url(&format!("blobs/{}", blob.digest))?,
        headers,
        body: None,
    };
    let response = http.ask(access, &ask).await;
    let host = access.endpoint.host.clone();
    let stored = |error| RequestError::store(&host, error);
    let response = match response {
        // The server holds fewer bytes than it promised: see what it has, from the start.
        Err(RequestError::Status { status: 416, .. }) if sink.received > 0 => {
            let actual = sink.received;
            sink.restart().await.map_err(stored)?;
            return Err(wrong_size(&host, blob, actual));
        }
        response => response?,
    };
    let continues = response.status() == StatusCode::PARTIAL_CONTENT
        && range_start(&response) == Some(sink.received);
    if !continues && sink.received > 0 {
        sink.restart().await.map_err(stored)?;
    }
    if !continues && response.status() == StatusCode::PARTIAL_CONTENT {
        let what = "a part of a blob that was not asked for".to_owned();
        return Err(RequestError::Answer { host, what });
    }
    let missing = blob.size - sink.received;
    if let Some(length) = response.content_length()
        && length != missing
    {
        return Err(wrong_size(&host, blob, sink.received + length));
    }
    receive(http, response, &host, blob, sink).await
}

async fn receive(
    http: &Http,
    mut response: Response,
    host: &str,
    blob: &Descriptor,
    sink: &mut Sink,
) -> Result<(), RequestError> {
    let is_bounded = response.content_length().is_some();
    loop {
        let chunk = http.within_stall(host, response.chunk()).await?;
        let broken = |source: Option<reqwest::Error>| RequestError::Broken {
            host: host.to_owned(),
            received: sink.received,
            source: source.map(|error| error.without_url().into()),
        };
        match chunk.map_err(|error| broken(Some(error)))? {
            Some(chunk) if sink.received + chunk.len() as u64 > blob.size => {
                let actual = sink.received + chunk.len() as u64;
                return Err(wrong_size(host, blob, actual));
            }
            Some(chunk) => {
                sink.write(&chunk).await.map_err(|error| RequestError::store(host, error))?;
            }
            None if sink.received == blob.size => return Ok(()),
            // An orderly end of too little is what the server has.
            None if is_bounded => return Err(broken(None)),
            None => return Err(wrong_size(host, blob, sink.received)),
        }
    }
}

fn wrong_size(host: &str, blob: &Descriptor, actual: u64) -> RequestError {
    RequestError::Size {
        host: host.to_owned(),
        digest: blob.digest.clone(),
        expected: blob.size,
        actual,
    }
}

/// The first byte of `Content-Range: bytes <first>-<last>/<all>`.
fn range_start(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
