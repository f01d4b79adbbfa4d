//! What a request passes before its service is asked: the circuit breaker of its route, and the service's
//! concurrency limit. Both learn how it ended.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tourin_chassis::metrics::Metrics;

use crate::adaptive::{AdaptiveSettings, LimitReport, ServiceLimit, ServiceLimits, Waiting};
use crate::breaker::{Breaker, BreakerReport, BreakerSettings, Breakers, Ticket};
use crate::messages;
use crate::responses::Response;
use crate::routes::{CurrentRoutes, Route};
use crate::unserved::Unserved;

/// The breakers and limits of all routes and services.
#[derive(Debug)]
pub struct ServiceGuards {
    breakers: Breakers,
    limits: ServiceLimits,
}

/// Their state, for operators.
#[derive(Debug, Serialize)]
pub struct GuardReport {
    /// By route.
    pub breakers: Vec<BreakerReport>,
    /// By service.
    pub limits: Vec<LimitReport>,
}

/// How a request ended that a service was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With a response of this status.
    Answered(u16),
    /// Without a response.
    Failed(Unserved),
}

impl Outcome {
    /// Whether the breaker counts it as a failure; `None` when it says nothing about the service.
    fn is_failure(self) -> Option<bool> {
        match self {
            Self::Answered(status) => Some(status >= 500),
            Self::Failed(
                Unserved::Unreachable
                | Unserved::TimedOut
                | Unserved::BrokenOff
                | Unserved::ServerError,
            ) => Some(true),
            // Nobody was asked.
            Self::Failed(Unserved::NoInstance | Unserved::BreakerOpen | Unserved::Overloaded) => {
                None
            }
        }
    }

    /// Whether its time says how long the service takes. Errors come quicker than responses.
    fn is_timed(self) -> bool {
        match self {
            Self::Answered(status) => status < 500,
            Self::Failed(reason) => reason == Unserved::TimedOut,
        }
    }
}

impl ServiceGuards {
    /// Guards with these settings.
    pub fn new(breakers: BreakerSettings, limits: AdaptiveSettings) -> Self {
        Self { breakers: Breakers::new(breakers), limits: ServiceLimits::new(limits) }
    }

    /// Admits a call of a route's service. One whose body is not `complete` waits for the service only from
    /// [`ServiceCall::request_sent`] on; until then it is the client that is slow.
    ///
    /// # Errors
    /// The response to send instead, while the breaker is open or the service at its limit.
    pub fn enter(&self, route: &Route, complete: bool) -> Result<ServiceCall, Response> {
        let now = Instant::now();
        let breaker = self.breakers.of(&route.template, &route.service, &route.breaker);
        let ticket = breaker.admit(now).map_err(|wait| {
            Response::unavailable_for(messages::service_is_failing(&route.service), wait)
                .because(Unserved::BreakerOpen)
        })?;
        let limit = self.limits.of(&route.service);
        // Dropped with its ticket if there is no place.
        let mut call =
            ServiceCall { breaker, ticket: Some(ticket), limit, waiting: None, began: now };
        let waiting = call.limit.try_enter(route.priority, now).map_err(|wait| {
            Response::unavailable_for(messages::service_at_its_limit(&route.service), wait)
                .because(Unserved::Overloaded)
        })?;
        call.waiting = Some(waiting).filter(|_| complete);
        Ok(call)
    }

    /// The state of all guards.
    pub fn report(&self) -> GuardReport {
        GuardReport { breakers: self.breakers.report(), limits: self.limits.report() }
    }

    /// Forgets the guards of what is no longer routed, at each change of the routes, until `stop`.
    pub async fn follow(&self, routes: Arc<CurrentRoutes>, stop: CancellationToken) {
        let mut changed = routes.changed();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                // The sender lives as long as `routes`.
                _ = changed.changed() => {}
            }
            let table = routes.table();
            let templates: BTreeSet<&str> = table.iter().map(|route| &*route.template).collect();
            self.breakers.retain(|template| templates.contains(template));
            self.limits.retain(|service| table.services().contains(service));
        }
    }

    /// Registers the metrics that show their state at each scrape.
    pub fn read_state(self: &Arc<Self>, metrics: &Metrics) {
        macro_rules! read {
            ($register:ident, $name:literal, $help:literal, $report:ident, |$row:ident| $readings:expr) => {{
                let guards = Arc::clone(self);
                metrics.$register($name, $help, move || {
                    guards.$report.report().into_iter().flat_map(|$row| $readings).collect()
                });
            }};
        }
        let route = |report: &BreakerReport| vec![("route", report.route.clone())];
        let upstream = |report: &LimitReport| vec![("upstream", report.service.clone())];
        read!(
            gauges_read,
            "tourin_gateway_breaker_state",
            "State of a route's circuit breaker: 0 closed, 1 half open, 2 open",
            breakers,
            |report| [(route(&report), report.level())]
        );
        read!(
            counters_read,
            "tourin_gateway_breaker_opened",
            "Times that a route's circuit breaker has opened",
            breakers,
            |report| [(route(&report), report.opened as f64)]
        );
        read!(
            counters_read,
            "tourin_gateway_breaker_refusals",
            "Requests that a route's circuit breaker has refused",
            breakers,
            |report| [(route(&report), report.refused as f64)]
        );
        read!(
            gauges_read,
            "tourin_gateway_adaptive_limit",
            "Requests that may wait for a service",
            limits,
            |report| [(upstream(&report), report.limit as f64)]
        );
        read!(
            gauges_read,
            "tourin_gateway_waiting_requests",
            "Requests that wait for a service",
            limits,
            |report| [(upstream(&report), report.waiting as f64)]
        );
        read!(
            counters_read,
            "tourin_gateway_shed_requests",
            "Requests that were refused because their service was at its limit",
            limits,
            |report| report.shed.map(|(priority, count)| {
                let mut labels = upstream(&report);
                labels.push(("priority", priority.to_owned()));
                (labels, count as f64)
            })
        );
    }
}

/// A request that was let through to its service. Dropped without an outcome it says nothing, as when its
/// client leaves.
#[derive(Debug)]
pub struct ServiceCall {
    breaker: Arc<Breaker>,
    ticket: Option<Ticket>,
    limit: Arc<ServiceLimit>,
    /// `None` while a body passes.
    waiting: Option<Waiting>,
    began: Instant,
}

impl ServiceCall {
    /// Whether it is a probe of a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.ticket.is_some_and(|ticket| ticket.is_probe)
    }

    /// The service has the whole request since `now`, after a body that came as slowly as its client sent it.
    /// It was asked for by then, so it waits even if the service is at its limit.
    pub fn request_sent(&mut self, now: Instant) {
        self.began = now;
        self.waiting.get_or_insert_with(|| self.limit.enter());
    }

    /// The outcome after all attempts, the last of which was at `instance`.
    pub fn settle(mut self, outcome: Outcome, instance: &str) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.began);
        if let Some(failed) = outcome.is_failure()
            && let Some(ticket) = self.ticket.take()
        {
            let mut id = DefaultHasher::new();
            instance.hash(&mut id);
            self.breaker.settle(ticket, failed, took, id.finish(), now);
        }
        if outcome.is_timed()
            && let Some(waiting) = self.waiting.take()
        {
            waiting.answered(took, now);
        }
    }
}

impl Drop for ServiceCall {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.breaker.withdraw(ticket);
        }
    }
}
