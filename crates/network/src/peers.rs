//! Leads to the pods of other nodes, and to none that it led to before.
//!
//! ```text
//! the nodes ─▶ routes: worked out when they change ─▶ ensure: at each look
//!                                                        │
//! run/peer-routes.json ◀── written before it is done ────┘
//! ```
//!
//! The file says which routes agents of this root directory made. Others that
//! look the same are another agent's, for several may run on one machine, also of
//! different clusters: they are neither needed nor removed. An agent that is not
//! to lead to other nodes removes those that one before it made.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use ipnet::IpNet;
use krustlet_model::Chain;
use serde::Deserialize;
use tokio::{sync::watch, task::spawn_blocking};

use crate::{
    ensure::{EnsureError, lead_to_peers},
    kept,
    ranges::PodRanges,
    routes::{Peer, Unled, routes},
};

/// The nodes of the cluster, as they are known.
#[derive(Debug)]
pub struct Peers {
    /// This node's name.
    pub own: String,
    /// All nodes; None as long as they are not known.
    pub known: watch::Receiver<Option<Arc<Vec<Peer>>>>,
}

/// The routes to other nodes' pods.
#[derive(Debug)]
pub(crate) struct PeerRoutes {
    /// None if nobody is to be led to.
    peers: Option<Peers>,
    /// This node's own addresses.
    node: Vec<IpAddr>,
    made: Made,
    worked_out: Option<WorkedOut>,
    /// Of what it was said that it is not led to.
    unled: BTreeSet<Unled>,
}

/// Which routes there should be, and what that was made of.
#[derive(Clone, Debug)]
struct WorkedOut {
    peers: Arc<Vec<Peer>>,
    ranges: Option<PodRanges>,
    routes: Arc<BTreeMap<IpNet, IpAddr>>,
    unled: BTreeSet<Unled>,
}

impl PeerRoutes {
    /// Reads which routes an agent before this one made. Blocks.
    pub(crate) fn open(path: PathBuf, peers: Option<Peers>, node: Vec<IpAddr>) -> Self {
        let made = Made::read(path);
        Self { peers, node, made, worked_out: None, unled: BTreeSet::new() }
    }

    /// Resolves when other nodes are known or have changed; false once nobody
    /// will tell any more. Cancel-safe.
    pub(crate) async fn changed(&mut self) -> bool {
        match &mut self.peers {
            Some(peers) => peers.known.changed().await.is_ok(),
            None => std::future::pending().await,
        }
    }

    /// Leads to other nodes' pods, if that is asked for; whether it was done.
    /// `ranges` are those of this node's pods.
    pub(crate) async fn lead(&mut self, ranges: Option<&PodRanges>) -> bool {
        let wanted = match &mut self.peers {
            None if self.made.routes.is_empty() => return true,
            None => Arc::default(),
            Some(peers) => {
                // Before they are known what is there stays.
                let Some(known) = peers.known.borrow_and_update().clone() else { return true };
                match self.work_out(known, ranges).await {
                    Ok(worked_out) => worked_out,
                    Err(error) => return failed(&EnsureError::Peers(error)),
                }
            }
        };
        let mut made = self.made.clone();
        let led = spawn_blocking(move || {
            let led = lead_to_peers(&wanted, &mut made);
            (made, led)
        });
        let led = match led.await {
            Ok((made, led)) => {
                self.made = made;
                led
            }
            Err(error) => Err(EnsureError::Peers(io::Error::other(error))),
        };
        match led {
            Ok(mut unled) => {
                unled.extend(self.worked_out.iter().flat_map(|all| all.unled.iter().cloned()));
                for why in unled.difference(&self.unled) {
                    tracing::warn!("{why}");
                }
                self.unled = unled;
                true
            }
            Err(error) => failed(&error),
        }
    }

