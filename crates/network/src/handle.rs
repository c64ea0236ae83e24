//! What the rest of the agent asks of the pods' network.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use krustlet_model::PodUid;
use krustlet_protocol::Destinations;
use tokio::sync::watch;

use crate::{
    addresses::{AddressError, Addresses},
    allowed::{self, NodeAddresses},
    freed::{Freed, since_boot},
    namespace::Namespace,
    ranges::{PodRanges, gateway},
};

/// How pods get their addresses now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkState {
    /// Not at all: they wait, for this.
    Waiting(String),
    /// They share the node's.
    Host {
        /// Why, unless it was asked for.
        why: Option<String>,
    },
    /// Of these ranges.
    Own(PodRanges),
}

/// The pods' network. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    /// The node's own addresses, its family first.
    pub(crate) node: Vec<IpAddr>,
    /// The port of the node's API.
    pub(crate) api_port: Option<u16>,
    pub(crate) namespace: Option<Namespace>,
    is_stand_in: bool,
    pub(crate) state: watch::Sender<NetworkState>,
    /// Where the node answers, as far as pods could reach it.
    pub(crate) reached_at: watch::Sender<NodeAddresses>,
    /// Whether all pods that go on were given what they had.
    is_restored: AtomicBool,
    /// Locked for a look into maps and, when a pod ends, for one line to a file.
    book: Mutex<Book>,
    /// Changes when a pod's addresses were let go.
    pub(crate) released: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Book {
    addresses: Addresses,
    /// The node's ends of all ranges that are led to.
    gateways: Vec<IpAddr>,
    freed: Option<Freed>,
}

impl Network {
    /// A network whose pods share the node's addresses, for ever.
    #[must_use]
    pub fn host(node: Vec<IpAddr>) -> Self {
        let state = NetworkState::Host { why: None };
        Self { shared: Arc::new(Shared::new(node, None, None, state)) }
    }

    /// Addresses without a kernel behind them, for tests of those who use them:
    /// they are given and let go, and nothing leads there. What it shows is
    /// changed by [`Network::show`] and [`Network::show_node`].
    #[must_use]
    pub fn stand_in(node: Vec<IpAddr>, api_port: Option<u16>, state: NetworkState) -> Self {
        let mut shared = Shared::new(node, api_port, None, NetworkState::Host { why: None });
        shared.is_stand_in = true;
        let network = Self { shared: Arc::new(shared) };
        network.show(state);
        network
    }

    /// Has a [`Network::stand_in`] show this.
    ///
    /// # Panics
    ///
    /// If it is a real one, which its task alone may change.
    pub fn show(&self, state: NetworkState) {
        assert!(self.shared.is_stand_in, "only a stand-in shows what it is told");
        if let NetworkState::Own(ranges) = &state {
            self.shared.set_ranges(ranges);
        }
        self.shared.state.send_replace(state);
    }

    /// Has a [`Network::stand_in`] find the node at these addresses.
    ///
    /// # Panics
    ///
    /// As [`Network::show`].
    pub fn show_node(&self, addresses: &[IpAddr]) {
        assert!(self.shared.is_stand_in, "only a stand-in shows what it is told");
        self.shared.show_node(NodeAddresses::known(addresses.iter().copied()));
    }

    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// How pods get their addresses now.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<NetworkState> {
        self.shared.state.subscribe()
    }

    /// The node's own addresses, its family first.
    #[must_use]
    pub fn node_addresses(&self) -> &[IpAddr] {
        &self.shared.node
    }

    /// Whether there is a namespace for pods that have addresses of their own.
    #[must_use]
    pub fn has_namespace(&self) -> bool {
        self.shared.namespace.is_some() || self.shared.is_stand_in
    }

    /// Addresses of its own for a pod: one of each family of the ranges, that
    /// of the node's family first. The same ones however often it asks.
    ///
    /// # Errors
    ///
    /// [`AddressError`] says which range has none left;
    /// [`AddressError::Unrestored`] before [`Network::restored`].
    pub fn allocate(&self, pod: &PodUid) -> Result<Vec<IpAddr>, AddressError> {
        if !self.shared.is_restored.load(Ordering::Acquire) {
            return Err(AddressError::Unrestored);
        }
        self.shared.book().addresses.allocate(pod, since_boot())
    }

    /// Gives a pod that goes on what it had.
    ///
    /// # Errors
    ///
    /// [`AddressError::Taken`] if it is another's.
    pub fn restore(&self, pod: &PodUid, addresses: &[IpAddr]) -> Result<(), AddressError> {
        self.shared.book().addresses.restore(pod, addresses)
    }

    /// Every pod that goes on has been given what it had. Before this, no other
    /// pod gets an address, and a range that nobody has an address of may still
    /// be in use, and is led to.
    pub fn restored(&self) {
        self.shared.is_restored.store(true, Ordering::Release);
        // As if the rest had been let go just now.
        self.shared.released.send_replace(());
    }

    /// Lets a pod's addresses go, once nothing of it runs any more. No other
    /// pod gets them for [`REST`](crate::REST). One that has none is no error.
    pub fn release(&self, pod: &PodUid) {
        let now = since_boot();
        let mut book = self.shared.book();
        let Book { addresses, freed: file, .. } = &mut *book;
        let freed = addresses.release(pod, now);
        if freed.is_empty() {
            return;
        }
        if let Some(file) = file
            && let Err(error) = file.note(&freed, now, addresses.resting())
        {
            // Still kept by this agent; a new one might give them again.
            tracing::warn!(%error, "cannot write down which addresses were let go");
        }
        drop(book);
        self.shared.released.send_replace(());
    }

    /// Where a pod's sockets may not go, now; see [`Network::node_reached_at`].
    #[must_use]
    pub fn refused(&self, host_network: bool) -> Vec<Destinations> {
        if host_network { Vec::new() } else { self.shared.refused() }
    }

    /// Addresses from which the node itself speaks to its pods: its own, as many
    /// as are known, and the first of each range that is led to, also for the pods of
    /// one that is the Node's no more.
    #[must_use]
    pub fn node_speaks_from(&self) -> Vec<IpAddr> {
        let mut all: BTreeSet<IpAddr> = self.shared.node.iter().copied().collect();
        if let NetworkState::Own(ranges) = &*self.shared.state.borrow() {
            all.extend(ranges.iter().map(gateway));
        }
        all.extend(&self.shared.book().gateways);
        if let NodeAddresses::Known(known) = &*self.shared.reached_at.borrow()
            && known.len() <= allowed::MOST
        {
            all.extend(known);
        }
        all.into_iter().collect()
    }

    /// Where the node answers. When it changes, so does [`Network::refused`].
    #[must_use]
    pub fn node_reached_at(&self) -> watch::Receiver<NodeAddresses> {
        self.shared.reached_at.subscribe()
    }

    /// Removes the namespace, for an agent that leaves nothing behind. Blocks.
    ///
    /// # Errors
    ///
    /// What the system says of the path.
    pub fn remove(&self) -> io::Result<()> {
        self.shared.namespace.as_ref().map_or(Ok(()), Namespace::remove)
    }
}

