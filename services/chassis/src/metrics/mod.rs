//! Metrics for Prometheus, at `/metrics` of each service.
//!
//! Each service has its own registry, so that several services in one process do not clash. Metrics
//! of the process (spans dropped, panics) are in the output of each service. Labels have few
//! values: a [`CounterBy`] counts values beyond its limit as `other`.

mod http;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::{ConstCounter, Counter as PromCounter};
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge as PromGauge};
use prometheus_client::metrics::histogram::Histogram as PromHistogram;
use prometheus_client::registry::Registry;

pub use self::http::HttpMetrics;
use crate::telemetry;

/// The content type of the OpenMetrics format.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Distinct values of one label. Further values are counted as `other`.
const MAX_LABEL_VALUES: usize = 100;

/// Buckets for durations of requests, in seconds: from a cached response to a client's timeout.
pub const REQUEST_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Buckets for the time from an event to its effect, in seconds. Retries and outages make it long.
pub const EVENT_SECONDS: &[f64] =
    &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1_800.0];

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts a panic that was caught, in `tourin_panics_total`.
pub fn count_panic() {
    PANICS.fetch_add(1, Ordering::Relaxed);
}

/// A service's metrics. Clones share them.
///
/// Names are complete, without the suffix `_total`, which counters get on their own:
/// `metrics.counter("tourin_outbox_published", "Events published")`. Registering a name twice is a
/// bug: the metric then appears twice in the output.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    service: &'static str,
    registry: Mutex<Registry>,
    http: HttpMetrics,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Metrics").field(&self.inner.service).finish()
    }
}

impl Metrics {
    /// The metrics of `service`, including those of its requests and of the process.
    pub fn new(service: &'static str) -> Self {
        let mut registry = Registry::default();
        let http = HttpMetrics::register(&mut registry, service);
        registry.register_collector(Box::new(Process));
        Self { inner: Arc::new(Inner { service, registry: Mutex::new(registry), http }) }
    }

