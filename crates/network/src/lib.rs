//! The pods' network: their one namespace, their addresses, and where their
//! sockets may not go. Knows no sandbox and no pod spec.
//!
//! ```text
//! Node.spec.podCIDRs ──▶ task: decide ──NetworkState──▶ pods, node's condition
//!                          │ ensure, whenever something changed
//!                          ▼
//!     node's namespace: kr…… ══veth══ eth0 :pods' namespace, run/netns
//! ```
//!
//! One namespace holds all pods of a node; in it, every address of the node's
//! podCIDR can be bound without being configured. [`prepare`] makes it before a
//! zygote is started, [`open`] gives the handle by which pods get addresses and
//! the task that keeps links and routes as they should be. A node without the
//! right to do that, or without a podCIDR, lets its pods share its address.
//!
//! What the links and routes are is said in [`plan`]. Where pods are led to when
//! they call a Service is another matter: [`services`] writes it into files that
//! sandboxes read.

mod addresses;
mod allowed;
mod decide;
mod ensure;
mod freed;
mod handle;
mod kept;
mod name_servers;
mod namespace;
mod netlink;
mod notice;
mod outgoing;
mod peers;
pub mod plan;
mod ranges;
mod remembered;
mod routes;
pub mod services;
mod sysctl;
mod task;

pub use addresses::{AddressError, Addresses, REST};
pub use allowed::{NodeAddresses, refused};
pub use decide::{Decision, Facts, Mode, NODE_WAIT, NodeRanges, decide};
pub use ensure::EnsureError;
pub use handle::{Network, NetworkState};
pub use name_servers::NameServers;
pub use namespace::{Namespace, NamespaceError};
pub use outgoing::{is_of_a_network, outgoing_address};
pub use peers::Peers;
pub use ranges::{PodRanges, RangeError};
pub use routes::Peer;
pub use task::{NetworkConfig, NetworkTask, OpenError, Prepared, open, prepare};
