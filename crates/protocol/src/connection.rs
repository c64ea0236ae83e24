//! The agent's end of a socket: requests that wait for their replies, and news.
//!
//! ```text
//! Caller::call ──request 7──▶ peer ──reply 7──▶ Incoming::next ──▶ the caller of 7
//!                                  ──news 0───▶ Incoming::next ──▶ who called next
//! ```
//!
//! No task of its own: replies arrive only while somebody awaits
//! [`Incoming::next`], so whoever holds the [`Incoming`] must not wait for a
//! reply without reading on.

use std::{
    collections::HashMap,
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::net::{RecvFlags, SendFlags};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
    time::timeout,
};

use crate::{
    DescriptorName, Frame, MAX_MESSAGE, Packet, ParseError, SandboxEvent, SandboxMessage,
    SandboxReply, SandboxRequest, ZygoteMessage, ZygoteReply, ZygoteRequest,
    socket::{frame_bytes, lend, parse_frame, receive_with, send_with},
};

/// Whom one talks to, and in which words.
pub trait Dialogue: 'static {
    /// What is asked.
    type Request: Serialize + Send;
    /// What comes.
    type Message: DeserializeOwned + Send;
    /// What comes in answer.
    type Reply: fmt::Debug + Send;
    /// What comes unasked.
    type News: fmt::Debug + Send;

    /// Tells answers from news.
    fn sort(message: Self::Message) -> Sorted<Self::Reply, Self::News>;
}

/// An answer or news.
#[derive(Debug)]
pub enum Sorted<R, N> {
    /// In answer to a request.
    Reply(R),
    /// Unasked.
    News(N),
}

/// The words between agent and zygote.
#[derive(Debug)]
pub enum WithZygote {}

/// What a zygote says unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZygoteNews {
    /// See [`ZygoteMessage::Warm`].
    Warm {
        /// The zygote's [`VERSION`](crate::VERSION).
        version: u32,
    },
    /// See [`ZygoteMessage::Exited`].
    Exited {
        /// The sandbox.
        id: String,
        /// Its process id.
        pid: i32,
        /// As `wait4` gave it.
        wait_status: i32,
    },
}

impl Dialogue for WithZygote {
    type Request = ZygoteRequest;
    type Message = ZygoteMessage;
    type Reply = ZygoteReply;
    type News = ZygoteNews;

    fn sort(message: ZygoteMessage) -> Sorted<ZygoteReply, ZygoteNews> {
        match message {
            ZygoteMessage::Reply(reply) => Sorted::Reply(reply),
            ZygoteMessage::Warm { version } => Sorted::News(ZygoteNews::Warm { version }),
            ZygoteMessage::Exited { id, pid, wait_status } => {
                Sorted::News(ZygoteNews::Exited { id, pid, wait_status })
            }
        }
    }
}

/// The words between agent and sandbox.
#[derive(Debug)]
pub enum WithSandbox {}

impl Dialogue for WithSandbox {
    type Request = SandboxRequest;
    type Message = SandboxMessage;
    type Reply = SandboxReply;
    type News = SandboxEvent;

    fn sort(message: SandboxMessage) -> Sorted<SandboxReply, SandboxEvent> {
        match message {
            SandboxMessage::Reply(reply) => Sorted::Reply(reply),
            SandboxMessage::Event(event) => Sorted::News(event),
        }
    }
}

/// Why a request got no reply.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum CallError {
    #[error("the other side is gone")]
    Gone,

    #[error("no reply within {limit:?}")]
    TimedOut { limit: Duration },

    #[error("the request could not be sent")]
    Send(#[source] io::Error),

    #[error("the reply was not understood")]
    NotUnderstood(#[source] ParseError),
}

/// A reply and the open files that came with it, in the order of their names.
#[derive(Debug)]
pub struct Answer<R> {
    /// The reply.
    pub reply: R,
    /// The open files.
    pub fds: Vec<(DescriptorName, OwnedFd)>,
}

/// Sends requests. Cheap to clone.
pub struct Caller<D: Dialogue>(Arc<Shared<D>>);

/// Receives everything. One for each connection; dropping it ends all calls.
pub struct Incoming<D: Dialogue>(Arc<Shared<D>>);

struct Shared<D: Dialogue> {
    socket: AsyncFd<OwnedFd>,
    /// Never held across an await: callers add, the reader takes out.
    waiting: Mutex<Waiting<D>>,
}

type Reply<D> = Result<Answer<<D as Dialogue>::Reply>, CallError>;

struct Waiting<D: Dialogue> {
    /// The number of the newest request; 0 is for news.
    last: u64,
    /// `None` once the connection has ended.
    replies: Option<HashMap<u64, oneshot::Sender<Reply<D>>>>,
}

/// Makes a connection of a connected socket. Needs a tokio runtime.
///
/// # Errors
///
/// When the runtime cannot watch the socket.
pub fn connection<D: Dialogue>(socket: OwnedFd) -> io::Result<(Caller<D>, Incoming<D>)> {
    // SAFETY: the `AsyncFd` owns the socket, which nobody else closes, and
    // `OwnedFd` gives out the same number each time.
    let socket = unsafe { AsyncFd::register(socket) }?;
    let waiting = Mutex::new(Waiting { last: 0, replies: Some(HashMap::new()) });
    let shared = Arc::new(Shared { socket, waiting });
    Ok((Caller(Arc::clone(&shared)), Incoming(shared)))
}

impl<D: Dialogue> Caller<D> {
    /// Sends a request and waits for its reply.
    ///
    /// Dropping the future forgets the reply; the request may still be
    /// carried out.
    ///
    /// # Errors
    ///
    /// [`CallError`]; a reply that says "failed" is no error here.
    pub async fn call(
        &self,
        body: D::Request,
        descriptors: Vec<(DescriptorName, OwnedFd)>,
        limit: Duration,
    ) -> Reply<D> {
        let (reply, answer) = oneshot::channel();
        let waits = self.0.enlist(reply).ok_or(CallError::Gone)?;
        let (names, fds): (Vec<_>, Vec<_>) = descriptors.into_iter().unzip();
        let frame = Frame { id: waits.id, descriptors: names, body };
        let bytes = frame_bytes(&frame, fds.len()).map_err(CallError::Send)?;
        let exchange = async {
            self.0.send(&bytes, &fds).await?;
            // Ours are not needed any more, however long the reply takes.
            drop(fds);
            answer.await.unwrap_or(Err(CallError::Gone))
        };
        timeout(limit, exchange).await.unwrap_or(Err(CallError::TimedOut { limit }))
    }

    /// The socket, to ask the kernel about the peer.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.0.socket.get_ref().as_fd()
    }
}

