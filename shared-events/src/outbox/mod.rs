//! The outbox: events that are committed with the change they tell of, and leave from there.
//!
//! One table serves two ways out. The [`Relay`] publishes to a bus and marks each row once it is confirmed; the
//! [`Feed`] lets other processes read the rows by sequence number, at their own pace. A crash between publishing and
//! marking publishes again: consumers dedupe by event id.

mod feed;
mod prune;
mod relay;
pub mod sqlite;
mod wake;

#[cfg(any(test, feature = "testing"))]
pub mod contract;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::events::Outgoing;

pub use feed::{Feed, FeedEvent, FeedPage, MAX_PAGE_BYTES, MAX_PAGE_EVENTS};
pub use prune::{Pruner, Retention};
pub use relay::{Relay, RelaySettings, RelaySnapshot, RelayStats};
pub use sqlite::SqliteOutbox;
pub use wake::{Wake, WakeListener};

/// A committed event that is not yet confirmed by the bus.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// Its place in the outbox; grows.
    pub seq: u64,
    /// What to publish.
    pub event: Outgoing,
}

/// How much waits in the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Events not yet confirmed.
    pub pending: u64,
    /// When the oldest of them was recorded.
    pub oldest: Option<DateTime<Utc>>,
}

/// What may be deleted. The conditions that are given must all hold; with none, nothing is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneLimits {
    /// Confirmed by the bus at this time or earlier.
    pub published_until: Option<DateTime<Utc>>,
    /// Recorded at this time or earlier.
    pub recorded_until: Option<DateTime<Utc>>,
    /// The most rows to delete in this call, so that the writer is not held for long.
    pub rows: u32,
}

/// The outbox as the relay and the feed see it. Appending is not part of the port: it happens inside the service's own
/// transaction, by the adapter's own function (such as [`sqlite::append`]).
#[async_trait]
pub trait OutboxStore: Send + Sync {
    /// Takes or renews the lease that lets one relay at a time work on this outbox. `Ok(false)` while another holder's
    /// lease runs (one that ends more than twice as far ahead is from a clock set back, and does not count). Two relays at once would be harmless to consumers, but twice the work.
    async fn claim(
        &self,
        holder: &str,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> anyhow::Result<bool>;

    /// Gives the lease back, if this holder has it.
    async fn release(&self, holder: &str) -> anyhow::Result<()>;

    /// The events not yet confirmed, above a sequence number, in order.
    async fn pending(&self, after: u64, limit: u32) -> anyhow::Result<Vec<Pending>>;

    /// Records that the bus confirmed these.
    async fn mark_published(&self, seqs: &[u64], at: DateTime<Utc>) -> anyhow::Result<()>;

    /// The feed: events above a sequence number whether confirmed or not, in order, at most `limit` of them and at
    /// most about [`MAX_PAGE_BYTES`].
    async fn page_after(&self, after: u64, limit: u32) -> anyhow::Result<FeedPage>;

    /// What waits. Counts rows: for a metric every few seconds, not for every event.
    async fn depth(&self) -> anyhow::Result<Depth>;

    /// Deletes old rows and says how many.
    async fn prune(&self, limits: &PruneLimits) -> anyhow::Result<u64>;
}
