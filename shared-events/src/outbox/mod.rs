//! The outbox: events that are committed with the change they tell of, and leave from there.
//!
//! The [`Relay`] publishes to a bus and marks each row once it is confirmed. A crash between publishing and marking
//! publishes again: consumers dedupe by event id.
//!
//! # Several relays
//! Each row belongs to one of [`SHARDS`] shards, by its ordering key. A relay publishes the rows of the shards that it
//! holds, and holds a shard by a lease: it renews it, gives it back when it stops, and loses it when it dies. All relays
//! together share the shards evenly.
//!
//! # Order and loss
//! A relay publishes an event only after the one before it of the same key was confirmed, to itself or, by its mark, to
//! another relay. So what consumers see first of each event is in the order of the key, whatever relays do at the same
//! time: one that was paused for longer than its lease and goes on publishing without knowing better repeats events, and
//! the dedupe drops them. It never loses one, for only what the bus confirmed is marked. The lease keeps such repeats
//! rare; nothing depends on it but work.

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

#[cfg(any(test, feature = "testing"))]
pub mod contract;

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::events::Outgoing;

pub use backlog::{DEFAULT_MAX_PENDING, OutboxFull};
pub use mysql::MysqlOutbox;
pub use operator::{Filter, Run, Selected, State, Stored};
pub use prune::Pruner;
pub use relay::{Relay, RelaySettings, RelaySnapshot, RelayStats};
pub use shard::{SHARDS, Shard, shard_of};
pub use sqlite::SqliteOutbox;
pub use wake::{Wake, WakeListener};

/// A committed event that is not yet confirmed by the bus.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// Its place in the outbox; grows.
    pub seq: u64,
    /// The shard of its ordering key.
    pub shard: Shard,
    /// How often the bus gave it back, as far as that was recorded.
    pub attempts: u32,
    /// What to publish, with its version.
    pub event: Outgoing,
}

/// How much waits in the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Events not yet confirmed that a relay will publish.
    pub pending: u64,
    /// When the oldest of them was recorded.
    pub oldest: Option<DateTime<Utc>>,
    /// Events that were given up: the outbox's dead letters.
    pub rejected: u64,
}

/// What a relay may work on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The shards it holds, until the lease it asked for has passed since the call began.
    pub shards: Vec<Shard>,
    /// How many relays are at work, this one included.
    pub relays: usize,
}

impl Claim {
    /// How many shards each relay is to have at most.
    pub fn fair_share(&self) -> usize {
        fair_share(self.relays)
    }
}

/// Leases that end so much later than now, in microseconds, are from before the clock was set back: ten of the caller's
/// own, and a minute at least, for others may be configured to longer ones.
fn too_far_ahead(lease: i64) -> i64 {
    lease.saturating_mul(10).max(60_000_000)
}

fn fair_share(relays: usize) -> usize {
    usize::from(SHARDS).div_ceil(relays.max(1))
}

/// The bus gave an event back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub seq: u64,
    /// Why, for an operator.
    pub reason: String,
    /// It is not to be tried again: it goes to the outbox's dead letters.
    pub give_up: bool,
}

/// The longest reason that is kept, in characters.
pub(crate) const MAX_REASON_CHARS: usize = 500;

impl Refusal {
    fn kept_reason(&self) -> String {
        self.reason.chars().take(MAX_REASON_CHARS).collect()
    }
}

/// The outbox as the relay and operators see it. Appending is not part of the port: it happens inside the
/// service's own transaction, by the adapter's own function (such as [`sqlite::append`]).
#[async_trait]
pub trait OutboxStore: Send + Sync {
    /// Says that this relay is at work, renews what it holds, and takes shards that nobody holds (or whose lease ended)
    /// up to its fair share. It does not give up what it has above its share; see [`release`](Self::release).
    ///
    /// Leases are measured by one clock: that of the database server, or of the machine that the file is on. Should that
    /// clock be set back, a lease that ends more than ten leases and a minute ahead counts as ended.
    async fn claim(&self, holder: &str, lease: Duration) -> anyhow::Result<Claim>;

    /// Gives back these shards, as far as this holder has them.
    async fn release(&self, holder: &str, shards: &[Shard]) -> anyhow::Result<()>;

    /// Gives back all that this holder has: it is no longer at work.
    async fn leave(&self, holder: &str) -> anyhow::Result<()>;

    /// The events of these shards that wait to be published, above a sequence number, in order.
    async fn pending(
        &self,
        shards: &[Shard],
        after: u64,
        limit: u32,
    ) -> anyhow::Result<Vec<Pending>>;

    /// Records that the bus confirmed these.
    async fn mark_published(&self, seqs: &[u64], at: DateTime<Utc>) -> anyhow::Result<()>;

    /// Counts an attempt for each of these, keeps the reason, and moves those that are given up to the dead letters.
    async fn record_refusals(&self, refusals: &[Refusal], at: DateTime<Utc>) -> anyhow::Result<()>;

    /// Names the outbox's history of events. Another name means another database, or a copy that was restored.
    async fn log_id(&self) -> anyhow::Result<String>;

    /// What waits. Counts rows: for a metric every few seconds, not for every event.
    async fn depth(&self) -> anyhow::Result<Depth>;

    /// Deletes rows that the bus confirmed at this time or earlier, at most `limit` of them, so that the writer is not
    /// held for long. Returns how many it deleted.
    async fn prune(&self, published_until: DateTime<Utc>, limit: u32) -> anyhow::Result<u64>;

    /// Looks how many events wait, and has appending refused ([`OutboxFull`]) from `max_pending` on until nine tenths of
    /// it are reached again; without a bound nothing is refused. Answers whether it is refused now. Cheap unless much
    /// waits; to be called about every second, by the publishing process.
    async fn keep_bound(&self, max_pending: Option<u64>) -> anyhow::Result<bool>;

    /// For operators: rows in the order of their numbers, without their payload.
    async fn list(&self, filter: &Filter) -> anyhow::Result<Vec<Stored>>;

    /// For operators: these rows with their payload, in the order of their numbers. What is not there is left out.
    async fn show(&self, seqs: &[u64]) -> anyhow::Result<Vec<(Stored, Outgoing)>>;

    /// For operators: the numbers of events with these ids. Reads the whole table.
    async fn find(&self, events: &[uuid::Uuid]) -> anyhow::Result<Vec<u64>>;

    /// For operators: has exactly these rows published (again): confirmed ones and given up ones wait from now on, with
    /// their attempts forgotten. Those that wait already are left alone ([`Selected::unfit`]). A relay notices within its
    /// `rescan_interval`.
    async fn replay(&self, seqs: &[u64], run: Run) -> anyhow::Result<Selected>;

    /// For operators: deletes exactly these rows, as far as they are not confirmed (the others are left to pruning:
    /// [`Selected::unfit`]). One that a relay has read just before may still be published.
    async fn discard(&self, seqs: &[u64], run: Run) -> anyhow::Result<Selected>;
}
