//! `SOCK_SEQPACKET` sockets: one packet is one message, open files ride along.
//!
//! Synchronous, for the zygote and the sandboxes, which have no async runtime;
//! [`connection`](crate::connection) is the agent's side. What the messages
//! mean is left to [`messages`](crate::messages).

use std::{
    fs::File,
    io::{self, Error, ErrorKind, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Frame, MAX_DESCRIPTORS, MAX_FOLDED, MAX_MESSAGE, MAX_SPEC};

/// The longest path of a socket in bytes: `sun_path` has 108, one of them for
/// the end (unix(7)).
pub const MAX_PATH: usize = 107;

/// What came in one packet.
#[derive(Debug)]
pub struct Packet {
    /// The message, 1 to [`MAX_MESSAGE`] bytes.
    pub bytes: Vec<u8>,
    /// The open files that came along, in the sender's order; close-on-exec. The
    /// last may be missing: see [`receive`].
    pub fds: Vec<OwnedFd>,
}

/// Bytes of what an error says of a message that is not understood.
const LONGEST_ERROR: usize = 512;

/// What a packet says whose message is in the memfd that came along.
const FOLDED: &[u8] = br#"{"folded":"message"}"#;

/// What a folded message's file bears, so that reading it cannot be made to wait
/// and nobody changes it meanwhile. Only files in memory can have seals.
const FIXED: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

impl Packet {
    /// The message that was meant: the packet's own, or that of the file which
    /// came along ([`send_any_length`]).
    ///
    /// # Errors
    ///
    /// `InvalidData` for a file that is not fixed, or longer than
    /// [`MAX_FOLDED`], or that this process had no descriptor left for.
    pub fn unfold(mut self) -> io::Result<Self> {
        if self.bytes != FOLDED || self.fds.len() > 1 {
            return Ok(self);
        }
        let Some(file) = self.fds.pop() else {
            return Err(Error::new(ErrorKind::InvalidData, "a message whose file did not come"));
        };
        let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
        if !seals.contains(FIXED) {
            return Err(Error::new(ErrorKind::InvalidData, "a message in a file that may change"));
        }
        self.bytes = read_memfd(file, MAX_FOLDED)?;
        Ok(self)
    }

    /// Whether the message that was meant is in the file which came along.
    pub(crate) fn is_folded(&self) -> bool {
        self.bytes == FOLDED && self.fds.len() == 1
    }
}

/// Why a packet is no message of ours.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ParseError {
    #[error("the packet is not a frame")]
    NotAFrame(#[source] serde_json::Error),

    /// A verb, field or descriptor of a newer version. A request of this kind
    /// is answered with [`Failure::UnknownVerb`](crate::Failure).
    #[error("the frame {id} carries what this version does not know")]
    Unknown {
        id: u64,
        #[source]
        source: serde_json::Error,
    },

    #[error("the frame {id} names {named} descriptors and {came} came along")]
    Descriptors { id: u64, named: usize, came: usize },
}

impl ParseError {
    /// The number of the frame, if so much of it could be read: an answer
    /// bears it.
    #[must_use]
    pub fn frame_id(&self) -> Option<u64> {
        match self {
            Self::NotAFrame(_) => None,
            Self::Unknown { id, .. } | Self::Descriptors { id, .. } => Some(*id),
        }
    }
}

/// Two sockets connected to each other, both close-on-exec.
///
/// # Errors
///
/// When the process or the system has no descriptors left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Binds a socket to a path without listening, in place of whatever was there.
///
/// Whoever calls `listen` on it becomes the peer that `SO_PEERPIDFD` names to
/// those who connect (`unix_listen`, `net/unix/af_unix.c`).
///
/// # Errors
///
/// A path longer than [`MAX_PATH`] is refused with words; otherwise what the
/// file system says.
pub fn bind(path: &Path) -> io::Result<OwnedFd> {
    let address = address(path)?;
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = socket()?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// Connects to a path.
///
/// # Errors
///
/// `ConnectionRefused` when nobody listens (any more, or yet).
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let address = address(path)?;
    let socket = socket()?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket)
}

/// Sends one packet.
///
/// # Errors
///
/// `InvalidInput` beyond [`MAX_MESSAGE`] or [`MAX_DESCRIPTORS`] and for an
/// empty message, `BrokenPipe` when the peer is gone (no signal is raised),
/// `WouldBlock` on a non-blocking socket with a full queue: then nothing went.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(fd, bytes, fds, SendFlags::empty())
}

/// Sends a message without descriptors, in a file in memory if it is too long
/// for a packet.
///
/// # Errors
///
/// `InvalidInput` beyond [`MAX_FOLDED`]; otherwise as [`send`].
pub fn send_any_length(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() <= MAX_MESSAGE {
        return send(fd, bytes, &[]);
    }
    let file = memfd_within(bytes, MAX_FOLDED)?;
    send(fd, FOLDED, &[file.as_fd()])
}

/// Receives one packet; `None` when the peer is gone.
///
/// Open files for which this process has no descriptors left are lost; their
/// packet is not, and [`parse_frame`] says how many there were.
///
/// # Errors
///
/// `InvalidData` for a message that did not fit and was cut; `WouldBlock` on a
/// non-blocking socket with an empty queue.
pub fn receive(fd: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    receive_with(fd, RecvFlags::empty())
}

