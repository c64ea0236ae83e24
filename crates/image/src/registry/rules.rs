//! Which hosts answer for a registry, and how they are spoken to.
//!
//! Pure. Mirrors work as in `containers-registries.conf(5)`: the longest matching
//! prefix is replaced by the mirror's place, and the registry itself comes last.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use url::{Host, Url};

use crate::reference::{DEFAULT_REGISTRY, Reference};

/// What the node's owner says about registries.
#[derive(Clone, Debug, Default)]
pub struct RegistryRules {
    /// Other places to ask first.
    pub mirrors: Vec<Mirror>,
    /// Hosts (`host` or `host:port`) that are spoken to without TLS. Loopback addresses
    /// and `localhost` are, unless `tls` names them (as containerd does).
    pub plain_http: BTreeSet<String>,
    /// Loopback hosts (`host` or `host:port`) that are spoken to with TLS.
    pub tls: BTreeSet<String>,
    /// PEM files of certificate authorities that are trusted beside the system's.
    pub authorities: Vec<PathBuf>,
}

/// Places that hold copies of what is below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// A registry, or a registry and the beginning of a path: `docker.io`, `ghcr.io/team`.
    pub prefix: String,
    /// What stands in place of the prefix, in the order they are asked:
    /// `[http://|https://]host[:port][/path]`.
    pub endpoints: Vec<String>,
    /// Whether the registry itself is asked if no mirror has the image.
    pub fall_back: bool,
}

/// A repository at the place where it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `https://host:port/v2/<repository>/`.
    pub base: Url,
    /// `host[:port]`, as in configuration and credentials.
    pub host: String,
    /// The repository's name there.
    pub repository: String,
    /// The node's owner named this host, so that it may be at an address that is
    /// otherwise forbidden.
    pub is_named: bool,
}

/// Why a place cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message is the description")]
#[error("{given:?} is not a registry's address of the form [http://|https://]host[:port][/path]")]
pub struct EndpointError {
    pub given: String,
}

impl RegistryRules {
    /// Finds mistakes in the configuration before the first pull does.
    pub(crate) fn check(&self) -> Result<(), EndpointError> {
        for mirror in &self.mirrors {
            for place in &mirror.endpoints {
                self.endpoint(place, "check", true)?;
            }
        }
        Ok(())
    }

    /// The places to ask for `reference`, in order.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, EndpointError> {
        let mut endpoints = Vec::new();
        let name = reference.name();
        let longest = self
            .mirrors
            .iter()
            .filter_map(|mirror| Some((mirror, below(&name, &mirror.prefix)?)))
            .max_by_key(|(mirror, _)| mirror.prefix.len());
        let mut falls_back = true;
        if let Some((mirror, rest)) = longest {
            falls_back = mirror.fall_back;
            for place in &mirror.endpoints {
                endpoints.push(self.endpoint(place, rest, true)?);
            }
        }
        if falls_back || endpoints.is_empty() {
            endpoints.push(self.origin(reference)?);
        }
        Ok(endpoints)
    }

    /// The registry itself: where images are pushed.
    pub(crate) fn origin(&self, reference: &Reference) -> Result<Endpoint, EndpointError> {
        // The name people use is not the host that serves the protocol.
        let host = match reference.registry() {
            DEFAULT_REGISTRY => "registry-1.docker.io",
            other => other,
        };
        let is_named = self.plain_http.contains(host);
        self.endpoint(host, reference.repository(), is_named)
    }

    fn endpoint(&self, place: &str, rest: &str, is_named: bool) -> Result<Endpoint, EndpointError> {
        let bad = || EndpointError { given: place.to_owned() };
        let (scheme, address) = match place.split_once("://") {
            Some((scheme @ ("http" | "https"), address)) => (Some(scheme), address),
            Some(_) => return Err(bad()),
            None => (None, place),
        };
        let (host, path) = address.split_once('/').unwrap_or((address, ""));
        let mut repository = path.trim_matches('/').to_owned();
        if !repository.is_empty() && !rest.is_empty() {
            repository.push('/');
        }
        repository.push_str(rest);
        let scheme = scheme.unwrap_or_else(|| self.scheme(host));
        let base = Url::parse(&format!("{scheme}://{host}/v2/{repository}/")).map_err(|_| bad())?;
        let is_clean = !host.is_empty()
            && !repository.is_empty()
            && base.username().is_empty()
            && base.query().is_none()
            && base.fragment().is_none();
        if !is_clean {
            return Err(bad());
        }
        Ok(Endpoint { base, host: host.to_owned(), repository, is_named })
    }

    fn scheme(&self, host: &str) -> &'static str {
        if self.plain_http.contains(host) || (is_loopback_name(host) && !self.tls.contains(host)) {
            "http"
        } else {
            "https"
        }
    }
}

