//! The Services of the cluster, as sandboxes read them: files of a directory.
//!
//! ```text
//! complete               there since all were written for the first time
//! addresses/10.96.0.10   a ServiceAddress for each address of a Service
//! names/NAMESPACE.NAME   a ServiceName for each Service
//! ```
//!
//! The agent writes them, each by a rename, so that what is read is whole and
//! the newest. A sandbox that was handed the directory opens a file when a guest
//! connects or sends to its address, or asks for its name. Fields are only ever
//! added: the directory is read by sandboxes of the version before.

use std::{net::IpAddr, net::SocketAddr};

use krustlet_model::services::{ServiceKey, Transport};
use serde::{Deserialize, Serialize};

use crate::Destinations;

/// Says, by being there, that what has no file is no Service's.
pub const COMPLETE: &str = "complete";

/// The directory of the addresses.
pub const ADDRESSES: &str = "addresses";

/// The directory of the names.
pub const NAMES: &str = "names";

/// The longest file in bytes. The largest that is written has four fifths of it.
pub const MAX_SERVICE: usize = 1 << 20;

/// The longest part of a name (RFC 1035, 2.3.4).
const LABEL: usize = 63;

/// The file of an address, from the directory on.
#[must_use]
pub fn address_file(address: IpAddr) -> String {
    format!("{ADDRESSES}/{}", address.to_canonical())
}

/// The file of a Service's name, from the directory on. None if these are not
/// names that the API server takes: lower case letters, digits and '-'.
#[must_use]
pub fn name_file(key: &ServiceKey) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = |label: &str| {
        (1..=LABEL).contains(&label.len()) && label.bytes().all(is_plain) && !label.starts_with('-')
    };
    let ServiceKey { namespace, name } = key;
    (is_label(namespace) && is_label(name)).then(|| format!("{NAMES}/{namespace}.{name}"))
}

/// An address of one or more Services.
///
/// Without defaults: a file that lacks these was not written by an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAddress {
    /// Whether it is nobody else's, so that there is nothing at other ports.
    pub is_only: bool,
    /// Its ports, none twice.
    pub ports: Vec<ServicePort>,
}

/// A port of an address of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// How it is spoken to.
    pub transport: Transport,
    /// Its number.
    pub port: u16,
    /// Whose it is, `NAMESPACE/NAME:PORT`: what affinity goes by.
    pub of: String,
    /// Who answers: any of these, of the address's own kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<SocketAddr>,
    /// Whether clients hear nothing when there is none; else they are told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_silent: bool,
    /// How long a client is led to the same endpoint, in seconds; 0 for not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub affinity_s: u64,
    /// The only clients that are led to it; all if empty. Others hear nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Destinations>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What the name of a Service stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceName {
    /// These addresses of its own.
    Addresses(Vec<IpAddr>),
    /// Its endpoints, each of which has a name below it.
    Endpoints(Vec<NamedAddress>),
    /// What this name stands for.
    Elsewhere(String),
}

/// An address with a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedAddress {
    /// The address.
    pub address: IpAddr,
    /// Its name, one label in lower case.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_are_called_after_addresses_and_names() {
        let of = |address: &str| address_file(address.parse().unwrap());
        assert_eq!(of("10.96.0.10"), "addresses/10.96.0.10");
        assert_eq!(of("fd00:0::1"), "addresses/fd00::1");
        assert_eq!(of("::ffff:10.96.0.10"), "addresses/10.96.0.10");
        let file = |namespace: &str, name: &str| name_file(&ServiceKey::new(namespace, name));
        assert_eq!(file("kube-system", "dns").as_deref(), Some("names/kube-system.dns"));
        let long = "a".repeat(64);
        for odd in ["", "..", "a.b", "a/b", "A", "-a", "\0", &long] {
            assert_eq!((file(odd, "a"), file("a", odd)), (None, None), "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_the_directory(namespace in ".{0,8}", name in "[a./-]{0,70}") {
            if let Some(file) = name_file(&ServiceKey::new(namespace, name)) {
                let rest = file.strip_prefix("names/").unwrap();
                prop_assert_eq!(rest.matches('.').count(), 1);
                prop_assert!(!rest.contains('/') && !rest.starts_with('.'));
            }
        }
    }
}
