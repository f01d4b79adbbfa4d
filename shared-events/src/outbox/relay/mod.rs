//! From the outbox to the bus.

mod held;
mod metrics;
mod running;
mod unroutable;

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join3};
use tokio_util::sync::CancellationToken;

use super::backlog::{DEFAULT_MAX_PENDING, enforce_bound};
use super::{OutboxStore, Pruner, Wake};
use crate::backoff::Backoff;
use crate::bus::Publisher;
use crate::{Clock, PassTime, unchecked};
use running::Running;

pub use metrics::RelayMetrics;

/// The relay's bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RelaySettings {
    /// How often it polls for commits of other processes, which give no signal here. Default 250 ms.
    pub poll_interval: Duration,
    /// The most events being published at once. Default 512.
    pub max_in_flight: usize,
    /// The most events held in memory. Default 2048.
    pub max_buffered: usize,
    /// How long a confirmed event waits to be marked together with others. Default 10 ms. A crash within that time
    /// publishes it again.
    pub mark_delay: Duration,
    /// The most events that may wait for the bus. Beyond it appending is refused ([`OutboxFull`](super::OutboxFull)).
    /// Default [`DEFAULT_MAX_PENDING`]; `None` is unbounded.
    pub max_pending: Option<u64>,
    /// How long the bus may take to confirm events before they are published again. Default 60 s.
    pub confirm_timeout: Duration,
    /// The delays after failures. Retries never end, because no event may be lost. Default 50 ms, doubling to at most 5
    /// s.
    pub backoff: Backoff,
    /// The length of its leases on shards, which it renews three times as often. Default 2 s: after a crash, others
    /// take its shards within that time and a third of it.
    pub lease: Duration,
    /// How often it starts again from the oldest waiting event, to find replayed ones. Default 5 s.
    pub rescan_interval: Duration,
    /// How long rows are kept after the bus confirmed them. Default 1 h. Unconfirmed rows are always kept.
    pub retention: Duration,
    /// How long a stopping relay still publishes and waits for confirmations. Default 1 s.
    pub drain_timeout: Duration,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_millis(250),
            max_in_flight: 512,
            max_buffered: 2048,
            mark_delay: Duration::from_millis(10),
            max_pending: Some(DEFAULT_MAX_PENDING),
            confirm_timeout: Duration::from_secs(60),
            backoff: Backoff {
                base: Duration::from_millis(50),
                max: Duration::from_secs(5),
                jitter: 0.5,
            },
            lease: Duration::from_secs(2),
            rescan_interval: Duration::from_secs(5),
            retention: Duration::from_secs(3_600),
            drain_timeout: Duration::from_secs(1),
        }
    }
}

impl RelaySettings {
    /// Released shards are taken at most a second later, however long leases are.
    fn claim_interval(&self) -> Duration {
        (self.lease / 3).min(Duration::from_secs(1))
    }
}

/// Publishes the events of the shards that it holds: in order per key, many keys at once, each event until it is
/// confirmed. Several relays may run at once, in any number of processes, and share the work; see [the module](super).
///
/// It marks an event only after the bus confirmed it. After a crash in between, the event is published again and
/// consumers dedupe it. A failing event holds back its own key only, unless the complete bus is unreachable. Events
/// that the bus cannot route yet, or refuses again and again, take no memory, so any number of them lets others
/// through. They are tried again about every second, with a warning after 10 s. An event that the bus can never carry
/// is dead-lettered after three attempts and kept for an operator; its key continues.
pub struct Relay {
    store: Arc<dyn OutboxStore>,
    publisher: Arc<dyn Publisher>,
    wake: Wake,
    clock: Clock,
    pruning: PassTime,
    settings: RelaySettings,
    metrics: RelayMetrics,
}

impl Relay {
    /// A relay with default settings; `wake` is the signal of the outbox's writers.
    pub fn new(
        store: Arc<dyn OutboxStore>,
        publisher: Arc<dyn Publisher>,
        wake: Wake,
        clock: Clock,
    ) -> Self {
        let (settings, pruning) = (RelaySettings::default(), unchecked(clock.clone()));
        Self { store, publisher, wake, clock, pruning, settings, metrics: RelayMetrics::default() }
    }

    /// Replaces the settings. Counts below 1 become 1.
    #[must_use]
    pub fn with_settings(mut self, settings: RelaySettings) -> Self {
        self.settings = RelaySettings {
            max_in_flight: settings.max_in_flight.max(1),
            max_buffered: settings.max_buffered.max(1),
            ..settings
        };
        self
    }

    /// Prunes rows by `time` instead of the relay's own clock.
    #[must_use]
    pub fn with_pruning(mut self, time: PassTime) -> Self {
        self.pruning = time;
        self
    }

    /// Its metrics.
    pub fn metrics(&self) -> RelayMetrics {
        self.metrics.clone()
    }

    /// Works until it is stopped. Then it publishes what is committed already, within the drain time-out, marks what was
    /// confirmed and releases its shards. Also enforces the bound on waiting events, and prunes.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let retention = self.settings.retention;
            let pruner = Pruner::new(self.store.clone(), retention, self.pruning.clone());
            let bound =
                enforce_bound(self.store.clone(), self.settings.max_pending, shutdown.clone());
            join3(Running::new(&self).run(&shutdown), pruner.run(shutdown.clone()), bound).await;
        })
    }
}
