//! Core's metrics besides requests: the outbox, the relay and the broker, connections, log-ins, views,
//! the search index.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tourin_chassis::clock::SharedClock;
use tourin_chassis::metrics::Metrics;
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::bus::rabbitmq::RabbitBus;
use tourin_shared_events::outbox::{Depth, OutboxStore, RelaySnapshot, RelayStats};

use crate::app::sessions::Outcomes;
use crate::app::views::Views;
use crate::store::Store;

/// How often the outbox's rows are counted. The count is a query, so it does not run per scrape.
const DEPTH_EVERY: Duration = Duration::from_secs(5);

/// The sources of the metrics.
pub(crate) struct Sources {
    pub(crate) store: Store,
    pub(crate) views: Views,
    pub(crate) outcomes: Outcomes,
    pub(crate) bus: Option<RabbitBus>,
    pub(crate) clock: SharedClock,
}

type Readings = Vec<(Vec<(&'static str, String)>, f64)>;
/// A metric of one number of a snapshot: its name, its help, its value.
type OfSnapshot<S> = (&'static str, &'static str, fn(&S) -> u64);

fn labelled(
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) -> Readings {
    let reading = |(value, count): (&str, u64)| (vec![(label, value.to_owned())], count as f64);
    values.into_iter().map(reading).collect()
}

/// Registers the metrics that exist from the start.
pub(crate) fn register(metrics: &Metrics, sources: &Sources) {
    of_connections(metrics, &sources.store);
    let outcomes = sources.outcomes.clone();
    metrics.counters_read("tourin_log_ins", "Log-ins by what became of them", move || {
        labelled("outcome", outcomes.log_ins())
    });
    let outcomes = sources.outcomes.clone();
    let help =
        "Exchanges of refresh tokens by what became of them; reused ones ended their session";
    metrics.counters_read("tourin_token_renewals", help, move || {
        labelled("outcome", outcomes.renewals())
    });
    let views = sources.views.clone();
    metrics.gauge_read("tourin_views_waiting", "Views not written yet", move || {
        Some(views.waiting_now() as f64)
    });
    let views = sources.views.clone();
    let help = "Views dropped because too many waited";
    metrics.counters_read("tourin_views_dropped", help, move || {
        vec![(Vec::new(), views.dropped() as f64)]
    });
    let store = sources.store.clone();
    let help = "Spots in the search index in memory";
    metrics.gauge_read("tourin_search_index_spots", help, move || {
        store.search_index().map(|(spots, _)| spots as f64)
    });
    let store = sources.store.clone();
    let help = "Memory of the search index";
    metrics.gauge_read("tourin_search_index_bytes", help, move || {
        store.search_index().map(|(_, bytes)| bytes as f64)
    });
    if let Some(bus) = &sources.bus {
        of_broker(metrics, bus);
    }
}

fn of_connections(metrics: &Metrics, store: &Store) {
    let pools = store.clone();
    let help = "Connections to the database by pool and state";
    metrics.gauges_read("tourin_pool_connections", help, move || {
        let mut readings = Readings::new();
        for (pool, now) in pools.pools() {
            for (state, count) in
                [("idle", now.idle), ("in_use", now.open.saturating_sub(now.idle))]
            {
                let labels = vec![("pool", pool.to_owned()), ("state", state.to_owned())];
                readings.push((labels, count as f64));
            }
        }
        readings
    });
    let pools = store.clone();
    let help = "Connections that a pool may have";
    metrics.gauges_read("tourin_pool_connections_limit", help, move || {
        labelled("pool", pools.pools().into_iter().map(|(pool, now)| (pool, now.max as u64)))
    });
}

fn of_broker(metrics: &Metrics, bus: &RabbitBus) {
    let connected = bus.clone();
    let help = "1 while the connections to the broker are up";
    metrics.gauge_read("tourin_broker_connected", help, move || {
        Some(f64::from(u8::from(connected.is_connected())))
    });
    let counted = bus.clone();
    let help = "Reconnections to the broker";
    metrics.counters_read("tourin_broker_reconnects", help, move || {
        vec![(Vec::new(), counted.stats().reconnects as f64)]
    });
    let counted = bus.clone();
    let help = "Messages handed to the broker by what it answered";
    metrics.counters_read("tourin_broker_messages", help, move || {
        let now = counted.stats();
        labelled(
            "outcome",
            [
                ("confirmed", now.confirmed),
                ("returned", now.returned),
                ("refused", now.refused),
                ("unavailable", now.unavailable),
            ],
        )
    });
    let counted = bus.clone();
    let help = "Messages that the broker has not answered yet";
    metrics.gauge_read("tourin_broker_unconfirmed", help, move || {
        Some(counted.stats().unconfirmed as f64)
    });
}

/// The last counts of the outbox.
pub(crate) struct OutboxGauge {
    store: Arc<dyn OutboxStore>,
    depth: Arc<Mutex<Option<Depth>>>,
}

/// Registers the metrics of the relay.
pub(crate) fn of_relay(
    metrics: &Metrics,
    sources: &Sources,
    stats: Arc<RelayStats>,
) -> OutboxGauge {
    let counters: [OfSnapshot<RelaySnapshot>; 5] = [
        ("tourin_outbox_published", "Events that the bus confirmed", |now| now.published),
        ("tourin_outbox_retries", "Attempts to publish that failed; each is tried again", |now| {
            now.failed
        }),
        ("tourin_outbox_unroutable", "Attempts that found no queue for the event", |now| {
            now.unroutable
        }),
        ("tourin_outbox_given_up", "Events given up, for an operator to look at", |now| {
            now.rejected
        }),
        ("tourin_outbox_store_failures", "Times the outbox could not be read or written", |now| {
            now.store_failures
        }),
    ];
    for (name, help, of) in counters {
        let stats = Arc::clone(&stats);
        metrics.counters_read(name, help, move || vec![(Vec::new(), of(&stats.snapshot()) as f64)]);
    }
    metrics.gauge_read("tourin_outbox_shards", "Shards that this relay holds", move || {
        Some(stats.snapshot().shards as f64)
    });

    let gauge = OutboxGauge { store: sources.store.outbox(), depth: Arc::default() };
    let clock = Arc::clone(&sources.clock);
    gauge.read(metrics, "tourin_outbox_pending", "Events not published yet", |depth| {
        depth.pending as f64
    });
    gauge.read(metrics, "tourin_outbox_rejected", "Events given up and kept", |depth| {
        depth.rejected as f64
    });
    let help = "Age of the oldest event not published yet";
    gauge.read(metrics, "tourin_outbox_oldest_age_seconds", help, move |depth| {
        let age = depth.oldest.map(|oldest| clock.now() - oldest).unwrap_or_default();
        age.as_seconds_f64().max(0.0)
    });
    gauge
}

impl OutboxGauge {
    fn read(
        &self,
        metrics: &Metrics,
        name: &'static str,
        help: &'static str,
        of: impl Fn(&Depth) -> f64 + Send + Sync + 'static,
    ) {
        let depth = Arc::clone(&self.depth);
        metrics.gauge_read(name, help, move || {
            depth.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(&of)
        });
    }

    /// Counts periodically until `stop`. After a failed count there is no value.
    pub(crate) async fn run(self, stop: Shutdown) {
        loop {
            let counted = match self.store.depth().await {
                Ok(depth) => Some(depth),
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "the outbox was not counted");
                    None
                }
            };
            *self.depth.lock().unwrap_or_else(PoisonError::into_inner) = counted;
            tokio::select! {
                () = stop.begun() => return,
                () = tokio::time::sleep(DEPTH_EVERY) => {}
            }
        }
    }
}
