//! Messages received from the broker and not settled: the order of keys, and the count of deliveries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::BasicAckOptions;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::dead_letters;
use super::metrics::{BusMetrics, SubscriptionState};
use super::publisher::Publishing;
use super::wire::{self, Incoming};
use crate::bus::attempts::{AttemptCounts, Disposition};
use crate::bus::{Delivery, LaneKey, Lanes, Settle, SettleError, Settlement, Settler};

/// How long a delivery waits when its dead letter could not be published.
const DEAD_LETTER_RETRY: Duration = Duration::from_secs(1);
/// How long writing an acknowledgement may take.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// A message from a shard.
#[derive(Clone)]
struct Entry {
    message: Arc<Incoming>,
    attempts: AttemptCounts,
    /// The shard's epoch in which it came. In a later epoch, the broker has requeued it.
    epoch: u64,
}

#[derive(Default)]
struct Shard {
    epoch: u64,
    lanes: Lanes<Entry>,
    /// Unsettled deliveries, those of earlier epochs included.
    unsettled: HashMap<u64, (LaneKey, Entry)>,
    /// It delivers nothing more.
    releasing: bool,
    /// A message came since it was opened.
    active: bool,
}

struct State {
    shards: Vec<Shard>,
    unsettled: usize,
    /// The next shard for round robin.
    turn: usize,
    next_id: u64,
    ended: bool,
}

/// One subscriber's deliveries, from all shards that are active here.
pub(super) struct PrefetchBuffer {
    pub(super) queue: String,
    prefix: String,
    prefetch: usize,
    state: Mutex<State>,
    changed: Notify,
    /// A shard that is to be released has no unsettled delivery left.
    drained: Notify,
    publishing: Publishing,
    metrics: BusMetrics,
}

enum Next {
    Delivery(Box<Delivery>),
    NothingUntil(Option<Instant>),
    Ended,
}

impl PrefetchBuffer {
    pub(super) fn new(
        queue: String,
        prefix: String,
        prefetch: usize,
        shards: usize,
        publishing: Publishing,
        metrics: BusMetrics,
    ) -> Self {
        let state = State {
            shards: (0..shards).map(|_| Shard::default()).collect(),
            unsettled: 0,
            turn: 0,
            next_id: 0,
            ended: false,
        };
        Self {
            queue,
            prefix,
            prefetch,
            state: Mutex::new(state),
            changed: Notify::new(),
            drained: Notify::new(),
            publishing,
            metrics,
        }
    }

    /// The number of the queue's shards.
    pub(super) fn shards(&self) -> usize {
        self.lock().shards.len()
    }

