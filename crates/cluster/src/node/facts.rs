//! What the machine is: read from the kernel and a few files, never assumed.
//!
//! Reading is all that happens here; what a Node says of it is decided in
//! [`super::object`].

use std::{
    fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

/// A fact that could not be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum FactsError {
    #[error("cannot read {path}")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("{path} does not say {what}")]
    Missing { path: PathBuf, what: &'static str },

    #[error("cannot tell how many processors there are")]
    Processors {
        #[source]
        source: io::Error,
    },
}

/// What does not change while the agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Processors this process may use.
    pub cpus: NonZeroUsize,
    /// Bytes of memory, `MemTotal`.
    pub memory: u64,
    /// Bytes of the file system that holds the agent's root directory.
    pub storage: u64,
    /// `/etc/machine-id`; empty where a machine has none.
    pub machine_id: String,
    /// The firmware's product uuid, or the machine id where it is not readable.
    pub system_uuid: String,
    /// New at each boot.
    pub boot_id: String,
    /// As `uname -r` prints it.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release; `Linux` where there is none.
    pub os_image: String,
}

/// What changes from moment to moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of memory that can be had without swapping, `MemAvailable`.
    pub memory_available: u64,
    /// Bytes of memory, `MemTotal`.
    pub memory_total: u64,
    /// Bytes free for unprivileged use in the root directory's file system.
    pub storage_available: u64,
    /// Bytes of that file system.
    pub storage_total: u64,
    /// Inodes free in it, and all of it. Both 0 where a file system counts none.
    pub inodes_available: u64,
    /// See `inodes_available`.
    pub inodes_total: u64,
    /// Processes and threads that exist, and how many may.
    pub pids: u64,
    /// See `pids`.
    pub pids_limit: u64,
}

/// Reads what the machine is. `root` is the agent's root directory.
///
/// # Errors
///
/// [`FactsError`] if a fact that a Node cannot do without is not to be had.
pub fn machine(root: &Path) -> Result<Machine, FactsError> {
    let cpus =
        std::thread::available_parallelism().map_err(|source| FactsError::Processors { source })?;
    let machine_id = optional("/etc/machine-id");
    let firmware = optional("/sys/class/dmi/id/product_uuid").to_lowercase();
    let system_uuid = if firmware.is_empty() { machine_id.clone() } else { firmware };
    Ok(Machine {
        cpus,
        memory: meminfo("MemTotal")?,
        storage: file_system(root)?.storage_total,
        machine_id,
        system_uuid,
        boot_id: line("/proc/sys/kernel/random/boot_id")?,
        kernel: line("/proc/sys/kernel/osrelease")?,
        os_image: os_image(&optional("/etc/os-release"))
            .or_else(|| os_image(&optional("/usr/lib/os-release")))
            .unwrap_or_else(|| "Linux".to_owned()),
    })
}

/// Reads what is free now.
///
/// # Errors
///
/// [`FactsError`] if the kernel does not tell.
pub fn usage(root: &Path) -> Result<Usage, FactsError> {
    let files = file_system(root)?;
    Ok(Usage {
        memory_available: meminfo("MemAvailable")?,
        memory_total: meminfo("MemTotal")?,
        pids: running()?,
        pids_limit: number("/proc/sys/kernel/pid_max")?
            .min(number("/proc/sys/kernel/threads-max")?),
        ..files
    })
}

/// The file system's part of [`Usage`]; the rest is zero.
fn file_system(root: &Path) -> Result<Usage, FactsError> {
    let seen = rustix::fs::statvfs(root)
        .map_err(|error| FactsError::Unreadable { path: root.to_owned(), source: error.into() })?;
    Ok(Usage {
        memory_available: 0,
        memory_total: 0,
        storage_available: seen.f_bavail.saturating_mul(seen.f_frsize),
        storage_total: seen.f_blocks.saturating_mul(seen.f_frsize),
        inodes_available: seen.f_favail,
        inodes_total: seen.f_files,
        pids: 0,
        pids_limit: 0,
    })
}

/// One value of `/proc/meminfo`, in bytes.
fn meminfo(name: &'static str) -> Result<u64, FactsError> {
    let path = "/proc/meminfo";
    let text = read(path)?;
    kibibytes(&text, name)
        .map(|kib| kib.saturating_mul(1024))
        .ok_or_else(|| FactsError::Missing { path: path.into(), what: name })
}

fn kibibytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Processes and threads: the second number of loadavg's `running/all`.
fn running() -> Result<u64, FactsError> {
    let path = "/proc/loadavg";
    let text = read(path)?;
    text.split_whitespace()
        .nth(3)
        .and_then(|field| field.split_once('/')?.1.parse().ok())
        .ok_or_else(|| FactsError::Missing { path: path.into(), what: "how many tasks there are" })
}

fn number(path: &'static str) -> Result<u64, FactsError> {
    line(path)?.parse().map_err(|_| FactsError::Missing { path: path.into(), what: "a number" })
}

fn os_image(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|name| !name.is_empty())
}

fn read(path: &str) -> Result<String, FactsError> {
    fs::read_to_string(path).map_err(|source| FactsError::Unreadable { path: path.into(), source })
}

fn line(path: &str) -> Result<String, FactsError> {
    Ok(read(path)?.trim().to_owned())
}

/// What a machine may lack, or show to root only.
fn optional(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let root = std::env::temp_dir();
        let machine = machine(&root).unwrap();
        let usage = usage(&root).unwrap();
        assert!(machine.memory >= usage.memory_available && usage.memory_available > 0);
        assert_eq!(machine.storage, usage.storage_total);
        assert!(!machine.boot_id.is_empty() && !machine.kernel.is_empty());
        assert!(usage.pids > 0 && usage.pids < usage.pids_limit);
    }

    #[test]
    fn memory_is_read_by_its_whole_name() {
        let text = "MemTotal:  100 kB\nMemAvailable:   7 kB\nMem: 1 kB\n";
        assert_eq!(kibibytes(text, "MemAvailable"), Some(7));
        assert_eq!(kibibytes(text, "Mem"), Some(1));
        assert_eq!(kibibytes(text, "Swap"), None);
    }

    #[test]
    fn the_name_of_the_system_comes_without_quotes() {
        assert_eq!(os_image("ID=x\nPRETTY_NAME=\"Some OS 1\"\n").unwrap(), "Some OS 1");
        assert_eq!(os_image("ID=x"), None);
    }
}
