//! Counts how often an event was delivered, and how each delivery ended.

use std::time::Duration;

/// What happens to a delivered entry.
#[derive(Debug)]
pub(super) enum Disposition {
    /// It is settled.
    Finished,
    /// It is delivered again after a delay.
    Retry(Duration),
    /// It is delivered again after a delay, and this delivery does not count as an attempt.
    Defer(Duration),
    /// It was abandoned, and is delivered again as soon as possible.
    Requeue,
}

/// How often an entry was delivered.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptCounts {
    pub(super) attempt: u32,
    pub(super) waits: u32,
}

impl AttemptCounts {
    /// A delivery with this attempt number, from 1.
    pub(super) fn at(attempt: u32) -> Self {
        Self { attempt, waits: 0 }
    }

    /// Counts the end of the last delivery.
    pub(super) fn ended(&mut self, disposition: &Disposition) {
        let count = if matches!(disposition, Disposition::Defer(_)) {
            &mut self.waits
        } else {
            &mut self.attempt
        };
        *count = count.saturating_add(1);
    }
}
