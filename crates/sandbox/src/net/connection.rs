//! An established connection, on the network or within the pod.

use std::{
    io::{self, IoSlice},
    net::{self, Shutdown, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    task::coop::poll_proceed,
};

use super::{pace::Turn, permit::Permit, pipe::PipeEnd, private::Reservation};

/// See the module. All of it works through `&self`; each direction remembers
/// one waiting task, the newest.
#[derive(Debug)]
pub(crate) struct Connection {
    link: Link,
    permit: Permit,
    reading: Turn,
    writing: Turn,
    /// The port on the private loopback that it was bound to or given.
    _port: Option<Reservation>,
}

#[derive(Debug)]
enum Link {
    Tcp {
        stream: TcpStream,
        /// The address of a Service at which the guest believes to be.
        led_by: Option<SocketAddr>,
    },
    Pipe {
        end: PipeEnd,
        local: SocketAddr,
        remote: SocketAddr,
    },
}

/// What there is to see of a socket now. Reading with `MSG_PEEK` would tell too,
/// but an error that is seen so is gone (`sock_error` in Linux), and whoever reads
/// then takes a broken connection for one that has ended in order.
fn seen(stream: &TcpStream, what: PollFlags) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(stream, what)];
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds[0].revents())
}

impl Connection {
    pub(super) fn tcp(stream: TcpStream, permit: Permit, port: Option<Reservation>) -> Self {
        Self::new(Link::Tcp { stream, led_by: None }, permit, port)
    }

    /// Says that an address of a Service led here.
    pub(super) fn led_by(mut self, address: SocketAddr) -> Self {
        if let Link::Tcp { led_by, .. } = &mut self.link {
            *led_by = Some(address);
        }
        self
    }

    pub(super) fn private(
        end: PipeEnd,
        [local, remote]: [SocketAddr; 2],
        permit: Permit,
        port: Option<Reservation>,
    ) -> Self {
        Self::new(Link::Pipe { end, local, remote }, permit, port)
    }

    fn new(link: Link, permit: Permit, port: Option<Reservation>) -> Self {
        let (reading, writing) = (Turn::default(), Turn::default());
        Self { link, permit, reading, writing, _port: port }
    }

