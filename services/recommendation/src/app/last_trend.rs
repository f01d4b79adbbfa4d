//! The latest answers to what is trending, for while a store is out of reach.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use tourin_chassis::telemetry::Span;

use crate::domain::spot::Spot;

/// How long an answer is better than none: the trend's order changes by the half-life, an hour by
/// default.
const MAX_AGE: Duration = Duration::from_secs(600);
/// Answers of different lengths that are kept, at most.
const CAPACITY: u64 = 128;

/// One answer for each number of spots that was asked for. Clones share it.
#[derive(Clone, Debug)]
pub struct LastTrend {
    answers: Cache<usize, Arc<[Spot]>>,
    served: Arc<AtomicU64>,
}

impl Default for LastTrend {
    fn default() -> Self {
        let answers = Cache::builder().max_capacity(CAPACITY).time_to_live(MAX_AGE).build();
        Self { answers, served: Arc::default() }
    }
}

impl LastTrend {
    /// Keeps the answer to what the first `k` are.
    pub(super) fn keep(&self, k: usize, spots: &[Spot]) {
        self.answers.insert(k, spots.into());
    }

    /// How often one was given in the place of today's.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// The latest answer for `k`, or the first `k` of the longest; `None` when there is none of late. Told
    /// in the request's trace.
    pub(super) fn get(&self, k: usize) -> Option<Vec<Spot>> {
        let longest =
            || self.answers.iter().max_by_key(|(asked, _)| **asked).map(|(_, spots)| spots);
        let spots = self.answers.get(&k).or_else(longest)?;
        self.served.fetch_add(1, Ordering::Relaxed);
        Span::current().annotate("fall_back", &[("to", "last_trend")]);
        Some(spots.iter().take(k).cloned().collect())
    }
}
