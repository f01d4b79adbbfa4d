//! One queue: shards, subscribers and unsettled deliveries.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::replays::Replays;
use super::{QueueDepth, lock};
use crate::Clock;
use crate::bus::attempts::{AttemptCounts, Disposition};
use crate::bus::{
    Delivery, DeliverySource, LaneKey, Lanes, Settle, SettleError, Settlement, Settler,
    SubscribeError, Subscription, TopicPattern,
};
use crate::dead_letters::{DeadLetter, DeadLetterStore, Route};
use crate::events::Outgoing;

/// How long a delivery waits when its dead letter could not be stored.
const DEAD_LETTER_RETRY: Duration = Duration::from_secs(1);

pub(super) struct Message {
    id: Option<Uuid>,
    body: Bytes,
    exchange: String,
    routing_key: String,
    ordering_key: String,
    headers: BTreeMap<String, String>,
}

impl Message {
    pub(super) fn new(event: Outgoing) -> Self {
        Self {
            id: Some(event.envelope.id),
            body: event.envelope.encode(),
            exchange: event.exchange,
            routing_key: event.routing_key,
            ordering_key: event.ordering_key,
            headers: event.headers,
        }
    }

    fn replayed(letter: DeadLetter) -> Self {
        Self {
            headers: letter.replay_headers(),
            id: letter.event_id,
            body: letter.body,
            exchange: letter.exchange,
            routing_key: letter.routing_key,
            ordering_key: letter.ordering_key.unwrap_or_else(|| letter.id.to_string()),
        }
    }
}

/// The source of an entry, which is notified of its end.
pub(super) enum Cause {
    /// Closed when the publisher is gone. The publisher publishes again, so this entry is void.
    Publisher(oneshot::Sender<()>),
    /// A replay of the dead letter of this id.
    Replay(Uuid),
}

/// One event in one queue.
pub(super) struct Entry {
    pub(super) message: Arc<Message>,
    pub(super) attempts: AttemptCounts,
    pub(super) cause: Cause,
    pub(super) _slot: OwnedSemaphorePermit,
}

pub(super) struct Queue {
    pub(super) name: String,
    pub(super) slots: Arc<Semaphore>,
    pub(super) state: Mutex<State>,
    pub(super) changed: Notify,
    pub(super) dead_letters: Arc<dyn DeadLetterStore>,
    pub(super) clock: Clock,
}

pub(super) struct State {
    bindings: Vec<(String, TopicPattern)>,
    shards: Vec<Lanes<Entry>>,
    /// In the order of joining. The member at index i is the active one of every shard s with s % members == i.
    members: Vec<Member>,
    next_member: u64,
    /// The dead letters whose events are in the queue again.
    replaying: HashSet<Uuid>,
    closed: bool,
}

struct Member {
    id: u64,
    prefetch: usize,
    unsettled: usize,
    /// The next shard for round robin.
    turn: usize,
}

enum Next {
    Delivery(Box<Delivery>),
    NothingUntil(Option<Instant>),
    Ended,
}

impl State {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            bindings: Vec::new(),
            shards: (0..shards).map(|_| Lanes::default()).collect(),
            members: Vec::new(),
            next_member: 0,
            replaying: HashSet::new(),
            closed: false,
        }
    }

    /// The next entry for a member, from its shards in round robin.
    fn take(&mut self, member: u64, now: Instant) -> Result<(usize, LaneKey, Entry), Next> {
        if self.closed {
            return Err(Next::Ended);
        }
        let members = self.members.len();
        let Some(place) = self.members.iter().position(|m| m.id == member) else {
            return Err(Next::Ended);
        };
        if self.members[place].unsettled >= self.members[place].prefetch {
            return Err(Next::NothingUntil(None));
        }
        let turn = self.members[place].turn;
        let shards = self.shards.len();
        let mut due: Option<Instant> = None;
        for step in 0..shards {
            let shard = (turn + step) % shards;
            if shard % members != place {
                continue;
            }
            while let Some((key, entry)) = self.shards[shard].take(now) {
                if matches!(&entry.cause, Cause::Publisher(confirm) if confirm.is_closed()) {
                    self.shards[shard].done(&key);
                    continue;
                }
                self.members[place].turn = (shard + 1) % shards;
                self.members[place].unsettled += 1;
                return Ok((shard, key, entry));
            }
            due = [due, self.shards[shard].next_due()].into_iter().flatten().min();
        }
        Err(Next::NothingUntil(due))
    }
}

