//! The ports of the use cases: the stores and core's catalogue.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::domain::interaction::{Change, ChangeOrder, Kind, Remembered};
use crate::domain::similarity::Neighbourhood;
use crate::domain::spot::{Coordinates, Spot, SpotId};
use crate::domain::trend::Ranked;

/// A failure of a store or of a service.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PortError {
    /// An outage: every operation fails. A retry succeeds once it is over.
    #[error("unreachable: {0:#}")]
    Unavailable(Arc<anyhow::Error>),
    /// This operation failed.
    #[error("{0:#}")]
    Failed(Arc<anyhow::Error>),
}

impl PortError {
    /// An outage with its cause.
    pub fn unavailable(cause: impl Into<anyhow::Error>) -> Self {
        Self::Unavailable(Arc::new(cause.into()))
    }

    /// The class of the error as a fixed word, for traces.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Failed(_) => "failed",
        }
    }

    /// A failure with its cause.
    pub fn failed(cause: impl Into<anyhow::Error>) -> Self {
        Self::Failed(Arc::new(cause.into()))
    }
}

/// A view or a bookmark to count for the trend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrendEvent {
    /// The event's id, by which a redelivery is recognised.
    pub event_id: Uuid,
    /// The member's id or the visitor's pseudonym.
    pub subject: String,
    /// The spot.
    pub spot: SpotId,
    /// The kind of the interaction.
    pub kind: Kind,
    /// When it happened. A time after `recorded_at` counts as `recorded_at`.
    pub occurred: ChangeOrder,
    /// The current time. A time far before that of earlier events means that the clock was ahead
    /// then. Its effect on the scores is then reverted.
    pub recorded_at: DateTime<Utc>,
    /// The event's id is kept at least until this time.
    pub remember_until: DateTime<Utc>,
}

/// The outcome of a [`TrendEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrendOutcome {
    /// The event counts.
    Applied,
    /// The event was recorded before.
    Duplicate,
    /// The same person, spot and kind counted within the window around it, or the person was
    /// forgotten after the event.
    AlreadyCounted,
}

/// The decayed scores of spots, by the [`TrendRules`](crate::domain::trend::TrendRules) that the
/// implementation was opened with.
#[async_trait]
pub trait TrendStore: Send + Sync {
    /// Counts an event once. The score, the window and the event's id are stored atomically. Events
    /// may arrive in any order.
    async fn record(&self, event: &TrendEvent) -> Result<TrendOutcome, PortError>;

    /// Up to `limit` spots with a value of at least the rules' floor at `now`, in the order of
    /// [`rank`](crate::domain::trend::rank). They include spots that the replica does not have.
    async fn top(&self, limit: usize, now: DateTime<Utc>) -> Result<Vec<Ranked>, PortError>;

    /// The values of spots at `now`, also those below the floor. Spots that never counted are left
    /// out.
    async fn values(
        &self,
        spots: &[SpotId],
        now: DateTime<Utc>,
    ) -> Result<HashMap<SpotId, f64>, PortError>;

    /// Deletes the records that name a person. Their events from before `order` that arrive later
    /// do not count. Scores stay, because they name no person. The order is kept until
    /// `remember_until`.
    async fn forget(
        &self,
        subject: &str,
        order: ChangeOrder,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError>;

    /// Removes a bounded number of records that have no effect any more at `now` and do not expire
    /// by themselves. `now` comes from a checked clock. Returns the number of removed records.
    async fn prune(&self, now: DateTime<Utc>) -> Result<u64, PortError>;
}

/// A change of a member's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEvent {
    /// The member's id.
    pub member: String,
    /// The spot.
    pub spot: SpotId,
    /// The change.
    pub change: Change,
    /// When it happened.
    pub occurred: ChangeOrder,
    /// The current time. A stored view from after it was dated by a clock that was ahead.
    pub recorded_at: DateTime<Utc>,
}

/// The outcome of a [`HistoryEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryOutcome {
    /// The history changed.
    Applied,
    /// The history has this change or a newer one.
    Stale,
    /// The member was forgotten after the event.
    Forgotten,
}

/// The spots that a member knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// The latest spots, newest first.
    pub recent: Vec<Remembered>,
    /// Every spot that the member has viewed or has bookmarked.
    pub known: HashSet<SpotId>,
}

/// A member's interactions by kind, each in the order of the spots' ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interactions {
    /// Bookmarked spots.
    pub bookmarked: Vec<SpotId>,
    /// Viewed spots.
    pub viewed: Vec<SpotId>,
}

