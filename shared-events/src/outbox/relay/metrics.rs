//! The metrics of a relay.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of one relay. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct RelayMetrics {
    /// Events confirmed by the bus.
    pub published: Counter,
    /// Failed attempts, unroutable ones included. Each is tried again.
    pub failed: Counter,
    /// Attempts that found no queue bound for the event, or none declared. Steady growth means that a type is not bound,
    /// or a subscriber is missing.
    pub unroutable: Counter,
    /// Events that the bus cannot carry, now in the outbox's dead letters.
    pub dead_lettered: Counter,
    /// Failed reads and writes of the store.
    pub store_failures: Counter,
    /// The shards held now.
    pub shards: Gauge,
}

impl RelayMetrics {
    /// Adds them to a service's metrics.
    pub fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            ("tourin_outbox_published", "Events that the bus confirmed", &self.published),
            (
                "tourin_outbox_retries",
                "Attempts to publish that failed; each is tried again",
                &self.failed,
            ),
            (
                "tourin_outbox_unroutable",
                "Attempts that found no queue for the event",
                &self.unroutable,
            ),
            (
                "tourin_outbox_dead_lettered",
                "Events that the bus cannot carry, kept for an operator",
                &self.dead_lettered,
            ),
            (
                "tourin_outbox_store_failures",
                "Times the outbox could not be read or written",
                &self.store_failures,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "tourin_outbox_shards",
            "Shards that this relay holds",
            self.shards.clone(),
        );
    }
}
