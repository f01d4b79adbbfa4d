//! From the outbox to the bus.

mod running;
mod unroutable;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join;
use tokio_util::sync::CancellationToken;

use super::{OutboxStore, Pruner, Retention, Wake};
use crate::Clock;
use crate::backoff::Backoff;
use crate::bus::Publisher;
use crate::consumer::counters;
use running::Running;

/// The relay's bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RelaySettings {
    /// How often it looks by itself, for commits of other processes, which give no signal here. Default 250 ms.
    pub poll_interval: Duration,
    /// The most events being published at once. Default 256.
    pub max_in_flight: usize,
    /// The most events held in memory. Default 1024.
    pub max_buffered: usize,
    /// How long the bus may take to confirm one event before it is published again. Default 60 s.
    pub confirm_timeout: Duration,
    /// The waits after failures; they never end, for nothing may be lost. Default 50 ms doubling to at most 5 s.
    pub backoff: Backoff,
    /// How long its lease on the outbox runs without being renewed. Default 2 s: after a crash, that is how long
    /// another relay waits.
    pub lease: Duration,
    /// How often it starts again from the oldest event that waits, for what committed out of order. Default 5 s.
    pub rescan_interval: Duration,
    /// How long rows are kept.
    pub retention: Retention,
    /// How long a stopping relay waits for confirmations. Default 1 s.
    pub drain_timeout: Duration,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_millis(250),
            max_in_flight: 256,
            max_buffered: 1024,
            confirm_timeout: Duration::from_secs(60),
            backoff: Backoff {
                base: Duration::from_millis(50),
                max: Duration::from_secs(5),
                jitter: 0.5,
            },
            lease: Duration::from_secs(2),
            rescan_interval: Duration::from_secs(5),
            retention: Retention::default(),
            drain_timeout: Duration::from_secs(1),
        }
    }
}

counters! {
    /// Counters of one relay.
    RelayStats,
    /// [`RelayStats`] at a moment.
    RelaySnapshot {
        /// Events confirmed by the bus.
        published,
        /// Attempts that failed, unroutable ones included. Each is tried again.
        failed,
        /// Attempts that found no queue declared.
        unroutable,
        /// Times the store could not be read or written.
        store_failures,
    }
}

/// Publishes what the outbox holds: in order per key, many keys at once, each event until it is confirmed.
///
/// It marks an event only after the bus confirmed it. A crash in between publishes it again; that is what the
/// consumers' dedupe is for. An event that fails holds back its own key only, unless the whole bus is out of reach.
/// Events that the bus cannot route yet take no room in memory, so that however many there are, others get through;
/// they are tried again about every second, and a warning comes when that takes longer than 10 s.
pub struct Relay {
    store: Arc<dyn OutboxStore>,
    publisher: Arc<dyn Publisher>,
    wake: Wake,
    clock: Clock,
    settings: RelaySettings,
    stats: Arc<RelayStats>,
}

impl Relay {
    /// A relay with default settings; `wake` is the signal that the outbox's writers give.
    pub fn new(
        store: Arc<dyn OutboxStore>,
        publisher: Arc<dyn Publisher>,
        wake: Wake,
        clock: Clock,
    ) -> Self {
        let settings = RelaySettings::default();
        Self { store, publisher, wake, clock, settings, stats: Arc::default() }
    }

    /// Replaces the settings. Counts below 1 are taken for 1.
    #[must_use]
    pub fn with_settings(mut self, settings: RelaySettings) -> Self {
        self.settings = RelaySettings {
            max_in_flight: settings.max_in_flight.max(1),
            max_buffered: settings.max_buffered.max(1),
            ..settings
        };
        self
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<RelayStats> {
        self.stats.clone()
    }

    /// Works until told to stop; then waits a little for confirmations, marks them and gives the lease back.
    pub async fn run(self, shutdown: CancellationToken) {
        let pruner = Pruner::new(self.store.clone(), self.settings.retention, self.clock.clone());
        join(Running::new(&self).run(&shutdown), pruner.run(shutdown.clone())).await;
    }
}
