//! Counts of ejections, health checks and retries that were not allowed.

use tourin_chassis::metrics::{Counter, Counters, Metrics};

use super::Reason;

/// Counters of all services.
#[derive(Debug, Clone)]
pub struct OutlierMetrics {
    ejections: Counters<2>,
    checks: Counters<2>,
    denied: Counters<1>,
}

/// Counters of one service.
#[derive(Debug)]
pub struct GroupMetrics {
    ejections: [Counter; Reason::ALL.len()],
    checks: [Counter; 2],
    denied: Counter,
}

impl OutlierMetrics {
    /// Registers the counters.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            ejections: metrics.counters(
                "tourin_gateway_ejections",
                "Instances that stopped getting requests, by the reason",
            ),
            checks: metrics.counters(
                "tourin_gateway_health_checks",
                "Health checks of instances, by their outcome",
            ),
            denied: metrics.counters(
                "tourin_gateway_retries_denied",
                "Attempts that failed and were not repeated because the budget of retries was used up",
            ),
        }
    }

    /// Those of a service.
    pub fn of(&self, service: &str) -> GroupMetrics {
        let check = |outcome| self.checks.of([("upstream", service), ("outcome", outcome)]);
        GroupMetrics {
            ejections: Reason::ALL.map(|reason| {
                self.ejections.of([("upstream", service), ("reason", reason.label())])
            }),
            checks: ["failed", "passed"].map(check),
            denied: self.denied.of([("upstream", service)]),
        }
    }
}

impl GroupMetrics {
    /// Counts an ejection.
    pub fn ejected(&self, reason: Reason) {
        self.ejections[reason as usize].increase();
    }

    /// Counts a health check.
    pub fn checked(&self, passed: bool) {
        self.checks[usize::from(passed)].increase();
    }

    /// Counts a retry that the budget did not allow.
    pub fn retry_denied(&self) {
        self.denied.increase();
    }
}
