//! The metrics of consumers.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::in_flight::InFlightTimes;

/// The upper bounds of the buckets of events' ages, in seconds.
const AGE_BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3_600.0];

type ByQueue<M, C = fn() -> M> = Family<[(&'static str, String); 1], M, C>;

/// The metrics of a service's consumers, by queue. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ConsumerMetrics {
    events: Family<[(&'static str, String); 2], Counter>,
    received: ByQueue<Counter>,
    retried: ByQueue<Counter>,
    malformed: ByQueue<Counter>,
    oversized: ByQueue<Counter>,
    broken: ByQueue<Counter>,
    panicked: ByQueue<Counter>,
    ahead: ByQueue<Counter>,
    replayed: ByQueue<Counter>,
    unsettled: ByQueue<Counter>,
    held: ByQueue<Gauge<f64, AtomicU64>>,
    ages: Ages,
}

/// Events' ages by queue.
#[derive(Clone, Debug)]
struct Ages(ByQueue<Histogram>);

impl Default for Ages {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(AGE_BUCKETS)))
    }
}

impl ConsumerMetrics {
    /// Adds them to a service's metrics.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Handled events by outcome; duplicates had no effect";
        registry.register("tourin_consumer_events", help, self.events.clone());
        for (name, help, family) in [
            (
                "tourin_consumer_deliveries",
                "Deliveries taken, redeliveries included",
                &self.received,
            ),
            ("tourin_consumer_retries", "Failed attempts that are retried", &self.retried),
            ("tourin_consumer_malformed", "Dead letters that were no envelope", &self.malformed),
            ("tourin_consumer_oversized", "Dead letters that were too long", &self.oversized),
            (
                "tourin_consumer_broken",
                "Calls of a handler that panicked or took too long",
                &self.broken,
            ),
            ("tourin_consumer_panics", "Panics of handlers, caught", &self.panicked),
            (
                "tourin_consumer_events_ahead",
                "Deliveries dated too far ahead, which count as of now",
                &self.ahead,
            ),
            ("tourin_consumer_replayed", "Deliveries of replayed dead letters", &self.replayed),
            (
                "tourin_consumer_unsettled",
                "Outcomes that the bus could not record",
                &self.unsettled,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        registry.register("tourin_consumer_in_flight", "Deliveries in progress", self.held.clone());
        let help = "Age of events when their effect was committed";
        registry.register("tourin_event_age_at_effect_seconds", help, self.ages.0.clone());
    }

    /// The metrics of the consumers of one queue, zero until they are counted.
    pub fn of(&self, queue: &str) -> QueueMetrics {
        let events = |outcome: &str| {
            let labels = [("queue", queue.to_owned()), ("outcome", outcome.to_owned())];
            self.events.get_or_create_owned(&labels)
        };
        let labels = [("queue", queue.to_owned())];
        QueueMetrics {
            received: self.received.get_or_create_owned(&labels),
            applied: events("applied"),
            duplicate: events("duplicate"),
            ignored: events("ignored"),
            expired: events("expired"),
            dead_lettered: events("dead_lettered"),
            ahead: self.ahead.get_or_create_owned(&labels),
            retried: self.retried.get_or_create_owned(&labels),
            malformed: self.malformed.get_or_create_owned(&labels),
            oversized: self.oversized.get_or_create_owned(&labels),
            broken: self.broken.get_or_create_owned(&labels),
            panicked: self.panicked.get_or_create_owned(&labels),
            replayed: self.replayed.get_or_create_owned(&labels),
            unsettled: self.unsettled.get_or_create_owned(&labels),
            held: self.held.get_or_create_owned(&labels),
            ages: self.ages.0.get_or_create_owned(&labels),
            in_flight: InFlightTimes::default(),
        }
    }
}

/// The metrics of the consumers of one queue. Clones share them.
#[derive(Clone, Debug)]
pub struct QueueMetrics {
    /// Deliveries taken, redeliveries included.
    pub received: Counter,
    /// Events whose effect was committed.
    pub applied: Counter,
    /// Events whose effect was committed before.
    pub duplicate: Counter,
    /// Events that the handler ignored.
    pub ignored: Counter,
    /// Expired events, acknowledged without effect.
    pub expired: Counter,
    /// All dead letters, malformed and oversized ones included.
    pub dead_lettered: Counter,
    /// Events dated too far ahead, which count as happening when they are handled; each delivery counted.
    pub ahead: Counter,
    /// Failures that will be retried.
    pub retried: Counter,
    /// Dead letters whose body was not an envelope.
    pub malformed: Counter,
    /// Dead letters whose body was too long.
    pub oversized: Counter,
    /// Handler calls that panicked or timed out.
    pub broken: Counter,
    /// Handler calls that panicked.
    pub panicked: Counter,
    /// Events replayed from the dead letters, each delivery counted.
    pub replayed: Counter,
    /// Outcomes that the bus could not record. It delivers those events again.
    pub unsettled: Counter,
    /// The times of the events in flight.
    pub in_flight: InFlightTimes,
    held: Gauge<f64, AtomicU64>,
    ages: Histogram,
}

impl QueueMetrics {
    /// An event of this age took effect.
    pub(super) fn took_effect(&self, age: Duration) {
        self.ages.observe(age.as_secs_f64());
    }

    /// Counts deliveries as in flight until the returned value is dropped.
    pub(super) fn hold(&self, deliveries: usize) -> InFlight<'_> {
        let deliveries = deliveries as f64;
        self.held.inc_by(deliveries);
        InFlight { held: &self.held, deliveries }
    }
}

/// See [`QueueMetrics::hold`].
pub(super) struct InFlight<'a> {
    held: &'a Gauge<f64, AtomicU64>,
    deliveries: f64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.held.dec_by(self.deliveries);
    }
}