/// What follows `prefix` in `name`, if the prefix ends where a part does.
fn below<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(prefix.trim_end_matches('/'))?;
    rest.strip_prefix('/')
}

fn is_loopback_name(host: &str) -> bool {
    Url::parse(&format!("http://{host}/")).is_ok_and(|url| is_loopback(&url))
}

/// Whether a URL's host is this machine, by name or address.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical().is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(rules: &RegistryRules, reference: &str) -> Vec<String> {
        let endpoints = rules.endpoints(&reference.parse().unwrap()).unwrap();
        endpoints.into_iter().map(|endpoint| endpoint.base.to_string()).collect()
    }

    fn mirror(prefix: &str, endpoints: &[&str]) -> Mirror {
        Mirror {
            prefix: prefix.to_owned(),
            endpoints: endpoints.iter().map(|&one| one.to_owned()).collect(),
            fall_back: true,
        }
    }

    #[test]
    fn registries_are_spoken_to_with_tls_but_for_loopback_and_named_hosts() {
        let mut rules = RegistryRules::default();
        assert_eq!(urls(&rules, "nginx"), ["https://registry-1.docker.io/v2/library/nginx/"]);
        assert_eq!(urls(&rules, "h.io:5000/a"), ["https://h.io:5000/v2/a/"]);
        assert_eq!(urls(&rules, "localhost:5000/a"), ["http://localhost:5000/v2/a/"]);
        assert_eq!(urls(&rules, "127.0.0.2:5000/a"), ["http://127.0.0.2:5000/v2/a/"]);
        rules.plain_http.insert("h.io:5000".to_owned());
        rules.tls.insert("localhost:5000".to_owned());
        assert_eq!(urls(&rules, "h.io:5000/a"), ["http://h.io:5000/v2/a/"]);
        assert_eq!(urls(&rules, "h.io/a"), ["https://h.io/v2/a/"]);
        assert_eq!(urls(&rules, "localhost:5000/a"), ["https://localhost:5000/v2/a/"]);
    }

    #[test]
    fn the_longest_prefix_chooses_the_mirrors_and_the_registry_comes_last() {
        let rules = RegistryRules {
            mirrors: vec![
                mirror("docker.io", &["cache.lan/hub", "http://other.lan:80"]),
                mirror("docker.io/team", &["https://team.lan/x/y"]),
                mirror("docker.io/te", &["wrong.lan"]),
            ],
            ..RegistryRules::default()
        };
        assert_eq!(
            urls(&rules, "nginx"),
            [
                "https://cache.lan/v2/hub/library/nginx/",
                "http://other.lan/v2/library/nginx/",
                "https://registry-1.docker.io/v2/library/nginx/",
            ]
        );
        assert_eq!(
            urls(&rules, "team/app"),
            ["https://team.lan/v2/x/y/app/", "https://registry-1.docker.io/v2/team/app/"]
        );
        let mut only = rules;
        only.mirrors[1].fall_back = false;
        assert_eq!(urls(&only, "team/app"), ["https://team.lan/v2/x/y/app/"]);
    }

    #[test]
    fn mistakes_in_the_configuration_are_found() {
        for place in ["ftp://h.io", "", "/x", "user@h.io", "h.io/x?y", "h.io:port"] {
            let rules =
                RegistryRules { mirrors: vec![mirror("a.io", &[place])], ..Default::default() };
            assert!(rules.check().is_err(), "{place:?} was accepted");
        }
    }
}
