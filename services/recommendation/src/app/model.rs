//! The seam for models of similarity, and today's: co-occurrence over live histories.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, StreamExt, TryStreamExt};
use moka::sync::Cache;

use super::ports::{HistoryStore, PortError};
use crate::domain::similarity::{Exponents, overlaps, row};
use crate::domain::spot::SpotId;
use crate::domain::trend::{Ranked, rank};

/// A part of a member's history with its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seed {
    /// The spot.
    pub spot: SpotId,
    /// How much it says about the member.
    pub weight: f64,
}

/// Finds spots that go with others. A model knows nothing of who asks: leaving out what a member
/// knows, deleted spots and the seeds themselves is up to the caller.
#[async_trait]
pub trait SimilarityModel: Send + Sync {
    /// The spots most similar to one, best first, without itself; empty when the model knows
    /// nothing of it.
    async fn neighbours(&self, spot: SpotId) -> Result<Arc<[Ranked]>, PortError>;

    /// The spots that go with a whole history, best first: the sum of the seeds' rows by weight.
    async fn score(&self, seeds: &[Seed]) -> Result<Vec<Ranked>, PortError> {
        let rows: Vec<(f64, Arc<[Ranked]>)> = stream::iter(seeds.iter().copied())
            .map(|seed| async move {
                Ok::<_, PortError>((seed.weight, self.neighbours(seed.spot).await?))
            })
            .buffered(ROWS_AT_ONCE)
            .try_collect()
            .await?;
        let mut sums = std::collections::HashMap::<SpotId, f64>::new();
        for (weight, row) in rows {
            for neighbour in row.iter() {
                *sums.entry(neighbour.spot).or_default() += weight * neighbour.value;
            }
        }
        Ok(rank(sums.into_iter().map(|(spot, value)| Ranked { spot, value }).collect()))
    }
}

/// Rows read from the store at the same time for one request.
const ROWS_AT_ONCE: usize = 4;

/// Bounds and exponents of [`CoOccurrence`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CoOccurrenceRules {
    /// The exponents of the formula.
    pub exponents: Exponents,
    /// Members looked at for a row: the latest who know the spot. Default 256.
    pub holders: usize,
    /// Co-occurring spots whose degrees are looked up for a row: those with the most in common.
    /// Default 2,000.
    pub considered: usize,
    /// Neighbours kept in a row. Default 200.
    pub kept: usize,
    /// How long a row is served before it is made anew; zero makes one for each request.
    pub row_max_age: Duration,
    /// Rows in memory, of at most `kept` times 16 bytes each. Default 10,000.
    pub rows: u64,
}

impl Default for CoOccurrenceRules {
    fn default() -> Self {
        Self {
            exponents: Exponents::default(),
            holders: 256,
            considered: 2_000,
            kept: 200,
            row_max_age: Duration::from_secs(2),
            rows: 10_000,
        }
    }
}

/// Rows of the co-occurrence matrix made on demand from the histories as they are, each kept for a
/// moment. A member's own history is never cached: what they did last counts at once.
pub struct CoOccurrence {
    histories: Arc<dyn HistoryStore>,
    rules: CoOccurrenceRules,
    rows: Option<Cache<SpotId, Arc<[Ranked]>>>,
}

impl CoOccurrence {
    /// The model over these histories.
    pub fn new(histories: Arc<dyn HistoryStore>, rules: CoOccurrenceRules) -> Self {
        let rows = (!rules.row_max_age.is_zero()).then(|| {
            Cache::builder().max_capacity(rules.rows).time_to_live(rules.row_max_age).build()
        });
        Self { histories, rules, rows }
    }

    async fn make_row(&self, spot: SpotId) -> Result<Arc<[Ranked]>, PortError> {
        let rules = &self.rules;
        let neighbourhood = self.histories.neighbourhood(spot, rules.holders).await?;
        let overlaps = overlaps(spot, &neighbourhood, &rules.exponents, rules.considered);
        if overlaps.is_empty() {
            return Ok(Arc::new([]));
        }
        let ids: Vec<SpotId> = overlaps.iter().map(|overlap| overlap.spot).collect();
        let degrees = self.histories.degrees(&ids).await?;
        Ok(row(&neighbourhood, &overlaps, &degrees, &rules.exponents, rules.kept).into())
    }
}

#[async_trait]
impl SimilarityModel for CoOccurrence {
    async fn neighbours(&self, spot: SpotId) -> Result<Arc<[Ranked]>, PortError> {
        let Some(rows) = &self.rows else {
            return self.make_row(spot).await;
        };
        if let Some(row) = rows.get(&spot) {
            return Ok(row);
        }
        let row = self.make_row(spot).await?;
        rows.insert(spot, Arc::clone(&row));
        Ok(row)
    }
}
