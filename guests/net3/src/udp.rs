//! UDP servers and clients.

use std::net::SocketAddr;
use std::pin::pin;

use futures::future::{Either, select};
use wasip3::clocks::monotonic_clock;
use wasip3::sockets::types::{ErrorCode, UdpSocket};

use crate::address::{family, from_wasi, to_wasi};
use crate::{Failure, say};

/// How long a client waits for an answer, in nanoseconds.
const PATIENCE: u64 = 5_000_000_000;

fn bind(at: SocketAddr) -> Result<UdpSocket, ErrorCode> {
    let socket = UdpSocket::create(family(at))?;
    socket.bind(to_wasi(at))?;
    Ok(socket)
}

pub async fn try_bind(at: SocketAddr) -> Result<(), Failure> {
    let address = from_wasi(bind(at)?.get_local_address()?);
    say(format!("ok\nlocal {address}\n")).await;
    Ok(())
}

pub async fn echo(at: SocketAddr) -> Result<(), Failure> {
    let socket = bind(at)?;
    say(format!("listening on {}\n", from_wasi(socket.get_local_address()?))).await;
    loop {
        let (bytes, from) = socket.receive().await?;
        socket.send(bytes, Some(from)).await?;
    }
}

pub async fn get(to: SocketAddr, text: &str) -> Result<(), Failure> {
    let socket = UdpSocket::create(family(to))?;
    socket.connect(to_wasi(to))?;
    socket.send(text.as_bytes().to_vec(), None).await?;
    let timer = pin!(monotonic_clock::wait_for(PATIENCE));
    match select(pin!(socket.receive()), timer).await {
        Either::Left((received, _)) => {
            let (bytes, _) = received?;
            say([&bytes[..], b"\n"].concat()).await;
            Ok(())
        }
        Either::Right(_) => Err(ErrorCode::Timeout.into()),
    }
}
