//! The outbox in MySQL and MariaDB.
//!
//! # Order
//! Numbers are given when rows are written, not when they are committed, so a lower one can appear after a higher one.
//! A relay reads on from the last number that it saw and would pass over it; so it sees an event only once no lower
//! number can appear any more ([`whole`]). Of two changes of the same thing the second waits
//! for the first one's commit (they lock the same rows) before it gets its number, if events are appended last in their
//! transaction: the order of numbers is the order of what depends on each other.

mod append;
mod backlog;
mod claims;
mod operators;
mod schema;
mod whole;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

pub use self::append::append;
pub use self::schema::{MIGRATIONS, MIGRATIONS_TABLE};
use self::whole::Whole;
use super::operator::Operation;
use super::versions::{SELECT, Versions};
use super::{Claim, Depth, Filter, OutboxStore, Pending, Refusal, Run, Selected, Shard, Stored};
use crate::envelope::Envelope;
use crate::events::Outgoing;
use crate::mysql::{Conflicts, Database, bounded, from_micros, to_micros};

/// Rows marked or deleted per transaction, so that none holds its locks for long.
const ROWS_PER_CHANGE: usize = 1_000;

/// The numbers of a JSON array as a table `w` of one column `v`: the way to hand over a list as one value, whose length
/// the statement does not depend on. To be joined with STRAIGHT_JOIN, so that the list is read first.
macro_rules! numbers {
    () => {
        "JSON_TABLE(?, '$[*]' COLUMNS (v BIGINT PATH '$')) AS w"
    };
}
use numbers;

/// `SELECT` with the columns that [`outgoing`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT seq, shard, attempts, event_id, type, occurred_at, data, exchange, routing_key, ordering_key, headers FROM outbox ",
            $rest
        )
    };
}

/// The outbox of one database.
#[derive(Clone, Debug)]
pub struct MysqlOutbox {
    database: Database,
    whole: Whole,
    versions: Versions,
}

/// Runs a transaction again while it meets conflicts, in bounds.
macro_rules! again_after_conflicts {
    ($transaction:expr) => {{
        let mut conflicts = Conflicts::default();
        loop {
            match bounded($transaction).await {
                Err(error) if conflicts.again(&error).await => {}
                result => break result,
            }
        }
    }};
}

impl MysqlOutbox {
    /// Creates or updates the outbox's tables, and opens it.
    ///
    /// # Errors
    /// When the tables cannot be brought up to date.
    pub async fn open(database: Database) -> anyhow::Result<Self> {
        database.migrate(MIGRATIONS, MIGRATIONS_TABLE).await?;
        let reading = sqlx::query_as(SELECT).fetch_one(database.reader());
        let versions = bounded(reading).await.context("the versions of the outbox")?;
        Ok(Self { database, whole: Whole::default(), versions })
    }

    async fn try_mark(&self, seqs: &str, at: DateTime<Utc>) -> sqlx::Result<()> {
        sqlx::query(concat!(
            "UPDATE ",
            numbers!(),
            " STRAIGHT_JOIN outbox AS o ON o.seq = w.v SET o.published_at = ?, o.rejected_at = NULL
              WHERE o.published_at IS NULL"
        ))
        .bind(seqs)
        .bind(to_micros(at))
        .execute(self.database.writer())
        .await?;
        Ok(())
    }

    async fn try_record(&self, refusals: &str) -> sqlx::Result<()> {
        sqlx::query(
            "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (seq BIGINT PATH '$[0]', reason TEXT PATH '$[1]', at BIGINT PATH '$[2]')) AS w
             STRAIGHT_JOIN outbox AS o ON o.seq = w.seq
             SET o.attempts = o.attempts + 1, o.last_error = w.reason, o.rejected_at = NULLIF(w.at, 0)
             WHERE o.published_at IS NULL",
        )
        .bind(refusals)
        .execute(self.database.writer())
        .await?;
        Ok(())
    }

    async fn try_delete(&self, seqs: &str) -> sqlx::Result<u64> {
        let delete =
            concat!("DELETE o FROM ", numbers!(), " STRAIGHT_JOIN outbox AS o ON o.seq = w.v");
        let deleted = sqlx::query(delete).bind(seqs).execute(self.database.writer()).await?;
        Ok(deleted.rows_affected())
    }
}

fn outgoing(row: &MySqlRow, versions: Versions) -> anyhow::Result<Outgoing> {
    let id: &str = row.try_get("event_id")?;
    let data: &str = row.try_get("data")?;
    let headers: &str = row.try_get("headers")?;
    let mut data = serde_json::from_str(data)?;
    versions.stamp(row.try_get("seq")?, &mut data);
    Ok(Outgoing {
        envelope: Envelope {
            id: Uuid::parse_str(id)?,
            r#type: row.try_get("type")?,
            timestamp: from_micros(row.try_get("occurred_at")?)?,
            data,
        },
        exchange: row.try_get("exchange")?,
        routing_key: row.try_get("routing_key")?,
        ordering_key: row.try_get("ordering_key")?,
        headers: serde_json::from_str::<BTreeMap<String, String>>(headers)?,
    })
}

fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

