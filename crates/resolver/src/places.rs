//! How many look-ups are under way at once, where that number may change.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Places for look-ups.
#[derive(Debug)]
pub(crate) struct Places {
    free: Semaphore,
    bound: Mutex<Bound>,
}

#[derive(Debug)]
struct Bound {
    most: usize,
    /// Places that are taken and are not to be free again: there were more once.
    owed: usize,
}

/// One place; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// Taken by the end only.
    permit: Option<SemaphorePermit<'a>>,
    places: &'a Places,
}

impl Places {
    /// So many, at least one.
    pub(crate) fn new(most: u32) -> Self {
        let most = number(most);
        Self { free: Semaphore::new(most), bound: Mutex::new(Bound { most, owed: 0 }) }
    }

    fn bound(&self) -> MutexGuard<'_, Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there are so many. What is under way goes on.
    pub(crate) fn set(&self, most: u32) {
        let (most, mut bound) = (number(most), self.bound());
        if most > bound.most {
            let more = most - bound.most;
            let paid = more.min(bound.owed);
            bound.owed -= paid;
            self.free.add_permits(more - paid);
        } else {
            let fewer = bound.most - most;
            bound.owed += fewer - self.free.forget_permits(fewer);
        }
        bound.most = most;
    }

    /// Waits until one is free.
    pub(crate) async fn take(&self) -> Place<'_> {
        // The semaphore is closed never: it lives as long as this.
        Place { permit: self.free.acquire().await.ok(), places: self }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        // Both while the number cannot change.
        let mut bound = self.places.bound();
        if bound.owed > 0 {
            bound.owed -= 1;
            permit.forget();
        } else {
            drop(permit);
        }
    }
}

fn number(most: u32) -> usize {
    usize::try_from(most).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS)
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Poll};

    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    /// Takes one if it is free.
    fn try_take(places: &Places) -> Option<Place<'_>> {
        places.take().now_or_never()
    }

    proptest! {
        #[test]
        fn none_is_taken_beyond_the_number_of_the_day_and_all_come_back(
            steps in prop::collection::vec((0_u8..3, 1_u32..6), 0..60)
        ) {
            let (places, mut most) = (Places::new(3), 3);
            let mut taken = Vec::new();
            for (what, number) in steps {
                match what {
                    0 => {
                        most = usize::try_from(number).unwrap();
                        places.set(number);
                    }
                    1 if !taken.is_empty() => drop(taken.remove(0)),
                    _ => {
                        let before = taken.len();
                        taken.extend(try_take(&places));
                        prop_assert_eq!(taken.len() > before, before < most);
                    }
                }
            }
            taken.clear();
            prop_assert_eq!(places.free.available_permits(), most);
        }
    }

    #[test]
    fn who_waits_has_a_place_as_soon_as_there_are_more() {
        let places = Places::new(1);
        let _first = try_take(&places).unwrap();
        let mut waits = pin!(places.take());
        let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waits.as_mut().poll(context).is_pending());
        places.set(2);
        assert!(matches!(waits.as_mut().poll(context), Poll::Ready(_)));
    }
}
