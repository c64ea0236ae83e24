//! What is kept of all objects of one kind, for those who look at all of them.
//!
//! Objects have much that nobody here looks at, and most changes are of that: what is
//! as it was is shown to nobody again, and stays the same value wherever it is looked
//! at, so that who has seen it may compare by address.

use std::{collections::BTreeMap, sync::Arc};

use krustlet_model::Chain;
use tokio::sync::watch;

use crate::feed::{Change, Holder};

/// All there are, in the order of their keys; None until the first full list has
/// arrived.
pub(crate) type All<Value> = Option<Arc<Vec<Arc<Value>>>>;

/// See the module.
pub(crate) struct Kept<K, Key, Value> {
    /// What cannot be followed, where that is so.
    what: &'static str,
    /// What counts of an object; nothing of one that is as good as none.
    read: fn(K) -> (Key, Option<Value>),
    shown: watch::Sender<All<Value>>,
    all: BTreeMap<Key, Arc<Value>>,
}

impl<K, Key, Value> std::fmt::Debug for Kept<K, Key, Value> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("what", &self.what).finish_non_exhaustive()
    }
}

impl<K, Key: Ord, Value: PartialEq> Kept<K, Key, Value> {
    pub(crate) fn new(
        what: &'static str,
        read: fn(K) -> (Key, Option<Value>),
    ) -> (watch::Receiver<All<Value>>, Self) {
        let (shown, all) = watch::channel(None);
        (all, Self { what, read, shown, all: BTreeMap::new() })
    }

    /// Keeps one, or lets it go; says whether anything is other than before.
    fn put(&mut self, key: Key, value: Option<Value>) -> bool {
        match value {
            Some(value) if self.all.get(&key).is_some_and(|known| **known == value) => false,
            Some(value) => {
                self.all.insert(key, Arc::new(value));
                true
            }
            None => self.all.remove(&key).is_some(),
        }
    }
}

impl<K, Key: Ord, Value: PartialEq> Holder<K> for Kept<K, Key, Value> {
    fn show(&mut self) {
        let all = self.all.values().cloned().collect();
        self.shown.send_replace(Some(Arc::new(all)));
    }

    fn take(&mut self, change: Change<K>) -> bool {
        match change {
            Change::Replaced(all) => {
                let mut before = std::mem::take(&mut self.all);
                for object in all {
                    let (key, value) = (self.read)(object);
                    if let Some((key, known)) = before.remove_entry(&key) {
                        self.all.insert(key, known);
                    }
                    self.put(key, value);
                }
                true
            }
            Change::Applied(object) => {
                let (key, value) = (self.read)(object);
                self.put(key, value)
            }
            Change::Removed(object) => {
                let (key, _) = (self.read)(object);
                self.put(key, None)
            }
            Change::Ended => false,
            Change::Interrupted(error) => {
                tracing::warn!(error = %Chain(&error), "cannot follow {}", self.what);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Objects with a number of which none is kept if it is odd.
    type Numbers = Kept<(u8, u8), u8, u8>;

    fn kept() -> (watch::Receiver<All<u8>>, Numbers) {
        Kept::new("numbers", |(name, number)| (name, (number % 2 == 0).then_some(number)))
    }

    #[test]
    fn what_is_as_it_was_is_the_same_value_and_shown_to_nobody_again() {
        let (shown, mut kept) = kept();
        assert!(shown.borrow().is_none());
        assert!(kept.take(Change::Replaced(vec![(1, 10), (3, 1), (2, 20)])));
        kept.show();
        let before = shown.borrow().clone().unwrap();
        assert_eq!(*before, [10, 20].map(Arc::new));
        assert!(!kept.take(Change::Applied((1, 10))));
        assert!(!kept.take(Change::Applied((3, 3))));
        assert!(!kept.take(Change::Removed((3, 3))));
        assert!(!kept.take(Change::Ended));
        assert!(kept.take(Change::Applied((2, 22))));
        assert!(kept.take(Change::Replaced(vec![(1, 10), (2, 22), (4, 40)])));
        kept.show();
        let after = shown.borrow().clone().unwrap();
        assert_eq!(*after, [10, 22, 40].map(Arc::new));
        assert!(Arc::ptr_eq(&before[0], &after[0]));
        assert!(kept.take(Change::Applied((1, 1))), "it is as good as gone");
        assert!(kept.take(Change::Removed((4, 40))));
        kept.show();
        assert_eq!(**shown.borrow().as_ref().unwrap(), [Arc::new(22)]);
    }
}
