//! A pod's network, as its guests have it: every socket goes through its
//! [`Stack`].
//!
//! ```text
//! p1 sock_*, wasi:sockets, wasi:http, http server, names
//!        │
//!        ▼
//!      Stack ── place.rs: whose address is it, may one go there ──▶ refused
//!        │      route.rs, services.rs, flows.rs: where a Service's address leads
//!        │      policy.rs: does the cluster, and the pod itself, let it through ──▶ refused
//!        ├──▶ tcp.rs, udp.rs: sockets of the system, bound to the pod's address
//!        ├──▶ private.rs, pipe.rs: localhost, within this process
//!        └──▶ handed.rs, hosted.rs: what the agent bound for a container's port
//!      listeners.rs: what is listened on, for the agent's filters
//!      pace.rs: how fast, over all sockets of the system
//! ```
//!
//! It says which addresses are the pod's, checks each destination, bounds and
//! counts. It knows no guest and no container; in whose words a guest is
//! answered is left to those who ask.

mod connection;
mod error;
mod flows;
mod handed;
mod hosted;
mod idle;
mod listeners;
mod logs;
mod memory;
mod names;
mod options;
mod pace;
mod parcel;
mod peers;
mod permit;
mod pipe;
mod place;
mod policy;
mod private;
mod recent;
mod refused;
mod resting;
mod route;
mod sending;
mod services;
mod tcp;
#[cfg(test)]
pub(crate) mod tests;
mod udp;

use std::{
    future::poll_fn,
    io,
    net::{TcpListener, UdpSocket as BoundUdp},
    sync::{Arc, OnceLock, PoisonError, RwLock, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use krustlet_model::{PodUid, policy::PodPolicy};
use krustlet_protocol::{Names, NetworkReport, PodNetwork};
use krustlet_resolver::Resolver;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

pub(crate) use self::{
    connection::{Connection, Leaving, Stream},
    error::NetError,
    handed::Claim,
    idle::{Asking, Kept, Lasting, Served},
    memory::{LEAST as LEAST_MEMORY, SocketMemory, Taken},
    options::{Options, Setting},
    permit::Permit,
    place::Family,
    sending::Left,
    services::Directory,
    tcp::{BoundTcp, Listener, MOST_BACKLOG},
    udp::{LONGEST as LONGEST_DATAGRAM, UdpSocket},
};
use self::{
    handed::Handed,
    hosted::Hosted,
    idle::Idle,
    listeners::{Bell, Listeners},
    logs::Logs,
    permit::Counters,
    policy::Learned,
    private::Private,
    refused::{NoWay, Rule},
    sending::{Behind, Sending},
    services::Affinity,
};
use crate::{news::Teller, outgoing::Outgoing};

/// One pod's network, and what one of its containers has left to be sent. Clones
/// are the same one. Before a [`PodNetwork`] is set, every socket is refused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stack(Arc<Shared>, Arc<Behind>);

#[derive(Debug, Default)]
struct Shared {
    current: RwLock<Current>,
    counters: Arc<Counters>,
    private: Arc<Private>,
    handed: Handed,
    hosted: Hosted,
    listeners: Listeners,
    idle: Idle,
    logs: Logs,
    /// Made by the first that has to wait.
    sending: OnceLock<Sending>,
    /// Made by the first look-up.
    resolver: OnceLock<Resolver>,
    /// Made by the first request after each change of the rules: a connection
    /// that is kept is not checked again.
    outgoing: RwLock<Option<Arc<Outgoing>>>,
    lookups: Lookups,
    visits: Visits,
    listening: Listenings,
    affinity: Affinity,
    /// Addresses that names of the pod's own list led to.
    learned: Learned,
}

/// How long a closed connection is waited for. Its task runs at once, unless a
/// guest computes.
const ROOM_TIME: Duration = Duration::from_secs(1);

/// Look-ups whose addresses a pod's guests have not let go of, at most.
const LOOKUPS: usize = 1024;

/// Places for them.
#[derive(Debug)]
struct Lookups(Arc<Semaphore>);

impl Default for Lookups {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKUPS)))
    }
}

