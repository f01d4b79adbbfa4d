//! Whether the gateway is ready, by what is missing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tourin_chassis::health::{Health, watch_certificate};
use tourin_chassis::metrics::Metrics;
use tourin_registry_api::{UNREACHABLE, Workload};

/// How long a new gateway is unready because a routed service has no instance. A service may have a
/// route and never be started.
const SERVICES_TIMEOUT: Duration = Duration::from_secs(5);

/// What the gateway's readiness depends on beside its data.
pub struct Readiness {
    /// Whether the registry can be reached.
    registry: watch::Receiver<bool>,
    /// What it cannot do without.
    health: Health,
    started: Instant,
    was_ready: AtomicBool,
}

impl Readiness {
    /// That of a gateway that starts now, with this identity. `registry` says whether the registry can be
    /// reached.
    pub fn new(workload: &Workload, registry: watch::Receiver<bool>, metrics: &Metrics) -> Self {
        let (health, own) = (Health::new(), workload.clone());
        watch_certificate(move || own.left(), (&health, metrics));
        Self { registry, health, started: Instant::now(), was_ready: AtomicBool::new(false) }
    }

    /// The status and the report, with what is `unready` and whether something `essential` is among it.
    pub fn report(
        &self,
        mut unready: Map<String, Value>,
        mut essential: bool,
    ) -> (StatusCode, Value) {
        for (name, reason) in self.health.unready() {
            essential = true;
            unready.insert(name.to_owned(), reason.into());
        }
        let (status, word) = if unready.is_empty() {
            self.was_ready.store(true, Ordering::Relaxed);
            (StatusCode::OK, "ready")
        } else if !essential
            && (self.was_ready.load(Ordering::Relaxed)
                || self.started.elapsed() >= SERVICES_TIMEOUT)
        {
            // One service's outage must not take the gateway out of a load balancer, because the
            // other services' calls would be lost too.
            (StatusCode::OK, "degraded")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "unready")
        };
        let mut report = json!({"status": word, "unready": unready});
        if !*self.registry.borrow() {
            report["missed"] = json!({"registry": UNREACHABLE});
        }
        (status, report)
    }
}

#[cfg(test)]
mod tests {
    use tourin_registry::testing::workload_for;

    use super::*;

    #[test]
    fn a_gateway_whose_certificate_has_run_out_is_not_ready() {
        let (_says, registry) = watch::channel(true);
        let report = |lifetime_s: u32| {
            let metrics = Metrics::new("gateway");
            let workload = workload_for("gateway", lifetime_s);
            let readiness = Readiness::new(&workload, registry.clone(), &metrics);
            // It was ready before, so that others' outages do not count.
            readiness.was_ready.store(true, Ordering::Relaxed);
            (readiness.report(Map::new(), false), metrics.render())
        };
        let ((status, said), metrics) = report(3_600);
        assert_eq!((status, &said["status"]), (StatusCode::OK, &json!("ready")));
        assert!(metrics.contains("\ntourin_certificate_left_seconds 3"), "{metrics}");

        let ((status, said), metrics) = report(0);
        assert_eq!((status, &said["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unready")));
        assert!(said["unready"]["certificate"].is_string(), "{said}");
        assert!(metrics.contains("\ntourin_certificate_left_seconds 0.0\n"), "{metrics}");
    }
}
