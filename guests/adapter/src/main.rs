//! Writes one of wasmtime's adapters (WASI preview 1 in terms of WASI 0.2) to
//! standard output; `build.sh` makes components of core modules with them.

use std::io::{self, Write};
use std::process::ExitCode;

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER, WASI_SNAPSHOT_PREVIEW1_PROXY_ADAPTER,
    WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};

fn main() -> ExitCode {
    let adapter = match std::env::args().nth(1).as_deref() {
        Some("command") => WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
        Some("proxy") => WASI_SNAPSHOT_PREVIEW1_PROXY_ADAPTER,
        Some("reactor") => WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
        _ => {
            eprintln!("usage: adapter command|proxy|reactor");
            return ExitCode::from(2);
        }
    };
    match io::stdout().write_all(adapter) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write the adapter: {error}");
            ExitCode::FAILURE
        }
    }
}
