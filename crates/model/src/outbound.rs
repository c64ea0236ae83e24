//! The list by which a pod says where its guests may go.
//!
//! ```yaml
//! metadata:
//!   annotations:
//!     network.krustlet.dev/allowed-outbound-hosts: api.example.com:443, *.example.org, 10.0.0.0/8:5432
//! ```
//!
//! A pod without the annotation may go wherever nothing else forbids it; one
//! with it nowhere else than the list says. `*.` stands for one or more labels.
//! An address with a port that has colons of its own, or such a range, is put in
//! brackets: `[2001:db8::/32]:443`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::policy::AddressRange;

/// The domain of annotations about a pod's network.
pub(crate) const DOMAIN: &str = "network.krustlet.dev/";

/// The annotation of that domain.
pub(crate) const HOSTS: &str = "allowed-outbound-hosts";

/// Entries of one pod's list: a look-up goes through all of them.
const MOST: usize = 256;

/// An entry of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbound {
    /// Where to.
    pub to: OutboundTo,
    /// The port; all if none.
    pub port: Option<u16>,
}

/// Where guests may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutboundTo {
    /// The addresses of this name, in lower case, without a dot at its end.
    Host(String),
    /// Those of all names below this one.
    Below(String),
    /// These addresses.
    Addresses(AddressRange),
}

/// A list that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum OutboundError {
    #[error("there is no annotation {name}; a list is called allowed-outbound-hosts")]
    Unknown { name: String },
    #[error(
        "annotation network.krustlet.dev/allowed-outbound-hosts: {entry:?} is not HOST[:PORT], \
         *.DOMAIN[:PORT] or CIDR[:PORT]"
    )]
    Entry { entry: String },
    #[error(
        "annotation network.krustlet.dev/allowed-outbound-hosts: there are more than 256 entries"
    )]
    TooMany,
}

impl Outbound {
    /// The list of a pod; none if it has no such annotation.
    ///
    /// # Errors
    ///
    /// The first entry that makes no sense, and an annotation of the domain that
    /// is neither a list nor a bound.
    pub fn of(pod: &Pod) -> Result<Option<Vec<Self>>, OutboundError> {
        let mut list = None;
        for (name, value) in pod.metadata.annotations.iter().flatten() {
            match name.strip_prefix(DOMAIN) {
                Some(HOSTS) => list = Some(Self::read(value)?),
                // A slip of the pen in the name of a list must not open a pod.
                Some(other) if !other.starts_with("max-") => {
                    return Err(OutboundError::Unknown { name: name.clone() });
                }
                Some(_) | None => {}
            }
        }
        Ok(list)
    }

    /// Reads a list; an empty one lets nothing through.
    ///
    /// # Errors
    ///
    /// As [`Outbound::of`].
    pub fn read(text: &str) -> Result<Vec<Self>, OutboundError> {
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        if text.split(',').count() > MOST {
            return Err(OutboundError::TooMany);
        }
        let entry = |entry: &str| {
            let entry = entry.trim();
            Self::parse(entry).ok_or_else(|| OutboundError::Entry { entry: entry.to_owned() })
        };
        text.split(',').map(entry).collect()
    }

    fn parse(entry: &str) -> Option<Self> {
        let addresses = |text: &str| AddressRange::parse(text).map(OutboundTo::Addresses);
        if let Some(rest) = entry.strip_prefix('[') {
            let (inner, port) = rest.split_once(']')?;
            let port = match port.strip_prefix(':') {
                Some(port) => Some(number(port)?),
                None if port.is_empty() => None,
                None => return None,
            };
            return Some(Self { to: addresses(inner)?, port });
        }
        if let Some(to) = addresses(entry) {
            return Some(Self { to, port: None });
        }
        let (to, port) = match entry.rsplit_once(':') {
            Some((to, port)) => (to, Some(number(port)?)),
            None => (entry, None),
        };
        let to = addresses(to).or_else(|| {
            if let Some(domain) = to.strip_prefix("*.") {
                return host(domain).map(OutboundTo::Below);
            }
            host(to).map(OutboundTo::Host)
        })?;
        Some(Self { to, port })
    }

    /// Whether it speaks of a name, as a guest writes it.
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        match &self.to {
            OutboundTo::Host(host) => name.eq_ignore_ascii_case(host),
            OutboundTo::Below(domain) => {
                let Some(dot) = name.len().checked_sub(domain.len() + 1) else { return false };
                // Cut only where a character begins: names may be any text.
                dot > 0
                    && name.as_bytes()[dot] == b'.'
                    && name.as_bytes()[dot + 1..].eq_ignore_ascii_case(domain.as_bytes())
            }
            OutboundTo::Addresses(_) => false,
        }
    }

    /// Whether it speaks of an address and port by themselves.
    #[must_use]
    pub fn covers(&self, address: IpAddr, port: u16) -> bool {
        match &self.to {
            OutboundTo::Addresses(range) => {
                range.contains(address.to_canonical()) && self.port.is_none_or(|only| only == port)
            }
            OutboundTo::Host(_) | OutboundTo::Below(_) => false,
        }
    }
}

