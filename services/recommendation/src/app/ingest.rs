//! What events do to the stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tourin_chassis::clock::SharedClock;
use uuid::Uuid;

use super::ports::{
    Counted, HistoryEvent, HistoryStore, Kept, PortError, SpotReplica, SpotState, TrendEvent,
    TrendStore,
};
use crate::domain::interaction::{Change, Kind, is_pseudonym};
use crate::domain::spot::SpotId;

/// How long after an event can no longer come its traces are kept: clocks differ, and a delivery
/// that passed the check of its age may still be on its way through retries.
pub const MARGIN: Duration = Duration::from_secs(3_600);

/// Applies events to the stores.
#[derive(Clone)]
pub struct Ingest {
    trend: Arc<dyn TrendStore>,
    histories: Arc<dyn HistoryStore>,
    spots: Arc<dyn SpotReplica>,
    clock: SharedClock,
    ages: Ages,
    /// When the newest event happened that counted, in microseconds; 0 while there is none.
    newest_us: Arc<AtomicI64>,
}

/// The age beyond which events no longer come.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    /// To the trend.
    pub trend: Duration,
    /// To the histories.
    pub histories: Duration,
}

impl Ingest {
    /// Applies events to these stores.
    pub fn new(
        trend: Arc<dyn TrendStore>,
        histories: Arc<dyn HistoryStore>,
        spots: Arc<dyn SpotReplica>,
        clock: SharedClock,
        ages: Ages,
    ) -> Self {
        Self { trend, histories, spots, clock, ages, newest_us: Arc::default() }
    }

    /// Counts a view or a bookmark for the trend.
    ///
    /// # Errors
    /// When the store fails; nothing has happened then.
    pub async fn count(
        &self,
        event_id: Uuid,
        subject: &str,
        spot: SpotId,
        kind: Kind,
        occurred_at: DateTime<Utc>,
    ) -> Result<Counted, PortError> {
        let now = self.clock.now();
        let event = TrendEvent {
            event_id,
            subject: subject.to_owned(),
            spot,
            kind,
            // A clock that is ahead must not buy a spot a longer life in the trend.
            occurred_at: occurred_at.min(now),
            recorded_at: now,
            remember_until: self.remember_until(occurred_at, self.ages.trend),
        };
        let counted = self.trend.record(&event).await?;
        if counted == Counted::Applied {
            self.newest_us.fetch_max(event.occurred_at.timestamp_micros(), Ordering::Relaxed);
        }
        Ok(counted)
    }

    /// When the newest event happened that this instance has counted: how fresh its part of the trend is.
    pub fn newest_counted(&self) -> Option<DateTime<Utc>> {
        let micros = self.newest_us.load(Ordering::Relaxed);
        DateTime::from_timestamp_micros(micros).filter(|_| micros > 0)
    }

    /// Forgets who counted for the trend.
    ///
    /// # Errors
    /// When the store fails; nothing has happened then.
    pub async fn forget_in_trend(&self, subject: &str, at: DateTime<Utc>) -> Result<(), PortError> {
        let until = self.remember_until(at, self.ages.trend);
        self.trend.forget(subject, at, until).await
    }

    /// Records a change of a member's history. Visitors have none: `None`.
    ///
    /// # Errors
    /// When the store fails; nothing has happened then.
    pub async fn remember(
        &self,
        subject: &str,
        spot: SpotId,
        change: Change,
        occurred_at: DateTime<Utc>,
    ) -> Result<Option<Kept>, PortError> {
        if is_pseudonym(subject) {
            return Ok(None);
        }
        let event = HistoryEvent { member: subject.to_owned(), spot, change, occurred_at };
        self.histories.record(&event).await.map(Some)
    }

    /// Forgets a member's history.
    ///
    /// # Errors
    /// When the store fails; nothing has happened then.
    pub async fn forget_history(&self, member: &str, at: DateTime<Utc>) -> Result<(), PortError> {
        let until = self.remember_until(at, self.ages.histories);
        self.histories.forget(member, at, until).await
    }

    /// Merges a spot's new state. Returns whether it was newer.
    ///
    /// # Errors
    /// When the store fails; nothing has happened then.
    pub async fn merge_spot(&self, state: SpotState) -> Result<bool, PortError> {
        let changed = self.spots.merge(&[state]).await?;
        Ok(changed > 0)
    }

    /// Removes what has no effect any more from the stores. Returns the number of records.
    ///
    /// # Errors
    /// When a store fails.
    pub async fn prune(&self) -> Result<u64, PortError> {
        let now = self.clock.now();
        Ok(self.trend.prune(now).await? + self.histories.prune(now).await?)
    }

    fn remember_until(&self, occurred_at: DateTime<Utc>, max_age: Duration) -> DateTime<Utc> {
        let span = TimeDelta::from_std(max_age + MARGIN).unwrap_or(TimeDelta::MAX);
        // An event of the future is only too old once its own time has passed by that much.
        occurred_at
            .max(self.clock.now())
            .checked_add_signed(span)
            .unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}
