//! Which content is in use, so that nothing in use is ever deleted.
//!
//! One map behind a lock, shared by the store and every [`Lease`]: a lease ends
//! wherever its last holder drops it, and cannot wait for a task there. The lock is
//! held for map operations and, in [`Holds::if_free`], for one rename; never
//! across an await.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use crate::digest::Digest;

/// A piece of stored content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ContentKey {
    /// One file.
    Blob(Digest),
    /// An unpacked root file system, by the digest of its image's manifest.
    Root(Digest),
}

/// Keeps an image's content on disk for as long as any clone of it lives.
///
/// [`Lease::default`] keeps nothing; it is for images that are not from a store.
#[derive(Clone, Debug, Default)]
pub struct Lease(Option<Arc<Held>>);

impl Lease {
    /// The remembered digest of a program inside the content.
    pub(crate) fn known_program(&self, path: &Path) -> Option<String> {
        let held = self.0.as_ref()?;
        lock(&held.programs).get(path).cloned()
    }

    /// Remembers the digest of a program. Content never changes, so it stays true.
    pub(crate) fn remember_program(&self, path: &Path, digest: &str) {
        if let Some(held) = &self.0 {
            lock(&held.programs).insert(path.to_owned(), digest.to_owned());
        }
    }
}

/// One held piece; its last clone's end frees the content.
struct Held {
    key: ContentKey,
    holds: Arc<Holds>,
    /// Digests of the programs that were asked for, at most one entry a file.
    programs: Mutex<HashMap<PathBuf, String>>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({:?})", self.key)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = lock(&self.holds.held);
        // A new lease may have taken this one's place already.
        if held.get(&self.key).is_some_and(|weak| weak.strong_count() == 0) {
            held.remove(&self.key);
        }
        drop(held);
        self.holds.freed.notify_one();
    }
}

/// All leases of one store.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    held: Mutex<HashMap<ContentKey, Weak<Held>>>,
    /// Told each time content may have become free.
    pub freed: Notify,
}

impl Holds {
    /// Holds a piece of content, whether or not it is there yet.
    pub(crate) fn take(self: &Arc<Self>, key: &ContentKey) -> Lease {
        let mut held = lock(&self.held);
        if let Some(lease) = held.get(key).and_then(Weak::upgrade) {
            return Lease(Some(lease));
        }
        let lease = Arc::new(Held {
            key: key.clone(),
            holds: Arc::clone(self),
            programs: Mutex::default(),
        });
        held.insert(key.clone(), Arc::downgrade(&lease));
        Lease(Some(lease))
    }

    pub(crate) fn is_held(&self, key: &ContentKey) -> bool {
        lock(&self.held).get(key).is_some_and(|weak| weak.strong_count() > 0)
    }

    /// Runs `action` if nobody holds `key`; nobody can take it meanwhile.
    pub(crate) fn if_free<T>(&self, key: &ContentKey, action: impl FnOnce() -> T) -> Option<T> {
        let held = lock(&self.held);
        let is_held = held.get(key).is_some_and(|weak| weak.strong_count() > 0);
        (!is_held).then(action)
    }
}

/// The maps behind these locks are whole after every statement, so a panic elsewhere
/// while one was held leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_free_when_the_last_lease_ends() {
        let holds = Arc::new(Holds::default());
        let key = ContentKey::Blob(Digest::of(b"a"));
        let first = holds.take(&key);
        let second = holds.take(&key).clone();
        drop(first);
        assert!(holds.is_held(&key));
        assert_eq!(holds.if_free(&key, || ()), None);
        drop(second);
        assert!(!holds.is_held(&key));
        assert_eq!(holds.if_free(&key, || ()), Some(()));
    }

    #[test]
    fn leases_of_one_content_share_what_is_known_of_it() {
        let holds = Arc::new(Holds::default());
        let key = ContentKey::Root(Digest::of(b"a"));
        let (first, second) = (holds.take(&key), holds.take(&key));
        first.remember_program(Path::new("/app.wasm"), "sha256:x");
        assert_eq!(second.known_program(Path::new("/app.wasm")).as_deref(), Some("sha256:x"));
        Lease::default().remember_program(Path::new("/app.wasm"), "sha256:x");
        assert_eq!(Lease::default().known_program(Path::new("/app.wasm")), None);
    }
}
