//! What others ask of the pods: the server, the local socket, the command line.

use std::{sync::Arc, time::Duration};

use krustlet_model::{ContainerName, Grace, PodKey, PodUid};
use krustlet_protocol::ExecOutcome;
use tokio::sync::{mpsc, watch};

use crate::{
    outside::{ExecStreams, PodRuntime, Refused, VisitStreams},
    view::{PodStats, PodView, Views},
};

/// What may wait for the task: requests of people, one after the other.
pub(crate) const QUEUE: usize = 16;

/// What the task is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// A pod is to stop, and to stay.
    Stop {
        uid: PodUid,
        /// Its own period if none is given.
        grace: Option<Grace>,
    },
}

/// Asks for pods. Cheap to clone.
#[derive(Clone)]
pub struct Pods {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) views: Arc<Views>,
    pub(crate) runtime: Arc<dyn PodRuntime>,
}

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pods").finish_non_exhaustive()
    }
}

/// Why nothing could be asked of a container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum AskError {
    #[error("pod {key} does not exist")]
    NoPod { key: PodKey },

    #[error("pod {key} has no container {name:?}")]
    NoContainer { key: PodKey, name: String },

    #[error("container {name:?} of pod {key} is not running")]
    NotRunning { key: PodKey, name: ContainerName },

    #[error("pod {key} did not end: the agent is stopping")]
    Stopping { key: PodKey },

    #[error(transparent)]
    Refused(#[from] Refused),
}

impl Pods {
    /// Every pod of this node, also those that are over.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<PodView>> {
        self.views.all()
    }

    /// The pod of this name.
    #[must_use]
    pub fn get(&self, key: &PodKey) -> Option<Arc<PodView>> {
        self.views.get(key)
    }

    /// The pod of this uid.
    #[must_use]
    pub fn by_uid(&self, uid: &PodUid) -> Option<Arc<PodView>> {
        self.views.by_uid(uid)
    }

    /// Tells whenever a pod has become another one, or is gone.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.views.changes()
    }

    /// Runs a container's program once more, beside it, and waits for its end.
    /// Without a name, the pod's first container.
    ///
    /// # Errors
    ///
    /// [`AskError`] if there is no such container or it does not run.
    pub async fn exec(
        &self,
        key: &PodKey,
        container: Option<&str>,
        args: Vec<String>,
        streams: ExecStreams,
    ) -> Result<ExecOutcome, AskError> {
        let view = self.view(key)?;
        let found = view.container(container).ok_or_else(|| AskError::NoContainer {
            key: key.clone(),
            name: container.unwrap_or_default().to_owned(),
        })?;
        let Some(id) = found.id.clone().filter(|_| found.is_running) else {
            return Err(AskError::NotRunning { key: key.clone(), name: found.name.clone() });
        };
        Ok(self.runtime.exec(view.uid.clone(), id, args, streams).await?)
    }

    /// Connects to a port of a pod's own loopback; returns when it is connected.
    ///
    /// # Errors
    ///
    /// [`AskError::NoPod`]; [`AskError::Refused`] if nobody listens there.
    pub async fn connect(
        &self,
        key: &PodKey,
        port: u16,
        streams: VisitStreams,
    ) -> Result<(), AskError> {
        let view = self.view(key)?;
        Ok(self.runtime.connect(view.uid.clone(), port, streams).await?)
    }

    /// Stops a pod without removing it, giving it `grace` (whole seconds,
    /// rounded up, at least one) or its own period, and waits for its end. It is
    /// then `Failed` for good, whatever its restart policy; one that has ended
    /// already is left as it is.
    ///
    /// # Errors
    ///
    /// [`AskError::NoPod`]; [`AskError::Stopping`] if the agent stops first.
    pub async fn stop(&self, key: &PodKey, grace: Option<Duration>) -> Result<(), AskError> {
        // Before the view is read, lest a change be missed.
        let mut changes = self.views.changes();
        let uid = self.view(key)?.uid.clone();
        let stopping = || AskError::Stopping { key: key.clone() };
        let grace = grace.map(|grace| {
            let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
            Grace::from_seconds(i64::try_from(seconds).unwrap_or(i64::MAX))
        });
        let command = Command::Stop { uid: uid.clone(), grace };
        self.commands.send(command).await.map_err(|_| stopping())?;
        loop {
            if self.views.by_uid(&uid).is_none_or(|view| view.is_over) {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = self.commands.closed() => return Err(stopping()),
                told = changes.changed() => told.map_err(|_| stopping())?,
            }
        }
    }

    /// What each running container of every pod uses; none where that is not known
    /// because the sandbox did not answer. Pods without a running container are
    /// left out.
    pub async fn stats(&self) -> Vec<(Arc<PodView>, Option<PodStats>)> {
        let asked = self.views.all().into_iter().filter(|view| view.has_running());
        let asked: Vec<_> = asked.map(|view| view.uid.clone()).collect();
        // When the agent stops nothing is known.
        let mut reports = self.runtime.stats().await.unwrap_or_default();
        let of_pod = |uid: PodUid| {
            // A pod that has ended in this moment uses nothing.
            let view = self.views.by_uid(&uid).filter(|view| view.has_running())?;
            let named = reports.remove(&uid).map(|reports| view.named(reports));
            Some((view, named))
        };
        asked.into_iter().filter_map(of_pod).collect()
    }

    fn view(&self, key: &PodKey) -> Result<Arc<PodView>, AskError> {
        self.views.get(key).ok_or_else(|| AskError::NoPod { key: key.clone() })
    }
}
