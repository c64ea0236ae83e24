//! The streams of a connection.
//!
//! What a guest has written is taken over at once: as much as fits goes to the
//! connection, the rest waits here, and the guest may write on when it is gone.

use std::{
    future::poll_fn,
    io,
    net::Shutdown,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use wasmtime_wasi::{
    async_trait,
    p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult},
};

use crate::net::{Connection, NetError, Stack};

/// Bytes of one read or write.
const MOST: usize = 64 << 10;

/// A connection, as its socket and its two streams share it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) connection: Arc<Connection>,
    stack: Stack,
    /// The guest reads no more.
    read: AtomicBool,
    out: Mutex<Out>,
}

#[derive(Debug, Default)]
struct Out {
    waiting: Bytes,
    /// Nothing more will be written; the end is sent after what waits.
    ends: bool,
    ended: bool,
    failed: Option<NetError>,
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Shared {
    pub(super) fn new(connection: Connection, stack: Stack) -> Arc<Self> {
        let connection = Arc::new(connection);
        let (read, out) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Self { connection, stack, read, out })
    }

    pub(super) fn streams(self: &Arc<Self>) -> (Input, Output) {
        (Input(Arc::clone(self)), Output(Arc::clone(self)))
    }

    pub(super) fn shutdown(&self, how: Shutdown) {
        if matches!(how, Shutdown::Read | Shutdown::Both) && !self.read.swap(true, Relaxed) {
            self.connection.shutdown(Shutdown::Read);
        }
        if matches!(how, Shutdown::Write | Shutdown::Both) {
            self.out().ends = true;
            let _ = self.poll_drained(&mut noop());
        }
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what waits; ready when nothing does.
    fn poll_drained(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut out = self.out();
        while !out.waiting.is_empty() {
            match self.connection.try_write(&out.waiting) {
                Ok(written) => drop(out.waiting.split_to(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.connection.poll_write_ready(context));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    out.waiting.clear();
                    out.failed = Some(error.into());
                }
            }
        }
        if out.ends && !out.ended {
            out.ended = true;
            self.connection.shutdown(Shutdown::Write);
        }
        Poll::Ready(())
    }
}

impl Drop for Shared {
    /// What a guest has written is sent also when the guest is gone.
    fn drop(&mut self) {
        let out = self.out.get_mut().unwrap_or_else(PoisonError::into_inner);
        let waiting = std::mem::take(&mut out.waiting);
        if !waiting.is_empty() {
            self.stack.linger(Arc::clone(&self.connection), waiting);
        }
    }
}

/// What comes in. Dropping it is to read no more.
#[derive(Debug)]
pub(super) struct Input(Arc<Shared>);

impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.0.read.load(Relaxed) {
            return Err(StreamError::Closed);
        }
        if size == 0 {
            return Ok(Bytes::new());
        }
        let mut buffer = BytesMut::zeroed(size.min(MOST));
        match self.0.connection.try_read(&mut buffer) {
            Ok(0) => {
                self.0.read.store(true, Relaxed);
                Err(StreamError::Closed)
            }
            Ok(read) => {
                buffer.truncate(read);
                Ok(buffer.freeze())
            }
            Err(error) if is_early(&error) => Ok(Bytes::new()),
            Err(error) => {
                self.0.read.store(true, Relaxed);
                Err(failed(error.into()))
            }
        }
    }
}

fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn failed(error: NetError) -> StreamError {
    match error {
        NetError::ConnectionBroken => StreamError::Closed,
        error => StreamError::LastOperationFailed(error.into()),
    }
}

#[async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        if !self.0.read.load(Relaxed) {
            poll_fn(|context| self.0.connection.poll_read_ready(context)).await;
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.0.shutdown(Shutdown::Read);
    }
}

/// What goes out. Dropping it ends the direction, after what waits.
#[derive(Debug)]
pub(super) struct Output(Arc<Shared>);

#[async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut out = self.0.out();
        if let Some(error) = out.failed {
            return Err(failed(error));
        }
        if out.ends {
            return Err(StreamError::Closed);
        }
        if !out.waiting.is_empty() || bytes.len() > MOST {
            return Err(StreamError::trap("more was written than was permitted"));
        }
        out.waiting = bytes;
        drop(out);
        let _ = self.0.poll_drained(&mut noop());
        self.0.out().failed.map_or(Ok(()), |error| Err(failed(error)))
    }

    fn flush(&mut self) -> StreamResult<()> {
        // What is written goes out as soon as it can.
        self.0.out().failed.map_or(Ok(()), |error| Err(failed(error)))
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let drained = self.0.poll_drained(&mut noop());
        let out = self.0.out();
        if let Some(error) = out.failed {
            return Err(failed(error));
        }
        if out.ends {
            return Err(StreamError::Closed);
        }
        Ok(if drained.is_ready() { MOST } else { 0 })
    }

    async fn cancel(&mut self) {
        self.ready().await;
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        poll_fn(|context| {
            ready!(self.0.poll_drained(context));
            let over = {
                let out = self.0.out();
                out.ends || out.failed.is_some()
            };
            if over { Poll::Ready(()) } else { self.0.connection.poll_write_ready(context) }
        })
        .await;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.0.shutdown(Shutdown::Write);
    }
}