impl Queue {
    pub(super) fn takes(&self, event: &Outgoing) -> bool {
        lock(&self.state).bindings.iter().any(|(exchange, pattern)| {
            *exchange == event.exchange && pattern.matches(&event.routing_key)
        })
    }

    pub(super) fn bind(
        &self,
        subscription: &Subscription,
        bindings: Vec<(String, TopicPattern)>,
    ) -> Result<(), SubscribeError> {
        let mut state = lock(&self.state);
        if state.shards.len() != subscription.shards {
            return Err(SubscribeError::Invalid(format!(
                "the queue {} has {} shards, not {}",
                self.name,
                state.shards.len(),
                subscription.shards
            )));
        }
        for binding in bindings {
            if !state.bindings.contains(&binding) {
                state.bindings.push(binding);
            }
        }
        Ok(())
    }

    pub(super) fn join(&self, subscription: &Subscription) -> u64 {
        let mut state = lock(&self.state);
        let id = state.next_member;
        state.next_member += 1;
        let prefetch = subscription.prefetch;
        state.members.push(Member { id, prefetch, unsettled: 0, turn: 0 });
        drop(state);
        self.changed.notify_waiters();
        id
    }

    fn leave(&self, member: u64) {
        lock(&self.state).members.retain(|m| m.id != member);
        self.changed.notify_waiters();
    }

    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        for shard in &mut state.shards {
            *shard = Lanes::default();
        }
        drop(state);
        self.slots.close();
        self.changed.notify_waiters();
    }

    pub(super) fn push(&self, entry: Entry) {
        let mut state = lock(&self.state);
        if state.closed {
            return;
        }
        if let Cause::Replay(letter) = entry.cause
            && !state.replaying.insert(letter)
        {
            return;
        }
        let mut hasher = DefaultHasher::new();
        entry.message.ordering_key.hash(&mut hasher);
        let shards = state.shards.len() as u64;
        let shard = usize::try_from(hasher.finish() % shards).expect("there are few shards");
        let key = entry.message.clone();
        state.shards[shard].push(Some(&key.ordering_key), entry);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Enqueues the events of dead letters that are not enqueued yet, as far as there is room. The others stay marked.
    fn push_replays(&self, letters: Vec<DeadLetter>) {
        for letter in letters {
            let Ok(slot) = self.slots.clone().try_acquire_owned() else { return };
            let cause = Cause::Replay(letter.id);
            let message = Arc::new(Message::replayed(letter));
            self.push(Entry { message, attempts: AttemptCounts::at(1), cause, _slot: slot });
        }
    }

    fn take(self: &Arc<Self>, member: u64) -> Next {
        let taken = lock(&self.state).take(member, Instant::now());
        let (shard, key, entry) = match taken {
            Ok(taken) => taken,
            Err(nothing) => return nothing,
        };
        let message = entry.message.clone();
        Next::Delivery(Box::new(Delivery {
            body: message.body.clone(),
            exchange: message.exchange.clone(),
            routing_key: message.routing_key.clone(),
            ordering_key: Some(message.ordering_key.clone()),
            headers: message.headers.clone(),
            attempt: entry.attempts.attempt,
            waits: entry.attempts.waits,
            settler: Settler::new(Unsettled::new(
                self.clone(),
                Position { member, shard, key },
                entry,
            )),
        }))
    }

    pub(super) fn depth(&self) -> QueueDepth {
        let state = lock(&self.state);
        let waiting = state.shards.iter().map(Lanes::waiting).sum();
        QueueDepth {
            queue: self.name.clone(),
            waiting,
            unsettled: state.members.iter().map(|m| m.unsettled).sum(),
            subscribers: state.members.len(),
        }
    }
}

