//! Programs, compiled as the node's compiler does it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
};

use tempfile::TempDir;
use wasmtime::Engine;

/// The name of each artifact in its directory.
pub(crate) const ARTIFACT: &str = "artifact.cwasm";

/// The directory with the compiled form of a prebuilt guest, such as
/// `hello.wasm`, or of one written as text, such as `spin`. Made once.
pub(crate) fn compiled(guest: &str) -> PathBuf {
    static DONE: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut done = DONE.lock().unwrap();
    let done = done.get_or_insert_default();
    if let Some(directory) = done.get(guest) {
        return directory.clone();
    }
    let program = if guest.contains(".wasm") {
        fs::read(krustlet_testkit::guest(guest)).unwrap()
    } else {
        krustlet_testkit::wat(guest)
    };
    let directory = compile(&program);
    done.insert(guest.to_owned(), directory.clone());
    directory
}

/// The directory with the compiled form of a program given as text.
pub(crate) fn compiled_text(text: &str) -> PathBuf {
    compile(&wat::parse_str(text).unwrap())
}

/// The directory with the compiled form of a Go program of the guests' folder,
/// which is too large to be checked in. Needs Go, as the cluster's tests do.
pub(crate) fn compiled_go(name: &str) -> PathBuf {
    let directory = krustlet_testkit::directory();
    let program = directory.path().join("program.wasm");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests").join(name);
    let built = Command::new("go")
        .args(["build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(source)
        .envs([("GOOS", "wasip1"), ("GOARCH", "wasm")])
        .status()
        .expect("Go is installed");
    assert!(built.success(), "{name} does not build");
    compile(&fs::read(program).unwrap())
}

fn compile(program: &[u8]) -> PathBuf {
    static ENGINE: OnceLock<(Engine, TempDir)> = OnceLock::new();
    let (engine, all) = ENGINE.get_or_init(|| {
        let engine = Engine::new(&krustlet_compiler::engine_config()).unwrap();
        (engine, krustlet_testkit::directory())
    });
    // The version tells a component (0x0d 0 1 0) from a module (1 0 0 0).
    let code = if program[6] == 1 {
        engine.precompile_component(program)
    } else {
        engine.precompile_module(program)
    };
    let directory = tempfile::tempdir_in(all).unwrap().keep();
    fs::write(directory.join(ARTIFACT), code.unwrap()).unwrap();
    // Sandboxes have users of their own.
    for path in [all.path(), &directory] {
        let mut rights = fs::metadata(path).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut rights, 0o755);
        fs::set_permissions(path, rights).unwrap();
    }
    directory
}
