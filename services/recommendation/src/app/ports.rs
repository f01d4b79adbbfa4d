//! What the use cases need of stores and of core.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::domain::interaction::{Change, Kind, Moment, Remembered};
use crate::domain::similarity::Neighbourhood;
use crate::domain::spot::{Place, Spot, SpotId};
use crate::domain::trend::Ranked;

/// A store or a service that did not answer as it should.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PortError {
    /// It is out of reach, for everybody: trying again helps once it is back.
    #[error("out of reach: {0:#}")]
    Unavailable(Arc<anyhow::Error>),
    /// It answered, and could not do this.
    #[error("{0:#}")]
    Failed(Arc<anyhow::Error>),
}

impl PortError {
    /// An outage with its cause.
    pub fn unavailable(cause: impl Into<anyhow::Error>) -> Self {
        Self::Unavailable(Arc::new(cause.into()))
    }

    /// Its class in a fixed word, for traces.
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

/// A view or a bookmark on its way into the trend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrendEvent {
    /// The event's id, by which it is recognised when it comes again.
    pub event_id: Uuid,
    /// The member's id or the visitor's pseudonym.
    pub subject: String,
    /// The spot.
    pub spot: SpotId,
    /// What was done.
    pub kind: Kind,
    /// When it happened. What lies after `recorded_at` counts as of then.
    pub occurred: Moment,
    /// The time now. When it is far below that of events before, the clock was ahead then, and what it did to the scores is
    /// taken back.
    pub recorded_at: DateTime<Utc>,
    /// The event's id is remembered at least until then.
    pub remember_until: DateTime<Utc>,
}

/// What became of a [`TrendEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// It counts.
    Applied,
    /// This very event was there before.
    Duplicate,
    /// The same person, spot and kind counted within the window around it; or the person has been
    /// forgotten since.
    AlreadyCounted,
}

/// The decayed scores of spots. Implementations agree on
/// [`TrendRules`](crate::domain::trend::TrendRules), given when they are opened.
#[async_trait]
pub trait TrendStore: Send + Sync {
    /// Counts an event, once: the score, the window and the event's id are stored together or not
    /// at all. An event may be older than ones that were recorded before it.
    async fn record(&self, event: &TrendEvent) -> Result<Counted, PortError>;

    /// Up to `limit` spots with a value of at least the rules' floor at `now`, in the order of
    /// [`rank`](crate::domain::trend::rank). It also names spots that the replica does not have.
    async fn top(&self, limit: usize, now: DateTime<Utc>) -> Result<Vec<Ranked>, PortError>;

    /// What spots are worth at `now`, however little; those that never counted are left out.
    async fn values(
        &self,
        spots: &[SpotId],
        now: DateTime<Utc>,
    ) -> Result<HashMap<SpotId, f64>, PortError>;

    /// Forgets what names this person. Events of theirs from before `order` that are still on their
    /// way do not count any more; scores, which name nobody, stay. `remember_until` bounds how long
    /// the order is remembered.
    async fn forget(
        &self,
        subject: &str,
        order: Moment,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError>;

    /// Removes what no longer has an effect at `now`, the time of a checked clock, as far as it does
    /// not expire by itself; a bounded number. Returns the number of records removed.
    async fn prune(&self, now: DateTime<Utc>) -> Result<u64, PortError>;
}

/// A change of a member's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEvent {
    /// The member's id.
    pub member: String,
    /// The spot.
    pub spot: SpotId,
    /// What changed.
    pub change: Change,
    /// When.
    pub occurred: Moment,
    /// The time now. A view that is known from after it was dated by a clock that was ahead.
    pub recorded_at: DateTime<Utc>,
}

/// What became of a [`HistoryEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The history changed.
    Applied,
    /// The history knew this or something newer.
    Stale,
    /// The member was forgotten after the event.
    Forgotten,
}

/// What a member is known to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// The latest spots, newest first.
    pub recent: Vec<Remembered>,
    /// Every spot that the member has viewed or has bookmarked.
    pub known: HashSet<SpotId>,
}

/// A member's live history by what was done, each in the order of the spots' ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deeds {
    /// Spots that are bookmarked.
    pub bookmarked: Vec<SpotId>,
    /// Spots that were viewed.
    pub viewed: Vec<SpotId>,
}

