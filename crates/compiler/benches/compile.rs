//! How long a program takes from its bytes to compiled code that is ready to be
//! mapped, through the locked child, as for a pod; and how long when the code is
//! here already.
//!
//!     benches/compile [FILE.wasm]…

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints or panics")]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use krustlet_compiler::{Artifacts, ArtifactsConfig, CompileLimits, open};
use krustlet_testkit::{Summary, guest};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

/// Compilations of each program.
const ROUNDS: usize = 15;

fn main() {
    let mut programs: Vec<PathBuf> = std::env::args_os()
        .skip(1)
        .map(PathBuf::from)
        .filter(|path| path.extension().is_some_and(|extension| extension == "wasm"))
        .collect();
    if programs.is_empty() {
        programs = ["hello.wasm", "hello.p2.wasm", "http.wasm"].map(guest).to_vec();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for program in programs {
        runtime.block_on(measure(&program));
    }
}

async fn measure(program: &Path) {
    let bytes = fs::read(program).unwrap();
    let mut digest = "sha256:".to_owned();
    for byte in Sha256::digest(&bytes) {
        write!(digest, "{byte:02x}").unwrap();
    }
    let (mut compiling, mut finding, mut children) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // A store of its own: nothing in it is compiled.
        let root = tempfile::tempdir().unwrap();
        let (artifacts, task) = open(ArtifactsConfig {
            root: root.path().join("artifacts"),
            command: vec![env!("CARGO_BIN_EXE_krustlet-compile").into()],
            limits: CompileLimits::default(),
        })
        .unwrap();
        let stop = CancellationToken::new();
        let asking = async {
            let before = processor_time();
            compiling.push(timed(&artifacts, program, &digest).await);
            children.push(processor_time().saturating_sub(before));
            finding.push(timed(&artifacts, program, &digest).await);
            stop.cancel();
        };
        tokio::join!(task.run(stop.clone()), asking);
    }
    println!("{} ({} KiB)", program.display(), bytes.len() / 1024);
    println!("  compiled:       {}", Summary::of(compiling));
    println!("  processor time: {}", Summary::of(children));
    println!("  found:          {}", Summary::of(finding));
}

async fn timed(artifacts: &Artifacts, program: &Path, digest: &str) -> Duration {
    let begin = Instant::now();
    artifacts.artifact(program, digest).await.unwrap();
    begin.elapsed()
}

/// What ended children have used.
fn processor_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the pointer is to room for the value, which is filled on success.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    [usage.ru_utime, usage.ru_stime]
        .iter()
        .map(|time| {
            Duration::from_secs(time.tv_sec.unsigned_abs())
                + Duration::from_micros(time.tv_usec.unsigned_abs())
        })
        .sum()
}
