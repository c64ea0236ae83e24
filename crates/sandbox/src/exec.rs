//! A container's program, run once more beside it, with streams of its own.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use krustlet_protocol::ExecOutcome;
use tokio::{io::AsyncWrite, sync::watch, time::timeout};
use wasmtime_wasi::{
    async_trait,
    cli::{AsyncStdinStream, IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError, StreamResult},
};

use crate::{
    container::Container,
    exit::{Ending, KILLED},
    guests::{out_of_time, stopped},
    news::RequestId,
    pipe::{Input, Pipe},
    run::{Session, run},
    ticker::{Metered, Ticker},
};

/// Bytes of output that may wait for their reader.
const BUFFER: usize = 64 << 10;

/// How long an ended program's last output may wait for its reader.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Exec {
    pub(crate) request: RequestId,
    pub(crate) container: Arc<Container>,
    pub(crate) args: Vec<String>,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Changes, or is dropped, when nobody waits for the end any more.
    pub(crate) wanted: watch::Receiver<()>,
}

impl Exec {
    /// Runs to the end of the program, of its container, or of whoever asked:
    /// the agent, or the client behind it, with whom the pipes close.
    pub(crate) async fn run(self, ticker: Arc<Ticker>) -> ExecOutcome {
        let Self { container, args, mut wanted, .. } = self;
        let streams = Pipe::open(self.stdin)
            .and_then(|stdin| Ok((stdin, Pipe::open(self.stdout)?, Pipe::open(self.stderr)?)));
        let (stdin, stdout, stderr) = match streams {
            Ok((stdin, stdout, stderr)) => (stdin, Output::new(stdout), Output::new(stderr)),
            Err(error) => {
                let ending = Ending::not_started(&format!("cannot use the streams: {error}"));
                return ExecOutcome { exit_code: ending.code, message: ending.message };
            }
        };
        let session = Session {
            args,
            stdin: Some(Box::new(AsyncStdinStream::new(Input(stdin)))),
            stdout: Box::new(stdout.clone()),
            stderr: Box::new(stderr.clone()),
            listens: false,
        };
        let guest = run(&container, session, || {});
        let guest = Metered::new(guest, ticker, Arc::clone(&container.usage));
        let ending = tokio::select! {
            biased;
            // Each may be dropped: the guest's end is what ends the exec.
            _ = stopped(&container) => Ending::stopped(KILLED),
            _ = wanted.changed() => Ending::stopped(KILLED),
            () = async { tokio::join!(stdout.unread(), stderr.unread()); } => Ending::stopped(KILLED),
            ending = guest => ending,
        };
        let last_words = async {
            stdout.drained().await;
            stderr.drained().await;
        };
        tokio::select! {
            _ = timeout(LAST_WORDS, last_words) => {}
            () = out_of_time(&container) => {}
        }
        ExecOutcome { exit_code: ending.code, message: ending.message }
    }
}

/// The writing side. Clones share one buffer.
#[derive(Clone, Debug)]
struct Output(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pipe: Pipe,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<u8>,
    /// Nobody reads any more.
    closed: bool,
}

impl Output {
    fn new(pipe: Pipe) -> Self {
        Self(Arc::new(Shared { pipe, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what the reader takes; ready when nothing waits any more.
    fn poll_drain(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        while !state.waiting.is_empty() {
            let written = {
                let (first, _) = state.waiting.as_slices();
                ready!(self.0.pipe.poll_write(context, first))
            };
            match written {
                Ok(written) if written > 0 => drop(state.waiting.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nobody reads any more.
                Ok(_) | Err(_) => state.close(),
            }
        }
        Poll::Ready(())
    }

    /// Waits until nobody reads it any more.
    async fn unread(&self) {
        self.0.pipe.unread().await;
    }

    async fn drained(&self) {
        std::future::poll_fn(|context| self.poll_drain(context)).await;
    }
}

impl State {
    fn close(&mut self) {
        self.closed = true;
        self.waiting.clear();
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        self.drained().await;
    }
}

#[async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.state().waiting.extend(&bytes);
        // What can go now goes now; the rest when the guest asks again.
        let _ = self.poll_drain(&mut Context::from_waker(std::task::Waker::noop()));
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let state = self.state();
        if state.closed {
            return Err(StreamError::Closed);
        }
        Ok(if state.waiting.is_empty() { BUFFER } else { 0 })
    }
}

/// Only WASI 0.3 uses this side.
impl AsyncWrite for Output {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(context));
        self.0.pipe.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(context).map(Ok)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(context).map(Ok)
    }
}