/// What members have viewed and bookmarked.
///
/// The effect of an event is to move a version or a date forward, so that the state itself recognises
/// what it has seen: recording an event again, however late, changes nothing. No ids of events are kept.
#[async_trait]
pub trait HistoryStore: Send + Sync {
    /// Records a change. The latest change of a bookmark wins ([`Moment`] says which that is); of
    /// two without a version and of one time, the later arrival.
    async fn record(&self, event: &HistoryEvent) -> Result<Kept, PortError>;

    /// Forgets a member, and whatever they did before `order` that is still on its way.
    /// `remember_until` bounds how long the order is remembered.
    async fn forget(
        &self,
        member: &str,
        order: Moment,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError>;

    /// A member's profile with up to `limit` recent spots.
    async fn profile(&self, member: &str, limit: usize) -> Result<Profile, PortError>;

    /// What a member has viewed and has bookmarked, up to `limit` spots of each.
    async fn deeds(&self, member: &str, limit: usize) -> Result<Deeds, PortError>;

    /// The latest `holders` members who know a spot, each with the latest spots they know (a
    /// bounded number).
    async fn neighbourhood(&self, spot: SpotId, holders: usize)
    -> Result<Neighbourhood, PortError>;

    /// How many members know each of the spots; spots that nobody knows are left out.
    async fn degrees(&self, spots: &[SpotId]) -> Result<HashMap<SpotId, u64>, PortError>;

    /// Removes what no longer has an effect at `now`, the time of a checked clock; a bounded number.
    /// Returns the number of records removed.
    async fn prune(&self, now: DateTime<Utc>) -> Result<u64, PortError>;
}

/// A spot's state as core tells it.
#[derive(Debug, Clone, PartialEq)]
pub enum SpotState {
    /// It is there.
    Live(Spot),
    /// It is gone since this version.
    Deleted {
        /// Which spot.
        id: SpotId,
        /// The version of the deletion.
        version: u64,
    },
}

/// Where a listing of spots by number of tags goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagCursor {
    /// The number of tags of the last spot.
    pub tags: usize,
    /// Its id.
    pub id: SpotId,
}

/// The service's own copy of core's spots.
#[async_trait]
pub trait SpotReplica: Send + Sync {
    /// Merges states; returns how many changed the replica. A state whose version is not above the
    /// replica's changes nothing, so that events and resync may overtake each other. A deletion
    /// leaves its version behind; a spot that was swept comes back with the version it had.
    async fn merge(&self, states: &[SpotState]) -> Result<usize, PortError>;

    /// Those of the spots that are there.
    async fn get_many(&self, ids: &[SpotId]) -> Result<HashMap<SpotId, Spot>, PortError>;

    /// Up to `limit` spots near `place`, nearest first, smaller id first among equals. With `tags`,
    /// only spots that have one of them.
    async fn near(
        &self,
        place: Place,
        tags: Option<&[String]>,
        limit: usize,
    ) -> Result<Vec<Spot>, PortError>;

    /// Up to `limit` spots, most tags first, smaller id first among equals, after `after`.
    async fn most_tagged(
        &self,
        after: Option<TagCursor>,
        limit: usize,
    ) -> Result<Vec<Spot>, PortError>;

    /// Whether the whole catalogue has been read into it, once at least: a full resync has ended.
    async fn is_whole(&self) -> Result<bool, PortError>;

    /// The log of core that the replica's versions belong to, when one is known.
    async fn log_id(&self) -> Result<Option<String>, PortError>;

    /// Says that versions belong to the log `log_id` from now on. Versions of another log mean
    /// nothing in it: when it differs from the one before, every version restarts at zero.
    async fn adopt_log(&self, log_id: &str) -> Result<(), PortError>;

    /// Begins a full resync and returns its number, which is above all before. Resyncs of several
    /// replicas may overlap.
    async fn begin_resync(&self) -> Result<u64, PortError>;

    /// Ends the full resync of this number: spots that nobody has mentioned since it began are gone
    /// from core, and are deleted here. Returns how many.
    async fn sweep(&self, resync: u64) -> Result<u64, PortError>;
}

/// A part of core's catalogue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CataloguePage {
    /// The spots, by id.
    pub spots: Vec<Spot>,
    /// Where the next page begins; `None` when this is the last.
    pub next: Option<String>,
}

/// Core's catalogue of spots, read from core itself.
#[async_trait]
pub trait Catalogue: Send + Sync {
    /// The id of core's event log, which changes when core's data is made anew.
    async fn log_id(&self) -> Result<String, PortError>;

    /// A page of live spots, from `after` on.
    async fn page(&self, after: Option<&str>) -> Result<CataloguePage, PortError>;
}
