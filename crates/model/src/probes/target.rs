//! What a probe does: its action with ports resolved.

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::path::written;

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Sends a request.
    Http(HttpTarget),
    /// Connects.
    Tcp {
        /// Where to; the pod's address if None.
        host: Option<String>,
        /// Its port.
        port: u16,
    },
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTarget {
    /// `http` or `https`, as the probe has it in small letters.
    pub scheme: String,
    /// Where to; the pod's address if None.
    pub host: Option<String>,
    /// Its port.
    pub port: u16,
    /// Path and query, as the probe has them.
    pub path: String,
    /// Header lines, in order.
    pub headers: Vec<(String, String)>,
}

/// Why a probe cannot be made. The texts are the kubelet's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum TargetError {
    #[error("port {name:?} not found")]
    NoPort { name: String },

    #[error("invalid port number: {port}")]
    InvalidPort { port: i64 },

    #[error("missing probe handler for {container}")]
    NoHandler { container: String },
}

/// What this probe of a container does.
///
/// Source: kubelet, `runProbe` in `pkg/kubelet/prober/prober.go`,
/// `NewRequestForHTTPGetAction` in `pkg/probe/http/request.go`.
///
/// # Errors
///
/// [`TargetError`]: that says nothing of the container's health.
pub fn target(container: &Container, probe: &Probe) -> Result<Target, TargetError> {
    let host = |host: &Option<String>| host.clone().filter(|host| !host.is_empty());
    if let Some(get) = &probe.http_get {
        return Ok(Target::Http(HttpTarget {
            scheme: scheme(get),
            host: host(&get.host),
            port: port(&get.port, container)?,
            path: get.path.clone().unwrap_or_default(),
            headers: get
                .http_headers
                .iter()
                .flatten()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        }));
    }
    if let Some(socket) = &probe.tcp_socket {
        let port = port(&socket.port, container)?;
        return Ok(Target::Tcp { host: host(&socket.host), port });
    }
    Err(TargetError::NoHandler { container: container.name.clone() })
}

fn scheme(get: &HTTPGetAction) -> String {
    match get.scheme.as_deref() {
        None | Some("") => "http".to_owned(),
        Some(scheme) => scheme.to_ascii_lowercase(),
    }
}

/// Source: kubelet, `ResolveContainerPort` in `pkg/probe/util.go`.
fn port(given: &IntOrString, container: &Container) -> Result<u16, TargetError> {
    let number = match given {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let found = ports.find(|port| port.name.as_ref() == Some(name));
            found.ok_or_else(|| TargetError::NoPort { name: name.clone() })?.container_port
        }
    };
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        Ok(_) | Err(_) => Err(TargetError::InvalidPort { port: number.into() }),
    }
}

/// `host:port`, an IPv6 address in brackets.
#[must_use]
pub fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl HttpTarget {
    /// What its request asks for.
    #[must_use]
    pub fn path_and_query(&self) -> String {
        let written = written(&self.path);
        if written.starts_with('/') { written } else { format!("/{written}") }
    }

    /// The URL on this host, as messages show it.
    #[must_use]
    pub fn url(&self, host: &str) -> String {
        format!("{}://{}{}", self.scheme, join(host, self.port), written(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(probe: serde_json::Value) -> Result<Target, String> {
        let container: Container = serde_json::from_value(json!({
            "name": "c",
            "ports": [{"name": "web", "containerPort": 81}, {"name": "bad", "containerPort": 0}],
        }))
        .unwrap();
        let probe: Probe = serde_json::from_value(probe).unwrap();
        target(&container, &probe).map_err(|error| error.to_string())
    }

    #[test]
    fn a_port_may_be_named() {
        let tcp = |port| of(json!({"tcpSocket": {"port": port}}));
        assert_eq!(tcp(json!("web")), Ok(Target::Tcp { host: None, port: 81 }));
        assert_eq!(tcp(json!(8080)), Ok(Target::Tcp { host: None, port: 8080 }));
        assert_eq!(tcp(json!("other")), Err("port \"other\" not found".to_owned()));
        assert_eq!(tcp(json!("bad")), Err("invalid port number: 0".to_owned()));
        assert_eq!(tcp(json!(70000)), Err("invalid port number: 70000".to_owned()));
        assert_eq!(of(json!({})), Err("missing probe handler for c".to_owned()));
    }

    #[test]
    fn a_url_is_that_of_the_pod_or_of_the_host_it_names() {
        let url = |get: serde_json::Value, host: &str| match of(json!({"httpGet": get})).unwrap() {
            Target::Http(http) => http.url(http.host.as_deref().unwrap_or(host)),
            other @ Target::Tcp { .. } => panic!("{other:?}"),
        };
        assert_eq!(
            url(json!({"port": 80, "path": "/a?b=c"}), "10.0.0.1"),
            "http://10.0.0.1:80/a?b=c"
        );
        assert_eq!(url(json!({"port": 80, "path": "a"}), "10.0.0.1"), "http://10.0.0.1:80/a");
        assert_eq!(url(json!({"port": 80}), "fd00::1"), "http://[fd00::1]:80");
        let other = json!({"port": "web", "host": "name", "scheme": "HTTPS", "path": "/"});
        assert_eq!(url(other, "10.0.0.1"), "https://name:81/");
    }
}
