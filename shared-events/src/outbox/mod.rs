//! The outbox: events that commit with their change, and are published from there.
//!
//! The [`Relay`] publishes to a bus and marks each row once it is confirmed. A crash between publishing and marking
//! publishes again: consumers dedupe by event id.
//!
//! # Several relays
//! Each row belongs to one of [`SHARDS`] shards, by its ordering key. A relay publishes the rows of the shards that it
//! holds. It holds a shard by a lease: it renews it, releases it on stop, and loses it when it dies. All relays share
//! the shards evenly.
//!
//! # Order and loss
//! A relay publishes an event only after the previous event of its key was confirmed, to itself or, by its mark, to
//! another relay. So the first delivery of each event is in the order of its key, whatever relays do at the same time.
//! A relay that was paused for longer than its lease may repeat events, and the dedupe drops them. It never loses one,
//! because only confirmed events are marked. The lease keeps repeats rare; correctness does not depend on it.

mod backlog;
pub mod mysql;
mod operator;
mod prune;
mod relay;
mod shard;
mod sql;
pub mod sqlite;
mod versions;
mod wake;

#[cfg(test)]
pub mod contract;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::events::Outgoing;

pub use backlog::{DEFAULT_MAX_PENDING, OutboxFull};
pub use mysql::MysqlOutbox;
pub use operator::{Filter, Run, Selected, State, Stored};
pub use prune::Pruner;
pub use relay::{Relay, RelayMetrics, RelaySettings};
pub use shard::{SHARDS, Shard, shard_of};
pub use sqlite::SqliteOutbox;
pub use wake::{Wake, WakeListener};

/// A committed event that the bus has not confirmed yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// Its number in the outbox; grows.
    pub seq: u64,
    /// The shard of its ordering key.
    pub shard: Shard,
    /// How often the bus returned it, as far as recorded.
    pub attempts: u32,
    /// The event to publish, with its version.
    pub event: Outgoing,
}

/// The outbox's backlog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Unconfirmed events that a relay will publish.
    pub pending: u64,
    /// When the oldest of them was recorded.
    pub oldest: Option<DateTime<Utc>>,
    /// The outbox's dead letters.
    pub rejected: u64,
}

/// The shards of a relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The shards that it holds, until the requested lease has passed since the call began.
    pub shards: Vec<Shard>,
    /// The number of running relays, this one included.
    pub relays: usize,
}

impl Claim {
    /// The most shards of each relay.
    pub fn fair_share(&self) -> usize {
        fair_share(self.relays)
    }
}

/// Leases that end so much later than now, in microseconds, are from before the clock was set back: ten of the caller's
/// own, and at least a minute, since others may have longer leases.
fn too_far_ahead(lease: i64) -> i64 {
    lease.saturating_mul(10).max(60_000_000)
}

fn fair_share(relays: usize) -> usize {
    usize::from(SHARDS).div_ceil(relays.max(1))
}

/// The bus returned an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The event's number.
    pub seq: u64,
    /// The reason, for an operator.
    pub reason: String,
    /// It is not tried again: it goes to the outbox's dead letters.
    pub give_up: bool,
}

/// The longest stored reason, in characters.
pub(crate) const MAX_REASON_CHARS: usize = 500;

impl Refusal {
    fn kept_reason(&self) -> String {
        self.reason.chars().take(MAX_REASON_CHARS).collect()
    }
}

/// The outbox for relays and operators. Appending is not part of the port: it happens inside the service's own
/// transaction, by the adapter's own function (such as [`sqlite::append`]).
#[async_trait]
pub trait OutboxStore: Send + Sync {
    /// Registers this relay as running, renews its leases, and takes free shards (those with an expired lease included)
    /// up to its fair share. It does not release shards above its share; see [`release`](Self::release).
    ///
    /// Leases are measured by one clock: that of the database server, or of the machine with the file. When that clock
    /// is set back, a lease that ends more than ten leases and a minute ahead counts as expired.
    async fn claim(&self, holder: &str, lease: Duration) -> anyhow::Result<Claim>;

    /// Releases these shards, as far as this holder has them.
    async fn release(&self, holder: &str, shards: &[Shard]) -> anyhow::Result<()>;

    /// Releases all shards of this holder, which is no longer running.
    async fn leave(&self, holder: &str) -> anyhow::Result<()>;

    /// The waiting events of these shards above a sequence number, in order.
    async fn pending(
        &self,
        shards: &[Shard],
        after: u64,
        limit: u32,
    ) -> anyhow::Result<Vec<Pending>>;

    /// Records that the bus confirmed these events.
    async fn mark_published(&self, seqs: &[u64], at: DateTime<Utc>) -> anyhow::Result<()>;

    /// Counts an attempt for each of these, keeps the reason, and dead-letters those that are not to be tried again.
    async fn record_refusals(&self, refusals: &[Refusal], at: DateTime<Utc>) -> anyhow::Result<()>;

    /// The name of the outbox's history. Another name means another database, or a restored copy.
    async fn log_id(&self) -> anyhow::Result<String>;

    /// The backlog. Counts rows: call it for a metric every few seconds, not for every event.
    async fn depth(&self) -> anyhow::Result<Depth>;

    /// Deletes rows that the bus confirmed at this time or earlier, at most `limit` of them, to keep the transaction
    /// short. Returns the number of deleted rows.
    async fn prune(&self, published_until: DateTime<Utc>, limit: u32) -> anyhow::Result<u64>;

    /// Whether at least `count` events wait for a relay. Cheap unless many wait.
    async fn has_pending(&self, count: u64) -> anyhow::Result<bool>;

    /// Counts the waiting events. Appending is refused ([`OutboxFull`]) from `max_pending` on, until fewer than
    /// nine tenths of it wait; without a bound nothing is refused. Returns whether it is refused now. Cheap unless many
    /// events wait. The publishing process calls it about every second.
    async fn enforce_bound(&self, max_pending: Option<u64>) -> anyhow::Result<bool>;

    /// For operators: rows in the order of their numbers, without their payload.
    async fn list(&self, filter: &Filter) -> anyhow::Result<Vec<Stored>>;

    /// For operators: these rows with their payload, in the order of their numbers. Missing rows are left out.
    async fn show(&self, seqs: &[u64]) -> anyhow::Result<Vec<(Stored, Outgoing)>>;

    /// For operators: the numbers of events with these ids. Reads the whole table.
    async fn find(&self, events: &[uuid::Uuid]) -> anyhow::Result<Vec<u64>>;

    /// For operators: publishes exactly these rows (again). Confirmed and dead-lettered rows wait from now on, with
    /// their attempts reset. Waiting rows are not changed ([`Selected::unfit`]). A relay notices within its
    /// `rescan_interval`.
    async fn replay(&self, seqs: &[u64], run: Run) -> anyhow::Result<Selected>;

    /// For operators: deletes exactly these rows, unless they are confirmed, which are left to pruning
    /// ([`Selected::unfit`]). A row that a relay has just read may still be published.
    async fn discard(&self, seqs: &[u64], run: Run) -> anyhow::Result<Selected>;
}
