//! The age of events when they took effect.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the buckets. Older events count only in the total.
pub const AGE_BUCKETS: [Duration; 14] = [
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3_600),
];

/// A histogram that only grows, of the time from the envelope's timestamp to the commit of the effect.
#[derive(Debug, Default)]
pub struct Ages {
    buckets: [AtomicU64; AGE_BUCKETS.len()],
    count: AtomicU64,
    sum_micros: AtomicU64,
}

/// [`Ages`] at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgesSnapshot {
    /// The events in this bucket, above the bound of the one before: not cumulative.
    pub buckets: [u64; AGE_BUCKETS.len()],
    /// The number of all events.
    pub count: u64,
    /// The sum of their ages, in microseconds.
    pub sum_micros: u64,
}

impl Ages {
    pub(super) fn add(&self, age: Duration) {
        if let Some(bucket) = AGE_BUCKETS.iter().position(|bound| age <= *bound) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The current values.
    pub fn snapshot(&self) -> AgesSnapshot {
        AgesSnapshot {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed)),
            count: self.count.load(Ordering::Relaxed),
            sum_micros: self.sum_micros.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_counted_in_the_first_bucket_that_takes_it() {
        let ages = Ages::default();
        for millis in [0, 5, 6, 3_600_000, 3_600_001] {
            ages.add(Duration::from_millis(millis));
        }
        let now = ages.snapshot();
        assert_eq!((now.buckets[0], now.buckets[1], now.buckets[13]), (2, 1, 1));
        assert_eq!((now.count, now.sum_micros), (5, 7_200_012_000));
        assert!(AGE_BUCKETS.is_sorted());
    }
}
