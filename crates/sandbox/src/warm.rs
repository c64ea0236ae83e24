//! What every sandbox is born with: the engine, and the interfaces that guests
//! may import.
//!
//! Made once, in the zygote, and never changed: its pages are shared. Nothing
//! here may use randomness, which would then be the same in every sandbox.
//! Which import is missing is told by [`offers`](crate::offers).

use std::{num::NonZero, thread};

use wasmtime::{Engine, Linker, component};
use wasmtime_wasi::{I32Exit, p0, p1};

use crate::{
    fields, files, outgoing, p3, preview1, sockets,
    state::{ComponentState, ModuleState},
};

/// Ready to load and link guests.
pub(crate) struct Warm {
    pub(crate) engine: Engine,
    /// What core modules may import: WASI preview 1, and 0 for old ones.
    pub(crate) modules: Linker<ModuleState>,
    /// What components may import: WASI 0.2 and 0.3, both with http.
    pub(crate) components: component::Linker<ComponentState>,
    /// Cores that the node lets it use.
    pub(crate) cores: usize,
}

/// The names under which core modules import WASI.
pub(crate) const PREVIEW_1: &str = "wasi_snapshot_preview1";
/// As [`PREVIEW_1`], before 2019.
pub(crate) const PREVIEW_0: &str = "wasi_unstable";

impl Warm {
    /// Builds the engine, which also installs the handlers that make traps of
    /// signals; they survive the fork.
    pub(crate) fn new() -> wasmtime::Result<Self> {
        let mut config = krustlet_compiler::engine_config();
        // Only what the compiler process made is loaded. Memory is allocated on
        // demand: a pool's bookkeeping is more than most sandboxes ever use.
        config.enable_compiler(false);
        let engine = Engine::new(&config)?;

        let mut modules = Linker::new(&engine);
        p1::add_to_linker_async(&mut modules, |state: &mut ModuleState| &mut state.wasi)?;
        p0::add_to_linker_async(&mut modules, |state: &mut ModuleState| &mut state.wasi)?;
        preview1::add_to_linker(&mut modules)?;
        // wasmtime's own traps on codes from 126 on, which shells and Go use.
        modules.allow_shadowing(true);
        for module in [PREVIEW_1, PREVIEW_0] {
            modules.func_wrap(module, "proc_exit", |code: i32| -> wasmtime::Result<()> {
                Err(I32Exit(code).into())
            })?;
        }
        modules.allow_shadowing(false);

        let mut components = component::Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut components)?;
        sockets::add_to_linker(&mut components)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut components)?;
        outgoing::written::add_to_linker(&mut components)?;
        p3::add_to_linker(&mut components)?;
        fields::add_to_linker(&mut components)?;
        files::add_to_linker(&mut components)?;
        // Sandboxes cannot ask: the answer is partly in files.
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Ok(Self { engine, modules, components, cores })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sandbox_compiles() {
        let warm = Warm::new().unwrap();
        let empty = b"\0asm\x01\0\0\0";
        let error = wasmtime::Module::new(&warm.engine, empty).unwrap_err();
        assert!(format!("{error:#}").contains("compil"), "{error:#}");
    }
}
