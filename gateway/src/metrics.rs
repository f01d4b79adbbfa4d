//! The gateway's metrics besides those of its requests: attempts towards instances, refusals,
//! connections, and the age of token keys and revocations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tourin_chassis::metrics::{Counter, CounterBy, Gauge, Histogram, Metrics, REQUEST_SECONDS};

use crate::auth::keys::KeyStore;
use crate::auth::revocation::Revocations;
use crate::limits::ConcurrencyLimit;
use crate::mesh_client::GATEWAY;
use crate::routes::RouteTable;
use crate::upstreams::Upstreams;

/// The outcome of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryOutcome {
    /// Answered with a status of this class, 1 to 5.
    Answered(u8),
    /// No connection; nothing was sent.
    ConnectFailed,
    /// The connection was lost before the response was complete.
    BrokenOff,
    /// No response in time.
    TimedOut,
    /// Ended by the client: it disconnected, or its request was refused.
    Abandoned,
}

impl TryOutcome {
    const LABELS: [&'static str; 9] = [
        "1xx",
        "2xx",
        "3xx",
        "4xx",
        "5xx",
        "connect_failed",
        "broken_off",
        "timed_out",
        "abandoned",
    ];

    fn index(self) -> usize {
        match self {
            Self::Answered(class) => usize::from(class.clamp(1, 5)) - 1,
            Self::ConnectFailed => 5,
            Self::BrokenOff => 6,
            Self::TimedOut => 7,
            Self::Abandoned => 8,
        }
    }
}

/// Counts of one service behind the gateway.
#[derive(Debug)]
pub struct UpstreamMetrics {
    tries: [Counter; TryOutcome::LABELS.len()],
    retries: Counter,
    seconds: Histogram,
}

impl UpstreamMetrics {
    /// Counts an attempt by its outcome.
    pub fn tried(&self, outcome: TryOutcome) {
        self.tries[outcome.index()].increase();
    }

    /// Counts a retry.
    pub fn retried(&self) {
        self.retries.increase();
    }

    /// Records the time until an instance's response head.
    pub fn answered_after(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
    }
}

/// Client connections.
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    /// Open now.
    pub open: Gauge,
    /// Closed at once because their client had too many.
    pub refused: Counter,
}

/// The gateway's metrics.
#[derive(Debug)]
pub struct GatewayMetrics {
    /// With those that every service has.
    pub service: Metrics,
    /// Of client connections.
    pub connections: ConnectionMetrics,
    /// Renewals of sessions by cookie, by outcome.
    pub renewals: CounterBy,
    upstreams: BTreeMap<String, Arc<UpstreamMetrics>>,
    refusals: CounterBy,
}

impl GatewayMetrics {
    /// For a gateway with these routes.
    pub fn new(routes: &RouteTable) -> Self {
        let service = Metrics::new(GATEWAY);
        let seconds = service.histograms_by(
            "tourin_gateway_upstream_duration_seconds",
            "Time from the choice of an instance to its answer's head",
            ("upstream", routes.services()),
            REQUEST_SECONDS,
        );
        let tries = service.counters(
            "tourin_gateway_upstream_requests",
            "Tries towards instances, by how they ended",
        );
        let retries = service
            .counters("tourin_gateway_upstream_retries", "Requests sent again to another instance");
        let upstreams = seconds
            .into_iter()
            .map(|(name, seconds)| {
                let counts = UpstreamMetrics {
                    tries: TryOutcome::LABELS
                        .map(|outcome| tries.of([("upstream", &name), ("outcome", outcome)])),
                    retries: retries.of([("upstream", &name)]),
                    seconds,
                };
                (name, Arc::new(counts))
            })
            .collect();
        let connections = ConnectionMetrics {
            open: service.gauge("tourin_gateway_connections", "Client connections open"),
            refused: service.counter(
                "tourin_gateway_connections_refused",
                "Connections closed because their client had too many",
            ),
        };
        let refusals = service.counter_by(
            "tourin_gateway_refusals",
            "Requests that the gateway itself answered with an error, by the error's kind",
            "error",
        );
        let renewals = service.counter_by(
            "tourin_gateway_session_renewals",
            "Sessions of cookie clients that core was asked to renew, by what became of it",
            "outcome",
        );
        Self { service, connections, renewals, upstreams, refusals }
    }

    /// The counts of one service; `None` when no route names it.
    pub fn upstream(&self, service: &str) -> Option<&Arc<UpstreamMetrics>> {
        self.upstreams.get(service)
    }

    /// Counts a refusal of the gateway itself.
    pub fn refused(&self, error: &str) {
        self.refusals.increase(error);
    }

    /// Registers gauges that read the gateway's state at each scrape.
    pub fn read_state(
        &self,
        upstreams: Arc<Upstreams>,
        keys: Arc<KeyStore>,
        revocations: Arc<Revocations>,
        concurrency: ConcurrencyLimit,
    ) {
        let seconds = |age: Option<Duration>| age.map(|age| age.as_secs_f64());
        self.service.gauges_read(
            "tourin_gateway_upstream_instances",
            "Instances known to be up",
            move || {
                let counts = upstreams.counts().into_iter();
                counts.map(|(service, count)| (vec![("upstream", service)], count as f64)).collect()
            },
        );
        self.service.gauge_read(
            "tourin_gateway_token_keys_age_seconds",
            "Time since the keys that tokens are verified with were last fetched",
            move || seconds(keys.age()),
        );
        let feed = Arc::clone(&revocations);
        self.service.gauge_read(
            "tourin_gateway_revocations_age_seconds",
            "Time since the list of ended sessions was last known to be complete",
            move || seconds(feed.age()),
        );
        self.service.gauge_read(
            "tourin_gateway_revoked_sessions",
            "Ended sessions that are remembered",
            move || Some(revocations.count() as f64),
        );
        self.service.gauge_read(
            "tourin_gateway_requests_in_flight",
            "Requests in progress",
            move || Some(concurrency.in_use() as f64),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_counted_by_service_and_end() {
        let routes = RouteTable::parse(crate::routes::BUILT_IN).unwrap();
        let metrics = GatewayMetrics::new(&routes);
        let core = metrics.upstream("core").unwrap();
        for outcome in [TryOutcome::Answered(2), TryOutcome::Answered(5), TryOutcome::ConnectFailed]
        {
            core.tried(outcome);
        }
        core.retried();
        core.answered_after(Duration::from_millis(3));
        metrics.refused("unauthenticated");
        let text = metrics.service.render();
        for line in [
            r#"tourin_gateway_upstream_requests_total{upstream="core",outcome="2xx"} 1"#,
            r#"tourin_gateway_upstream_requests_total{upstream="core",outcome="5xx"} 1"#,
            r#"tourin_gateway_upstream_requests_total{upstream="core",outcome="connect_failed"} 1"#,
            r#"tourin_gateway_upstream_retries_total{upstream="core"} 1"#,
            r#"tourin_gateway_upstream_retries_total{upstream="recommendation"} 0"#,
            r#"tourin_gateway_upstream_duration_seconds_count{upstream="core"} 1"#,
            r#"tourin_gateway_refusals_total{error="unauthenticated"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(metrics.upstream("nobody").is_none());
    }
}
