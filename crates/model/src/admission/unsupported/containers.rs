//! Fields of containers.

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec, Probe, VolumeMount};

use super::{Found, NOT_YET, has_any, security};

const PROBE: &str = "not offered by this version; use httpGet or tcpSocket";
const HOOKS: &str = "hooks are not offered by this version; leave it out";
const ATTACH: &str = "nothing can be attached to a container in this version; leave it out";

pub(super) fn of_pod(spec: &PodSpec, found: &mut Found) {
    for (list, containers) in [
        ("initContainers", spec.init_containers.as_deref().unwrap_or_default()),
        ("containers", spec.containers.as_slice()),
    ] {
        for container in containers {
            let at = format!("spec.{list}[{}]", container.name);
            of_container(&at, container, found);
            // The API server writes the hostPort of these, for each port.
            if spec.host_network != Some(true) {
                found.at(at);
                container.ports.iter().flatten().for_each(|port| of_host_port(port, found));
            }
        }
    }
}

fn of_container(at: &str, container: &Container, found: &mut Found) {
    found.at(at.to_owned());
    found.refuse(
        container
            .env
            .iter()
            .flatten()
            .filter_map(|env| env.value_from.as_ref())
            .any(|source| source.file_key_ref.is_some()),
        "env.valueFrom.fileKeyRef",
        NOT_YET,
    );
    if let Some(lifecycle) = &container.lifecycle {
        found.refuse(lifecycle.post_start.is_some(), "lifecycle.postStart", HOOKS);
        found.refuse(lifecycle.pre_stop.is_some(), "lifecycle.preStop", HOOKS);
        found.refuse(
            lifecycle.stop_signal.is_some(),
            "lifecycle.stopSignal",
            "a WebAssembly program gets no signals",
        );
    }
    for (name, probe) in [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ] {
        if let Some(probe) = probe {
            of_probe(name, probe, found);
        }
    }
    resources(container, found);
    found.refuse(has_any(container.restart_policy_rules.as_ref()), "restartPolicyRules", NOT_YET);
    found.refuse(container.stdin == Some(true), "stdin", ATTACH);
    found.refuse(container.tty == Some(true), "tty", ATTACH);
    let policy = container.termination_message_policy.as_deref().unwrap_or_default();
    found.refuse(
        !matches!(policy, "" | "File" | "FallbackToLogsOnError"),
        "terminationMessagePolicy",
        "must be File or FallbackToLogsOnError",
    );
    found.refuse(
        has_any(container.volume_devices.as_ref()),
        "volumeDevices",
        "a WebAssembly program cannot use block devices",
    );
    for mount in container.volume_mounts.iter().flatten() {
        of_mount(mount, found);
    }
    if let Some(context) = &container.security_context {
        found.at(format!("{at}.securityContext"));
        security::of_container(context, found);
    }
}

fn of_probe(name: &str, probe: &Probe, found: &mut Found) {
    found.refuse(probe.exec.is_some(), &format!("{name}.exec"), PROBE);
    found.refuse(probe.grpc.is_some(), &format!("{name}.grpc"), PROBE);
    let protocol = probe.http_get.as_ref().and_then(|get| get.protocol.as_deref());
    found.refuse(
        protocol.is_some_and(|protocol| !matches!(protocol, "" | "HTTP1")),
        &format!("{name}.httpGet.protocol"),
        "probes are made by HTTP/1.1; leave it out",
    );
}

fn of_host_port(port: &ContainerPort, found: &mut Found) {
    let is_tcp = matches!(port.protocol.as_deref(), None | Some("" | "TCP"));
    found.refuse(
        port.host_port.is_some_and(|number| number != 0) && !is_tcp,
        "ports.hostPort",
        "only TCP ports are led from the host to a pod",
    );
}

fn resources(container: &Container, found: &mut Found) {
    let Some(resources) = &container.resources else { return };
    let names = |list: Option<&std::collections::BTreeMap<String, _>>| {
        list.into_iter().flat_map(|list| list.keys()).cloned().collect::<Vec<_>>()
    };
    let mut asked = names(resources.limits.as_ref());
    asked.extend(names(resources.requests.as_ref()));
    asked.sort();
    asked.dedup();
    for name in asked {
        let is_counted = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        found.refuse(!is_counted, &format!("resources[{name}]"), "this node has none of it");
    }
    found.refuse(has_any(resources.claims.as_ref()), "resources.claims", NOT_YET);
}

fn of_mount(mount: &VolumeMount, found: &mut Found) {
    let propagation = mount.mount_propagation.as_deref();
    found.refuse(
        propagation.is_some_and(|mode| !matches!(mode, "" | "None")),
        "volumeMounts.mountPropagation",
        "a guest sees directories, not mounts; use None",
    );
    found.refuse(
        mount.recursive_read_only.as_deref() == Some("Enabled"),
        "volumeMounts.recursiveReadOnly",
        "use readOnly; nothing is mounted below a volume",
    );
    found.refuse(
        has_any(mount.bind_mount_options.as_ref()),
        "volumeMounts.bindMountOptions",
        NOT_YET,
    );
}
