//! The bus's metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::bus::PublishError;

/// The metrics of a [`RabbitBus`](super::RabbitBus). Clones share them.
#[derive(Clone, Debug)]
pub struct BusMetrics {
    messages: Family<[(&'static str, &'static str); 1], Counter>,
    /// Connections made after the first two.
    pub reconnects: Counter,
    /// Messages that the broker confirmed. This counter and the next ones include dead letters, replays and answers.
    pub confirmed: Counter,
    /// Messages that the broker returned because no queue is bound for them.
    pub returned: Counter,
    /// Messages that the broker refused (for example, a queue at its bound) or that could not be sent.
    pub refused: Counter,
    /// Messages with an unknown outcome (no connection, or no confirm in time).
    pub unavailable: Counter,
    /// Messages that the broker redelivered.
    pub redelivered: Counter,
    /// Messages whose publishing has no result yet.
    pub unconfirmed: Gauge,
    /// Connections that the broker blocks.
    blocked: Arc<AtomicU64>,
}

impl Default for BusMetrics {
    fn default() -> Self {
        let messages = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let by_outcome = |outcome| messages.get_or_create_owned(&[("outcome", outcome)]);
        Self {
            confirmed: by_outcome("confirmed"),
            returned: by_outcome("returned"),
            refused: by_outcome("refused"),
            unavailable: by_outcome("unavailable"),
            messages,
            reconnects: Counter::default(),
            redelivered: Counter::default(),
            unconfirmed: Gauge::default(),
            blocked: Arc::default(),
        }
    }
}

impl BusMetrics {
    /// Adds those of the connections and of publishing to a service's metrics.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Reconnections to the broker";
        registry.register("tourin_broker_reconnects", help, self.reconnects.clone());
        let help = "Messages handed to the broker by what it answered";
        registry.register("tourin_broker_messages", help, self.messages.clone());
        let help = "Messages that the broker has not answered yet";
        registry.register("tourin_broker_unconfirmed", help, self.unconfirmed.clone());
        let help = "Messages redelivered by the broker";
        registry.register("tourin_broker_redelivered", help, self.redelivered.clone());
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) > 0
    }

    /// The broker blocks a connection until the returned value is dropped.
    pub(super) fn blocked(&self) -> Blocked<'_> {
        self.blocked.fetch_add(1, Ordering::Relaxed);
        Blocked(self)
    }

    pub(super) fn count_result(&self, result: &Result<(), PublishError>) {
        let counter = match result {
            Ok(()) => &self.confirmed,
            Err(PublishError::Unroutable) => &self.returned,
            Err(PublishError::Rejected(_) | PublishError::Invalid(_)) => &self.refused,
            Err(PublishError::Unavailable(_)) => &self.unavailable,
        };
        counter.inc();
    }

    /// Messages are in flight as long as the returned value lives.
    pub(super) fn unconfirmed(&self, messages: usize) -> Unconfirmed<'_> {
        let messages = i64::try_from(messages).unwrap_or(i64::MAX);
        self.unconfirmed.inc_by(messages);
        Unconfirmed { metrics: self, messages }
    }
}

/// The state of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionState {
    /// The queue's name, without the prefix.
    pub queue: String,
    /// Messages received and not delivered yet, waiting retries included.
    pub held: u64,
    /// Deliveries that are not settled.
    pub unsettled: u64,
    /// Shards that delivered something since they were opened: this subscriber is known to be active in them.
    pub active_shards: u64,
}

/// A connection that the broker blocks.
pub(super) struct Blocked<'a>(&'a BusMetrics);

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        self.0.blocked.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ends with its owner, even when the confirms are no longer awaited.
pub(super) struct Unconfirmed<'a> {
    metrics: &'a BusMetrics,
    messages: i64,
}

impl Drop for Unconfirmed<'_> {
    fn drop(&mut self) {
        self.metrics.unconfirmed.dec_by(self.messages);
    }
}
