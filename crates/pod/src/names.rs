//! How a pod looks names up: the rules of `krustlet_model::names` over two files
//! of the node.
//!
//! The files are read afresh for each sandbox, as the kubelet does: a node that gets
//! another name server does not get another agent for it. A sandbox that lives is not
//! told of what becomes of them.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;
use krustlet_model::names::{self, HostLine, NamesWarning, NodeNames, ResolvConf, ResolvConfError};
use krustlet_protocol::{Host, Names};
use krustlet_volume::EtcFiles;

/// Where name servers listen.
const PORT: u16 = 53;

/// Where systemd-resolved writes the servers that it asks itself.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// What the node is configured to add to its pods' names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamesConfig {
    /// The cluster's name servers; kubelet's `clusterDNS`.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain; kubelet's `clusterDomain`. May be empty.
    pub cluster_domain: String,
    /// Whether sandboxes know the names below that.
    pub knows_cluster: bool,
    /// The node's own resolv.conf; kubelet's `resolvConf`. None: it has none.
    pub resolv_conf: Option<PathBuf>,
    /// The node's own hosts file.
    pub hosts: PathBuf,
}

impl NamesConfig {
    /// No cluster, and the system's own files.
    ///
    /// Where `/etc/resolv.conf` names nothing but this machine's own loopback,
    /// which a pod does not reach, the file is taken that systemd-resolved keeps
    /// for such cases (as kubeadm does, `cmd/kubeadm/app/componentconfigs/kubelet.go`).
    #[must_use]
    pub fn of_system() -> Self {
        let usual = PathBuf::from("/etc/resolv.conf");
        let is_local = fs::read_to_string(&usual)
            .is_ok_and(|text| ResolvConf::parse(&text).is_ok_and(|conf| conf.is_local()));
        let behind = PathBuf::from(BEHIND_STUB);
        let resolv_conf = if is_local && behind.exists() { behind } else { usual };
        Self {
            cluster_dns: Vec::new(),
            cluster_domain: String::new(),
            knows_cluster: false,
            resolv_conf: Some(resolv_conf),
            hosts: PathBuf::from("/etc/hosts"),
        }
    }

    /// Reads the node's files, those that a pod needs.
    fn read(&self, pod: &Pod, name: &str, addresses: &[IpAddr]) -> Result<NodeNames, NamesError> {
        let resolv_conf = match &self.resolv_conf {
            None => None,
            Some(path) => {
                let text = read(path)?;
                let conf = ResolvConf::parse(&text)
                    .map_err(|source| NamesError::Invalid { path: path.clone(), source })?;
                Some(conf)
            }
        };
        let spec = pod.spec.as_ref();
        let hosts = if spec.and_then(|spec| spec.host_network).unwrap_or_default() {
            // To programs no such file is an empty one.
            match read(&self.hosts) {
                Ok(text) => names::parse_hosts(&text),
                Err(NamesError::Read { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    Vec::new()
                }
                Err(error) => return Err(error),
            }
        } else {
            Vec::new()
        };
        Ok(NodeNames {
            name: name.to_owned(),
            cluster_dns: self.cluster_dns.clone(),
            cluster_domain: self.cluster_domain.clone(),
            knows_cluster: self.knows_cluster,
            resolv_conf,
            addresses: addresses.to_vec(),
            hosts,
        })
    }
}

fn read(path: &Path) -> Result<String, NamesError> {
    fs::read_to_string(path).map_err(|source| NamesError::Read { path: path.to_owned(), source })
}

/// Why a pod's names are not known.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum NamesError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} cannot be used")]
    Invalid {
        path: PathBuf,
        #[source]
        source: ResolvConfError,
    },
}

/// How a pod at these addresses looks names up, and what people should hear of.
/// Reads files.
///
/// # Errors
///
/// [`NamesError`].
pub(crate) fn of_pod(
    config: &NamesConfig,
    pod: &Pod,
    node: (&str, &[IpAddr]),
    addresses: &[IpAddr],
) -> Result<(Names, Vec<NamesWarning>), NamesError> {
    let node = config.read(pod, node.0, node.1)?;
    Ok(of_node(pod, addresses, &node))
}

/// As [`of_pod`], of one whose sandbox was told by an earlier agent. None while the
/// node's resolv.conf names no server, as it does while it is being written: what
/// the sandbox knows is better than that.
///
/// # Errors
///
/// [`NamesError`].
pub(crate) fn of_living_pod(
    config: &NamesConfig,
    pod: &Pod,
    node: (&str, &[IpAddr]),
    addresses: &[IpAddr],
) -> Result<Option<Names>, NamesError> {
    let node = config.read(pod, node.0, node.1)?;
    let is_empty = node.resolv_conf.as_ref().is_some_and(|conf| conf.servers.is_empty());
    Ok((!is_empty).then(|| of_node(pod, addresses, &node).0))
}

