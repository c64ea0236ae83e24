//! The one engine configuration, shared by the compiler and the sandbox: code
//! made under one configuration loads only under the same one.
//!
//! How memory is allocated (pooled or on demand) is not decided here: it is no
//! part of an artifact, and the sandbox chooses it by what it hosts.

use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};
use wasmtime::{Config, Engine, OptLevel, WasmBacktraceDetails};

/// Stack of one guest, host calls included, in bytes.
///
/// Idle stacks cost what they touched, so the size is address space, not
/// memory. 128 KiB was enough for small guests, but not measured with large
/// ones; wasmtime's own default is 2 MiB.
const STACK_BYTES: usize = 512 << 10;

/// The part of [`STACK_BYTES`] that Wasm itself may use before it traps; the
/// rest is for the host calls it makes.
const WASM_STACK_BYTES: usize = 256 << 10;

/// The configuration of every engine, at compile time and at run time.
///
/// A sandbox adds `enable_compiler(false)` and its allocation strategy, both of
/// which leave the artifacts compatible, and nothing else. The features of
/// WebAssembly are wasmtime's defaults, which are those it gives full support
/// (tier 1), and the component model with its async part, for WASI 0.3.
#[must_use]
pub fn engine_config() -> Config {
    let mut config = Config::new();
    config
        // A deadline in each loop and function: how a guest is stopped, kept to
        // its share of a CPU, and known to have started.
        .epoch_interruption(true)
        .async_stack_size(STACK_BYTES)
        .max_wasm_stack(WASM_STACK_BYTES)
        // Instances share the pages of their first memory until they write.
        .memory_init_cow(true)
        .cranelift_opt_level(OptLevel::Speed)
        // Only foreign debuggers need it; loading would register each artifact
        // with the C library's unwinder, which is slow with many of them.
        .native_unwind_info(false)
        // Said, because the default asks an environment variable, and the two
        // processes may not see the same one.
        .wasm_backtrace_details(WasmBacktraceDetails::Enable)
        .wasm_component_model(true)
        .wasm_component_model_async(true);
    config
}

/// Names what an artifact depends on besides its module: version and
/// configuration of wasmtime, target, and the CPU features code is made for.
///
/// Sixty-four hexadecimal digits. Equal values mean that an artifact of one
/// engine loads in the other.
///
/// # Errors
///
/// If this machine is none that wasmtime compiles for.
pub(crate) fn fingerprint() -> wasmtime::Result<String> {
    fingerprint_of(&engine_config())
}

fn fingerprint_of(config: &Config) -> wasmtime::Result<String> {
    let engine = Engine::new(config)?;
    let mut hasher = Fingerprint(Sha256::new());
    hasher.write(FORMAT);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    Ok(hex(&hasher.0.finalize()))
}

/// Raised when artifacts must be made anew for a reason wasmtime cannot know.
const FORMAT: &[u8] = b"krustlet artifact 1";

/// Lower-case hexadecimal digits of some bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Feeds what is hashed to SHA-256: the standard hashers have 64 bits, too few
/// for a name that decides which machine code is run.
struct Fingerprint(Sha256);

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        // The length keeps neighbouring fields apart.
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        u64::from_le_bytes(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_without_its_compiler_loads_what_was_compiled() {
        let compiler = Engine::new(&engine_config()).unwrap();
        let code = compiler
            .precompile_module(&wat::parse_str("(module (func (export \"f\")))").unwrap())
            .unwrap();
        let mut config = engine_config();
        config.enable_compiler(false);
        let engine = Engine::new(&config).unwrap();
        // SAFETY: the bytes come from the compiler above.
        let module = unsafe { wasmtime::Module::deserialize(&engine, code) }.unwrap();
        assert!(module.get_export("f").is_some());
    }

    #[test]
    fn a_fingerprint_is_the_same_each_time() {
        let first = fingerprint().unwrap();
        assert_eq!(first.len(), 64);
        assert_eq!(first, fingerprint().unwrap());
    }

    #[test]
    fn another_configuration_or_processor_has_another_fingerprint() {
        let first = fingerprint().unwrap();
        let mut config = engine_config();
        config.consume_fuel(true);
        assert_ne!(first, fingerprint_of(&config).unwrap());
        #[cfg(target_arch = "x86_64")]
        {
            // With a target it is that one's least, and not what this machine has.
            let mut config = engine_config();
            config.target("x86_64-unknown-linux-gnu").unwrap();
            assert_ne!(first, fingerprint_of(&config).unwrap());
        }
    }
}
