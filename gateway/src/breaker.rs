//! Circuit breakers, one per route and service.
//!
//! A breaker sees how a request ended after its retries, and opens when too large a share of the last
//! calls failed or was slow. While it is open, requests are refused at once. Then a few probes go through,
//! and close it or open it again.
//!
//! # What counts
//! Failed are a status of 500 or more, a time-out, a connection that could not be made or was lost before
//! the response's head. A 4xx is the caller's and counts as good. A client that leaves, a request that was
//! refused before a service was asked, and a request without any instance count as nothing. A call is slow
//! by the time until its response's head, so that a long download or a stream of events is not.
//!
//! # One bad instance
//! Failures of one instance are for outlier ejection, not for the breaker: others may be fine. So the share
//! must be reached without the worst instance of the window too, if others were called.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::keyed::Keyed;
use crate::policy_fields::{FieldError, number};

/// Largest window, in calls. A full one is read as a whole when its share is reached.
const MAX_WINDOW: u64 = 100;
/// Longest times, in milliseconds.
const MAX_MS: u64 = 600_000;

/// The breakers' defaults, which a route's `[route.breaker]` overrides.
#[derive(Debug, Clone, Args)]
pub struct BreakerSettings {
    /// Percent of the last calls of a route that must have failed for its circuit breaker to open
    #[arg(long, env = "TOURIN_GATEWAY_BREAKER_FAILURE_PERCENT", value_name = "PERCENT", default_value_t = 50, value_parser = value_parser!(u64).range(1..=100))]
    pub breaker_failure_percent: u64,
    /// Percent of the last calls of a route that must have been slow for its circuit breaker to open
    #[arg(long, env = "TOURIN_GATEWAY_BREAKER_SLOW_PERCENT", value_name = "PERCENT", default_value_t = 50, value_parser = value_parser!(u64).range(1..=100))]
    pub breaker_slow_percent: u64,
    /// Milliseconds until a response's head from which on a call is slow
    #[arg(long, env = "TOURIN_GATEWAY_BREAKER_SLOW_CALL_MS", value_name = "MS", default_value_t = 3_000, value_parser = value_parser!(u64).range(1..=MAX_MS))]
    pub breaker_slow_call_ms: u64,
    /// Last calls of a route that its circuit breaker looks at
    #[arg(long, env = "TOURIN_GATEWAY_BREAKER_WINDOW_CALLS", value_name = "N", default_value_t = 10, value_parser = value_parser!(u64).range(1..=MAX_WINDOW))]
    pub breaker_window_calls: u64,
    /// Calls below which a circuit breaker does not open
    #[arg(long, env = "TOURIN_GATEWAY_BREAKER_MINIMUM_CALLS", value_name = "N", default_value_t = 5, value_parser = value_parser!(u64).range(1..=MAX_WINDOW))]
    pub breaker_minimum_calls: u64,
    /// Milliseconds for which an open circuit breaker refuses calls before it lets probes through
    #[arg(long, env = "TOURIN_GATEWAY_BREAKER_OPEN_MS", value_name = "MS", default_value_t = 1_000, value_parser = value_parser!(u64).range(1..=MAX_MS))]
    pub breaker_open_ms: u64,
    /// Probes after which a circuit breaker closes or opens again
    #[arg(long, env = "TOURIN_GATEWAY_BREAKER_HALF_OPEN_CALLS", value_name = "N", default_value_t = 4, value_parser = value_parser!(u64).range(1..=MAX_WINDOW))]
    pub breaker_half_open_calls: u64,
}

/// A `[route.breaker]` as it stands in the table. What it leaves out is the gateway's default.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBreaker {
    enabled: Option<bool>,
    failure_percent: Option<Spanned<u64>>,
    slow_percent: Option<Spanned<u64>>,
    slow_call_ms: Option<Spanned<u64>>,
    window_calls: Option<Spanned<u64>>,
    minimum_calls: Option<Spanned<u64>>,
    open_ms: Option<Spanned<u64>>,
    half_open_calls: Option<Spanned<u64>>,
}

/// What a route says of its breaker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteBreaker {
    enabled: Option<bool>,
    failure_percent: Option<u64>,
    slow_percent: Option<u64>,
    slow_call_ms: Option<u64>,
    window_calls: Option<u64>,
    minimum_calls: Option<u64>,
    open_ms: Option<u64>,
    half_open_calls: Option<u64>,
}

