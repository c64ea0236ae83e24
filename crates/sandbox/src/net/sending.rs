//! Tasks that send for a pod's guests what these have written, and how many of
//! them the guests of each container have left behind.

use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::{runtime::Handle, sync::watch, task::JoinSet};

/// The tasks of a pod, which end with it.
#[derive(Debug, Default)]
pub(super) struct Sending(Mutex<JoinSet<()>>);

/// How many were left behind by one container. Made by the first.
#[derive(Debug, Default)]
pub(super) struct Behind(OnceLock<watch::Sender<usize>>);

/// Counts one that was left behind, until it is dropped.
#[derive(Debug)]
pub(crate) struct Left(watch::Sender<usize>);

impl Sending {
    pub(super) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Without a runtime the process ends.
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &runtime);
    }
}

impl Behind {
    pub(super) fn one(&self) -> Left {
        let count = self.0.get_or_init(watch::Sender::default);
        count.send_modify(|count| *count += 1);
        Left(count.clone())
    }

    pub(super) async fn none(&self) {
        if let Some(count) = self.0.get() {
            // Closed never: the sender is here.
            let _ = count.subscribe().wait_for(|count| *count == 0).await;
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