fn of_node(pod: &Pod, addresses: &[IpAddr], node: &NodeNames) -> (Names, Vec<NamesWarning>) {
    let resolver = names::resolver(pod, node);
    // What is no address, the C library passes over.
    let at = |servers: &[String]| {
        let ips = servers.iter().filter_map(|server| server.parse().ok());
        ips.map(|ip| SocketAddr::new(ip, PORT)).collect()
    };
    let hosts = names::hosts(pod, addresses, node);
    let names = Names {
        hosts: hosts.into_iter().map(host).collect(),
        cluster_domain: resolver.known_domain.clone(),
        servers: at(&resolver.servers),
        node_servers: at(&resolver.node_servers),
        searches: resolver.searches.clone(),
        ndots: resolver.ndots(),
        timeout_ms: u64::try_from(resolver.timeout().as_millis()).unwrap_or(u64::MAX),
        attempts: resolver.attempts(),
    };
    (names, resolver.warnings)
}

/// What the guests of a pod find in `/etc`, by name. Reads files.
///
/// # Errors
///
/// [`NamesError`].
pub(crate) fn files_of_pod(
    config: &NamesConfig,
    pod: &Pod,
    node: (&str, &[IpAddr]),
    addresses: &[IpAddr],
    hostname: &str,
) -> Result<EtcFiles, NamesError> {
    let node = config.read(pod, node.0, node.1)?;
    Ok(vec![
        ("hostname", format!("{hostname}\n")),
        ("hosts", names::hosts_file(&names::hosts(pod, addresses, &node))),
        ("resolv.conf", names::resolver(pod, &node).file()),
    ])
}

fn host(line: HostLine) -> Host {
    let names = line.names.into_iter().map(|name| name.to_lowercase()).collect();
    Host { address: line.address, names }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": spec,
        }))
        .unwrap()
    }

    fn of(config: &NamesConfig, spec: serde_json::Value) -> Result<Names, NamesError> {
        let address = ["10.1.0.2".parse().unwrap()];
        of_pod(config, &pod(spec), ("node", &[]), &address).map(|(names, _)| names)
    }

    #[test]
    fn the_nodes_files_are_read_anew_for_each_pod() {
        let home = tempfile::tempdir().unwrap();
        let config = NamesConfig {
            cluster_dns: vec!["10.0.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            knows_cluster: false,
            resolv_conf: Some(home.path().join("resolv.conf")),
            hosts: home.path().join("hosts"),
        };
        let missing = of(&config, json!({})).unwrap_err();
        assert!(missing.to_string().starts_with("cannot read "), "{missing}");
        let write = |name: &str, text: &str| fs::write(home.path().join(name), text).unwrap();
        write("resolv.conf", "nameserver 192.0.2.1\nnameserver odd\noptions attempts:3\n");
        write("hosts", "192.0.2.7 Node.Example\n");
        let names = of(&config, json!({"dnsPolicy": "Default", "hostNetwork": true})).unwrap();
        assert_eq!(names.servers, ["192.0.2.1:53".parse().unwrap()]);
        assert_eq!((names.ndots, names.timeout_ms, names.attempts), (1, 5000, 3));
        assert_eq!(names.hosts.len(), 1);
        assert_eq!(names.hosts[0].names, ["node.example"]);
        write("resolv.conf", "nameserver 2001:db8::1\n");
        let names = of(&config, json!({"dnsPolicy": "Default"})).unwrap();
        assert_eq!(names.servers, ["[2001:db8::1]:53".parse().unwrap()]);
        let names = of(&config, json!({"dnsPolicy": "ClusterFirst"})).unwrap();
        assert_eq!(names.servers, ["10.0.0.10:53".parse().unwrap()]);
        assert_eq!(names.ndots, 5);
        assert!(names.hosts.iter().any(|host| host.names == ["p"]));
        // The pod's own are not what the node gave, wherever they are.
        let own =
            json!({"dnsPolicy": "Default", "dnsConfig": {"nameservers": ["169.254.169.254"]}});
        let names = of(&config, own).unwrap();
        assert_eq!(names.servers.len(), 2);
        assert_eq!(names.node_servers, ["[2001:db8::1]:53".parse().unwrap()]);
        write("resolv.conf", "nameserver\n");
        assert!(of(&config, json!({})).unwrap_err().to_string().ends_with("cannot be used"));
    }
}
