//! The gateway's metrics besides those of its requests: attempts towards instances, refusals,
//! connections, and the age of token keys and revocations.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tourin_chassis::metrics::{
    Counter, CounterBy, Counters, Gauge, Histogram, Histograms, Metrics, REQUEST_SECONDS,
};

use crate::auth::keys::KeyStore;
use crate::auth::revocation::Revocations;
use crate::auth::revocation::canary::CanaryMetrics;
use crate::balance::ServicePool;
use crate::keyed::Keyed;
use crate::limits::ConcurrencyLimit;
use crate::outliers::OutlierMetrics;
use crate::routes::CurrentRoutes;
use crate::tls::CertificateStore;
use crate::upstreams::Upstreams;
use tourin_chassis::peer::GATEWAY;

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
    /// By id. Those of instances that have left are forgotten when the metrics are read.
    instances: Keyed<InstanceMetrics>,
}

/// Counts of one instance.
#[derive(Debug, Default)]
struct InstanceMetrics {
    /// By [`InstanceMetrics::OUTCOMES`].
    requests: [AtomicU64; 3],
    answer_micros: AtomicU64,
}

impl InstanceMetrics {
    const OUTCOMES: [&'static str; 3] = ["ok", "failed", "abandoned"];

    fn tried(&self, outcome: TryOutcome) {
        let index = match outcome {
            TryOutcome::Answered(..5) => 0,
            TryOutcome::Abandoned => 2,
            _ => 1,
        };
        self.requests[index].fetch_add(1, Ordering::Relaxed);
    }
}

impl UpstreamMetrics {
    /// Counts an attempt on `instance` by its outcome.
    pub fn tried(&self, instance: &str, outcome: TryOutcome) {
        self.tries[outcome.index()].increase();
        self.instances.get_or_insert_with(instance, InstanceMetrics::default).tried(outcome);
    }

    /// Counts a retry.
    pub fn retried(&self) {
        self.retries.increase();
    }

    /// Records the time until the response head of `instance`.
    pub fn answered_after(&self, instance: &str, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let instance = self.instances.get_or_insert_with(instance, InstanceMetrics::default);
        instance.answer_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// Client connections.
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    /// Open now.
    pub open: Gauge,
    /// Closed at once because their client had too many.
    pub refused: Counter,
    /// Closed while idle, to make room for others.
    pub evicted: Counter,
    /// Closed at once because the PROXY header that a balancer owes was missing or invalid.
    pub proxy_headers_refused: Counter,
    /// Closed because their TLS handshake failed.
    pub tls_failed: Counter,
    /// Closed because their client reset too many requests.
    pub http2_reset_floods: Counter,
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
    /// Of ejections, health checks and retries.
    pub outliers: OutlierMetrics,
    /// How soon this gateway learns of ended sessions.
    pub canaries: CanaryMetrics,
    /// By service. Those of a service that is no longer routed stay.
    upstreams: Arc<Keyed<UpstreamMetrics>>,
    tries: Counters<2>,
    retries: Counters<1>,
    seconds: Histograms<1>,
    refusals: CounterBy,
    fallbacks: Counters<2>,
}

impl GatewayMetrics {
    /// For a gateway with these routes.
    pub fn new(routes: &CurrentRoutes) -> Self {
        let service = Metrics::new(GATEWAY);
        let seconds = service.histograms(
            "tourin_gateway_upstream_duration_seconds",
            "Time from the choice of an instance to its answer's head",
            REQUEST_SECONDS,
        );
        let tries = service.counters(
            "tourin_gateway_upstream_requests",
            "Tries towards instances, by how they ended",
        );
        let retries = service
            .counters("tourin_gateway_upstream_retries", "Requests sent again to another instance");
        let connections = ConnectionMetrics {
            open: service.gauge("tourin_gateway_connections", "Client connections open"),
            refused: service.counter(
                "tourin_gateway_connections_refused",
                "Connections closed because their client had too many",
            ),
            evicted: service.counter(
                "tourin_gateway_connections_evicted",
                "Connections closed while idle, because their client had too many or the gateway was full",
            ),
            proxy_headers_refused: service.counter(
                "tourin_gateway_proxy_headers_refused",
                "Connections of balancers closed because of a missing or invalid PROXY header",
            ),
            tls_failed: service.counter(
                "tourin_gateway_tls_handshakes_failed",
                "Connections closed because their TLS handshake failed",
            ),
            http2_reset_floods: service.counter(
                "tourin_gateway_http2_reset_floods",
                "HTTP/2 connections closed because their client reset too many requests",
            ),
        };
        let refusals = service.counter_by(
            "tourin_gateway_refusals",
            "Requests that the gateway itself answered with an error, by the error's kind",
            "error",
        );
        let canaries = CanaryMetrics::new(&service);
        let renewals = service.counter_by(
            "tourin_gateway_session_renewals",
            "Sessions of cookie clients that core was asked to renew, by what became of it",
            "outcome",
        );
        let outliers = OutlierMetrics::new(&service);
        let fallbacks = service.counters(
            "tourin_gateway_fallbacks",
            "Requests that were answered by their route's fall-back, by why its service did not serve them",
        );
        let upstreams = Arc::default();
        let metrics = Self {
            service,
            connections,
            renewals,
            outliers,
            canaries,
            upstreams,
            tries,
            retries,
            seconds,
            refusals,
            fallbacks,
        };
        // They are in the output before the first request.
        for service in routes.services() {
            metrics.upstream(&service);
        }
        metrics
    }

