//! Programs compiled through the real child.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use krustlet_compiler::{
    Artifact, Artifacts, ArtifactsConfig, ArtifactsTask, CompileError, CompileLimits, Fault,
    ProgramKind, engine_config, open,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A test that hangs fails here, by name; a loaded machine compiles slowly.
const LIMIT: Duration = Duration::from_mins(2);

const COMMAND: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start") (call $exit (i32.const 3))))"#;

struct Bench {
    root: TempDir,
    limits: CompileLimits,
}

impl Bench {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), limits: CompileLimits::default() }
    }

    fn store(&self) -> PathBuf {
        self.root.path().join("artifacts")
    }

    /// The child, through a script that counts how often it compiles.
    fn open(&self) -> (Artifacts, ArtifactsTask) {
        let script = self.root.path().join("compile");
        let (child, count) = (env!("CARGO_BIN_EXE_krustlet-compile"), self.count_file());
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = --fingerprint ] || echo x >> '{}'\nexec '{child}' \"$@\"\n",
            count.display()
        );
        fs::write(&script, text).unwrap();
        // Through the shell: a file just written by a process that starts
        // others cannot be executed for a moment.
        let command = vec!["/bin/sh".into(), script.into()];
        open(ArtifactsConfig { root: self.store(), command, limits: self.limits.clone() }).unwrap()
    }

    fn count_file(&self) -> PathBuf {
        self.root.path().join("count")
    }

    fn compilations(&self) -> usize {
        fs::read_to_string(self.count_file()).unwrap_or_default().lines().count()
    }

    fn program(&self, bytes: &[u8]) -> (PathBuf, String) {
        let digest = Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        });
        let path = self.root.path().join(&digest[7..23]);
        fs::write(&path, bytes).unwrap();
        (path, digest)
    }

    /// Runs the task while `work` asks it.
    async fn serve<T>(&self, work: impl AsyncFnOnce(Artifacts) -> T) -> T {
        let (artifacts, task) = self.open();
        let stop = CancellationToken::new();
        let asking = async {
            let result = work(artifacts).await;
            stop.cancel();
            result
        };
        timeout(LIMIT, async { tokio::join!(task.run(stop.clone()), asking).1 })
            .await
            .expect("the work ends")
    }

    async fn compile(&self, bytes: &[u8]) -> Result<Artifact, CompileError> {
        let (path, digest) = self.program(bytes);
        self.serve(async |artifacts| artifacts.artifact(&path, &digest).await).await
    }

    async fn fault(&self, bytes: &[u8]) -> Fault {
        match self.compile(bytes).await {
            Err(CompileError::Program { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    }
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

/// Loads and runs it as a sandbox does: with an engine that cannot compile.
fn exit_code_of(artifact: &Artifact) -> i32 {
    let mut config = engine_config();
    config.enable_compiler(false);
    let engine = wasmtime::Engine::new(&config).unwrap();
    let path = artifact.directory.join(&artifact.file);
    // SAFETY: the compiler under test made the file.
    let module = unsafe { wasmtime::Module::deserialize_file(&engine, path) }.unwrap();
    let mut linker = wasmtime::Linker::new(&engine);
    linker
        .func_wrap(
            "wasi_snapshot_preview1",
            "proc_exit",
            |mut caller: wasmtime::Caller<'_, i32>, code: i32| *caller.data_mut() = code,
        )
        .unwrap();
    let mut store = wasmtime::Store::new(&engine, 0);
    store.set_epoch_deadline(1);
    let instance = linker.instantiate(&mut store, &module).unwrap();
    instance.get_typed_func::<(), ()>(&mut store, "_start").unwrap().call(&mut store, ()).unwrap();
    *store.data()
}

#[tokio::test]
async fn a_module_becomes_code_that_runs() {
    let bench = Bench::new();
    let artifact = bench.compile(&wat(COMMAND)).await.unwrap();
    assert_eq!(artifact.inspection.kind, ProgramKind::Module);
    assert_eq!(artifact.inspection.imports, ["wasi_snapshot_preview1::proc_exit"]);
    assert_eq!(artifact.inspection.exports, ["_start"]);
    assert_eq!(exit_code_of(&artifact), 3);
}

#[tokio::test]
async fn a_component_is_told_by_what_it_exports() {
    let bench = Bench::new();
    let artifact = bench
        .compile(&wat(r#"(component (instance $i) (export "wasi:cli/run@0.2.3" (instance $i)))"#))
        .await
        .unwrap();
    assert_eq!(artifact.inspection.kind, ProgramKind::Command);
}

#[tokio::test]
async fn pods_that_start_at_once_share_one_compilation() {
    let bench = Bench::new();
    let (path, digest) = bench.program(&wat(COMMAND));
    bench
        .serve(async |artifacts| {
            let (a, b, c) = tokio::join!(
                artifacts.artifact(&path, &digest),
                artifacts.artifact(&path, &digest),
                artifacts.artifact(&path, &digest),
            );
            assert_eq!(a.as_ref().unwrap(), b.as_ref().unwrap());
            assert_eq!(a.unwrap(), c.unwrap());
            artifacts.artifact(&path, &digest).await.unwrap();
        })
        .await;
    assert_eq!(bench.compilations(), 1);
}

#[tokio::test]
async fn the_next_agent_finds_what_was_compiled() {
    let bench = Bench::new();
    let first = bench.compile(&wat(COMMAND)).await.unwrap();
    let second = bench.compile(&wat(COMMAND)).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(bench.compilations(), 1);
}

#[tokio::test]
async fn changed_code_is_never_given_out() {
    let bench = Bench::new();
    let (path, digest) = bench.program(&wat(COMMAND));
    let tamper = |artifact: &Artifact| {
        let file = artifact.directory.join(&artifact.file);
        let mut code = fs::read(&file).unwrap();
        let middle = code.len() / 2;
        code[middle] ^= 1;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&file, code).unwrap();
    };
    // Under a running agent, and between two of them.
    bench
        .serve(async |artifacts| {
            tamper(&artifacts.artifact(&path, &digest).await.unwrap());
            let mended = artifacts.artifact(&path, &digest).await.unwrap();
            assert_eq!(exit_code_of(&mended), 3);
            tamper(&mended);
        })
        .await;
    let mended = bench.compile(&wat(COMMAND)).await.unwrap();
    assert_eq!(exit_code_of(&mended), 3);
    assert_eq!(bench.compilations(), 3);
}

#[tokio::test]
async fn a_removed_program_is_compiled_again() {
    let bench = Bench::new();
    let (path, digest) = bench.program(&wat(COMMAND));
    bench
        .serve(async |artifacts| {
            let artifact = artifacts.artifact(&path, &digest).await.unwrap();
            artifacts.remove(&digest).await;
            assert!(!artifact.directory.exists());
            artifacts.artifact(&path, &digest).await.unwrap();
        })
        .await;
    assert_eq!(bench.compilations(), 2);
}

#[tokio::test]
async fn garbage_is_refused_once_and_remembered() {
    let bench = Bench::new();
    let first = bench.fault(b"#!/bin/sh\nexit 0\n").await;
    assert!(first.to_string().contains("not WebAssembly"), "{first}");
    let error = bench.compile(b"#!/bin/sh\nexit 0\n").await.unwrap_err();
    assert!(!error.is_transient());
    assert_eq!(error.reason(), "ImageInspectError");
    assert_eq!(bench.compilations(), 1);
}

#[tokio::test]
async fn an_invalid_module_is_refused_with_what_is_wrong() {
    let bench = Bench::new();
    // Says it returns a number, and does not.
    let module = b"\0asm\x01\0\0\0\x01\x05\x01\x60\0\x01\x7f\x03\x02\x01\0\x0a\x04\x01\x02\0\x0b";
    let fault = bench.fault(module).await;
    assert!(
        matches!(&fault, Fault::Invalid { message } if message.contains("type mismatch")),
        "{fault}"
    );
}

#[tokio::test]
async fn precompiled_code_is_never_accepted() {
    let bench = Bench::new();
    let engine = wasmtime::Engine::new(&engine_config()).unwrap();
    let code = engine.precompile_module(&wat(COMMAND)).unwrap();
    let fault = bench.fault(&code).await;
    assert!(fault.to_string().contains("precompiled"), "{fault}");
}

/// Takes many seconds to compile, being one function of many blocks.
fn bomb() -> Vec<u8> {
    let mut text = String::from("(module (memory 1)");
    for function in 0..40 {
        write!(text, "(func $f{function} (param i32) (result i32) (local i32 i32 i32 i32)")
            .unwrap();
        for step in 0..6000 {
            write!(
                text,
                "(if (i32.load (local.get {})) (then (local.set {} (i32.mul (local.get {}) (local.get {})))))",
                step % 5,
                (step + 1) % 5,
                (step + 2) % 5,
                (step + 3) % 5
            )
            .unwrap();
        }
        text.push_str("local.get 1)");
    }
    text.push(')');
    wat(&text)
}

#[tokio::test]
async fn a_module_that_takes_too_long_to_compile_is_at_fault() {
    let mut bench = Bench::new();
    bench.limits.cpu_per_10_mib = Duration::from_secs(1);
    let bomb = bomb();
    assert_eq!(bench.fault(&bomb).await, Fault::TooSlow { seconds: 1 });
    assert_eq!(bench.fault(&bomb).await, Fault::TooSlow { seconds: 1 });
    assert_eq!(bench.compilations(), 1);
    // Whoever raises the limit wants it tried again.
    bench.limits.cpu_per_10_mib = Duration::from_secs(2);
    assert_eq!(bench.fault(&bomb).await, Fault::TooSlow { seconds: 2 });
    assert_eq!(bench.compilations(), 2);
}

#[tokio::test]
async fn a_module_that_takes_too_much_memory_to_compile_is_at_fault() {
    let mut bench = Bench::new();
    // The child itself maps about 30 MiB, and its threads' stacks.
    bench.limits.memory_bytes = 160 << 20;
    bench.limits.threads = 1;
    assert_eq!(bench.fault(&bomb()).await, Fault::TooMuchMemory { bytes: 160 << 20 });
    assert!(bench.compile(&wat(COMMAND)).await.is_ok());
}

#[tokio::test]
async fn a_module_and_its_code_have_a_size_limit() {
    let mut bench = Bench::new();
    bench.limits.module_bytes = 10;
    assert_eq!(bench.fault(&wat(COMMAND)).await, Fault::TooLarge { limit: 10 });
    assert_eq!(bench.compilations(), 0);

    bench.limits.module_bytes = 1 << 20;
    bench.limits.artifact_bytes = 100;
    assert_eq!(bench.fault(&wat(COMMAND)).await, Fault::TooMuchCode { bytes: 100 });
}

#[tokio::test]
async fn a_file_that_is_not_what_it_is_said_to_be_makes_no_artifact() {
    let bench = Bench::new();
    let (path, digest) = bench.program(&wat(COMMAND));
    fs::write(&path, wat("(module)")).unwrap();
    let result = bench.serve(async |artifacts| artifacts.artifact(&path, &digest).await).await;
    let error = result.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    // And what is wrong with it is not said of the other.
    fs::write(&path, b"garbage").unwrap();
    let result = bench.serve(async |artifacts| artifacts.artifact(&path, &digest).await).await;
    assert!(result.unwrap_err().is_transient());
}

#[tokio::test]
async fn a_compiler_that_does_not_work_is_not_the_programs_fault() {
    let bench = Bench::new();
    let (path, digest) = bench.program(&wat(COMMAND));
    let (artifacts, task) = open(ArtifactsConfig {
        root: bench.store(),
        command: vec!["/bin/false".into()],
        limits: CompileLimits::default(),
    })
    .unwrap();
    let stop = CancellationToken::new();
    let asking = async {
        let error = artifacts.artifact(&path, &digest).await.unwrap_err();
        stop.cancel();
        error
    };
    let ((), error) = tokio::join!(task.run(stop.clone()), asking);
    assert!(matches!(error, CompileError::Broken { .. }) && error.is_transient(), "{error:?}");
}

/// A compiler that dies of this signal the first time, and works from then on.
fn dying_once(bench: &Bench, signal: &str) -> ArtifactsConfig {
    let script = bench.root.path().join("dying");
    let (child, count) = (env!("CARGO_BIN_EXE_krustlet-compile"), bench.count_file());
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" != --fingerprint ]; then\n echo x >> '{0}'\n \
         [ $(wc -l < '{0}') -gt 1 ] || kill -{signal} $$\nfi\nexec '{child}' \"$@\"\n",
        count.display()
    );
    fs::write(&script, text).unwrap();
    let command = vec!["/bin/sh".into(), script.into()];
    ArtifactsConfig { root: bench.store(), command, limits: bench.limits.clone() }
}

#[tokio::test]
async fn a_crash_is_said_again_for_a_while_and_is_not_kept_for_the_next_agent() {
    for signal in ["SEGV", "ABRT", "KILL"] {
        let bench = Bench::new();
        let (path, digest) = bench.program(&wat(COMMAND));
        let ask = async |times: usize| {
            let (artifacts, task) = open(dying_once(&bench, signal)).unwrap();
            let stop = CancellationToken::new();
            let asking = async {
                let mut answers = Vec::new();
                for _ in 0..times {
                    answers.push(artifacts.artifact(&path, &digest).await);
                }
                stop.cancel();
                answers
            };
            timeout(LIMIT, async { tokio::join!(task.run(stop.clone()), asking).1 })
                .await
                .expect("the work ends")
        };
        for answer in ask(3).await {
            let error = answer.unwrap_err();
            assert!(error.is_transient(), "{error:?}");
            assert_eq!(error.reason(), "CreateContainerError");
        }
        assert_eq!(bench.compilations(), 1, "it was tried again at once");
        assert_eq!(exit_code_of(&ask(1).await.remove(0).unwrap()), 3);
        assert_eq!(bench.compilations(), 2);
    }
}

#[tokio::test]
async fn who_removes_a_program_lets_it_be_tried_again_at_once() {
    let bench = Bench::new();
    let (path, digest) = bench.program(&wat(COMMAND));
    let (artifacts, task) = open(dying_once(&bench, "SEGV")).unwrap();
    let stop = CancellationToken::new();
    let asking = async {
        artifacts.artifact(&path, &digest).await.unwrap_err();
        artifacts.remove(&digest).await;
        let artifact = artifacts.artifact(&path, &digest).await.unwrap();
        stop.cancel();
        artifact
    };
    let both = async { tokio::join!(task.run(stop.clone()), asking).1 };
    let artifact = timeout(LIMIT, both).await.expect("the work ends");
    assert_eq!(exit_code_of(&artifact), 3);
}

#[tokio::test]
async fn threads_that_cannot_be_had_are_not_the_programs_fault() {
    let mut bench = Bench::new();
    // Each takes 2 MiB of address space for its stack.
    bench.limits.threads = 500;
    bench.limits.memory_bytes = 300 << 20;
    let error = bench.compile(&wat(COMMAND)).await.unwrap_err();
    assert!(
        matches!(&error, CompileError::Broken { message } if message.contains("threads")),
        "{error:?}"
    );
    assert!(error.is_transient());
    // And nothing of it is kept.
    bench.limits.threads = 1;
    bench.compile(&wat(COMMAND)).await.unwrap();
}

#[tokio::test]
async fn large_programs_do_not_hold_up_small_ones() {
    let mut bench = Bench::new();
    let large = bomb();
    bench.limits.large_module_bytes = large.len() as u64;
    let (large, large_digest) = bench.program(&large);
    let (small, small_digest) = bench.program(&wat(COMMAND));
    bench
        .serve(async |artifacts| {
            let huge = artifacts.artifact(&large, &large_digest);
            tokio::pin!(huge);
            tokio::select! {
                biased;
                result = &mut huge => panic!("the large one was first: {result:?}"),
                result = artifacts.artifact(&small, &small_digest) => { result.unwrap(); }
            }
        })
        .await;
}

/// Who compiles is bound before it sees the program: asked of the kernel, while
/// the child waits for its input.
#[tokio::test]
async fn the_child_is_locked_down_before_it_reads() {
    use std::process::{Command, Stdio};

    let args = [
        "--cpu-seconds",
        "7",
        "--memory-bytes",
        "4294967296",
        "--module-bytes",
        "100",
        "--artifact-bytes",
        "12345",
    ];
    let mut child = Command::new(env!("CARGO_BIN_EXE_krustlet-compile"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let status = locked(&proc).await;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
            .map(str::to_owned)
            .unwrap_or_default()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("CapEff"), "0000000000000000");
    assert_eq!(field("CapPrm"), "0000000000000000");
    assert!(!field("Uid").split('\t').any(|uid| uid == "0"), "{}", field("Uid"));
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    for (name, value) in [
        ("Max cpu time", "7"),
        ("Max file size", "12345"),
        ("Max core file size", "0"),
        ("Max address space", "4294967296"),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.split_whitespace().any(|word| word == value), "{line}");
    }

    // And it goes when the agent does: nobody reads its report any more.
    drop(child.stderr.take());
    let ended = timeout(
        LIMIT,
        tokio::task::spawn_blocking(move || {
            let input = child.stdin.take();
            let status = child.wait();
            drop(input);
            status
        }),
    );
    assert!(!ended.await.unwrap().unwrap().unwrap().success());
}

/// The status of a process once it has its filter.
async fn locked(proc: &Path) -> String {
    timeout(LIMIT, async {
        loop {
            let status = fs::read_to_string(proc.join("status")).unwrap();
            if status.contains("Seccomp:\t2") {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the child installs its filter")
}
