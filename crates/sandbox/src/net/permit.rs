//! How many sockets a pod has open, and what went through them.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use super::{NetError, pace::Flow, refused::Refused};

/// Of one pod. Bytes and connections on the private loopback are not counted:
/// they never were on the network.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sockets: AtomicU32,
    /// Who waits for a socket to be closed; none twice.
    waiting: Mutex<Vec<Weak<Waiter>>>,
    pub(super) received: Flow,
    pub(super) sent: Flow,
    pub(super) opened: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) refused: Refused,
}

impl Counters {
    pub(crate) fn sockets(&self) -> u32 {
        self.sockets.load(Relaxed)
    }

    /// Has all look again who wait for a socket.
    pub(super) fn wake_waiting(&self) {
        let waiting = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *waiting)
        };
        for waiter in waiting.iter().filter_map(Weak::upgrade) {
            waiter.wake();
        }
    }

    pub(super) fn add(counter: &AtomicU64, more: usize) {
        counter.fetch_add(more as u64, Relaxed);
    }
}

/// Somebody who may wait for a socket: one place in the queue, however many tasks
/// wait for him one after the other.
#[derive(Debug, Default)]
pub(super) struct Waiter(Mutex<Option<Waker>>);

impl Waiter {
    /// Whether he is in the queue: he waits, and nobody has woken him.
    pub(super) fn is_waiting(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whoever waits is woken; nobody is from now on.
    fn wake(&self) {
        let waker = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
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

    /// As [`new`](Self::new), but waits for others to be closed, or for `most` to say
    /// more.
    pub(super) fn poll_new(
        counters: &Arc<Counters>,
        most: impl Fn() -> u32,
        waiter: &Arc<Waiter>,
        context: &Context<'_>,
    ) -> Poll<Self> {
        if let Ok(permit) = Self::new(counters, most()) {
            return Poll::Ready(permit);
        }
        let waker = context.waker().clone();
        let before = waiter.0.lock().unwrap_or_else(PoisonError::into_inner).replace(waker);
        // With a waker he is in the queue.
        if before.is_none() {
            let mut waiting = counters.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|other| other.strong_count() > 0);
            waiting.push(Arc::downgrade(waiter));
        }
        // One may have been closed before it could see who waits, or there may be more.
        Self::new(counters, most()).map_or(Poll::Pending, Poll::Ready)
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.0
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.sockets.fetch_sub(1, Relaxed);
        self.0.wake_waiting();
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
        let waiter = Arc::default();
        let waits = poll_fn(|context| Permit::poll_new(&counters, || 1, &waiter, context));
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

    #[tokio::test]
    async fn who_begins_to_wait_as_more_are_allowed_has_one_of_them() {
        let counters = Arc::new(Counters::default());
        let _first = Permit::new(&counters, 1).unwrap();
        let (waiter, looks) = (Arc::default(), AtomicU32::new(0));
        // Whoever allows more wakes those who wait, and this one does not yet.
        let most = || 1 + looks.fetch_add(1, Relaxed);
        let noop = &Context::from_waker(Waker::noop());
        assert!(Permit::poll_new(&counters, most, &waiter, noop).is_ready());
    }

    #[tokio::test]
    async fn who_waits_again_and_again_waits_once() {
        let counters = Arc::new(Counters::default());
        let first = Permit::new(&counters, 1).unwrap();
        let waiter = Arc::default();
        let waits = || poll_fn(|context| Permit::poll_new(&counters, || 1, &waiter, context));
        let length = || counters.waiting.lock().unwrap().len();
        for _ in 0..10 {
            // Another task each time, which gives up.
            let waiting = async { tokio::time::timeout(std::time::Duration::ZERO, waits()).await };
            assert!(waiting.await.is_err());
            assert_eq!(length(), 1);
        }
        let (second, ()) = tokio::join!(waits(), async { drop(first) });
        assert_eq!(length(), 0);
        drop(second);
    }
}
