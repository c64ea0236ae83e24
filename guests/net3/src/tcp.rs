//! TCP servers and clients.

use std::net::SocketAddr;
use std::pin::pin;

use futures::future::{Either, join_all, select};
use wasip3::clocks::monotonic_clock;
use wasip3::sockets::types::{ErrorCode, TcpSocket};
use wasip3::wit_bindgen::{StreamResult, spawn_local};

use crate::address::{family, from_wasi, to_wasi};
use crate::{Failure, say};

/// The most that is read or written at once, in bytes.
const PIECE: usize = 64 << 10;

/// Time without progress after which a flood says that it stalls, in nanoseconds.
const STALL: u64 = 1_000_000_000;

/// What a server does with its connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Echo,
    Join,
    Hold,
}

fn bind(at: SocketAddr) -> Result<TcpSocket, ErrorCode> {
    let socket = TcpSocket::create(family(at))?;
    socket.bind(to_wasi(at))?;
    Ok(socket)
}

pub async fn connect(to: SocketAddr) -> Result<TcpSocket, ErrorCode> {
    let socket = TcpSocket::create(family(to))?;
    socket.connect(to_wasi(to)).await?;
    Ok(socket)
}

/// Serves for ever.
pub async fn serve(at: SocketAddr, role: Role) -> Result<(), Failure> {
    let socket = bind(at)?;
    let mut accepted = socket.listen()?;
    say(format!("listening on {}\n", from_wasi(socket.get_local_address()?))).await;
    while let Some(connection) = accepted.next().await {
        spawn_local(async move {
            match role {
                Role::Echo => echo(&connection).await,
                Role::Join => {
                    let (stream, received) = connection.receive();
                    // An error is the client's: it has gone.
                    let _ = connection.send(stream).await;
                    let _ = received.await;
                }
                Role::Hold => {
                    let (_stream, _received) = connection.receive();
                    std::future::pending().await
                }
            }
        });
    }
    Err(Failure::Other("the listener has ended".into()))
}

async fn echo(connection: &TcpSocket) {
    let (mut input, _) = connection.receive();
    let (mut output, data) = wasip3::wit_stream::new();
    let sent = connection.send(data);
    let copy = async {
        let mut buffer = Vec::with_capacity(PIECE);
        loop {
            let (result, bytes) = input.read(buffer).await;
            if !output.write_all(bytes).await.is_empty() {
                break;
            }
            if !matches!(result, StreamResult::Complete(_)) {
                break;
            }
            buffer = Vec::with_capacity(PIECE);
        }
        drop(output);
    };
    // An error is the client's: it has gone.
    let ((), _) = futures::join!(copy, async { sent.await });
}

/// What comes until the end, and how that was.
async fn rest(connection: &TcpSocket) -> Result<Vec<u8>, ErrorCode> {
    let (stream, ended) = connection.receive();
    let bytes = stream.collect().await;
    ended.await?;
    Ok(bytes)
}

/// Sends all of it and ends the direction.
async fn send(connection: &TcpSocket, bytes: &[u8]) -> Result<(), ErrorCode> {
    let (mut output, data) = wasip3::wit_stream::new();
    let sent = connection.send(data);
    let write = async {
        output.write_all(bytes.to_vec()).await;
        drop(output);
    };
    let ((), sent) = futures::join!(write, async { sent.await });
    sent
}

pub async fn get(to: SocketAddr, text: &str) -> Result<(), Failure> {
    let connection = connect(to).await?;
    send(&connection, text.as_bytes()).await?;
    let mut answer = rest(&connection).await?;
    answer.push(b'\n');
    say(answer).await;
    Ok(())
}

pub async fn flood(to: SocketAddr, mib: usize) -> Result<(), Failure> {
    let connection = connect(to).await?;
    let (mut output, data) = wasip3::wit_stream::new();
    let done = connection.send(data);
    let mut sent = 0;
    while sent < mib << 20 {
        let mut write = pin!(output.write_all(vec![b'.'; PIECE]));
        let timer = pin!(monotonic_clock::wait_for(STALL));
        let left = match select(write.as_mut(), timer).await {
            Either::Left((left, _)) => left,
            Either::Right(_) => {
                say(format!("stalled after {sent} bytes\n")).await;
                write.await
            }
        };
        sent += PIECE - left.len();
        if !left.is_empty() {
            break;
        }
    }
    drop(output);
    done.await?;
    // The end of the other side says that all has arrived.
    let came = rest(&connection).await?;
    say(format!("sent {sent} bytes, {} came back\n", came.len())).await;
    Ok(())
}

pub async fn connections(count: usize, to: SocketAddr) -> Result<(), Failure> {
    let mut open = Vec::new();
    for number in 0..count {
        match connect(to).await {
            Ok(connection) => open.push(connection),
            Err(code) => {
                say(format!("{number} open\n")).await;
                return Err(code.into());
            }
        }
    }
    say(format!("{count} open\n")).await;
    let echoes = open.iter().enumerate().map(|(number, connection)| async move {
        let text = number.to_string();
        send(connection, text.as_bytes()).await?;
        let came = rest(connection).await?;
        if came == text.as_bytes() {
            Ok(())
        } else {
            Err(Failure::Other(format!("connection {number}: not an echo: {came:?}")))
        }
    });
    join_all(echoes).await.into_iter().collect::<Result<(), Failure>>()?;
    say(format!("{count} echoed\n")).await;
    Ok(())
}

pub async fn try_connect(to: SocketAddr) -> Result<(), Failure> {
    let connection = connect(to).await?;
    let local = from_wasi(connection.get_local_address()?);
    let remote = from_wasi(connection.get_remote_address()?);
    say(format!("ok\nlocal {local}\nremote {remote}\n")).await;
    Ok(())
}

pub async fn try_listen(at: SocketAddr) -> Result<(), Failure> {
    let socket = bind(at)?;
    let _accepted = socket.listen()?;
    say(format!("ok\nlocal {}\n", from_wasi(socket.get_local_address()?))).await;
    Ok(())
}