impl<D: Dialogue> Incoming<D> {
    /// Hands out replies until news comes, which is returned; `None` when the
    /// peer is gone. Cancel-safe: what has been received is never lost.
    ///
    /// What cannot be understood is passed over: it is news of a newer
    /// version, or a reply, whose caller is told.
    ///
    /// # Errors
    ///
    /// When the socket fails or a message was cut. The connection is over then,
    /// as it is after `None`.
    pub async fn next(&mut self) -> io::Result<Option<D::News>> {
        loop {
            let read = |socket: &OwnedFd| receive_with(socket.as_fd(), RecvFlags::DONTWAIT);
            let received = self.0.socket.async_io(Interest::READABLE, read).await;
            let unfolded = received.and_then(|packet| packet.map(Packet::unfold).transpose());
            let packet = match unfolded {
                Ok(Some(packet)) => packet,
                Ok(None) => {
                    self.0.close();
                    return Ok(None);
                }
                Err(error) => {
                    self.0.close();
                    return Err(error);
                }
            };
            match parse_frame::<D::Message>(&packet) {
                Ok(Frame { id, descriptors, body }) => match D::sort(body) {
                    // Kept for a while, unlike a list: no sound process has so
                    // much to say of one container.
                    Sorted::News(_) if packet.bytes.len() > MAX_MESSAGE => {
                        self.0.close();
                        let why = "news that is longer than a packet";
                        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                    }
                    Sorted::News(news) => return Ok(Some(news)),
                    Sorted::Reply(reply) => {
                        let fds = descriptors.into_iter().zip(packet.fds).collect();
                        self.0.hand_out(id, Ok(Answer { reply, fds }));
                    }
                },
                Err(error) => {
                    if let Some(id) = error.frame_id() {
                        self.0.hand_out(id, Err(CallError::NotUnderstood(error)));
                    }
                }
            }
        }
    }
}

impl<D: Dialogue> Shared<D> {
    fn waiting(&self) -> MutexGuard<'_, Waiting<D>> {
        // Nothing that is done under the lock can panic half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enlist(&self, reply: oneshot::Sender<Reply<D>>) -> Option<Waits<'_, D>> {
        let mut waiting = self.waiting();
        waiting.last += 1;
        let id = waiting.last;
        waiting.replies.as_mut()?.insert(id, reply);
        Some(Waits { shared: self, id })
    }

    fn hand_out(&self, id: u64, reply: Reply<D>) {
        let caller = self.waiting().replies.as_mut().and_then(|all| all.remove(&id));
        if let Some(caller) = caller {
            // A caller that has given up wants it no more.
            let _ = caller.send(reply);
        }
    }

    fn close(&self) {
        // Dropping the senders tells every caller.
        let ended = self.waiting().replies.take();
        drop(ended);
    }

    async fn send(&self, bytes: &[u8], fds: &[OwnedFd]) -> Result<(), CallError> {
        let write =
            |socket: &OwnedFd| send_with(socket.as_fd(), bytes, &lend(fds), SendFlags::DONTWAIT);
        match self.socket.async_io(Interest::WRITABLE, write).await {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::NotConnected
                ) =>
            {
                Err(CallError::Gone)
            }
            Err(error) => Err(CallError::Send(error)),
        }
    }
}

/// A place among the waiting, given up when the caller does.
struct Waits<'a, D: Dialogue> {
    shared: &'a Shared<D>,
    id: u64,
}

impl<D: Dialogue> Drop for Waits<'_, D> {
    fn drop(&mut self) {
        if let Some(replies) = &mut self.shared.waiting().replies {
            replies.remove(&self.id);
        }
    }
}

impl<D: Dialogue> Drop for Incoming<D> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<D: Dialogue> Clone for Caller<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<D: Dialogue> fmt::Debug for Caller<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Caller").field(&self.0.socket).finish()
    }
}

impl<D: Dialogue> fmt::Debug for Incoming<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Incoming").field(&self.0.socket).finish()
    }
}

#[cfg(test)]
mod tests;
