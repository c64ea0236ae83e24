//! Instances that could answer another request, and how one is handed to them.
//!
//! ```text
//!            ┌──────────hand──────────┐
//! busy ──▶ waiting ──▶ handed ──▶ busy
//!   ▲         │withdraw    │withdraw: what was handed comes back
//!   └─────────┴────────────┘
//! ```
//!
//! The one that began to wait last is handed the next: those that are not needed
//! for what is asked at present find out by waiting in vain, and end.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// The place of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place(u64);

/// The places of a server's instances. Its owner and all instances are on one
/// thread, which never waits for another.
#[derive(Debug)]
pub(super) struct Places<T>(Mutex<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    next: u64,
    /// The one that began last at the end.
    waiting: Vec<(Place, Waker)>,
    handed: HashMap<Place, T>,
    is_over: bool,
}

impl<T> Places<T> {
    pub(super) fn new() -> Self {
        let (waiting, handed) = (Vec::new(), HashMap::new());
        Self(Mutex::new(Inner { next: 0, waiting, handed, is_over: false }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One for a new instance.
    pub(super) fn place(&self) -> Place {
        let mut inner = self.lock();
        inner.next += 1;
        Place(inner.next)
    }

    /// Hands something to an instance that waits, or gives it back if none does.
    pub(super) fn hand(&self, what: T) -> Result<(), T> {
        let mut inner = self.lock();
        let Some((place, waker)) = inner.waiting.pop() else { return Err(what) };
        inner.handed.insert(place, what);
        drop(inner);
        waker.wake();
        Ok(())
    }

    /// Waits for what is handed; nothing once all is over. Who is asked no more
    /// must [`withdraw`](Self::withdraw).
    pub(super) fn poll(&self, place: Place, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut inner = self.lock();
        if let Some(what) = inner.handed.remove(&place) {
            return Poll::Ready(Some(what));
        }
        if inner.is_over {
            return Poll::Ready(None);
        }
        // The newest are asked most.
        match inner.waiting.iter_mut().rev().find(|(waiting, _)| *waiting == place) {
            Some((_, waker)) => waker.clone_from(context.waker()),
            None => inner.waiting.push((place, context.waker().clone())),
        }
        Poll::Pending
    }

    /// Waits no more. What was handed meanwhile comes back.
    pub(super) fn withdraw(&self, place: Place) -> Option<T> {
        let mut inner = self.lock();
        if let Some(at) = inner.waiting.iter().rposition(|(waiting, _)| *waiting == place) {
            inner.waiting.remove(at);
            return None;
        }
        inner.handed.remove(&place)
    }

    /// Nobody is to wait any more.
    pub(super) fn end(&self) {
        let mut inner = self.lock();
        inner.is_over = true;
        let waiting = std::mem::take(&mut inner.waiting);
        drop(inner);
        for (_, waker) in waiting {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn who_began_to_wait_last_is_handed_the_next() {
        let places = std::sync::Arc::new(Places::new());
        let mut instances = JoinSet::new();
        for _ in 0..3 {
            let (places, place) = (std::sync::Arc::clone(&places), places.place());
            instances.spawn(async move {
                (place, poll_fn(|context| places.poll(place, context)).await)
            });
            tokio::task::yield_now().await;
        }
        assert_eq!(places.hand("a"), Ok(()));
        assert_eq!(instances.join_next().await.unwrap().unwrap(), (Place(3), Some("a")));
        assert_eq!(places.hand("b"), Ok(()));
        assert_eq!(instances.join_next().await.unwrap().unwrap(), (Place(2), Some("b")));
        places.end();
        assert_eq!(instances.join_next().await.unwrap().unwrap(), (Place(1), None));
        assert_eq!(places.hand("c"), Err("c"));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Hand,
        Poll(u64),
        Withdraw(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Hand),
            (1_u64..4).prop_map(Step::Poll),
            (1_u64..4).prop_map(Step::Withdraw),
        ]
    }

    proptest! {
        #[test]
        fn what_is_handed_comes_out_once(steps in prop::collection::vec(step(), 0..60)) {
            let places = Places::new();
            let mut context = Context::from_waker(Waker::noop());
            let (mut sent, mut came) = (0, Vec::new());
            for step in steps {
                match step {
                    Step::Hand => {
                        if places.hand(sent).is_err() {
                            came.push(sent);
                        }
                        sent += 1;
                    }
                    Step::Poll(place) => {
                        if let Poll::Ready(what) = places.poll(Place(place), &mut context) {
                            came.push(what.unwrap());
                        }
                    }
                    Step::Withdraw(place) => came.extend(places.withdraw(Place(place))),
                }
            }
            for place in 1..4 {
                came.extend(places.withdraw(Place(place)));
            }
            prop_assert_eq!(places.hand(sent), Err(sent), "nobody waits any more");
            came.sort_unstable();
            prop_assert_eq!(came, (0..sent).collect::<Vec<_>>());
        }
    }
}
