//! How many sockets a pod has open, and what went through them.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use super::{NetError, pace::Flow};

/// Of one pod. Bytes and connections on the private loopback are not counted:
/// they never were on the network.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sockets: AtomicU32,
    /// Who waits for a socket to be closed.
    waiting: Mutex<Vec<Waker>>,
    pub(super) received: Flow,
    pub(super) sent: Flow,
    pub(super) opened: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
}

impl Counters {
    pub(crate) fn sockets(&self) -> u32 {
        self.sockets.load(Relaxed)
    }

    pub(super) fn add(counter: &AtomicU64, more: usize) {
        counter.fetch_add(more as u64, Relaxed);
    }
}

/// The right to have one socket; given back with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Permit(Arc<One>);

#[derive(Debug)]
struct One(Arc<Counters>);

impl Permit {
    /// # Errors
    ///
    /// [`NetError::NewSocketLimit`] if there are `most` already.
    pub(super) fn new(counters: &Arc<Counters>, most: u32) -> Result<Self, NetError> {
        let more = |sockets| (sockets < most).then_some(sockets + 1);
        match counters.sockets.fetch_update(Relaxed, Relaxed, more) {
            Ok(_) => Ok(Self(Arc::new(One(Arc::clone(counters))))),
            Err(_) => Err(NetError::NewSocketLimit),
        }
    }

    /// As [`new`](Self::new), but waits for others to be closed.
    pub(super) fn poll_new(
        counters: &Arc<Counters>,
        most: u32,
        context: &Context<'_>,
    ) -> Poll<Self> {
        if let Ok(permit) = Self::new(counters, most) {
            return Poll::Ready(permit);
        }
        let mut waiting = counters.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        drop(waiting);
        // One may have been closed before it could see who waits.
        Self::new(counters, most).map_or(Poll::Pending, Poll::Ready)
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.0
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.sockets.fetch_sub(1, Relaxed);
        let waiting = {
            let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn there_are_never_more_than_the_limit_and_all_are_given_back(
            steps in prop::collection::vec(any::<Option<prop::sample::Index>>(), 0..80)
        ) {
            let counters = Arc::new(Counters::default());
            let mut permits = Vec::new();
            for step in steps {
                match step {
                    Some(which) if !permits.is_empty() => {
                        let index = which.index(permits.len());
                        drop(permits.swap_remove(index));
                    }
                    Some(_) | None => match Permit::new(&counters, 5) {
                        Ok(permit) => permits.push(permit),
                        Err(error) => {
                            prop_assert_eq!(error, NetError::NewSocketLimit);
                            prop_assert_eq!(permits.len(), 5);
                        }
                    },
                }
                prop_assert_eq!(counters.sockets() as usize, permits.len());
            }
        }
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_by_the_next_that_is_closed() {
        let counters = Arc::new(Counters::default());
        let first = Permit::new(&counters, 1).unwrap();
        let clone = first.clone();
        let waits = poll_fn(|context| Permit::poll_new(&counters, 1, context));
        let closes = async {
            drop(first);
            tokio::task::yield_now().await;
            assert_eq!(counters.sockets(), 1, "a clone is left");
            drop(clone);
        };
        let (second, ()) = tokio::join!(waits, closes);
        drop(second);
        assert_eq!(counters.sockets(), 0);
    }
}
