//! Results of recent searches.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Results of recent searches, as long as the catalogue stays as it is; bounded in bytes, and the
/// one that was not asked for the longest goes first. Clones share them.
pub(in crate::store) struct Recent<K, V>(Arc<Mutex<Kept<K, V>>>);

struct Kept<K, V> {
    revision: i64,
    most_bytes: usize,
    bytes: usize,
    /// Counts uses.
    clock: u64,
    results: HashMap<K, Known<V>>,
    /// Which result was last used when.
    by_use: BTreeMap<u64, K>,
}

struct Known<V> {
    result: V,
    bytes: usize,
    used: u64,
}

impl<K, V> Clone for Recent<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Recent<K, V> {
    /// Keeps results of at most so many bytes altogether.
    pub(in crate::store) fn new(most_bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            revision: 0,
            most_bytes,
            bytes: 0,
            clock: 0,
            results: HashMap::new(),
            by_use: BTreeMap::new(),
        })))
    }

    fn kept(&self) -> MutexGuard<'_, Kept<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was kept for `wanted` at this revision of the catalogue.
    pub(in crate::store) fn get(&self, revision: i64, wanted: &K) -> Option<V> {
        let mut kept = self.kept();
        if kept.revision != revision {
            return None;
        }
        let kept = &mut *kept;
        let known = kept.results.get_mut(wanted)?;
        kept.clock += 1;
        let key = kept.by_use.remove(&known.used)?;
        kept.by_use.insert(kept.clock, key);
        known.used = kept.clock;
        Some(known.result.clone())
    }

    /// Whether anything is kept for `wanted`, of whatever revision.
    pub(in crate::store) fn knows(&self, wanted: &K) -> bool {
        self.kept().results.contains_key(wanted)
    }

    /// Keeps a result that takes so many bytes; a newer revision than that of the others drops
    /// these.
    pub(in crate::store) fn put(&self, revision: i64, wanted: K, result: V, bytes: usize) {
        let mut kept = self.kept();
        if revision < kept.revision || bytes > kept.most_bytes {
            return;
        }
        if revision > kept.revision {
            kept.revision = revision;
            kept.bytes = 0;
            kept.results.clear();
            kept.by_use.clear();
        }
        kept.clock += 1;
        let used = kept.clock;
        if let Some(old) = kept.results.insert(wanted.clone(), Known { result, bytes, used }) {
            kept.by_use.remove(&old.used);
            kept.bytes -= old.bytes;
        }
        kept.by_use.insert(used, wanted);
        kept.bytes += bytes;
        while kept.bytes > kept.most_bytes
            && let Some((_, key)) = kept.by_use.pop_first()
        {
            if let Some(dropped) = kept.results.remove(&key) {
                kept.bytes -= dropped.bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_was_not_asked_for_the_longest_goes_first() {
        let recent = Recent::new(100);
        recent.put(1, "a", 'a', 40);
        recent.put(1, "b", 'b', 40);
        assert_eq!(recent.get(1, &"a"), Some('a'));
        recent.put(1, "c", 'c', 40);
        assert_eq!(recent.get(1, &"b"), None);
        assert_eq!((recent.get(1, &"a"), recent.get(1, &"c")), (Some('a'), Some('c')));
        recent.put(1, "a", 'A', 60);
        assert_eq!((recent.get(1, &"a"), recent.get(1, &"c")), (Some('A'), Some('c')));
        recent.put(1, "huge", 'h', 101);
        assert!(!recent.knows(&"huge") && recent.knows(&"a"));
        let kept = recent.kept();
        assert_eq!((kept.bytes, kept.results.len(), kept.by_use.len()), (100, 2, 2));
    }

    #[test]
    fn a_result_holds_at_its_own_revision_only() {
        let recent = Recent::new(100);
        recent.put(2, "a", 'a', 1);
        assert_eq!((recent.get(1, &"a"), recent.get(3, &"a")), (None, None));
        recent.put(1, "a", 'x', 1);
        assert_eq!(recent.get(2, &"a"), Some('a'), "an older one changes nothing");
        recent.put(3, "b", 'b', 1);
        assert!(!recent.knows(&"a"));
        assert_eq!(recent.get(3, &"b"), Some('b'));
    }
}
