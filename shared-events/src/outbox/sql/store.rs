//! The outbox over one engine.

use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::rows::{ROWS_PER_CHANGE, json, outgoing, signed, unsigned};
use super::{
    Database, Row, Watermark, bounded, claims, from_micros, operators, schema, statements as sql,
    to_micros, transaction,
};
use crate::events::Outgoing;
use crate::outbox::backlog::refused_from;
use crate::outbox::operator::Operation;
use crate::outbox::versions::{SELECT as SELECT_VERSIONS, Versions};
use crate::outbox::{
    Claim, Depth, Filter, OutboxStore, Pending, Refusal, Run, Selected, Shard, Stored,
};

/// The outbox of one database.
#[derive(Clone, Debug)]
pub struct Outbox {
    database: Database,
    watermark: Watermark,
    versions: Versions,
}

impl Outbox {
    /// Creates or updates the outbox's tables, and opens it.
    ///
    /// # Errors
    /// When the tables cannot be brought up to date.
    pub async fn open(database: Database) -> anyhow::Result<Self> {
        schema::migrate_tables(&database).await?;
        let reading = sqlx::query_as::<_, (i64, i64)>(SELECT_VERSIONS).fetch_one(database.reader());
        let versions = bounded(reading).await.context("the versions of the outbox")?.into();
        Ok(Self { database, watermark: Watermark::default(), versions })
    }
}

#[async_trait]
impl OutboxStore for Outbox {
    async fn claim(&self, holder: &str, lease: Duration) -> anyhow::Result<Claim> {
        Ok(transaction(|| claims::claim(&self.database, holder, lease)).await?)
    }

    async fn release(&self, holder: &str, shards: &[Shard]) -> anyhow::Result<()> {
        Ok(transaction(|| claims::release(&self.database, holder, shards)).await?)
    }

    async fn leave(&self, holder: &str) -> anyhow::Result<()> {
        Ok(transaction(|| claims::leave(&self.database, holder)).await?)
    }

