//! The compiler's child: reads one module from standard input, writes its code
//! to standard output, and says how it went on standard error.
//!
//! It binds itself ([`lock_down`]) before it reads the first byte. Who starts it
//! is `process.rs`, on the agent's side.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;

use rustix::event::{PollFd, PollFlags};
use sha2::{Digest, Sha256};
use wasmtime::Engine;

use crate::engine::{engine_config, fingerprint, hex};
use crate::gauge;
use crate::inspect::{ProgramKind, inspect};
use crate::limits::Bounds;
use crate::lockdown::lock_down;
use crate::report::{Fault, Outcome};

/// What the child is told to print: what its artifacts depend on.
pub(crate) const FINGERPRINT: &str = "--fingerprint";

/// The body of `krustlet compile`. Call it before any thread is started.
///
/// Arguments, without the program's name: `--fingerprint`, or all of
/// `--cpu-seconds`, `--memory-bytes`, `--module-bytes` and `--artifact-bytes`.
/// Ends with 0 if it did its work, also if the module was refused; with 1 if it
/// could not; with 2 if it was called wrongly.
pub fn compile_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut args = args.peekable();
    if args.next_if(|first| first == FINGERPRINT).is_some() {
        return print_fingerprint();
    }
    let bounds = match Bounds::from_args(args) {
        Ok(bounds) => bounds,
        Err(message) => {
            say(&format!("{message}; the agent starts this command, people have no use for it\n"));
            return ExitCode::from(2);
        }
    };
    let outcome = match compile(&bounds) {
        Ok(outcome) | Err(outcome) => outcome,
    };
    let code = match &outcome {
        Outcome::Compiled { .. } | Outcome::Refused { .. } => ExitCode::SUCCESS,
        Outcome::Failed { .. } => ExitCode::FAILURE,
    };
    match io::stderr().write_all(&outcome.to_line()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn print_fingerprint() -> ExitCode {
    match fingerprint() {
        Ok(text) => match writeln!(io::stdout(), "{text}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            say(&format!("wasmtime cannot compile for this machine: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard error; there is nobody to tell if that fails.
fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Compiles standard input. Both sides are outcomes: the error is the one that
/// ends the work early.
fn compile(bounds: &Bounds) -> Result<Outcome, Outcome> {
    // Nothing of this comes from outside, and it asks for the processor's
    // features, which some machines tell in a file.
    let engine = Engine::new(&engine_config())
        .map_err(|error| failed(&format!("cannot set up the engine: {error:#}")))?;
    // Without it each failed allocation is taken for the machine's.
    let _ = gauge::install();
    lock_down(bounds).map_err(|error| {
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        failed(&message)
    })?;
    end_with_the_agent()?;
    // Made by the first who needs it, it would end the process if a thread cannot be had. The number of
    // threads is in the environment.
    rayon::ThreadPoolBuilder::new()
        .build_global()
        .map_err(|error| failed(&format!("cannot start the compiler's threads: {error}")))?;

    let module = read_module(bounds.module_bytes)?;
    let module_sha256 = hex(&Sha256::digest(&module));
    let refuse = |fault| Outcome::Refused { module_sha256: Some(module_sha256.clone()), fault };

    let inspection =
        inspect(&module).map_err(|error| refuse(Fault::Invalid { message: error.to_string() }))?;
    let code = match inspection.kind {
        ProgramKind::Module => engine.precompile_module(&module),
        ProgramKind::Command | ProgramKind::Http | ProgramKind::Other => {
            engine.precompile_component(&module)
        }
    }
    .map_err(|error| match shortage(&error) {
        None => refuse(Fault::Invalid { message: format!("{error:#}") }),
        Some(wanted) if gauge::is_at_limit(gauge::address_space(), wanted, bounds.memory_bytes) => {
            refuse(Fault::TooMuchMemory { bytes: bounds.memory_bytes })
        }
        Some(_) => failed(&format!("{error:#}")),
    })?;

    if code.len() as u64 > bounds.artifact_bytes {
        return Err(refuse(Fault::TooMuchCode { bytes: bounds.artifact_bytes }));
    }
    let mut output = io::stdout().lock();
    output
        .write_all(&code)
        .and_then(|()| output.flush())
        .map_err(|error| failed(&format!("cannot write the code: {error}")))?;
    Ok(Outcome::Compiled { module_sha256, inspection })
}

/// The bytes that could not be had, 0 if they are not known; none if the error says something of the module.
fn shortage(error: &wasmtime::Error) -> Option<u64> {
    if let Some(error) = error.downcast_ref::<wasmtime::OutOfMemory>() {
        return Some(error.requested_allocation_size() as u64);
    }
    // What the system refuses (memory for the code, a thread) is nothing that a module says.
    let is_systems = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<io::Error>() || cause.is::<rustix::io::Errno>()
    };
    error.chain().any(is_systems).then_some(0)
}

fn failed(message: &str) -> Outcome {
    Outcome::Failed { message: message.to_owned() }
}

fn read_module(limit: u64) -> Result<Vec<u8>, Outcome> {
    let mut module = Vec::new();
    io::stdin()
        .lock()
        .take(limit.saturating_add(1))
        .read_to_end(&mut module)
        .map_err(|error| failed(&format!("cannot read the module: {error}")))?;
    if module.len() as u64 > limit {
        return Err(Outcome::Refused { module_sha256: None, fault: Fault::TooLarge { limit } });
    }
    Ok(module)
}

/// Ends this process when the agent does: nobody would publish its work.
///
/// The agent holds the reading end of standard error. A signal on the parent's
/// death is no use, as it follows the thread that started this process.
fn end_with_the_agent() -> Result<(), Outcome> {
    thread::Builder::new()
        .name("agent-watch".to_owned())
        .stack_size(64 << 10)
        .spawn(|| {
            let stderr = io::stderr();
            loop {
                // No event is asked for: a closed reading end is always told.
                let mut watched = [PollFd::new(&stderr, PollFlags::empty())];
                match rustix::event::poll(&mut watched, None) {
                    Ok(_) if watched[0].revents().intersects(PollFlags::ERR | PollFlags::NVAL) => {
                        // Not `exit`, which takes things down that the other
                        // threads are in the middle of using.
                        // SAFETY: it ends the process and returns nowhere.
                        unsafe { libc::_exit(1) }
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    // Something else has happened to something that is no
                    // pipe: there is nothing to watch.
                    Ok(_) | Err(_) => return,
                }
            }
        })
        .map(drop)
        .map_err(|error| failed(&format!("cannot start a thread: {error}")))
}
