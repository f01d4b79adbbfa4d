//! What is read of the log and not settled.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::Follower;
use crate::bus::unsettled::{Fate, Origin};
use crate::bus::{LaneKey, Lanes};
use crate::dead_letters::{DeadLetter, DeadLetterStore};
use crate::outbox::FeedEvent;

pub(super) struct Entry {
    pub(super) event: FeedEvent,
    pub(super) body: Bytes,
    pub(super) attempt: u32,
}

pub(super) struct State {
    pub(super) lanes: Lanes<Entry>,
    /// The numbers that are read and not settled.
    pub(super) outstanding: BTreeSet<u64>,
    pub(super) unsettled: usize,
    /// Everything up to here was read.
    pub(super) read: u64,
}

/// What a queue's source and its deliveries share.
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) follower: Arc<Follower>,
    state: Mutex<State>,
    pub(super) changed: Notify,
}

impl Queue {
    pub(super) fn new(name: String, follower: Arc<Follower>, read: u64) -> Self {
        let state =
            State { lanes: Lanes::default(), outstanding: BTreeSet::new(), unsettled: 0, read };
        Self { name, follower, state: Mutex::new(state), changed: Notify::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Everything up to and including this number is settled.
    pub(super) fn settled(&self) -> u64 {
        match self.outstanding.first() {
            Some(first) => first - 1,
            None => self.read,
        }
    }
}

impl Origin for Queue {
    type Entry = Entry;
    type Place = LaneKey;

    fn end(&self, key: &LaneKey, mut entry: Entry, fate: Fate) {
        let mut state = self.lock();
        state.unsettled -= 1;
        entry.attempt = entry.attempt.saturating_add(1);
        match fate {
            Fate::Finished => {
                state.outstanding.remove(&entry.event.seq);
                state.lanes.done(key);
            }
            Fate::Again(after) => state.lanes.again(key, entry, Instant::now() + after),
            Fate::Back => state.lanes.back(key, entry),
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn dead_letter(&self, entry: &Entry, reason: String) -> DeadLetter {
        let event_id = entry.event.envelope.get("id").and_then(Value::as_str);
        DeadLetter::new(
            &self.name,
            event_id.and_then(|id| Uuid::parse_str(id).ok()),
            &entry.event.routing_key,
            reason,
            entry.attempt,
            &entry.body,
            entry.event.headers.clone(),
            (self.follower.clock)(),
        )
    }

    fn dead_letters(&self) -> &dyn DeadLetterStore {
        &*self.follower.dead_letters
    }
}
