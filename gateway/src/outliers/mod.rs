//! Outlier detection: instances that fail get no more requests for a while.
//!
//! What counts is what real calls meet, and health checks.
//!
//! | an instance is ejected | because of |
//! |---|---|
//! | at the first time-out | nothing was answered since the call began, no health check either |
//! | after so many time-outs in a row | calls that end well in between start the count again |
//! | after so many failures in a row | no connection, a connection lost, or no HTTP |
//! | at the end of an interval | its failures (5xx too) are more than a share and twice the others' share |
//! | at the end of an interval | its mean time to answer is so many times the others' median |
//! | by a health check | it is unreachable, until a health check passes |
//!
//! An ejection lasts for a base time, doubled with each one that follows, and ends when a health check
//! passes after it: no member's request is spent on trying. For each minute without an ejection the next
//! one is half as long.
//!
//! A gateway may itself be what fails. So ejections by calls are limited to a share of the instances, and
//! when too few are up, ejected ones that health checks can reach get requests again (panic). Neither
//! saves an instance that a health check cannot reach, as long as another one is up.

mod checks;
mod health;
mod metrics;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use tokio::sync::Notify;

pub use checks::HealthCheckSettings;
pub use health::{Failure, Health, HealthReport, InFlight};
pub use metrics::{GroupMetrics, OutlierMetrics};

/// Means below this are no outliers: a factor of little is little (milliseconds).
const MIN_SLOW_MS: f64 = 100.0;

/// When instances are ejected.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct OutlierSettings {
    /// Failed calls in a row (no connection, connection lost, time-out, no HTTP) after which an instance
    /// gets no requests for a while; 0: never
    #[arg(long, env = "TOURIN_GATEWAY_EJECT_FAILURES", value_name = "N", default_value_t = 3)]
    pub eject_failures: u32,
    /// The same for time-outs in a row; 0: never. One is enough if the instance has answered nothing
    /// since the call began
    #[arg(long, env = "TOURIN_GATEWAY_EJECT_TIMEOUTS", value_name = "N", default_value_t = 2)]
    pub eject_timeouts: u32,
    /// Share of an instance's calls, in per cent, that fail or are answered 5xx, from which on it is
    /// ejected, if that is twice the share of the service's other instances; 0: never
    #[arg(long, env = "TOURIN_GATEWAY_EJECT_FAILURE_PERCENT", value_name = "PERCENT", default_value_t = 50, value_parser = value_parser!(u32).range(0..=100))]
    pub eject_failure_percent: u32,
    /// How many times the median of the service's other instances the mean time of an instance's answers
    /// must be for it to be ejected, from 100 ms on; 0: never
    #[arg(
        long,
        env = "TOURIN_GATEWAY_EJECT_LATENCY_FACTOR",
        value_name = "N",
        default_value_t = 5
    )]
    pub eject_latency_factor: u32,
    /// Milliseconds over which these shares and times are taken
    #[arg(long, env = "TOURIN_GATEWAY_EJECT_INTERVAL_MS", value_name = "MS", default_value_t = 10_000, value_parser = value_parser!(u64).range(100..=600_000))]
    pub eject_interval_ms: u64,
    /// Calls of an instance in that time, and of the others, below which they are not judged by it
    #[arg(long, env = "TOURIN_GATEWAY_EJECT_MIN_CALLS", value_name = "N", default_value_t = 20, value_parser = value_parser!(u64).range(1..))]
    pub eject_min_calls: u64,
    /// Milliseconds that a first ejection lasts; each that follows lasts twice as long
    #[arg(long, env = "TOURIN_GATEWAY_EJECT_MS", value_name = "MS", default_value_t = 5_000, value_parser = value_parser!(u64).range(1..=3_600_000))]
    pub eject_ms: u64,
    /// Milliseconds of the longest ejection
    #[arg(long, env = "TOURIN_GATEWAY_EJECT_MAX_MS", value_name = "MS", default_value_t = 300_000, value_parser = value_parser!(u64).range(1..=86_400_000))]
    pub eject_max_ms: u64,
    /// Largest share of a service's instances, in per cent, that is ejected because of calls: at least one
    /// and never all. Those that a health check cannot reach do not count
    #[arg(long, env = "TOURIN_GATEWAY_EJECT_MAX_PERCENT", value_name = "PERCENT", default_value_t = 50, value_parser = value_parser!(u32).range(0..=100))]
    pub eject_max_percent: u32,
    /// Share of a service's instances, in per cent, below which so few are up that ejected ones get
    /// requests again, if health checks can reach them
    #[arg(long, env = "TOURIN_GATEWAY_PANIC_PERCENT", value_name = "PERCENT", default_value_t = 25, value_parser = value_parser!(u32).range(0..=100))]
    pub panic_percent: u32,
}