    /// Reads what is there; 0 at the end.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nothing is there yet, or the pod has received what it may
    /// for now; what the network reported.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.link {
            Link::Tcp { stream, .. } => {
                let flow = &self.permit.counters().received;
                let most = flow.may_move(&self.reading, buffer.len());
                if most == 0 && !buffer.is_empty() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let read = stream.try_read(&mut buffer[..most])?;
                flow.moved(&self.reading, read);
                Ok(read)
            }
            Link::Pipe { end, .. } => end.try_read(buffer),
        }
    }

    /// As [`try_read`](Self::try_read), and leaves it there.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn try_peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.link {
            Link::Tcp { stream, .. } => stream.try_io(Interest::READABLE, || {
                let (read, _) = rustix::net::recv(stream, buffer, rustix::net::RecvFlags::PEEK)?;
                Ok(read)
            }),
            Link::Pipe { end, .. } => end.try_peek(buffer),
        }
    }

    /// Writes what there is room for.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is no room, or the pod has sent what it may for now;
    /// `BrokenPipe` after the end; what the network reported.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.link {
            Link::Tcp { stream, .. } => {
                let flow = &self.permit.counters().sent;
                let most = flow.may_move(&self.writing, bytes.len());
                if most == 0 && !bytes.is_empty() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let written = stream.try_write(&bytes[..most])?;
                flow.moved(&self.writing, written);
                Ok(written)
            }
            Link::Pipe { end, .. } => end.try_write(bytes),
        }
    }

    /// As [`try_write`](Self::try_write), of several pieces.
    ///
    /// # Errors
    ///
    /// As there.
    fn try_write_pieces(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let first = pieces.iter().find(|piece| !piece.is_empty());
        let first = first.map_or(&[][..], |piece| &**piece);
        let Link::Tcp { stream, .. } = &self.link else { return self.try_write(first) };
        let wanted: usize = pieces.iter().map(|piece| piece.len()).sum();
        let flow = &self.permit.counters().sent;
        if flow.may_move(&self.writing, wanted) < wanted {
            return self.try_write(first);
        }
        let written = stream.try_write_vectored(pieces)?;
        flow.moved(&self.writing, written);
        Ok(written)
    }

    /// Bytes that can be read at once.
    pub(crate) fn waiting(&self) -> u64 {
        match &self.link {
            Link::Tcp { stream, .. } => rustix::io::ioctl_fionread(stream).unwrap_or(0),
            Link::Pipe { end, .. } => end.waiting(),
        }
    }

    /// Ready when [`try_read`](Self::try_read) would surely not have to wait: what
    /// a guest is told, which may wait for ever in a read that it then begins.
    pub(crate) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.poll_read_ready(context));
            let Link::Tcp { stream, .. } = &self.link else { return Poll::Ready(()) };
            // The runtime goes on taking a socket for ready until a read has found
            // nothing, and one that was filled to the last byte has not.
            let looked = stream.try_io(Interest::READABLE, || {
                let is_early = seen(stream, PollFlags::IN)?.is_empty();
                if is_early { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match looked {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever reads finds out.
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// Whether nothing more will come, as the other side has ended it or broken it
    /// off. What has come may still be to be read.
    pub(crate) fn has_ended(&self) -> bool {
        match &self.link {
            Link::Tcp { stream, .. } => seen(stream, PollFlags::RDHUP)
                .is_ok_and(|seen| seen.intersects(PollFlags::RDHUP | PollFlags::HUP)),
            Link::Pipe { end, .. } => end.has_ended(),
        }
    }

    /// Ready when [`try_read`](Self::try_read) may do something.
    pub(crate) fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        match &self.link {
            Link::Tcp { stream, .. } => {
                // What went wrong is found by whoever reads.
                let _ = ready!(stream.poll_read_ready(context));
                self.permit.counters().received.poll_turn(&self.reading, context)
            }
            Link::Pipe { end, .. } => end.poll_read_ready(context),
        }
    }

    /// Ready when [`try_write`](Self::try_write) may do something.
    pub(crate) fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        match &self.link {
            Link::Tcp { stream, .. } => {
                // As there.
                let _ = ready!(stream.poll_write_ready(context));
                self.permit.counters().sent.poll_turn(&self.writing, context)
            }
            Link::Pipe { end, .. } => end.poll_write_ready(context),
        }
    }

    /// Ends one direction or both, in order.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        match &self.link {
            Link::Tcp { stream, .. } => {
                let how = match how {
                    Shutdown::Read => rustix::net::Shutdown::Read,
                    Shutdown::Write => rustix::net::Shutdown::Write,
                    Shutdown::Both => rustix::net::Shutdown::Both,
                };
                // It fails only on a connection that is gone already.
                let _ = rustix::net::shutdown(stream, how);
            }
            Link::Pipe { end, .. } => {
                if matches!(how, Shutdown::Read | Shutdown::Both) {
                    end.end_reading();
                }
                if matches!(how, Shutdown::Write | Shutdown::Both) {
                    end.end_writing();
                }
            }
        }
    }

    /// This side's address.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub(crate) fn local(&self) -> io::Result<SocketAddr> {
        match &self.link {
            Link::Tcp { stream, .. } => stream.local_addr(),
            Link::Pipe { local, .. } => Ok(*local),
        }
    }

    /// The other side's address, as the guest knows it.
    ///
    /// # Errors
    ///
    /// What the system said, as when the connection is gone.
    pub(crate) fn remote(&self) -> io::Result<SocketAddr> {
        match &self.link {
            // Also where a Service led to: one that is gone is nowhere.
            Link::Tcp { stream, led_by } => stream.peer_addr().map(|real| led_by.unwrap_or(real)),
            Link::Pipe { remote, .. } => Ok(*remote),
        }
    }

    /// Takes it from the thread that has heard of it so far.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub(crate) fn leave(self) -> io::Result<Leaving> {
        let Self { link, permit, _port: port, .. } = self;
        let link = match link {
            Link::Tcp { stream, led_by } => Passing::Tcp { stream: stream.into_std()?, led_by },
            Link::Pipe { end, local, remote } => Passing::Pipe { end, local, remote },
        };
        Ok(Leaving { link, permit, port })
    }

    /// The right to have it.
    pub(crate) fn permit(&self) -> Permit {
        self.permit.clone()
    }

    /// The system's socket, if there is one.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.link {
            Link::Tcp { stream, .. } => Some(stream.as_fd()),
            Link::Pipe { .. } => None,
        }
    }
}

/// A connection on its way to another thread, before anybody has used it.
#[derive(Debug)]
pub(crate) struct Leaving {
    link: Passing,
    permit: Permit,
    port: Option<Reservation>,
}

#[derive(Debug)]
enum Passing {
    Tcp { stream: net::TcpStream, led_by: Option<SocketAddr> },
    Pipe { end: PipeEnd, local: SocketAddr, remote: SocketAddr },
}

