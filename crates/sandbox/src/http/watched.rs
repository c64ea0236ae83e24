//! A body that tells whether it was taken whole.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use wasmtime_wasi_http::Error as HttpError;

/// Who is told.
pub(super) trait Told {
    /// The body is let go.
    fn tell(self, is_whole: bool);
}

/// A guest that wants to know whether its answer was sent.
impl Told for oneshot::Sender<Result<(), HttpError>> {
    fn tell(self, is_whole: bool) {
        let how = if is_whole { Ok(()) } else { Err(HttpError::ConnectionTerminated) };
        // It may have ended.
        let _ = self.send(how);
    }
}

/// Set when a request's body was left unread.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl Told for Unread {
    fn tell(self, is_whole: bool) {
        self.0.fetch_or(!is_whole, Relaxed);
    }
}

/// See the module.
pub(super) struct Watched<B: Body, T: Told> {
    body: B,
    is_over: bool,
    told: Option<T>,
}

impl<B: Body, T: Told> Watched<B, T> {
    pub(super) fn new(body: B, told: T) -> Self {
        Self { body, is_over: false, told: Some(told) }
    }
}

impl<B: Body + Unpin, T: Told + Unpin> Body for Watched<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.is_over |= frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Body, T: Told> Drop for Watched<B, T> {
    fn drop(&mut self) {
        // Who has been told the length does not ask for the end.
        let is_whole = self.is_over || self.body.is_end_stream();
        if let Some(told) = self.told.take() {
            told.tell(is_whole);
        }
    }
}
