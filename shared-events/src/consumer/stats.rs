//! A consumer's counters.

use std::sync::atomic::Ordering;

use crate::counters::counters;

counters! {
    /// Counters of one consumer, since its creation. Shared with their exporter.
    ConsumerStats,
    /// [`ConsumerStats`] at one time.
    ConsumerSnapshot {
        /// Deliveries taken, redeliveries included.
        received,
        /// Events whose effect was committed.
        applied,
        /// Events whose effect was committed before.
        duplicate,
        /// Events that the handler ignored.
        ignored,
        /// Expired events, acknowledged without effect.
        expired,
        /// Events dated too far ahead, which count as happening when they are handled; each delivery counted.
        ahead,
        /// Failures that will be retried.
        retried,
        /// Dead letters whose body was not an envelope.
        malformed,
        /// Dead letters whose body was too long.
        oversized,
        /// All dead letters, malformed and oversized ones included.
        dead_lettered,
        /// Handler calls that panicked or timed out.
        broken,
        /// Handler calls that panicked.
        panicked,
        /// Events replayed from the dead letters, each delivery counted.
        replayed,
        /// Outcomes that the bus could not record. It delivers those events again.
        unsettled,
        /// A gauge: deliveries in flight now.
        held,
    }
    with
    /// The age of events when their effect was committed.
    ages: super::ages::Ages
    with
    /// The times of the events in flight.
    in_flight: super::in_flight::InFlightTimes
}

/// Counts deliveries as in flight until it is dropped.
pub(super) struct InFlight<'a>(&'a ConsumerStats, u64);

impl<'a> InFlight<'a> {
    pub(super) fn new(stats: &'a ConsumerStats, deliveries: usize) -> Self {
        let deliveries = u64::try_from(deliveries).unwrap_or(u64::MAX);
        stats.held.fetch_add(deliveries, Ordering::Relaxed);
        Self(stats, deliveries)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(self.1, Ordering::Relaxed);
    }
}
