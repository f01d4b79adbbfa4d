//! The bus's counters and gauges.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bus::PublishError;

/// The counters and gauges of a [`RabbitBus`](super::RabbitBus) at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusSnapshot {
    /// Both connections are up.
    pub connected: bool,
    /// Connections made after the first two, since the start.
    pub reconnects: u64,
    /// Messages whose publishing has no result yet.
    pub unconfirmed: u64,
    /// Messages that the broker confirmed, since the start. This counter and the next ones include dead letters,
    /// replays and replies.
    pub confirmed: u64,
    /// Messages that the broker returned because no queue is bound for them, since the start.
    pub returned: u64,
    /// Messages that the broker refused (for example, a queue at its bound) or that could not be sent, since the start.
    pub refused: u64,
    /// Messages with an unknown outcome (no connection, or no confirm in time), since the start.
    pub unavailable: u64,
    /// Messages that the broker redelivered, since the start.
    pub redelivered: u64,
    /// The open subscriptions.
    pub subscriptions: Vec<SubscriptionSnapshot>,
}

/// The gauges of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionSnapshot {
    /// The queue's name, without the prefix.
    pub queue: String,
    /// Messages received and not delivered yet, waiting retries included.
    pub held: u64,
    /// Deliveries that are not settled.
    pub unsettled: u64,
    /// Shards that delivered something since they were opened: this subscriber is known to be active in them.
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
    /// Connections that the broker blocks.
    blocked: AtomicU64,
}

impl BusStats {
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) > 0
    }

    /// The broker blocks a connection until the returned value is dropped.
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

    /// Messages are in flight as long as the returned value lives.
    pub(super) fn unconfirmed(&self, messages: usize) -> Unconfirmed<'_> {
        let messages = messages as u64;
        self.unconfirmed.fetch_add(messages, Ordering::Relaxed);
        Unconfirmed { stats: self, messages }
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

/// A connection that the broker blocks.
pub(super) struct Blocked<'a>(&'a BusStats);

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        self.0.blocked.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ends with its owner, even when the confirms are no longer awaited.
pub(super) struct Unconfirmed<'a> {
    stats: &'a BusStats,
    messages: u64,
}

impl Drop for Unconfirmed<'_> {
    fn drop(&mut self) {
        self.stats.unconfirmed.fetch_sub(self.messages, Ordering::Relaxed);
    }
}
