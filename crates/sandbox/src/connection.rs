//! One agent's connection, as the control thread has it.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use krustlet_protocol::{
    DescriptorName, FOLDS, Failure, Frame, MAX_FOLDED, MAX_MESSAGE, Packet, SandboxMessage,
    SandboxReply, socket,
};
use tokio::sync::watch;

/// Messages that may wait for an agent that does not read. Beyond that it is
/// let go: it asks for everything when it comes back.
const WAITING: usize = 4096;

/// Descriptor, outbox, and what is to end with it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Never used again, unlike the descriptor's number.
    pub(crate) number: u64,
    socket: OwnedFd,
    waiting: VecDeque<Message>,
    /// Dropped with the connection, which ends its execs.
    life: watch::Sender<()>,
    /// The agent's version of the protocol; 0 until it has said hello.
    pub(crate) version: u32,
}

/// Bytes of a frame, and what rides along.
#[derive(Debug)]
struct Message {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// The agent is gone, or is to be let go.
#[derive(Debug)]
pub(crate) struct Gone;

impl Connection {
    pub(crate) fn new(number: u64, socket: OwnedFd) -> Self {
        Self { number, socket, waiting: VecDeque::new(), life: watch::Sender::new(()), version: 0 }
    }

    /// Ends when the connection does.
    pub(crate) fn life(&self) -> watch::Receiver<()> {
        self.life.subscribe()
    }

    /// Whether to wake when the agent reads again.
    pub(crate) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next packet, if one has come.
    pub(crate) fn receive(&self) -> Result<Option<Packet>, Gone> {
        match socket::receive(self.as_fd()) {
            Ok(Some(packet)) => Ok(Some(packet)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Ok(None) | Err(_) => Err(Gone),
        }
    }

    /// Sends an answer, or has it wait. One that is too long, for a packet with
    /// an agent that knows no better, is replaced by a failure that says so: what
    /// a program put into it must not cost the agent its connection.
    pub(crate) fn reply(&mut self, id: u64, reply: SandboxReply) -> Result<(), Gone> {
        let mut bytes = written(id, reply, Vec::new())?;
        let most = if self.version >= FOLDS { MAX_FOLDED } else { MAX_MESSAGE };
        if bytes.len() > most {
            let message = format!("the answer has {} bytes, too many to send", bytes.len());
            bytes = written(id, SandboxReply::Failed(Failure::Failed { message }), Vec::new())?;
        }
        self.send(bytes)
    }

    /// Sends an answer with open files, or has them wait. It must fit into a packet,
    /// as they must.
    pub(crate) fn reply_with(
        &mut self,
        id: u64,
        reply: SandboxReply,
        descriptors: Vec<(DescriptorName, OwnedFd)>,
    ) -> Result<(), Gone> {
        let (names, fds) = descriptors.into_iter().unzip();
        self.queue(Message { bytes: written(id, reply, names)?, fds })
    }

    /// Sends bytes of a frame, or has them wait.
    pub(crate) fn send(&mut self, bytes: Vec<u8>) -> Result<(), Gone> {
        self.queue(Message { bytes, fds: Vec::new() })
    }

    fn queue(&mut self, message: Message) -> Result<(), Gone> {
        if self.waiting.len() >= WAITING {
            return Err(Gone);
        }
        self.waiting.push_back(message);
        self.flush()
    }

    /// Sends what waits, as far as the agent takes it.
    pub(crate) fn flush(&mut self) -> Result<(), Gone> {
        while let Some(Message { bytes, fds }) = self.waiting.front() {
            let sent = if fds.is_empty() {
                socket::send_any_length(self.socket.as_fd(), bytes)
            } else {
                socket::send(self.socket.as_fd(), bytes, &socket::lend(fds))
            };
            match sent {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(error) if is_full(&error) => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }
}

fn written(
    id: u64,
    reply: SandboxReply,
    descriptors: Vec<DescriptorName>,
) -> Result<Vec<u8>, Gone> {
    let frame = Frame { id, descriptors, body: SandboxMessage::Reply(reply) };
    // Plain values always have a form in JSON.
    serde_json::to_vec(&frame).map_err(|_| Gone)
}

/// The queue of the socket, or the memory for it, is used up for now.
fn is_full(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_too_long_to_send_is_replaced_by_one_that_says_so() {
        let (ours, agents) = socket::pair().unwrap();
        let mut connection = Connection::new(1, ours);
        let message = "x".repeat(MAX_MESSAGE);
        connection.reply(7, SandboxReply::Failed(Failure::Unlinkable { message })).unwrap();
        connection.reply(8, SandboxReply::Done).unwrap();
        let packet = socket::receive(agents.as_fd()).unwrap().unwrap();
        let frame: Frame<SandboxMessage> = socket::parse_frame(&packet).unwrap();
        assert_eq!(frame.id, 7);
        let SandboxMessage::Reply(SandboxReply::Failed(Failure::Failed { message })) = frame.body
        else {
            panic!("{frame:?}")
        };
        assert!(message.contains("too many to send"), "{message}");
        let packet = socket::receive(agents.as_fd()).unwrap().unwrap();
        assert_eq!(socket::parse_frame::<SandboxMessage>(&packet).unwrap().id, 8);

        // One that understands gets it whole.
        connection.version = FOLDS;
        let failure = Failure::Unlinkable { message: "x".repeat(MAX_MESSAGE) };
        connection.reply(9, SandboxReply::Failed(failure.clone())).unwrap();
        let packet = socket::receive(agents.as_fd()).unwrap().unwrap().unfold().unwrap();
        let frame: Frame<SandboxMessage> = socket::parse_frame(&packet).unwrap();
        assert_eq!(frame.body, SandboxMessage::Reply(SandboxReply::Failed(failure)));
    }
}
