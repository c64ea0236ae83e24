//! Streams of a program run in a container, carried in one HTTP exchange: the
//! request's body is its stdin, the response's body is made of frames.
//!
//! A frame is a channel (1 byte), a length (4 bytes, big endian) and that many
//! bytes. Channels 1 and 2 are stdout and stderr; channel 3 comes once, last,
//! and holds an [`Outcome`] as JSON.

use std::{io, os::fd::OwnedFd, pin::Pin};

use axum::body::{Body, BodyDataStream};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, future::BoxFuture, stream};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
};

use crate::queries::{ExecFailure, ExecStreams};

/// The channel of [`Outcome`].
pub const OUTCOME: u8 = 3;

/// Bytes read from a program at once.
const CHUNK: usize = 16 << 10;

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It ran to its end.
    ExitCode(i32),
    /// It could not be run, and why.
    Error(String),
}

/// Our ends of a program's streams.
struct Ends {
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

/// Pipes for a program: its ends first, then ours.
fn pipes() -> io::Result<(ExecStreams, Ends)> {
    let (stdin, our_stdin) = one_pipe()?;
    let (our_stdout, stdout) = one_pipe()?;
    let (our_stderr, stderr) = one_pipe()?;
    let ends = Ends {
        stdin: pipe::Sender::from_owned_fd(our_stdin)?,
        stdout: pipe::Receiver::from_owned_fd(our_stdout)?,
        stderr: pipe::Receiver::from_owned_fd(our_stderr)?,
    };
    Ok((ExecStreams { stdin, stdout, stderr }, ends))
}

fn one_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// Runs a program and gives the response's body. A client that goes away closes
/// the pipes, and the sandbox ends a program whose output nobody reads.
///
/// # Errors
///
/// What the system says when no pipe can be made.
pub(crate) fn run(
    stdin: Body,
    start: impl FnOnce(ExecStreams) -> BoxFuture<'static, Result<i32, ExecFailure>>,
) -> io::Result<Body> {
    let (theirs, ours) = pipes()?;
    let exchange = Exchange {
        stdin: Some(Box::pin(feed(stdin.into_data_stream(), ours.stdin))),
        stdout: Some(ours.stdout),
        stderr: Some(ours.stderr),
        program: Some(start(theirs)),
        outcome: None,
    };
    let frames = stream::unfold(exchange, |mut exchange| async move {
        exchange.next().await.map(|frame| (Ok::<_, io::Error>(frame), exchange))
    });
    Ok(Body::from_stream(frames))
}

/// A program that runs, between two frames.
struct Exchange {
    stdin: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    program: Option<BoxFuture<'static, Result<i32, ExecFailure>>>,
    outcome: Option<Outcome>,
}

impl Exchange {
    /// The next frame; None after the outcome.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let drained = self.stdout.is_none() && self.stderr.is_none();
            if drained && self.program.is_none() {
                let outcome = self.outcome.take()?;
                // An enum of a number and a text always has a JSON form.
                return serde_json::to_vec(&outcome).ok().map(|json| frame(OUTCOME, &json));
            }
            tokio::select! {
                // Reads of a pipe are cancel-safe, the others are polled by reference.
                result = poll(&mut self.program) => {
                    self.program = None;
                    self.outcome = Some(match result {
                        Ok(code) => Outcome::ExitCode(code),
                        Err(failure) => Outcome::Error(failure.to_string()),
                    });
                }
                piece = read(&mut self.stdout) => match piece {
                    Some(bytes) => return Some(frame(1, &bytes)),
                    None => self.stdout = None,
                },
                piece = read(&mut self.stderr) => match piece {
                    Some(bytes) => return Some(frame(2, &bytes)),
                    None => self.stderr = None,
                },
                () = poll(&mut self.stdin) => self.stdin = None,
            }
        }
    }
}

/// Waits for a future that may be over; for ever if it is.
async fn poll<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Some bytes, or None at the end.
async fn read(pipe: &mut Option<pipe::Receiver>) -> Option<Bytes> {
    let Some(pipe) = pipe else {
        return std::future::pending().await;
    };
    let mut bytes = BytesMut::with_capacity(CHUNK);
    match pipe.read_buf(&mut bytes).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(bytes.freeze()),
    }
}

/// Copies the request's body; dropping the pipe at the end is the program's
/// end of input, and so is a program that no longer reads.
async fn feed(mut body: BodyDataStream, mut pipe: pipe::Sender) {
    while let Some(Ok(bytes)) = body.next().await {
        if pipe.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

fn frame(channel: u8, bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(bytes.len() + 5);
    frame.put_u8(channel);
    #[expect(clippy::cast_possible_truncation, reason = "a piece is at most CHUNK bytes")]
    frame.put_u32(bytes.len() as u32);
    frame.put_slice(bytes);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use futures::FutureExt;

    use super::*;

    /// Stands in for a sandbox: copies its input to both streams, doubled on
    /// stderr, in a thread as blocking programs do.
    fn echo(streams: ExecStreams) -> BoxFuture<'static, Result<i32, ExecFailure>> {
        let work = tokio::task::spawn_blocking(move || {
            let (mut stdin, mut stdout, mut stderr) = (
                std::fs::File::from(streams.stdin),
                std::fs::File::from(streams.stdout),
                std::fs::File::from(streams.stderr),
            );
            let mut all = Vec::new();
            stdin.read_to_end(&mut all).unwrap();
            stdout.write_all(&all).unwrap();
            stderr.write_all(&all).unwrap();
            7
        });
        async move { Ok(work.await.unwrap()) }.boxed()
    }

    async fn collect(body: Body) -> Vec<(u8, Vec<u8>)> {
        let mut bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let mut frames: Vec<(u8, Vec<u8>)> = Vec::new();
        while !bytes.is_empty() {
            let head = bytes.split_to(5);
            let size = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
            let piece = bytes.split_to(size);
            match frames.iter_mut().find(|(channel, _)| *channel == head[0]) {
                Some((_, all)) => all.extend_from_slice(&piece),
                None => frames.push((head[0], piece.to_vec())),
            }
        }
        frames
    }

    #[tokio::test]
    async fn streams_and_exit_code_arrive_whole_and_the_outcome_last() {
        let input = "x".repeat(100_000);
        let frames = collect(run(Body::from(input.clone()), echo).unwrap()).await;
        let text = |wanted| frames.iter().find(|(c, _)| *c == wanted).map(|(_, b)| b.as_slice());
        assert_eq!(text(1), Some(input.as_bytes()));
        assert_eq!(text(2), Some(input.as_bytes()));
        let outcome = &frames.last().unwrap().1;
        assert_eq!(serde_json::from_slice::<Outcome>(outcome).unwrap(), Outcome::ExitCode(7));
    }

    #[tokio::test]
    async fn a_program_that_cannot_run_says_why() {
        let body =
            run(Body::empty(), |_| async { Err(ExecFailure::NotRunning("web".into())) }.boxed());
        let frames = collect(body.unwrap()).await;
        let outcome: Outcome = serde_json::from_slice(&frames[0].1).unwrap();
        assert_eq!(outcome, Outcome::Error("container web is not running".into()));
    }
}
