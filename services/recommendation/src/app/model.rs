//! The similarity of spots: their co-occurrence in live histories.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use moka::future::Cache;

use super::ports::{HistoryStore, PortError};
use crate::domain::similarity::{Exponents, overlaps, row};
use crate::domain::spot::SpotId;
use crate::domain::trend::{Ranked, rank};

/// A spot of a member's history with its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seed {
    /// The spot.
    pub spot: SpotId,
    /// The weight of the interaction.
    pub weight: f64,
}

/// Rows read concurrently for one request.
const ROWS_AT_ONCE: usize = 4;

/// Limits and exponents of [`CoOccurrence`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CoOccurrenceRules {
    /// The exponents of the formula.
    pub exponents: Exponents,
    /// Members used for a row: those who interacted with the spot last. Default 256.
    pub holders: usize,
    /// Co-occurring spots whose degrees are read for a row: those with the largest overlap. Default
    /// 2,000.
    pub considered: usize,
    /// Neighbours kept in a row. Default 200.
    pub kept: usize,
    /// How long a row is cached. Zero disables the cache.
    pub row_max_age: Duration,
    /// Rows in the cache, each of at most `kept` times 16 bytes. Default 10,000.
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

/// Computes rows of the co-occurrence matrix on demand from the current histories, and caches them
/// briefly. A member's own history is not cached, so that the latest interaction counts at once.
/// The model does not know the member: the caller removes the member's known spots, deleted spots and
/// the seeds.
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

    /// The spots most similar to `spot`, best first, without itself. Empty for an unknown spot.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn neighbours(&self, spot: SpotId) -> Result<Arc<[Ranked]>, PortError> {
        let Some(rows) = &self.rows else {
            return self.make_row(spot).await;
        };
        // Requests that need the same row at once wait for one of them to make it.
        rows.try_get_with(spot, self.make_row(spot)).await.map_err(Arc::unwrap_or_clone)
    }

    /// The spots similar to a history, best first: the weighted sum of the seeds' rows.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn score(&self, seeds: &[Seed]) -> Result<Vec<Ranked>, PortError> {
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use chrono::{DateTime, Utc};
    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::app::ports::{HistoryEvent, HistoryOutcome, Interactions, Profile};
    use crate::domain::interaction::ChangeOrder;
    use crate::domain::similarity::Neighbourhood;

    /// Histories that are read when the test lets them. The first reading fails.
    struct Held {
        readings: AtomicUsize,
        may_end: Semaphore,
    }

    #[async_trait]
    impl HistoryStore for Held {
        async fn neighbourhood(&self, _: SpotId, _: usize) -> Result<Neighbourhood, PortError> {
            let earlier = self.readings.fetch_add(1, Ordering::SeqCst);
            self.may_end.acquire().await.unwrap().forget();
            match earlier {
                0 => Err(PortError::failed(anyhow::anyhow!("the first one"))),
                _ => Ok(Neighbourhood::default()),
            }
        }

        async fn record(&self, _: &HistoryEvent) -> Result<HistoryOutcome, PortError> {
            unreachable!()
        }

        async fn forget(&self, _: &str, _: ChangeOrder, _: DateTime<Utc>) -> Result<(), PortError> {
            unreachable!()
        }

        async fn profile(&self, _: &str, _: usize) -> Result<Profile, PortError> {
            unreachable!()
        }

        async fn interactions(&self, _: &str, _: usize) -> Result<Interactions, PortError> {
            unreachable!()
        }

        async fn degrees(&self, _: &[SpotId]) -> Result<HashMap<SpotId, u64>, PortError> {
            unreachable!()
        }

        async fn prune(&self, _: DateTime<Utc>) -> Result<u64, PortError> {
            unreachable!()
        }
    }

    #[tokio::test]
    async fn requests_at_once_share_a_row_and_a_failure_is_not_kept() {
        let store = Arc::new(Held { readings: AtomicUsize::new(0), may_end: Semaphore::new(0) });
        let rules =
            CoOccurrenceRules { row_max_age: Duration::from_secs(600), ..Default::default() };
        let model = CoOccurrence::new(store.clone(), rules);
        let spot = SpotId::new(1).unwrap();
        for (round, succeed) in [(1, false), (2, true)] {
            let ten = join_all((0..10).map(|_| model.neighbours(spot)));
            // All of them wait by then.
            let (rows, ()) = tokio::join!(ten, async { store.may_end.add_permits(1) });
            assert!(rows.iter().all(|row| row.is_ok() == succeed), "{rows:?}");
            assert_eq!(store.readings.load(Ordering::SeqCst), round);
        }
        assert!(model.neighbours(spot).await.unwrap().is_empty());
        assert_eq!(store.readings.load(Ordering::SeqCst), 2, "it is cached");
    }
}
