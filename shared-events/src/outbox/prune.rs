//! Keeps the outbox from growing for ever.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::{OutboxStore, PruneLimits};
use crate::PassTime;

/// How often old rows are looked for.
const INTERVAL: Duration = Duration::from_secs(60);
/// Rows deleted per transaction.
const ROWS: u32 = 2_000;
/// The writer's breathing space between two such transactions.
const PAUSE: Duration = Duration::from_millis(20);
/// The most rows that one pass deletes: 8,000 for each second of its interval, more than an outbox of a million grows by. A
/// clock that is wrong for longer than its check notices does not empty the outbox at once.
const ROWS_PER_PASS: u64 = 500_000;

/// How long rows are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// A relay publishes them, nobody reads the feed: for this long after they were confirmed. Rows that are not
    /// confirmed are kept whatever their age.
    Published(Duration),
    /// The feed is the only way out: for this long after they were recorded. A reader who stays away for longer misses
    /// events, and is told so.
    Feed(Duration),
    /// Both: until confirmed and recorded this long ago.
    Both {
        /// After the confirmation.
        published: Duration,
        /// After the recording.
        feed: Duration,
    },
}

impl Default for Retention {
    /// An hour after the confirmation.
    fn default() -> Self {
        Self::Published(Duration::from_secs(3_600))
    }
}

/// Deletes what is past its retention, a little at a time.
pub struct Pruner {
    store: Arc<dyn OutboxStore>,
    retention: Retention,
    time: PassTime,
}

impl Pruner {
    /// A pruner of `store` by what `time` says.
    pub fn new(store: Arc<dyn OutboxStore>, retention: Retention, time: PassTime) -> Self {
        Self { store, retention, time }
    }

    /// Deletes what is past its retention now, in bounds, and says how many rows that was; none while the clock is not to
    /// be trusted.
    ///
    /// # Errors
    /// When the store cannot delete; what was deleted before stays so.
    pub async fn prune(&self) -> anyhow::Result<u64> {
        let Some(now) = (self.time)().await? else {
            return Ok(0);
        };
        let before = |age: Duration| {
            TimeDelta::from_std(age).ok().and_then(|age| now.checked_sub_signed(age))
        };
        let (published_until, recorded_until) = match self.retention {
            Retention::Published(age) => (before(age), None),
            Retention::Feed(age) => (None, before(age)),
            Retention::Both { published, feed } => match (before(published), before(feed)) {
                (Some(published), Some(feed)) => (Some(published), Some(feed)),
                // One of them reaches back before time itself: nothing is that old.
                _ => return Ok(0),
            },
        };
        let limits = PruneLimits { published_until, recorded_until, rows: ROWS };
        let mut total = 0;
        loop {
            let deleted = self.store.prune(&limits).await?;
            total += deleted;
            if deleted < u64::from(ROWS) || total >= ROWS_PER_PASS {
                return Ok(total);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Prunes once a minute until told to stop.
    pub async fn run(&self, shutdown: CancellationToken) {
        self.unbind().await;
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

    /// Where the feed is the only way out nothing waits to be published. A bound that a relay of before left behind must
    /// not refuse changes for ever.
    async fn unbind(&self) {
        if matches!(self.retention, Retention::Feed(_))
            && let Err(error) = self.store.keep_bound(None).await
        {
            tracing::warn!(error = format!("{error:#}"), "outbox not opened");
        }
    }
}
