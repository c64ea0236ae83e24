//! A guest of WASI 0.3 (`wasi:cli/run`) that does one thing, chosen by its first
//! argument: servers and clients over `wasi:sockets`, files, and the ways a
//! program can end.
//!
//! What the host refuses is printed as the name of the WASI error code, alone on
//! a line of standard output; `run` then fails. All that is printed goes through
//! 0.3's streams.

mod address;
mod names;
mod others;
mod tcp;
mod udp;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use wasip3::sockets::types::ErrorCode;

const USAGE: &str = "\
Servers say `listening on ADDRESS:PORT` and serve all connections at once, for
ever. ADDRESS is 0.0.0.0 unless it is given.

net3 tcp-echo PORT [ADDRESS]        send back what arrives, and end when the client does
net3 tcp-join PORT [ADDRESS]        the same, and never see a byte of it
net3 tcp-hold PORT [ADDRESS]        accept, and never read
net3 udp-echo PORT [ADDRESS]        send each datagram back

net3 tcp-get ADDRESS PORT TEXT      send TEXT, half-close, print what comes until the end
net3 tcp-flood ADDRESS PORT MIB     send that much; say so when the peer stops taking it
net3 connections COUNT ADDRESS PORT open that many, hold all, echo on each, close them
net3 udp-get ADDRESS PORT TEXT      send a datagram, print the one that comes within 5 s
net3 lookup NAME                    print the addresses of a name, one a line

net3 connect ADDRESS PORT           print `ok`, and the connection's two addresses
net3 bind ADDRESS PORT              bind and listen; print `ok` and the address
net3 udp-bind ADDRESS PORT          the same for UDP
net3 options                        set and print the options of sockets
net3 order                          make calls in the wrong order; print the answers

net3 world                          print arguments, environment and directories
net3 copy FROM TO                   copy a file, and print it
net3 lines COUNT                    print that many lines of 100 characters
net3 later                          return, and leave something running that would print a line
net3 exit CODE | trap | spin | sleep | grow MIB | tasks | streams
";

/// Why the guest did not do what it was asked.
pub enum Failure {
    /// It was called wrongly.
    Usage(String),
    /// The host, or the other side, refused.
    Code(ErrorCode),
    /// Something else was not as expected.
    Other(String),
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        Self::Code(code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(why) | Self::Other(why) => f.write_str(why),
            Self::Code(code) => f.write_str(&address::name(code)),
        }
    }
}

/// Writes to standard output, and waits until it is written.
pub async fn say(text: impl Into<Vec<u8>>) {
    let (mut writer, reader) = wasip3::wit_stream::new();
    let written = wasip3::cli::stdout::write_via_stream(reader);
    let text = text.into();
    let write = async {
        writer.write_all(text).await;
        drop(writer);
    };
    let ((), _) = futures::join!(write, async { written.await });
}

struct Program;

wasip3::cli::command::export!(Program);

impl wasip3::exports::cli::run::Guest for Program {
    async fn run() -> Result<(), ()> {
        let args = wasip3::cli::environment::get_arguments();
        let args: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
        match run(&args).await {
            Ok(()) => Ok(()),
            Err(failure) => {
                say(format!("{failure}\n")).await;
                Err(())
            }
        }
    }
}

async fn run(args: &[&str]) -> Result<(), Failure> {
    match *args {
        ["tcp-echo", ref at @ ..] => tcp::serve(place(at)?, tcp::Role::Echo).await,
        ["tcp-join", ref at @ ..] => tcp::serve(place(at)?, tcp::Role::Join).await,
        ["tcp-hold", ref at @ ..] => tcp::serve(place(at)?, tcp::Role::Hold).await,
        ["udp-echo", ref at @ ..] => udp::echo(place(at)?).await,
        ["tcp-get", address, port, text] => tcp::get(remote(address, port)?, text).await,
        ["tcp-flood", address, port, mib] => tcp::flood(remote(address, port)?, parse(mib)?).await,
        ["connections", count, address, port] => {
            tcp::connections(parse(count)?, remote(address, port)?).await
        }
        ["udp-get", address, port, text] => udp::get(remote(address, port)?, text).await,
        ["lookup", name] => names::lookup(name).await,
        ["connect", address, port] => tcp::try_connect(remote(address, port)?).await,
        ["bind", address, port] => tcp::try_listen(remote(address, port)?).await,
        ["udp-bind", address, port] => udp::try_bind(remote(address, port)?).await,
        ["options"] => others::options().await,
        ["order"] => others::order().await,
        ["world"] => others::world().await,
        ["copy", from, to] => others::copy(from, to).await,
        ["lines", count] => others::lines(parse(count)?).await,
        ["later"] => others::later().await,
        ["exit", code] => {
            wasip3::cli::exit::exit_with_code(parse(code)?);
            Err(Failure::Other("it has not ended".into()))
        }
        ["trap"] => core::arch::wasm32::unreachable(),
        ["spin"] => loop {
            std::hint::black_box(());
        },
        ["sleep"] => others::sleep().await,
        ["grow", mib] => others::grow(parse(mib)?).await,
        ["tasks"] => others::tasks().await,
        ["streams"] => others::streams(),
        _ => Err(Failure::Usage(format!("unknown call {args:?}\n{USAGE}"))),
    }
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
