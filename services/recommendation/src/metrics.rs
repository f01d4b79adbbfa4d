//! Metrics that are read when Prometheus scrapes: ages, connections, dead letters. Others are counted
//! where they happen.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::metrics::Metrics;
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitDeadLetters, SubscriptionState};
use tourin_shared_events::consumer::QueueMetrics;
use tourin_shared_events::dead_letters::DeadLetterStore;

use crate::app::ingest::Ingest;

/// The interval of counting dead letters. Counting queries the broker or the database, so it must
/// not depend on the rate of scrapes.
const LETTERS_EVERY: Duration = Duration::from_secs(10);

/// A gauge of a subscription: its name, its help, its value.
type OfSubscription = (&'static str, &'static str, fn(&SubscriptionState) -> u64);

fn of_queue(queue: &str) -> Vec<(&'static str, String)> {
    vec![("queue", queue.to_owned())]
}

/// Registers how far the consumers are behind.
pub(crate) fn of_consumers(
    metrics: &Metrics,
    queues: Vec<(&'static str, QueueMetrics)>,
    clock: &SharedClock,
) {
    let clock = Arc::clone(clock);
    let help = "Age of the oldest event in progress; 0 without any";
    metrics.gauges_read("tourin_consumer_oldest_age_seconds", help, move || {
        let now = clock.now();
        let age = |of: &QueueMetrics| {
            let age = of.in_flight.oldest().map(|oldest| now - oldest).unwrap_or_default();
            age.as_seconds_f64().max(0.0)
        };
        queues.iter().map(|(queue, of)| (of_queue(queue), age(of))).collect()
    });
}

/// Registers the trend's freshness.
pub(crate) fn of_trend(metrics: &Metrics, ingest: &Ingest, clock: &SharedClock) {
    let (ingest, clock) = (ingest.clone(), Arc::clone(clock));
    let help = "Age of the newest event that this instance has counted for the trend";
    metrics.gauge_read("tourin_trend_newest_event_age_seconds", help, move || {
        let age = clock.now() - ingest.newest_counted()?;
        Some(age.as_seconds_f64().max(0.0))
    });
}

/// Registers the metrics of the broker's connections and queues.
pub(crate) fn of_bus(metrics: &Metrics, bus: &RabbitBus) {
    metrics.with_registry(|registry| bus.metrics().register(registry));
    let connected = bus.clone();
    let help = "1 while the connections to the broker are up";
    metrics.gauge_read("tourin_broker_connected", help, move || {
        Some(f64::from(u8::from(connected.is_connected())))
    });
    let gauges: [OfSubscription; 3] = [
        (
            "tourin_queue_held",
            "Prefetched events not handed out, waiting retries included",
            |now| now.held,
        ),
        ("tourin_queue_unsettled", "Events handed out and not settled", |now| now.unsettled),
        ("tourin_queue_active_shards", "Shards that this instance is active in", |now| {
            now.active_shards
        }),
    ];
    for (name, help, of) in gauges {
        let bus = bus.clone();
        metrics.gauges_read(name, help, move || {
            let now = bus.subscriptions();
            now.iter().map(|each| (of_queue(&each.queue), of(each) as f64)).collect()
        });
    }
}

/// The store of dead letters.
pub(crate) enum Letters {
    /// The broker's queues, shared by all instances.
    AtBroker(Arc<RabbitDeadLetters>),
    /// The embedded store.
    Kept(Arc<dyn DeadLetterStore>),
}

/// The number of dead letters.
pub(crate) struct LetterGauge {
    letters: Letters,
    count: Arc<Mutex<Option<u64>>>,
}

/// Registers the number of dead letters, which [`LetterGauge::run`] counts every few seconds.
pub(crate) fn of_dead_letters(metrics: &Metrics, letters: Letters) -> LetterGauge {
    let gauge = LetterGauge { letters, count: Arc::default() };
    let count = Arc::clone(&gauge.count);
    let help = "Dead-lettered events";
    metrics.gauge_read("tourin_dead_letters", help, move || {
        count.lock().unwrap_or_else(PoisonError::into_inner).map(|count| count as f64)
    });
    gauge
}

impl LetterGauge {
    /// Counts periodically until `stop`. After a failure the metric is absent.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let counting = async {
            loop {
                let counted = match &self.letters {
                    Letters::AtBroker(letters) => letters.depth().await,
                    Letters::Kept(letters) => letters.count().await,
                };
                if let Err(error) = &counted {
                    let error = format!("{error:#}");
                    tracing::debug!(error, "cannot count dead letters");
                }
                *self.count.lock().unwrap_or_else(PoisonError::into_inner) = counted.ok();
                tokio::time::sleep(LETTERS_EVERY).await;
            }
        };
        tokio::select! {
            () = counting => {}
            () = stop.cancelled() => {}
        }
    }
}
