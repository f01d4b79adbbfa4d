//! Limits how often a repeated event is logged.

use std::time::{Duration, Instant};

const LOG_EVERY: Duration = Duration::from_secs(1);

/// Counts the occurrences of an event between two that are logged.
#[derive(Debug, Default)]
pub struct LogThrottle {
    logged: Option<Instant>,
    unlogged: u64,
}

impl LogThrottle {
    /// Records an event. `Some` if it is to be logged, with the number of unlogged ones before it.
    pub fn record(&mut self, now: Instant) -> Option<u64> {
        if self.logged.is_some_and(|at| now.saturating_duration_since(at) < LOG_EVERY) {
            self.unlogged += 1;
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}
