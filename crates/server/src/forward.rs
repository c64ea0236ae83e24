//! A connection to a port of a pod, carried in one HTTP exchange: the request's
//! body is what is sent to the pod, the response's body is what the pod sends.
//!
//! The pod's end of its direction ends the exchange, as containerd's
//! port-forward has it: a response that is over leaves HTTP/1.1 no way to go on
//! with the request.

use std::{io, os::fd::OwnedFd, time::Duration};

use axum::body::{Body, BodyDataStream};
use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, stream};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    time::sleep,
};

use crate::queries::{ConnectFailure, ConnectStreams};

/// Bytes read from a pod at once.
const CHUNK: usize = 16 << 10;

/// How long a connection may rest; kubelet's `streamingConnectionIdleTimeout`.
const IDLE: Duration = Duration::from_hours(4);

/// Connects, and gives the response's body. A client that goes away closes the
/// pipes, and with them the connection.
///
/// # Errors
///
/// What [`PodQueries::connect`](crate::PodQueries::connect) says; what the system
/// says when no pipe can be made.
pub(crate) async fn connect<F>(
    sent: Body,
    start: impl FnOnce(ConnectStreams) -> F,
) -> Result<Body, ConnectFailure>
where
    F: Future<Output = Result<(), ConnectFailure>>,
{
    let no_pipe = |error| ConnectFailure::Failed(format!("cannot make a pipe: {error}"));
    let (streams, to_pod, from_pod) = pipes().map_err(no_pipe)?;
    start(streams).await?;
    let sending = Sending { body: sent.into_data_stream(), to_pod, piece: Bytes::new() };
    let exchange = Exchange { sending: Some(sending), from_pod };
    let pieces = stream::unfold(exchange, |mut exchange| async move {
        exchange.next().await.map(|piece| (Ok::<_, io::Error>(piece), exchange))
    });
    Ok(Body::from_stream(pieces))
}

/// The pod's ends, then ours.
fn pipes() -> io::Result<(ConnectStreams, pipe::Sender, pipe::Receiver)> {
    let (input, our_input) = one_pipe()?;
    let (our_output, output) = one_pipe()?;
    let to_pod = pipe::Sender::from_owned_fd(our_input)?;
    let from_pod = pipe::Receiver::from_owned_fd(our_output)?;
    Ok((ConnectStreams { input, output }, to_pod, from_pod))
}

fn one_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// A connection, between two pieces.
struct Exchange {
    /// Until the client has sent all, or the pod takes no more.
    sending: Option<Sending>,
    from_pod: pipe::Receiver,
}

struct Sending {
    body: BodyDataStream,
    /// Dropped, it is the end of what is sent.
    to_pod: pipe::Sender,
    piece: Bytes,
}

impl Exchange {
    /// The next piece from the pod; None at the end of all.
    async fn next(&mut self) -> Option<Bytes> {
        let mut piece = BytesMut::with_capacity(CHUNK);
        loop {
            tokio::select! {
                biased;
                // All are cancel-safe: a step of sending waits at one place only.
                read = self.from_pod.read_buf(&mut piece) => return match read {
                    Ok(0) | Err(_) => None,
                    Ok(_) => Some(piece.freeze()),
                },
                goes_on = step(&mut self.sending) => if !goes_on {
                    self.sending = None;
                },
                () = sleep(IDLE) => return None,
            }
        }
    }
}

/// Takes a piece of what is to be sent, or sends some of it. False when that is
/// over; for ever under way if it was before.
async fn step(sending: &mut Option<Sending>) -> bool {
    let Some(Sending { body, to_pod, piece }) = sending else {
        return std::future::pending().await;
    };
    if piece.is_empty() {
        match body.next().await {
            Some(Ok(next)) => *piece = next,
            // A client that broke off has sent all that it will.
            Some(Err(_)) | None => return false,
        }
    } else {
        match to_pod.write(piece).await {
            Ok(written) => piece.advance(written),
            // Nobody reads it any more.
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
    };

    use tokio::sync::mpsc;

    use super::*;

    /// The test's side of an exchange: a pod that is two files.
    async fn begin(sent: Body) -> (Body, File, File) {
        let mut ends = None;
        let body = connect(sent, |ConnectStreams { input, output }| {
            ends = Some((File::from(input), File::from(output)));
            async { Ok(()) }
        });
        let body = body.await.unwrap();
        let (input, output) = ends.unwrap();
        (body, input, output)
    }

    async fn all(body: Body) -> Vec<u8> {
        axum::body::to_bytes(body, 64 << 20).await.unwrap().into()
    }

    #[tokio::test]
    async fn much_goes_both_ways_at_once_and_each_end_is_told() {
        const SIZE: usize = 8 << 20;
        let (body, mut input, mut output) = begin(Body::from(vec![7; SIZE])).await;
        let pod = tokio::task::spawn_blocking(move || {
            output.write_all(&vec![8; SIZE]).unwrap();
            let mut read = Vec::new();
            // To the end of what was sent, which comes while this side is open.
            input.read_to_end(&mut read).unwrap();
            assert!(read == vec![7; SIZE]);
            output.write_all(b"after the end").unwrap();
        });
        let received = all(body).await;
        assert!(received.ends_with(b"after the end") && received.len() == SIZE + 13);
        pod.await.unwrap();
    }

    #[tokio::test]
    async fn a_pod_that_takes_no_more_is_still_heard() {
        let (pieces, taken) = mpsc::channel::<io::Result<Bytes>>(1);
        let sent = stream::unfold(taken, async |mut taken| Some((taken.recv().await?, taken)));
        let (body, input, mut output) = begin(Body::from_stream(sent)).await;
        drop(input);
        let pod = async {
            pieces.send(Ok(Bytes::from_static(b"lost"))).await.unwrap();
            // No more is asked for.
            pieces.closed().await;
            output.write_all(b"heard").unwrap();
            drop(output);
        };
        assert_eq!(tokio::join!(all(body), pod).0, b"heard");
    }

    #[tokio::test]
    async fn a_client_that_goes_away_closes_both() {
        let (body, mut input, mut output) =
            begin(Body::from_stream(stream::pending::<io::Result<Bytes>>())).await;
        drop(body);
        assert_eq!(input.read(&mut [0]).unwrap(), 0);
        assert_eq!(output.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_rests_too_long_is_ended() {
        let idle = stream::pending::<io::Result<Bytes>>();
        let (body, _input, _output) = begin(Body::from_stream(idle)).await;
        assert_eq!(all(body).await, b"");
    }
}
