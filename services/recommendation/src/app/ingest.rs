//! Applies events to the stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tourin_chassis::clock::SharedClock;
use tourin_chassis::pruning::{PassLog, PruneGuard};
use uuid::Uuid;

use super::ports::{
    HistoryEvent, HistoryOutcome, HistoryStore, PortError, SpotReplica, SpotState, TrendEvent,
    TrendOutcome, TrendStore,
};
use crate::domain::interaction::{Change, ChangeOrder, Kind, is_pseudonym};
use crate::domain::spot::SpotId;

/// How long the records that recognise an event outlive its maximum age: clocks differ, and a
/// delivery that passed the age check may still be in retries.
pub const MARGIN: Duration = Duration::from_secs(3_600);

/// Applies events to the stores, and prunes them.
#[derive(Clone)]
pub struct Ingest {
    trend: Arc<dyn TrendStore>,
    histories: Arc<dyn HistoryStore>,
    spots: Arc<dyn SpotReplica>,
    clock: SharedClock,
    ages: Ages,
    /// The time of the newest counted event in microseconds, or 0.
    newest_us: Arc<AtomicI64>,
}

/// The maximum ages of events. Older events expire before they are handled.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    /// For the trend.
    pub trend: Duration,
    /// For the histories.
    pub histories: Duration,
}

/// Guards of the pruning of the stores.
#[derive(Debug, Clone)]
pub struct Guards {
    /// For the trend and the ids of its events.
    pub trend: Arc<PruneGuard>,
    /// For the histories.
    pub histories: Arc<PruneGuard>,
}

impl Guards {
    /// Guards that keep the times of their passes in these stores.
    pub fn new(trend: Arc<dyn PassLog>, histories: Arc<dyn PassLog>, clock: &SharedClock) -> Self {
        Self {
            trend: PruneGuard::new("trend", trend, Arc::clone(clock)),
            histories: PruneGuard::new("histories", histories, Arc::clone(clock)),
        }
    }
}

impl Ingest {
    /// Creates an ingest for these stores.
    pub fn new(
        trend: Arc<dyn TrendStore>,
        histories: Arc<dyn HistoryStore>,
        spots: Arc<dyn SpotReplica>,
        clock: SharedClock,
        ages: Ages,
    ) -> Self {
        Self { trend, histories, spots, clock, ages, newest_us: Arc::default() }
    }

    /// Counts a view or a bookmark for the trend. An event is recognised by its id. The publisher's
    /// date decides when the event expires and how long its id is kept.
    ///
    /// # Errors
    /// When the store fails, without any effect.
    pub async fn count(
        &self,
        (event_id, dated_at): (Uuid, DateTime<Utc>),
        subject: &str,
        spot: SpotId,
        kind: Kind,
        occurred: ChangeOrder,
    ) -> Result<TrendOutcome, PortError> {
        let now = self.clock.now();
        let event = TrendEvent {
            event_id,
            subject: subject.to_owned(),
            spot,
            kind,
            // A publisher's clock that is ahead must not keep a spot in the trend for longer.
            occurred: ChangeOrder { at: occurred.at.min(now), ..occurred },
            recorded_at: now,
            remember_until: self.remember_until(dated_at, self.ages.trend),
        };
        let counted = self.trend.record(&event).await?;
        if counted == TrendOutcome::Applied {
            self.newest_us.fetch_max(event.occurred.at.timestamp_micros(), Ordering::Relaxed);
        }
        Ok(counted)
    }

    /// The time of the newest event that this instance has counted.
    pub fn newest_counted(&self) -> Option<DateTime<Utc>> {
        let micros = self.newest_us.load(Ordering::Relaxed);
        DateTime::from_timestamp_micros(micros).filter(|_| micros > 0)
    }

    /// Deletes the records of a person from the trend.
    ///
    /// # Errors
    /// When the store fails, without any effect.
    pub async fn forget_in_trend(
        &self,
        subject: &str,
        order: ChangeOrder,
    ) -> Result<(), PortError> {
        let until = self.remember_until(order.at, self.ages.trend);
        self.trend.forget(subject, order, until).await
    }

    /// Records a change of a member's history. Returns `None` for visitors, who have no history.
    ///
    /// # Errors
    /// When the store fails, without any effect.
    pub async fn remember(
        &self,
        subject: &str,
        spot: SpotId,
        change: Change,
        occurred: ChangeOrder,
    ) -> Result<Option<HistoryOutcome>, PortError> {
        if is_pseudonym(subject) {
            return Ok(None);
        }
        let event = HistoryEvent {
            member: subject.to_owned(),
            spot,
            change,
            occurred,
            recorded_at: self.clock.now(),
        };
        self.histories.record(&event).await.map(Some)
    }

    /// Deletes a member's history.
    ///
    /// # Errors
    /// When the store fails, without any effect.
    pub async fn forget_history(&self, member: &str, order: ChangeOrder) -> Result<(), PortError> {
        let until = self.remember_until(order.at, self.ages.histories);
        self.histories.forget(member, order, until).await
    }

    /// Merges states of spots. Returns how many were newer than the replica.
    ///
    /// # Errors
    /// When the store fails. A retry is safe.
    pub async fn merge_spots(&self, states: &[SpotState]) -> Result<usize, PortError> {
        self.spots.merge(states).await
    }

    /// Removes records without effect from the stores, as far as their guards allow. Returns the
    /// number of removed records.
    ///
    /// # Errors
    /// When a store fails.
    pub async fn prune(&self, guards: &Guards) -> Result<u64, PortError> {
        let mut removed = 0;
        // Concurrently: an outage of one store must not delay the pass of the other.
        let (trend, histories) = tokio::join!(guards.trend.pass(), guards.histories.pass());
        if let Some(now) = trend.map_err(PortError::failed)? {
            removed += self.trend.prune(now).await?;
        }
        if let Some(now) = histories.map_err(PortError::failed)? {
            removed += self.histories.prune(now).await?;
        }
        Ok(removed)
    }

    fn remember_until(&self, occurred_at: DateTime<Utc>, max_age: Duration) -> DateTime<Utc> {
        let span = TimeDelta::from_std(max_age + MARGIN).unwrap_or(TimeDelta::MAX);
        // An event from the future expires that long after its own time.
        occurred_at
            .max(self.clock.now())
            .checked_add_signed(span)
            .unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}
