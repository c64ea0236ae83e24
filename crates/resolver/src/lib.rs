//! Looks names up for one pod, as the C library would by the pod's
//! `/etc/hosts` and `/etc/resolv.conf`.
//!
//! ```text
//! lookup.rs: literal? ─▶ hosts? ─▶ localhost? ─▶ candidates.rs (search list)
//!                                                  ├▶ cluster.rs (names of Services)
//!                                                  └▶ cache.rs ─▶ ask.rs ─▶ message.rs
//!                                                                  └▶ network.rs (sockets)
//! ```
//!
//! Makes no socket itself: whoever uses it says how servers are reached
//! ([`Network`]), and by that from which address and where it may go. Opens no
//! file, starts no task, and draws nothing at random before the first question.
//!
//! Apart from that stands `system.rs`: names that the agent itself asks for.

mod ask;
mod cache;
mod candidates;
mod cluster;
mod lookup;
mod message;
mod name;
mod network;
mod places;
mod system;

pub use self::{
    lookup::{Families, LookupError, Resolver},
    network::{Datagrams, Network, Stream},
    system::{LookupTurn, SystemLookups},
};
