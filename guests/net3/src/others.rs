//! What is no server and no client.

use std::fmt::Write as _;
use std::hint::black_box;

use futures::future::join_all;
use wasip3::cli::{environment, stdout};
use wasip3::clocks::monotonic_clock;
use wasip3::filesystem::preopens::get_directories;
use wasip3::filesystem::types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags};
use wasip3::sockets::types::{ErrorCode, IpAddressFamily, TcpSocket, UdpSocket};
use wasip3::wit_bindgen::spawn_local;

use crate::address::{from_wasi, name, to_wasi};
use crate::{Failure, say};

pub async fn world() -> Result<(), Failure> {
    let mut text = String::new();
    for arg in environment::get_arguments() {
        let _ = writeln!(text, "argument {arg}");
    }
    for (name, value) in environment::get_environment() {
        let _ = writeln!(text, "variable {name}={value}");
    }
    for (_, path) in get_directories() {
        let _ = writeln!(text, "directory {path}");
    }
    if let Some(path) = environment::get_initial_cwd() {
        let _ = writeln!(text, "stands in {path}");
    }
    say(text).await;
    Ok(())
}

/// Copies a file of one volume to another; the bytes never come here.
pub async fn copy(from: &str, to: &str) -> Result<(), Failure> {
    let other = |what: &dyn std::fmt::Debug| Failure::Other(format!("{what:?}"));
    let source = open(from, OpenFlags::empty(), DescriptorFlags::READ).await?;
    let target = open(to, OpenFlags::CREATE | OpenFlags::TRUNCATE, DescriptorFlags::WRITE).await?;
    let (bytes, read) = source.read_via_stream(0);
    target.write_via_stream(bytes, 0).await.map_err(|error| other(&error))?;
    read.await.map_err(|error| other(&error))?;
    let (bytes, read) = source.read_via_stream(0);
    stdout::write_via_stream(bytes).await.map_err(|error| other(&error))?;
    read.await.map_err(|error| other(&error))
}

/// Opens a file of the innermost volume that holds the path.
async fn open(path: &str, open: OpenFlags, flags: DescriptorFlags) -> Result<Descriptor, Failure> {
    let volumes = get_directories();
    let (directory, rest) = volumes
        .iter()
        .filter_map(|(directory, at)| {
            let rest = path.strip_prefix(at.trim_end_matches('/'))?.strip_prefix('/')?;
            Some((directory, rest.to_owned()))
        })
        .min_by_key(|(_, rest)| rest.len())
        .ok_or_else(|| Failure::Other("no volume holds it".into()))?;
    directory
        .open_at(PathFlags::SYMLINK_FOLLOW, rest, open, flags)
        .await
        .map_err(|error| Failure::Other(format!("{error:?}")))
}

pub async fn lines(count: usize) -> Result<(), Failure> {
    let line = format!("{:.<99}\n", "");
    say(line.repeat(count)).await;
    Ok(())
}

/// Leaves something running when `run` returns.
pub async fn later() -> Result<(), Failure> {
    spawn_local(async {
        monotonic_clock::wait_for(100_000_000).await;
        say("later\n").await;
    });
    say("returning\n").await;
    Ok(())
}

pub async fn sleep() -> Result<(), Failure> {
    monotonic_clock::wait_for(u64::MAX / 4).await;
    Ok(())
}

pub async fn grow(mib: usize) -> Result<(), Failure> {
    let block = black_box(vec![1_u8; mib << 20]);
    say(format!("{} bytes\n", block.len())).await;
    Ok(())
}

/// Has ever more calls wait at once.
pub async fn tasks() -> Result<(), Failure> {
    let socket = UdpSocket::create(IpAddressFamily::Ipv4)?;
    socket.bind(to_wasi(([127, 0, 0, 1], 9).into()))?;
    let socket = &socket;
    let calls = (0..1_000_000).map(|_| async move { socket.receive().await.map(drop) });
    join_all(calls).await.into_iter().collect::<Result<(), _>>()?;
    Ok(())
}

/// Makes ever more streams.
pub fn streams() -> Result<(), Failure> {
    let all: Vec<_> = (0..1_000_000).map(|_| wasip3::wit_stream::new::<u8>()).collect();
    Err(Failure::Other(format!("there are {}", all.len())))
}

