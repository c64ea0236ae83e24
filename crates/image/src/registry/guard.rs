//! Where a registry may send the node: redirects, token servers and names.
//!
//! A pod's author chooses the registry, and the registry chooses where its blobs
//! are. Neither is to make the node read cloud metadata or its own loopback services.
//! The rules are pure; [`GuardedResolver`] applies them to names.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use krustlet_resolver::SystemLookups;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::rules::is_loopback;

/// Most redirects of one request.
pub(crate) const HOP_LIMIT: usize = 5;

/// Addresses at which clouds serve credentials and that are not link-local: Alibaba,
/// Azure, Oracle, and Amazon's over IPv6.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Why the node does not go where it is sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum GuardError {
    #[error("it redirects more than {HOP_LIMIT} times")]
    TooMany,
    #[error("it redirects without saying where to")]
    NoLocation,
    #[error("it leads from https to {scheme}")]
    Downgrade { scheme: String },
    #[error("{scheme} is not a way to reach a registry")]
    Scheme { scheme: String },
    #[error("{host} is a link-local or metadata address, which is never asked for images")]
    Forbidden { host: String },
    #[error("{host} is the node itself")]
    Loopback { host: String },
}

/// Whether no image is ever fetched from this address.
pub(crate) fn is_forbidden(address: IpAddr) -> bool {
    let address = address.to_canonical();
    if METADATA.contains(&address) {
        return true;
    }
    match address {
        IpAddr::V4(address) => {
            address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_broadcast()
        }
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.is_unspecified() || address.is_multicast()
        }
    }
}

/// Checks a URL's host where it is an address. Names are checked when they are resolved.
pub(crate) fn check_host(url: &Url) -> Result<(), GuardError> {
    let address = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
        Some(Host::Domain(_)) | None => return Ok(()),
    };
    if is_forbidden(address) {
        return Err(GuardError::Forbidden { host: address.to_string() });
    }
    Ok(())
}

/// Checks a step from `from`, which was allowed, to `to`, which `from` chose.
pub(crate) fn check_step(from: &Url, to: &Url) -> Result<(), GuardError> {
    let scheme = || to.scheme().to_owned();
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", _) => return Err(GuardError::Downgrade { scheme: scheme() }),
        _ => return Err(GuardError::Scheme { scheme: scheme() }),
    }
    check_host(to)?;
    if is_loopback(to) && !is_loopback(from) {
        return Err(GuardError::Loopback { host: to.host_str().unwrap_or_default().to_owned() });
    }
    Ok(())
}

/// The URL that a redirect leads to.
pub(crate) fn next_hop(from: &Url, location: Option<&str>, hops: usize) -> Result<Url, GuardError> {
    if hops >= HOP_LIMIT {
        return Err(GuardError::TooMany);
    }
    let to =
        location.and_then(|location| from.join(location).ok()).ok_or(GuardError::NoLocation)?;
    check_step(from, &to)?;
    Ok(to)
}

/// Whether two URLs have the same scheme, host and port: credentials go no further.
pub(crate) fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

/// Names of registries, and of where they lead, that are looked up at once.
pub(crate) const LOOKUPS: usize = 4;

/// Resolves names, leaving out the addresses that are never asked.
#[derive(Clone, Debug)]
pub(crate) struct GuardedResolver {
    pub lookups: SystemLookups,
    /// Whether a name may mean this machine: only where the node was told to ask it.
    pub loopback: bool,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { lookups, loopback } = self.clone();
        Box::pin(async move {
            // The port is put in by the client.
            let found = lookups.look_up(name.as_str(), 0).await?;
            let has_found = !found.is_empty();
            let allowed: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| !is_forbidden(address.ip()))
                .filter(|address| loopback || !address.ip().to_canonical().is_loopback())
                .collect();
            if allowed.is_empty() && has_found {
                let error = GuardError::Forbidden { host: name.as_str().to_owned() };
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, error).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn metadata_and_link_local_addresses_are_never_asked_however_they_are_written() {
        for host in [
            "169.254.169.254",
            "169.254.1.1",
            "0.0.0.0",
            "[fe80::1]",
            "[::ffff:169.254.169.254]",
            "[::]",
            "[fd00:ec2::254]",
            "100.100.100.200",
            "168.63.129.16",
            "2852039166",
            "0xa9fea9fe",
            "[ff02::1]",
        ] {
            let to = url(&format!("https://{host}/x"));
            assert!(check_host(&to).is_err(), "{host} was allowed");
            let step = check_step(&url("https://h.io/"), &to);
            assert!(matches!(step, Err(GuardError::Forbidden { .. })), "{host}: {step:?}");
        }
        assert_eq!(check_host(&url("https://10.0.0.1/")), Ok(()));
    }

    #[test]
    fn redirects_do_not_lose_tls_and_do_not_lead_to_the_node() {
        let from = url("https://h.io/v2/a/");
        let step = |to: &str| check_step(&from, &url(to));
        assert_eq!(step("https://cdn.io/x"), Ok(()));
        assert!(matches!(step("http://h.io/x"), Err(GuardError::Downgrade { .. })));
        assert!(matches!(step("ftp://h.io/x"), Err(GuardError::Downgrade { .. })));
        assert!(matches!(step("https://localhost/x"), Err(GuardError::Loopback { .. })));
        assert!(matches!(step("https://127.0.0.9/x"), Err(GuardError::Loopback { .. })));
        assert!(matches!(step("https://[::ffff:127.0.0.1]/x"), Err(GuardError::Loopback { .. })));
        let local = url("http://127.0.0.1:5000/");
        assert_eq!(check_step(&local, &url("http://localhost:6000/")), Ok(()));
        assert!(matches!(
            check_step(&local, &url("file:///etc/passwd")),
            Err(GuardError::Scheme { .. })
        ));
    }

    #[test]
    fn five_redirects_are_followed_and_no_more() {
        let from = url("https://h.io/a/b");
        assert_eq!(next_hop(&from, Some("../c"), 4), Ok(url("https://h.io/c")));
        assert_eq!(next_hop(&from, Some("../c"), 5), Err(GuardError::TooMany));
        assert_eq!(next_hop(&from, None, 0), Err(GuardError::NoLocation));
    }

    #[test]
    fn credentials_stay_with_scheme_host_and_port() {
        let from = url("https://h.io/a");
        assert!(is_same_origin(&from, &url("https://h.io:443/b")));
        for other in ["http://h.io/a", "https://h.io:444/a", "https://x.h.io/a"] {
            assert!(!is_same_origin(&from, &url(other)), "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_redirect_from_tls_leads_to_anything_but_tls(location in ".{0,60}") {
            let from = url("https://h.io/v2/");
            if let Ok(to) = next_hop(&from, Some(&location), 0) {
                prop_assert_eq!(to.scheme(), "https");
                prop_assert!(!is_loopback(&to));
            }
        }
    }
}
