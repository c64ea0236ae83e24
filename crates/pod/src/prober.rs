//! Makes probes: connects to a pod's ports as a kubelet does.
//!
//! When a probe is made, and what follows from it, is
//! [`probes`](krustlet_model::probes)'; the pod's task asks.

mod http;
mod tls;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use krustlet_model::probes::target::{HttpTarget, Target, join};
use krustlet_resolver::SystemLookups;
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};

use crate::outside::{ProbeAnswer, ProbeAsk, Prober};

/// The most probes of one pod that are made at once, where there are descriptors
/// enough: more than pods have containers as a rule. Each holds one for up to its
/// time limit, which a pod chooses. Others of the pod wait for their turn, which
/// their limit does not count.
const MOST: u64 = 16;

/// The part of the agent's descriptors that probes may hold: the rest is for
/// sandboxes (two each), files, the API server and who asks the node's API.
const PART: u64 = 4;

/// Names of hosts that are looked up at once; pods choose them.
const LOOKUPS: usize = 2;

/// How many probes of one pod are made at once, at least one, by an agent that
/// may have so many descriptors (None: any number) and pods. What one pod has is
/// taken from no other, however long its probes last.
#[must_use]
pub fn share(descriptors: Option<u64>, pods: u32) -> usize {
    let each = descriptors.map_or(MOST, |all| all / PART / u64::from(pods.max(1)));
    usize::try_from(each.clamp(1, MOST)).unwrap_or(1)
}

/// Connects from this process.
#[derive(Clone, Debug)]
pub struct NetProber {
    /// How many turns each pod has.
    share: usize,
    /// Those of the pod that this one is for.
    turns: Arc<Semaphore>,
    lookups: SystemLookups,
    tls: tls::Connector,
}

impl NetProber {
    /// Makes so many probes of each pod at once.
    #[must_use]
    pub fn new(share: usize) -> Self {
        Self {
            share,
            turns: Arc::new(Semaphore::new(share)),
            lookups: SystemLookups::new(LOOKUPS),
            tls: tls::Connector::new(),
        }
    }
}

impl Prober for NetProber {
    fn for_pod(&self) -> Arc<dyn Prober> {
        Arc::new(Self { turns: Arc::new(Semaphore::new(self.share)), ..self.clone() })
    }

    fn probe(&self, ask: ProbeAsk) -> BoxFuture<'static, ProbeAnswer> {
        let prober = self.clone();
        Box::pin(async move {
            // Never closed; a probe without a turn would be made all the same.
            let _turn = prober.turns.acquire().await.ok();
            let ProbeAsk { target, address, limit } = ask;
            let pod = address.to_string();
            match target {
                Target::Tcp { host, port } => {
                    let host = host.as_deref().unwrap_or(&pod);
                    tcp(&prober.lookups, host, port, limit).await
                }
                Target::Http(target) => {
                    let host = target.host.clone().unwrap_or(pod);
                    prober.http(&target, &host, limit).await
                }
            }
        })
    }
}

impl NetProber {
    async fn http(&self, target: &HttpTarget, host: &str, limit: Duration) -> ProbeAnswer {
        match timeout(limit, http::get(&self.tls, &self.lookups, target, host)).await {
            Ok(answer) => answer,
            Err(_) => http::failed(
                &target.url(host),
                "context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            ),
        }
    }
}

/// Source: kubelet, `DoTCPProbe` in `pkg/probe/tcp/tcp.go`.
async fn tcp(lookups: &SystemLookups, host: &str, port: u16, limit: Duration) -> ProbeAnswer {
    match timeout(limit, connect(lookups, host, port)).await {
        Ok(Ok(_)) => ProbeAnswer::Success,
        Ok(Err(error)) => ProbeAnswer::Failure(error.to_string()),
        Err(_) => ProbeAnswer::Failure(format!("dial tcp {}: i/o timeout", join(host, port))),
    }
}

/// Why there is no connection, in the words of Go's `net`, which people look
/// for in events.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
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

/// Connects to the first address of a host that takes it.
async fn connect(lookups: &SystemLookups, host: &str, port: u16) -> Result<TcpStream, DialError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        let connect_error = |system| DialError::Connect { address: join(host, port), system };
        return TcpStream::connect((address, port)).await.map_err(connect_error);
    }
    let no_host = || DialError::NoHost { host: host.to_owned() };
    let mut failed = None;
    for address in lookups.look_up(host, port).await.map_err(|_| no_host())? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(system) => {
                failed = Some(DialError::Connect { address: address.to_string(), system });
            }
        }
    }
    Err(failed.unwrap_or_else(no_host))
}

#[cfg(test)]
mod tests;
