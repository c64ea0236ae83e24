//! Which events are told, and which only count up an earlier one. Pure.
//!
//! The same words again count up the event that said them first. Ten different
//! messages for one reason within ten minutes become one event. And an object
//! that still has too much to say is cut off: 25 events at once, then one every
//! five minutes. Source: client-go, `tools/record/events_cache.go`.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

use super::{About, EventType, Recorded};

/// Objects, reasons and events remembered, each. Source: `maxLruCacheEntries`.
const REMEMBERED: usize = 4096;

/// Different messages for one reason before they are combined.
/// Source: `defaultAggregateMaxEvents`.
const MOST_SIMILAR: usize = 10;

/// Silence after which similar events are counted anew.
/// Source: `defaultAggregateIntervalInSeconds`.
const SIMILAR_FOR: Duration = Duration::from_mins(10);

/// Events one object may tell at once, and how long until it may tell one more.
/// Source: `defaultSpamBurst`, `defaultSpamQPS`.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_mins(5);

/// What to tell the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Say {
    /// A new event.
    New { key: Key, message: String },
    /// An earlier one once more.
    Again { key: Key, told: Told, message: String },
}

impl Say {
    /// The same as a new event.
    pub(super) fn anew(self) -> Self {
        match self {
            Self::New { key, message } | Self::Again { key, message, .. } => {
                Self::New { key, message }
            }
        }
    }

    pub(super) fn into_key(self) -> Key {
        match self {
            Self::New { key, .. } | Self::Again { key, .. } => key,
        }
    }
}

/// What makes two events the same. None for a message: any of many similar ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    similar: SimilarKey,
    message: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SimilarKey {
    about: About,
    kind: EventType,
    reason: String,
}

/// An event at the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) name: String,
    pub(super) count: i32,
}

#[derive(Debug)]
struct Similar {
    messages: HashSet<String>,
    last: Instant,
}

#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Instant,
}

/// What has been told, and how much of it.
#[derive(Debug, Default)]
pub(super) struct Correlator {
    told: Recent<Key, Told>,
    similar: Recent<SimilarKey, Similar>,
    allowances: Recent<About, Allowance>,
}

impl Correlator {
    /// What to tell of an event; None if nothing.
    pub(super) fn decide(&mut self, event: &Recorded, now: Instant) -> Option<Say> {
        // An object stays the same when its version moves on.
        let about = About { resource_version: None, ..event.about.clone() };
        let (key, message) = self.combine(&about, event, now);
        let object = About { field_path: None, ..about };
        if !self.allow(object, now) {
            return None;
        }
        Some(match self.told.get(&key, now) {
            Some(told) => Say::Again { told: told.clone(), key, message },
            None => Say::New { key, message },
        })
    }

    /// Remembers that an event is at the server.
    pub(super) fn told(&mut self, key: Key, told: Told, now: Instant) {
        self.told.put(key, told, now);
    }

    /// The key and the message of an event, or of the one it is combined into.
    fn combine(&mut self, about: &About, event: &Recorded, now: Instant) -> (Key, String) {
        let similar =
            SimilarKey { about: about.clone(), kind: event.kind, reason: event.reason.clone() };
        let known = self
            .similar
            .get_or_put(&similar, now, || Similar { messages: HashSet::new(), last: now });
        if now.duration_since(known.last) > SIMILAR_FOR {
            known.messages.clear();
        }
        known.last = now;
        if known.messages.len() + 1 < MOST_SIMILAR || known.messages.contains(&event.message) {
            known.messages.insert(event.message.clone());
            let message = event.message.clone();
            (Key { similar, message: Some(message.clone()) }, message)
        } else {
            let message = format!("(combined from similar events): {}", event.message);
            (Key { similar, message: None }, message)
        }
    }

    fn allow(&mut self, object: About, now: Instant) -> bool {
        let allowance =
            self.allowances.get_or_put(&object, now, || Allowance { left: BURST, since: now });
        let earned = now.duration_since(allowance.since).as_secs() / REFILL.as_secs();
        let earned = u32::try_from(earned).unwrap_or(BURST);
        allowance.left = allowance.left.saturating_add(earned).min(BURST);
        allowance.since += REFILL * earned;
        if allowance.left == 0 {
            return false;
        }
        allowance.left -= 1;
        true
    }
}

