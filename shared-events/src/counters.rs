//! Counters that a part of this crate keeps, and that services export.

use std::sync::atomic::{AtomicU64, Ordering};

/// Declares a struct of counters and one of their values at a moment.
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
