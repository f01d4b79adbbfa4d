//! The replicas of a subscriber, and the shards that each of them should have.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

/// Missed announcements after which a replica counts as gone.
const MISSED_CALLS: u32 = 4;
/// The most names that are kept. Replicas beyond the largest number of shards get no shard.
const MAX_NAMES: usize = 1024;

/// The replicas heard from recently, this one included.
pub(super) struct Membership {
    pub(super) me: Uuid,
    call_every: Duration,
    heard: Mutex<BTreeMap<Uuid, Instant>>,
}

impl Membership {
    pub(super) fn new(call_every: Duration) -> Self {
        Self { me: Uuid::now_v7(), call_every, heard: Mutex::default() }
    }

    /// Whether another replica should have a shard.
    pub(super) fn is_for_another(&self, shard: usize) -> bool {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = self.call_every * MISSED_CALLS;
        heard.retain(|name, at| *name == self.me || at.elapsed() < limit);
        heard.entry(self.me).or_insert_with(Instant::now);
        heard.keys().nth(shard % heard.len()) != Some(&self.me)
    }

    pub(super) fn receive(&self, call: &[u8]) {
        let Ok(text) = std::str::from_utf8(call) else { return };
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gone) = text.strip_prefix('-') {
            if let Ok(name) = gone.parse() {
                heard.remove(&name);
            }
        } else if let Ok(name) = text.parse()
            && (heard.len() < MAX_NAMES || heard.contains_key(&name))
        {
            heard.insert(name, Instant::now());
        }
    }
}
