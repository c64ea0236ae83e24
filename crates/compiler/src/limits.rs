//! What one compilation may use, and which of two queues it waits in.

use std::{ffi::OsString, time::Duration};

use serde::{Deserialize, Serialize};

/// The size that [`CompileLimits::cpu_per_10_mib`] speaks of.
const TEN_MIB: u64 = 10 << 20;

/// What compilations may use. A module that needs more is at fault itself.
///
/// Measured on a server's core: a Go program of 3.4 MB takes 3 s and 125 MiB, a
/// circuit compiler of 67 MB takes 98 s and 1.75 GiB, and makes 214 MB of code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompileLimits {
    /// Processor time for each begun 10 MiB of module; whole seconds count.
    pub cpu_per_10_mib: Duration,
    /// Address space of one compilation, in bytes.
    pub memory_bytes: u64,
    /// Size of a module, in bytes.
    pub module_bytes: u64,
    /// Size of the code made of one module, in bytes.
    pub artifact_bytes: u64,
    /// Threads of one compilation, at least 1.
    pub threads: u16,
    /// How many times its processor time a compilation may take by the clock,
    /// at least 1: it shares the machine, and is the first to wait.
    pub wall_factor: u32,
    /// From this size on, in bytes, a module is compiled one at a time, in a
    /// queue of its own, so that it does not hold up smaller ones.
    pub large_module_bytes: u64,
    /// Smaller modules compiled at once, at least 1.
    pub small_at_once: u16,
}

impl Default for CompileLimits {
    /// Generous to any real program: those measured above use a seventh of
    /// their processor time and less than half of the memory.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cpu_per_10_mib: Duration::from_mins(2),
            memory_bytes: 4 << 30,
            module_bytes: 512 << 20,
            artifact_bytes: 2 << 30,
            // Beyond four the gain is small, and the node has other work.
            threads: u16::try_from(cores.min(4)).unwrap_or(4),
            wall_factor: 10,
            large_module_bytes: 8 << 20,
            small_at_once: 2,
        }
    }
}

impl CompileLimits {
    /// The limits of one child.
    pub(crate) fn bounds(&self, module_bytes: u64) -> Bounds {
        let shares = module_bytes.div_ceil(TEN_MIB).max(1);
        Bounds {
            cpu_seconds: self.cpu_per_10_mib.as_secs().max(1).saturating_mul(shares),
            memory_bytes: self.memory_bytes,
            module_bytes: self.module_bytes,
            artifact_bytes: self.artifact_bytes,
        }
    }

    /// How long a child may take by the clock.
    pub(crate) fn wall(&self, bounds: &Bounds) -> Duration {
        Duration::from_secs(bounds.cpu_seconds.saturating_mul(u64::from(self.wall_factor.max(1))))
    }

    /// Whether a module waits in the queue of the large ones.
    pub(crate) fn is_large(&self, module_bytes: u64) -> bool {
        module_bytes >= self.large_module_bytes
    }
}

/// What one child may use; it is told on its command line and binds itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) cpu_seconds: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) module_bytes: u64,
    pub(crate) artifact_bytes: u64,
}

impl Bounds {
    /// The child's arguments.
    pub(crate) fn to_args(self) -> Vec<OsString> {
        [
            ("--cpu-seconds", self.cpu_seconds),
            ("--memory-bytes", self.memory_bytes),
            ("--module-bytes", self.module_bytes),
            ("--artifact-bytes", self.artifact_bytes),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.into(), value.to_string().into()])
        .collect()
    }

    /// Reads what [`Bounds::to_args`] wrote. Every limit must be there.
    pub(crate) fn from_args(mut args: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let (mut cpu, mut memory, mut module, mut artifact) = (None, None, None, None);
        while let Some(name) = args.next() {
            let slot = match name.to_str() {
                Some("--cpu-seconds") => &mut cpu,
                Some("--memory-bytes") => &mut memory,
                Some("--module-bytes") => &mut module,
                Some("--artifact-bytes") => &mut artifact,
                _ => return Err(format!("unknown argument {}", name.display())),
            };
            let value = args
                .next()
                .and_then(|value| value.to_str().and_then(|text| text.parse::<u64>().ok()))
                .ok_or_else(|| format!("{} needs a number", name.display()))?;
            *slot = Some(value);
        }
        let needed =
            |value: Option<u64>, name: &str| value.ok_or_else(|| format!("{name} is missing"));
        Ok(Self {
            cpu_seconds: needed(cpu, "--cpu-seconds")?,
            memory_bytes: needed(memory, "--memory-bytes")?,
            module_bytes: needed(module, "--module-bytes")?,
            artifact_bytes: needed(artifact, "--artifact-bytes")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn processor_time_grows_with_each_begun_ten_mib() {
        let limits = CompileLimits::default();
        for (bytes, seconds) in [(0, 120), (10 << 20, 120), ((10 << 20) + 1, 240), (67 << 20, 840)]
        {
            assert_eq!(limits.bounds(bytes).cpu_seconds, seconds, "{bytes} bytes");
        }
    }

    proptest! {
        #[test]
        fn a_child_reads_the_limits_it_was_given(cpu_seconds: u64, memory_bytes: u64, module_bytes: u64, artifact_bytes: u64) {
            let bounds = Bounds { cpu_seconds, memory_bytes, module_bytes, artifact_bytes };
            prop_assert_eq!(Bounds::from_args(bounds.to_args().into_iter()), Ok(bounds));
        }
    }

    #[test]
    fn a_child_without_one_of_its_limits_refuses_to_start() {
        let args = Bounds { cpu_seconds: 1, memory_bytes: 1, module_bytes: 1, artifact_bytes: 1 }
            .to_args();
        for left_out in (0..args.len()).step_by(2) {
            let mut fewer = args.clone();
            fewer.drain(left_out..left_out + 2);
            assert!(Bounds::from_args(fewer.into_iter()).is_err());
        }
    }
}
