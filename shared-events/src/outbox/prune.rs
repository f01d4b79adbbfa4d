//! Deletes expired rows, so that the outbox does not grow without bound.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::OutboxStore;
use crate::PassTime;

/// The interval between passes.
const INTERVAL: Duration = Duration::from_secs(60);
/// Rows deleted per transaction.
const ROWS: u32 = 2_000;
/// The pause between two such transactions, in which others can write.
const PAUSE: Duration = Duration::from_millis(20);
/// The most rows that one pass deletes: 8,000 for each second of its interval, which is more than an outbox of a
/// million grows by. So a wrong clock does not empty the outbox at once.
const ROWS_PER_PASS: u64 = 500_000;

/// Deletes confirmed rows that are past their retention, in small steps.
pub struct Pruner {
    store: Arc<dyn OutboxStore>,
    retention: Duration,
    time: PassTime,
}

impl Pruner {
    /// A pruner of `store` that keeps rows for `retention` after their confirmation, by the clock `time`.
    pub fn new(store: Arc<dyn OutboxStore>, retention: Duration, time: PassTime) -> Self {
        Self { store, retention, time }
    }

    /// Deletes expired rows now, within bounds. Returns the number of rows; 0 while the clock is not trusted.
    ///
    /// # Errors
    /// When the store cannot delete. Earlier deletions stay.
    pub async fn prune(&self) -> anyhow::Result<u64> {
        let Some(now) = (self.time)().await? else {
            return Ok(0);
        };
        let until = TimeDelta::from_std(self.retention).ok();
        let Some(until) = until.and_then(|age| now.checked_sub_signed(age)) else {
            // The limit is before the first date that can be represented: no row is that old.
            return Ok(0);
        };
        let mut total = 0;
        loop {
            let deleted = self.store.prune(until, ROWS).await?;
            total += deleted;
            if deleted < u64::from(ROWS) || total >= ROWS_PER_PASS {
                return Ok(total);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Prunes once a minute until it is stopped.
    pub async fn run(&self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                result = self.prune() => match result {
                    Ok(0) => {}
                    Ok(rows) => tracing::debug!(rows, "outbox pruned"),
                    Err(error) => tracing::warn!(error = format!("{error:#}"), "outbox not pruned"),
                },
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }
}
