//! One container: what it was created of, and how it is told to stop.
//!
//! ```text
//! Created ──start──▶ (entered) Running ──▶ Exited
//!     └───────────stop──────────────────────▲
//! ```
//!
//! The state itself is the control thread's ([`table`](crate::table)); here is
//! what both threads share. Running it is left to [`guests`](crate::guests).

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use jiff::Timestamp;
use krustlet_protocol::ContainerSpec;
use tokio::sync::watch;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::{
    directories::Directories,
    log::Log,
    net::{Claim, Stack},
    news::{News, Teller},
    outgoing::{OwnRoots, Whose},
    program::Program,
    state::{Budget, DRAWN, Usage},
};

/// What a container has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Nothing: it may run.
    No,
    /// End by then. It may go on with what it has begun until then.
    By(Instant),
    /// End at once.
    Now,
    /// It has ended; what still runs beside it (an exec) is to end.
    Ended,
}

impl Stop {
    /// What is in force when `later` is asked for too. It only ever gets
    /// stricter: a second request may shorten the wait, not lengthen it.
    fn and(self, later: Self) -> Self {
        match (self, later) {
            (Self::Ended, _) | (_, Self::Ended) => Self::Ended,
            (Self::Now, _) | (_, Self::Now) => Self::Now,
            (Self::By(one), Self::By(other)) => Self::By(one.min(other)),
            (Self::By(one), Self::No) | (Self::No, Self::By(one)) => Self::By(one),
            (Self::No, Self::No) => Self::No,
        }
    }
}

/// A container, shared by the threads.
pub(crate) struct Container {
    pub(crate) spec: ContainerSpec,
    pub(crate) program: Arc<Program>,
    pub(crate) log: Arc<Log>,
    pub(crate) usage: Arc<Usage>,
    /// In the order of the spec's preopens.
    directories: Arc<Directories>,
    /// What is known of it where its guests' requests are sent.
    pub(crate) whose: Arc<Whose>,
    /// The network of its pod.
    pub(crate) stack: Stack,
    /// Sockets that were handed over for it, until it ends.
    claim: Mutex<Option<Claim>>,
    stop: watch::Sender<Stop>,
    started_at: OnceLock<i64>,
    teller: Teller,
}

/// What a container is made of; see the fields of [`Container`].
pub(crate) struct Parts {
    pub(crate) spec: ContainerSpec,
    pub(crate) program: Arc<Program>,
    pub(crate) log: Log,
    pub(crate) preopens: Vec<OwnedFd>,
    pub(crate) stack: Stack,
    pub(crate) claim: Option<Claim>,
    pub(crate) teller: Teller,
}

impl Container {
    pub(crate) fn new(parts: Parts) -> Self {
        let log = Arc::new(parts.log);
        let paths = parts.spec.preopens.iter().map(|preopen| preopen.guest_path.as_str());
        let directories = Arc::new(Directories::new(paths.zip(parts.preopens)));
        parts.stack.log_to(&log);
        let usage = Arc::new(Usage::new(&parts.spec.limits));
        let own = OwnRoots::of(&parts.spec, &directories, &log);
        Self {
            whose: Arc::new(Whose { own, usage: Arc::clone(&usage) }),
            usage,
            spec: parts.spec,
            program: parts.program,
            log,
            directories,
            stack: parts.stack.for_container(),
            claim: Mutex::new(parts.claim),
            stop: watch::Sender::new(Stop::No),
            started_at: OnceLock::new(),
            teller: parts.teller,
        }
    }

    /// Says that the guest has been entered. Only the first time counts.
    pub(crate) fn entered(&self) {
        let at = now();
        if self.started_at.set(at).is_ok() {
            self.teller.tell(News::Running { id: self.spec.id.clone(), at });
        }
    }

    /// When the guest was first entered, in microseconds since the Unix epoch.
    pub(crate) fn started_at(&self) -> Option<i64> {
        self.started_at.get().copied()
    }

    /// Tells the container to stop, or more strictly than before.
    pub(crate) fn stop(&self, stop: Stop) {
        self.stop.send_if_modified(|current| {
            let next = current.and(stop);
            let changed = next != *current;
            *current = next;
            changed
        });
    }

    /// What it has been told; changes can be awaited.
    pub(crate) fn stopping(&self) -> watch::Receiver<Stop> {
        self.stop.subscribe()
    }

    /// The port that the first socket handed over is for.
    pub(crate) fn handed_port(&self) -> Option<u16> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.first_port()
    }

    /// Closes the sockets that were handed over for it.
    pub(crate) fn release_ports(&self) {
        drop(self.claim.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    pub(crate) fn budget(&self) -> Budget {
        Budget::new(Arc::clone(&self.usage))
    }

    /// What an instance sees of the world, but for its arguments and streams:
    /// environment and directories. Its sockets are not wasmtime's.
    ///
    /// # Errors
    ///
    /// When a handed directory cannot be entered or opened any more.
    pub(crate) fn wasi(&self) -> wasmtime::Result<WasiCtxBuilder> {
        let mut wasi = WasiCtxBuilder::new();
        wasi.envs(&self.spec.env).allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
        wasi.max_random_size(DRAWN.into());
        if let Some(directory) = &self.spec.working_directory {
            wasi.initial_cwd(directory);
            // Preview 1 has no word for it; Go's runtime, like a shell, asks
            // this variable (Go, `syscall/fs_wasip1.go`).
            if !self.spec.env.iter().any(|(name, _)| name == "PWD") {
                wasi.env("PWD", directory);
            }
        }
        for (directory, preopen) in self.directories.iter().zip(&self.spec.preopens) {
            let rights = if preopen.writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
            within(directory, || wasi.preopened_dir(".", &preopen.guest_path, rights).map(drop))??;
        }
        Ok(wasi)
    }
}

/// Does something with a handed directory as the working directory.
///
/// wasmtime opens some things by path only, and this process has no paths: so
/// it stands in the directory for as long as that takes, and then in the empty
/// root again. One at a time, because all threads share the place.
///
/// # Errors
///
/// When the directory cannot be entered.
pub(crate) fn within<T>(directory: &impl AsFd, act: impl FnOnce() -> T) -> std::io::Result<T> {
    static PLACE: Mutex<()> = Mutex::new(());
    let _alone = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
    rustix::process::fchdir(directory)?;
    let done = act();
    rustix::process::chdir("/")?;
    Ok(done)
}

/// Microseconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn stops() -> impl Strategy<Value = Stop> {
        let base = Instant::now();
        prop_oneof![
            Just(Stop::No),
            (0_u64..100).prop_map(move |ms| Stop::By(base + Duration::from_millis(ms))),
            Just(Stop::Now),
            Just(Stop::Ended),
        ]
    }

    proptest! {
        #[test]
        fn a_later_request_never_gives_more_time(asked in prop::collection::vec(stops(), 0..20)) {
            let rank = |stop| match stop {
                Stop::No => 0,
                Stop::By(_) => 1,
                Stop::Now => 2,
                Stop::Ended => 3,
            };
            let mut in_force = Stop::No;
            for stop in asked {
                let next = in_force.and(stop);
                prop_assert!(rank(next) >= rank(in_force) && rank(next) >= rank(stop));
                if let (Stop::By(before), Stop::By(after)) = (in_force, next) {
                    prop_assert!(after <= before);
                }
                in_force = next;
            }
        }
    }
}
