//! Starts the compiler's child, waits for it within bounds, and says what its
//! end means. The child's side is `child.rs`.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::child::FINGERPRINT;
use crate::error::CompileError;
use crate::gauge;
use crate::inspect::Inspection;
use crate::limits::{Bounds, CompileLimits};
use crate::report::{Fault, Outcome, tail};
use crate::store::ModuleDigest;

/// What a child may say, in bytes: the names of imports and exports (1 MiB,
/// see `inspect.rs`), each byte at most six in JSON, and other words.
const REPORT_BYTES: u64 = 8 << 20;

/// How long naming the engine may take. It takes milliseconds; a machine that
/// boots with a hundred pods to start may be slow.
const FINGERPRINT_TIME: Duration = Duration::from_mins(1);

/// Starts compilations.
#[derive(Debug)]
pub(crate) struct Compiler {
    program: OsString,
    args: Vec<OsString>,
    limits: CompileLimits,
}

/// One module to be compiled.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) digest: ModuleDigest,
    pub(crate) module: File,
    pub(crate) module_bytes: u64,
    /// Where the code goes.
    pub(crate) output: File,
}

impl Compiler {
    /// `command` is the program and its first arguments; the child's own follow.
    /// [`None`] if it names no program.
    pub(crate) fn new(command: Vec<OsString>, limits: CompileLimits) -> Option<Self> {
        let mut command = command.into_iter();
        let program = command.next()?;
        Some(Self { program, args: command.collect(), limits })
    }

