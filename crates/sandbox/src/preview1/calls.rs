//! What preview 1's calls do to a socket.

use std::{future::poll_fn, io, net::Shutdown, sync::Arc};

use wasmtime::Error;

use super::{
    memory::{MOST_BUFFERS, Memory, errno},
    table::{Kind, Socket, Table},
};
use crate::net::{Connection, NetError};

/// `fdflags`: do not wait.
const NONBLOCK: u16 = 1 << 2;

/// `riflags`.
const PEEK: i32 = 1;
const WAITALL: i32 = 2;

/// `sdflags`.
const READ: i32 = 1;
const WRITE: i32 = 2;

/// `filetype`: a stream socket.
const SOCKET_STREAM: u8 = 6;

/// `rights` of any socket: set flags, get attributes, be polled, be shut down.
const RIGHTS: u64 = 1 << 3 | 1 << 21 | 1 << 27 | 1 << 28;

/// And of a listener: accept.
const RIGHT_ACCEPT: u64 = 1 << 29;

/// And of a connection: read and write.
const RIGHTS_STREAM: u64 = 1 << 1 | 1 << 6;

impl From<NetError> for Errno {
    fn from(error: NetError) -> Self {
        Self(match error {
            NetError::AccessDenied => errno::ACCES,
            NetError::NotSupported => errno::NOTSUP,
            NetError::InvalidArgument => errno::INVAL,
            NetError::OutOfMemory => errno::NOMEM,
            NetError::Timeout => errno::TIMEDOUT,
            NetError::InvalidState => errno::NOTCONN,
            NetError::NewSocketLimit => errno::MFILE,
            NetError::AddressNotBindable => errno::ADDRNOTAVAIL,
            NetError::AddressInUse => errno::ADDRINUSE,
            NetError::RemoteUnreachable => errno::HOSTUNREACH,
            NetError::ConnectionRefused => errno::CONNREFUSED,
            NetError::ConnectionReset => errno::CONNRESET,
            NetError::ConnectionAborted => errno::CONNABORTED,
            NetError::ConnectionBroken => errno::PIPE,
            NetError::DatagramTooLarge => errno::MSGSIZE,
            NetError::WouldBlock => errno::AGAIN,
            NetError::Unknown => errno::IO,
        })
    }
}

/// An error number of preview 1.
pub(super) struct Errno(pub(super) i32);

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        NetError::from(error).into()
    }
}

/// Has a call that moves much let others have their turn: no epoch passes while
/// the host is at work.
#[derive(Default)]
struct Turn {
    /// Bytes moved since the last, and something for each call of the system.
    done: usize,
}

impl Turn {
    /// Bytes of a turn, which is less than a millisecond.
    const MOST: usize = 1 << 20;

    /// What a call of the system costs, in bytes that could be copied meanwhile.
    const CALL: usize = 4096;