    /// The counts of one routed service.
    pub fn upstream(&self, service: &str) -> Arc<UpstreamMetrics> {
        self.upstreams.get_or_insert_with(service, || UpstreamMetrics {
            tries: TryOutcome::LABELS
                .map(|outcome| self.tries.of([("upstream", service), ("outcome", outcome)])),
            retries: self.retries.of([("upstream", service)]),
            seconds: self.seconds.of([("upstream", service)]),
            instances: Keyed::default(),
        })
    }

    /// Counts a refusal of the gateway itself.
    pub fn refused(&self, error: &str) {
        self.refusals.increase(error);
    }

    /// Counts a request that was answered by its route's fall-back.
    pub fn fell_back(&self, route: &str, reason: &'static str) {
        self.fallbacks.of([("route", route), ("reason", reason)]).increase();
    }

    /// Registers a gauge that reads the ends of the TLS certificates at each scrape.
    pub fn read_certificates(&self, certificates: Arc<CertificateStore>) {
        self.service.gauges_read(
            "tourin_gateway_tls_certificate_not_after_timestamp_seconds",
            "When a TLS certificate of the clients' listener ends, in seconds since 1970",
            move || {
                let ends = certificates.ends().into_iter();
                ends.map(|(file, end)| (vec![("file", file)], end)).collect()
            },
        );
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
        read_pools(&self.service, &upstreams);
        let (of_services, known) = (Arc::clone(&self.upstreams), Arc::clone(&upstreams));
        self.service.counters_read(
            "tourin_gateway_instance_requests",
            "Tries towards an instance, by how they ended",
            move || {
                let mut counts = Vec::new();
                for_each_instance(&of_services, &known, |service, id, instance| {
                    for (outcome, count) in InstanceMetrics::OUTCOMES.iter().zip(&instance.requests)
                    {
                        let labels = vec![
                            ("upstream", service.to_owned()),
                            ("instance", id.to_owned()),
                            ("outcome", (*outcome).to_owned()),
                        ];
                        counts.push((labels, count.load(Ordering::Relaxed) as f64));
                    }
                });
                counts
            },
        );
        let (of_services, known) = (Arc::clone(&self.upstreams), Arc::clone(&upstreams));
        self.service.counters_read(
            "tourin_gateway_instance_answer_seconds",
            "Time until the heads of an instance's answers, added up",
            move || {
                let mut times = Vec::new();
                for_each_instance(&of_services, &known, |service, id, instance| {
                    let labels =
                        vec![("upstream", service.to_owned()), ("instance", id.to_owned())];
                    let micros = instance.answer_micros.load(Ordering::Relaxed);
                    times.push((labels, micros as f64 / 1e6));
                });
                times
            },
        );
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
        let measured = Arc::clone(&revocations);
        self.service.gauge_read(
            "tourin_gateway_revocation_canary_age_seconds",
            "Time since a canary session was last seen to end",
            move || seconds(measured.canary_age()),
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

/// Reads the counts of each instance that the registry has, and forgets the others: ids are new with each
/// start of an instance.
fn for_each_instance(
    services: &Keyed<UpstreamMetrics>,
    known: &Upstreams,
    mut read: impl FnMut(&str, &str, &InstanceMetrics),
) {
    for (service, counts) in services.all().iter() {
        let ids = known.ids(service);
        counts.instances.retain(|id, _| ids.contains(id));
        for (id, instance) in counts.instances.all().iter() {
            read(service, id, instance);
        }
    }
}

fn read_pools(metrics: &Metrics, upstreams: &Arc<Upstreams>) {
    let pools = Arc::clone(upstreams);
    metrics.gauges_read(
        "tourin_gateway_instances_down",
        "Instances that get no requests: ejected because of calls, or unreachable by health checks",
        move || {
            let of = |pool: Arc<ServicePool>| {
                let (ejected, unreachable) = pool.group().down();
                let of = |state: &str, count: usize| {
                    let labels =
                        vec![("upstream", pool.name().to_owned()), ("state", state.to_owned())];
                    (labels, count as f64)
                };
                [of("ejected", ejected), of("unreachable", unreachable)]
            };
            pools.pools().into_iter().flat_map(of).collect()
        },
    );
    let pools = Arc::clone(upstreams);
    metrics.gauges_read(
        "tourin_gateway_panic",
        "Whether so few instances are up that ejected ones get requests too",
        move || {
            let of = |pool: Arc<ServicePool>| {
                let labels = vec![("upstream", pool.name().to_owned())];
                (labels, f64::from(u8::from(pool.group().is_panic())))
            };
            pools.pools().into_iter().map(of).collect()
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::RouteTable;

    #[test]
    fn tries_are_counted_by_service_and_end() {
        let table = RouteTable::parse(crate::routes::BUILT_IN).unwrap();
        let metrics = GatewayMetrics::new(&CurrentRoutes::new(table));
        let core = metrics.upstream("core");
        for outcome in [TryOutcome::Answered(2), TryOutcome::Answered(5), TryOutcome::ConnectFailed]
        {
            core.tried("core-1", outcome);
        }
        core.retried();
        core.answered_after("core-1", Duration::from_millis(3));
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
        metrics.upstream("later").retried();
        let text = metrics.service.render();
        let later = r#"tourin_gateway_upstream_retries_total{upstream="later"} 1"#;
        assert!(text.contains(later), "{text}");
    }
}