    async fn pending(
        &self,
        shards: &[Shard],
        after: u64,
        limit: u32,
    ) -> anyhow::Result<Vec<Pending>> {
        if shards.is_empty() {
            return Ok(Vec::new());
        }
        // Inlining is safe for numbers. With one bound text MySQL could use no index.
        let shards: Vec<String> = shards.iter().map(ToString::to_string).collect();
        let select = format!(
            "SELECT seq, shard, attempts, event_id, type, occurred_at, data, exchange, routing_key, ordering_key, headers
             FROM {} AND seq > ? AND seq <= ? AND shard IN ({}) ORDER BY seq LIMIT ?",
            sql::WAITING,
            shards.join(",")
        );
        let read = async {
            let last = self.watermark.find(&self.database).await?;
            if last <= after {
                return Ok(Vec::new());
            }
            sqlx::query(AssertSqlSafe(select))
                .bind(signed(after))
                .bind(signed(last))
                .bind(limit)
                .fetch_all(self.database.reader())
                .await
        };
        let rows: Vec<Row> = bounded(read).await?;
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
            let seqs = json(seqs);
            let mark = || sqlx::query(sql::MARK).bind(seqs.as_str()).bind(to_micros(at));
            transaction(|| mark().execute(self.database.writer())).await?;
        }
        Ok(())
    }

    async fn record_refusals(&self, refusals: &[Refusal], at: DateTime<Utc>) -> anyhow::Result<()> {
        for refusals in refusals.chunks(ROWS_PER_CHANGE) {
            let rows: Vec<(u64, String, i64)> = refusals
                .iter()
                .map(|r| (r.seq, r.kept_reason(), if r.give_up { to_micros(at) } else { 0 }))
                .collect();
            let rows = json(&rows);
            let refuse = || sqlx::query(sql::REFUSE).bind(rows.as_str());
            transaction(|| refuse().execute(self.database.writer())).await?;
        }
        Ok(())
    }

    async fn log_id(&self) -> anyhow::Result<String> {
        let reading = sqlx::query_scalar("SELECT log_id FROM outbox_state WHERE id = 1");
        Ok(bounded(reading.fetch_one(self.database.reader())).await?)
    }

    async fn depth(&self) -> anyhow::Result<Depth> {
        let (waiting, rejected) = (sql::WAITING, sql::REJECTED);
        let select = format!(
            "SELECT COUNT(*), (SELECT recorded_at FROM {waiting} ORDER BY seq LIMIT 1),
                 (SELECT COUNT(*) FROM {rejected})
             FROM {waiting}"
        );
        let reading = sqlx::query_as(AssertSqlSafe(select)).fetch_one(self.database.reader());
        let (pending, oldest, rejected): (i64, Option<i64>, i64) = bounded(reading).await?;
        Ok(Depth {
            pending: unsigned(pending),
            oldest: oldest.map(from_micros).transpose()?,
            rejected: unsigned(rejected),
        })
    }

    async fn has_pending(&self, count: u64) -> anyhow::Result<bool> {
        Ok(transaction(|| has_pending(&self.database, count)).await?)
    }

    async fn enforce_bound(&self, max_pending: Option<u64>) -> anyhow::Result<bool> {
        Ok(transaction(|| enforce_bound(&self.database, max_pending)).await?)
    }

    async fn prune(&self, published_until: DateTime<Utc>, limit: u32) -> anyhow::Result<u64> {
        let select = format!("SELECT seq FROM {} LIMIT ?", sql::PUBLISHED_UNTIL);
        let reading =
            sqlx::query_scalar(AssertSqlSafe(select)).bind(to_micros(published_until)).bind(limit);
        // Read without the writer: an expired row stays expired.
        let seqs: Vec<i64> = bounded(reading.fetch_all(self.database.reader())).await?;
        let mut deleted = 0;
        for seqs in seqs.chunks(ROWS_PER_CHANGE) {
            let seqs = json(seqs);
            let delete = || sqlx::query(sql::DELETE).bind(seqs.as_str());
            let result = transaction(|| delete().execute(self.database.writer())).await?;
            deleted += result.rows_affected();
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

async fn has_pending(database: &Database, count: u64) -> sqlx::Result<bool> {
    let (last, waiting) = (sql::LAST, sql::WAITING);
    // An upper bound of the waiting rows: the numbers from the oldest waiting one on. Two index lookups.
    let select = format!("SELECT ({last}) - (SELECT seq FROM {waiting} ORDER BY seq LIMIT 1) + 1");
    let span: Option<i64> =
        sqlx::query_scalar(AssertSqlSafe(select)).fetch_one(database.reader()).await?;
    if span.is_none_or(|span| unsigned(span) < count) {
        return Ok(false);
    }
    let select = format!("SELECT COUNT(*) FROM (SELECT 1 FROM {waiting} LIMIT ?) AS waiting");
    let waiting: i64 = sqlx::query_scalar(AssertSqlSafe(select))
        .bind(signed(count))
        .fetch_one(database.reader())
        .await?;
    Ok(unsigned(waiting) >= count)
}

async fn enforce_bound(database: &Database, max_pending: Option<u64>) -> sqlx::Result<bool> {
    let gate = sql::GATE;
    let select = format!("SELECT is_full <> 0 FROM {gate} WHERE id = 1");
    let full: bool = sqlx::query_scalar(AssertSqlSafe(select)).fetch_one(database.reader()).await?;
    let now = match max_pending {
        Some(max) => has_pending(database, refused_from(max, full)).await?,
        None => false,
    };
    if now != full {
        // On MySQL this waits for the transactions that append now.
        let update = format!("UPDATE {gate} SET is_full = ? WHERE id = 1");
        sqlx::query(AssertSqlSafe(update)).bind(now).execute(database.writer()).await?;
    }
    Ok(now)
}
