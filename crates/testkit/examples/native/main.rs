//! What guests are compared with in `benches/http` and `benches/tcp`: the same
//! servers as ordinary programs, and the clients that call both.
//!
//! ```text
//! native http ADDRESS                answer every request as guests/http does for /
//! native tcp-echo ADDRESS            send back what arrives
//! native tcp-sink ADDRESS            throw away what arrives
//! native tcp-source ADDRESS          send until the client leaves
//!
//! native send ADDRESS SECONDS        send as much as is taken; print bytes a second
//! native receive ADDRESS SECONDS     the other way round
//! native connections ADDRESS CLIENTS SECONDS
//!                                    connect, echo one byte, close; print connections a
//!                                    second, p50 and p99 in microseconds
//! ```
//!
//! ADDRESS has an IP address and a port. Servers run until they are killed, on as
//! many threads as there are processors.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program prints")]

mod clients;
mod servers;

use std::{error::Error, process::ExitCode, str::FromStr, time::Duration};

use servers::Role;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("native: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<(), Failure> {
    match *args {
        ["http", at] => servers::http(parse(at)?),
        ["tcp-echo", at] => servers::tcp(parse(at)?, Role::Echo),
        ["tcp-sink", at] => servers::tcp(parse(at)?, Role::Sink),
        ["tcp-source", at] => servers::tcp(parse(at)?, Role::Source),
        ["send", at, time] => {
            println!("{:.0}", clients::send(parse(at)?, seconds(time)?)?);
            Ok(())
        }
        ["receive", at, time] => {
            println!("{:.0}", clients::receive(parse(at)?, seconds(time)?)?);
            Ok(())
        }
        ["connections", at, clients, time] => {
            println!("{}", clients::connections(parse(at)?, parse(clients)?, seconds(time)?)?);
            Ok(())
        }
        _ => Err(format!("no such call: {args:?}").into()),
    }
}

fn seconds(text: &str) -> Result<Duration, Failure> {
    Ok(Duration::try_from_secs_f64(parse(text)?)?)
}

fn parse<T: FromStr>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|_| format!("{text:?} is not what belongs there").into())
}
