//! Connecting to the host of a probe.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use krustlet_model::probes::target::join;
use krustlet_resolver::{LookupTurn, SystemLookups};
use tokio::net::TcpStream;

/// Why there is no connection, in the words of Go's `net`, which people look
/// for in events.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("dial tcp: lookup {host}: no such host")]
    NoHost { host: String },

    // Not a source: its words are told here already.
    #[error("dial tcp {address}: connect: {}", go_words(.system))]
    Connect { address: String, system: io::Error },
}

/// The system's words as Go has them: in small letters, without a number.
fn go_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::HostUnreachable => return "no route to host".to_owned(),
        io::ErrorKind::TimedOut => return "connection timed out".to_owned(),
        _ => {}
    }
    let text = error.to_string();
    let text = text.split_once(" (os error").map_or(text.as_str(), |(text, _)| text);
    text.to_lowercase()
}

/// The one host that a probe goes to.
#[derive(Debug)]
pub(super) struct Host {
    name: String,
    at: At,
}

#[derive(Debug)]
enum At {
    /// It is to be looked up.
    Unknown(LookupTurn),
    /// Its addresses.
    Known(Vec<IpAddr>),
}

impl Host {
    /// Waits for leave to look the host up, if it is a name. That is no part of
    /// the probe: others' names may take their time.
    pub(super) async fn new(name: &str, lookups: &SystemLookups) -> Result<Self, DialError> {
        let at = match name.parse::<IpAddr>() {
            Ok(address) => At::Known(vec![address]),
            Err(_) => At::Unknown(lookups.turn().await.map_err(|_| no_host(name))?),
        };
        Ok(Self { name: name.to_owned(), at })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Connects to the first of its addresses that takes it.
    pub(super) async fn connect(&mut self, port: u16) -> Result<TcpStream, DialError> {
        let mut failed = None;
        for address in self.look_up().await? {
            match TcpStream::connect(SocketAddr::new(address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(system) => {
                    let address = join(&address.to_string(), port);
                    failed = Some(DialError::Connect { address, system });
                }
            }
        }
        Err(failed.unwrap_or_else(|| no_host(&self.name)))
    }

    /// Once: a probe goes to no other host.
    async fn look_up(&mut self) -> Result<Vec<IpAddr>, DialError> {
        let at = std::mem::replace(&mut self.at, At::Known(Vec::new()));
        let found = match at {
            At::Known(found) => found,
            At::Unknown(turn) => {
                let found = turn.look_up(&self.name, 0).await.map_err(|_| no_host(&self.name))?;
                found.into_iter().map(|found| found.ip()).collect()
            }
        };
        self.at = At::Known(found.clone());
        Ok(found)
    }
}

fn no_host(name: &str) -> DialError {
    DialError::NoHost { host: name.to_owned() }
}
