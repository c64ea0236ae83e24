//! The compiler as a program of its own; see [`krustlet_compiler::compile_main`].

use std::process::ExitCode;

fn main() -> ExitCode {
    krustlet_compiler::compile_main(std::env::args_os().skip(1))
}
