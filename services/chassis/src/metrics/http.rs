//! Rate, errors and duration of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::REQUEST_SECONDS;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    service: &'static str,
    route: String,
    method: &'static str,
    status_class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    service: &'static str,
    route: String,
    method: &'static str,
}

/// Counts and measures requests by route, method and class of status.
#[derive(Debug, Clone)]
pub struct HttpMetrics {
    service: &'static str,
    requests: Family<Outcome, Counter>,
    durations: Family<Operation, Histogram, fn() -> Histogram>,
    totals: Arc<Totals>,
}

#[derive(Debug, Default)]
struct Totals {
    served: AtomicU64,
    errors: AtomicU64,
}

impl HttpMetrics {
    pub(super) fn register(registry: &mut Registry, service: &'static str) -> Self {
        let buckets: fn() -> Histogram = || Histogram::new(REQUEST_SECONDS.iter().copied());
        let metrics = Self {
            service,
            requests: Family::default(),
            durations: Family::new_with_constructor(buckets),
            totals: Arc::default(),
        };
        registry.register(
            "tourin_http_requests",
            "Requests answered, by class of status",
            metrics.requests.clone(),
        );
        registry.register(
            "tourin_http_request_duration_seconds",
            "Time from a request's head to its answer's head",
            metrics.durations.clone(),
        );
        metrics
    }

    /// The requests answered so far, and those of them that were answered with 5xx; without probes and
    /// scrapes.
    pub fn totals(&self) -> (u64, u64) {
        let Totals { served, errors } = &*self.totals;
        (served.load(Ordering::Relaxed), errors.load(Ordering::Relaxed))
    }

    /// Observes one request. `route` is a template and `method` a name from a fixed list: a value
    /// that clients choose freely must not become a label.
    pub fn observe(&self, route: &str, method: &'static str, status: u16, took: Duration) {
        let status_class = match status {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            499 => "gone",
            400..=498 => "4xx",
            _ => "5xx",
        };
        self.record((route, method, status_class), took);
    }

    /// Observes a request that was answered by a substitute for its response: class `degraded`, whatever
    /// its status.
    pub fn observe_degraded(&self, route: &str, method: &'static str, took: Duration) {
        self.record((route, method, "degraded"), took);
    }

    fn record(
        &self,
        (route, method, status_class): (&str, &'static str, &'static str),
        took: Duration,
    ) {
        if !matches!(route, "/healthz" | "/readyz" | "/metrics") {
            self.totals.served.fetch_add(1, Ordering::Relaxed);
            let is_error = matches!(status_class, "5xx" | "degraded");
            self.totals.errors.fetch_add(u64::from(is_error), Ordering::Relaxed);
        }
        let service = self.service;
        self.requests
            .get_or_create(&Outcome { service, route: route.to_owned(), method, status_class })
            .inc();
        self.durations
            .get_or_create(&Operation { service, route: route.to_owned(), method })
            .observe(took.as_secs_f64());
    }
}
