//! Owns every long-lived task: starts them, notices when one ends, and stops
//! them last-started first, so that each outlives those that use it.

use std::time::Duration;

use tokio::{
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// The tasks of one agent.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

impl Supervisor {
    /// Starts a task. It must end soon after its token is cancelled.
    pub(crate) fn start<F>(&mut self, name: &'static str, run: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "the one place that may spawn")]
        let handle = tokio::spawn(run(stop.clone()));
        self.running.push(Running { name, stop, handle });
    }

    /// Waits until a task ends that nobody stopped; tells its name, and the
    /// panic if it was one. Cancel-safe: nothing is taken until it has ended.
    pub(crate) async fn first_to_end(&mut self) -> (&'static str, Option<JoinError>) {
        std::future::poll_fn(|context| {
            for index in 0..self.running.len() {
                let handle = std::pin::Pin::new(&mut self.running[index].handle);
                if let std::task::Poll::Ready(result) = handle.poll(context) {
                    // Its handle must not be polled again.
                    let ended = self.running.remove(index);
                    return std::task::Poll::Ready((ended.name, result.err()));
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Stops every task, giving each `limit`; returns those that overran it
    /// and were aborted.
    pub(crate) async fn stop(mut self, limit: Duration) -> Vec<&'static str> {
        let mut overran = Vec::new();
        while let Some(mut task) = self.running.pop() {
            task.stop.cancel();
            if timeout(limit, &mut task.handle).await.is_err() {
                task.handle.abort();
                overran.push(task.name);
            }
        }
        overran
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tasks_end_in_reverse_order() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut supervisor = Supervisor::default();
        for name in ["first", "second", "third"] {
            let order = Arc::clone(&order);
            supervisor.start(name, |stop| async move {
                stop.cancelled().await;
                order.lock().unwrap().push(name);
            });
        }
        assert!(supervisor.stop(Duration::from_secs(1)).await.is_empty());
        assert_eq!(*order.lock().unwrap(), ["third", "second", "first"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_will_not_end_is_named_and_aborted() {
        let mut supervisor = Supervisor::default();
        supervisor.start("deaf", |_| std::future::pending());
        assert_eq!(supervisor.stop(Duration::from_secs(1)).await, ["deaf"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_noticed() {
        let mut supervisor = Supervisor::default();
        supervisor.start("calm", |stop| async move { stop.cancelled().await });
        supervisor.start("broken", |_| async { panic!("on purpose") });
        let (name, panic) = supervisor.first_to_end().await;
        assert_eq!(name, "broken");
        assert!(panic.is_some_and(|error| error.is_panic()));
        supervisor.stop(Duration::from_secs(1)).await;
    }
}
