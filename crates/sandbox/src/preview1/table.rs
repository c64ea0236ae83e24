//! The sockets of a module, by descriptor number.
//!
//! ```text
//! 0 1 2 │ directories │ listeners │ files …            … │ accepted connections
//!   wasmtime's numbers│   ours    │ wasmtime's numbers   │ ours, from 65536 on
//! ```
//!
//! wasmtime numbers what a guest opens by the next number that is free with it,
//! and it knows nothing of ours. A module has fewer files open than 65536
//! ([`FILES`](crate::files::FILES)), so that the last group is out of its way; for
//! the listeners see [`open_file`](super::open_file).

use std::{collections::BTreeMap, sync::Arc};

use crate::net::{Connection, Listener};

/// The first number of accepted connections.
const ACCEPTED: u32 = 1 << 16;

/// One socket.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(super) kind: Kind,
    /// Answers "again" where it would wait.
    pub(super) nonblocking: bool,
    /// An error that came after the first bytes of a call, to be told by the next:
    /// the system tells each once.
    pub(super) failed: Option<i32>,
    /// A file that wasmtime has under the same number, to be closed with it.
    pub(super) hides: bool,
}

#[derive(Debug)]
pub(super) enum Kind {
    Listener(Box<Listener>),
    Connection(Arc<Connection>),
}

/// See the module. Nothing is allocated for a guest without sockets.
#[derive(Debug, Default)]
pub(crate) struct Table {
    sockets: BTreeMap<u32, Socket>,
    /// No number from [`ACCEPTED`] to below this is free.
    full: u32,
}

impl Socket {
    fn new(kind: Kind, nonblocking: bool) -> Self {
        Self { kind, nonblocking, failed: None, hides: false }
    }
}

impl Table {
    /// Listeners from a number on. They do not wait, which is what wasmtime gave
    /// while it had them, and what Go needs.
    pub(crate) fn new(first: u32, listeners: Vec<Listener>) -> Self {
        let sockets = (first..).zip(listeners);
        let sockets =
            sockets.map(|(fd, one)| (fd, Socket::new(Kind::Listener(Box::new(one)), true)));
        Self { sockets: sockets.collect(), full: ACCEPTED }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    pub(super) fn has(&self, fd: u32) -> bool {
        self.sockets.contains_key(&fd)
    }

    pub(super) fn get(&mut self, fd: u32) -> Option<&mut Socket> {
        self.sockets.get_mut(&fd)
    }

    /// Gives a connection the lowest free number.
    pub(super) fn add(&mut self, connection: Connection, nonblocking: bool) -> u32 {
        let start = self.full.max(ACCEPTED);
        let taken = self.sockets.range(start..).map(|(fd, _)| *fd);
        let fd = (start..).zip(taken).find_map(|(free, taken)| (free != taken).then_some(free));
        let after = start + u32::try_from(self.sockets.range(start..).count()).unwrap_or(0);
        let fd = fd.unwrap_or(after);
        self.full = fd + 1;
        let kind = Kind::Connection(Arc::new(connection));
        self.sockets.insert(fd, Socket::new(kind, nonblocking));
        fd
    }

    pub(super) fn remove(&mut self, fd: u32) -> Option<Socket> {
        let removed = self.sockets.remove(&fd)?;
        self.let_go(fd);
        Some(removed)
    }

    fn let_go(&mut self, fd: u32) {
        if fd >= ACCEPTED {
            self.full = self.full.min(fd);
        }
    }

    /// Gives a socket another number, where `hides` says whether wasmtime has
    /// one there too; what was there before of ours is closed. Returns whether
    /// one is left under the old number, to be closed.
    pub(super) fn rename(&mut self, from: u32, to: u32, hides: bool) -> bool {
        if from == to {
            return false;
        }
        let Some(mut socket) = self.remove(from) else { return false };
        let before = self.sockets.get(&to).is_some_and(|before| before.hides);
        let left = std::mem::replace(&mut socket.hides, hides || before);
        self.sockets.insert(to, socket);
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::test_connection;

    #[test]
    fn connections_get_the_lowest_free_number() {
        let mut table = Table::default();
        assert!(table.is_empty());
        let add = |table: &mut Table| table.add(test_connection(), true);
        let first: Vec<_> = (0..4).map(|_| add(&mut table)).collect();
        assert_eq!(first, [ACCEPTED, ACCEPTED + 1, ACCEPTED + 2, ACCEPTED + 3]);
        table.remove(ACCEPTED + 2).unwrap();
        table.remove(ACCEPTED + 1).unwrap();
        assert_eq!(
            [add(&mut table), add(&mut table), add(&mut table)],
            [ACCEPTED + 1, ACCEPTED + 2, ACCEPTED + 4]
        );
        assert!(table.remove(7).is_none());
    }

    #[test]
    fn a_socket_that_takes_another_number_leaves_its_own() {
        let mut table = Table::default();
        let fd = table.add(test_connection(), false);
        table.rename(fd, 0, true);
        assert!(!table.has(fd) && table.get(0).unwrap().hides);
        assert_eq!(table.add(test_connection(), false), fd);
        table.rename(fd, 0, false);
        assert!(table.remove(0).unwrap().hides, "wasmtime's is still to be closed");
        assert!(table.is_empty());
    }
}
