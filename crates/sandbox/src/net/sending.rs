//! Tasks that send for a pod's guests what these have written, and how many of
//! them were left behind by guests that are gone.

use std::sync::{Mutex, PoisonError};

use tokio::{runtime::Handle, sync::watch, task::JoinSet};

/// See the module. The tasks end with it.
#[derive(Debug, Default)]
pub(super) struct Sending {
    tasks: Mutex<JoinSet<()>>,
    left: watch::Sender<usize>,
}

/// Counts one that was left behind, until it is dropped.
#[derive(Debug)]
pub(crate) struct Left(watch::Sender<usize>);

impl Sending {
    pub(super) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Without a runtime the process ends.
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &runtime);
    }

    pub(super) fn left(&self) -> Left {
        self.left.send_modify(|count| *count += 1);
        Left(self.left.clone())
    }

    pub(super) async fn none_left(&self) {
        // Closed never: the sender is here.
        let _ = self.left.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
