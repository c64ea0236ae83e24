//! TCP clients.

use std::io::Write as _;
use std::net::SocketAddr;

use wasip2::clocks::monotonic_clock;
use wasip2::io::poll;
use wasip2::sockets::tcp::ShutdownType;

use crate::Failure;
use crate::address::from_wasi;
use crate::tcp::{self, Connection};

/// Time without progress after which a flood says that it stalls, in nanoseconds.
const STALL: u64 = 1_000_000_000;

pub fn connect(address: SocketAddr) -> Result<(), Failure> {
    let Connection { socket, .. } = &tcp::connect(address)?;
    println!("ok");
    println!("local {}", from_wasi(socket.local_address()?));
    println!("remote {}", from_wasi(socket.remote_address()?));
    Ok(())
}

/// The text is sent before anything is read: it must fit the buffers on the way.
pub fn get(address: SocketAddr, text: &str) -> Result<(), Failure> {
    let connection = tcp::connect(address)?;
    connection.send(text.as_bytes())?;
    connection.socket.shutdown(ShutdownType::Send)?;
    let mut last = b'\n';
    loop {
        let bytes = connection.receive(64 << 10)?;
        let Some(&end) = bytes.last() else { break };
        last = end;
        print(&bytes)?;
    }
    if last != b'\n' {
        print(b"\n")?;
    }
    Ok(())
}

pub fn flood(address: SocketAddr, mib: u64) -> Result<(), Failure> {
    let connection = tcp::connect(address)?;
    let start = monotonic_clock::now();
    let all = mib << 20;
    let block = [b'.'; 64 << 10];
    let mut sent = 0;
    while sent < all {
        let room = connection.output.check_write()?.min(all - sent).min(block.len() as u64);
        if room > 0 {
            connection.output.write(&block[..room as usize])?;
            sent += room;
            continue;
        }
        let timer = monotonic_clock::subscribe_duration(STALL);
        if !poll::poll(&[&connection.writable, &timer]).contains(&0) {
            println!("stalled after {sent} bytes");
            connection.writable.block();
        }
    }
    connection.output.blocking_flush()?;
    connection.socket.shutdown(ShutdownType::Send)?;
    // The end of the other side says that all has arrived.
    while !connection.receive(64 << 10)?.is_empty() {}
    let seconds = (monotonic_clock::now() - start) as f64 / 1e9;
    println!("sent {sent} bytes in {seconds:.3} s");
    Ok(())
}

pub fn connections(count: u32, address: SocketAddr) -> Result<(), Failure> {
    let mut open = Vec::new();
    for number in 0..count {
        match tcp::connect(address) {
            Ok(connection) => open.push(connection),
            Err(code) => {
                println!("{number} open");
                return Err(code.into());
            }
        }
    }
    println!("{count} open");
    // All are written to before the first is read, so that the server has to
    // serve them at once.
    for (number, connection) in open.iter().enumerate() {
        connection.send(format!("{number}").as_bytes())?;
        connection.socket.shutdown(ShutdownType::Send)?;
    }
    for (number, connection) in open.iter().enumerate() {
        let mut echo = Vec::new();
        loop {
            let bytes = connection.receive(64)?;
            if bytes.is_empty() {
                break;
            }
            echo.extend(bytes);
        }
        if echo != format!("{number}").as_bytes() {
            return Err(Failure::Peer(format!("connection {number}: not an echo: {echo:?}")));
        }
    }
    println!("{count} echoed");
    Ok(())
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(bytes)
        .map_err(|error| Failure::Peer(format!("standard output: {error}")))
}
