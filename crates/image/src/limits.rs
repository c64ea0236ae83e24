//! Bounds of every transfer: sizes, times and repetitions.

use std::time::Duration;

/// Largest manifest or index, in bytes.
///
/// Source: OCI distribution specification, "Pushing Manifests", which lets registries
/// refuse more than 4 MiB.
pub(crate) const DOCUMENT_LIMIT: u64 = 4 << 20;

/// What one pull or push may use. The defaults suit a node with a few GiB of disk to spare.
#[derive(Clone, Debug)]
pub struct PullLimits {
    /// Largest single layer, in bytes.
    pub blob_bytes: u64,
    /// Most bytes of one image as transferred.
    pub total_bytes: u64,
    /// Most bytes of one image's root file system, counted before compression.
    pub unpacked_bytes: u64,
    /// Most files, directories and links of one image's root file system.
    pub unpacked_entries: u64,
    /// Time to connect to a host.
    pub connect: Duration,
    /// Longest silence of a registry before a transfer counts as broken.
    pub stall: Duration,
    /// Time for a whole pull, import or push, with all repetitions.
    pub total: Duration,
    /// Attempts per request before the pull fails, at least 1. A transfer that made
    /// headway begins anew.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles with each further one.
    pub backoff: Duration,
    /// Longest wait between two attempts, and the longest `Retry-After` that is honoured.
    pub backoff_limit: Duration,
    /// Pulls that run at once, at least 1; others wait their turn.
    pub parallel: usize,
}

impl Default for PullLimits {
    fn default() -> Self {
        Self {
            // Wasm programs are tens of MiB; those with a model or an interpreter's library
            // in them reach a few GiB.
            blob_bytes: 4 << 30,
            total_bytes: 8 << 30,
            unpacked_bytes: 16 << 30,
            // A Python library has some 10,000 files.
            unpacked_entries: 200_000,
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            total: Duration::from_mins(30),
            attempts: 5,
            backoff: Duration::from_millis(500),
            // The kubelet's own back-off between pulls takes over from there.
            backoff_limit: Duration::from_secs(30),
            // More would share the same line; fewer would let one slow registry hold up all.
            parallel: 4,
        }
    }
}