/// Connections from the agent to a pod's loopback at one time. Each has a buffer
/// for either direction that nobody else counts.
const VISITS: usize = 256;

/// Places for them.
#[derive(Debug)]
struct Visits(Arc<Semaphore>);

impl Default for Visits {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(VISITS)))
    }
}

/// Addresses at which the sandbox listens for a pod's guests, at most: two for each
/// port, one of either family. They are none of the pod's sockets, whose limit a
/// guest is to have for itself.
pub(crate) const LISTENING: usize = 1024;

/// Places for them.
#[derive(Debug)]
struct Listenings(Arc<Semaphore>);

impl Default for Listenings {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LISTENING)))
    }
}

/// See [`Stack::downgrade`].
#[derive(Clone, Debug)]
pub(crate) struct WeakStack(Weak<Shared>);

impl WeakStack {
    pub(crate) fn upgrade(&self) -> Option<Stack> {
        self.0.upgrade().map(|shared| Stack(shared, Arc::default()))
    }
}

#[derive(Clone, Debug, Default)]
struct Current {
    /// All but the names.
    network: Arc<PodNetwork>,
    names: Arc<Names>,
    /// Where Services lead, if the pod is led to them here.
    services: Option<Directory>,
}

impl Stack {
    /// That of a pod, which tells the agent when the pod listens.
    pub(crate) fn of(pod: PodUid, teller: Teller) -> Self {
        let stack = Self::default();
        stack.0.listeners.tell_by(Bell { teller, pod });
        stack
    }

    /// The same network for one more container.
    pub(crate) fn for_container(&self) -> Self {
        Self(Arc::clone(&self.0), Arc::default())
    }

    /// From now on it is like this. Connections that are open stay.
    pub(crate) fn set(&self, mut network: PodNetwork, services: Option<Directory>) {
        let names = network.names.take().map_or_else(|| self.names(), Arc::new);
        let before = self.network();
        if network.policy.is_none() {
            // The first word a sandbox hears gives it its addresses.
            let has_heard = !before.addresses.is_empty();
            let kept = before.policy.clone().filter(|_| has_heard);
            network.policy = Some(kept.unwrap_or_else(PodPolicy::closed));
        }
        let is_other = *before != network;
        let is_other_list = before.outbound != network.outbound;
        self.0.counters.received.limit(network.limits.ingress_bits);
        self.0.counters.sent.limit(network.limits.egress_bits);
        let current = Current { network: Arc::new(network), names, services };
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        if is_other {
            // After the rules: what is made from now on is made by them.
            *self.0.outgoing.write().unwrap_or_else(PoisonError::into_inner) = None;
            // It may have more sockets now, and more look-ups.
            self.0.counters.wake_waiting();
            if let Some(resolver) = self.0.resolver.get() {
                resolver.bound(self.network().limits.lookups);
            }
        }
        if is_other_list {
            self.0.learned.forget();
        }
    }

