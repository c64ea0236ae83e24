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
//!
//! The peer may have been broken out of. What it says unasked is short, a reply is
//! one to a request, and long ones are read few at a time, where nobody else waits:
//! else the connection ends, and whoever holds it decides what becomes of the peer.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::net::{RecvFlags, SendFlags};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{Semaphore, oneshot},
    task::{JoinError, JoinSet, spawn_blocking},
    time::{Instant, timeout},
};

use crate::{
    DescriptorName, Frame, Packet, ParseError, SandboxEvent, SandboxMessage, SandboxReply,
    SandboxRequest, ZygoteMessage, ZygoteReply, ZygoteRequest,
    socket::{frame_bytes, lend, parse_frame, receive_with, send_with},
};

/// Long messages that are read at one time, by all connections together: each takes
/// a few times its length in memory, and a thread meanwhile.
const LONG_AT_ONCE: usize = 2;

/// The right to read one.
static LONG: Semaphore = Semaphore::const_new(LONG_AT_ONCE);

/// Calls that were given up and may be answered yet. Who has left more unanswered
/// is lost anyway.
const GIVEN_UP: usize = 1024;

/// Packets within [`STRANGE_PERIOD`] that need not be understood. A newer version has
/// less to say that this one does not know.
const STRANGE: u32 = 1000;

/// See [`STRANGE`].
const STRANGE_PERIOD: Duration = Duration::from_mins(1);

/// Whom one talks to, and in which words.
pub trait Dialogue: 'static {
    /// What is asked.
    type Request: Serialize + Send;
    /// What comes.
    type Message: DeserializeOwned + Send + 'static;
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
pub struct Incoming<D: Dialogue> {
    shared: Arc<Shared<D>>,
    /// The long message that is being read, if one is. Nothing else is meanwhile.
    long: JoinSet<io::Result<Said<D>>>,
    strange: Strange,
}

/// What a packet says.
struct Said<D: Dialogue> {
    frame: Result<Frame<D::Message>, ParseError>,
    fds: Vec<OwnedFd>,
    /// Whether it is longer than a packet.
    is_long: bool,
}

/// Packets of late that were not understood.
struct Strange {
    since: Instant,
    count: u32,
}

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
    /// The newest of the requests that were sent and whose callers want no reply any
    /// more.
    given_up: BTreeSet<u64>,
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
    let replies = Some(HashMap::new());
    let waiting = Mutex::new(Waiting { last: 0, replies, given_up: BTreeSet::new() });
    let shared = Arc::new(Shared { socket, waiting });
    let strange = Strange { since: Instant::now(), count: 0 };
    let incoming = Incoming { shared: Arc::clone(&shared), long: JoinSet::new(), strange };
    Ok((Caller(shared), incoming))
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
        let mut waits = self.0.enlist(reply).ok_or(CallError::Gone)?;
        let (names, fds): (Vec<_>, Vec<_>) = descriptors.into_iter().unzip();
        let frame = Frame { id: waits.id, descriptors: names, body };
        let bytes = frame_bytes(&frame, fds.len()).map_err(CallError::Send)?;
        let exchange = async {
            self.0.send(&bytes, &fds).await?;
            waits.is_sent = true;
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
    /// When the socket fails, a packet was cut, or the peer says what no sound one
    /// does: replies that nobody asked for, long news, or much that cannot be
    /// understood. The connection is over then, as it is after `None`.
    pub async fn next(&mut self) -> io::Result<Option<D::News>> {
        loop {
            let said = match self.said().await {
                Ok(Some(said)) => self.take(said),
                Ok(None) => {
                    self.shared.close();
                    return Ok(None);
                }
                Err(error) => Err(error),
            };
            match said {
                Ok(None) => {}
                Ok(news) => return Ok(news),
                Err(error) => {
                    self.shared.close();
                    return Err(error);
                }
            }
        }
    }

    /// The next message; `None` when the peer is gone. Cancel-safe.
    async fn said(&mut self) -> io::Result<Option<Said<D>>> {
        if self.long.is_empty() {
            let read = |socket: &OwnedFd| receive_with(socket.as_fd(), RecvFlags::DONTWAIT);
            let received = self.shared.socket.async_io(Interest::READABLE, read).await?;
            let Some(packet) = received else { return Ok(None) };
            if !packet.is_folded() {
                return Ok(Some(Said::read(packet, false)));
            }
            // Sent again and again, it would cost the peer nothing.
            if !self.shared.waiting().may_be_answered() {
                return Err(unsound("a long message that nobody asked for"));
            }
            self.long.spawn(read_long(packet));
        }
        // Cancel-safe: what is read stays in the set until it is taken here.
        match self.long.join_next().await {
            Some(Ok(said)) => said.map(Some),
            Some(Err(error)) => Err(broken_off(error)),
            // There is one, or was put in just now.
            None => Ok(None),
        }
    }

    /// Hands out a reply, or returns news.
    fn take(&mut self, said: Said<D>) -> io::Result<Option<D::News>> {
        let Said { frame, fds, is_long } = said;
        let (id, reply) = match frame {
            Ok(Frame { id, descriptors, body }) => match D::sort(body) {
                // Kept for a while, unlike a list: no sound process has so much to
                // say of one container.
                Sorted::News(_) if is_long => {
                    return Err(unsound("news that is longer than a packet"));
                }
                Sorted::News(news) => return Ok(Some(news)),
                Sorted::Reply(reply) => {
                    (id, Ok(Answer { reply, fds: descriptors.into_iter().zip(fds).collect() }))
                }
            },
            Err(error) => match error.frame_id() {
                Some(id) if id != 0 => (id, Err(CallError::NotUnderstood(error))),
                Some(_) | None if is_long => {
                    return Err(unsound("a long message that cannot be understood"));
                }
                Some(_) | None => return self.strange.note().map(|()| None),
            },
        };
        if self.shared.hand_out(id, reply) {
            Ok(None)
        } else {
            Err(unsound("a reply to what nobody asked"))
        }
    }
}

