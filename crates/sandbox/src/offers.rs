//! Tells what a program imports that this node does not offer, and what it
//! offers instead.

use krustlet_protocol::{Failure, Limits};
use wasmtime::{Module, Store, component::Component};
use wasmtime_wasi::WasiCtxBuilder;

use crate::{
    state::{Budget, ModuleState, Usage},
    warm::{PREVIEW_0, PREVIEW_1, Warm},
};

/// A version of WASI, and the interfaces of it that components may import.
struct Offer {
    /// The newest that wasmtime 48 has. Any program made for another with the
    /// same first two numbers links too, unless it is newer and wants more.
    version: &'static str,
    interfaces: &'static [&'static str],
    /// Those that have types only: nothing is there to be linked.
    types: &'static [&'static str],
}

const OFFERS: &[Offer] = &[P2, P3];

const P2: Offer = Offer {
    version: "0.2.12",
    interfaces: &[
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
    ],
    types: &[],
};

const P3: Offer = Offer {
    version: "0.3.0",
    interfaces: &[
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
        "wasi:clocks/system-clock",
        "wasi:filesystem/preopens",
        "wasi:filesystem/types",
        "wasi:http/client",
        "wasi:http/types",
        "wasi:random/insecure",
        "wasi:random/insecure-seed",
        "wasi:random/random",
        "wasi:sockets/ip-name-lookup",
        "wasi:sockets/types",
    ],
    types: &["wasi:cli/types", "wasi:clocks/types"],
};

impl Offer {
    fn all(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.interfaces.iter().chain(self.types).copied()
    }

    /// Whether what is made for `version` may link. A newer one than ours may
    /// still lack a function.
    fn fits(&self, version: &str) -> bool {
        let Some((two, _)) = self.version.rsplit_once('.') else { return false };
        match version.strip_prefix(two) {
            Some(rest) => rest.is_empty() || rest.starts_with('.') && !rest.contains('-'),
            None => false,
        }
    }
}

/// Imports listed in a message; a program may have thousands.
const LISTED: usize = 20;

/// Why a module did not link.
pub(crate) fn unlinkable_module(warm: &Warm, module: &Module, error: &wasmtime::Error) -> Failure {
    let state = ModuleState {
        wasi: WasiCtxBuilder::new().build_p1(),
        sockets: crate::preview1::Table::default(),
        files: crate::files::ModuleFiles::new(0),
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
    let (interface, Some(version)) = split(name) else { return false };
    OFFERS.iter().any(|offer| offer.fits(version) && offer.all().any(|name| name == interface))
}

fn interface_hint(name: &str) -> String {
    let (interface, _) = split(name);
    let package = interface.split('/').next().unwrap_or_default();
    let [mut this, mut others] = [Vec::new(), Vec::new()];
    for offer in OFFERS {
        let version = offer.version;
        if offer.all().any(|offered| offered == interface) {
            this.push(format!("{interface}@{version}"));
        }
        let same: Vec<_> =
            offer.all().filter(|offered| offered.split('/').next() == Some(package)).collect();
        if !same.is_empty() {
            others.push(format!("at {version}: {}", same.join(", ")));
        }
    }
    if !this.is_empty() {
        format!(" (this node offers {})", this.join(" and "))
    } else if others.is_empty() {
        String::new()
    } else {
        format!(" (of this package the node offers, {})", others.join("; "))
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
        for offer in OFFERS {
            for interface in offer.all() {
                assert!(offered(&format!("{interface}@{}", offer.version)), "{interface}");
            }
            for interface in offer.interfaces {
                let name = format!("{interface}@{}", offer.version);
                let mut linker = warm.components.clone();
                // A name that is taken cannot be defined once more.
                let defined = linker.root().func_wrap(&name, |_, (): ()| Ok(()));
                assert!(defined.is_err(), "{name} is not offered");
            }
        }
    }

    #[test]
    fn a_hint_names_the_version_that_is_there() {
        for name in ["wasi:http/types@0.2.3", "wasi:http/types@0.3.2", "wasi:cli/types@0.3.0"] {
            assert!(offered(name), "{name}");
        }
        for name in [
            "wasi:http/types@0.4.0",
            "wasi:http/types@0.20.0",
            "wasi:http/types@0.2.0-rc-2023-12-05",
            "wasi:http/types@0.3.0-rc-2026-03-15",
            "wasi:cli/types@0.2.12",
            "wasi:http/types",
        ] {
            assert!(!offered(name), "{name}");
        }
        let hint = interface_hint("wasi:http/types@0.4.0");
        assert!(hint.contains("wasi:http/types@0.2.12 and wasi:http/types@0.3.0"), "{hint}");
        let hint = interface_hint("wasi:http/handler@0.3.0");
        assert!(hint.contains("at 0.2.12: wasi:http/outgoing-handler"), "{hint}");
        assert!(hint.contains("at 0.3.0: wasi:http/client"), "{hint}");
        assert_eq!(interface_hint("wasi:keyvalue/store@0.3.0"), "");
    }
}
