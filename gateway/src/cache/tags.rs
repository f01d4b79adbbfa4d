//! Tags of cached responses, such as `spot:42`, by which they are invalidated.
//!
//! A tag has an epoch, which an invalidation raises. A cached response remembers its tags' epochs of the
//! moment when its request began, and is of no use once one of them has changed. So a response that a
//! service computed before a change is never served after the gateway has heard of the change, not even
//! if it arrives later.
//!
//! Tags share a fixed number of epochs by their hash. Two tags may share one: then a response is
//! invalidated too often, never too rarely. Memory does not depend on the number of tags.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tourin_chassis::invalidation::EVERYTHING;
use tourin_chassis::metrics::Counter;

/// Number of epochs: with 10,000 different tags in use an invalidation takes one other tag's responses
/// along in about half of all cases.
const EPOCHS: usize = 16_384;

/// The epochs of all tags. Clones share them.
#[derive(Debug, Clone)]
pub struct CacheTags {
    epochs: Arc<[AtomicU32]>,
    /// Raised when all tags are invalidated.
    all: Arc<AtomicU64>,
    hasher: RandomState,
    invalidations: Counter,
}

/// The epochs of a request's tags when it began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagEpochs {
    all: u64,
    of_tags: Box<[(u16, u32)]>,
}

impl CacheTags {
    /// New tags. Counts invalidations.
    pub fn new(invalidations: Counter) -> Self {
        Self {
            epochs: (0..EPOCHS).map(|_| AtomicU32::new(0)).collect(),
            all: Arc::default(),
            hasher: RandomState::new(),
            invalidations,
        }
    }

    fn index(&self, tag: &str) -> u16 {
        // There are fewer epochs than u16 has values.
        (self.hasher.hash_one(tag) % EPOCHS as u64) as u16
    }

    /// What was cached with this tag is of no use any more; with [`EVERYTHING`], whatever has a tag.
    pub fn invalidate(&self, tag: &str) {
        if tag == EVERYTHING {
            return self.invalidate_all();
        }
        self.epochs[usize::from(self.index(tag))].fetch_add(1, Ordering::AcqRel);
        self.invalidations.increase();
    }

    /// The same for every tag: invalidations may have been missed.
    pub fn invalidate_all(&self) {
        self.all.fetch_add(1, Ordering::AcqRel);
        self.invalidations.increase();
    }

    /// The epochs of these tags now.
    pub fn epochs(&self, tags: impl Iterator<Item = String>) -> TagEpochs {
        let epoch = |index: u16| self.epochs[usize::from(index)].load(Ordering::Acquire);
        let of_tags = tags.map(|tag| self.index(&tag)).map(|index| (index, epoch(index)));
        TagEpochs { all: self.all.load(Ordering::Acquire), of_tags: of_tags.collect() }
    }

    /// Whether none of these tags has been invalidated since. Without tags nothing is.
    pub fn are_current(&self, epochs: &TagEpochs) -> bool {
        let is_current = |(index, epoch): &(u16, u32)| {
            self.epochs[usize::from(*index)].load(Ordering::Acquire) == *epoch
        };
        epochs.of_tags.is_empty()
            || (self.all.load(Ordering::Acquire) == epochs.all
                && epochs.of_tags.iter().all(is_current))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalidation_reaches_what_was_begun_before_it() {
        let tags = CacheTags::new(Counter::default());
        let of = |names: &[&str]| tags.epochs(names.iter().map(|name| (*name).to_owned()));
        let (one, both, untagged) = (of(&["spot:1"]), of(&["spot:1", "spot:2"]), of(&[]));
        assert!(tags.are_current(&one) && tags.are_current(&both));
        tags.invalidate("spot:2");
        assert!(tags.are_current(&one) && !tags.are_current(&both));
        assert!(tags.are_current(&of(&["spot:2"])), "what begins later is current");
        tags.invalidate_all();
        assert!(!tags.are_current(&one) && tags.are_current(&untagged));
        let later = of(&["spot:3"]);
        tags.invalidate("*");
        assert!(!tags.are_current(&later) && tags.are_current(&untagged));
        assert_eq!(tags.invalidations.value(), 3);
    }
}
