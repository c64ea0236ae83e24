//! Where the addresses of Services lead to, as seen from one node.
//!
//! ```text
//! Service ───────front.rs──▶ Front ─┐
//!                                   ├─ leads.rs ──▶ ports of an address, each with endpoints
//! EndpointSlice ─slice.rs──▶ Slice ─┘
//! ```
//!
//! A [`Front`] and a [`Slice`] keep what is needed of the two objects and no
//! more. Which endpoints a node's clients are led to is kube-proxy's rule; what
//! Services are called is [`Front::naming`]'s.

mod front;
mod leads;
mod slice;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Service;
use serde::{Deserialize, Serialize};

pub use self::{
    front::{Front, FrontPort, Kind, Naming, Range, slim},
    leads::{Here, Lead, Otherwise, leads, some_of},
    slice::{Endpoint, NamedEndpoint, Slice, SlicePort, named_endpoints},
};

/// A Service's namespace and name. Printed `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ServiceKey {
    /// A key of the two names.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// All Services, in the order of namespaces and names; each is the same value as long
/// as nothing of it is another.
pub type Services = Vec<Arc<Service>>;

/// All slices by the Service that they are of.
pub type Slices = BTreeMap<ServiceKey, Vec<Arc<Slice>>>;

/// How one speaks to a port. Services know SCTP too; guests do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Transport {
    /// Reads the API's word; nothing is TCP.
    #[must_use]
    pub fn parse(word: Option<&str>) -> Option<Self> {
        match word {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some(_) => None,
        }
    }
}