fn number(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_plain && *port != 0)
}

/// A name in lower case. Names of other scripts are written as the domain name
/// system has them.
fn host(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(is_plain);
    // What ends in a number is an address that was not written well.
    let is_number = text.rsplit('.').next()?.bytes().all(|byte| byte.is_ascii_digit());
    (text.len() <= 253 && text.split('.').all(is_label) && !is_number).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(name: &str, value: &str) -> Result<Option<Vec<Outbound>>, OutboundError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"annotations": {name: value, "other.example/x": "y"}},
        }))
        .unwrap();
        Outbound::of(&pod)
    }

    fn list(value: &str) -> Vec<Outbound> {
        read("network.krustlet.dev/allowed-outbound-hosts", value).unwrap().unwrap()
    }

    #[test]
    fn entries_are_read_as_people_write_them() {
        assert_eq!(Outbound::of(&Pod::default()), Ok(None));
        assert_eq!(list(" "), []);
        let all = list(
            "API.example.com.:443, *.example.org,10.0.0.0/8:5432 , 192.0.2.1, 2001:db8::1,[2001:db8::/32]:443,[::1]",
        );
        let range = |text: &str| OutboundTo::Addresses(AddressRange::parse(text).unwrap());
        let expected = [
            (OutboundTo::Host("api.example.com".into()), Some(443)),
            (OutboundTo::Below("example.org".into()), None),
            (range("10.0.0.0/8"), Some(5432)),
            (range("192.0.2.1"), None),
            (range("2001:db8::1"), None),
            (range("2001:db8::/32"), Some(443)),
            (range("::1"), None),
        ];
        assert_eq!(all, expected.map(|(to, port)| Outbound { to, port }));
    }

    #[test]
    fn nonsense_is_refused_with_what_would_do() {
        for entry in [
            "*",
            "*.",
            "a.*.b",
            "a,,b",
            "a:0",
            "a:70000",
            "a:+1",
            "a:",
            ":1",
            "10.0.0.0/33",
            "10.0.0.1.5",
            "http://a",
            "a/b",
            "[a]:1",
            "[::1]x",
            "[::1",
            "bücher.example",
            "a..b",
        ] {
            let error = read("network.krustlet.dev/allowed-outbound-hosts", entry).unwrap_err();
            assert!(error.to_string().contains("is not HOST[:PORT]"), "{entry}: {error}");
        }
        let error = read("network.krustlet.dev/allowed-hosts", "a").unwrap_err();
        assert!(error.to_string().contains("there is no annotation"), "{error}");
        assert_eq!(read("network.krustlet.dev/max-sockets", "a"), Ok(None));
        let many = vec!["a"; MOST + 1].join(",");
        let error = read("network.krustlet.dev/allowed-outbound-hosts", &many).unwrap_err();
        assert_eq!(error, OutboundError::TooMany);
    }

    #[test]
    fn a_name_is_on_the_list_whole_or_below_a_star() {
        let is_for = |entry: &str, name: &str| list(entry)[0].is_for(name);
        assert!(is_for("a.example", "A.Example.") && is_for("a.example", "a.example"));
        assert!(is_for("*.example", "a.example") && is_for("*.example", "a.B.EXAMPLE."));
        for (entry, name) in [
            ("a.example", "b.a.example"),
            ("a.example", "a.example.."),
            ("*.example", "example"),
            ("*.example", ".example"),
            ("*.example", "notexample"),
            ("*.example", "a.example.evil"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            assert!(!is_for(entry, name), "{entry} {name}");
        }
    }

    #[test]
    fn an_address_is_covered_in_every_spelling_at_its_port() {
        let covers = |entry: &str, ip: &str, port| list(entry)[0].covers(ip.parse().unwrap(), port);
        assert!(covers("10.0.0.0/8:5432", "10.9.9.9", 5432));
        assert!(covers("10.0.0.0/8", "::ffff:10.9.9.9", 1));
        assert!(!covers("10.0.0.0/8:5432", "10.9.9.9", 5433));
        assert!(!covers("10.0.0.0/8:5432", "11.0.0.0", 5432));
        assert!(!covers("a.example", "10.0.0.1", 1));
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd_to_be_read_or_refused(text in "(?s).{0,80}", name in "(?s).{0,40}") {
            if let Ok(Some(list)) = read("network.krustlet.dev/allowed-outbound-hosts", &text) {
                for entry in list {
                    std::hint::black_box(entry.is_for(&name));
                }
            }
        }
    }
}
