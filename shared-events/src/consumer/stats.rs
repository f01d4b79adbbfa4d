//! What a consumer has done, in numbers.

use std::sync::atomic::Ordering;

use crate::counters::counters;

counters! {
    /// Counters of one consumer, since it was made. Shared with their exporter.
    ConsumerStats,
    /// [`ConsumerStats`] at a moment.
    ConsumerSnapshot {
        /// Deliveries taken, redeliveries included.
        received,
        /// Events whose effect was committed.
        applied,
        /// Events whose effect had been committed before.
        duplicate,
        /// Events of no interest to the handler.
        ignored,
        /// Events too old to matter, dropped as configured.
        expired,
        /// Events dated so far ahead that they count as happening when they are handled; each delivery counted.
        ahead,
        /// Failures that will be tried again.
        retried,
        /// Dead letters whose body was no envelope.
        malformed,
        /// Dead letters whose body was too long.
        oversized,
        /// All dead letters, malformed and oversized ones included.
        dead_lettered,
        /// Calls of the handler that panicked or took too long.
        broken,
        /// Those of them that panicked.
        panicked,
        /// Events that were replayed from the dead letters, each delivery counted.
        replayed,
        /// Outcomes the bus could not record; it delivers those events again.
        unsettled,
        /// Not a counter: deliveries in hand at this moment.
        held,
    }
    with
    /// How old events were when their effect was committed.
    ages: super::ages::Ages
    with
    /// The times of the events in hand.
    in_hand: super::in_hand::InHandTimes
}

/// Counts deliveries as in hand until it is dropped.
pub(super) struct InHand<'a>(&'a ConsumerStats, u64);

impl<'a> InHand<'a> {
    pub(super) fn new(stats: &'a ConsumerStats, deliveries: usize) -> Self {
        let deliveries = u64::try_from(deliveries).unwrap_or(u64::MAX);
        stats.held.fetch_add(deliveries, Ordering::Relaxed);
        Self(stats, deliveries)
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(self.1, Ordering::Relaxed);
    }
}