pub(super) struct Source {
    pub(super) queue: Arc<Queue>,
    pub(super) member: u64,
    pub(super) replays: Replays,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.queue.leave(self.member);
    }
}

#[async_trait]
impl DeliverySource for Source {
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            let mut changed = std::pin::pin!(self.queue.changed.notified());
            // Subscribe before checking, so that no change in between is missed.
            changed.as_mut().enable();
            match self.queue.take(self.member) {
                Next::Delivery(delivery) => return Some(*delivery),
                Next::Ended => return None,
                Next::NothingUntil(due) => {
                    tokio::select! {
                        () = changed => {}
                        () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                        letters = self.replays.next() => self.queue.push_replays(letters),
                    }
                }
            }
        }
    }
}

/// The shard of a delivered entry, and its subscriber.
struct Position {
    member: u64,
    shard: usize,
    key: LaneKey,
}

impl Queue {
    /// Takes an entry back.
    fn end(&self, position: &Position, mut entry: Entry, disposition: Disposition) {
        let mut state = lock(&self.state);
        if let Some(member) = state.members.iter_mut().find(|m| m.id == position.member) {
            member.unsettled -= 1;
        }
        entry.attempts.ended(&disposition);
        let shard = &mut state.shards[position.shard];
        match disposition {
            Disposition::Finished => {
                shard.done(&position.key);
                match entry.cause {
                    Cause::Publisher(confirm) => drop(confirm.send(())),
                    Cause::Replay(letter) => drop(state.replaying.remove(&letter)),
                }
            }
            Disposition::Retry(after) | Disposition::Defer(after) => {
                shard.again(&position.key, entry, Instant::now() + after);
            }
            Disposition::Requeue => shard.back(&position.key, entry),
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The dead letter of an entry.
    fn dead_letter(&self, entry: &Entry, reason: String) -> DeadLetter {
        let message = &entry.message;
        DeadLetter::new(
            &self.name,
            message.id,
            Route {
                exchange: message.exchange.clone(),
                routing_key: message.routing_key.clone(),
                ordering_key: Some(message.ordering_key.clone()),
            },
            reason,
            entry.attempts.attempt,
            &message.body,
            message.headers.clone(),
            (self.clock)(),
        )
    }
}

/// A delivered entry. It returns to the queue when it is dropped before it is settled.
struct Unsettled {
    queue: Arc<Queue>,
    position: Position,
    entry: Option<Entry>,
}

impl Unsettled {
    fn new(queue: Arc<Queue>, position: Position, entry: Entry) -> Self {
        Self { queue, position, entry: Some(entry) }
    }

    /// Runs before the entry ends. Until then the letter's mark does not start a second replay.
    async fn replay_carried_out(&self) -> Result<(), SettleError> {
        match self.entry.as_ref().map(|entry| &entry.cause) {
            Some(Cause::Replay(letter)) => {
                self.queue.dead_letters.finish_replay(*letter).await.map_err(SettleError)
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, disposition: Disposition) {
        if let Some(entry) = self.entry.take() {
            self.queue.end(&self.position, entry, disposition);
        }
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.end(Disposition::Requeue);
    }
}

#[async_trait]
impl Settle for Unsettled {
    async fn settle(mut self: Box<Self>, settlement: Settlement) -> Result<(), SettleError> {
        match settlement {
            Settlement::Ack => {
                let recorded = self.replay_carried_out().await;
                self.end(Disposition::Finished);
                recorded?;
            }
            Settlement::Retry { after } => self.end(Disposition::Retry(after)),
            Settlement::Wait { after } => self.end(Disposition::Defer(after)),
            Settlement::DeadLetter { reason } => {
                if let Some(entry) = &self.entry {
                    let letter = self.queue.dead_letter(entry, reason);
                    if let Err(error) = self.queue.dead_letters.put(letter).await {
                        self.end(Disposition::Retry(DEAD_LETTER_RETRY));
                        return Err(SettleError(error));
                    }
                }
                // The letter of the same event has lost its mark already. Only an event without an id gets here.
                let recorded = self.replay_carried_out().await;
                self.end(Disposition::Finished);
                recorded?;
            }
        }
        Ok(())
    }
}