    /// The service's name.
    pub fn service(&self) -> &'static str {
        self.inner.service
    }

    /// The metrics of requests, for [`crate::http::observed_router`].
    pub fn http(&self) -> &HttpMetrics {
        &self.inner.http
    }

    /// Registers metrics that are counted elsewhere.
    pub fn with_registry<T>(&self, act: impl FnOnce(&mut Registry) -> T) -> T {
        act(&mut self.inner.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A counter.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter = PromCounter::<u64>::default();
        self.with_registry(|registry| registry.register(name, help, counter.clone()));
        Counter(counter)
    }

    /// A counter per value of one label.
    pub fn counter_by(&self, name: &str, help: &str, label: &'static str) -> CounterBy {
        let family = Family::<[(&'static str, String); 1], PromCounter>::default();
        self.with_registry(|registry| registry.register(name, help, family.clone()));
        CounterBy { label, family, known: Arc::default() }
    }

    /// Counters by several labels, whose values are few and known.
    pub fn counters<const N: usize>(&self, name: &str, help: &str) -> Counters<N> {
        let family = Family::<[(&'static str, String); N], PromCounter>::default();
        self.with_registry(|registry| registry.register(name, help, family.clone()));
        Counters(family)
    }

    /// A gauge that its owner sets.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        let gauge = PromGauge::<f64, AtomicU64>::default();
        self.with_registry(|registry| registry.register(name, help, gauge.clone()));
        Gauge(gauge)
    }

    /// A histogram. `buckets` are upper bounds, such as [`REQUEST_SECONDS`].
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let histogram = PromHistogram::new(buckets.iter().copied());
        self.with_registry(|registry| registry.register(name, help, histogram.clone()));
        Histogram(histogram)
    }

    /// Histograms by several labels, whose values are few and known.
    pub fn histograms<const N: usize>(
        &self,
        name: &str,
        help: &str,
        buckets: &'static [f64],
    ) -> Histograms<N> {
        let family =
            Family::<[(&'static str, String); N], PromHistogram, Buckets>::new_with_constructor(
                Buckets(buckets),
            );
        self.with_registry(|registry| registry.register(name, help, family.clone()));
        Histograms(family)
    }

    /// A gauge that is read when Prometheus scrapes. `read` must be quick and not block. `None`
    /// leaves the metric out.
    pub fn gauge_read(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        let one = move || read().map(|value| (Vec::new(), value)).into_iter().collect();
        self.register_read(Read { name, help, counter: false, read: Box::new(one) });
    }

    /// Gauges with labels that are read when Prometheus scrapes, such as the depth of each queue.
    /// The number of label sets must be small and bounded.
    pub fn gauges_read(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> Vec<(Vec<(&'static str, String)>, f64)> + Send + Sync + 'static,
    ) {
        self.register_read(Read { name, help, counter: false, read: Box::new(read) });
    }

    /// [`Metrics::gauges_read`] for counters.
    pub fn counters_read(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> Vec<(Vec<(&'static str, String)>, f64)> + Send + Sync + 'static,
    ) {
        self.register_read(Read { name, help, counter: true, read: Box::new(read) });
    }

    fn register_read(&self, read: Read) {
        self.with_registry(|registry| registry.register_collector(Box::new(read)));
    }

    /// All metrics as text, in the OpenMetrics format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        self.with_registry(|registry| encode(&mut text, registry)).ok();
        text
    }

    /// `GET /metrics`, for a listener that has no other routes.
    pub fn router(&self) -> axum::Router {
        let metrics = self.clone();
        axum::Router::new().route(
            "/metrics",
            axum::routing::get(move || {
                let text = metrics.render();
                async move { ([(::http::header::CONTENT_TYPE, CONTENT_TYPE)], text) }
            }),
        )
    }
}

/// See [`Metrics::counter`]. The default is registered nowhere.
#[derive(Debug, Clone, Default)]
pub struct Counter(PromCounter<u64>);

impl Counter {
    /// Adds one and returns the new count.
    pub fn increase(&self) -> u64 {
        self.0.inc() + 1
    }
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.inc_by(count);
    }
    /// The current count.
    pub fn value(&self) -> u64 {
        self.0.get()
    }
}

/// See [`Metrics::counters`].
#[derive(Debug, Clone)]
pub struct Counters<const N: usize>(Family<[(&'static str, String); N], PromCounter>);

impl<const N: usize> Counters<N> {
    /// The counter with these labels, 0 until it is increased. Increasing it needs no look-up.
    pub fn of(&self, labels: [(&'static str, &str); N]) -> Counter {
        Counter(self.0.get_or_create_owned(&labels.map(|(name, value)| (name, value.to_owned()))))
    }
}

/// See [`Metrics::counter_by`].
#[derive(Debug, Clone)]
pub struct CounterBy {
    label: &'static str,
    family: Family<[(&'static str, String); 1], PromCounter>,
    known: Arc<Mutex<BTreeSet<String>>>,
}

impl CounterBy {
    /// Adds `count` to the counter of `value`.
    pub fn add(&self, value: &str, count: u64) {
        let value = self.bounded(value);
        self.family.get_or_create(&[(self.label, value)]).inc_by(count);
    }

    /// Adds one to the counter of `value`.
    pub fn increase(&self, value: &str) {
        self.add(value, 1);
    }

    fn bounded(&self, value: &str) -> String {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(value) {
            return value.to_owned();
        }
        if known.len() >= MAX_LABEL_VALUES {
            return "other".to_owned();
        }
        known.insert(value.to_owned());
        value.to_owned()
    }
}

/// See [`Metrics::gauge`].
#[derive(Debug, Clone)]
pub struct Gauge(PromGauge<f64, AtomicU64>);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: f64) {
        self.0.set(value);
    }
    /// Adds `value`, which may be negative.
    pub fn add(&self, value: f64) {
        self.0.inc_by(value);
    }
}

/// See [`Metrics::histogram`].
#[derive(Debug, Clone)]
pub struct Histogram(PromHistogram);

impl Histogram {
    /// Observes one value.
    pub fn observe(&self, value: f64) {
        self.0.observe(value);
    }
}

/// See [`Metrics::histograms`].
#[derive(Debug, Clone)]
pub struct Histograms<const N: usize>(Family<[(&'static str, String); N], PromHistogram, Buckets>);

impl<const N: usize> Histograms<N> {
    /// The histogram with these labels. Observing needs no look-up.
    pub fn of(&self, labels: [(&'static str, &str); N]) -> Histogram {
        let labels = labels.map(|(name, value)| (name, value.to_owned()));
        Histogram(self.0.get_or_create(&labels).clone())
    }
}

#[derive(Debug, Clone)]
struct Buckets(&'static [f64]);

impl MetricConstructor<PromHistogram> for Buckets {
    fn new_metric(&self) -> PromHistogram {
        PromHistogram::new(self.0.iter().copied())
    }
}

type Readings = Vec<(Vec<(&'static str, String)>, f64)>;

struct Read {
    name: &'static str,
    help: &'static str,
    counter: bool,
    read: Box<dyn Fn() -> Readings + Send + Sync>,
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Read").field(&self.name).finish()
    }
}

impl Collector for Read {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let readings = (self.read)();
        if readings.is_empty() {
            return Ok(());
        }
        let kind = if self.counter {
            ConstCounter::new(0u64).metric_type()
        } else {
            ConstGauge::new(0f64).metric_type()
        };
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        // A single reading without labels is written without braces after its name.
        if let [(labels, value)] = &readings[..]
            && labels.is_empty()
        {
            return encode_one(self.counter, *value, metric);
        }
        for (labels, value) in readings {
            encode_one(self.counter, value, metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn encode_one(counter: bool, value: f64, encoder: MetricEncoder<'_>) -> fmt::Result {
    if counter {
        ConstCounter::new(value).encode(encoder)
    } else {
        ConstGauge::new(value).encode(encoder)
    }
}

/// Metrics of the process.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let panics = ConstCounter::new(PANICS.load(Ordering::Relaxed));
        let metric = encoder.encode_descriptor(
            "tourin_panics",
            "Panics caught",
            None,
            panics.metric_type(),
        )?;
        panics.encode(metric)?;
        let stats = telemetry::stats();
        let exported: Readings = stats
            .destinations
            .iter()
            .map(|(to, counters)| {
                let count = counters.exported.load(Ordering::Relaxed);
                (vec![("destination", (*to).to_owned())], count as f64)
            })
            .collect();
        let mut dropped: Readings = Vec::new();
        for (to, counters) in &stats.destinations {
            for (reason, count) in
                [("queue_full", &counters.queue_full), ("not_taken", &counters.failed)]
            {
                let labels = vec![("destination", (*to).to_owned()), ("reason", reason.to_owned())];
                dropped.push((labels, count.load(Ordering::Relaxed) as f64));
            }
        }
        for (name, help, readings) in [
            ("tourin_trace_spans_exported", "Spans that their destination took", exported),
            ("tourin_trace_spans_dropped", "Spans lost on the way to their destination", dropped),
        ] {
            let kind = ConstCounter::new(0u64).metric_type();
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, value) in readings {
                ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn services_in_one_process_do_not_clash() {
        let (core, gateway) = (Metrics::new("core"), Metrics::new("gateway"));
        core.http().observe("/a/{id}", "GET", 200, Duration::from_millis(3));
        core.http().observe("/a/{id}", "GET", 503, Duration::from_millis(30));
        let text = core.render();
        for line in [
            r#"tourin_http_requests_total{service="core",route="/a/{id}",method="GET",status_class="2xx"} 1"#,
            r#"tourin_http_requests_total{service="core",route="/a/{id}",method="GET",status_class="5xx"} 1"#,
            r#"tourin_http_request_duration_seconds_bucket{le="0.005",service="core",route="/a/{id}",method="GET"} 1"#,
            r#"tourin_http_request_duration_seconds_count{service="core",route="/a/{id}",method="GET"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.contains("tourin_panics_total "), "{text}");
        assert!(!gateway.render().contains("/a/{id}"));
    }

    #[test]
    fn values_are_read_when_asked_for_and_labels_are_bounded() {
        let metrics = Metrics::new("core");
        metrics.gauge_read("tourin_outbox_depth", "Events not published yet", || Some(7.0));
        metrics.gauges_read("tourin_queue_depth", "Events waiting", || {
            vec![(vec![("queue", "a".to_owned())], 1.5)]
        });
        metrics.gauge_read("tourin_absent", "Not known", || None);
        metrics.gauge("tourin_pool_connections", "Connections").set(4.0);
        let tries = metrics.counters("tourin_tries", "Tries");
        tries.of([("upstream", "core"), ("outcome", "2xx")]).add(3);
        tries.of([("upstream", "core"), ("outcome", "5xx")]);
        let seconds = metrics.histograms("tourin_try_seconds", "Tries", &[1.0]);
        seconds.of([("upstream", "core")]).observe(0.5);
        let by_reason = metrics.counter_by("tourin_dead_letters", "Dead letters", "reason");
        for reason in 0..2 * MAX_LABEL_VALUES {
            by_reason.increase(&reason.to_string());
        }
        let text = metrics.render();
        assert!(text.contains("\ntourin_outbox_depth 7.0\n"), "{text}");
        assert!(
            text.contains("tourin_try_seconds_bucket{le=\"1.0\",upstream=\"core\"} 1"),
            "{text}"
        );
        for line in [
            "tourin_tries_total{upstream=\"core\",outcome=\"2xx\"} 3",
            "tourin_tries_total{upstream=\"core\",outcome=\"5xx\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.contains("tourin_queue_depth{queue=\"a\"} 1.5"), "{text}");
        assert!(!text.contains("tourin_absent"), "{text}");
        assert!(text.contains("tourin_pool_connections 4.0"), "{text}");
        assert!(text.contains("tourin_dead_letters_total{reason=\"other\"} 100"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