/// Members' views and bookmarks.
///
/// An event only moves a version or a date forward. So recording it again, however late, changes
/// nothing, and no event ids are kept.
#[async_trait]
pub trait HistoryStore: Send + Sync {
    /// Records a change. The latest change of a bookmark wins, in the order of [`ChangeOrder`]. Of two
    /// changes with the same time and no version, the later arrival wins.
    async fn record(&self, event: &HistoryEvent) -> Result<HistoryOutcome, PortError>;

    /// Deletes a member's history. The member's events from before `order` that arrive later have
    /// no effect. The order is kept until `remember_until`.
    async fn forget(
        &self,
        member: &str,
        order: ChangeOrder,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError>;

    /// A member's profile with up to `limit` recent spots.
    async fn profile(&self, member: &str, limit: usize) -> Result<Profile, PortError>;

    /// The spots that a member has viewed and bookmarked, up to `limit` of each.
    async fn interactions(&self, member: &str, limit: usize) -> Result<Interactions, PortError>;

    /// Up to `holders` members who know a spot, latest first, each with a bounded number of their
    /// latest spots.
    async fn neighbourhood(&self, spot: SpotId, holders: usize)
    -> Result<Neighbourhood, PortError>;

    /// How many members know each spot. Spots that no member knows are left out.
    async fn degrees(&self, spots: &[SpotId]) -> Result<HashMap<SpotId, u64>, PortError>;

    /// Removes a bounded number of records that have no effect any more at `now`, which comes from a
    /// checked clock. Returns the number of removed records.
    async fn prune(&self, now: DateTime<Utc>) -> Result<u64, PortError>;
}

/// A spot's state in core.
#[derive(Debug, Clone, PartialEq)]
pub enum SpotState {
    /// The spot exists.
    Live(Spot),
    /// The spot was deleted.
    Deleted {
        /// The spot.
        id: SpotId,
        /// The version of the deletion.
        version: u64,
    },
}

/// The position after which a listing of spots by number of tags continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagCursor {
    /// The number of tags of the last spot.
    pub tags: usize,
    /// The id of that spot.
    pub id: SpotId,
}

/// The service's replica of core's spots.
#[async_trait]
pub trait SpotReplica: Send + Sync {
    /// Merges states, and returns how many changed the replica. A state changes it only if its
    /// version is higher, so that events and a resync may arrive in any order. A deletion keeps its
    /// version. A swept spot may return with the same version.
    async fn merge(&self, states: &[SpotState]) -> Result<usize, PortError>;

    /// Those of the spots that exist.
    async fn get_many(&self, ids: &[SpotId]) -> Result<HashMap<SpotId, Spot>, PortError>;

    /// Up to `limit` spots near `coordinates`, nearest first, then by id. With `tags`, only spots that
    /// have one of them.
    async fn near(
        &self,
        coordinates: Coordinates,
        tags: Option<&[String]>,
        limit: usize,
    ) -> Result<Vec<Spot>, PortError>;

    /// Up to `limit` spots after `after`, most tags first, then by id.
    async fn most_tagged(
        &self,
        after: Option<TagCursor>,
        limit: usize,
    ) -> Result<Vec<Spot>, PortError>;

    /// Whether a full resync has ended at least once, so that the replica is complete.
    async fn is_complete(&self) -> Result<bool, PortError>;

    /// The id of core's log that the replica's versions belong to, if known.
    async fn log_id(&self) -> Result<Option<String>, PortError>;

    /// Makes `log_id` the log of all further versions. Versions of different logs cannot be
    /// compared: if the log differs from the previous one, every version restarts at zero.
    async fn adopt_log(&self, log_id: &str) -> Result<(), PortError>;

    /// Begins a full resync and returns its number, which is higher than all earlier ones. Resyncs
    /// of several instances may overlap.
    async fn begin_resync(&self) -> Result<u64, PortError>;

    /// Ends the full resync with this number: deletes the spots that no event or resync has
    /// mentioned since it began, because core does not have them any more. Returns how many.
    async fn sweep(&self, resync: u64) -> Result<u64, PortError>;
}

/// A page of core's catalogue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CataloguePage {
    /// The spots, in the order of their ids.
    pub spots: Vec<Spot>,
    /// The cursor of the next page; `None` for the last page.
    pub next: Option<String>,
}

/// Core's catalogue of spots, read from core itself.
#[async_trait]
pub trait Catalogue: Send + Sync {
    /// The id of core's event log. It changes when core starts with new data.
    async fn log_id(&self) -> Result<String, PortError>;

    /// A page of live spots after `after`.
    async fn page(&self, after: Option<&str>) -> Result<CataloguePage, PortError>;
}
