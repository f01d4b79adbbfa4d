//! The service's metrics besides those of requests: consumers and dead letters, the trend's
//! freshness, the servers of the stores, the broker.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::metrics::{HistogramReading, Metrics};
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitDeadLetters, SubscriptionSnapshot};
use tourin_shared_events::consumer::{AGE_BUCKETS, ConsumerSnapshot, ConsumerStats};
use tourin_shared_events::dead_letters::DeadLetterStore;

use crate::app::ingest::Ingest;
use crate::app::last_trend::LastTrend;
use crate::servers::{Operations, ServerStats};

/// The interval of counting dead letters. Counting queries the broker or the database, so it must
/// not depend on the rate of scrapes.
const LETTERS_EVERY: Duration = Duration::from_secs(10);

type Readings = Vec<(Vec<(&'static str, String)>, f64)>;
/// A metric read from a snapshot: its name, its help, its value.
type OfSnapshot<S> = (&'static str, &'static str, fn(&S) -> u64);
type Queues = Vec<(&'static str, Arc<ConsumerStats>)>;

fn of_queue(queue: &str) -> Vec<(&'static str, String)> {
    vec![("queue", queue.to_owned())]
}

/// Registers the metrics of consumers, by queue.
pub(crate) fn of_consumers(
    metrics: &Metrics,
    queues: &[(&'static str, Arc<ConsumerStats>)],
    clock: &SharedClock,
) {
    let queues: Queues = queues.to_vec();
    let counted = queues.clone();
    let help = "Handled events by outcome; duplicates had no effect";
    metrics.counters_read("tourin_consumer_events", help, move || outcomes(&counted));
    let counters: [OfSnapshot<ConsumerSnapshot>; 7] = [
        ("tourin_consumer_deliveries", "Deliveries taken, redeliveries included", |now| {
            now.received
        }),
        ("tourin_consumer_retries", "Failed attempts that are retried", |now| now.retried),
        ("tourin_consumer_broken", "Calls of a handler that panicked or took too long", |now| {
            now.broken
        }),
        ("tourin_consumer_panics", "Panics of handlers, caught", |now| now.panicked),
        (
            "tourin_consumer_events_ahead",
            "Deliveries dated too far ahead, which count as of now",
            |now| now.ahead,
        ),
        ("tourin_consumer_replayed", "Deliveries of replayed dead letters", |now| now.replayed),
        ("tourin_consumer_unsettled", "Outcomes that the bus could not record", |now| {
            now.unsettled
        }),
    ];
    for (name, help, of) in counters {
        let queues = queues.clone();
        metrics.counters_read(name, help, move || {
            let reading = |(queue, stats): &(&str, Arc<ConsumerStats>)| {
                (of_queue(queue), of(&stats.snapshot()) as f64)
            };
            queues.iter().map(reading).collect()
        });
    }
    let held = queues.clone();
    metrics.gauges_read("tourin_consumer_in_hand", "Deliveries in progress", move || {
        held.iter().map(|(queue, stats)| (of_queue(queue), stats.snapshot().held as f64)).collect()
    });
    let (waiting, clock) = (queues.clone(), Arc::clone(clock));
    let help = "Age of the oldest event in progress; 0 without any";
    metrics.gauges_read("tourin_consumer_oldest_age_seconds", help, move || {
        let now = clock.now();
        let age = |stats: &ConsumerStats| {
            let age = stats.in_flight.oldest().map(|oldest| now - oldest).unwrap_or_default();
            age.as_seconds_f64().max(0.0)
        };
        waiting.iter().map(|(queue, stats)| (of_queue(queue), age(stats))).collect()
    });
    let bounds = AGE_BUCKETS.iter().map(Duration::as_secs_f64).collect();
    let help = "Age of events when their effect was committed";
    metrics.histograms_read("tourin_event_age_at_effect_seconds", help, bounds, move || {
        let reading = |stats: &ConsumerStats| {
            let ages = stats.ages.snapshot();
            let sum = Duration::from_micros(ages.sum_micros).as_secs_f64();
            HistogramReading { buckets: ages.buckets.to_vec(), count: ages.count, sum }
        };
        queues.iter().map(|(queue, stats)| (of_queue(queue), reading(stats))).collect()
    });
}

fn outcomes(queues: &Queues) -> Readings {
    let mut readings = Readings::new();
    for (queue, stats) in queues {
        let now = stats.snapshot();
        for (outcome, count) in [
            ("applied", now.applied),
            ("duplicate", now.duplicate),
            ("ignored", now.ignored),
            ("expired", now.expired),
            ("dead_lettered", now.dead_lettered),
        ] {
            let mut labels = of_queue(queue);
            labels.push(("outcome", outcome.to_owned()));
            readings.push((labels, count as f64));
        }
    }
    readings
}

/// Registers the metrics of the trend's freshness.
pub(crate) fn of_trend(
    metrics: &Metrics,
    ingest: &Ingest,
    last_trend: &LastTrend,
    clock: &SharedClock,
) {
    let (ingest, clock) = (ingest.clone(), Arc::clone(clock));
    let help = "Age of the newest event that this instance has counted for the trend";
    metrics.gauge_read("tourin_trend_newest_event_age_seconds", help, move || {
        let age = clock.now() - ingest.newest_counted()?;
        Some(age.as_seconds_f64().max(0.0))
    });
    let last_trend = last_trend.clone();
    let help = "Cached trend responses served during an outage of a store";
    metrics.counters_read("tourin_trend_stale_answers", help, move || {
        vec![(Vec::new(), last_trend.served() as f64)]
    });
}

/// Registers the metrics of the stores' servers.
pub(crate) fn of_servers(metrics: &Metrics, servers: Vec<(&'static str, Arc<ServerStats>)>) {
    let help = "Commands sent to the servers of stores";
    let servers: Arc<[_]> = servers.into();
    let of_server = |server: &str| vec![("server", server.to_owned())];
    let counted = Arc::clone(&servers);
    metrics.counters_read("tourin_store_commands", help, move || {
        counted.iter().map(|(server, stats)| (of_server(server), stats.commands() as f64)).collect()
    });
    let counted = Arc::clone(&servers);
    let help = "Operations on a server of a store, by state: under way, or waiting for a permit";
    metrics.gauges_read("tourin_store_operations", help, move || {
        let mut readings = Readings::new();
        for (server, now) in operations(&counted) {
            for (state, count) in [("under_way", now.under_way), ("waiting", now.waiting)] {
                let labels = vec![("server", server.to_owned()), ("state", state.to_owned())];
                readings.push((labels, count as f64));
            }
        }
        readings
    });
    let help = "The maximum number of operations under way on a server of a store";
    metrics.gauges_read("tourin_store_operations_limit", help, move || {
        operations(&servers).map(|(server, now)| (of_server(server), now.max as f64)).collect()
    });
}

/// The operations on servers that limit them.
fn operations(
    servers: &[(&'static str, Arc<ServerStats>)],
) -> impl Iterator<Item = (&'static str, Operations)> {
    servers.iter().filter_map(|(server, stats)| Some((*server, stats.operations()?)))
}

/// Registers the metrics of the broker's connections and queues.
pub(crate) fn of_bus(metrics: &Metrics, bus: &RabbitBus) {
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
    let help = "Messages redelivered by the broker";
    metrics.counters_read("tourin_broker_redelivered", help, move || {
        vec![(Vec::new(), counted.stats().redelivered as f64)]
    });
    let gauges: [OfSnapshot<SubscriptionSnapshot>; 3] = [
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
            let now = bus.stats().subscriptions;
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