impl OutlierSettings {
    /// How long the ejection lasts that comes after `before` others.
    fn duration(&self, before: u32) -> Duration {
        let doubled =
            1_u64.checked_shl(before).and_then(|factor| self.eject_ms.checked_mul(factor));
        Duration::from_millis(doubled.unwrap_or(u64::MAX).min(self.eject_max_ms))
    }

    /// Time between two judgements by share and latency.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.eject_interval_ms)
    }
}

/// Why an instance is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Failures in a row.
    Failures,
    /// A time-out while it was silent, or several in a row.
    Timeouts,
    /// Its share of failures.
    FailureShare,
    /// Its latency.
    Latency,
    /// A health check failed.
    Unreachable,
}

impl Reason {
    /// Each one.
    pub const ALL: [Self; 5] =
        [Self::Failures, Self::Timeouts, Self::FailureShare, Self::Latency, Self::Unreachable];

    /// Its name in metrics, spans and reports.
    pub fn label(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::Timeouts => "timeouts",
            Self::FailureShare => "failure_share",
            Self::Latency => "latency",
            Self::Unreachable => "unreachable",
        }
    }
}

/// What the instances of a service have in common.
#[derive(Debug)]
pub struct Group {
    service: Arc<str>,
    settings: Arc<OutlierSettings>,
    metrics: GroupMetrics,
    members: AtomicUsize,
    ejected: AtomicUsize,
    unreachable: AtomicUsize,
    /// Wakes the health checks when an instance is suspected.
    suspected: Arc<Notify>,
}

impl Group {
    /// The group of a service's instances. `suspected` wakes the health checks.
    pub fn new(
        service: &str,
        settings: Arc<OutlierSettings>,
        metrics: GroupMetrics,
        suspected: Arc<Notify>,
    ) -> Self {
        Self {
            service: service.into(),
            settings,
            metrics,
            members: AtomicUsize::new(0),
            ejected: AtomicUsize::new(0),
            unreachable: AtomicUsize::new(0),
            suspected,
        }
    }

    /// Its counters.
    pub fn metrics(&self) -> &GroupMetrics {
        &self.metrics
    }

    /// How many are ejected because of calls, and how many are unreachable.
    pub fn down(&self) -> (usize, usize) {
        (self.ejected.load(Ordering::Relaxed), self.unreachable.load(Ordering::Relaxed))
    }

    /// Whether so few instances are up that ejected ones are used.
    pub fn is_panic(&self) -> bool {
        let (ejected, unreachable) = self.down();
        if ejected == 0 {
            return false;
        }
        let members = self.members.load(Ordering::Relaxed);
        let up = members.saturating_sub(ejected + unreachable);
        up * 100 < members * self.settings.panic_percent as usize
    }

    /// Counts its members anew.
    pub fn recount<'a>(&self, healths: impl Iterator<Item = &'a Health>) {
        let (mut members, mut ejected, mut unreachable) = (0, 0, 0);
        for health in healths {
            members += 1;
            unreachable += usize::from(health.is_unreachable());
            ejected += usize::from(!health.is_up() && !health.is_unreachable());
        }
        self.members.store(members, Ordering::Relaxed);
        self.ejected.store(ejected, Ordering::Relaxed);
        self.unreachable.store(unreachable, Ordering::Relaxed);
    }

    /// Counts one more ejection, if that many are allowed.
    fn try_eject(&self) -> bool {
        let members = self.members.load(Ordering::Relaxed);
        let share = members * self.settings.eject_max_percent as usize / 100;
        let most = share.max(1).min(members.saturating_sub(1));
        let counted = |ejected| (ejected < most).then_some(ejected + 1);
        self.ejected.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted).is_ok()
    }
}

/// An instance's calls in an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    /// Calls that have ended.
    calls: u64,
    /// Those that failed, or were answered 5xx.
    failed: u64,
    /// Answers.
    answers: u64,
    /// The time until they came, together.
    answers_us: u64,
}

impl Sample {
    fn mean_ms(&self, min_calls: u64) -> Option<f64> {
        let is_enough = self.answers >= min_calls;
        is_enough.then(|| self.answers_us as f64 / self.answers as f64 / 1_000.0)
    }
}

