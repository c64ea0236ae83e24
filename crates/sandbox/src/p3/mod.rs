//! WASI 0.3: what components may import of it, and how a command is run.
//!
//! Files, clocks, random numbers, arguments and standard streams are
//! wasmtime's; [`sockets`] are the pod's. Http servers of both versions are
//! [`http`](crate::http)'s, and what guests ask of others
//! [`outgoing`](crate::outgoing)'s.

mod sockets;

use wasmtime::{Store, component::Linker};
use wasmtime_wasi::{
    I32Exit,
    p3::{self, bindings::CommandPre},
};

use crate::state::ComponentState;

/// Adds all of it.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    p3::cli::add_to_linker(linker)?;
    p3::clocks::add_to_linker(linker)?;
    p3::filesystem::add_to_linker(linker)?;
    p3::random::add_to_linker(linker)?;
    sockets::add_to_linker(linker)?;
    wasmtime_wasi_http::p3::add_to_linker(linker)
}

/// Runs a command until `run` returns; what it left running ends with it, as with
/// wasmtime's own command line (48.0.2, `wasmtime run`).
pub(crate) async fn run(
    store: &mut Store<ComponentState>,
    command: &CommandPre<ComponentState>,
) -> wasmtime::Result<()> {
    let instance = command.instantiate_async(&mut *store).await?;
    let ran = store.run_concurrent(async |accessor| -> wasmtime::Result<_> {
        instance.wasi_cli_run().call_run(accessor).await
    });
    match ran.await?? {
        Ok(()) => Ok(()),
        Err(()) => Err(I32Exit(1).into()),
    }
}