pub async fn options() -> Result<(), Failure> {
    for family in [IpAddressFamily::Ipv4, IpAddressFamily::Ipv6] {
        let tcp = TcpSocket::create(family)?;
        let zeroes = [
            tcp.set_listen_backlog_size(0),
            tcp.set_keep_alive_idle_time(0),
            tcp.set_keep_alive_interval(0),
            tcp.set_keep_alive_count(0),
            tcp.set_hop_limit(0),
            tcp.set_receive_buffer_size(0),
            tcp.set_send_buffer_size(0),
        ];
        for zero in zeroes {
            say(format!("{}\n", answer(zero))).await;
        }
        tcp.set_listen_backlog_size(8)?;
        tcp.set_keep_alive_enabled(true)?;
        tcp.set_keep_alive_idle_time(77_000_000_000)?;
        tcp.set_keep_alive_interval(7_000_000_000)?;
        tcp.set_keep_alive_count(5)?;
        tcp.set_hop_limit(9)?;
        tcp.set_receive_buffer_size(20_000)?;
        tcp.set_send_buffer_size(30_000)?;
        say(format!(
            "tcp {} {} {} {} {} {} {}\n",
            tcp.get_keep_alive_enabled()?,
            tcp.get_keep_alive_idle_time()?,
            tcp.get_keep_alive_interval()?,
            tcp.get_keep_alive_count()?,
            tcp.get_hop_limit()?,
            tcp.get_receive_buffer_size()?,
            tcp.get_send_buffer_size()?,
        ))
        .await;
        let udp = UdpSocket::create(family)?;
        udp.set_unicast_hop_limit(9)?;
        udp.set_receive_buffer_size(20_000)?;
        udp.set_send_buffer_size(30_000)?;
        say(format!(
            "udp {} {} {}\n",
            udp.get_unicast_hop_limit()?,
            udp.get_receive_buffer_size()?,
            udp.get_send_buffer_size()?,
        ))
        .await;
    }
    Ok(())
}

/// An answer, in one word.
fn answer<T>(answer: Result<T, ErrorCode>) -> String {
    answer.map_or_else(|code| name(&code), |_| "ok".into())
}

pub async fn order() -> Result<(), Failure> {
    let at = to_wasi(([127, 0, 0, 1], 0).into());
    let mut said = Vec::new();
    let tcp = TcpSocket::create(IpAddressFamily::Ipv4)?;
    said.push(("local", answer(tcp.get_local_address())));
    said.push(("remote", answer(tcp.get_remote_address())));
    said.push(("receive", answer(tcp.receive().1.await)));
    let (_writer, data) = wasip3::wit_stream::new();
    said.push(("send", answer(tcp.send(data).await)));
    said.push(("connect nowhere", answer(tcp.connect(at).await)));
    said.push(("listen unbound", answer(tcp.listen())));
    said.push(("is listening", tcp.get_is_listening().to_string()));
    said.push(("listen again", answer(tcp.listen())));
    said.push(("bind a listener", answer(tcp.bind(at))));
    let port = from_wasi(tcp.get_local_address()?).port();
    let to = to_wasi(([127, 0, 0, 1], port).into());
    said.push(("connect a listener", answer(tcp.connect(to).await)));
    let tcp = TcpSocket::create(IpAddressFamily::Ipv4)?;
    said.push(("connect to nobody", {
        let nobody = to_wasi(([127, 0, 0, 1], 1).into());
        answer(tcp.connect(nobody).await)
    }));
    said.push(("bind a failed one", answer(tcp.bind(at))));
    let udp = UdpSocket::create(IpAddressFamily::Ipv4)?;
    said.push(("udp receive", answer(udp.receive().await)));
    said.push(("udp send nowhere", answer(udp.send(vec![1], None).await)));
    said.push(("udp send too much", answer(udp.send(vec![1; 70_000], Some(to)).await)));
    said.push(("udp disconnect", answer(udp.disconnect())));
    said.push(("udp send", answer(udp.send(vec![1], Some(to)).await)));
    said.push(("udp local", answer(udp.get_local_address())));
    said.push(("udp connect", answer(udp.connect(to))));
    said.push(("udp send elsewhere", {
        let elsewhere = to_wasi(([127, 0, 0, 1], 1).into());
        answer(udp.send(vec![1], Some(elsewhere)).await)
    }));
    said.push(("udp disconnect one", answer(udp.disconnect())));
    said.push(("udp bind again", answer(udp.bind(at))));
    for (what, answer) in said {
        say(format!("{what}: {answer}\n")).await;
    }
    Ok(())
}
