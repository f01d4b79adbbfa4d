//! The latest answers to what is trending, for while a store is out of reach.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use crate::domain::spot::Spot;

/// How long an answer is better than none: the trend's order changes by the half-life, an hour by
/// default.
const MAX_AGE: Duration = Duration::from_secs(600);
/// Answers of different lengths that are kept, at most.
const CAPACITY: u64 = 128;

/// One answer for each number of spots that was asked for. Clones share it.
#[derive(Clone, Debug)]
pub struct LastTrend(Cache<usize, Arc<[Spot]>>);

impl Default for LastTrend {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(CAPACITY).time_to_live(MAX_AGE).build())
    }
}

impl LastTrend {
    /// Keeps the answer to what the first `k` are.
    pub(super) fn keep(&self, k: usize, spots: &[Spot]) {
        self.0.insert(k, spots.into());
    }

    /// The latest answer for `k`, or the first `k` of the longest; `None` when there is none of late.
    pub(super) fn get(&self, k: usize) -> Option<Vec<Spot>> {
        let longest = || self.0.iter().max_by_key(|(asked, _)| **asked).map(|(_, spots)| spots);
        let spots = self.0.get(&k).or_else(longest)?;
        Some(spots.iter().take(k).cloned().collect())
    }
}
