//! Whether, when and where a failed attempt is repeated.
//!
//! Repeating is safe ([`crate::proxy`] says when), and it is limited: by the number of attempts and the
//! request's time, and for the whole service by a budget. When an instance fails, the others get its
//! requests again; when the service as a whole is overloaded, repeated requests would overload it more.

use std::fmt;
use std::time::Duration;

use clap::{Args, value_parser};
use tower::retry::budget::{Budget, TpsBudget};

/// Time for which a request counts for the budget: Finagle's default.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);
/// Longest pause before an attempt (milliseconds).
const MAX_PAUSE_MS: u64 = 250;

/// Limits of retries.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct RetrySettings {
    /// Retries of a service's requests, in per cent of its requests of the last 10 s, besides
    /// --retry-budget-min
    #[arg(long, env = "TOURIN_GATEWAY_RETRY_BUDGET_PERCENT", value_name = "PERCENT", default_value_t = 20, value_parser = value_parser!(u8).range(0..=100))]
    pub retry_budget_percent: u8,
    /// Retries of a service's requests that are always allowed, per second
    #[arg(long, env = "TOURIN_GATEWAY_RETRY_BUDGET_MIN", value_name = "N", default_value_t = 10, value_parser = value_parser!(u32).range(0..=1_000_000))]
    pub retry_budget_min: u32,
    /// Milliseconds of the longest pause before a second attempt; before the third it may be twice as
    /// long. The pause is random, so that requests that fail together do not come again together
    #[arg(long, env = "TOURIN_GATEWAY_RETRY_PAUSE_MS", value_name = "MS", default_value_t = 25, value_parser = value_parser!(u64).range(0..=MAX_PAUSE_MS))]
    pub retry_pause_ms: u64,
}

impl RetrySettings {
    /// The pause before an attempt that comes after `before` others.
    pub fn pause(&self, before: usize) -> Duration {
        let doubled = u32::try_from(before).unwrap_or(u32::MAX).saturating_sub(1).min(8);
        let most = (self.retry_pause_ms << doubled).min(MAX_PAUSE_MS);
        Duration::from_micros(rand::random_range(0..=most * 1_000))
    }
}

/// The retries that a service may still get.
pub struct RetryBudget(TpsBudget);

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl RetryBudget {
    /// A budget that has its minimum.
    pub fn new(settings: &RetrySettings) -> Self {
        let share = f32::from(settings.retry_budget_percent) / 100.0;
        Self(TpsBudget::new(BUDGET_WINDOW, settings.retry_budget_min, share))
    }

    /// A request adds to it.
    pub fn request(&self) {
        self.0.deposit();
    }

    /// Takes a retry from it; `false` if there is none.
    pub fn retry(&self) -> bool {
        self.0.withdraw()
    }
}

/// The longest wait of an attempt for the first byte of a response. While the request can still be
/// repeated after a time-out, half of the time that is `left` is kept for that.
pub fn first_byte_wait(first_byte: Duration, left: Duration, may_repeat: bool) -> Duration {
    first_byte.min(if may_repeat { left / 2 } else { left })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: RetrySettings =
        RetrySettings { retry_budget_percent: 20, retry_budget_min: 0, retry_pause_ms: 25 };

    #[test]
    fn a_fifth_of_the_requests_may_be_repeated() {
        let budget = RetryBudget::new(&SETTINGS);
        assert!(!budget.retry());
        (0..10).for_each(|_| budget.request());
        assert_eq!((0..10).filter(|_| budget.retry()).count(), 2);
        let least = RetryBudget::new(&RetrySettings { retry_budget_min: 10, ..SETTINGS });
        assert_eq!((0..1_000).filter(|_| least.retry()).count(), 100, "10 per second, for 10 s");
    }

    #[test]
    fn pauses_are_random_and_bounded() {
        for (before, most) in [(1, 25), (2, 50), (3, 100), (50, 250)] {
            let longest = (0..200).map(|_| SETTINGS.pause(before)).max().unwrap();
            let most = Duration::from_millis(most);
            assert!(longest <= most && longest > most / 2, "{longest:?} of {most:?}");
        }
        assert_eq!(RetrySettings { retry_pause_ms: 0, ..SETTINGS }.pause(5), Duration::ZERO);
    }

    #[test]
    fn a_second_attempt_has_half_of_the_time() {
        let wait = |first_byte, left, may_repeat| {
            let seconds = Duration::from_secs;
            first_byte_wait(seconds(first_byte), seconds(left), may_repeat).as_secs()
        };
        assert_eq!(wait(12, 30, true), 12);
        assert_eq!(wait(12, 4, true), 2);
        assert_eq!(wait(12, 4, false), 4);
    }
}
