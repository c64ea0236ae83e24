//! Tells what a program imports that this node does not offer, and what it
//! offers instead.

use krustlet_protocol::{Failure, Limits};
use wasmtime::{Module, Store, component::Component};
use wasmtime_wasi::WasiCtxBuilder;

use crate::{
    state::{Budget, ModuleState, Usage},
    warm::{PREVIEW_0, PREVIEW_1, Warm},
};

/// The interfaces that components may import, without the version.
const INTERFACES: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// Their version: the newest 0.2 that wasmtime 48 has. Any program made for an
/// older 0.2 links too.
const VERSION: &str = "0.2.12";

/// Imports listed in a message; a program may have thousands.
const LISTED: usize = 20;

/// Why a module did not link.
pub(crate) fn unlinkable_module(warm: &Warm, module: &Module, error: &wasmtime::Error) -> Failure {
    let state = ModuleState {
        wasi: WasiCtxBuilder::new().build_p1(),
        sockets: crate::preview1::Table::default(),
        budget: Budget::new(std::sync::Arc::new(Usage::new(&Limits::default()))),
    };
    let mut store = Store::new(&warm.engine, state);
    let missing: Vec<_> = module
        .imports()
        .filter(|import| warm.modules.get(&mut store, import.module(), import.name()).is_err())
        .map(|import| {
            let hint = module_hint(import.module(), import.name());
            format!("{}::{}{hint}", import.module(), import.name())
        })
        .collect();
    unlinkable("module", &missing, error)
}

/// Why a component did not link.
pub(crate) fn unlinkable_component(
    warm: &Warm,
    component: &Component,
    error: &wasmtime::Error,
) -> Failure {
    let wanted = component.component_type();
    let missing: Vec<_> = wanted
        .imports(&warm.engine)
        .filter(|(name, _)| !offered(name))
        .map(|(name, _)| format!("{name}{}", interface_hint(name)))
        .collect();
    unlinkable("component", &missing, error)
}

fn unlinkable(what: &str, missing: &[String], error: &wasmtime::Error) -> Failure {
    let message = if missing.is_empty() {
        // Every name is known, so one of them is wanted with another type.
        format!("the {what} does not fit what this node offers: {error:#}")
    } else {
        let more = missing.len().saturating_sub(LISTED);
        let mut lines = vec![format!("the {what} imports what this node does not offer:")];
        lines.extend(missing.iter().take(LISTED).map(|name| format!("  {name}")));
        lines.extend((more > 0).then(|| format!("  and {more} more")));
        lines.join("\n")
    };
    // Names are the program's own, and may be as long as it likes.
    Failure::Unlinkable { message: crate::exit::shorten(&message, crate::exit::MAX_MESSAGE) }
}

fn module_hint(module: &str, name: &str) -> String {
    match module {
        PREVIEW_1 | PREVIEW_0 if name.starts_with("sock_") => {
            " (an extension of WASI preview 1 by another runtime)".into()
        }
        PREVIEW_1 | PREVIEW_0 => " (no function of this interface)".into(),
        "wasix_32v1" | "wasix_64v1" => format!(" (WASIX; this node offers {PREVIEW_1})"),
        "wasi_ephemeral_nn" | "wasi_nn" => " (wasi-nn, which this node does not have)".into(),
        "wasi" => " (threads, which this node does not have)".into(),
        "env" => " (not WASI: the module was built to be linked with other code, \
                  or for another host; a C program wants the target wasm32-wasip1)"
            .into(),
        "gojs" | "go" => " (Go for browsers; build with GOOS=wasip1)".into(),
        "wbg" | "__wbindgen_placeholder__" => {
            " (wasm-bindgen, for browsers; build for the target wasm32-wasip1)".into()
        }
        _ => format!(" (this node offers {PREVIEW_1})"),
    }
}

/// Whether an import's name, with its version, is one that links.
fn offered(name: &str) -> bool {
    let (interface, version) = split(name);
    INTERFACES.contains(&interface) && version.is_some_and(compatible)
}

/// Any 0.2; a newer one than ours may still lack a function.
fn compatible(version: &str) -> bool {
    version == "0.2" || version.starts_with("0.2.") && !version.contains('-')
}

fn interface_hint(name: &str) -> String {
    let (interface, _) = split(name);
    if INTERFACES.contains(&interface) {
        return format!(" (this node offers {interface}@{VERSION})");
    }
    let package = interface.split('/').next().unwrap_or_default();
    let same: Vec<_> = INTERFACES
        .iter()
        .filter(|offered| offered.split('/').next() == Some(package))
        .copied()
        .collect();
    if same.is_empty() {
        String::new()
    } else {
        format!(" (of this package the node offers, at {VERSION}: {})", same.join(", "))
    }
}

fn split(name: &str) -> (&str, Option<&str>) {
    name.split_once('@').map_or((name, None), |(name, version)| (name, Some(version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_of_the_list_is_really_offered() {
        let warm = Warm::new().unwrap();
        for interface in INTERFACES {
            let name = format!("{interface}@{VERSION}");
            let mut linker = warm.components.clone();
            // A name that is taken cannot be defined once more.
            let defined = linker.root().func_wrap(&name, |_, (): ()| Ok(()));
            assert!(defined.is_err(), "{name} is not offered");
            assert!(offered(&name));
        }
    }

    #[test]
    fn a_hint_names_the_version_that_is_there() {
        assert!(!offered("wasi:http/types@0.3.0"));
        assert!(offered("wasi:http/types@0.2.3"));
        assert!(!offered("wasi:http/types@0.2.0-rc-2023-12-05"));
        let hint = interface_hint("wasi:http/types@0.3.0");
        assert!(hint.contains("wasi:http/types@0.2.12"), "{hint}");
        assert!(interface_hint("wasi:http/handler@0.3.0").contains("wasi:http/outgoing-handler"));
        assert_eq!(interface_hint("wasi:keyvalue/store@0.3.0"), "");
    }
}
