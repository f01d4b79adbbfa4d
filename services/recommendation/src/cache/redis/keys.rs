//! The keys of the trend, after the prefix and its hash tag:
//!
//! - `state` (hash, permanent): `landmark`, `half_life_us`; `seen`, the latest time of the scores;
//!   after a jump of the clock `jumped` and `jump_landmark`.
//! - `scores` (sorted set, permanent): score at the landmark by spot.
//! - `scores:before` (sorted set, until the jump is confirmed): the scores before the jump.
//! - `scores:since` (sorted set, until the jump is confirmed): weight counted since the jump by spot.
//! - `passes` (hash, permanent): time of the last pruning pass by its name.
//! - `seen:<minute>` (set, until its last id may be dropped): event ids, by the time in the id
//!   (UUIDv7).
//! - `counted:<day>:<subject>` (hash, while an event within the window can arrive): counted times
//!   by kind and spot, each with its version after a colon.
//! - `forgotten:<subject>` (string, while an earlier event can arrive): when the person was
//!   forgotten, in the same form.
//! - `probe` (string, a minute): the small write of readiness.

use uuid::Uuid;

/// Event ids are stored by the minute of their time, in sets that are small enough to expire fast.
const SEEN_MS: u64 = 60_000;

/// Names of keys. The tag in braces decides the slot, even if a subject's id contains braces.
pub(super) struct Keys(String);

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self(format!("{prefix}:{{trend}}"))
    }

    pub(super) fn state(&self) -> String {
        format!("{}:state", self.0)
    }

    pub(super) fn scores(&self) -> String {
        format!("{}:scores", self.0)
    }

    pub(super) fn passes(&self) -> String {
        format!("{}:passes", self.0)
    }

    pub(super) fn probe(&self) -> String {
        format!("{}:probe", self.0)
    }

    pub(super) fn seen(&self, id: Uuid) -> String {
        let millis = u64::try_from(id.as_u128() >> 80).unwrap_or_default();
        format!("{}:seen:{}", self.0, millis / SEEN_MS)
    }

    pub(super) fn forgotten(&self, subject: &str) -> String {
        format!("{}:forgotten:{subject}", self.0)
    }

    pub(super) fn counted(&self, day: i64, subject: &str) -> String {
        format!("{}:counted:{day}:{subject}", self.0)
    }
}
