//! Fields of containers.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, Lifecycle, PodSpec, Probe,
    ResourceRequirements, VolumeMount,
};

use super::{super::MOST_PORTS, Found, NOT_YET, has_any, security};

const PROBE: &str = "not offered by this version; use httpGet or tcpSocket";
const HOOKS: &str = "hooks are not offered by this version; leave it out";
const ATTACH: &str = "nothing can be attached to a container in this version; leave it out";

pub(super) fn of_pod(spec: &PodSpec, found: &mut Found) {
    let mut host_ports = 0;
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
            let ports = container.ports.iter().flatten();
            host_ports += ports.filter(|port| port.host_port.is_some_and(|port| port != 0)).count();
        }
    }
    found.at("spec.containers[*]".to_owned());
    found.refuse(
        host_ports > MOST_PORTS,
        "ports.hostPort",
        &format!("the node listens on {MOST_PORTS} ports for a pod at most, and this one has {host_ports}"),
    );
}

fn of_container(at: &str, container: &Container, found: &mut Found) {
    let Container {
        // Carried out by `pod`: its environment, pulls, launches and restarts.
        args: _,
        command: _,
        env_from: _,
        image: _,
        image_pull_policy: _,
        name: _,
        resize_policy: _,
        restart_policy: _,
        termination_message_path: _,
        working_dir: _,
        // Looked at with the pod.
        ports: _,
        // Says how `stdin` is closed, and nothing without it.
        stdin_once: _,
        env,
        lifecycle,
        liveness_probe,
        readiness_probe,
        resources,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        termination_message_policy,
        tty,
        volume_devices,
        volume_mounts,
    } = container;
    found.at(at.to_owned());
    found.refuse(env.iter().flatten().any(is_from_file), "env.valueFrom.fileKeyRef", NOT_YET);
    if let Some(Lifecycle { post_start, pre_stop, stop_signal }) = lifecycle {
        found.refuse(post_start.is_some(), "lifecycle.postStart", HOOKS);
        found.refuse(pre_stop.is_some(), "lifecycle.preStop", HOOKS);
        found.refuse(
            stop_signal.is_some(),
            "lifecycle.stopSignal",
            "a WebAssembly program gets no signals",
        );
    }
    for (name, probe) in [
        ("livenessProbe", liveness_probe),
        ("readinessProbe", readiness_probe),
        ("startupProbe", startup_probe),
    ] {
        if let Some(probe) = probe {
            of_probe(name, probe, found);
        }
    }
    if let Some(resources) = resources {
        of_resources(resources, found);
    }
    found.refuse(has_any(restart_policy_rules.as_ref()), "restartPolicyRules", NOT_YET);
    found.refuse(*stdin == Some(true), "stdin", ATTACH);
    found.refuse(*tty == Some(true), "tty", ATTACH);
    let policy = termination_message_policy.as_deref().unwrap_or_default();
    found.refuse(
        !matches!(policy, "" | "File" | "FallbackToLogsOnError"),
        "terminationMessagePolicy",
        "must be File or FallbackToLogsOnError",
    );
    found.refuse(
        has_any(volume_devices.as_ref()),
        "volumeDevices",
        "a WebAssembly program cannot use block devices",
    );
    for mount in volume_mounts.iter().flatten() {
        of_mount(mount, found);
    }
    if let Some(context) = security_context {
        found.at(format!("{at}.securityContext"));
        security::of_container(context, found);
    }
}

fn is_from_file(variable: &EnvVar) -> bool {
    let EnvVar { name: _, value: _, value_from } = variable;
    value_from.as_ref().is_some_and(|source| {
        let EnvVarSource {
            config_map_key_ref: _,
            field_ref: _,
            file_key_ref,
            resource_field_ref: _,
            secret_key_ref: _,
        } = source;
        file_key_ref.is_some()
    })
}

fn of_probe(name: &str, probe: &Probe, found: &mut Found) {
    let Probe {
        exec,
        grpc,
        http_get,
        // Carried out by `probes`.
        failure_threshold: _,
        initial_delay_seconds: _,
        period_seconds: _,
        success_threshold: _,
        // Carried out whole: host and port.
        tcp_socket: _,
        termination_grace_period_seconds: _,
        timeout_seconds: _,
    } = probe;
    found.refuse(exec.is_some(), &format!("{name}.exec"), PROBE);
    found.refuse(grpc.is_some(), &format!("{name}.grpc"), PROBE);
    let Some(get) = http_get else { return };
    let HTTPGetAction { host: _, http_headers: _, path: _, port: _, scheme: _, protocol } = get;
    found.refuse(
        protocol.as_deref().is_some_and(|protocol| !matches!(protocol, "" | "HTTP1")),
        &format!("{name}.httpGet.protocol"),
        "probes are made by HTTP/1.1; leave it out",
    );
}

fn of_host_port(port: &ContainerPort, found: &mut Found) {
    // The other two: of a Service, and carried out by `pod`.
    let ContainerPort { container_port: _, host_ip: _, host_port, name: _, protocol } = port;
    let is_known = matches!(protocol.as_deref(), None | Some("" | "TCP" | "UDP"));
    found.refuse(
        host_port.is_some_and(|number| number != 0) && !is_known,
        "ports.hostPort",
        "only TCP and UDP ports are led from the host to a pod",
    );
}

fn of_resources(resources: &ResourceRequirements, found: &mut Found) {
    let ResourceRequirements { claims, limits, requests } = resources;
    let names = |list: Option<&std::collections::BTreeMap<String, _>>| {
        list.into_iter().flat_map(|list| list.keys()).cloned().collect::<Vec<_>>()
    };
    let mut asked = names(limits.as_ref());
    asked.extend(names(requests.as_ref()));
    asked.sort();
    asked.dedup();
    for name in asked {
        let is_counted = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        found.refuse(!is_counted, &format!("resources[{name}]"), "this node has none of it");
    }
    found.refuse(has_any(claims.as_ref()), "resources.claims", NOT_YET);
}

fn of_mount(mount: &VolumeMount, found: &mut Found) {
    let VolumeMount {
        bind_mount_options,
        mount_propagation,
        recursive_read_only,
        // Carried out by `mounts` of `volume`.
        mount_path: _,
        name: _,
        read_only: _,
        sub_path: _,
        sub_path_expr: _,
    } = mount;
    found.refuse(
        mount_propagation.as_deref().is_some_and(|mode| !matches!(mode, "" | "None")),
        "volumeMounts.mountPropagation",
        "a guest sees directories, not mounts; use None",
    );
    found.refuse(
        recursive_read_only.as_deref() == Some("Enabled"),
        "volumeMounts.recursiveReadOnly",
        "use readOnly; nothing is mounted below a volume",
    );
    found.refuse(has_any(bind_mount_options.as_ref()), "volumeMounts.bindMountOptions", NOT_YET);
}
