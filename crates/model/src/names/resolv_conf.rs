//! Reading the node's `resolv.conf`.

use std::collections::BTreeMap;

/// What a `resolv.conf` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Servers as written.
    pub servers: Vec<String>,
    /// Search domains of the last `search` line, without a dot at their end.
    pub searches: Vec<String>,
    /// Options of all lines with their values; the last of each counts.
    pub options: BTreeMap<String, String>,
}

/// Why a `resolv.conf` is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} says nameserver and names none")]
pub struct ResolvConfError {
    /// Counted from 1.
    pub line: usize,
}

impl ResolvConf {
    /// Reads the text of a `resolv.conf`.
    ///
    /// Source: kubelet, `parseResolvConf` in `pkg/kubelet/network/dns/dns.go`.
    ///
    /// # Errors
    ///
    /// If a `nameserver` line names no server. What is not known is skipped.
    pub fn parse(text: &str) -> Result<Self, ResolvConfError> {
        let mut conf = Self::default();
        for (at, line) in text.lines().enumerate() {
            let mut fields = line.split_whitespace();
            match fields.next() {
                Some("nameserver") => {
                    let server = fields.next().ok_or(ResolvConfError { line: at + 1 })?;
                    conf.servers.push(server.to_owned());
                }
                Some("search") => {
                    let domains = fields.filter(|domain| *domain != ".");
                    let plain =
                        |domain: &str| domain.strip_suffix('.').unwrap_or(domain).to_owned();
                    conf.searches = domains.map(plain).collect();
                }
                Some("options") => conf.options.extend(fields.map(|option| {
                    let (name, value) = option.split_once(':').unwrap_or((option, ""));
                    (name.to_owned(), value.to_owned())
                })),
                // Comments among them.
                _ => {}
            }
        }
        Ok(conf)
    }

    /// Whether every server is the machine itself, which in a pod is the pod.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let is_local = |server: &String| {
            server.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        !self.servers.is_empty() && self.servers.iter().all(is_local)
    }
}
