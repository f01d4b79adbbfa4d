//! Counters of this crate's parts, which services export.

use std::sync::atomic::{AtomicU64, Ordering};

/// Declares a struct of counters, and one of their values at one time.
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
            /// The current values. Each is exact; they may be read at slightly different times.
            pub fn snapshot(&self) -> $snapshot {
                $snapshot { $($field: self.$field.load(std::sync::atomic::Ordering::Relaxed),)* }
            }
        }
    };
}
pub(crate) use counters;

/// Adds one and returns the new count.
pub(crate) fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed) + 1
}
