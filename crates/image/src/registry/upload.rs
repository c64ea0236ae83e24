//! Sending blobs and manifests to a registry.
//!
//! A blob that the registry has is not sent again. A broken transfer begins anew:
//! sending part by part is something registries disagree about.

use std::path::Path;

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Body, Method};
use tokio_util::io::ReaderStream;

use super::error::RequestError;
use super::guard;
use super::http::{Access, Ask, Http};
use super::retry::Retry;
use crate::digest::Digest;
use crate::reference::Reference;

/// Bytes read from the file at a time.
const BUFFER: usize = 256 << 10;

/// Where a blob's bytes come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BlobSource<'a> {
    Bytes(&'a [u8]),
    File { path: &'a Path, size: u64 },
}

/// Makes sure that the registry has a blob.
pub(crate) async fn blob(
    http: &Http,
    access: &mut Access,
    digest: &Digest,
    source: BlobSource<'_>,
) -> Result<(), RequestError> {
    let mut retry = Retry::new(&http.limits);
    loop {
        let Err(error) = blob_once(http, access, digest, source).await else { return Ok(()) };
        if !retry.again(&error).await {
            return Err(error);
        }
    }
}

async fn blob_once(
    http: &Http,
    access: &mut Access,
    digest: &Digest,
    source: BlobSource<'_>,
) -> Result<(), RequestError> {
    let url = access.url(&format!("blobs/{digest}"))?;
    let head = Ask { method: Method::HEAD, url, headers: HeaderMap::new(), body: None };
    match http.ask(access, &head).await {
        Ok(_) => return Ok(()),
        Err(RequestError::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }

    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    let url = access.url("blobs/uploads/")?;
    let begin = Ask { method: Method::POST, url, headers, body: None };
    let answer = http.ask(access, &begin).await?;
    let host = access.endpoint.host.clone();
    let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let mut url = guard::next_hop(&begin.url, location, 0)
        .map_err(|source| RequestError::Guarded { host: host.clone(), source })?;
    url.query_pairs_mut().append_pair("digest", &digest.to_string());

    let (body, size) = match source {
        BlobSource::Bytes(bytes) => (Body::from(bytes.to_vec()), bytes.len() as u64),
        BlobSource::File { path, size } => {
            let file = tokio::fs::File::open(path);
            let file = file.await.map_err(|error| RequestError::store(&host, error))?;
            (Body::wrap_stream(ReaderStream::with_capacity(file, BUFFER)), size)
        }
    };
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    let put = Ask { method: Method::PUT, url, headers, body: None };
    http.send(access, put, body, http.limits.total).await.map(drop)
}

/// Writes a manifest under the reference's tag, or its digest if it has no tag.
pub(crate) async fn manifest(
    http: &Http,
    access: &mut Access,
    reference: &Reference,
    media_type: &'static str,
    bytes: &[u8],
) -> Result<(), RequestError> {
    let name = reference.tag().map_or_else(|| Digest::of(bytes).to_string(), str::to_owned);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    let url = access.url(&format!("manifests/{name}"))?;
    let ask = Ask { method: Method::PUT, url, headers, body: Some(bytes.to_vec()) };
    let mut retry = Retry::new(&http.limits);
    loop {
        let Err(error) = http.ask(access, &ask).await else { return Ok(()) };
        if !retry.again(&error).await {
            return Err(error);
        }
    }
}
