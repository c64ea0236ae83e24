//! Work on the files of a pod's runs: one after the other, and none that nobody
//! waits for any more.
//!
//! A launch that is called off, because its sandbox died, may leave its work
//! behind on a thread. That must neither meet the work of the launch after it nor
//! come later and undo it.

use std::{
    future::pending,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::task::{JoinError, spawn_blocking};
use tokio_util::sync::CancellationToken;

/// Turns of one pod. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<()>>);

impl Turns {
    /// Does the work on a thread that may block, when all before it is done. Of
    /// work that has not begun when the future is dropped nothing is done.
    ///
    /// # Errors
    ///
    /// [`JoinError`] if the work panicked, or the runtime ends.
    pub(crate) async fn take<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let given_up = CancellationToken::new();
        let _guard = given_up.clone().drop_guard();
        let turns = Arc::clone(&self.0);
        let done = spawn_blocking(move || {
            let _alone = turns.lock().unwrap_or_else(PoisonError::into_inner);
            (!given_up.is_cancelled()).then(work)
        });
        match done.await? {
            Some(done) => Ok(done),
            // Nobody waits here any more.
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn work_that_was_given_up_meets_no_other() {
        let (turns, log) = (Turns::default(), Arc::new(Mutex::new(Vec::new())));
        let note = |what: &'static str| {
            let log = Arc::clone(&log);
            move || log.lock().unwrap().push(what)
        };
        let (begun, has_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let end = note("the first");
        let mut first = Box::pin(turns.take(move || {
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
            end();
        }));
        assert!(poll!(&mut first).is_pending());
        has_begun.recv().unwrap();
        let mut second = Box::pin(turns.take(note("the second")));
        assert!(poll!(&mut second).is_pending());
        // Both are called off: one in its midst, the other before its turn.
        drop((first, second));
        let mut third = Box::pin(turns.take(note("the third")));
        assert!(poll!(&mut third).is_pending());
        go_on.send(()).unwrap();
        third.await.unwrap();
        assert_eq!(*log.lock().unwrap(), ["the first", "the third"]);
    }
}