impl Leaving {
    /// Has this thread hear of it from now on.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub(crate) fn arrive(self) -> io::Result<Connection> {
        let link = match self.link {
            Passing::Tcp { stream, led_by } => {
                Link::Tcp { stream: TcpStream::from_std(stream)?, led_by }
            }
            Passing::Pipe { end, local, remote } => Link::Pipe { end, local, remote },
        };
        Ok(Connection::new(link, self.permit, self.port))
    }
}

/// A connection as what tokio and hyper read and write. Each read and write is
/// part of its task's budget, as with tokio's own sockets: who reads until there
/// is nothing more, as those do who speak HTTP/2, lets others run though the other
/// side always has more.
#[derive(Debug)]
pub(crate) struct Stream(pub(crate) Arc<Connection>);

impl Stream {
    fn poll_write_by(
        &self,
        context: &mut Context<'_>,
        writes: impl Fn(&Connection) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let budget = ready!(poll_proceed(context));
        loop {
            match writes(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.0.poll_write_ready(context));
                }
                written => {
                    budget.made_progress();
                    return Poll::Ready(written);
                }
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let budget = ready!(poll_proceed(context));
        loop {
            match self.0.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.0.poll_read_ready(context));
                }
                read => {
                    budget.made_progress();
                    return Poll::Ready(read.map(|read| buffer.advance(read)));
                }
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(context, |connection| connection.try_write(bytes))
    }

    /// So that nobody puts a head and its body together first, and keeps the room that
    /// this took.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(context, |connection| connection.try_write_pieces(pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is held back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.shutdown(Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::{
        super::{test_connections, test_reset, test_tcp},
        *,
    };

    #[tokio::test]
    async fn who_hears_that_he_can_read_finds_that_a_connection_was_broken_off() {
        let (connection, peer) = test_tcp().await;
        let noop = &mut Context::from_waker(Waker::noop());
        assert!(connection.poll_readable(noop).is_pending() && !connection.has_ended());
        test_reset(peer);
        for _ in 0..3 {
            poll_fn(|context| connection.poll_readable(context)).await;
            assert!(connection.has_ended());
        }
        let error = connection.try_read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn pieces_are_written_in_order_and_no_more_than_there_is_room_for() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let large = vec![7; 1 << 20];
        let pieces: [&[u8]; 4] = [b"head", b"", &large, b"end"];
        let (tcp, peer) = test_tcp().await;
        peer.set_nonblocking(true).unwrap();
        let peer: Box<dyn AsyncRead + Unpin> = Box::new(TcpStream::from_std(peer).unwrap());
        let [pipe, other] = test_connections();
        let other: Box<dyn AsyncRead + Unpin> = Box::new(Stream(Arc::new(other)));
        let ends = [(tcp, peer), (pipe, other)];
        for (writer, mut reader) in ends {
            let mut stream = Stream(Arc::new(writer));
            let writes = async {
                let mut slices = pieces.map(IoSlice::new);
                let mut left = &mut slices[..];
                while !left.is_empty() {
                    let written = stream.write_vectored(left).await.unwrap();
                    IoSlice::advance_slices(&mut left, written);
                }
                drop(stream);
            };
            let mut came = Vec::new();
            let (read, ()) = tokio::join!(reader.read_to_end(&mut came), writes);
            read.unwrap();
            assert!(came == pieces.concat());
        }
    }

    #[tokio::test]
    async fn whoever_reads_and_writes_for_ever_lets_others_run() {
        /// More than a task may do in one turn (tokio: 128).
        const MANY: usize = 1000;
        let [ours, theirs] = test_connections();
        // What is written is thrown away.
        theirs.shutdown(Shutdown::Read);
        let mut stream = Stream(Arc::new(ours));
        let reads = poll_fn(|context| {
            let reads = (0..MANY).take_while(|_| {
                theirs.try_write(b"x").unwrap();
                let mut byte = [0];
                Pin::new(&mut stream).poll_read(context, &mut ReadBuf::new(&mut byte)).is_ready()
            });
            Poll::Ready(reads.count())
        });
        let reads = reads.await;
        assert!((1..MANY).contains(&reads), "{reads}");
        tokio::task::yield_now().await;
        let writes = poll_fn(|context| {
            let writes = (0..MANY)
                .take_while(|_| Pin::new(&mut stream).poll_write(context, b"x").is_ready());
            Poll::Ready(writes.count())
        });
        let writes = writes.await;
        assert!((1..MANY).contains(&writes), "{writes}");
    }
}
