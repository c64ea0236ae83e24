//! TCP sockets that listen and that connect.

use std::net::SocketAddr;

use wasip2::io::poll::Pollable;
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::network::ErrorCode;
use wasip2::sockets::tcp::TcpSocket;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

use crate::Failure;
use crate::address::{family, from_wasi, to_wasi};

/// An open connection. The order of the fields is that in which a host may see
/// them go: what waits, then the streams, then the socket.
pub struct Connection {
    pub readable: Pollable,
    pub writable: Pollable,
    pub input: InputStream,
    pub output: OutputStream,
    pub socket: TcpSocket,
}

impl Connection {
    pub fn new(socket: TcpSocket, input: InputStream, output: OutputStream) -> Self {
        let (readable, writable) = (input.subscribe(), output.subscribe());
        Self { readable, writable, input, output, socket }
    }

    /// Sends all of it, waiting where the peer is slow.
    pub fn send(&self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            self.writable.block();
            let allowed = usize::try_from(self.output.check_write()?).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(allowed));
            self.output.write(now)?;
            bytes = later;
        }
        self.output.blocking_flush()
    }

    /// What comes next; nothing once the peer has ended.
    pub fn receive(&self, most: u64) -> Result<Vec<u8>, StreamError> {
        match self.input.blocking_read(most) {
            Err(StreamError::Closed) => Ok(Vec::new()),
            other => other,
        }
    }
}

pub fn listen(address: SocketAddr) -> Result<TcpSocket, ErrorCode> {
    let socket = create_tcp_socket(family(address))?;
    socket.start_bind(&instance_network(), to_wasi(address))?;
    finish(&socket, TcpSocket::finish_bind)?;
    socket.start_listen()?;
    finish(&socket, TcpSocket::finish_listen)?;
    Ok(socket)
}

pub fn try_listen(address: SocketAddr) -> Result<(), Failure> {
    let socket = listen(address)?;
    println!("ok\nlocal {}", from_wasi(socket.local_address()?));
    Ok(())
}

pub fn connect(address: SocketAddr) -> Result<Connection, ErrorCode> {
    let socket = create_tcp_socket(family(address))?;
    socket.start_connect(&instance_network(), to_wasi(address))?;
    let (input, output) = finish(&socket, TcpSocket::finish_connect)?;
    Ok(Connection::new(socket, input, output))
}

/// Waits for the second half of what was started.
fn finish<T>(
    socket: &TcpSocket,
    half: impl Fn(&TcpSocket) -> Result<T, ErrorCode>,
) -> Result<T, ErrorCode> {
    let changed = socket.subscribe();
    loop {
        match half(socket) {
            Err(ErrorCode::WouldBlock) => changed.block(),
            done => return done,
        }
    }
}
