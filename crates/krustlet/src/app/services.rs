//! The built-in way to Services, if it is asked for: files that the agent keeps
//! and sandboxes read.

use anyhow::{Context as _, Result};
use krustlet_network::services::{self, ServicesState, ServicesTask};
use tokio::{sync::watch, task::spawn_blocking};

use crate::{cli::ServiceProxy, paths::Root};

/// Whether the files say all there is, and who keeps them.
pub(super) type ServiceFiles = (watch::Receiver<ServicesState>, ServicesTask);

/// Opens the files; none if pods are not led to Services here, and then none of
/// an earlier agent's are left.
///
/// # Errors
///
/// If the directory cannot be used.
pub(super) async fn open(proxy: ServiceProxy, root: &Root) -> Result<Option<ServiceFiles>> {
    let directory = root.services();
    let opened = spawn_blocking(move || match proxy {
        ServiceProxy::Builtin => services::open(directory).map(Some),
        ServiceProxy::None => services::forget(&directory).map(|()| None),
    });
    opened.await?.context("cannot prepare the way to Services")
}