/// The instances of a service that are far off their peers, by index. An instance is compared with the
/// others alone, because among few it would hide behind its own part in a mean or a deviation.
pub fn outliers(samples: &[Sample], settings: &OutlierSettings) -> Vec<(usize, Reason)> {
    let calls: u64 = samples.iter().map(|sample| sample.calls).sum();
    let failed: u64 = samples.iter().map(|sample| sample.failed).sum();
    let min_calls = settings.eject_min_calls;
    let limit = u64::from(settings.eject_failure_percent);
    let fails = |sample: &Sample| {
        let (others, failed) = (calls - sample.calls, failed - sample.failed);
        limit > 0
            && sample.calls >= min_calls
            && others >= min_calls
            && sample.failed * 100 >= limit * sample.calls
            && sample.failed * others >= 2 * failed * sample.calls
    };
    let mut means: Vec<f64> =
        samples.iter().filter_map(|sample| sample.mean_ms(min_calls)).collect();
    means.sort_by(f64::total_cmp);
    let factor = f64::from(settings.eject_latency_factor);
    let is_slow = |sample: &Sample| {
        let Some(mean) = sample.mean_ms(min_calls) else { return false };
        if means.len() < 2 || factor <= 0.0 || mean < MIN_SLOW_MS {
            return false;
        }
        // The lower median of the others: the slow one is above it in the sorted list.
        let median = means[(means.len() - 2) / 2];
        mean > factor * median
    };
    let reason = |sample: &Sample| {
        fails(sample).then_some(Reason::FailureShare).or(is_slow(sample).then_some(Reason::Latency))
    };
    let found = samples.iter().enumerate();
    found.filter_map(|(index, sample)| Some((index, reason(sample)?))).collect()
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since the gateway's first instance was known, and one more: 0 is no time.
fn millis(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*START).as_millis()).unwrap_or(u64::MAX - 1) + 1
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;
    use tourin_chassis::metrics::Metrics;

    #[derive(Parser)]
    struct Bare {
        #[command(flatten)]
        settings: OutlierSettings,
        #[command(flatten)]
        checks: HealthCheckSettings,
    }

    pub(crate) fn settings() -> OutlierSettings {
        Bare::parse_from(["gateway"]).settings
    }

    pub(crate) fn check_settings() -> HealthCheckSettings {
        Bare::parse_from(["gateway"]).checks
    }

    #[test]
    fn an_instance_that_fails_more_than_its_peers_is_an_outlier() {
        let of = |calls, failed| Sample { calls, failed, ..Sample::default() };
        let found = |samples: &[Sample]| outliers(samples, &settings());
        let share = |index| vec![(index, Reason::FailureShare)];
        assert_eq!(found(&[of(100, 60), of(100, 5), of(100, 0)]), share(0));
        assert_eq!(found(&[of(100, 5), of(100, 51)]), share(1));
        assert!(found(&[of(100, 90), of(100, 80)]).is_empty(), "all of them fail: a store is down");
        assert!(found(&[of(100, 49), of(100, 0)]).is_empty());
        assert!(found(&[of(19, 19), of(100, 0)]).is_empty(), "too few calls");
        assert!(found(&[of(100, 100), of(19, 0)]).is_empty(), "too few to compare with");
        assert!(found(&[of(100, 100)]).is_empty());
        let off = OutlierSettings { eject_failure_percent: 0, ..settings() };
        assert!(outliers(&[of(100, 60), of(100, 5)], &off).is_empty());
    }

    #[test]
    fn an_instance_far_slower_than_its_peers_is_an_outlier() {
        let of = |ms: u64, answers: u64| Sample {
            calls: answers,
            answers,
            answers_us: ms * 1_000 * answers,
            failed: 0,
        };
        let found = |samples: &[Sample]| outliers(samples, &settings());
        assert_eq!(found(&[of(20, 50), of(150, 50)]), [(1, Reason::Latency)]);
        assert_eq!(found(&[of(900, 50), of(20, 50), of(30, 50)]), [(0, Reason::Latency)]);
        assert!(found(&[of(20, 50), of(90, 50)]).is_empty(), "below 100 ms");
        assert!(found(&[of(200, 50), of(900, 50)]).is_empty(), "not five times");
        assert!(found(&[of(20, 50), of(900, 5)]).is_empty(), "too few calls");
        assert!(found(&[of(900, 50)]).is_empty());
    }

    #[test]
    fn ejections_are_limited_to_a_share() {
        let metrics = OutlierMetrics::new(&Metrics::new("test"));
        let most = |members: usize| {
            let settings = Arc::new(settings());
            let group = Group::new("core", settings, metrics.of("core"), Arc::default());
            group.members.store(members, Ordering::Relaxed);
            (0..members).filter(|_| group.try_eject()).count()
        };
        assert_eq!([1, 2, 3, 4, 10].map(most), [0, 1, 1, 2, 5]);
    }

    #[test]
    fn ejections_grow_to_a_bound() {
        let seconds = [0, 1, 2, 5, 6, 80].map(|before| settings().duration(before).as_secs());
        assert_eq!(seconds, [5, 10, 20, 160, 300, 300]);
    }
}
