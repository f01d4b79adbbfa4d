//! What is read of the log and not settled.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::Follower;
use crate::bus::unsettled::{Fate, Origin, Tries};
use crate::bus::{LaneKey, Lanes};
use crate::dead_letters::{DeadLetter, DeadLetterStore, Route};
use crate::outbox::FeedEvent;

pub(super) struct Entry {
    pub(super) event: FeedEvent,
    pub(super) body: Bytes,
    pub(super) tries: Tries,
    /// The dead letter that it is a replay of; it has no number in the log then.
    pub(super) replay_of: Option<Uuid>,
}

impl Entry {
    fn event_id(&self) -> Option<Uuid> {
        let id = self.event.envelope.get("id").and_then(Value::as_str);
        id.and_then(|id| Uuid::parse_str(id).ok())
    }

    fn replayed(letter: DeadLetter) -> Self {
        let event = FeedEvent {
            seq: 0,
            headers: letter.replay_headers(),
            exchange: letter.exchange,
            routing_key: letter.routing_key,
            ordering_key: letter.ordering_key.unwrap_or_else(|| letter.id.to_string()),
            envelope: serde_json::from_slice(&letter.body).unwrap_or_default(),
        };
        Self { event, body: letter.body, tries: Tries::at(1), replay_of: Some(letter.id) }
    }
}

pub(super) struct State {
    pub(super) lanes: Lanes<Entry>,
    /// The numbers that are read and not settled.
    pub(super) outstanding: BTreeSet<u64>,
    pub(super) unsettled: usize,
    /// The dead letters whose events are in the queue again.
    replaying: HashSet<Uuid>,
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
        let state = State {
            lanes: Lanes::default(),
            outstanding: BTreeSet::new(),
            unsettled: 0,
            replaying: HashSet::new(),
            read,
        };
        Self { name, follower, state: Mutex::new(state), changed: Notify::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the events of dead letters in that are not in already.
    pub(super) fn push_replays(&self, letters: Vec<DeadLetter>) {
        let mut state = self.lock();
        for letter in letters {
            if state.replaying.insert(letter.id) {
                let entry = Entry::replayed(letter);
                let key = entry.event.ordering_key.clone();
                state.lanes.push(Some(&key), entry);
            }
        }
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
        entry.tries.ended(&fate);
        match fate {
            Fate::Finished => {
                match entry.replay_of {
                    Some(letter) => state.replaying.remove(&letter),
                    None => state.outstanding.remove(&entry.event.seq),
                };
                state.lanes.done(key);
            }
            Fate::Again(after) | Fate::Later(after) => {
                state.lanes.again(key, entry, Instant::now() + after);
            }
            Fate::Back => state.lanes.back(key, entry),
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn dead_letter(&self, entry: &Entry, reason: String) -> DeadLetter {
        DeadLetter::new(
            &self.name,
            entry.event_id(),
            Route {
                exchange: entry.event.exchange.clone(),
                routing_key: entry.event.routing_key.clone(),
                ordering_key: Some(entry.event.ordering_key.clone()),
            },
            reason,
            entry.tries.attempt,
            &entry.body,
            entry.event.headers.clone(),
            (self.follower.clock)(),
        )
    }

    fn replay_of(&self, entry: &Entry) -> Option<Uuid> {
        entry.replay_of
    }

    fn dead_letters(&self) -> &dyn DeadLetterStore {
        &*self.follower.dead_letters
    }
}
