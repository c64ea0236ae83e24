//! UDP servers and clients.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wasip2::clocks::monotonic_clock;
use wasip2::io::poll::{self, Pollable};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::network::ErrorCode;
use wasip2::sockets::udp::{
    IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream, UdpSocket,
};
use wasip2::sockets::udp_create_socket::create_udp_socket;

use crate::Failure;
use crate::address::{family, from_wasi, to_wasi};

/// How long a client waits for an answer, in nanoseconds.
const PATIENCE: u64 = 5_000_000_000;
/// Datagrams that are taken at once.
const BATCH: u64 = 64;

/// A socket that is bound. The order of the fields is that in which a host may
/// see them go: what waits, then the streams, then the socket.
struct Bound {
    readable: Pollable,
    writable: Pollable,
    input: IncomingDatagramStream,
    output: OutgoingDatagramStream,
    socket: UdpSocket,
}

impl Bound {
    fn new(at: SocketAddr, peer: Option<SocketAddr>) -> Result<Self, ErrorCode> {
        let socket = bind(at)?;
        let (input, output) = socket.stream(peer.map(to_wasi))?;
        let (readable, writable) = (input.subscribe(), output.subscribe());
        Ok(Self { readable, writable, input, output, socket })
    }

    /// Sends all of it, waiting where there is no room.
    fn send(&self, mut datagrams: &[OutgoingDatagram]) -> Result<(), ErrorCode> {
        while !datagrams.is_empty() {
            let room = usize::try_from(self.output.check_send()?).unwrap_or(usize::MAX);
            if room == 0 {
                self.writable.block();
                continue;
            }
            let sent = self.output.send(&datagrams[..datagrams.len().min(room)])?;
            datagrams = &datagrams[usize::try_from(sent).unwrap_or(usize::MAX)..];
        }
        Ok(())
    }
}

fn bind(at: SocketAddr) -> Result<UdpSocket, ErrorCode> {
    let socket = create_udp_socket(family(at))?;
    socket.start_bind(&instance_network(), to_wasi(at))?;
    let changed = socket.subscribe();
    while let Err(error) = socket.finish_bind() {
        if error != ErrorCode::WouldBlock {
            return Err(error);
        }
        changed.block();
    }
    Ok(socket)
}

pub fn try_bind(at: SocketAddr) -> Result<(), Failure> {
    println!("ok\nlocal {}", from_wasi(bind(at)?.local_address()?));
    Ok(())
}

pub fn echo(at: SocketAddr) -> Result<(), Failure> {
    let bound = Bound::new(at, None)?;
    println!("listening on {}", from_wasi(bound.socket.local_address()?));
    loop {
        bound.readable.block();
        let answers: Vec<OutgoingDatagram> = bound
            .input
            .receive(BATCH)?
            .into_iter()
            .map(|datagram| OutgoingDatagram {
                data: datagram.data,
                remote_address: Some(datagram.remote_address),
            })
            .collect();
        bound.send(&answers)?;
    }
}

pub fn get(address: SocketAddr, text: &str) -> Result<(), Failure> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let bound = Bound::new(SocketAddr::new(any, 0), Some(address))?;
    bound.send(&[OutgoingDatagram { data: text.as_bytes().to_vec(), remote_address: None }])?;
    let timer = monotonic_clock::subscribe_duration(PATIENCE);
    loop {
        if let Some(datagram) = bound.input.receive(1)?.into_iter().next() {
            println!("{}", String::from_utf8_lossy(&datagram.data));
            return Ok(());
        }
        if poll::poll(&[&bound.readable, &timer]).contains(&1) {
            return Err(ErrorCode::Timeout.into());
        }
    }
}
