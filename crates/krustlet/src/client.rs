//! The command line's side of the agent's local socket.

use std::{io, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixStream,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    output,
    paths::{Root, RootLock},
};

/// The largest answer that is read whole, in bytes: ten thousand pods of a few
/// KiB each.
pub(crate) const MAX_ANSWER: usize = 128 << 20;

/// How long an agent that does not answer is waited for: more than the ten
/// seconds that its slowest task has to end.
const SETTLE: Duration = Duration::from_secs(15);

/// How often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Speaks to the agent of one root directory.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    socket: PathBuf,
}

/// What the agent answered, with its body still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Incoming,
    /// Drives the connection for as long as the answer is kept.
    _connection: JoinSet<()>,
}

impl Local {
    /// Speaks to the agent behind this socket.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Whether an agent answers.
    pub(crate) async fn is_there(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    /// The lock of the root directory, or none if an agent answers there. One
    /// that holds it and does not answer has just begun or is about to end, as
    /// after `krustlet stop` of its last pod, or it is another command about
    /// images: that is waited for.
    ///
    /// # Errors
    ///
    /// If it neither answers nor ends, or the lock cannot be looked at.
    pub(crate) async fn or_lock(&self, root: &Root) -> Result<Option<RootLock>> {
        let end = Instant::now() + SETTLE;
        loop {
            if self.is_there().await {
                return Ok(None);
            }
            if let Some(lock) = root.lock()? {
                return Ok(Some(lock));
            }
            if Instant::now() >= end {
                bail!(
                    "another krustlet has the directory {} and has not answered for {}: wait for \
                     it, end it, or name another directory with --root-dir",
                    root.path().display(),
                    output::took(SETTLE),
                );
            }
            sleep(LOOK).await;
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// If no agent is there, or with the agent's own words if it refuses.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: UnsyncBoxBody<Bytes, io::Error>,
    ) -> Result<Answer> {
        let stream = UnixStream::connect(&self.socket).await.with_context(|| {
            format!(
                "no agent answers at {}: start one with `krustlet run` or `krustlet node`, \
                 or name its directory with --root-dir",
                self.socket.display()
            )
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut running = JoinSet::new();
        running.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the local connection ended early");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "krustlet")
            .header("content-type", "application/json")
            .body(body)?;
        let response = sender.send_request(request).await.context("the agent does not answer")?;
        let status = response.status();
        let mut answer = Answer { body: response.into_body(), _connection: running };
        if status.is_success() {
            return Ok(answer);
        }
        let words = String::from_utf8_lossy(&answer.whole().await?).into_owned();
        if status == StatusCode::NOT_FOUND && words.is_empty() {
            bail!("the agent is of another version: it does not know {path}");
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Err(Ending(words).into());
        }
        bail!("{words}")
    }

    /// Asks for a JSON object.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let mut answer = self.send(Method::GET, path, empty()).await?;
        read(&answer.whole().await?)
    }

    /// Sends a JSON object, waits until it is carried out, and gives the answer.
    pub(crate) async fn post(&self, path: &str, body: &impl Serialize) -> Result<Vec<u8>> {
        let body =
            Full::from(serde_json::to_vec(body)?).map_err(|never| match never {}).boxed_unsync();
        self.send(Method::POST, path, body).await?.whole().await
    }
}

impl Answer {
    /// The next piece of the body; None at its end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(bytes) = frame.context("the agent went away")?.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// The whole body.
    pub(crate) async fn whole(&mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = self.piece().await? {
            if all.len() + piece.len() > MAX_ANSWER {
                bail!("the agent's answer is longer than {MAX_ANSWER} bytes");
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}

/// Reads what an agent answered.
///
/// # Errors
///
/// If it is not what this version of the command expects.
pub(crate) fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T> {
    serde_json::from_slice(answer).context(
        "the agent's answer makes no sense: it may be of another version than this command; use \
         the krustlet that it was started with",
    )
}

/// What an agent answers that takes nothing any more because it is about to end.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Ending(String);

/// Whether the agent is about to end, so that the next one may be asked.
pub(crate) fn is_ending(error: &anyhow::Error) -> bool {
    error.is::<Ending>()
}

/// A request without a body.
pub(crate) fn empty() -> UnsyncBoxBody<Bytes, io::Error> {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

/// A path of the local API; names are escaped.
pub(crate) fn path(parts: &[&str]) -> String {
    let mut path = String::from("/v1");
    for part in parts {
        path.push('/');
        path.extend(url::form_urlencoded::byte_serialize(part.as_bytes()));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_kind_says_what_may_be_wrong() {
        let error = read::<Vec<u8>>(br#"{"pods":[]}"#).unwrap_err().to_string();
        assert!(error.contains("use the krustlet that it was started with"), "{error}");
        assert_eq!(read::<Vec<u8>>(b"[1]").unwrap(), [1]);
    }
}
