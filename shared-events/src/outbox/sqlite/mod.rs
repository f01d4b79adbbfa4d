//! The outbox in SQLite.

mod append;
mod claims;
mod operators;
mod schema;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{Row as _, sqlite::SqliteRow};
use uuid::Uuid;

pub use self::append::append;
pub use self::schema::{MIGRATIONS, MIGRATIONS_TABLE};
use super::backlog::refused_from;
use super::operator::Operation;
use super::versions::{SELECT, Versions};
use super::{Claim, Depth, Filter, OutboxStore, Pending, Refusal, Run, Selected, Shard, Stored};
use crate::envelope::Envelope;
use crate::events::Outgoing;
use crate::sqlite::{Database, from_micros, to_micros};

/// The outbox of one database.
#[derive(Clone, Debug)]
pub struct SqliteOutbox {
    database: Database,
    versions: Versions,
}

impl SqliteOutbox {
    /// Creates or updates the outbox's tables, and opens it.
    ///
    /// # Errors
    /// When the tables cannot be brought up to date.
    pub async fn open(database: Database) -> anyhow::Result<Self> {
        schema::bring_up_to_date(&database).await?;
        let versions = sqlx::query_as(SELECT).fetch_one(database.reader()).await?;
        Ok(Self { database, versions })
    }
}

/// `SELECT` with the columns that [`outgoing`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT seq, shard, attempts, event_id, type, occurred_at, data, exchange, routing_key, ordering_key, headers FROM outbox ",
            $rest
        )
    };
}

fn outgoing(row: &SqliteRow, versions: Versions) -> anyhow::Result<Outgoing> {
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
impl OutboxStore for SqliteOutbox {
    async fn claim(&self, holder: &str, lease: Duration) -> anyhow::Result<Claim> {
        claims::claim(&self.database, holder, lease).await
    }

    async fn release(&self, holder: &str, shards: &[Shard]) -> anyhow::Result<()> {
        claims::release(&self.database, holder, shards).await
    }

    async fn leave(&self, holder: &str) -> anyhow::Result<()> {
        claims::leave(&self.database, holder).await
    }

    async fn pending(
        &self,
        shards: &[Shard],
        after: u64,
        limit: u32,
    ) -> anyhow::Result<Vec<Pending>> {
        // By the partial index, which is empty when nothing waits; by its own lights SQLite would walk the whole table.
        let rows = sqlx::query(select!(
            "INDEXED BY outbox_pending
             WHERE published_at IS NULL AND rejected_at IS NULL AND seq > ?1
                 AND shard IN (SELECT value FROM json_each(?3))
             ORDER BY seq LIMIT ?2"
        ))
        .bind(signed(after))
        .bind(limit)
        .bind(serde_json::to_string(shards)?)
        .fetch_all(self.database.reader())
        .await?;
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
        if seqs.is_empty() {
            return Ok(());
        }
        let mut transaction = self.database.write().await?;
        sqlx::query(
            "UPDATE outbox SET published_at = ?2, rejected_at = NULL
             WHERE seq IN (SELECT value FROM json_each(?1)) AND published_at IS NULL",
        )
        .bind(serde_json::to_string(seqs)?)
        .bind(to_micros(at))
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    async fn record_refusals(&self, refusals: &[Refusal], at: DateTime<Utc>) -> anyhow::Result<()> {
        let mut transaction = self.database.write().await?;
        for refusal in refusals {
            sqlx::query(
                "UPDATE outbox SET attempts = attempts + 1, last_error = ?2, rejected_at = ?3
                 WHERE seq = ?1 AND published_at IS NULL",
            )
            .bind(signed(refusal.seq))
            .bind(refusal.kept_reason())
            .bind(refusal.give_up.then(|| to_micros(at)))
            .execute(&mut *transaction)
            .await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn log_id(&self) -> anyhow::Result<String> {
        let reader = self.database.reader();
        Ok(sqlx::query_scalar("SELECT log_id FROM outbox_state").fetch_one(reader).await?)
    }

    async fn depth(&self) -> anyhow::Result<Depth> {
        let (pending, oldest, rejected): (i64, Option<i64>, i64) = sqlx::query_as(
            "SELECT count(*),
                 (SELECT recorded_at FROM outbox INDEXED BY outbox_pending
                  WHERE published_at IS NULL AND rejected_at IS NULL ORDER BY seq LIMIT 1),
                 (SELECT count(*) FROM outbox INDEXED BY outbox_rejected WHERE rejected_at IS NOT NULL)
             FROM outbox INDEXED BY outbox_pending WHERE published_at IS NULL AND rejected_at IS NULL",
        )
        .fetch_one(self.database.reader())
        .await?;
        Ok(Depth {
            pending: unsigned(pending),
            oldest: oldest.map(from_micros).transpose()?,
            rejected: unsigned(rejected),
        })
    }

    async fn keep_bound(&self, max_pending: Option<u64>) -> anyhow::Result<bool> {
        // All numbers from the oldest that waits: at least as many as wait. Two steps into the index.
        let (full, span): (bool, Option<i64>) = sqlx::query_as(
            "SELECT is_full, (SELECT seq FROM sqlite_sequence WHERE name = 'outbox')
                 - (SELECT seq FROM outbox INDEXED BY outbox_pending
                    WHERE published_at IS NULL AND rejected_at IS NULL ORDER BY seq LIMIT 1) + 1
             FROM outbox_state",
        )
        .fetch_one(self.database.reader())
        .await?;
        let bound = max_pending.map(|max| refused_from(max, full));
        let now = match bound {
            Some(bound) if span.is_some_and(|span| unsigned(span) >= bound) => {
                let waiting: i64 = sqlx::query_scalar(
                    "SELECT count(*) FROM (SELECT 1 FROM outbox INDEXED BY outbox_pending
                     WHERE published_at IS NULL AND rejected_at IS NULL LIMIT ?)",
                )
                .bind(signed(bound))
                .fetch_one(self.database.reader())
                .await?;
                unsigned(waiting) >= bound
            }
            _ => false,
        };
        if now != full {
            let mut transaction = self.database.write().await?;
            sqlx::query("UPDATE outbox_state SET is_full = ?")
                .bind(now)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
        }
        Ok(now)
    }

    async fn prune(&self, published_until: DateTime<Utc>, limit: u32) -> anyhow::Result<u64> {
        // Found without the writer; what is past its retention stays so.
        let seqs: Vec<i64> = sqlx::query_scalar(
            "SELECT seq FROM outbox INDEXED BY outbox_published
             WHERE published_at <= ?1 AND published_at IS NOT NULL ORDER BY published_at LIMIT ?2",
        )
        .bind(to_micros(published_until))
        .bind(limit)
        .fetch_all(self.database.reader())
        .await?;
        if seqs.is_empty() {
            return Ok(0);
        }
        let mut transaction = self.database.write().await?;
        let deleted =
            sqlx::query("DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?1))")
                .bind(serde_json::to_string(&seqs)?)
                .execute(&mut *transaction)
                .await?;
        transaction.commit().await?;
        Ok(deleted.rows_affected())
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