impl Shared {
    pub(crate) fn new(
        node: Vec<IpAddr>,
        api_port: Option<u16>,
        namespace: Option<Namespace>,
        state: NetworkState,
    ) -> Self {
        let reached_at = NodeAddresses::known(node.iter().copied());
        Self {
            node,
            api_port,
            namespace,
            is_stand_in: false,
            state: watch::Sender::new(state),
            reached_at: watch::Sender::new(reached_at),
            is_restored: AtomicBool::new(false),
            book: Mutex::default(),
            released: watch::Sender::new(()),
        }
    }

    /// Goes on with what an agent before this one let go.
    pub(crate) fn resume(&self, freed: Freed, resting: Vec<(std::time::Duration, IpAddr)>) {
        let mut book = self.book();
        for (since, address) in resting {
            book.addresses.rest(address, since);
        }
        book.addresses.wake(since_boot());
        book.freed = Some(freed);
    }

    pub(crate) fn set_ranges(&self, ranges: &PodRanges) {
        self.book().addresses.set_ranges(ranges);
    }

    pub(crate) fn set_gateways(&self, gateways: impl Iterator<Item = IpAddr>) {
        self.book().gateways = gateways.collect();
    }

    /// Where no pod's sockets may go, but those of the host's network.
    pub(crate) fn refused(&self) -> Vec<Destinations> {
        allowed::refused(&self.reached_at.borrow(), self.api_port)
    }

    /// Wakes nobody if nothing changed.
    pub(crate) fn show_node(&self, next: NodeAddresses) {
        self.reached_at.send_if_modified(|shown| {
            let is_other = *shown != next;
            if is_other {
                *shown = next;
            }
            is_other
        });
    }

    /// Whether a pod has an address of this range, or may turn out to have one.
    pub(crate) fn is_used(&self, range: ipnet::IpNet) -> bool {
        !self.is_restored.load(Ordering::Acquire)
            || self.book().addresses.held().any(|address| range.contains(&address))
    }

    /// Addresses that pods have and that none of these ranges covers.
    pub(crate) fn beyond(&self, ranges: &[ipnet::IpNet]) -> Vec<IpAddr> {
        let covered = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
        self.book().addresses.held().filter(|address| !covered(address)).collect()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing that is done under the lock can panic half-way.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_many_addresses_speaks_from_the_first_one_of_an_old_range_too() {
        let ranges = PodRanges::parse(&["10.244.1.0/24"]).unwrap();
        let network = Network::stand_in(Vec::new(), None, NetworkState::Own(ranges));
        let address = |n: u32| IpAddr::V4((0xc000_0200 + n).into());
        network.show_node(&(0..600).map(address).collect::<Vec<_>>());
        let gateways: [IpAddr; 2] = ["10.244.1.1", "10.244.9.1"].map(|ip| ip.parse().unwrap());
        network.shared.set_gateways(gateways.into_iter());
        assert_eq!(network.node_speaks_from(), gateways);
    }

    #[test]
    fn no_pod_gets_an_address_before_it_is_known_who_has_one() {
        let ranges = PodRanges::parse(&["10.244.1.0/24"]).unwrap();
        let network = Network::stand_in(Vec::new(), None, NetworkState::Own(ranges));
        let (new, living) = (PodUid::new("a"), PodUid::new("b"));
        assert_eq!(network.allocate(&new), Err(AddressError::Unrestored));
        let had = ["10.244.1.2".parse().unwrap()];
        network.restore(&living, &had).unwrap();
        assert_eq!(network.allocate(&new), Err(AddressError::Unrestored));
        network.restored();
        assert_ne!(network.allocate(&new).unwrap(), had);
        assert_eq!(network.allocate(&living).unwrap(), had);
    }
}
