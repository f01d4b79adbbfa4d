//! Caches the latest trend responses, for outages of a store.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tourin_chassis::metrics::{Counter, Metrics};
use tourin_chassis::telemetry::Span;

use crate::domain::spot::Spot;

/// How long a cached response is served. The trend changes with its half-life, by default an hour.
const MAX_AGE: Duration = Duration::from_secs(600);
/// The maximum number of cached responses, each of another length.
const CAPACITY: u64 = 128;

/// One cached response per requested number of spots. Clones share them.
#[derive(Clone, Debug)]
pub struct LastTrend {
    answers: Cache<usize, Arc<[Spot]>>,
    served: Counter,
}

impl LastTrend {
    /// An empty cache. The responses that come from it are counted in `metrics`.
    pub fn new(metrics: &Metrics) -> Self {
        let help = "Cached trend responses served during an outage of a store";
        let served = metrics.counter("tourin_trend_stale_answers", help);
        let answers = Cache::builder().max_capacity(CAPACITY).time_to_live(MAX_AGE).build();
        Self { answers, served }
    }

    /// Caches the first `k` spots of the trend.
    pub(super) fn keep(&self, k: usize, spots: &[Spot]) {
        self.answers.insert(k, spots.into());
    }

    /// The cached response for `k`, or the first `k` spots of the longest one. A hit is annotated in
    /// the request's trace.
    pub(super) fn get(&self, k: usize) -> Option<Vec<Spot>> {
        let longest = || self.answers.iter().max_by_key(|(k, _)| **k).map(|(_, spots)| spots);
        let spots = self.answers.get(&k).or_else(longest)?;
        self.served.increase();
        Span::current().annotate("fall_back", &[("to", "last_trend")]);
        Some(spots.iter().take(k).cloned().collect())
    }
}