fn unsigned(seq: i64) -> u64 {
    u64::try_from(seq).unwrap_or(0)
}

#[async_trait]
impl OutboxStore for MysqlOutbox {
    async fn claim(&self, holder: &str, lease: Duration) -> anyhow::Result<Claim> {
        Ok(again_after_conflicts!(claims::claim(&self.database, holder, lease))?)
    }

    async fn release(&self, holder: &str, shards: &[Shard]) -> anyhow::Result<()> {
        Ok(again_after_conflicts!(claims::release(&self.database, holder, shards))?)
    }

    async fn leave(&self, holder: &str) -> anyhow::Result<()> {
        Ok(again_after_conflicts!(claims::leave(&self.database, holder))?)
    }

    async fn pending(
        &self,
        shards: &[Shard],
        after: u64,
        limit: u32,
    ) -> anyhow::Result<Vec<Pending>> {
        let shards: Vec<String> = shards.iter().map(ToString::to_string).collect();
        if shards.is_empty() {
            return Ok(Vec::new());
        }
        // Numbers only, so it is safe; as values they would be in one text, and no index could tell.
        let sql = format!(
            select!(
                "FORCE INDEX (outbox_waiting)
                 WHERE published_at IS NULL AND rejected_at IS NULL AND seq > ? AND seq <= ? AND shard IN ({})
                 ORDER BY seq LIMIT ?"
            ),
            shards.join(",")
        );
        let read = async {
            let whole = self.whole.find(&self.database).await?;
            if whole <= after {
                return Ok(Vec::new());
            }
            sqlx::query(AssertSqlSafe(sql))
                .bind(signed(after))
                .bind(signed(whole))
                .bind(limit)
                .fetch_all(self.database.reader())
                .await
        };
        let rows = bounded(read).await?;
        rows.iter()
            .map(|row| {
                let seq = unsigned(row.try_get("seq")?);
                let event =
                    outgoing(row, self.versions).with_context(|| format!("outbox row {seq}"))?;
                let (shard, attempts) = (row.try_get("shard")?, row.try_get("attempts")?);
                Ok(Pending { seq, shard, attempts, event })
            })
            .collect()
    }

    async fn mark_published(&self, seqs: &[u64], at: DateTime<Utc>) -> anyhow::Result<()> {
        for seqs in seqs.chunks(ROWS_PER_CHANGE) {
            let seqs = serde_json::to_string(seqs)?;
            again_after_conflicts!(self.try_mark(&seqs, at))?;
        }
        Ok(())
    }

    async fn record_refusals(&self, refusals: &[Refusal], at: DateTime<Utc>) -> anyhow::Result<()> {
        for refusals in refusals.chunks(ROWS_PER_CHANGE) {
            let rows: Vec<(u64, String, i64)> = refusals
                .iter()
                .map(|r| (r.seq, r.kept_reason(), if r.give_up { to_micros(at) } else { 0 }))
                .collect();
            let rows = serde_json::to_string(&rows)?;
            again_after_conflicts!(self.try_record(&rows))?;
        }
        Ok(())
    }

    async fn log_id(&self) -> anyhow::Result<String> {
        let reading = sqlx::query_scalar("SELECT log_id FROM outbox_state WHERE id = 1");
        Ok(bounded(reading.fetch_one(self.database.reader())).await?)
    }

    async fn depth(&self) -> anyhow::Result<Depth> {
        bounded(backlog::depth(&self.database)).await
    }

    async fn keep_bound(&self, max_pending: Option<u64>) -> anyhow::Result<bool> {
        Ok(again_after_conflicts!(backlog::keep_bound(&self.database, max_pending))?)
    }

    async fn prune(&self, published_until: DateTime<Utc>, limit: u32) -> anyhow::Result<u64> {
        let doomed = sqlx::query_scalar(
            "SELECT seq FROM outbox FORCE INDEX (outbox_waiting) WHERE published_at <= ?
             ORDER BY published_at, rejected_at, seq LIMIT ?",
        )
        .bind(to_micros(published_until))
        .bind(limit);
        let doomed: Vec<i64> = bounded(doomed.fetch_all(self.database.reader())).await?;
        let mut deleted = 0;
        for seqs in doomed.chunks(ROWS_PER_CHANGE) {
            let json = serde_json::to_string(seqs)?;
            deleted += again_after_conflicts!(self.try_delete(&json))?;
        }
        Ok(deleted)
    }

    async fn list(&self, filter: &Filter) -> anyhow::Result<Vec<Stored>> {
        operators::list(&self.database, filter).await
    }

    async fn show(&self, seqs: &[u64]) -> anyhow::Result<Vec<(Stored, Outgoing)>> {
        operators::show(&self.database, self.versions, seqs).await
    }

    async fn find(&self, events: &[Uuid]) -> anyhow::Result<Vec<u64>> {
        operators::find(&self.database, events).await
    }

    async fn replay(&self, seqs: &[u64], run: Run) -> anyhow::Result<Selected> {
        operators::apply(&self.database, Operation::Replay, seqs, run).await
    }

    async fn discard(&self, seqs: &[u64], run: Run) -> anyhow::Result<Selected> {
        operators::apply(&self.database, Operation::Discard, seqs, run).await
    }
}
