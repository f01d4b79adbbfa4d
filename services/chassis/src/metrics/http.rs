//! Rate, errors and duration of requests.

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
}

impl HttpMetrics {
    pub(super) fn register(registry: &mut Registry, service: &'static str) -> Self {
        let buckets: fn() -> Histogram = || Histogram::new(REQUEST_SECONDS.iter().copied());
        let metrics = Self {
            service,
            requests: Family::default(),
            durations: Family::new_with_constructor(buckets),
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
        let service = self.service;
        self.requests
            .get_or_create(&Outcome { service, route: route.to_owned(), method, status_class })
            .inc();
        self.durations
            .get_or_create(&Operation { service, route: route.to_owned(), method })
            .observe(took.as_secs_f64());
    }
}
