//! A guest that does one small thing, chosen by its first argument, so that
//! one program can stand for every kind of container in tests and examples.
//!
//! Without a known first argument it greets, tells what it was given, and shows
//! each further argument that names a file or a directory.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const USAGE: &str = "\
hello [PATH...]        greet, then show each file and list each directory
hello exit CODE        end with an exit code
hello sleep SECONDS    sleep (fractions allowed), then end with 0
hello tick [SECONDS]   print a numbered line at each interval, for ever
hello trap             run into an `unreachable` instruction
hello cat FILE...      print files (standard input without one)
hello ls DIRECTORY     print a directory's names, sorted
hello write FILE TEXT  write TEXT and a newline to FILE
hello env [NAME...]    print the environment, or only these variables
hello args [ARG...]    print each argument on its own line
hello cwd              print the working directory
hello stderr TEXT      print to standard error
hello spin             use a whole CPU, for ever
hello alloc MIB        touch that much memory, say so, and sleep for ever
hello recurse          call itself until the stack is used up
hello random           print 16 random bytes in hexadecimal
hello log-lines COUNT  print that many numbered lines of 64 bytes
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let rest = args.get(2..).unwrap_or_default();
    let done = match args.get(1).map(String::as_str) {
        // Not `ExitCode`, which ends at 255: WASI preview 1 takes 32 bits.
        Some("exit") => number(rest).map(|code: i32| std::process::exit(code)),
        Some("sleep") => seconds(rest).map(thread::sleep),
        Some("tick") => tick(rest),
        Some("trap") => trap(),
        Some("cat") => cat(rest),
        Some("ls") => first(rest).and_then(list),
        Some("write") => write(rest),
        Some("env") => env(rest),
        Some("args") => Ok(rest.iter().for_each(|arg| println!("{arg}"))),
        Some("cwd") => cwd(),
        Some("stderr") => Ok(eprintln!("{}", rest.join(" "))),
        Some("spin") => spin(),
        Some("alloc") => number(rest).and_then(alloc),
        Some("recurse") => Ok(println!("{}", recurse(0))),
        Some("random") => Ok(println!("{:016x}{:016x}", random(), random())),
        Some("log-lines") => number(rest).and_then(log_lines),
        Some("help" | "--help") => Ok(print!("{USAGE}")),
        _ => greet(&args),
    };
    done.map_or_else(refuse, |()| ExitCode::SUCCESS)
}

/// Says why the guest did not do what it was asked. Exit code 2, as programs do
/// that are called wrongly.
fn refuse(why: String) -> ExitCode {
    eprintln!("hello: {why}");
    ExitCode::from(2)
}

fn greet(args: &[String]) -> Result<(), String> {
    println!("Hello from WebAssembly!");
    println!("arguments: {args:?}");
    println!("environment: {} variables", std::env::vars_os().count());
    for path in args.iter().skip(1) {
        let kind = fs::metadata(path).map_err(|error| format!("{path}: {error}"))?;
        println!("{path}:");
        if kind.is_dir() {
            list(path)?;
        } else {
            cat(std::slice::from_ref(path))?;
        }
    }
    Ok(())
}

fn first(rest: &[String]) -> Result<&str, String> {
    rest.first().map(String::as_str).ok_or_else(|| "an argument is missing".to_owned())
}

fn number<N: std::str::FromStr>(rest: &[String]) -> Result<N, String> {
    let text = first(rest)?;
    text.parse().map_err(|_| format!("{text:?} is not a number this can take"))
}

fn seconds(rest: &[String]) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number(rest)?).map_err(|error| error.to_string())
}

fn tick(rest: &[String]) -> Result<(), String> {
    let interval = if rest.is_empty() { Duration::from_secs(1) } else { seconds(rest)? };
    for count in 1_u64.. {
        println!("tick {count}");
        thread::sleep(interval);
    }
    Ok(())
}

fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort();
}

fn cat(paths: &[String]) -> Result<(), String> {
    let mut out = io::stdout().lock();
    if paths.is_empty() {
        for line in io::stdin().lock().lines() {
            let line = line.map_err(|error| format!("standard input: {error}"))?;
            writeln!(out, "{line}").map_err(|error| error.to_string())?;
        }
    }
    for path in paths {
        let bytes = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        out.write_all(&bytes).map_err(|error| error.to_string())?;
        if bytes.last().is_some_and(|&byte| byte != b'\n') {
            out.write_all(b"\n").map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn list(path: &str) -> Result<(), String> {
    let mut names = fs::read_dir(path)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<Vec<String>>>()
        })
        .map_err(|error| format!("{path}: {error}"))?;
    names.sort();
    for name in names {
        println!("{name}");
    }
    Ok(())
}

fn write(rest: &[String]) -> Result<(), String> {
    let [path, text @ ..] = rest else {
        return Err("write needs FILE and TEXT".to_owned());
    };
    fs::write(path, text.join(" ") + "\n").map_err(|error| format!("{path}: {error}"))
}

fn env(names: &[String]) -> Result<(), String> {
    if names.is_empty() {
        std::env::vars().for_each(|(name, value)| println!("{name}={value}"));
    }
    for name in names {
        let value = std::env::var(name).map_err(|error| format!("{name}: {error}"))?;
        println!("{value}");
    }
    Ok(())
}

fn cwd() -> Result<(), String> {
    let directory = std::env::current_dir().map_err(|error| error.to_string())?;
    println!("{}", directory.display());
    Ok(())
}

fn spin() -> ! {
    let mut count = 0_u64;
    loop {
        count = black_box(count.wrapping_add(1));
    }
}

fn alloc(mib: usize) -> Result<(), String> {
    let mut blocks = Vec::new();
    for count in 1..=mib {
        let mut block = Vec::<u8>::new();
        block
            .try_reserve_exact(1 << 20)
            .map_err(|_| format!("no memory left after {} MiB", count - 1))?;
        block.resize(1 << 20, 1);
        blocks.push(black_box(block));
    }
    println!("holding {mib} MiB");
    loop {
        thread::sleep(Duration::from_secs(3600));
        black_box(&blocks);
    }
}

#[expect(unconditional_recursion, reason = "using up the stack is the point")]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 32]);
    recurse(depth + 1) + black_box(frame)[0]
}

/// Eight bytes from the host, by way of the keys of a hash map: the standard
/// library asks for them once a thread, so the counter makes calls differ.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn log_lines(count: u64) -> Result<(), String> {
    let mut out = io::stdout().lock();
    for line in 1..=count {
        writeln!(out, "line {line:010} {:.<47}", "").map_err(|error| error.to_string())?;
    }
    Ok(())
}