    pub(crate) fn limits(&self) -> &CompileLimits {
        &self.limits
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .env("RAYON_NUM_THREADS", self.limits.threads.max(1).to_string())
            .current_dir("/")
            // A key that interrupts the agent at a terminal is not for the
            // child; the agent ends it when it is time.
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Asks what artifacts depend on; see `engine::fingerprint`.
    ///
    /// # Errors
    ///
    /// [`CompileError::Broken`] if the child does not tell.
    pub(crate) async fn fingerprint(&self) -> Result<String, CompileError> {
        let mut command = self.command();
        command.arg(FINGERPRINT).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = timeout(FINGERPRINT_TIME, command.output())
            .await
            .map_err(|_| broken(format!("it did not name its engine within {FINGERPRINT_TIME:?}")))?
            .map_err(CompileError::file(format!("start {}", self.program.display())))?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let is_name = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if output.status.success() && is_name {
            Ok(text)
        } else {
            Err(broken(format!("{}: {}", output.status, tail(&output.stderr))))
        }
    }

    /// Compiles one module. On success its code is in the job's output.
    ///
    /// Cancelling it kills the child.
    pub(crate) async fn compile(&self, job: Job) -> Result<Inspection, CompileError> {
        let bounds = self.limits.bounds(job.module_bytes);
        let wall = self.limits.wall(&bounds);
        let mut child = self
            .command()
            .args(bounds.to_args())
            .stdin(job.module)
            .stdout(job.output)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(CompileError::file(format!("start {}", self.program.display())))?;
        let report = child.stderr.take().expect("it was asked to be piped");

        let finished = timeout(wall, async {
            let mut output = Vec::new();
            // The reading end goes with this block: a child that says too much
            // ends when it says more.
            report.take(REPORT_BYTES).read_to_end(&mut output).await?;
            Ok((child.wait().await?, output))
        })
        .await;
        match finished {
            Ok(Ok((status, output))) => judge(status, &output, &bounds, &job.digest),
            Ok(Err(source)) => {
                Err(CompileError::file(format!("follow the compiler of {}", job.digest))(source))
            }
            Err(_) => {
                // It may have ended just now; then there is nothing to kill.
                let _ = child.kill().await;
                Err(CompileError::TimedOut { digest: job.digest.to_string(), limit: wall })
            }
        }
    }
}

fn broken(message: String) -> CompileError {
    CompileError::Broken { message }
}

/// What the end of a child means.
fn judge(
    status: ExitStatus,
    output: &[u8],
    bounds: &Bounds,
    digest: &ModuleDigest,
) -> Result<Inspection, CompileError> {
    let at_fault = |fault| CompileError::Program { digest: digest.to_string(), fault };
    let replaced = || broken(format!("it was given another file than {digest}"));

    if let Some(outcome) = Outcome::from_output(output) {
        return match outcome {
            Outcome::Compiled { module_sha256, .. } if module_sha256 != digest.hex() => {
                Err(replaced())
            }
            Outcome::Compiled { inspection, .. } if status.success() => Ok(inspection),
            Outcome::Refused { module_sha256: Some(seen), .. } if seen != digest.hex() => {
                Err(replaced())
            }
            Outcome::Refused { fault, .. } => Err(at_fault(fault)),
            Outcome::Failed { message } => Err(broken(message)),
            Outcome::Compiled { .. } => Err(broken(format!("{status} after its work was done"))),
        };
    }

    let words = tail(output);
    match (status.code(), status.signal()) {
        (_, Some(libc::SIGXCPU)) => Err(at_fault(Fault::TooSlow { seconds: bounds.cpu_seconds })),
        (_, Some(libc::SIGABRT)) if failed_allocation(&words).is_some() => {
            let wanted = failed_allocation(&words).unwrap_or_default();
            if gauge::is_at_limit(gauge::last_words(output), wanted, bounds.memory_bytes) {
                Err(at_fault(Fault::TooMuchMemory { bytes: bounds.memory_bytes }))
            } else {
                Err(CompileError::Shortage { digest: digest.to_string() })
            }
        }
        // What a broken or a taken-over compiler dies of, or one that lacks
        // something: who can tell? 101 is Rust's panic.
        (
            _,
            Some(
                libc::SIGABRT
                | libc::SIGSEGV
                | libc::SIGBUS
                | libc::SIGILL
                | libc::SIGFPE
                | libc::SIGSYS
                | libc::SIGTRAP,
            ),
        )
        | (Some(101), _) => {
            let how = format!("{status}; {words}");
            Err(CompileError::Crashed { digest: digest.to_string(), how })
        }
        // Most likely the kernel, for want of memory, or a person.
        (_, Some(signal)) => Err(CompileError::Killed { digest: digest.to_string(), signal }),
        (_, None) => Err(broken(format!("{status}; {words}"))),
    }
}

/// The bytes that could not be had, from the standard library's last words before it aborts.
fn failed_allocation(words: &str) -> Option<u64> {
    let (_, rest) = words.rsplit_once("memory allocation of ")?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::ProgramKind;

    const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn judged(status: i32, output: &[u8]) -> Result<Inspection, CompileError> {
        let bounds = CompileLimits::default().bounds(0);
        let digest = format!("sha256:{HEX}").parse().unwrap();
        judge(ExitStatus::from_raw(status), output, &bounds, &digest)
    }

    fn fault(status: i32, output: &[u8]) -> Option<Fault> {
        match judged(status, output) {
            Err(CompileError::Program { fault, .. }) => Some(fault),
            _ => None,
        }
    }

    #[test]
    fn a_module_is_at_fault_if_the_compiler_reaches_its_own_limits() {
        assert_eq!(fault(libc::SIGXCPU, b""), Some(Fault::TooSlow { seconds: 120 }));
        let pages = (4_u64 << 30) / gauge::page_bytes().unwrap() - 2;
        let words =
            format!("memory allocation of 99 bytes failed\nkrustlet-statm: {pages} 1 1 1 0 1 0\n");
        assert_eq!(
            fault(libc::SIGABRT, words.as_bytes()),
            Some(Fault::TooMuchMemory { bytes: 4 << 30 })
        );
        // One allocation beyond the limit needs nothing else to be large.
        let words = "memory allocation of 4294967296 bytes failed\nkrustlet-statm: 9 1 1 1 0 1 0\n";
        assert!(matches!(
            fault(libc::SIGABRT, words.as_bytes()),
            Some(Fault::TooMuchMemory { .. })
        ));
    }

    #[test]
    fn a_shortage_of_the_machine_is_not_the_modules_fault() {
        for words in [
            "memory allocation of 99 bytes failed\nkrustlet-statm: 9 1 1 1 0 1 0\n",
            "memory allocation of 99 bytes failed\n",
        ] {
            let error = judged(libc::SIGABRT, words.as_bytes()).unwrap_err();
            assert!(matches!(error, CompileError::Shortage { .. }), "{error:?}");
            assert!(error.is_transient() && error.is_costly());
        }
    }

    #[test]
    fn a_crash_is_not_held_against_the_module() {
        for (status, words) in [
            (libc::SIGSEGV, ""),
            (libc::SIGABRT, "stack overflow"),
            (101 << 8, "The global thread pool has not been initialized"),
        ] {
            let error = judged(status, words.as_bytes()).unwrap_err();
            assert!(
                matches!(&error, CompileError::Crashed { how, .. } if how.contains(words)),
                "{error:?}"
            );
            assert!(error.is_transient() && error.is_costly());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_waits_for_ever_is_ended_by_the_clock() {
        let command = ["/bin/sh", "-c", "exec /bin/sleep 1000"].map(OsString::from).to_vec();
        let compiler = Compiler::new(command, CompileLimits::default()).unwrap();
        let null = || File::options().read(true).write(true).open("/dev/null").unwrap();
        let digest = format!("sha256:{HEX}").parse().unwrap();
        let job = Job { digest, module: null(), module_bytes: 0, output: null() };
        let error = compiler.compile(job).await.unwrap_err();
        assert!(matches!(error, CompileError::TimedOut { .. }), "{error:?}");
        assert!(error.is_transient());
    }

    #[test]
    fn a_kill_from_outside_is_not_the_modules_fault() {
        let error = judged(libc::SIGKILL, b"").unwrap_err();
        assert!(matches!(error, CompileError::Killed { signal: libc::SIGKILL, .. }));
        assert!(error.is_transient());
    }

    #[test]
    fn a_child_that_could_not_work_is_not_the_modules_fault() {
        let report = Outcome::Failed { message: "no threads".to_owned() }.to_line();
        let error = judged(1 << 8, &report).unwrap_err();
        assert!(matches!(&error, CompileError::Broken { message } if message == "no threads"));
        assert!(error.is_transient());
        assert!(matches!(judged(2 << 8, b"usage\n"), Err(CompileError::Broken { .. })));
    }

    #[test]
    fn code_of_another_module_is_not_taken() {
        let inspection =
            Inspection { kind: ProgramKind::Module, imports: Vec::new(), exports: Vec::new() };
        let compiled = |hex: &str| {
            Outcome::Compiled { module_sha256: hex.to_owned(), inspection: inspection.clone() }
                .to_line()
        };
        assert!(judged(0, &compiled(HEX)).is_ok());
        assert!(judged(0, &compiled(&HEX.replace("00", "ff"))).is_err());
        assert!(judged(libc::SIGKILL, &compiled(HEX)).is_err());
    }
}
