//! The variables that tell a container where services are.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1::{Service, ServicePort};

/// The service by which the API server is reached; all pods are told of it.
const MASTER: (&str, &str) = ("default", "kubernetes");

/// The variables for a pod of this namespace, by name.
///
/// With `links`, all services of the namespace count; `kubernetes` of the
/// namespace `default` always does. Services without an address of their own
/// (headless ones, external names) are left out.
///
/// Source: kubelet, `getServiceEnvVarMap` in `pkg/kubelet/kubelet_pods.go` and
/// `FromServices` in `pkg/kubelet/envvars/envvars.go`.
#[must_use]
pub fn service_variables(
    services: &[Arc<Service>],
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let home = service.metadata.namespace.as_deref().unwrap_or_default();
        if links && home == namespace {
            // A service of the pod's own goes before the master's namesake.
            chosen.insert(name, service);
        } else if (home, name) == MASTER {
            chosen.entry(name).or_insert(service);
        }
    }
    for (name, service) in chosen {
        add(&mut all, name, service);
    }
    all
}

fn add(all: &mut BTreeMap<String, String>, name: &str, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    if ip.is_empty() || ip == "None" {
        return;
    }
    let service = upper(name);
    all.insert(format!("{service}_SERVICE_HOST"), ip.to_owned());
    all.insert(format!("{service}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            all.insert(format!("{service}_SERVICE_PORT_{}", upper(name)), port.port.to_string());
        }
    }
    // What Docker set for linked containers.
    all.insert(format!("{service}_PORT"), url(ip, first));
    for port in ports {
        let protocol = protocol(port);
        let prefix = format!("{service}_PORT_{}_{protocol}", port.port);
        all.insert(prefix.clone(), url(ip, port));
        all.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
        all.insert(format!("{prefix}_PORT"), port.port.to_string());
        all.insert(format!("{prefix}_ADDR"), ip.to_owned());
    }
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().filter(|protocol| !protocol.is_empty()).unwrap_or("TCP")
}

fn url(ip: &str, port: &ServicePort) -> String {
    let host = match ip.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => format!("[{ip}]"),
        Ok(IpAddr::V4(_)) | Err(_) => ip.to_owned(),
    };
    format!("{}://{host}:{}", protocol(port).to_lowercase(), port.port)
}

fn upper(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}
