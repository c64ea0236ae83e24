//! An answer's body, as it comes: not slower than the guest puts up with.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use wasmtime_wasi_http::Error as HttpError;

use super::{UnderWay, error};

/// A year; sums with it fit whatever the clock says.
pub(super) const LONGEST: Duration = Duration::from_hours(24 * 365);

pub(super) struct Timed {
    body: Incoming,
    between: Duration,
    end: Pin<Box<Sleep>>,
    _under_way: Arc<UnderWay>,
}

impl Timed {
    pub(super) fn new(body: Incoming, between: Duration, under_way: Arc<UnderWay>) -> Self {
        let between = between.min(LONGEST);
        Self { body, between, end: Box::pin(sleep(between)), _under_way: under_way }
    }
}

impl Body for Timed {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(frame) => {
                let end = Instant::now() + self.between;
                self.end.as_mut().reset(end);
                Poll::Ready(frame.map(|frame| frame.map_err(|error| error::of_hyper(&error))))
            }
            Poll::Pending => {
                ready!(self.end.as_mut().poll(context));
                Poll::Ready(Some(Err(HttpError::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
