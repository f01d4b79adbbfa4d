//! What events do to the stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tourin_chassis::clock::SharedClock;
use tourin_chassis::pruning::{PassLog, PruneGuard};
use uuid::Uuid;

use super::ports::{
    Counted, HistoryEvent, HistoryStore, Kept, PortError, SpotReplica, SpotState, TrendEvent,
    TrendStore,
};
use crate::domain::interaction::{Change, Kind, Moment, is_pseudonym};
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

/// Say by which time the stores may be pruned.
#[derive(Debug, Clone)]
pub struct Guards {
    /// Of the trend and of what its events are recognised by.
    pub trend: Arc<PruneGuard>,
    /// Of the histories.
    pub histories: Arc<PruneGuard>,
}

impl Guards {
    /// Guards whose passes these stores remember.
    pub fn new(trend: Arc<dyn PassLog>, histories: Arc<dyn PassLog>, clock: &SharedClock) -> Self {
        Self {
            trend: PruneGuard::new("trend", trend, Arc::clone(clock)),
            histories: PruneGuard::new("histories", histories, Arc::clone(clock)),
        }
    }
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

    /// Counts a view or a bookmark for the trend. The event is known by its id, and by the time that it was dated by its
    /// maker: it is too old by that, and its id is remembered until then.
    ///
    /// # Errors
    /// When the store fails; nothing has happened then.
    pub async fn count(
        &self,
        (event_id, dated_at): (Uuid, DateTime<Utc>),
        subject: &str,
        spot: SpotId,
        kind: Kind,
        occurred: Moment,
    ) -> Result<Counted, PortError> {
        let now = self.clock.now();
        let event = TrendEvent {
            event_id,
            subject: subject.to_owned(),
            spot,
            kind,
            // A clock that is ahead must not buy a spot a longer life in the trend.
            occurred: Moment { at: occurred.at.min(now), ..occurred },
            recorded_at: now,
            remember_until: self.remember_until(dated_at, self.ages.trend),
        };
        let counted = self.trend.record(&event).await?;
        if counted == Counted::Applied {
            self.newest_us.fetch_max(event.occurred.at.timestamp_micros(), Ordering::Relaxed);
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
    pub async fn forget_in_trend(&self, subject: &str, order: Moment) -> Result<(), PortError> {
        let until = self.remember_until(order.at, self.ages.trend);
        self.trend.forget(subject, order, until).await
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
        occurred: Moment,
    ) -> Result<Option<Kept>, PortError> {
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

    /// Forgets a member's history.
    ///
    /// # Errors
    /// When the store fails; nothing has happened then.
    pub async fn forget_history(&self, member: &str, order: Moment) -> Result<(), PortError> {
        let until = self.remember_until(order.at, self.ages.histories);
        self.histories.forget(member, order, until).await
    }

    /// Merges new states of spots. Returns how many were newer.
    ///
    /// # Errors
    /// When the store fails; doing it again does no harm.
    pub async fn merge_spots(&self, states: &[SpotState]) -> Result<usize, PortError> {
        self.spots.merge(states).await
    }

    /// Removes what has no effect any more from the stores, each by its guard. Returns the number of records.
    ///
    /// # Errors
    /// When a store fails.
    pub async fn prune(&self, guards: &Guards) -> Result<u64, PortError> {
        let mut removed = 0;
        // Both in any case: the passes must not wait for each other's store.
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
        // An event of the future is only too old once its own time has passed by that much.
        occurred_at
            .max(self.clock.now())
            .checked_add_signed(span)
            .unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}
