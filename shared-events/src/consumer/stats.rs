//! What a consumer has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[$doc:meta])* $stats:ident, $(#[$snapshot_doc:meta])* $snapshot:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $stats { $(pub(crate) $field: std::sync::atomic::AtomicU64,)* }

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

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
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
        /// Outcomes the bus could not record; it delivers those events again.
        unsettled,
    }
}
