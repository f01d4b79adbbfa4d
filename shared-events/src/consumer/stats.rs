//! What a consumer has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[$doc:meta])* $stats:ident, $(#[$snapshot_doc:meta])* $snapshot:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? } $(with $(#[$extra_doc:meta])* $extra:ident: $extra_type:ty)*) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $stats {
            $(pub(crate) $field: std::sync::atomic::AtomicU64,)*
            $($(#[$extra_doc])* pub $extra: $extra_type,)*
        }

        $(#[$snapshot_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $snapshot { $($(#[$field_doc])* pub $field: u64,)* }

        impl $stats {
            /// The numbers as they are now; each is exact, together they may be of slightly different moments.
            pub fn snapshot(&self) -> $snapshot {
                $snapshot { $($field: self.$field.load(std::sync::atomic::Ordering::Relaxed),)* }
            }
        }
    };
}
pub(crate) use counters;

/// Counts one more; says how many there are now.
pub(crate) fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed) + 1
}

counters! {
    /// Counters of one consumer, since it was made. Shared with whoever exports them.
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
    in_hand: super::ages::InHandTimes
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