/// Sends a frame with its descriptors.
///
/// # Errors
///
/// As [`send`], and `InvalidInput` when the frame does not name as many
/// descriptors as ride along.
pub fn send_frame<T: Serialize>(
    fd: BorrowedFd<'_>,
    frame: &Frame<T>,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send(fd, &frame_bytes(frame, fds.len())?, fds)
}

/// Reads a frame from a packet.
///
/// # Errors
///
/// [`ParseError`], for any bytes at all; never a panic.
pub fn parse_frame<T: DeserializeOwned>(packet: &Packet) -> Result<Frame<T>, ParseError> {
    let frame: Frame<T> = serde_json::from_slice(&packet.bytes).map_err(|source| {
        let source = in_short(source);
        match serde_json::from_slice::<Head>(&packet.bytes) {
            Ok(Head { id }) => ParseError::Unknown { id, source },
            Err(_) => ParseError::NotAFrame(source),
        }
    })?;
    let (named, came) = (frame.descriptors.len(), packet.fds.len());
    if named != came {
        return Err(ParseError::Descriptors { id: frame.id, named, came });
    }
    Ok(frame)
}

/// An error with no more words than people read: it may repeat what came, however long
/// that is.
fn in_short(error: serde_json::Error) -> serde_json::Error {
    let mut text = error.to_string();
    if text.len() <= LONGEST_ERROR {
        return error;
    }
    text.truncate(text.floor_char_boundary(LONGEST_ERROR));
    serde::de::Error::custom(text)
}

/// What every version's frame has.
#[derive(Deserialize)]
struct Head {
    id: u64,
}

/// Puts bytes into an anonymous file that nobody can change any more.
///
/// # Errors
///
/// `InvalidInput` beyond [`MAX_SPEC`] bytes; otherwise what the system says.
pub fn memfd(bytes: &[u8]) -> io::Result<OwnedFd> {
    memfd_within(bytes, MAX_SPEC)
}

fn memfd_within(bytes: &[u8], limit: usize) -> io::Result<OwnedFd> {
    if bytes.len() > limit {
        return Err(too_long("the file", bytes.len(), limit));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Not executable, where the kernel knows of it (6.3).
    let file = match rustix::fs::memfd_create(c"krustlet-spec", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"krustlet-spec", flags)?,
        other => other?,
    };
    let mut file = File::from(file);
    file.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(&file, FIXED)?;
    Ok(file.into())
}

/// Reads all of what [`memfd`] made, wherever the file's offset stands.
///
/// # Errors
///
/// `InvalidData` when the file is longer than `limit` bytes.
pub fn read_memfd(fd: OwnedFd, limit: usize) -> io::Result<Vec<u8>> {
    let file = File::from(fd);
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if length > limit {
        let error = too_long("the file", length, limit);
        return Err(Error::new(ErrorKind::InvalidData, error));
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

pub(crate) fn frame_bytes<T: Serialize>(frame: &Frame<T>, fds: usize) -> io::Result<Vec<u8>> {
    if frame.descriptors.len() != fds {
        let named = frame.descriptors.len();
        let why = format!("the frame names {named} descriptors and {fds} ride along");
        return Err(Error::new(ErrorKind::InvalidInput, why));
    }
    Ok(serde_json::to_vec(frame)?)
}

pub(crate) fn send_with(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    // An empty packet could not be told from the end.
    if bytes.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "an empty message"));
    }
    if bytes.len() > MAX_MESSAGE {
        return Err(too_long("the message", bytes.len(), MAX_MESSAGE));
    }
    if fds.len() > MAX_DESCRIPTORS {
        let why = format!("{} descriptors in one message; at most {MAX_DESCRIPTORS}", fds.len());
        return Err(Error::new(ErrorKind::InvalidInput, why));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        // The buffer is made for the most that the check above lets pass.
        return Err(Error::new(ErrorKind::InvalidInput, "the descriptors do not fit"));
    }
    let flags = flags | SendFlags::NOSIGNAL;
    let message = [IoSlice::new(bytes)];
    let sent =
        rustix::io::retry_on_intr(|| rustix::net::sendmsg(fd, &message, &mut control, flags))?;
    debug_assert_eq!(sent, bytes.len(), "a packet goes whole or not at all");
    Ok(())
}

pub(crate) fn receive_with(fd: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        let mut message = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(fd, &mut message, &mut control, flags) {
            // The peer closed before it had read all we sent. The kernel says
            // so once, before it gives out what the peer had sent: read on.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            fds.extend(came);
        }
    }
    // Dropping `fds` closes what came with a message that was cut.
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Error::new(ErrorKind::InvalidData, "a packet too long was cut"));
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    bytes.shrink_to_fit();
    Ok(Some(Packet { bytes, fds }))
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    let length = path.as_os_str().len();
    if length > MAX_PATH {
        let why = format!(
            "the socket path {} has {length} bytes; the system allows {MAX_PATH}: \
             choose a shorter state directory",
            path.display()
        );
        return Err(Error::new(ErrorKind::InvalidFilename, why));
    }
    Ok(SocketAddrUnix::new(path)?)
}

fn too_long(what: &str, length: usize, limit: usize) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{what} has {length} bytes; at most {limit}"))
}

/// Lends owned descriptors, in order, to [`send`].
#[must_use]
pub fn lend(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

#[cfg(test)]
mod tests;
