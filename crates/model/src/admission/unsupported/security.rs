//! Security contexts.
//!
//! Users and groups are honoured for the sandbox's process and the pod's files.

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, PodSecurityContext, PodSpec, SELinuxOptions, SeccompProfile,
    SecurityContext,
};

use super::{Found, has_any};

const PROFILE: &str = "the sandbox has a profile of its own; use RuntimeDefault";
const SE_LINUX: &str =
    "a sandbox is given no SELinux context; leave out user and role, and use no type of your own";
const WINDOWS: &str = "this is no Windows node";

pub(super) fn of_pod(spec: &PodSpec, found: &mut Found) {
    let Some(context) = &spec.security_context else { return };
    let PodSecurityContext {
        app_armor_profile,
        se_linux_options,
        seccomp_profile,
        sysctls,
        windows_options,
        // Carried out by `users` of `pod`, and by `volume`.
        fs_group: _,
        run_as_group: _,
        run_as_non_root: _,
        run_as_user: _,
        supplemental_groups: _,
        // Always `Strict`: what an image's /etc/group says is never read, and
        // no image of Wasm programs has one that another policy would add.
        supplemental_groups_policy: _,
        // Has no effect on the kinds of volumes that there are: for kubelet
        // neither (`fsGroupChangePolicy` in the API's reference).
        fs_group_change_policy: _,
        // No volume is ever labelled, be it file by file or by its mount.
        se_linux_change_policy: _,
    } = context;
    found.at("spec.securityContext".to_owned());
    found.refuse(
        app_armor_profile.as_ref().is_some_and(is_own_app_armor),
        "appArmorProfile",
        PROFILE,
    );
    found.refuse(
        se_linux_options.as_ref().is_some_and(is_own_se_linux),
        "seLinuxOptions",
        SE_LINUX,
    );
    found.refuse(seccomp_profile.as_ref().is_some_and(is_own_seccomp), "seccompProfile", PROFILE);
    found.refuse(
        has_any(sysctls.as_ref()),
        "sysctls",
        "a WebAssembly program has no kernel parameters",
    );
    found.refuse(windows_options.is_some(), "windowsOptions", WINDOWS);
}

/// The context of a container; `found` stands at it.
pub(super) fn of_container(context: &SecurityContext, found: &mut Found) {
    let SecurityContext {
        app_armor_profile,
        capabilities,
        privileged,
        proc_mount,
        se_linux_options,
        seccomp_profile,
        windows_options,
        // No program can gain what it does not have, whatever is asked.
        allow_privilege_escalation: _,
        // Always so: containers share the files of an image.
        read_only_root_filesystem: _,
        // Carried out by `users` of `pod`.
        run_as_group: _,
        run_as_non_root: _,
        run_as_user: _,
    } = context;
    found.refuse(
        app_armor_profile.as_ref().is_some_and(is_own_app_armor),
        "appArmorProfile",
        PROFILE,
    );
    found.refuse(
        capabilities.as_ref().is_some_and(adds_power),
        "capabilities.add",
        "a sandbox has no capabilities; NET_BIND_SERVICE alone is not needed for low ports",
    );
    found.refuse(*privileged == Some(true), "privileged", "a sandbox has no privileges to give");
    found.refuse(
        proc_mount.as_deref().is_some_and(|mount| !matches!(mount, "" | "Default")),
        "procMount",
        "a WebAssembly program has no /proc",
    );
    found.refuse(
        se_linux_options.as_ref().is_some_and(is_own_se_linux),
        "seLinuxOptions",
        SE_LINUX,
    );
    found.refuse(seccomp_profile.as_ref().is_some_and(is_own_seccomp), "seccompProfile", PROFILE);
    found.refuse(windows_options.is_some(), "windowsOptions", WINDOWS);
}

/// Whether a profile is named that would have to be read from a file. Of the
/// others, `Unconfined` asks for no more than to be let alone.
fn is_own_app_armor(profile: &AppArmorProfile) -> bool {
    // Only with the type `Localhost` does the name say anything.
    let AppArmorProfile { type_, localhost_profile: _ } = profile;
    !matches!(type_.as_str(), "RuntimeDefault" | "Unconfined")
}

fn is_own_seccomp(profile: &SeccompProfile) -> bool {
    let SeccompProfile { type_, localhost_profile: _ } = profile;
    !matches!(type_.as_str(), "RuntimeDefault" | "Unconfined")
}

/// Whether a context is asked for whose policy says something else than that
/// of every container. A `level` only keeps pods from each other's files, which
/// they cannot reach anyway.
///
/// Source: the types that the Pod Security Standards allow,
/// `k8s.io/pod-security-admission/policy/check_seLinuxOptions.go`.
fn is_own_se_linux(options: &SELinuxOptions) -> bool {
    const USUAL: [&str; 5] =
        ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let SELinuxOptions { level: _, role, type_, user } = options;
    let is_given = |text: Option<&String>| text.is_some_and(|text| !text.is_empty());
    is_given(role.as_ref())
        || is_given(user.as_ref())
        || !USUAL.contains(&type_.as_deref().unwrap_or_default())
}

/// Whether more is asked for than to bind low ports: listeners are bound by
/// the agent, which may.
fn adds_power(capabilities: &Capabilities) -> bool {
    // There is none to be dropped.
    let Capabilities { add, drop: _ } = capabilities;
    add.iter().flatten().any(|name| name != "NET_BIND_SERVICE")
}
