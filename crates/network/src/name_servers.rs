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

impl NameServers {
    /// Those that there are now. A file that cannot be read names none: the pods
    /// that need it are told.
    pub(crate) async fn find(&self) -> Vec<IpAddr> {
        let mut all = self.given.clone();
        if let Some(path) = self.resolv_conf.clone() {
            let read = spawn_blocking(move || fs::read_to_string(path)).await;
            let text = read.ok().and_then(Result::ok).unwrap_or_default();
            let servers = ResolvConf::parse(&text).unwrap_or_default().servers;
            all.extend(servers.iter().filter_map(|server| server.parse::<IpAddr>().ok()));
        }
        all
    }
}
