//! A pod's network, as its guests have it: every socket goes through its
//! [`Stack`].
//!
//! ```text
//! p1 sock_*, wasi:sockets, wasi:http, http server, names
//!        │
//!        ▼
//!      Stack ── place.rs: whose address is it, may one go there ──▶ refused
//!        ├──▶ tcp.rs, udp.rs: sockets of the system, bound to the pod's address
//!        ├──▶ private.rs, pipe.rs: localhost, within this process
//!        └──▶ handed.rs: what the agent bound for a container's port
//! ```
//!
//! It says which addresses are the pod's, checks each destination, bounds and
//! counts. It knows no guest and no container; in whose words a guest is
//! answered is left to those who ask.

mod connection;
mod error;
mod handed;
mod names;
mod options;
mod permit;
mod pipe;
mod place;
mod private;
mod tcp;
mod udp;

use std::{
    io,
    net::TcpListener,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use krustlet_protocol::{Names, NetworkReport, PodNetwork};
use krustlet_resolver::Resolver;
use tokio::{task::JoinSet, time::timeout};

pub(crate) use self::{
    connection::{Connection, Stream},
    error::NetError,
    handed::Claim,
    options::{Options, Setting},
    permit::Permit,
    place::Family,
    tcp::{BoundTcp, Listener},
    udp::{LONGEST as LONGEST_DATAGRAM, UdpSocket},
};
use self::{handed::Handed, permit::Counters, private::Private};
use crate::outgoing::Outgoing;

/// How long what a guest has written is sent on after it has let go of the
/// connection. The kernel's own bound is about that (`net.ipv4.tcp_fin_timeout`).
const LINGER: Duration = Duration::from_mins(1);

/// One pod's network. Clones are the same one. Before a [`PodNetwork`] is set,
/// every socket is refused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stack(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    current: RwLock<Current>,
    counters: Arc<Counters>,
    private: Arc<Private>,
    handed: Handed,
    lingering: OnceLock<Mutex<JoinSet<()>>>,
    /// Made by the first look-up.
    resolver: OnceLock<Resolver>,
    /// Made by the first request.
    outgoing: OnceLock<Outgoing>,
}

/// See [`Stack::downgrade`].
#[derive(Clone, Debug)]
pub(crate) struct WeakStack(Weak<Shared>);

impl WeakStack {
    pub(crate) fn upgrade(&self) -> Option<Stack> {
        self.0.upgrade().map(Stack)
    }
}

#[derive(Clone, Debug, Default)]
struct Current {
    /// All but the names.
    network: Arc<PodNetwork>,
    #[allow(dead_code, reason = "for those who speak for a guest: names, outgoing http")]
    names: Arc<Names>,
}

impl Stack {
    /// From now on it is like this. Connections that are open stay.
    pub(crate) fn set(&self, mut network: PodNetwork) {
        let names = Arc::new(std::mem::take(&mut network.names));
        let current = Current { network: Arc::new(network), names };
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = current;
    }

    /// Addresses, refused destinations and bounds, as they are now. Its `names`
    /// are empty; see [`names`](Self::names).
    pub(crate) fn network(&self) -> Arc<PodNetwork> {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.network)
    }

    /// How names are looked up, as it is now.
    #[allow(dead_code, reason = "for those who speak for a guest: names, outgoing http")]
    pub(crate) fn names(&self) -> Arc<Names> {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.names)
    }

    /// A handle that does not keep it alive: what the stack owns holds this.
    pub(crate) fn downgrade(&self) -> WeakStack {
        WeakStack(Arc::downgrade(&self.0))
    }

    /// What sends the pod's http requests.
    pub(crate) fn outgoing(&self) -> &Outgoing {
        self.0.outgoing.get_or_init(|| Outgoing::new(self))
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
        let network = self.network();
        if network.addresses.is_empty() {
            self.note(NetError::AccessDenied);
            return Err(NetError::AccessDenied);
        }
        Permit::new(&self.0.counters, network.limits.sockets).inspect_err(|error| self.note(*error))
    }

    /// Takes over sockets that the agent bound, each with the container port it
    /// is for.
    ///
    /// # Errors
    ///
    /// What the system said about one of them.
    pub(crate) fn hand(&self, sockets: Vec<(u16, TcpListener)>) -> io::Result<Claim> {
        self.0.handed.add(sockets)
    }

    /// Sends on what a guest had written before it let go of the connection.
    pub(crate) fn linger(&self, connection: Arc<Connection>, waiting: Bytes) {
        // Without a runtime the process ends.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let lingering = self.0.lingering.get_or_init(Mutex::default);
        let mut lingering = lingering.lock().unwrap_or_else(PoisonError::into_inner);
        while lingering.try_join_next().is_some() {}
        let send = async move {
            let mut stream = Stream(connection);
            // Who does not read in time does not get it.
            let _ =
                timeout(LINGER, tokio::io::AsyncWriteExt::write_all(&mut stream, &waiting)).await;
        };
        lingering.spawn_on(send, &runtime);
    }

    /// What its sockets did.
    pub(crate) fn report(&self) -> NetworkReport {
        let Counters { received, sent, opened, accepted, refused, .. } = &*self.0.counters;
        NetworkReport {
            received_bytes: received.load(Relaxed),
            sent_bytes: sent.load(Relaxed),
            opened: opened.load(Relaxed),
            accepted: accepted.load(Relaxed),
            refused: refused.load(Relaxed),
            sockets: self.0.counters.sockets(),
        }
    }

    /// Counts what was refused by a rule or a bound of the pod.
    fn note(&self, error: NetError) {
        if matches!(error, NetError::AccessDenied | NetError::NewSocketLimit) {
            self.0.counters.refused.fetch_add(1, Relaxed);
        }
    }
}

/// A connection to nobody.
#[cfg(test)]
pub(crate) fn test_connection() -> Connection {
    let permit = Permit::new(&Arc::default(), 1).expect("none is taken");
    let address = std::net::SocketAddr::new(Family::V4.localhost(), 1);
    Connection::private(pipe::pair().0, [address; 2], permit, None)
}
