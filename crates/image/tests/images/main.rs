//! The image store against registries that behave and registries that do not.

#![expect(clippy::unwrap_used, reason = "what the tests stand on fails them where it fails")]

mod fetching;
mod formats;
mod kept;
mod logins;
mod pushing;
mod registry;
mod rights;
mod tls;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use krustlet_image::{
    Asker, Content, Credential, Ensured, ImageRequest, Images, ImagesConfig, PullError, PullLimits,
    PullPolicy, RegistryRules, VerificationPolicy, open,
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The smallest module.
pub(crate) const MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// A store in a directory of its own, with its task running.
pub(crate) struct Bench {
    pub(crate) images: Images,
    pub(crate) directory: TempDir,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut ImagesConfig)) -> Self {
        Self::at(tempfile::tempdir().unwrap(), change)
    }

    pub(crate) fn at(directory: TempDir, change: impl FnOnce(&mut ImagesConfig)) -> Self {
        let mut config = config(directory.path());
        change(&mut config);
        let (images, task) = open(config).unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run(stop.clone()));
        Self { images, directory, stop, tasks }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// Stops the task and gives the directory back.
    pub(crate) async fn stop(mut self) -> TempDir {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.directory
    }

    pub(crate) async fn ensure(
        &self,
        reference: &str,
        policy: PullPolicy,
    ) -> Result<Ensured, PullError> {
        self.ensure_as(reference, policy, Vec::new()).await
    }

    pub(crate) async fn pull(&self, reference: &str) -> Result<Ensured, PullError> {
        self.ensure(reference, PullPolicy::IfNotPresent).await
    }

    pub(crate) async fn ensure_as(
        &self,
        reference: &str,
        policy: PullPolicy,
        credentials: Vec<Credential>,
    ) -> Result<Ensured, PullError> {
        let request = ImageRequest {
            asker: Asker::Pod,
            reference: reference.to_owned(),
            policy,
            credentials,
        };
        soon(self.images.ensure(request)).await
    }

    /// Files below a folder of the store, at any depth.
    pub(crate) fn files(&self, folder: &str) -> Vec<PathBuf> {
        files(&self.root().join(folder))
    }
}

pub(crate) fn config(directory: &Path) -> ImagesConfig {
    ImagesConfig {
        root: directory.join("store"),
        docker_config: None,
        registries: RegistryRules::default(),
        limits: PullLimits {
            backoff: Duration::from_millis(1),
            backoff_limit: Duration::from_secs(5),
            ..PullLimits::default()
        },
        verification: VerificationPolicy::default(),
    }
}

pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// A test that hangs must fail here, by name, not in the runner's limit.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(1), work).await.expect("an answer within a minute")
}

/// Waits until something is true.
pub(crate) async fn until(mut is_true: impl FnMut() -> bool) {
    soon(async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// The program of an image of one.
pub(crate) fn program(ensured: &Ensured) -> Vec<u8> {
    let Content::Module { path, digest } = &ensured.image.content else { panic!("not a module") };
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(krustlet_image::Digest::of(&bytes).to_string(), *digest);
    bytes
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
