//! A command that calls HTTP servers.
//!
//! ```text
//! fetch URL...     print the status and the body of each answer
//! ```
//!
//! What fails is printed as the host's error, on a line of standard output; the
//! exit code is then 1. Exit code 2 is for a call without a URL.

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let urls: Vec<String> = std::env::args().skip(1).collect();
    if urls.is_empty() {
        eprintln!("usage: fetch URL...");
        return ExitCode::from(2);
    }
    for url in &urls {
        if let Err(why) = show(url) {
            println!("{why}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn show(url: &str) -> Result<(), String> {
    let answer = fetch::get(url)?;
    println!("{}", answer.status());
    while let Some(bytes) = answer.piece()? {
        std::io::stdout().write_all(&bytes).map_err(|error| error.to_string())?;
    }
    Ok(())
}
