//! How far what a client asks on a connection is, and since when.
//!
//! ```text
//! idle ──first byte──▶ head ──last byte──▶ open ──last of its answer──▶ idle
//! ```
//!
//! Bytes tell of a head in version 1 only, and only where they are not of the body of
//! a request that is answered already. In version 2 they may be of much else; what a
//! client may have of a head there, h2 bounds.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Instant, sleep},
};

/// What a client of version 2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Of one connection; clones are of the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(watch::Sender<State>);

#[derive(Debug, Default)]
struct State {
    /// When each open request began, the oldest first.
    open: Vec<Instant>,
    /// Since when a head is on its way.
    head: Option<Instant>,
    /// When the request began whose body may still come.
    body: Option<Instant>,
    is_2: bool,
}

impl State {
    fn is_idle(&self) -> bool {
        self.open.is_empty() && self.head.is_none()
    }
}

impl Progress {
    /// A request's head has come. The second is to be kept as long as its body is, if
    /// it has one.
    pub(super) fn asked(&self, mut has_body: bool) -> (Open, Option<Coming>) {
        let since = Instant::now();
        self.0.send_modify(|state| {
            has_body &= !state.is_2;
            state.open.push(since);
            state.head = None;
            state.body = has_body.then_some(since);
        });
        let open = Open { progress: self.clone(), since };
        (open, has_body.then(|| Coming { progress: self.clone(), since }))
    }

    /// Bytes have come.
    fn came(&self) {
        self.0.send_if_modified(|state| {
            let begins = state.is_idle() && state.body.is_none() && !state.is_2;
            if begins {
                state.head = Some(Instant::now());
            }
            begins
        });
    }

    fn came_preface(&self) {
        self.0.send_modify(|state| (state.is_2, state.head) = (true, None));
    }

    /// Whether a request is open.
    pub(super) fn is_busy(&self) -> bool {
        !self.0.borrow().open.is_empty()
    }

    /// Waits until the client turns out to speak version 2.
    pub(super) async fn is_2(&self) {
        // Closed never: the sender is here, as below.
        let _ = self.0.subscribe().wait_for(|state| state.is_2).await;
    }

    /// Waits until nothing has been asked for so long, and no head is on its way.
    pub(super) async fn idle(&self, time: Duration) {
        self.lasts(time, State::is_idle).await;
    }

    /// Waits until everything has been answered for so long.
    pub(super) async fn answered(&self, time: Duration) {
        self.lasts(time, |state| state.open.is_empty()).await;
    }

    async fn lasts(&self, time: Duration, is_so: impl Fn(&State) -> bool) {
        let mut changes = self.0.subscribe();
        loop {
            let _ = changes.wait_for(&is_so).await;
            tokio::select! {
                biased;
                // Both may be dropped and asked again.
                _ = changes.changed() => {}
                () = sleep(time) => return,
            }
        }
    }

    /// Waits until a request has been open for so long.
    pub(super) async fn overdue(&self, time: Duration) {
        self.has_lasted(time, |state| state.open.first().copied()).await;
    }

    /// Waits until a head has been on its way for so long.
    pub(super) async fn head_overdue(&self, time: Duration) {
        self.has_lasted(time, |state| state.head).await;
    }

    async fn has_lasted(&self, time: Duration, since: impl Fn(&State) -> Option<Instant>) {
        let mut changes = self.0.subscribe();
        loop {
            let is_some = |state: &State| since(state).is_some();
            let begun = changes.wait_for(is_some).await.ok().and_then(|state| since(&state));
            let Some(begun) = begun else { return };
            // What ends meanwhile wakes nobody: the next is only younger.
            sleep(time.saturating_sub(begun.elapsed())).await;
            if since(&self.0.borrow()).is_some_and(|begun| begun.elapsed() >= time) {
                return;
            }
        }
    }
}

/// A request that is not answered to its end yet.
pub(super) struct Open {
    progress: Progress,
    since: Instant,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.progress.0.send_modify(|state| {
            // One that began at the same time is as good.
            if let Some(index) = state.open.iter().position(|since| *since == self.since) {
                state.open.remove(index);
            }
        });
    }
}

/// A request of version 1 whose body may still come.
pub(super) struct Coming {
    progress: Progress,
    since: Instant,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.progress.0.send_if_modified(|state| {
            state.body.take_if(|since| *since == self.since);
            // Nobody waits for it.
            false
        });
    }
}

/// What a client sends, noted as it comes.
pub(super) struct Heard<I> {
    io: I,
    progress: Progress,
    version: Version,
}

enum Version {
    /// So many bytes of the preface have come, and no others.
    Unknown(usize),
    One,
    Two,
}

impl<I> Heard<I> {
    pub(super) fn new(io: I, progress: Progress) -> Self {
        Self { io, progress, version: Version::Unknown(0) }
    }

    fn note(&mut self, came: &[u8]) {
        if came.is_empty() {
            return;
        }
        if let Version::Unknown(known) = self.version {
            let left = &PREFACE[known..];
            self.version = if came.starts_with(left) {
                self.progress.came_preface();
                Version::Two
            } else if left.starts_with(came) {
                Version::Unknown(known + came.len())
            } else {
                Version::One
            };
        }
        match self.version {
            Version::Unknown(_) | Version::One => self.progress.came(),
            Version::Two => {}
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Heard<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        self.note(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Heard<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
