//! Counts how often an event was delivered, and how each delivery ended.

use std::time::Duration;

/// What happens to a delivered entry.
#[derive(Debug)]
pub(super) enum Fate {
    /// It is settled.
    Finished,
    /// It is delivered again after a delay.
    Again(Duration),
    /// It is delivered again after a delay, and this delivery does not count as an attempt.
    Later(Duration),
    /// It was abandoned, and is delivered again as soon as possible.
    Back,
}

/// How often an entry was delivered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tries {
    pub(super) attempt: u32,
    pub(super) waits: u32,
}

impl Tries {
    /// A delivery with this attempt number, from 1.
    pub(super) fn at(attempt: u32) -> Self {
        Self { attempt, waits: 0 }
    }

    /// Counts the end of the last delivery.
    pub(super) fn ended(&mut self, fate: &Fate) {
        let count =
            if matches!(fate, Fate::Later(_)) { &mut self.waits } else { &mut self.attempt };
        *count = count.saturating_add(1);
    }
}