impl RawBreaker {
    /// The checked values.
    ///
    /// # Errors
    /// For a number out of its range.
    pub fn check(&self) -> Result<RouteBreaker, FieldError> {
        let field = |name: &str, value: &Option<Spanned<u64>>, most| {
            number(&format!("breaker.{name}"), value.as_ref(), 1..=most)
        };
        let checked = RouteBreaker {
            enabled: self.enabled,
            failure_percent: field("failure_percent", &self.failure_percent, 100)?,
            slow_percent: field("slow_percent", &self.slow_percent, 100)?,
            slow_call_ms: field("slow_call_ms", &self.slow_call_ms, MAX_MS)?,
            window_calls: field("window_calls", &self.window_calls, MAX_WINDOW)?,
            minimum_calls: field("minimum_calls", &self.minimum_calls, MAX_WINDOW)?,
            open_ms: field("open_ms", &self.open_ms, MAX_MS)?,
            half_open_calls: field("half_open_calls", &self.half_open_calls, MAX_WINDOW)?,
        };
        if let (Some(minimum), Some(window)) = (&self.minimum_calls, checked.window_calls)
            && *minimum.get_ref() > window
        {
            let expected = format!("at most window_calls, which is {window}");
            let value = minimum.get_ref();
            return Err(FieldError::new(
                minimum.span().start,
                "breaker.minimum_calls",
                value,
                expected,
            ));
        }
        Ok(checked)
    }
}

/// When a breaker opens and closes.
#[derive(Debug, Clone, Copy)]
struct Policy {
    failure_percent: u64,
    slow_percent: u64,
    slow_call: Duration,
    window: usize,
    minimum: usize,
    open_for: Duration,
    probes: usize,
}

impl BreakerSettings {
    /// The policy of a route; `None` if the route turns its breaker off.
    fn policy(&self, route: &RouteBreaker) -> Option<Policy> {
        // At most 100.
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let window = count(route.window_calls.unwrap_or(self.breaker_window_calls));
        let minimum = count(route.minimum_calls.unwrap_or(self.breaker_minimum_calls));
        let ms = |route: Option<u64>, default| Duration::from_millis(route.unwrap_or(default));
        (route.enabled != Some(false)).then_some(Policy {
            failure_percent: route.failure_percent.unwrap_or(self.breaker_failure_percent),
            slow_percent: route.slow_percent.unwrap_or(self.breaker_slow_percent),
            slow_call: ms(route.slow_call_ms, self.breaker_slow_call_ms),
            window,
            // A minimum beyond the window would never be reached.
            minimum: minimum.min(window),
            open_for: ms(route.open_ms, self.breaker_open_ms),
            probes: count(route.half_open_calls.unwrap_or(self.breaker_half_open_calls)),
        })
    }
}

/// A call that has ended.
#[derive(Debug, Clone, Copy)]
struct Call {
    failed: bool,
    slow: bool,
    instance: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { admitted: usize },
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Counts changes of the state. A call that was admitted before one says nothing after it.
    generation: u64,
    calls: VecDeque<Call>,
}

/// The right to make one call. It must be settled or withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    generation: u64,
    /// Whether it is a probe of a half-open breaker.
    pub is_probe: bool,
}

/// The breaker of one route and service.
#[derive(Debug)]
pub struct Breaker {
    template: Box<str>,
    service: Arc<str>,
    route: RouteBreaker,
    policy: Option<Policy>,
    inner: Mutex<Inner>,
    opened: AtomicU64,
    refused: AtomicU64,
}

/// A breaker as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BreakerReport {
    /// The route's template.
    pub route: String,
    /// Its service.
    pub service: String,
    /// `closed`, `half_open` or `open`.
    pub state: &'static str,
    /// Calls in the window.
    pub calls: usize,
    /// Those of them that failed.
    pub failed: usize,
    /// Those of them that were slow.
    pub slow: usize,
    /// How often it has opened.
    pub opened: u64,
    /// Requests that it has refused.
    pub refused: u64,
}

impl BreakerReport {
    /// 0 for closed, 1 for half open, 2 for open.
    pub fn level(&self) -> f64 {
        match self.state {
            "closed" => 0.0,
            "half_open" => 1.0,
            _ => 2.0,
        }
    }
}

impl Breaker {
    fn new(template: &str, service: Arc<str>, route: RouteBreaker, policy: Option<Policy>) -> Self {
        let inner = Inner { state: State::Closed, generation: 0, calls: VecDeque::new() };
        let (opened, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        let template = template.into();
        Self { template, service, route, policy, inner: Mutex::new(inner), opened, refused }
    }

    /// Admits a call.
    ///
    /// # Errors
    /// The time after which to try again.
    pub fn admit(&self, now: Instant) -> Result<Ticket, Duration> {
        let Some(policy) = &self.policy else {
            return Ok(Ticket { generation: 0, is_probe: false });
        };
        let inner = &mut *self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Open { until } = inner.state {
            if let Some(left) = until.checked_duration_since(now).filter(|left| !left.is_zero()) {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Err(left);
            }
            inner.turn(State::HalfOpen { admitted: 0 });
        }
        let generation = inner.generation;
        match &mut inner.state {
            State::HalfOpen { admitted } if *admitted >= policy.probes => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(policy.open_for)
            }
            State::HalfOpen { admitted } => {
                *admitted += 1;
                Ok(Ticket { generation, is_probe: true })
            }
            _ => Ok(Ticket { generation, is_probe: false }),
        }
    }

