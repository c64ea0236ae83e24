//! Makes probes: connects to a pod's ports as a kubelet does.
//!
//! When a probe is made, and what follows from it, is
//! [`probes`](krustlet_model::probes)'; the pod's task asks.

mod dial;
mod exchange;
mod http;
mod tls;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use krustlet_model::probes::target::{Target, join};
use krustlet_resolver::SystemLookups;
use tokio::{sync::Semaphore, time::timeout};

use self::dial::Host;
use crate::outside::{ProbeAnswer, ProbeAsk, Prober};

/// The most probes of one pod that are made at once, where there are descriptors
/// enough: more than pods have containers as a rule. Each holds one for up to its
/// time limit, which a pod chooses. Others of the pod wait for their turn, which
/// their limit does not count.
const MOST: u64 = 16;

/// The part of the agent's descriptors that probes may hold: the rest is for
/// sandboxes (two each), files, the API server and who asks the node's API.
const PART: u64 = 4;

/// Names of hosts that are looked up at once, one of each pod; pods choose them.
/// What waits for others' names is not counted by a probe's limit.
const LOOKUPS: usize = 2;

/// How often a probe is made that comes to nothing, each time within its limit.
/// Source: `maxProbeRetries` in the kubelet's `pkg/kubelet/prober/prober.go`.
const TRIES: usize = 3;

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

    fn of_pod(&self) -> Self {
        let turns = Arc::new(Semaphore::new(self.share));
        Self { turns, lookups: self.lookups.for_one(), ..self.clone() }
    }
}

impl Prober for NetProber {
    fn for_pod(&self) -> Arc<dyn Prober> {
        Arc::new(self.of_pod())
    }

    fn probe(&self, ask: ProbeAsk) -> BoxFuture<'static, ProbeAnswer> {
        let prober = self.clone();
        Box::pin(async move {
            // Never closed; a probe without a turn would be made all the same.
            let _turn = prober.turns.acquire().await.ok();
            let ProbeAsk { target, address, limit } = ask;
            let pod = address.to_string();
            let NetProber { lookups, tls, .. } = &prober;
            match target {
                Target::Tcp { host, port } => {
                    let host = host.as_deref().unwrap_or(&pod);
                    tcp(lookups, host, port, limit).await
                }
                Target::Http(target) => {
                    let host = target.host.as_deref().unwrap_or(&pod);
                    let mut answer = http::get((tls, lookups), &target, host, limit).await;
                    for _ in 1..TRIES {
                        let is_error =
                            matches!(answer, ProbeAnswer::Broken(_) | ProbeAnswer::Unknown(_));
                        if !is_error {
                            break;
                        }
                        answer = http::get((tls, lookups), &target, host, limit).await;
                    }
                    answer
                }
            }
        })
    }
}

/// Source: kubelet, `DoTCPProbe` in `pkg/probe/tcp/tcp.go`.
async fn tcp(lookups: &SystemLookups, host: &str, port: u16, limit: Duration) -> ProbeAnswer {
    let mut dialled = match Host::new(host, lookups).await {
        Ok(dialled) => dialled,
        Err(error) => return ProbeAnswer::Failure(error.to_string()),
    };
    match timeout(limit, dialled.connect(port)).await {
        Ok(Ok(_)) => ProbeAnswer::Success,
        Ok(Err(error)) => ProbeAnswer::Failure(error.to_string()),
        Err(_) => ProbeAnswer::Failure(format!("dial tcp {}: i/o timeout", join(host, port))),
    }
}

#[cfg(test)]
mod tests;
