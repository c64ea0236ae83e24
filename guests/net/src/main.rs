//! A guest that does one thing with `wasi:sockets` 0.2, chosen by its first
//! argument, so that one component can stand for every kind of server and
//! client in tests and examples.
//!
//! What the host refuses is printed as the name of the WASI error code, alone on
//! a line of standard output; the exit code is then 1. Exit code 2 is for a
//! wrong call, with the reason on standard error.

mod address;
mod clients;
mod names;
mod serve;
mod tcp;
mod udp;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;

use serve::Role;
use wasip2::io::streams::StreamError;
use wasip2::sockets::network::ErrorCode;

const USAGE: &str = "\
Servers say `listening on ADDRESS:PORT` and serve all connections at once, for
ever. ADDRESS is 0.0.0.0 unless it is given.

net tcp-echo PORT [ADDRESS]        send back what arrives, and end when the client does
net tcp-sink PORT [ADDRESS]        throw away what arrives; say how much it was
net tcp-source PORT [ADDRESS]      send until the client leaves
net tcp-hold PORT [ADDRESS]        accept, and never read
net udp-echo PORT [ADDRESS]        send each datagram back
net many COUNT PORT [ADDRESS]      tcp-echo on COUNT ports, from PORT on

net tcp-get ADDRESS PORT TEXT      send TEXT, half-close, print what comes until the end
net tcp-flood ADDRESS PORT MIB     send that much; say so when the peer stops taking it
net connections COUNT ADDRESS PORT open that many, hold all, echo on each, close them
net udp-get ADDRESS PORT TEXT      send a datagram, print the one that comes within 5 s
net lookup NAME                    print the addresses of a name, one a line

net connect ADDRESS PORT           print `ok`, and the connection's two addresses
net bind ADDRESS PORT              bind and listen; print `ok` and the address
net udp-bind ADDRESS PORT          the same for UDP
";

/// Why the guest did not do what it was asked.
enum Failure {
    /// It was called wrongly.
    Usage(String),
    /// The host, or the other side, refused.
    Code(ErrorCode),
    /// A connection broke.
    Stream(StreamError),
    /// The other side did not do what was expected of it.
    Peer(String),
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        Self::Code(code)
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(why) | Self::Peer(why) => f.write_str(why),
            Self::Code(code) => f.write_str(code.name()),
            Self::Stream(StreamError::Closed) => f.write_str("closed"),
            Self::Stream(StreamError::LastOperationFailed(error)) => {
                f.write_str(&error.to_debug_string())
            }
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(why)) => {
            eprintln!("net: {why}");
            ExitCode::from(2)
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<(), Failure> {
    match *args {
        ["tcp-echo", ref at @ ..] => server(at, 1, Role::Echo),
        ["tcp-sink", ref at @ ..] => server(at, 1, Role::Sink),
        ["tcp-source", ref at @ ..] => server(at, 1, Role::Source),
        ["tcp-hold", ref at @ ..] => server(at, 1, Role::Hold),
        ["udp-echo", ref at @ ..] => udp::echo(place(at)?),
        ["many", count, ref at @ ..] => server(at, parse(count)?, Role::Echo),
        ["tcp-get", address, port, text] => clients::get(remote(address, port)?, text),
        ["tcp-flood", address, port, mib] => clients::flood(remote(address, port)?, parse(mib)?),
        ["connections", count, address, port] => {
            clients::connections(parse(count)?, remote(address, port)?)
        }
        ["udp-get", address, port, text] => udp::get(remote(address, port)?, text),
        ["lookup", name] => names::lookup(name),
        ["connect", address, port] => clients::connect(remote(address, port)?),
        ["bind", address, port] => tcp::try_listen(remote(address, port)?),
        ["udp-bind", address, port] => udp::try_bind(remote(address, port)?),
        ["help" | "--help"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => Err(Failure::Usage(format!("unknown call {args:?}\n{USAGE}"))),
    }
}

/// Listens on `count` ports from the given one on and serves them.
fn server(at: &[&str], count: u16, role: Role) -> Result<(), Failure> {
    let first = place(at)?;
    let mut listeners = Vec::new();
    for offset in 0..count.max(1) {
        let port = first.port().checked_add(offset);
        let port = port.ok_or_else(|| Failure::Usage("there are not so many ports".into()))?;
        let listener = tcp::listen(SocketAddr::new(first.ip(), port))?;
        println!("listening on {}", address::from_wasi(listener.local_address()?));
        listeners.push(listener);
    }
    serve::serve(&listeners, role)
}

/// Where a server listens: `PORT [ADDRESS]`.
fn place(at: &[&str]) -> Result<SocketAddr, Failure> {
    match *at {
        [port] => Ok(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), parse(port)?)),
        [port, address] => remote(address, port),
        _ => Err(Failure::Usage("what is missing is PORT [ADDRESS]".into())),
    }
}

fn remote(address: &str, port: &str) -> Result<SocketAddr, Failure> {
    Ok(SocketAddr::new(parse::<IpAddr>(address)?, parse(port)?))
}

fn parse<T: FromStr>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|_| Failure::Usage(format!("{text:?} is not what belongs there")))
}
