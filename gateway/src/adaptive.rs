//! A concurrency limit per service that adapts to the service's latency.
//!
//! Gradient2 (Netflix's concurrency-limits, here of `tower-acc`) lowers the limit while responses take
//! longer than they usually do, and raises it while they do not. The limit counts requests from their
//! entry until their response's head: that is where a queue builds up at the service. Slow clients and long
//! streams do not count; the total limit (`--max-requests`) counts those. A body that passes through as its client
//! sends it needs a place when it begins, and holds one from its end on.
//!
//! # Shedding
//! Above its share of the limit ([`Priority`]) a request is refused at once, with the time after which the
//! service will have caught up. So calls of low priority are refused first, and those of high priority
//! only at the limit itself.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::{Args, value_parser};
use serde::{Deserialize, Serialize};
use tower_acc::{Algorithm, Gradient2};

use crate::keyed::Keyed;

/// The algorithm gets the mean of a window of responses, as in Netflix's `WindowedLimit`: a service has
/// quick calls and slow ones, and a single slow one is no sign of a queue.
const WINDOW: Duration = Duration::from_millis(100);
/// Responses below which a window goes on.
const WINDOW_RESPONSES: u32 = 10;
/// Windows over which the usual latency is averaged: ten minutes under load.
const USUAL_WINDOWS: usize = 6_000;
/// By how much the mean may exceed the usual latency before the limit is lowered.
const TOLERANCE: f64 = 2.0;
/// Bounds of `Retry-After`.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
const SECOND: Duration = Duration::from_secs(1);
/// Largest limit.
const MAX_LIMIT: u64 = 100_000;

/// Which requests are refused first when a service is at its limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// From three quarters of the limit on.
    Low,
    /// From nine tenths of the limit on.
    #[default]
    Normal,
    /// At the limit.
    High,
}

impl Priority {
    const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// The requests that may be under way for one more of this priority to be admitted.
    fn of(self, limit: usize) -> usize {
        let tenths = match self {
            Self::Low => 75,
            Self::Normal => 90,
            Self::High => 100,
        };
        (limit * tenths).div_ceil(100).max(1)
    }

    /// The name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// The bounds of each service's limit.
#[derive(Debug, Clone, Copy, Args)]
pub struct AdaptiveSettings {
    /// Requests that may wait for one service at least, however slow it is
    #[arg(long, env = "TOURIN_GATEWAY_ADAPTIVE_LIMIT_MIN", value_name = "N", default_value_t = 32, value_parser = value_parser!(u64).range(1..=MAX_LIMIT))]
    pub adaptive_limit_min: u64,
    /// Requests that may wait for one service before its latency is known
    #[arg(long, env = "TOURIN_GATEWAY_ADAPTIVE_LIMIT_INITIAL", value_name = "N", default_value_t = 256, value_parser = value_parser!(u64).range(1..=MAX_LIMIT))]
    pub adaptive_limit_initial: u64,
    /// Requests that may wait for one service at most, however fast it is. Further ones are answered 503
    /// with a Retry-After
    #[arg(long, env = "TOURIN_GATEWAY_ADAPTIVE_LIMIT_MAX", value_name = "N", default_value_t = 2_048, value_parser = value_parser!(u64).range(1..=MAX_LIMIT))]
    pub adaptive_limit_max: u64,
}

impl AdaptiveSettings {
    /// Checks that the bounds are in order.
    ///
    /// # Errors
    /// Names the flags otherwise.
    pub fn check(&self) -> anyhow::Result<()> {
        let Self {
            adaptive_limit_min: min,
            adaptive_limit_initial: initial,
            adaptive_limit_max: max,
        } = *self;
        ensure!(
            min <= initial && initial <= max,
            "--adaptive-limit-min {min}, --adaptive-limit-initial {initial}, --adaptive-limit-max {max}: \
             each must be at least the one before it"
        );
        Ok(())
    }

    fn algorithm(&self) -> Gradient2 {
        // At most `MAX_LIMIT`.
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Gradient2::builder()
            .min_limit(size(self.adaptive_limit_min))
            .initial_limit(size(self.adaptive_limit_initial))
            .max_limit(size(self.adaptive_limit_max))
            .rtt_tolerance(TOLERANCE)
            .long_window(USUAL_WINDOWS)
            .queue_size(usize::isqrt)
            .build()
    }
}

/// The limit of one service.
#[derive(Debug)]
pub struct ServiceLimit {
    limit: AtomicUsize,
    waiting: AtomicUsize,
    shed: [AtomicU64; 3],
    latency: Mutex<Latency>,
}

#[derive(Debug)]
struct Latency {
    algorithm: Gradient2,
    window: Window,
    pace: Pace,
}

/// Responses since `since`.
#[derive(Debug)]
struct Window {
    since: Instant,
    responses: u32,
    total: Duration,
    most_waiting: usize,
}

impl Window {
    fn new(since: Instant) -> Self {
        Self { since, responses: 0, total: Duration::ZERO, most_waiting: 0 }
    }
}

/// How many requests ended and how many were refused, in this second and in the one before.
#[derive(Debug)]
struct Pace {
    since: Instant,
    ended: [u32; 2],
    refused: [u32; 2],
}

impl Pace {
    fn turn(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.since).as_secs();
        if seconds == 0 {
            return;
        }
        let before = |counts: [u32; 2]| [0, if seconds == 1 { counts[0] } else { 0 }];
        (self.ended, self.refused) = (before(self.ended), before(self.refused));
        self.since += SECOND * u32::try_from(seconds).unwrap_or(u32::MAX);
    }