    pub(super) fn state(&self) -> SubscriptionState {
        let state = self.lock();
        let active = |shard: &&Shard| shard.active && !shard.releasing;
        SubscriptionState {
            queue: self.queue.clone(),
            held: state.shards.iter().map(|shard| shard.lanes.waiting() as u64).sum(),
            unsettled: state.unsettled as u64,
            active_shards: state.shards.iter().filter(active).count() as u64,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under this lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shard was opened or lost. Earlier messages are void, because the broker has requeued them. A key with an
    /// unsettled delivery waits until it is settled.
    pub(super) fn begin(&self, shard: usize) -> u64 {
        let mut state = self.lock();
        let shard = &mut state.shards[shard];
        shard.epoch += 1;
        shard.releasing = false;
        shard.active = false;
        shard.lanes = Lanes::default();
        for (key, entry) in shard.unsettled.values() {
            if let LaneKey::Named(name) = key {
                // Pushed and taken, it holds the lane.
                shard.lanes.push(Some(name), entry.clone());
                drop(shard.lanes.take(Instant::now()));
            }
        }
        shard.epoch
    }

    pub(super) fn push(&self, shard: usize, epoch: u64, amqp: lapin::message::Delivery) {
        let key = wire::header(&amqp.properties, wire::ORDERING_KEY);
        // A requeued message may have been tried, or may only have been prefetched. The broker does not distinguish the
        // two, so all requeues together count as one attempt.
        let attempts = AttemptCounts::at(if wire::was_requeued(&amqp.properties) { 2 } else { 1 });
        if amqp.redelivered || attempts.attempt > 1 {
            self.metrics.redelivered.inc();
        }
        let exchange = amqp.exchange.as_str();
        let exchange = exchange.strip_prefix(&self.prefix).unwrap_or(exchange);
        let origin = wire::header(&amqp.properties, wire::ORIGIN_EXCHANGE);
        let message = Arc::new(Incoming {
            exchange: origin.unwrap_or_else(|| exchange.to_owned()),
            routing_key: amqp.routing_key.to_string(),
            body: amqp.data.into(),
            properties: amqp.properties,
            acker: amqp.acker,
        });
        let mut state = self.lock();
        let shard = &mut state.shards[shard];
        if shard.epoch == epoch {
            shard.active = true;
            shard.lanes.push(key.as_deref(), Entry { message, attempts, epoch });
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// Delivers nothing more of the shard.
    pub(super) fn release(&self, shard: usize) {
        self.lock().shards[shard].releasing = true;
    }

    /// Waits until the shard has no unsettled delivery.
    pub(super) async fn drained(&self, shard: usize) {
        loop {
            let mut drained = std::pin::pin!(self.drained.notified());
            drained.as_mut().enable();
            if self.lock().shards[shard].unsettled.is_empty() {
                return;
            }
            drained.await;
        }
    }

    pub(super) fn end_all(&self) {
        self.lock().ended = true;
        self.changed.notify_waiters();
    }

    pub(super) async fn next(self: &Arc<Self>) -> Option<Delivery> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Subscribe before checking, so that no change in between is missed.
            changed.as_mut().enable();
            match self.take() {
                Next::Delivery(delivery) => return Some(*delivery),
                Next::Ended => return None,
                Next::NothingUntil(None) => changed.await,
                Next::NothingUntil(Some(due)) => {
                    tokio::select! {
                        () = changed => {}
                        () = sleep_until(due) => {}
                    }
                }
            }
        }
    }

    fn take(self: &Arc<Self>) -> Next {
        let mut state = self.lock();
        if state.ended {
            return Next::Ended;
        }
        if state.unsettled >= self.prefetch {
            return Next::NothingUntil(None);
        }
        let now = Instant::now();
        let (turn, count) = (state.turn, state.shards.len());
        let mut due: Option<Instant> = None;
        for number in (0..count).map(|step| (turn + step) % count) {
            let id = state.next_id;
            let shard = &mut state.shards[number];
            if shard.releasing {
                continue;
            }
            if let Some((key, entry)) = shard.lanes.take(now) {
                shard.unsettled.insert(id, (key.clone(), entry.clone()));
                state.next_id += 1;
                state.unsettled += 1;
                state.turn = (number + 1) % count;
                drop(state);
                let position = Position { shard: number, id, key };
                return Next::Delivery(Box::new(self.delivery(position, entry)));
            }
            due = [due, shard.lanes.next_due()].into_iter().flatten().min();
        }
        Next::NothingUntil(due)
    }

    fn delivery(self: &Arc<Self>, position: Position, entry: Entry) -> Delivery {
        let message = &*entry.message;
        Delivery {
            body: message.body.clone(),
            exchange: message.exchange.clone(),
            routing_key: message.routing_key.clone(),
            ordering_key: wire::header(&message.properties, wire::ORDERING_KEY),
            headers: wire::headers(&message.properties),
            attempt: entry.attempts.attempt,
            waits: entry.attempts.waits,
            settler: Settler::new(Unsettled { buffer: self.clone(), position, entry: Some(entry) }),
        }
    }

    fn end(&self, position: &Position, mut entry: Entry, disposition: Disposition) {
        let mut state = self.lock();
        state.unsettled -= 1;
        let shard = &mut state.shards[position.shard];
        shard.unsettled.remove(&position.id);
        let drained = shard.unsettled.is_empty();
        if entry.epoch == shard.epoch {
            entry.attempts.ended(&disposition);
            match disposition {
                Disposition::Finished => shard.lanes.done(&position.key),
                Disposition::Retry(after) | Disposition::Defer(after) => {
                    shard.lanes.again(&position.key, entry, Instant::now() + after);
                }
                Disposition::Requeue => shard.lanes.back(&position.key, entry),
            }
        } else if matches!(position.key, LaneKey::Named(_)) {
            shard.lanes.done(&position.key);
        }
        drop(state);
        self.changed.notify_waiters();
        if drained {
            self.drained.notify_waiters();
        }
    }
}

struct Position {
    shard: usize,
    id: u64,
    key: LaneKey,
}

/// A delivery. It returns to the buffer when it is dropped before it is settled.
struct Unsettled {
    buffer: Arc<PrefetchBuffer>,
    position: Position,
    entry: Option<Entry>,
}

impl Unsettled {
    fn end(&mut self, disposition: Disposition) {
        if let Some(entry) = self.entry.take() {
            self.buffer.end(&self.position, entry, disposition);
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
        let Some(entry) = self.entry.clone() else { return Ok(()) };
        let again = match &settlement {
            Settlement::Retry { after } => Some(Disposition::Retry(*after)),
            Settlement::Wait { after } => Some(Disposition::Defer(*after)),
            _ => None,
        };
        if let Some(again) = again {
            drop(entry);
            self.end(again);
            return Ok(());
        }
        if let Settlement::DeadLetter { reason } = settlement {
            let letter = dead_letters::message(
                &self.buffer.prefix,
                &self.buffer.queue,
                &entry.message,
                entry.attempts.attempt,
                &reason,
            );
            let kept = match letter {
                Ok(letter) => self.buffer.publishing.publish_one(letter).await,
                Err(error) => Err(error),
            };
            if let Err(error) = kept {
                self.end(Disposition::Retry(DEAD_LETTER_RETRY));
                return Err(SettleError(error.into()));
            }
        }
        // The lane continues only now: the next delivery may depend on this one.
        let acking = entry.message.acker.ack(BasicAckOptions::default());
        let acked = timeout(ACK_TIMEOUT, acking).await;
        self.end(Disposition::Finished);
        match acked {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(SettleError(anyhow::anyhow!("its channel is closed"))),
            Ok(Err(error)) => Err(SettleError(error.into())),
            Err(_elapsed) => Err(SettleError(anyhow::anyhow!("not written in time"))),
        }
    }
}
