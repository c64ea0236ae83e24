//! krustlet: a Kubernetes node agent that runs WebAssembly.
//!
//! One binary, several kinds of process: the agent (`node`, `agent`), its
//! children (`zygote`, `compile`), and commands that speak to an agent.
//! `app.rs` wires the agent together; this file only chooses.

mod app;
mod cli;
mod client;
mod commands;
mod config;
mod output;
mod paths;
mod standalone;
mod supervise;

use std::{io::Write as _, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use krustlet_model::Chain;
use tracing_subscriber::EnvFilter;

/// Threads that wait for files, and for the system to look names up. Work on files
/// is short, and more threads make no disk faster: hundreds of pods that start at
/// once would begin hundreds.
const FILE_THREADS: usize = 32;

/// How long what threads still do when a command has ended is waited for.
const LAST_WORK: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // The children come before everything else: a zygote must not have begun a
    // runtime or a thread, or drawn anything random.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_ref().and_then(|first| first.to_str()) {
        Some("zygote") => return krustlet_sandbox::zygote_main(),
        Some("compile") => return krustlet_compiler::compile_main(arguments),
        _ => {}
    }
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            let chain = Chain(error.as_ref()).to_string();
            // Nobody is left to be told if this fails.
            let _ = writeln!(std::io::stderr(), "krustlet: {chain}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let is_agent = matches!(command, Command::Node(_) | Command::Agent(_));
    log_to_stderr(if is_agent { "info" } else { "warn" });
    let threads = if is_agent { 2 } else { 1 };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(FILE_THREADS)
        .enable_all()
        .build()?;
    let code = runtime.block_on(async {
        match command {
            Command::Node(args) => app::node::run(args).await?,
            Command::Agent(args) => standalone::agent::run(args).await?,
            Command::Run(args) => return standalone::run::run(args).await,
            Command::Ps(args) => commands::ps::run(args).await?,
            Command::Logs(args) => commands::logs::run(args).await?,
            Command::Exec(args) => return commands::exec::run(args).await,
            Command::PortForward(args) => commands::port_forward::run(args).await?,
            Command::Stop(args) => commands::stop::run(args).await?,
            Command::Stats(args) => commands::stats::run(args).await?,
            Command::Push(args) => commands::push::run(args).await?,
            Command::Pull(args) => commands::images::pull(args).await?,
            Command::Images(args) => commands::images::list(args).await?,
            Command::Rmi(args) => commands::images::remove(args).await?,
            Command::Inspect(args) => commands::inspect::run(args).await?,
            Command::Completion { shell } => {
                clap_complete::generate(
                    shell,
                    &mut Cli::command(),
                    "krustlet",
                    &mut std::io::stdout(),
                );
            }
        }
        Ok(ExitCode::SUCCESS)
    });
    // A thread may be stuck for good, such as one that writes to a pipe which
    // nobody reads.
    runtime.shutdown_timeout(LAST_WORK);
    code
}

/// `KRUSTLET_LOG` takes the directives of `tracing_subscriber::EnvFilter`.
fn log_to_stderr(level: &str) {
    let filter = EnvFilter::try_from_env("KRUSTLET_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(output::shows_progress() && output::wants_colours())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}