    /// Which routes there should be. A cluster has thousands of nodes, so that it
    /// is not asked again for the same ones, and not on a thread of the runtime.
    async fn work_out(
        &mut self,
        peers: Arc<Vec<Peer>>,
        ranges: Option<&PodRanges>,
    ) -> io::Result<Arc<BTreeMap<IpNet, IpAddr>>> {
        if let Some(known) = &self.worked_out
            && Arc::ptr_eq(&known.peers, &peers)
            && known.ranges.as_ref() == ranges
        {
            return Ok(Arc::clone(&known.routes));
        }
        let own = self.peers.as_ref().map(|peers| peers.own.clone()).unwrap_or_default();
        let (node, ranges) = (self.node.clone(), ranges.cloned());
        let worked_out = spawn_blocking(move || {
            let (routes, unled) = routes((&own, &node), ranges.as_ref(), &peers);
            WorkedOut { peers, ranges, routes: Arc::new(routes), unled }
        });
        let worked_out = worked_out.await.map_err(io::Error::other)?;
        let routes = Arc::clone(&worked_out.routes);
        self.worked_out = Some(worked_out);
        Ok(routes)
    }
}

fn failed(error: &EnsureError) -> bool {
    tracing::error!(error = %Chain(error), "tried again");
    false
}

/// The routes that agents of this root directory made, on disk.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    path: PathBuf,
    routes: BTreeSet<(IpNet, IpAddr)>,
}

impl Made {
    /// Reads the file. Routes of one that is damaged are nobody's.
    fn read(path: PathBuf) -> Self {
        let routes: Vec<(Range, IpAddr)> = kept::read(&path).unwrap_or_default();
        let routes = routes.into_iter().map(|(range, hop)| (range.0, hop)).collect();
        Self { path, routes }
    }

    pub(crate) fn routes(&self) -> &BTreeSet<(IpNet, IpAddr)> {
        &self.routes
    }

    /// Writes them down, before they are made or after they were removed.
    pub(crate) fn keep(&mut self, routes: BTreeSet<(IpNet, IpAddr)>) {
        if routes == self.routes {
            return;
        }
        let text: Vec<_> = routes.iter().map(|(range, hop)| (range.to_string(), hop)).collect();
        if let Err(error) = kept::write(&self.path, &text) {
            // Known to this agent; the next one leaves them where they are.
            tracing::warn!(path = %self.path.display(), %error, "cannot be written");
        }
        self.routes = routes;
    }
}

/// A range as it is written down.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Range(IpNet);

impl TryFrom<String> for Range {
    type Error = ipnet::AddrParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn peer(name: &str, number: u8) -> Peer {
        Peer {
            name: name.into(),
            addresses: vec![IpAddr::from([192, 0, 2, number])],
            ranges: vec![format!("10.244.{number}.0/24")],
        }
    }

    #[test]
    fn what_was_made_is_known_to_the_next_agent() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("peer-routes.json");
        let mut made = Made::read(path.clone());
        assert!(made.routes().is_empty());
        let routes = BTreeSet::from([
            ("10.244.2.0/24".parse().unwrap(), "192.0.2.2".parse().unwrap()),
            ("fd00:2::/64".parse().unwrap(), "2001:db8::2".parse().unwrap()),
        ]);
        made.keep(routes.clone());
        assert_eq!(Made::read(path.clone()).routes(), &routes);
        fs::write(&path, "[[\"10.0.0.0\",").unwrap();
        assert!(Made::read(path).routes().is_empty());
    }

    #[tokio::test]
    async fn routes_are_worked_out_when_nodes_or_ranges_change_and_not_else() {
        let home = tempfile::tempdir().unwrap();
        let (_sender, known) = watch::channel(None);
        let peers = Peers { own: "self".into(), known };
        let path = home.path().join("peer-routes.json");
        let mut routes = PeerRoutes::open(path, Some(peers), Vec::new());
        let all = Arc::new(vec![peer("self", 1), peer("other", 2)]);
        let first = routes.work_out(Arc::clone(&all), None).await.unwrap();
        assert_eq!(first.len(), 1);
        let again = routes.work_out(Arc::clone(&all), None).await.unwrap();
        assert!(Arc::ptr_eq(&first, &again), "the same nodes");
        let ours = PodRanges::parse(&["10.244.2.0/24"]).unwrap();
        assert!(routes.work_out(all, Some(&ours)).await.unwrap().is_empty());
        let more = Arc::new(vec![peer("other", 2), peer("third", 3)]);
        assert_eq!(routes.work_out(more, None).await.unwrap().len(), 2);
    }
}