    /// Addresses, refused destinations and bounds, as they are now. It has no
    /// `names`; see [`names`](Self::names).
    pub(crate) fn network(&self) -> Arc<PodNetwork> {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.network)
    }

    /// How names are looked up, as it is now.
    pub(crate) fn names(&self) -> Arc<Names> {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.names)
    }

    /// Where Services lead, if the pod is led to them here.
    fn services(&self) -> Option<Directory> {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        current.services.clone()
    }

    /// A handle that does not keep it alive: what the stack owns holds this.
    pub(crate) fn downgrade(&self) -> WeakStack {
        WeakStack(Arc::downgrade(&self.0))
    }

    /// What sends the pod's http requests.
    pub(crate) fn outgoing(&self) -> Arc<Outgoing> {
        let made = self.0.outgoing.read().unwrap_or_else(PoisonError::into_inner).clone();
        made.unwrap_or_else(|| {
            let mut made = self.0.outgoing.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(made.get_or_insert_with(|| Arc::new(Outgoing::new(self))))
        })
    }

    /// The right to hold what a look-up found, if there are not too many.
    pub(crate) fn lookup_handle(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.lookups.0).try_acquire_owned().ok()
    }

    /// The right to connect to the pod from the agent, if not too many do.
    pub(crate) fn visit_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.visits.0).try_acquire_owned().ok()
    }

    /// The right to listen for a guest at one more address.
    fn listening_place(&self) -> Result<OwnedSemaphorePermit, NetError> {
        let place = Arc::clone(&self.0.listening.0).try_acquire_owned();
        place.map_err(|_| NetError::NewSocketLimit)
    }

    /// Whether the pod has a network at all.
    pub(crate) fn is_up(&self) -> bool {
        !self.network().addresses.is_empty()
    }

    /// The right to have one more socket.
    ///
    /// # Errors
    ///
    /// [`NetError::AccessDenied`] on a pod without network,
    /// [`NetError::NewSocketLimit`] if it has as many as it may.
    pub(crate) fn permit(&self) -> Result<Permit, NetError> {
        self.try_permit().inspect_err(|error| {
            self.note(*error);
            if *error == NetError::NewSocketLimit {
                // For the next one: the client must see it first.
                self.make_room();
            }
        })
    }

    /// As [`permit`](Self::permit), for what is done well without: a quarter of the
    /// pod's sockets is left to others.
    pub(crate) fn permit_to_spare(&self) -> Option<Permit> {
        self.permit_within(|most| most - most.div_ceil(4)).ok()
    }

    fn try_permit(&self) -> Result<Permit, NetError> {
        self.permit_within(|most| most)
    }

    /// One of some of those that the pod may have.
    fn permit_within(&self, some: impl Fn(u32) -> u32) -> Result<Permit, NetError> {
        let network = self.network();
        if network.addresses.is_empty() {
            return Err(NetError::AccessDenied);
        }
        Permit::new(&self.0.counters, some(network.limits.sockets))
    }

    /// As [`permit`](Self::permit); where there are as many as there may be, a
    /// connection that is kept idle is closed and waited for.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) async fn permit_or_room(&self) -> Result<Permit, NetError> {
        let mut permit = self.try_permit();
        if matches!(permit, Err(NetError::NewSocketLimit)) && self.make_room() {
            let waiter = Arc::default();
            let free = poll_fn(|context| {
                let most = || self.network().limits.sockets;
                Permit::poll_new(&self.0.counters, most, &waiter, context)
            });
            permit = timeout(ROOM_TIME, free).await.map_err(|_| NetError::NewSocketLimit);
        }
        permit.inspect_err(|error| self.note(*error))
    }

    /// Closes a connection of http that is not in use. False if there is none.
    fn make_room(&self) -> bool {
        self.0.idle.close_one()
    }

    /// For the connections of one more http server.
    pub(crate) fn serve(&self) -> Arc<Served> {
        self.0.idle.serve()
    }

    /// Takes note of one that the http client may keep.
    pub(crate) fn may_be_kept(&self, connection: &Arc<Connection>) -> Arc<Kept> {
        self.0.idle.add(connection)
    }

    /// Takes over sockets that the agent bound, each with the container port it
    /// is for.
    ///
    /// # Errors
    ///
    /// What the system said about one of them.
    pub(crate) fn hand(
        &self,
        listeners: Vec<(u16, TcpListener)>,
        datagrams: Vec<(u16, BoundUdp)>,
    ) -> io::Result<Claim> {
        let datagrams = self.0.hosted.add(datagrams)?;
        Ok(self.0.handed.add(listeners)?.with(datagrams))
    }

    /// What its sockets keep in the sandbox's own memory.
    pub(crate) fn memory(&self) -> &Arc<SocketMemory> {
        &self.0.private.memory
    }

    /// Runs what sends for a guest while that does something else, or is gone.
    pub(crate) fn send_on(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.sending.get_or_init(Sending::default).start(task);
    }

    /// Counts one whose guest has let go of it, until it is dropped.
    pub(crate) fn left(&self) -> Left {
        self.1.one()
    }

    /// Waits until all is sent that the container's guests have let go of, or given
    /// up.
    pub(crate) async fn all_is_sent(&self) {
        self.1.none().await;
    }

    /// What its sockets did.
    pub(crate) fn report(&self) -> NetworkReport {
        let Counters { received, sent, opened, accepted, refused, .. } = &*self.0.counters;
        let refusals = refused.report();
        NetworkReport {
            received_bytes: received.bytes(),
            sent_bytes: sent.bytes(),
            opened: opened.load(Relaxed),
            accepted: accepted.load(Relaxed),
            refused: refusals.all(),
            refusals,
            sockets: self.0.counters.sockets(),
        }
    }

    /// Counts what was refused by a rule or a bound of the pod.
    fn note(&self, error: NetError) {
        match error {
            NetError::NewSocketLimit => self.refused(Rule::Bound),
            error => {
                self.told(error.into());
            }
        }
    }

    /// Counts what a rule refuses.
    fn refused(&self, by: Rule) {
        self.0.counters.refused.count(by);
    }

    /// What a guest is told of it; counted if it is a rule.
    fn told(&self, why: NoWay) -> NetError {
        if let NoWay::Refused(by) = why {
            self.refused(by);
        }
        why.into()
    }
}

