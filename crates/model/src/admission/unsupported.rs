//! Fields of a pod that this version does not honour.
//!
//! Such a field is refused by its name; none is passed over in silence. Three
//! kinds of fields are accepted though nothing is done for them:
//!
//! - what the sandbox gives anyway, such as dropped capabilities, seccomp,
//!   `allowPrivilegeEscalation: false`, `runAsNonRoot`;
//! - permissions that a WebAssembly program has no means to use, such as
//!   `allowPrivilegeEscalation: true`;
//! - what concerns the scheduler and the controllers, not the node.
//!
//! Nothing is forgotten: each struct of the API that the walk meets is taken
//! apart without `..`, so that a field of a newer API does not compile before
//! somebody has decided which kind it is.

mod containers;
mod security;
mod volumes;

use std::fmt;

use k8s_openapi::api::core::v1::{Pod, PodSpec, ResourceRequirements};

use super::Rejection;

/// Fields that a message names; of more it gives the number.
const NAMED: usize = 10;

/// A field that is not honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Where it stands: `spec.containers[main].livenessProbe`.
    pub field: String,
    /// Why it is refused, and where that helps what to do.
    pub why: String,
}

/// Printed `field: why`.
impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

/// Every field of a pod that this version does not honour, in the order of the
/// spec.
#[must_use]
pub fn unsupported(pod: &Pod) -> Vec<Unsupported> {
    let mut found = Found::default();
    if let Some(spec) = &pod.spec {
        of_spec(spec, &mut found);
        security::of_pod(spec, &mut found);
        volumes::of_pod(spec, &mut found);
        containers::of_pod(spec, &mut found);
    }
    found.list
}

/// Refuses a pod with any such field.
///
/// The reason is the one by which kubelet says that a node lacks a feature
/// which a pod needs. Source: `PodFeatureUnsupported` in
/// `pkg/kubelet/lifecycle/handlers.go`.
pub(super) fn check(pod: &Pod) -> Result<(), Rejection> {
    let list = unsupported(pod);
    if list.is_empty() {
        return Ok(());
    }
    let mut message: Vec<_> = list.iter().take(NAMED).map(ToString::to_string).collect();
    if list.len() > NAMED {
        message.push(format!("and {} more", list.len() - NAMED));
    }
    Err(Rejection::new("PodFeatureUnsupported", message.join("; ")))
}

/// What was found so far, and where the search stands.
#[derive(Debug, Default)]
struct Found {
    list: Vec<Unsupported>,
    prefix: String,
}

impl Found {
    /// Goes on with the fields of another part of the pod.
    fn at(&mut self, prefix: String) {
        self.prefix = prefix;
    }

    /// Notes a field if it is used.
    fn refuse(&mut self, is_used: bool, field: &str, why: &str) {
        if is_used {
            let field = format!("{}.{field}", self.prefix);
            self.list.push(Unsupported { field, why: why.to_owned() });
        }
    }
}

/// Whether a list has anything in it.
fn has_any<T>(list: Option<&Vec<T>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

const NOT_YET: &str = "not offered by this version";

fn of_spec(spec: &PodSpec, found: &mut Found) {
    let PodSpec {
        // Carried out by `pod`: its worker, order, pulls, environment, names,
        // users and the choice of the sandbox.
        active_deadline_seconds: _,
        dns_config: _,
        dns_policy: _,
        enable_service_links: _,
        host_aliases: _,
        host_network: _,
        host_users: _,
        hostname: _,
        hostname_override: _,
        image_pull_secrets: _,
        restart_policy: _,
        runtime_class_name: _,
        service_account: _,
        service_account_name: _,
        set_hostname_as_fqdn: _,
        subdomain: _,
        termination_grace_period_seconds: _,
        // Carried out by the rules beside this one, and by `status`.
        affinity: _,
        node_name: _,
        node_selector: _,
        os: _,
        overhead: _,
        priority: _,
        readiness_gates: _,
        tolerations: _,
        // For the API server, the scheduler and the controllers.
        automount_service_account_token: _,
        eviction_responders: _,
        preemption_policy: _,
        priority_class_name: _,
        scheduler_name: _,
        scheduling_gates: _,
        scheduling_group: _,
        topology_spread_constraints: _,
        // Each is refused on its own, in its own status; the pod goes on.
        ephemeral_containers: _,
        // Looked at elsewhere in this folder.
        containers: _,
        init_containers: _,
        security_context: _,
        volumes: _,
        // Refused, below.
        host_ipc,
        host_pid,
        resource_claims,
        resources,
        share_process_namespace,
    } = spec;
    found.at("spec".to_owned());
    let pod_level = resources.as_ref().is_some_and(|resources| {
        let ResourceRequirements { claims, limits, requests } = resources;
        limits.as_ref().is_some_and(|list| !list.is_empty())
            || requests.as_ref().is_some_and(|list| !list.is_empty())
            || has_any(claims.as_ref())
    });
    found.refuse(
        *host_ipc == Some(true),
        "hostIPC",
        "a WebAssembly program cannot share memory or semaphores with the host",
    );
    found.refuse(*host_pid == Some(true), "hostPID", "a WebAssembly program cannot see processes");
    found.refuse(has_any(resource_claims.as_ref()), "resourceClaims", NOT_YET);
    found.refuse(pod_level, "resources", "give requests and limits to the containers instead");
    found.refuse(
        *share_process_namespace == Some(true),
        "shareProcessNamespace",
        "a WebAssembly program cannot see processes",
    );
}
