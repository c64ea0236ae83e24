//! Security contexts.
//!
//! Users and groups are honoured for the sandbox's process and the pod's files.

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, PodSpec, SeccompProfile, SecurityContext,
};

use super::{Found, has_any};

const PROFILE: &str = "the sandbox has a profile of its own; use RuntimeDefault";
const WINDOWS: &str = "this is no Windows node";

pub(super) fn of_pod(spec: &PodSpec, found: &mut Found) {
    let Some(context) = &spec.security_context else { return };
    found.at("spec.securityContext".to_owned());
    found.refuse(
        context.app_armor_profile.as_ref().is_some_and(is_local_app_armor),
        "appArmorProfile",
        PROFILE,
    );
    found.refuse(
        context.seccomp_profile.as_ref().is_some_and(is_local_seccomp),
        "seccompProfile",
        PROFILE,
    );
    found.refuse(
        has_any(context.sysctls.as_ref()),
        "sysctls",
        "a WebAssembly program has no kernel parameters",
    );
    found.refuse(context.windows_options.is_some(), "windowsOptions", WINDOWS);
}

/// The context of a container; `found` stands at it.
pub(super) fn of_container(context: &SecurityContext, found: &mut Found) {
    found.refuse(
        context.app_armor_profile.as_ref().is_some_and(is_local_app_armor),
        "appArmorProfile",
        PROFILE,
    );
    found.refuse(
        context.capabilities.as_ref().is_some_and(adds_power),
        "capabilities.add",
        "a sandbox has no capabilities; NET_BIND_SERVICE alone is not needed for low ports",
    );
    found.refuse(
        context.privileged == Some(true),
        "privileged",
        "a sandbox has no privileges to give",
    );
    found.refuse(
        context.proc_mount.as_deref().is_some_and(|mount| !matches!(mount, "" | "Default")),
        "procMount",
        "a WebAssembly program has no /proc",
    );
    found.refuse(
        context.seccomp_profile.as_ref().is_some_and(is_local_seccomp),
        "seccompProfile",
        PROFILE,
    );
    found.refuse(context.windows_options.is_some(), "windowsOptions", WINDOWS);
}

/// Whether a profile is named that would have to be read from a file. Of the
/// others, `Unconfined` asks for no more than to be let alone.
fn is_local_app_armor(profile: &AppArmorProfile) -> bool {
    profile.type_ == "Localhost"
}

fn is_local_seccomp(profile: &SeccompProfile) -> bool {
    profile.type_ == "Localhost"
}

/// Whether more is asked for than to bind low ports: listeners are bound by
/// the agent, which may.
fn adds_power(capabilities: &Capabilities) -> bool {
    capabilities.add.iter().flatten().any(|name| name != "NET_BIND_SERVICE")
}
