//! Metrics that are read when Prometheus scrapes: the outbox, connections, waiting views, the search
//! index. Others are counted where they happen.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tourin_chassis::clock::SharedClock;
use tourin_chassis::metrics::Metrics;
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::bus::rabbitmq::RabbitBus;
use tourin_shared_events::outbox::{Depth, OutboxStore};

use crate::app::views::Views;
use crate::store::Store;

/// How often the outbox's rows are counted. The count is a query, so it does not run per scrape.
const DEPTH_EVERY: Duration = Duration::from_secs(5);

/// The sources of the metrics.
pub(crate) struct Sources {
    pub(crate) store: Store,
    pub(crate) views: Views,
    pub(crate) bus: Option<RabbitBus>,
    pub(crate) clock: SharedClock,
}

type Readings = Vec<(Vec<(&'static str, String)>, f64)>;

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
    let views = sources.views.clone();
    metrics.gauge_read("tourin_views_waiting", "Views not written yet", move || {
        Some(views.waiting_now() as f64)
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
    metrics.with_registry(|registry| bus.metrics().register(registry));
    let connected = bus.clone();
    let help = "1 while the connections to the broker are up";
    metrics.gauge_read("tourin_broker_connected", help, move || {
        Some(f64::from(u8::from(connected.is_connected())))
    });
}

/// The last counts of the outbox.
pub(crate) struct OutboxGauge {
    store: Arc<dyn OutboxStore>,
    depth: Arc<Mutex<Option<Depth>>>,
}

/// Registers what waits in the outbox.
pub(crate) fn of_outbox(metrics: &Metrics, sources: &Sources) -> OutboxGauge {
    let gauge = OutboxGauge { store: sources.store.outbox(), depth: Arc::default() };
    let clock = Arc::clone(&sources.clock);
    gauge.read(metrics, "tourin_outbox_pending", "Events not published yet", |depth| {
        depth.pending as f64
    });
    gauge.read(metrics, "tourin_outbox_rejected", "Dead-lettered events in the outbox", |depth| {
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