    /// The call has ended: `failed` or not, after `took`, at `instance`.
    pub fn settle(
        &self,
        ticket: Ticket,
        failed: bool,
        took: Duration,
        instance: u64,
        now: Instant,
    ) {
        let Some(policy) = &self.policy else { return };
        let inner = &mut *self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.generation != ticket.generation {
            return;
        }
        let size = if ticket.is_probe { policy.probes } else { policy.window };
        if inner.calls.len() >= size {
            inner.calls.pop_front();
        }
        inner.calls.push_back(Call { failed, slow: took >= policy.slow_call, instance });
        let enough = if ticket.is_probe { policy.probes } else { policy.minimum };
        if inner.calls.len() < enough {
            return;
        }
        let (route, service) = (&self.template, &self.service);
        if policy.is_reached(&inner.calls) {
            let (calls, failed, slow) = inner.counts();
            tracing::warn!(%route, %service, calls, failed, slow, "a circuit breaker has opened");
            inner.turn(State::Open { until: now + policy.open_for });
            self.opened.fetch_add(1, Ordering::Relaxed);
        } else if ticket.is_probe {
            inner.turn(State::Closed);
            tracing::info!(%route, %service, "a circuit breaker has closed");
        }
    }

    /// The call has ended and says nothing about the service.
    pub fn withdraw(&self, ticket: Ticket) {
        let inner = &mut *self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.generation == ticket.generation
            && let State::HalfOpen { admitted } = &mut inner.state
        {
            *admitted = admitted.saturating_sub(1);
        }
    }

    fn report(&self, now: Instant) -> BreakerReport {
        let inner = &*self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (calls, failed, slow) = inner.counts();
        BreakerReport {
            route: self.template.to_string(),
            service: self.service.to_string(),
            state: match inner.state {
                State::Closed => "closed",
                // Its next call is a probe.
                State::Open { until } if until <= now => "half_open",
                State::Open { .. } => "open",
                State::HalfOpen { .. } => "half_open",
            },
            calls,
            failed,
            slow,
            opened: self.opened.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

impl Inner {
    /// The calls in the window, those of them that failed, and those that were slow.
    fn counts(&self) -> (usize, usize, usize) {
        let count = |is: fn(&Call) -> bool| self.calls.iter().filter(|call| is(call)).count();
        (self.calls.len(), count(|call| call.failed), count(|call| call.slow))
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
        self.calls.clear();
    }
}

impl Policy {
    /// Whether these calls open the breaker.
    fn is_reached(&self, calls: &VecDeque<Call>) -> bool {
        let reached = |counts: fn(&Call) -> bool, percent: u64| {
            let share = |kept: &dyn Fn(&&Call) -> bool| {
                let all = calls.iter().filter(kept).count() as u64;
                let bad = calls.iter().filter(kept).filter(|call| counts(call)).count() as u64;
                (all > 0).then_some(bad * 100 >= percent * all)
            };
            if share(&|_| true) != Some(true) {
                return false;
            }
            let bad_at = |instance: u64| {
                calls.iter().filter(|call| counts(call) && call.instance == instance).count()
            };
            let worst = calls.iter().map(|call| call.instance).max_by_key(|id| bad_at(*id));
            share(&|call| Some(call.instance) != worst).unwrap_or(true)
        };
        reached(|call| call.failed, self.failure_percent)
            || reached(|call| call.slow, self.slow_percent)
    }
}

/// The breakers of all routes that have been called. They outlive a change of the route table.
#[derive(Debug)]
pub struct Breakers {
    settings: BreakerSettings,
    by_route: Keyed<Breaker>,
}

impl Breakers {
    /// Breakers with these defaults.
    pub fn new(settings: BreakerSettings) -> Self {
        Self { settings, by_route: Keyed::default() }
    }

    /// The breaker of the route with this template. A route whose service or policy has changed has a new
    /// one.
    pub fn of(&self, template: &str, service: &Arc<str>, route: &RouteBreaker) -> Arc<Breaker> {
        let policy = || self.settings.policy(route);
        let make = || Breaker::new(template, Arc::clone(service), *route, policy());
        let known = self.by_route.get_or_insert_with(template, make);
        if known.route == *route && known.service == *service {
            return known;
        }
        self.by_route.insert(template, make())
    }

    /// The state of every breaker, by route.
    pub fn report(&self) -> Vec<BreakerReport> {
        let now = Instant::now();
        let all = self.by_route.all();
        let mut reports: Vec<_> = all
            .iter()
            .filter(|(_, breaker)| breaker.policy.is_some())
            .map(|(_, breaker)| breaker.report(now))
            .collect();
        reports.sort_unstable_by(|one, other| one.route.cmp(&other.route));
        reports
    }

    /// Forgets the breakers of routes that are gone.
    pub fn retain(&self, is_routed: impl Fn(&str) -> bool) {
        self.by_route.retain(|template, _| is_routed(template));
    }
}

#[cfg(test)]
mod tests;
