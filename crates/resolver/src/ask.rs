//! Asks servers: each for a while, one after the other, and all of them again.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use simple_dns::RCODE;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};

use crate::{
    message::{self, Kind, Verdict},
    name::Name,
    network::Network,
};

/// The largest datagram that a server may send to one who did not say that it
/// takes larger ones (RFC 1035, 2.3.4). Longer answers come by a connection.
const DATAGRAM: usize = 512;

/// Datagrams that are no answer before a server is given up: someone floods.
const STRAYS: usize = 64;

/// What the servers know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// As [`Verdict::Addresses`].
    Addresses(Vec<IpAddr>, Duration),
    /// As [`Verdict::NoName`].
    NoName(Duration),
}

/// Why no server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// At least one said that it could not; it may know other names.
    Failed(RCODE),
    /// None was heard of.
    Silence,
}

/// Whom to ask, and how patiently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Servers<'a> {
    pub(crate) all: &'a [SocketAddr],
    pub(crate) timeout: Duration,
    pub(crate) attempts: u8,
}

/// Asks until one answers.
pub(crate) async fn ask(
    network: &dyn Network,
    servers: Servers<'_>,
    name: &Name,
    kind: Kind,
) -> Result<Answer, Failure> {
    let mut failure = Failure::Silence;
    for _ in 0..servers.attempts.max(1) {
        for server in servers.all {
            let end = Instant::now() + servers.timeout;
            let question = Question { network, server: *server, name, kind };
            match timeout_at(end, question.answer()).await {
                Ok(Ok(Verdict::Addresses(addresses, holds))) => {
                    return Ok(Answer::Addresses(addresses, holds));
                }
                Ok(Ok(Verdict::NoName(holds))) => return Ok(Answer::NoName(holds)),
                Ok(Ok(Verdict::Failed(code))) => failure = Failure::Failed(code),
                Ok(Ok(Verdict::Senseless | Verdict::Truncated)) => {
                    failure = Failure::Failed(RCODE::ServerFailure);
                }
                // Not reached, or not heard of in time. Another may be.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        // Who said that it failed will say so again: the next attempt is for
        // those that were not heard of.
        if let Failure::Failed(_) = failure {
            break;
        }
    }
    Err(failure)
}

struct Question<'a> {
    network: &'a dyn Network,
    server: SocketAddr,
    name: &'a Name,
    kind: Kind,
}

impl Question<'_> {
    async fn answer(&self) -> io::Result<Verdict> {
        match self.by_datagram().await? {
            Verdict::Truncated => self.by_stream().await,
            verdict => Ok(verdict),
        }
    }

    /// The question with an id that nobody can guess.
    fn message(&self) -> io::Result<(u16, Vec<u8>)> {
        let mut id = [0; 2];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        let id = u16::from_ne_bytes(id);
        let message = message::question(id, self.name, self.kind);
        Ok((id, message.ok_or(io::ErrorKind::InvalidInput)?))
    }

    fn verdict(&self, bytes: &[u8], id: u16) -> Option<Verdict> {
        message::verdict(bytes, id, self.name, self.kind)
    }

    async fn by_datagram(&self) -> io::Result<Verdict> {
        let (id, message) = self.message()?;
        let socket = self.network.datagrams(self.server).await?;
        socket.send(&message).await?;
        let mut buffer = [0; DATAGRAM];
        for _ in 0..STRAYS {
            let length = socket.receive(&mut buffer).await?;
            let bytes = buffer.get(..length).unwrap_or(&buffer);
            if let Some(verdict) = self.verdict(bytes, id) {
                return Ok(verdict);
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    async fn by_stream(&self) -> io::Result<Verdict> {
        let (id, message) = self.message()?;
        let mut stream = self.network.stream(self.server).await?;
        // One write, so that the length does not travel alone.
        let length = u16::try_from(message.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &message].concat();
        stream.write_all(&framed).await?;
        stream.flush().await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        self.verdict(&answer, id).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}
