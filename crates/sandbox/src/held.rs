//! A body that keeps something as long as it is there, such as the right to be
//! under way.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Body, Frame, SizeHint};

/// See the module.
pub(crate) struct Held<B, T> {
    body: B,
    _kept: T,
}

impl<B, T> Held<B, T> {
    pub(crate) fn new(body: B, kept: T) -> Self {
        Self { body, _kept: kept }
    }
}

impl<B: Body + Unpin, T: Unpin> Body for Held<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        // hyper does not say it of the body of a request that is answered already (1.12,
        // `proto/h1/dispatch.rs`: it goes on to the next head first).
        if self.body.is_end_stream() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