/// A pod that may have so many sockets, and who listens there, at its loopback.
#[cfg(test)]
pub(crate) fn test_listening(sockets: u32) -> (Stack, Listener) {
    use krustlet_protocol::SocketLimits;

    let stack = Stack::default();
    let addresses = vec![std::net::Ipv4Addr::new(192, 0, 2, 1).into()];
    let limits = SocketLimits { sockets, ..SocketLimits::default() };
    stack.set(PodNetwork { addresses, limits, ..PodNetwork::default() }, None);
    let at = std::net::SocketAddr::new(Family::V4.localhost(), 0);
    let bound = stack.bind_tcp(at).expect("its loopback has ports");
    let permit = stack.permit().expect("it may have one");
    let listener = bound.listen(permit, Options::default(), 8).expect("it is bound");
    (stack, listener)
}

/// Two ends of a connection.
#[cfg(test)]
pub(crate) fn test_connections() -> [Connection; 2] {
    let address = std::net::SocketAddr::new(Family::V4.localhost(), 1);
    let (one, other) = pipe::pair(&Arc::default());
    [one, other].map(|end| {
        let permit = Permit::new(&Arc::default(), 1).expect("none is taken");
        Connection::private(end, [address; 2], permit, None)
    })
}

/// A connection to nobody.
#[cfg(test)]
pub(crate) fn test_connection() -> Connection {
    let [connection, _] = test_connections();
    connection
}

/// A connection by the system, to this machine, and its other end.
#[cfg(test)]
pub(crate) async fn test_tcp() -> (Connection, std::net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let at = listener.local_addr().expect("it is bound");
    let stream = tokio::net::TcpStream::connect(at).await.expect("it listens");
    let (other, _) = listener.accept().expect("it is connected");
    let permit = Permit::new(&Arc::default(), 1).expect("none is taken");
    (Connection::tcp(stream, permit, None), other)
}

/// Breaks a connection off: the other end is told of a reset.
#[cfg(test)]
pub(crate) fn test_reset(end: std::net::TcpStream) {
    rustix::net::sockopt::set_socket_linger(&end, Some(Duration::ZERO)).expect("it is a socket");
    drop(end);
}
