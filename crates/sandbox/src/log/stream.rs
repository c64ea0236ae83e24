//! A log as the standard output of one instance.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::io::AsyncWrite;
use wasmtime_wasi::{
    async_trait,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

use super::{
    Log,
    cri::{Lines, Stream},
    lock,
};

/// Bytes a guest may write at once. A line's head is 40 bytes, so that lines of
/// one byte grow to 640 KiB in the queue.
const PIECE: usize = 16 << 10;

/// One of an instance's two output streams. Clones share the line that was
/// begun; when the last is dropped, that line is ended.
#[derive(Clone, Debug)]
pub(crate) struct LogStream(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    log: Arc<Log>,
    lines: Mutex<Lines>,
}

impl LogStream {
    /// A stream of its own: its lines do not mix with those of other instances.
    pub(crate) fn new(log: Arc<Log>, stream: Stream) -> Self {
        Self(Arc::new(Shared { log, lines: Mutex::new(Lines::new(stream)) }))
    }

    /// Writes without waiting for room.
    pub(crate) fn push(&self, piece: &[u8]) {
        let mut complete = Vec::new();
        lock(&self.0.lines).push(piece, Timestamp::now(), &mut complete);
        self.0.log.append(complete);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut complete = Vec::new();
        lock(&self.lines).finish(Timestamp::now(), &mut complete);
        self.log.append(complete);
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Writer { stream: self.clone(), waiting: None })
    }
}

#[async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {
        self.0.log.wait_for_room().await;
    }
}

#[async_trait]
impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.push(&bytes);
        Ok(())
    }

    /// What is written is on its way; the guest need not wait for the disk.
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.0.log.room().min(PIECE))
    }
}

/// The stream as WASI 0.3 has it.
struct Writer {
    stream: LogStream,
    /// Waits for room.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(context));
                self.waiting = None;
            }
            let log = Arc::clone(&self.stream.0.log);
            let most = log.room().min(PIECE).min(bytes.len());
            if most > 0 || bytes.is_empty() {
                self.stream.push(&bytes[..most]);
                return Poll::Ready(Ok(most));
            }
            self.waiting = Some(Box::pin(async move { log.wait_for_room().await }));
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
