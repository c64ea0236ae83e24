//! Which name servers the node gives its pods, wherever these are.

use std::{fs, net::IpAddr, path::PathBuf};

use krustlet_model::names::ResolvConf;
use tokio::task::spawn_blocking;

/// Where the name servers are said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameServers {
    /// The cluster's own.
    pub given: Vec<IpAddr>,
    /// The node's resolv.conf, which names more; read again and again, for
    /// it changes as the node moves from network to network.
    pub resolv_conf: Option<PathBuf>,
}

/// All that were ever named. Pods go on with those that they were made with, and
/// the file may be looked at while somebody writes it anew: so none is forgotten.
/// They are as many as the networks that a machine was in.
#[derive(Debug)]
pub(crate) struct KnownServers {
    resolv_conf: Option<PathBuf>,
    all: Vec<IpAddr>,
}

impl KnownServers {
    pub(crate) fn new(named: NameServers) -> Self {
        let NameServers { given, resolv_conf } = named;
        Self { resolv_conf, all: given }
    }

    /// Adds those that are named now. A file that cannot be read names none: the pods
    /// that need it are told.
    pub(crate) async fn look(&mut self) -> &[IpAddr] {
        if let Some(path) = self.resolv_conf.clone() {
            let read = spawn_blocking(move || fs::read_to_string(path)).await;
            let text = read.ok().and_then(Result::ok).unwrap_or_default();
            let servers = ResolvConf::parse(&text).unwrap_or_default().servers;
            for server in servers.iter().filter_map(|server| server.parse().ok()) {
                if !self.all.contains(&server) {
                    self.all.push(server);
                }
            }
        }
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn none_that_was_named_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let cluster: IpAddr = "10.96.0.10".parse().unwrap();
        let named = NameServers { given: vec![cluster], resolv_conf: Some(path.clone()) };
        let mut known = KnownServers::new(named);
        assert_eq!(known.look().await, [cluster], "there is no file");
        for (text, named) in [
            ("nameserver 169.254.20.10\nnameserver 10.96.0.10\n", &["169.254.20.10"][..]),
            ("", &["169.254.20.10"]),
            ("nameserver", &["169.254.20.10"]),
            ("nameserver fd00::53\n", &["169.254.20.10", "fd00::53"]),
        ] {
            fs::write(&path, text).unwrap();
            let named = named.iter().map(|server| server.parse().unwrap());
            let all: Vec<IpAddr> = [cluster].into_iter().chain(named).collect();
            assert_eq!(known.look().await, all, "{text:?}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(known.look().await.len(), 3);
    }
}
