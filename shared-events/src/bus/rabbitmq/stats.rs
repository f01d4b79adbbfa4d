//! What the bus has done and has at the moment, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bus::PublishError;

/// The numbers of a [`RabbitBus`](super::RabbitBus) at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusSnapshot {
    /// Both connections are up.
    pub connected: bool,
    /// Connections made after the first two, since the start.
    pub reconnects: u64,
    /// Messages handed in for publishing and not answered yet.
    pub unconfirmed: u64,
    /// Messages that the broker confirmed, since the start. Dead letters, replays and answers are counted too, here
    /// and below.
    pub confirmed: u64,
    /// Messages that came back because no queue is bound for them, since the start.
    pub returned: u64,
    /// Messages that the broker refused (a queue at its bound, say) or that could not be sent as they are, since the
    /// start.
    pub refused: u64,
    /// Messages of which it is not known what became of them: no connection, or no confirm in time; since the start.
    pub unavailable: u64,
    /// Messages that the broker delivered again, since the start.
    pub redelivered: u64,
    /// The subscriptions that are alive.
    pub subscriptions: Vec<SubscriptionSnapshot>,
}

/// The numbers of one subscription at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionSnapshot {
    /// The queue's name, without the prefix.
    pub queue: String,
    /// Messages that came and were not handed out, waiting retries included.
    pub held: u64,
    /// Deliveries handed out and not settled.
    pub unsettled: u64,
    /// Shards from which something came since they were opened: those that this subscriber is known to be active in.
    pub active_shards: u64,
}

/// The counters behind [`BusSnapshot`].
#[derive(Debug, Default)]
pub(super) struct BusStats {
    connections: AtomicU64,
    unconfirmed: AtomicU64,
    confirmed: AtomicU64,
    returned: AtomicU64,
    refused: AtomicU64,
    unavailable: AtomicU64,
    redelivered: AtomicU64,
    /// Connections of which the broker said that it takes nothing from them for now.
    blocked: AtomicU64,
}

impl BusStats {
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) > 0
    }

    /// The broker takes nothing from a connection any more, until what is returned is dropped.
    pub(super) fn blocked(&self) -> Blocked<'_> {
        self.blocked.fetch_add(1, Ordering::Relaxed);
        Blocked(self)
    }

    pub(super) fn count_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_redelivery(&self) {
        self.redelivered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_result(&self, result: &Result<(), PublishError>) {
        let counter = match result {
            Ok(()) => &self.confirmed,
            Err(PublishError::Unroutable) => &self.returned,
            Err(PublishError::Rejected(_) | PublishError::Invalid(_)) => &self.refused,
            Err(PublishError::Unavailable(_)) => &self.unavailable,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages are on their way for as long as what is returned lives.
    pub(super) fn on_their_way(&self, messages: usize) -> OnTheirWay<'_> {
        let messages = messages as u64;
        self.unconfirmed.fetch_add(messages, Ordering::Relaxed);
        OnTheirWay { stats: self, messages }
    }

    pub(super) fn snapshot(
        &self,
        connected: bool,
        subscriptions: Vec<SubscriptionSnapshot>,
    ) -> BusSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BusSnapshot {
            connected,
            reconnects: read(&self.connections).saturating_sub(2),
            unconfirmed: read(&self.unconfirmed),
            confirmed: read(&self.confirmed),
            returned: read(&self.returned),
            refused: read(&self.refused),
            unavailable: read(&self.unavailable),
            redelivered: read(&self.redelivered),
            subscriptions,
        }
    }
}

/// A connection that the broker takes nothing from.
pub(super) struct Blocked<'a>(&'a BusStats);

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        self.0.blocked.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ends with its owner, also when nobody waits for the confirms any more.
pub(super) struct OnTheirWay<'a> {
    stats: &'a BusStats,
    messages: u64,
}

impl Drop for OnTheirWay<'_> {
    fn drop(&mut self) {
        self.stats.unconfirmed.fetch_sub(self.messages, Ordering::Relaxed);
    }
}