    async fn moved(&mut self, bytes: usize) {
        self.done += bytes + Self::CALL;
        if self.done >= Self::MOST {
            self.done = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// What the guest is answered; the outer error is a trap.
pub(super) type Answer = Result<i32, Error>;

fn place(pointer: i32) -> u64 {
    u64::from(pointer.cast_unsigned())
}

/// The connection of a descriptor, and whether it may wait.
fn connection(table: &mut Table, fd: i32) -> Result<(Arc<Connection>, bool), i32> {
    match table.get(fd.cast_unsigned()) {
        Some(Socket { kind: Kind::Connection(connection), nonblocking, .. }) => {
            Ok((Arc::clone(connection), *nonblocking))
        }
        Some(Socket { kind: Kind::Listener(_), .. }) => Err(errno::NOTCONN),
        None => Err(errno::BADF),
    }
}

/// Keeps an error for the next call on a descriptor, as Linux does where a call
/// has moved something (`tcp_recvmsg`, `tcp_sendmsg`).
fn keep(table: &mut Table, fd: i32, error: io::Error) {
    let error = NetError::from(error);
    // Of a broken pipe whoever writes again is told again.
    if error != NetError::ConnectionBroken
        && let Some(socket) = table.get(fd.cast_unsigned())
    {
        socket.failed = Some(Errno::from(error).0);
    }
}

/// The error of a call before, once.
fn kept(table: &mut Table, fd: i32) -> Option<i32> {
    table.get(fd.cast_unsigned())?.failed.take()
}

/// `sock_accept`.
pub(super) async fn accept(
    table: &mut Table,
    mut memory: Memory<'_>,
    (fd, flags, result): (i32, i32, i32),
) -> Answer {
    let Some(socket) = table.get(fd.cast_unsigned()) else { return Ok(errno::BADF) };
    let nonblocking = socket.nonblocking;
    let Kind::Listener(listener) = &mut socket.kind else { return Ok(errno::INVAL) };
    let accepted = if nonblocking {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match listener.poll_accept(&mut context) {
            std::task::Poll::Ready(accepted) => accepted,
            std::task::Poll::Pending => Err(NetError::WouldBlock),
        }
    } else {
        listener.accept().await
    };
    match accepted {
        Ok(connection) => {
            let waits_not = flags & i32::from(NONBLOCK) != 0;
            let accepted = table.add(connection, waits_not);
            memory.put(place(result), &accepted.to_le_bytes())?;
            Ok(errno::SUCCESS)
        }
        Err(error) => Ok(Errno::from(error).0),
    }
}

/// `sock_recv`, and `fd_read` without flags. `truncated` is where the flags of
/// the answer go.
pub(super) async fn receive(
    table: &mut Table,
    mut memory: Memory<'_>,
    [fd, list, count, flags, size]: [i32; 5],
    truncated: Option<i32>,
) -> Answer {
    if flags & !(PEEK | WAITALL) != 0 {
        return Ok(errno::INVAL);
    }
    let (connection, nonblocking) = match connection(table, fd) {
        Ok(found) => found,
        Err(number) => return Ok(number),
    };
    if !(0..=MOST_BUFFERS).contains(&count) {
        return Ok(errno::INVAL);
    }
    let buffers = memory.buffers(list.cast_unsigned(), count.cast_unsigned())?;
    let mut turn = Turn::default();
    let (mut total, wanted) = (0_u32, buffers.iter().map(|(_, length)| length).sum::<u64>());
    'all: for (at, length) in buffers {
        let mut done = 0;
        while done < length {
            let room = memory.bytes(at + done, (length - done).min(Turn::MOST as u64))?;
            let read = if flags & PEEK == 0 {
                connection.try_read(room)
            } else {
                connection.try_peek(room)
            };
            match read {
                // What came before an error is read first.
                Ok(0) if total == 0 => match kept(table, fd) {
                    Some(number) => return Ok(number),
                    None => break 'all,
                },
                Ok(0) => break 'all,
                Ok(read) => {
                    done += read as u64;
                    total += u32::try_from(read)?;
                    // Peeking once more would show the same bytes.
                    if flags & PEEK != 0 {
                        break 'all;
                    }
                    turn.moved(read).await;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let enough = total > 0 && flags & WAITALL == 0;
                    if enough || nonblocking && total > 0 {
                        break 'all;
                    }
                    if nonblocking {
                        return Ok(errno::AGAIN);
                    }
                    poll_fn(|context| connection.poll_read_ready(context)).await;
                }
                Err(error) if total > 0 => {
                    keep(table, fd, error);
                    break 'all;
                }
                Err(error) => return Ok(Errno::from(error).0),
            }
        }
    }
    debug_assert!(u64::from(total) <= wanted);
    memory.put(place(size), &total.to_le_bytes())?;
    if let Some(truncated) = truncated {
        // Streams lose nothing.
        memory.put(place(truncated), &0_u16.to_le_bytes())?;
    }
    Ok(errno::SUCCESS)
}

/// `sock_send`, and `fd_write` without flags.
pub(super) async fn send(
    table: &mut Table,
    mut memory: Memory<'_>,
    [fd, list, count, flags, size]: [i32; 5],
) -> Answer {
    if flags != 0 {
        return Ok(errno::INVAL);
    }
    let (connection, nonblocking) = match connection(table, fd) {
        Ok(found) => found,
        Err(number) => return Ok(number),
    };
    if !(0..=MOST_BUFFERS).contains(&count) {
        return Ok(errno::INVAL);
    }
    if let Some(number) = kept(table, fd) {
        return Ok(number);
    }
    let (mut total, mut turn) = (0_u32, Turn::default());
    'all: for (at, length) in memory.buffers(list.cast_unsigned(), count.cast_unsigned())? {
        let mut done = 0;
        while done < length {
            let bytes = memory.bytes(at + done, (length - done).min(Turn::MOST as u64))?;
            match connection.try_write(bytes) {
                Ok(written) => {
                    done += written as u64;
                    total += u32::try_from(written)?;
                    turn.moved(written).await;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if nonblocking && total > 0 {
                        break 'all;
                    }
                    if nonblocking {
                        return Ok(errno::AGAIN);
                    }
                    // One that may wait sends all, as Linux does.
                    poll_fn(|context| connection.poll_write_ready(context)).await;
                }
                Err(error) if total > 0 => {
                    keep(table, fd, error);
                    break 'all;
                }
                Err(error) => return Ok(Errno::from(error).0),
            }
        }
    }
    memory.put(place(size), &total.to_le_bytes())?;
    Ok(errno::SUCCESS)
}

/// `sock_shutdown`.
pub(super) fn shutdown(table: &mut Table, fd: i32, how: i32) -> i32 {
    let how = match how {
        READ => Shutdown::Read,
        WRITE => Shutdown::Write,
        both if both == READ | WRITE => Shutdown::Both,
        _ => return errno::INVAL,
    };
    match connection(table, fd) {
        Ok((connection, _)) => {
            connection.shutdown(how);
            errno::SUCCESS
        }
        Err(number) => number,
    }
}

/// `fd_fdstat_get`.
pub(super) fn fdstat(table: &mut Table, mut memory: Memory<'_>, fd: i32, result: i32) -> Answer {
    let Some(socket) = table.get(fd.cast_unsigned()) else { return Ok(errno::BADF) };
    let rights = RIGHTS
        | match socket.kind {
            Kind::Listener(_) => RIGHT_ACCEPT,
            Kind::Connection(_) => RIGHTS_STREAM,
        };
    let flags = if socket.nonblocking { NONBLOCK } else { 0 };
    let mut fdstat = [0; 24];
    fdstat[0] = SOCKET_STREAM;
    fdstat[2..4].copy_from_slice(&flags.to_le_bytes());
    fdstat[8..16].copy_from_slice(&rights.to_le_bytes());
    // What comes of a listener are connections.
    fdstat[16..24].copy_from_slice(&(RIGHTS | RIGHTS_STREAM).to_le_bytes());
    memory.put(place(result), &fdstat)?;
    Ok(errno::SUCCESS)
}

/// `fd_filestat_get`: all is zero but what it is.
pub(super) fn filestat(mut memory: Memory<'_>, result: i32) -> Answer {
    let mut filestat = [0; 64];
    filestat[16] = SOCKET_STREAM;
    memory.put(place(result), &filestat)?;
    Ok(errno::SUCCESS)
}

/// `fd_fdstat_set_flags`: a socket has one flag.
pub(super) fn set_flags(table: &mut Table, fd: i32, flags: i32) -> i32 {
    match table.get(fd.cast_unsigned()) {
        Some(_) if flags & !i32::from(NONBLOCK) != 0 => errno::INVAL,
        Some(socket) => {
            socket.nonblocking = flags != 0;
            errno::SUCCESS
        }
        None => errno::BADF,
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Duration};

    use tokio::time::timeout;

    use super::*;
    use crate::{
        net::{test_connections, test_reset, test_tcp},
        preview1::memory::MOST_BYTES,
    };

    #[tokio::test]
    async fn a_call_that_moves_much_moves_no_more_than_linux_would_and_lets_others_run() {
        const SIZE: u32 = 4 << 20;
        let [ours, theirs] = test_connections();
        // What is written is thrown away, so it never has to wait.
        theirs.shutdown(Shutdown::Read);
        let mut table = Table::default();
        let fd = table.add(ours, false).cast_signed();
        let mut bytes = vec![0; SIZE as usize];
        for iovec in bytes[16..][..8 * MOST_BUFFERS as usize].chunks_mut(8) {
            iovec[4..].copy_from_slice(&SIZE.to_le_bytes());
        }
        let mut turns = 0;
        let others = async {
            loop {
                turns += 1;
                tokio::task::yield_now().await;
            }
        };
        let sent = tokio::select! {
            sent = send(&mut table, Memory(&mut bytes), [fd, 16, MOST_BUFFERS, 0, 0]) => sent,
            () = others => unreachable!("they have no end"),
        };
        assert_eq!(sent.unwrap(), errno::SUCCESS);
        assert_eq!(u64::from(Memory(&mut bytes).u32(0).unwrap()), MOST_BYTES);
        assert!(turns > 1000, "{turns}");
        for count in [MOST_BUFFERS + 1, -1] {
            let asked = [fd, 16, count, 0, 0];
            let refused = send(&mut table, Memory(&mut bytes), asked).await.unwrap();
            assert_eq!(refused, errno::INVAL);
            let refused = receive(&mut table, Memory(&mut bytes), asked, None).await.unwrap();
            assert_eq!(refused, errno::INVAL);
        }
    }

    /// A call on a descriptor with one buffer of 8 bytes: what it answers, and how
    /// many bytes it moved.
    async fn once(table: &mut Table, fd: i32, flags: i32) -> (i32, u32) {
        let mut bytes = [0; 64];
        bytes[16..24].copy_from_slice(&[32, 0, 0, 0, 8, 0, 0, 0]);
        let asked = [fd, 16, 1, flags, 0];
        let answer = receive(table, Memory(&mut bytes), asked, None).await.unwrap();
        (answer, Memory(&mut bytes).u32(0).unwrap())
    }

    #[tokio::test]
    async fn an_error_after_the_first_bytes_of_a_call_is_told_by_the_next() {
        for flags in [0, WAITALL] {
            let (ours, mut peer) = test_tcp().await;
            let mut table = Table::default();
            let fd = table.add(ours, false).cast_signed();
            peer.write_all(b"abc").unwrap();
            test_reset(peer);
            let Ok((connection, _)) = connection(&mut table, fd) else { panic!("it is there") };
            let ended = async {
                while !connection.has_ended() {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(20), ended).await.expect("it was broken off");
            assert_eq!(once(&mut table, fd, flags).await, (errno::SUCCESS, 3));
            assert_eq!(once(&mut table, fd, flags).await.0, errno::CONNRESET);
            assert_eq!(once(&mut table, fd, flags).await, (errno::SUCCESS, 0));
        }
    }

    #[tokio::test]
    async fn an_error_after_the_first_bytes_that_were_sent_is_told_after_what_came() {
        let [ours, theirs] = test_connections();
        let mut table = Table::default();
        let fd = table.add(ours, true).cast_signed();
        theirs.try_write(b"abc").unwrap();
        keep(&mut table, fd, io::ErrorKind::BrokenPipe.into());
        keep(&mut table, fd, io::ErrorKind::ConnectionReset.into());
        drop(theirs);
        assert_eq!(once(&mut table, fd, 0).await, (errno::SUCCESS, 3));
        assert_eq!(once(&mut table, fd, 0).await.0, errno::CONNRESET);
        assert_eq!(once(&mut table, fd, 0).await, (errno::SUCCESS, 0));
        keep(&mut table, fd, io::ErrorKind::TimedOut.into());
        let mut bytes = [0; 64];
        bytes[16..24].copy_from_slice(&[32, 0, 0, 0, 8, 0, 0, 0]);
        for told in [errno::TIMEDOUT, errno::PIPE] {
            let asked = [fd, 16, 1, 0, 0];
            assert_eq!(send(&mut table, Memory(&mut bytes), asked).await.unwrap(), told);
        }
    }
}