    /// The time in which the service serves as many requests as were refused in a second, at the pace of
    /// that second. Between that and twice as long, one refused request after the other: those who wait
    /// as long as they are told do not all come back together.
    fn retry_after(&self) -> Duration {
        let [ended, refused] = [self.ended, self.refused].map(|counts| counts[0].max(counts[1]));
        let seconds = refused.div_ceil(ended.max(1)).max(1);
        let spread = self.refused[0] % (seconds + 1);
        Duration::from_secs((seconds + spread).into()).clamp(RETRY.0, RETRY.1)
    }
}

/// A service's limit as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitReport {
    /// The service.
    pub service: String,
    /// Requests that may wait for it.
    pub limit: usize,
    /// Requests that wait for it.
    pub waiting: usize,
    /// Refused requests, by priority.
    pub shed: [(&'static str, u64); 3],
}

impl ServiceLimit {
    fn new(settings: &AdaptiveSettings, now: Instant) -> Self {
        let algorithm = settings.algorithm();
        Self {
            limit: AtomicUsize::new(algorithm.max_concurrency()),
            waiting: AtomicUsize::new(0),
            shed: Default::default(),
            latency: Mutex::new(Latency {
                algorithm,
                window: Window::new(now),
                pace: Pace { since: now, ended: [0; 2], refused: [0; 2] },
            }),
        }
    }

    /// Admits a request of this priority, which waits until the value is dropped.
    ///
    /// # Errors
    /// The time after which to try again.
    pub fn try_enter(
        self: &Arc<Self>,
        priority: Priority,
        now: Instant,
    ) -> Result<Waiting, Duration> {
        let most = priority.of(self.limit.load(Ordering::Relaxed));
        if self.waiting.fetch_add(1, Ordering::Relaxed) < most {
            return Ok(Waiting { limit: Arc::clone(self) });
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.shed[priority as usize].fetch_add(1, Ordering::Relaxed);
        let pace = &mut self.latency.lock().unwrap_or_else(PoisonError::into_inner).pace;
        pace.turn(now);
        pace.refused[0] = pace.refused[0].saturating_add(1);
        Err(pace.retry_after())
    }

    /// A request waits that was admitted before, until the value is dropped.
    pub fn enter(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting { limit: Arc::clone(self) }
    }

    fn report(&self, service: &str) -> LimitReport {
        LimitReport {
            service: service.to_owned(),
            limit: self.limit.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            shed: Priority::ALL.map(|priority| {
                (priority.label(), self.shed[priority as usize].load(Ordering::Relaxed))
            }),
        }
    }
}

/// A request that waits for its service.
#[derive(Debug)]
pub struct Waiting {
    limit: Arc<ServiceLimit>,
}

impl Waiting {
    /// The response's head has come, or the time for it has passed, after `took`. A request that failed
    /// at once is dropped instead: its quick error says nothing about how long responses take.
    pub fn answered(self, took: Duration, now: Instant) {
        let limit = &self.limit;
        let latency = &mut *limit.latency.lock().unwrap_or_else(PoisonError::into_inner);
        latency.pace.turn(now);
        latency.pace.ended[0] = latency.pace.ended[0].saturating_add(1);
        let window = &mut latency.window;
        window.responses += 1;
        window.total += took;
        window.most_waiting = window.most_waiting.max(limit.waiting.load(Ordering::Relaxed));
        if window.responses < WINDOW_RESPONSES
            || now.saturating_duration_since(window.since) < WINDOW
        {
            return;
        }
        let mean = window.total / window.responses;
        latency.algorithm.update(mean, window.most_waiting, false, false);
        limit.limit.store(latency.algorithm.max_concurrency(), Ordering::Relaxed);
        *window = Window::new(now);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.limit.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The limits of all services that have been called.
#[derive(Debug)]
pub struct ServiceLimits {
    settings: AdaptiveSettings,
    by_service: Keyed<ServiceLimit>,
}

impl ServiceLimits {
    /// Limits within these bounds.
    pub fn new(settings: AdaptiveSettings) -> Self {
        Self { settings, by_service: Keyed::default() }
    }

    /// The limit of a service.
    pub fn of(&self, service: &str) -> Arc<ServiceLimit> {
        let make = || ServiceLimit::new(&self.settings, Instant::now());
        self.by_service.get_or_insert_with(service, make)
    }

    /// The state of every limit, by service.
    pub fn report(&self) -> Vec<LimitReport> {
        let all = self.by_service.all();
        let mut reports: Vec<_> =
            all.iter().map(|(service, limit)| limit.report(service)).collect();
        reports.sort_unstable_by(|one, other| one.service.cmp(&other.service));
        reports
    }

    /// Forgets the limits of services that no route names.
    pub fn retain(&self, is_routed: impl Fn(&str) -> bool) {
        self.by_service.retain(|service, _| is_routed(service));
    }
}

#[cfg(test)]
mod tests {
    use tourin_chassis::config::defaults;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn limit(min: u64, initial: u64, max: u64) -> Arc<ServiceLimit> {
        let settings = AdaptiveSettings {
            adaptive_limit_min: min,
            adaptive_limit_initial: initial,
            adaptive_limit_max: max,
        };
        Arc::new(ServiceLimit::new(&settings, Instant::now()))
    }

    /// Fills `limit` again and again, for windows in which responses take `took`.
    fn load(limit: &Arc<ServiceLimit>, now: &mut Instant, windows: u32, took: Duration) {
        for _ in 0..windows {
            let filled: Vec<_> =
                std::iter::from_fn(|| limit.try_enter(Priority::High, *now).ok()).collect();
            *now += WINDOW;
            filled.into_iter().for_each(|request| request.answered(took, *now));
        }
    }

    fn current(limit: &ServiceLimit) -> usize {
        limit.limit.load(Ordering::Relaxed)
    }

    #[test]
    fn it_sinks_while_responses_take_longer_than_usual_and_recovers() {
        let limit = limit(10, 50, 100);
        let mut now = Instant::now();
        load(&limit, &mut now, 20, 10 * MS);
        let usual = current(&limit);
        assert!(usual > 50, "latency does not change, so there is room for more: {usual}");
        load(&limit, &mut now, 100, 500 * MS);
        let slow = current(&limit);
        assert!(slow < usual / 2, "{slow}");
        load(&limit, &mut now, 200, 10 * MS);
        let again = current(&limit);
        assert!(again > 2 * slow, "{again}");
        assert_eq!(limit.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_service_that_is_hardly_used_keeps_its_limit() {
        let limit = limit(10, 50, 100);
        let mut now = Instant::now();
        for took in [MS, 100 * MS].repeat(500) {
            now += WINDOW;
            limit.try_enter(Priority::Normal, now).unwrap().answered(took, now);
        }
        assert_eq!(current(&limit), 50);
    }

    #[test]
    fn calls_of_low_priority_are_refused_first() {
        let limit = limit(20, 20, 20);
        let now = Instant::now();
        let mut under_way = Vec::new();
        for (priority, most) in [(Priority::Low, 15), (Priority::Normal, 18), (Priority::High, 20)]
        {
            under_way.extend(std::iter::from_fn(|| limit.try_enter(priority, now).ok()));
            assert_eq!(under_way.len(), most, "{priority:?}");
        }
        assert!(limit.try_enter(Priority::Low, now).is_err());
        let report = limit.report("core");
        assert_eq!(report.shed, [("low", 2), ("normal", 1), ("high", 1)]);
        under_way.truncate(17);
        assert!(limit.try_enter(Priority::Low, now).is_err());
        assert!(limit.try_enter(Priority::Normal, now).is_ok());
        for priority in Priority::ALL {
            assert_eq!(priority.of(1), 1, "a limit of one is one for all");
        }
    }

    #[test]
    fn those_who_are_refused_wait_as_long_as_the_service_needs_for_them() {
        let limit = limit(10, 10, 10);
        let start = Instant::now();
        let filled: Vec<_> =
            (0..10).map(|_| limit.try_enter(Priority::High, start).unwrap()).collect();
        // Ten a second are served, and thirty are refused.
        filled.into_iter().for_each(|request| request.answered(MS, start));
        let _filled: Vec<_> =
            (0..10).map(|_| limit.try_enter(Priority::High, start).unwrap()).collect();
        let waits: Vec<_> = (0..30)
            .map(|_| limit.try_enter(Priority::High, start).unwrap_err().as_secs())
            .collect();
        assert_eq!(waits[0], 2, "one for ten");
        assert!(waits[20..].iter().all(|wait| (3..=6).contains(wait)), "{waits:?}");
        let next = limit.try_enter(Priority::High, start + SECOND).unwrap_err().as_secs();
        assert!((3..=6).contains(&next), "by the second before: {next}");
        let long_after = limit.try_enter(Priority::High, start + 10 * SECOND).unwrap_err();
        assert!(long_after <= 2 * SECOND, "what was before is over: {long_after:?}");
    }

    #[test]
    fn bounds_that_are_not_in_order_are_refused() {
        let settings: AdaptiveSettings = defaults(&[]);
        assert!(settings.check().is_ok());
        let wrong = AdaptiveSettings { adaptive_limit_max: 100, ..settings };
        let error = wrong.check().unwrap_err().to_string();
        assert!(error.contains("--adaptive-limit-initial 256"), "{error}");
    }
}
