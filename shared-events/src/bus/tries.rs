//! How often an event was handed out, and how each delivery ended.

use std::time::Duration;

/// What becomes of an entry that was out.
#[derive(Debug)]
pub(super) enum Fate {
    /// It is settled for good.
    Finished,
    /// It goes out again after a while.
    Again(Duration),
    /// It goes out again after a while, and this was no attempt.
    Later(Duration),
    /// It was abandoned, and goes out again as soon as possible.
    Back,
}

/// How often an entry went out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tries {
    pub(super) attempt: u32,
    pub(super) waits: u32,
}

impl Tries {
    /// It goes out as the attempt of this number, from 1.
    pub(super) fn at(attempt: u32) -> Self {
        Self { attempt, waits: 0 }
    }

    /// Counts how its last delivery ended.
    pub(super) fn ended(&mut self, fate: &Fate) {
        let count =
            if matches!(fate, Fate::Later(_)) { &mut self.waits } else { &mut self.attempt };
        *count = count.saturating_add(1);
    }
}
