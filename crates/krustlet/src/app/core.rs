//! What a node and a standalone agent have in common: images, compiled code,
//! sandboxes, and the pods' tasks on top of them.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use krustlet_compiler::{Artifacts, ArtifactsConfig, CompileLimits};
use krustlet_image::{Images, ImagesConfig, PullLimits, RegistryRules, VerificationPolicy};
use krustlet_network::{Mode, Network, NetworkConfig, Prepared, prepare};
use krustlet_runtime::{Adopted, Handover, Runtime, RuntimeConfig};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
};

use super::programs::LocalPrograms;
use crate::{
    paths::{Root, RootLock},
    supervise::Supervisor,
};

/// How long one task may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The lower half of an agent.
#[derive(Debug)]
pub(crate) struct Core {
    /// Owns the tasks.
    pub(crate) supervisor: Supervisor,
    /// Images on disk.
    pub(crate) images: Images,
    /// Compiled code.
    pub(crate) artifacts: Artifacts,
    /// Sandboxes.
    pub(crate) runtime: Runtime,
    /// Sandboxes of an earlier agent; to be taken by the pods.
    pub(crate) adopted: Vec<Adopted>,
    /// What was made ready of the pods' network.
    prepared: Option<Prepared>,
    _lock: RootLock,
}

/// What differs between agents.
#[derive(Debug)]
pub(crate) struct CoreConfig {
    /// Its directory, locked.
    pub(crate) root: Root,
    /// The lock, held until the agent ends.
    pub(crate) lock: RootLock,
    /// Whether pods may get addresses of their own.
    pub(crate) pod_network: Mode,
    /// The directory of Services, if pods are led to them by their sandboxes.
    pub(crate) services: Option<PathBuf>,
    /// How registries are reached.
    pub(crate) registries: RegistryRules,
    /// Images pulled at once.
    pub(crate) parallel_pulls: usize,
    /// Which images pods get without being verified.
    pub(crate) verification: VerificationPolicy,
    /// Log files of one container, at least 2.
    pub(crate) log_files: usize,
}

impl Core {
    /// Opens what is on disk, starts or adopts the zygote and the sandboxes.
    ///
    /// # Errors
    ///
    /// Names the directory or process that is at fault.
    pub(crate) async fn open(config: CoreConfig) -> Result<Self> {
        let CoreConfig {
            root,
            lock,
            pod_network,
            services,
            registries,
            parallel_pulls,
            verification,
            log_files,
        } = config;
        let mut supervisor = Supervisor::default();
        let (namespace, state) = (root.pod_namespace(), root.runtime());
        let living = move || krustlet_runtime::namespace_of_pods(&state);
        let prepared = spawn_blocking(move || prepare(pod_network, namespace, living)).await??;
        raise_descriptor_limit();
        // The zygote comes first: nothing secret has been read yet.
        let mut zygote = RuntimeConfig::new(root.runtime(), own_command("zygote"));
        zygote.log_files = log_files;
        zygote.services = services;
        zygote.pod_namespace = prepared.namespace().map(|namespace| namespace.path().to_owned());
        if !rustix::process::geteuid().is_root() {
            tracing::warn!(
                "not root: a program that breaks out of WebAssembly is not kept from the files \
                 beside those that were handed to it"
            );
            zygote.handover = Handover::Plain;
        }
        let (runtime, task, adopted) =
            krustlet_runtime::open(zygote).await.context("cannot start the sandboxes")?;
        supervisor.start("runtime", |stop| task.run(stop));

        let (images, task) = krustlet_image::open(ImagesConfig {
            root: root.images(),
            docker_config: docker_config(),
            registries,
            limits: PullLimits { parallel: parallel_pulls, ..PullLimits::default() },
            verification,
        })
        .context("cannot open the image store")?;
        supervisor.start("images", |stop| task.run(stop));

        let (artifacts, task) = krustlet_compiler::open(ArtifactsConfig {
            root: root.artifacts(),
            command: own_command("compile"),
            limits: CompileLimits::default(),
        })
        .context("cannot open the store of compiled code")?;
        supervisor.start("artifacts", |stop| task.run(stop));
        let prepared = Some(prepared);
        Ok(Self { supervisor, images, artifacts, runtime, adopted, prepared, _lock: lock })
    }

    /// Opens the pods' network and keeps it. Once.
    ///
    /// # Errors
    ///
    /// If the agent's directory cannot be used.
    pub(crate) async fn network(&mut self, config: NetworkConfig) -> Result<Network> {
        let prepared = self.prepared.take().context("the network is open already")?;
        let opened = spawn_blocking(move || krustlet_network::open(config, prepared)).await?;
        let (network, task) = opened.context("cannot open the pods' network")?;
        self.supervisor.start("network", |stop| task.run(stop));
        Ok(network)
    }

    /// Programs for pods.
    pub(crate) fn programs(&self) -> Arc<LocalPrograms> {
        Arc::new(LocalPrograms { images: self.images.clone(), artifacts: self.artifacts.clone() })
    }

    /// Runs until `done` resolves or a task ends unasked; then stops in order.
    /// Sandboxes go on.
    ///
    /// # Errors
    ///
    /// If a task ended unasked.
    pub(crate) async fn run(mut self, done: impl Future<Output = ()>) -> Result<()> {
        let died = tokio::select! {
            // Both are cancel-safe.
            () = done => None,
            (name, panic) = self.supervisor.first_to_end() => Some((name, panic)),
        };
        for name in self.supervisor.stop(STOP_LIMIT).await {
            tracing::warn!(task = name, "a task did not end in time and was aborted");
        }
        match died {
            None => Ok(()),
            Some((name, Some(panic))) => bail!("task {name} failed: {panic}"),
            Some((name, None)) => bail!("task {name} ended unasked"),
        }
    }
}

/// Resolves when SIGTERM or SIGINT comes; they are caught from now on.
///
/// # Errors
///
/// If the signals cannot be caught.
pub(crate) fn until_signal() -> Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            // Both are cancel-safe.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Raises the soft limit on open files to the hard one, for the agent (two per
/// pod) and for the zygote, whose sandboxes inherit it (one per connection).
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files stays low: fewer pods and connections fit");
    }
}

/// This program, with another first argument. `/proc/self/exe` stays the same
/// file when a newer version takes its place on disk.
fn own_command(name: &str) -> Vec<OsString> {
    vec!["/proc/self/exe".into(), name.into()]
}

/// The Docker client's file, for credentials.
pub(crate) fn docker_config() -> Option<PathBuf> {
    let directory = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")))?;
    Some(directory.join("config.json")).filter(|path| path.is_file())
}