/// A map of the most recently used.
#[derive(Debug)]
struct Recent<K, V> {
    entries: HashMap<K, (V, Instant)>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    fn get(&mut self, key: &K, now: Instant) -> Option<&V> {
        let (value, used) = self.entries.get_mut(key)?;
        *used = now;
        Some(value)
    }

    fn get_or_put(&mut self, key: &K, now: Instant, make: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(key) {
            self.make_room();
        }
        let (value, used) = self.entries.entry(key.clone()).or_insert_with(|| (make(), now));
        *used = now;
        value
    }

    fn put(&mut self, key: K, value: V, now: Instant) {
        if !self.entries.contains_key(&key) {
            self.make_room();
        }
        self.entries.insert(key, (value, now));
    }

    /// When full, the less recently used half goes: rare, and cheap per entry.
    fn make_room(&mut self) {
        if self.entries.len() < REMEMBERED {
            return;
        }
        let mut times: Vec<_> = self.entries.values().map(|(_, used)| *used).collect();
        let middle = times.len() / 2;
        let (_, median, _) = times.select_nth_unstable(middle);
        let median = *median;
        self.entries.retain(|_, (_, used)| *used > median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn about(name: &str) -> About {
        About {
            kind: "Pod",
            namespace: "ns".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-of-{name}"),
            resource_version: None,
            field_path: None,
        }
    }

    fn event(name: &str, message: &str) -> Recorded {
        Recorded {
            about: about(name),
            kind: EventType::Warning,
            reason: "BackOff".to_owned(),
            message: message.to_owned(),
            at: Timestamp::UNIX_EPOCH,
            from: Instant::now(),
        }
    }

    fn tell(correlator: &mut Correlator, event: &Recorded, now: Instant) -> Option<(Told, String)> {
        let say = correlator.decide(event, now)?;
        let (told, message) = match &say {
            Say::New { message, .. } => (Told { name: "new".to_owned(), count: 1 }, message),
            Say::Again { told, message, .. } => {
                (Told { name: told.name.clone(), count: told.count + 1 }, message)
            }
        };
        let message = message.clone();
        correlator.told(say.into_key(), told.clone(), now);
        Some((told, message))
    }

    #[test]
    fn the_same_words_count_up_the_first_event() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        for count in 1..=20 {
            let (told, _) = tell(&mut correlator, &event("a", "same"), now).unwrap();
            assert_eq!(told.count, count);
        }
    }

    #[test]
    fn many_similar_messages_become_one_event() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let told: Vec<_> = (0..15)
            .filter_map(|n| tell(&mut correlator, &event("a", &format!("message {n}")), now))
            .collect();
        assert!(told[..9].iter().all(|(told, _)| told.count == 1));
        assert_eq!(told[9].1, "(combined from similar events): message 9");
        assert_eq!(told[14].0.count, 6);
        let later = now + SIMILAR_FOR + REFILL;
        assert_eq!(tell(&mut correlator, &event("a", "other"), later).unwrap().1, "other");
    }

    #[test]
    fn a_noisy_object_is_cut_off_and_others_are_not() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let told = (0..100).filter_map(|_| tell(&mut correlator, &event("a", "x"), now)).count();
        assert_eq!(told, 25);
        assert!(tell(&mut correlator, &event("b", "x"), now).is_some());
        assert!(tell(&mut correlator, &event("a", "x"), now + REFILL).is_some());
        assert!(tell(&mut correlator, &event("a", "x"), now + REFILL).is_none());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut correlator = Correlator::default();
        let start = Instant::now();
        for n in 0..3 * REMEMBERED as u64 {
            let now = start + Duration::from_millis(n);
            tell(&mut correlator, &event(&format!("pod-{n}"), "x"), now);
        }
        assert!(correlator.told.entries.len() <= REMEMBERED);
        assert!(correlator.allowances.entries.len() <= REMEMBERED);
    }
}
