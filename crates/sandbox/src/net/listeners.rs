//! What a pod listens on, as the agent may ask for it.
//!
//! The system takes a connection before anybody looks at it. Whom policies do not
//! let in has seen his connection open by then, and while a guest accepts slowly
//! such clients take the places of others. A filter at the listening socket keeps
//! them out, which a sandbox has no right to attach. So it lends the agent the
//! sockets, and says when there are new ones; what comes through all the same is
//! looked at when it is accepted.
//!
//! ```text
//! a guest listens ──▶ add ──News::Listening, once──▶ the agent
//!                    lend ◀──────Listeners──────────
//! ```

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use krustlet_model::PodUid;
use rustix::net::Shutdown;
use tokio::net::TcpListener;

use crate::news::{News, Teller};

/// Those of one pod that are listened on.
#[derive(Clone, Debug, Default)]
pub(super) struct Listeners(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// By when they were added.
    all: Mutex<BTreeMap<u64, Entry>>,
    /// Set before there is a guest.
    bell: OnceLock<Bell>,
    /// Whether the agent was told of new ones, and has not asked since.
    is_told: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    /// The pod's port, of which policies speak.
    port: u16,
    socket: Arc<TcpListener>,
    /// Whether another process may have it too.
    is_lent: bool,
}

/// How it is said that a pod listens.
#[derive(Debug)]
pub(super) struct Bell {
    pub(super) teller: Teller,
    pub(super) pod: PodUid,
}

/// A place among them, until it is dropped.
#[derive(Debug)]
pub(super) struct Listed {
    number: u64,
    home: Listeners,
}

impl Listeners {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the agent told of new ones. Without, it is told of none.
    pub(super) fn tell_by(&self, bell: Bell) {
        // The first is of the same pod.
        let _ = self.0.bell.set(bell);
    }

    /// Adds one that listens.
    pub(super) fn add(&self, socket: &Arc<TcpListener>, port: u16) -> Listed {
        let entry = Entry { port, socket: Arc::clone(socket), is_lent: false };
        let mut all = self.all();
        let number = all.last_key_value().map_or(0, |(last, _)| last + 1);
        all.insert(number, entry);
        Listed { number, home: self.clone() }
    }

    /// There are new ones that the agent is to ask for.
    pub(super) fn ring(&self) {
        let Some(Bell { teller, pod }) = self.0.bell.get() else { return };
        if !self.0.is_told.swap(true, Ordering::AcqRel) {
            teller.tell(News::Listening { pod: pod.clone() });
        }
    }

    /// The agent asks: what is new from now on it is told of.
    pub(super) fn asked(&self) {
        self.0.is_told.store(false, Ordering::Release);
    }

    /// Other descriptors of so many, those that are there longest.
    ///
    /// # Errors
    ///
    /// When there is no further descriptor.
    pub(super) fn lend(&self, most: usize) -> io::Result<Vec<(u16, OwnedFd)>> {
        let mut all = self.all();
        let some = all.values_mut().take(most);
        some.map(|one| {
            let lent = one.socket.as_fd().try_clone_to_owned()?;
            one.is_lent = true;
            Ok((one.port, lent))
        })
        .collect()
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let Some(entry) = self.home.all().remove(&self.number) else { return };
        if entry.is_lent {
            // Its port is not to wait until the other process has closed it: one that
            // does not listen keeps nobody from it (`inet_csk_bind_conflict` in
            // `net/ipv4/inet_connection_sock.c` of Linux). It fails on no listener.
            let _ = rustix::net::shutdown(&entry.socket, Shutdown::Read);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, sync::Arc};

    use tokio::net::TcpSocket;

    use super::*;
    use crate::news::Wake;

    fn listening(at: &str) -> io::Result<Arc<TcpListener>> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(at.parse().unwrap())?;
        socket.listen(8).map(Arc::new)
    }

    #[test]
    fn the_agent_is_told_once_until_it_asks() {
        let listeners = Listeners::default();
        listeners.ring();
        let (teller, news) = Teller::new(Arc::new(Wake::new().unwrap()));
        listeners.tell_by(Bell { teller, pod: PodUid::new("a") });
        for _ in 0..2 {
            for _ in 0..1000 {
                listeners.ring();
            }
            let told: Vec<_> = news.try_iter().collect();
            let [News::Listening { pod }] = &told[..] else { panic!("{told:?}") };
            assert_eq!(*pod, PodUid::new("a"));
            listeners.asked();
        }
    }

    #[tokio::test]
    async fn a_port_can_be_had_again_though_its_listener_is_lent() {
        let listeners = Listeners::default();
        // An address that no other test has, which might take the port meanwhile.
        let first = listening("127.77.3.9:0").unwrap();
        let at = first.local_addr().unwrap();
        let listed = listeners.add(&first, 80);
        let lent = listeners.lend(8).unwrap();
        assert_eq!(lent.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [80]);
        drop((listed, first));
        assert!(TcpStream::connect(at).is_err(), "nobody listens");
        assert!(listeners.lend(8).unwrap().is_empty());
        let again = listening(&at.to_string()).unwrap();
        TcpStream::connect(at).unwrap();
        drop((again, lent));
    }

    #[tokio::test]
    async fn so_many_are_lent_and_no_more() {
        let listeners = Listeners::default();
        let kept: Vec<_> = (0..5)
            .map(|port| {
                let socket = listening("127.0.0.1:0").unwrap();
                listeners.add(&socket, port)
            })
            .collect();
        let ports = || listeners.lend(3).unwrap().into_iter().map(|(port, _)| port);
        assert_eq!(ports().collect::<Vec<_>>(), [0, 1, 2]);
        drop(kept.into_iter().next());
        assert!(listeners.lend(3).unwrap().is_empty());
    }
}
