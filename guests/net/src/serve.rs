//! TCP servers: one loop for all listeners and connections, over `wasi:io/poll`.

use wasip2::io::poll::{self, Pollable};
use wasip2::io::streams::StreamError;
use wasip2::sockets::network::ErrorCode;
use wasip2::sockets::tcp::{ShutdownType, TcpSocket};

use crate::Failure;
use crate::address::from_wasi;
use crate::tcp::Connection;

/// The most that is read or written at once, in bytes.
const PIECE: u64 = 64 << 10;

/// What a server does with its connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Echo,
    Sink,
    Source,
    Hold,
}

/// What a served connection waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Bytes of the client, or its end.
    Readable,
    /// Room for more bytes to it.
    Writable,
    /// That all has gone, so that our end may follow.
    Flushed,
}

struct Served {
    wait: Wait,
    /// How many bytes came.
    received: u64,
    connection: Connection,
}

/// Serves for ever; ends only if a listener fails.
pub fn serve(listeners: &[TcpSocket], role: Role) -> Result<(), Failure> {
    let accepting: Vec<Pollable> = listeners.iter().map(TcpSocket::subscribe).collect();
    let mut served: Vec<Served> = Vec::new();
    let mut held: Vec<Connection> = Vec::new();
    loop {
        let waits: Vec<&Pollable> =
            accepting.iter().chain(served.iter().map(Served::waits_for)).collect();
        let mut ready = poll::poll(&waits);
        // From the back, so that what is removed moves nothing still to come.
        ready.sort_unstable_by(|a, b| b.cmp(a));
        for index in ready.into_iter().map(|index| index as usize) {
            if let Some(index) = index.checked_sub(accepting.len()) {
                // An error is the client's: it has gone.
                if !served[index].advance(role).unwrap_or(false) {
                    served.swap_remove(index);
                }
                continue;
            }
            while let Some(connection) = accept(&listeners[index])? {
                if role == Role::Hold {
                    println!("holding {}", from_wasi(connection.socket.remote_address()?));
                    held.push(connection);
                } else {
                    let wait = if role == Role::Source { Wait::Writable } else { Wait::Readable };
                    served.push(Served { wait, received: 0, connection });
                }
            }
        }
    }
}

/// The next connection, unless none is there.
fn accept(listener: &TcpSocket) -> Result<Option<Connection>, ErrorCode> {
    loop {
        match listener.accept() {
            Ok((socket, input, output)) => {
                return Ok(Some(Connection::new(socket, input, output)));
            }
            Err(ErrorCode::WouldBlock) => return Ok(None),
            // It went before it was accepted.
            Err(ErrorCode::ConnectionAborted | ErrorCode::ConnectionReset) => {}
            Err(error) => return Err(error),
        }
    }
}

impl Served {
    fn waits_for(&self) -> &Pollable {
        match self.wait {
            Wait::Readable => &self.connection.readable,
            Wait::Writable | Wait::Flushed => &self.connection.writable,
        }
    }

    /// Does what is possible now; false when the connection is done with.
    fn advance(&mut self, role: Role) -> Result<bool, StreamError> {
        let Connection { input, output, socket, .. } = &self.connection;
        match (role, self.wait) {
            (_, Wait::Flushed) => {
                if output.check_write()? == 0 {
                    return Ok(true);
                }
                // An error is the client's: it has gone.
                let _ = socket.shutdown(ShutdownType::Send);
                Ok(false)
            }
            (Role::Echo, Wait::Writable) => {
                self.wait = Wait::Readable;
                Ok(true)
            }
            (Role::Echo, Wait::Readable) => {
                let room = output.check_write()?;
                if room == 0 {
                    self.wait = Wait::Writable;
                    return Ok(true);
                }
                match input.read(room.min(PIECE)) {
                    Ok(bytes) => output.write(&bytes)?,
                    Err(StreamError::Closed) => {
                        output.flush()?;
                        self.wait = Wait::Flushed;
                    }
                    Err(error) => return Err(error),
                }
                Ok(true)
            }
            (Role::Source, _) => {
                let room = output.check_write()?.min(PIECE);
                output.write(&[b'.'; PIECE as usize][..room as usize])?;
                Ok(true)
            }
            (Role::Sink | Role::Hold, _) => match input.read(PIECE) {
                Ok(bytes) => {
                    self.received += bytes.len() as u64;
                    Ok(true)
                }
                Err(error) => {
                    println!("received {} bytes", self.received);
                    Err(error)
                }
            },
        }
    }
}