impl<D: Dialogue> Said<D> {
    fn read(packet: Packet, is_long: bool) -> Self {
        let frame = parse_frame(&packet);
        Self { frame, fds: packet.fds, is_long }
    }
}

/// Reads a message from the file that came along, as soon as it may, where no other
/// task waits for it.
async fn read_long<D: Dialogue>(packet: Packet) -> io::Result<Said<D>> {
    // Never closed, so that there is always one in the end.
    let permit = LONG.acquire().await.ok();
    let read = spawn_blocking(move || {
        let _permit = permit;
        packet.unfold().map(|packet| Said::read(packet, true))
    });
    read.await.unwrap_or_else(|error| Err(broken_off(error)))
}

/// Why nothing came of a job. Panics if it did.
fn broken_off(error: JoinError) -> io::Error {
    if error.is_panic() {
        std::panic::resume_unwind(error.into_panic());
    }
    // The runtime stops.
    io::Error::other(error)
}

fn unsound(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Strange {
    /// Takes note of one more.
    fn note(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if now.duration_since(self.since) > STRANGE_PERIOD {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        if self.count > STRANGE {
            return Err(unsound("too much that cannot be understood"));
        }
        Ok(())
    }
}

impl<D: Dialogue> Waiting<D> {
    /// Whether there is anything that the peer may answer.
    fn may_be_answered(&self) -> bool {
        !self.given_up.is_empty() || self.replies.as_ref().is_some_and(|all| !all.is_empty())
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
        Some(Waits { shared: self, id, is_sent: false })
    }

    /// Whether it was asked for and not answered yet.
    fn hand_out(&self, id: u64, reply: Reply<D>) -> bool {
        let mut waiting = self.waiting();
        let caller = waiting.replies.as_mut().and_then(|all| all.remove(&id));
        let was_given_up = waiting.given_up.remove(&id);
        drop(waiting);
        match caller {
            Some(caller) => {
                // A caller that has given up just now wants it no more.
                let _ = caller.send(reply);
                true
            }
            None => was_given_up,
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
    /// Set by the poll that sends it, so that one who gives up meanwhile knows.
    is_sent: bool,
}

impl<D: Dialogue> Drop for Waits<'_, D> {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting();
        // One that was answered is not there any more.
        let is_unanswered = waiting.replies.as_mut().and_then(|all| all.remove(&self.id)).is_some();
        // What the peer has never seen it will not answer. While it does not read, that
        // may be so many that they would push out what it has.
        if is_unanswered && self.is_sent {
            waiting.given_up.insert(self.id);
            if waiting.given_up.len() > GIVEN_UP {
                waiting.given_up.pop_first();
            }
        }
    }
}

impl<D: Dialogue> Drop for Incoming<D> {
    fn drop(&mut self) {
        self.shared.close();
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
        f.debug_tuple("Incoming").field(&self.shared.socket).finish()
    }
}

#[cfg(test)]
mod tests;
