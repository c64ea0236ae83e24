//! A request that may be sent a second time.
//!
//! ```text
//! head, body ──lent──▶ client ──lost──▶ was something of the body taken? ──no──▶ sent again
//! ```
//!
//! Its body is lent to the client: what that has taken is gone, but as long as it is
//! nothing the body can be had back. When the rest allows it is a rule of Go's,
//! `shouldRetryRequest` and `isReplayable` in `net/http/transport.go`.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Method, Request, request::Parts};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

use super::error::Lost;

/// Methods that change nothing at the server, so that nobody minds to hear them
/// twice.
const SAFE: [Method; 4] = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE];

/// By these the server knows a request that it has heard before.
const KEYS: [&str; 2] = ["idempotency-key", "x-idempotency-key"];

/// What is needed to send a request again.
pub(super) struct Again {
    head: Parts,
    left: Arc<Mutex<Left>>,
}

/// A body that can be had back.
struct Lent(Arc<Mutex<Left>>);

/// What is left of a body.
#[derive(Default)]
struct Left {
    /// None once it was taken back, or has ended.
    body: Option<WasiBody>,
    /// Something of it was taken.
    is_begun: bool,
    is_over: bool,
}

/// Splits a request into what is sent now and what may be sent later.
pub(super) fn lend(request: Request<WasiBody>) -> (Request<WasiBody>, Again) {
    let (head, body) = request.into_parts();
    let left = Arc::new(Mutex::new(Left { body: Some(body), ..Left::default() }));
    let body = Lent(Arc::clone(&left)).boxed_unsync();
    (Request::from_parts(head.clone(), body), Again { head, left })
}

fn lock(left: &Mutex<Left>) -> MutexGuard<'_, Left> {
    left.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Again {
    /// The request, if it may be sent again. `was_kept`: the connection that was
    /// lost had served others. With a new one there is no reason to think that the
    /// server has not heard it.
    pub(super) fn after(self, lost: Lost, was_kept: bool) -> Option<Request<WasiBody>> {
        let may_be_heard_twice = || {
            let is_known = |key: &&str| self.head.headers.contains_key(*key);
            SAFE.contains(&self.head.method) || KEYS.iter().any(is_known)
        };
        let is_right = match lost {
            Lost::Unheard => true,
            Lost::Unanswered => was_kept && may_be_heard_twice(),
        };
        // From whoever has it now.
        let left = is_right.then(|| mem::take(&mut *lock(&self.left)))?;
        if left.is_begun {
            return None;
        }
        let body = Lent(Arc::new(Mutex::new(left))).boxed_unsync();
        Some(Request::from_parts(self.head, body))
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let mut left = lock(&self.0);
        if left.is_over {
            return Poll::Ready(None);
        }
        // Whose connection was lost may still ask.
        let Some(body) = &mut left.body else {
            return Poll::Ready(Some(Err(HttpError::ConnectionTerminated)));
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if frame.is_some() {
            left.is_begun = true;
        } else {
            (left.body, left.is_over) = (None, true);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let left = lock(&self.0);
        left.is_over || left.body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let left = lock(&self.0);
        match &left.body {
            Some(body) => body.size_hint(),
            None if left.is_over => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Lent {
    /// Who writes it hears at once that nobody takes the rest.
    fn drop(&mut self) {
        let mut left = lock(&self.0);
        if left.is_begun {
            left.body = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{Empty, Full};

    use super::*;

    fn full() -> WasiBody {
        let body = Full::new(Bytes::from_static(b"all"));
        body.map_err(|never: Infallible| match never {}).boxed_unsync()
    }

    fn empty() -> WasiBody {
        Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync()
    }

    fn request(method: Method, key: Option<&'static str>, body: WasiBody) -> Request<WasiBody> {
        let request = Request::builder().method(method).uri("http://web.test/path");
        let request = key.into_iter().fold(request, |request, key| request.header(key, "1"));
        request.body(body).unwrap()
    }

    #[test]
    fn what_a_server_may_have_heard_is_sent_again_only_if_that_does_no_harm() {
        let is_sent = |method, key, lost, was_kept| {
            lend(request(method, key, full())).1.after(lost, was_kept).is_some()
        };
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE] {
            assert!(is_sent(method.clone(), None, Lost::Unanswered, true), "{method}");
            assert!(!is_sent(method.clone(), None, Lost::Unanswered, false), "{method}");
            assert!(is_sent(method, None, Lost::Unheard, false));
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            assert!(!is_sent(method.clone(), None, Lost::Unanswered, true), "{method}");
            assert!(is_sent(method.clone(), Some("Idempotency-Key"), Lost::Unanswered, true));
            assert!(is_sent(method.clone(), Some("X-Idempotency-Key"), Lost::Unanswered, true));
            assert!(is_sent(method, None, Lost::Unheard, false));
        }
    }

    #[tokio::test]
    async fn a_body_is_sent_again_whole_or_not_at_all() {
        let (first, again) = lend(request(Method::PUT, None, full()));
        let second = again.after(Lost::Unheard, true).unwrap();
        assert_eq!((second.method(), second.uri().path()), (&Method::PUT, "/path"));
        // Whose connection was lost does not take it for one that has ended.
        assert!(!first.body().is_end_stream());
        let left = first.into_body().collect().await.map(drop);
        assert!(matches!(left, Err(HttpError::ConnectionTerminated)), "{left:?}");
        assert_eq!(second.body().size_hint().exact(), Some(3));
        assert_eq!(second.into_body().collect().await.unwrap().to_bytes(), "all");

        let (mut first, again) = lend(request(Method::PUT, None, full()));
        first.body_mut().frame().await.unwrap().unwrap();
        assert!(again.after(Lost::Unheard, true).is_none());

        // One of which it shows only at its end that it is empty.
        let (mut first, again) = lend(request(Method::GET, None, empty()));
        assert!(first.body_mut().frame().await.is_none());
        let second = again.after(Lost::Unheard, true).unwrap();
        assert!(second.body().is_end_stream());
        assert!(second.into_body().frame().await.is_none());
    }
}
