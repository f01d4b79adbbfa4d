//! The outbox in SQLite.

use std::collections::BTreeMap;

use anyhow::Context as _;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use super::{Depth, FeedEvent, FeedPage, MAX_PAGE_BYTES, OutboxStore, Pending, PruneLimits};
use crate::envelope::Envelope;
use crate::events::Outgoing;
use crate::sqlite::{Database, Migration, from_micros, to_micros};

/// The table that records which steps of [`MIGRATIONS`] ran.
pub const MIGRATIONS_TABLE: &str = "outbox_migrations";

/// The outbox's schema.
pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    description: "outbox",
    sql: "
-- seq is never given twice (AUTOINCREMENT), and follows the order of commits, for SQLite has one writer at a time.
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL,
    type TEXT NOT NULL,
    occurred_at INTEGER NOT NULL,
    data TEXT NOT NULL,
    exchange TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    ordering_key TEXT NOT NULL,
    headers TEXT NOT NULL,
    recorded_at INTEGER NOT NULL,
    published_at INTEGER
);
CREATE INDEX outbox_pending ON outbox (seq) WHERE published_at IS NULL;
CREATE INDEX outbox_published ON outbox (published_at) WHERE published_at IS NOT NULL;
-- One row: the log's name, how far it was pruned, and which relay is at work until when.
CREATE TABLE outbox_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    log_id TEXT NOT NULL,
    pruned INTEGER NOT NULL DEFAULT 0,
    holder TEXT,
    held_until INTEGER
);
INSERT INTO outbox_state (id, log_id) VALUES (1, lower(hex(randomblob(16))));
",
}];

/// Rows per INSERT statement: ten values each, far below SQLite's 32,766.
const ROWS_PER_INSERT: usize = 100;

/// Appends events, in order, inside the caller's transaction: they are committed with the change they tell of, or not
/// at all. After the commit call [`Wake::notify`](super::Wake::notify).
///
/// # Errors
/// When the database refuses; roll back then.
pub async fn append(
    connection: &mut SqliteConnection,
    events: &[Outgoing],
    recorded_at: DateTime<Utc>,
) -> anyhow::Result<()> {
    for chunk in events.chunks(ROWS_PER_INSERT) {
        let mut rows = Vec::with_capacity(chunk.len());
        for event in chunk {
            rows.push((
                event,
                event.envelope.data.to_string(),
                serde_json::to_string(&event.headers)?,
            ));
        }
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT INTO outbox (event_id, type, occurred_at, data, exchange, routing_key, ordering_key, headers, recorded_at) ",
        );
        insert.push_values(rows, |mut row, (event, data, headers)| {
            row.push_bind(event.envelope.id.to_string())
                .push_bind(event.envelope.r#type.clone())
                .push_bind(to_micros(event.envelope.timestamp))
                .push_bind(data)
                .push_bind(event.exchange.clone())
                .push_bind(event.routing_key.clone())
                .push_bind(event.ordering_key.clone())
                .push_bind(headers)
                .push_bind(to_micros(recorded_at));
        });
        insert.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// The outbox of one database.
#[derive(Clone, Debug)]
pub struct SqliteOutbox {
    database: Database,
}

impl SqliteOutbox {
    /// Creates or updates the outbox's tables, and opens it.
    ///
    /// # Errors
    /// When the tables cannot be brought up to date.
    pub async fn open(database: Database) -> anyhow::Result<Self> {
        database.migrate(MIGRATIONS, MIGRATIONS_TABLE).await?;
        Ok(Self { database })
    }
}

/// `SELECT` with the columns that [`outgoing`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT seq, event_id, type, occurred_at, data, exchange, routing_key, ordering_key, headers FROM outbox ",
            $rest
        )
    };
}

fn outgoing(row: &SqliteRow) -> anyhow::Result<Outgoing> {
    let id: &str = row.try_get("event_id")?;
    let data: &str = row.try_get("data")?;
    let headers: &str = row.try_get("headers")?;
    Ok(Outgoing {
        envelope: Envelope {
            id: Uuid::parse_str(id)?,
            r#type: row.try_get("type")?,
            timestamp: from_micros(row.try_get("occurred_at")?)?,
            data: serde_json::from_str(data)?,
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
    async fn claim(
        &self,
        holder: &str,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> anyhow::Result<bool> {
        // Looking before writing: a relay that stands by must not hold up the writer.
        let (other, held_until): (Option<String>, Option<i64>) =
            sqlx::query_as("SELECT holder, held_until FROM outbox_state")
                .fetch_one(self.database.reader())
                .await?;
        // A clock may have been set back, and a lease from before must not run for ever. One that was given at the same
        // time by a slightly later reading of the clock is no such case.
        let latest = to_micros(until) + (to_micros(until) - to_micros(now));
        let runs = held_until.is_some_and(|held| to_micros(now) < held && held <= latest);
        if runs && other.as_deref() != Some(holder) {
            return Ok(false);
        }
        let mut transaction = self.database.write().await?;
        let taken = sqlx::query(
            "UPDATE outbox_state SET holder = ?1, held_until = ?3
             WHERE holder IS NULL OR holder = ?1 OR held_until <= ?2 OR held_until > ?4",
        )
        .bind(holder)
        .bind(to_micros(now))
        .bind(to_micros(until))
        .bind(latest)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(taken.rows_affected() == 1)
    }

    async fn release(&self, holder: &str) -> anyhow::Result<()> {
        let mut transaction = self.database.write().await?;
        sqlx::query("UPDATE outbox_state SET holder = NULL, held_until = NULL WHERE holder = ?1")
            .bind(holder)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    async fn pending(&self, after: u64, limit: u32) -> anyhow::Result<Vec<Pending>> {
        // By the partial index, which is empty when nothing waits; by its own lights SQLite would walk the whole table.
        let rows = sqlx::query(select!(
            "INDEXED BY outbox_pending WHERE published_at IS NULL AND seq > ?1 ORDER BY seq LIMIT ?2"
        ))
        .bind(signed(after))
        .bind(limit)
        .fetch_all(self.database.reader())
        .await?;
        rows.iter()
            .map(|row| {
                let seq = unsigned(row.try_get("seq")?);
                let event = outgoing(row).with_context(|| format!("outbox row {seq}"))?;
                Ok(Pending { seq, event })
            })
            .collect()
    }

    async fn mark_published(&self, seqs: &[u64], at: DateTime<Utc>) -> anyhow::Result<()> {
        if seqs.is_empty() {
            return Ok(());
        }
        let mut transaction = self.database.write().await?;
        sqlx::query(
            "UPDATE outbox SET published_at = ?2
             WHERE seq IN (SELECT value FROM json_each(?1)) AND published_at IS NULL",
        )
        .bind(serde_json::to_string(seqs)?)
        .bind(to_micros(at))
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    async fn page_after(&self, after: u64, limit: u32) -> anyhow::Result<FeedPage> {
        // One transaction, so that the rows and the log's state are of the same moment.
        let mut snapshot = self.database.reader().begin().await?;
        let (log_id, pruned): (String, i64) =
            sqlx::query_as("SELECT log_id, pruned FROM outbox_state")
                .fetch_one(&mut *snapshot)
                .await?;
        let last: Option<i64> =
            sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'")
                .fetch_optional(&mut *snapshot)
                .await?;
        let mut page = FeedPage {
            log_id,
            events: Vec::new(),
            next: after.min(unsigned(last.unwrap_or(0))),
            pruned: unsigned(pruned),
        };
        let mut bytes = 0;
        let mut rows = sqlx::query(select!("WHERE seq > ?1 ORDER BY seq LIMIT ?2"))
            .bind(signed(after))
            .bind(limit)
            .fetch(&mut *snapshot);
        while let Some(row) = rows.try_next().await? {
            let seq = unsigned(row.try_get("seq")?);
            bytes += row.try_get::<&str, _>("data")?.len();
            if bytes > MAX_PAGE_BYTES && !page.events.is_empty() {
                break;
            }
            let event = outgoing(&row).with_context(|| format!("outbox row {seq}"))?;
            page.next = seq;
            page.events.push(FeedEvent {
                seq,
                exchange: event.exchange,
                routing_key: event.routing_key,
                ordering_key: event.ordering_key,
                headers: event.headers,
                envelope: serde_json::to_value(&event.envelope)?,
            });
        }
        drop(rows);
        snapshot.rollback().await?;
        Ok(page)
    }

    async fn depth(&self) -> anyhow::Result<Depth> {
        let (pending, oldest): (i64, Option<i64>) = sqlx::query_as(
            "SELECT count(*), (SELECT recorded_at FROM outbox INDEXED BY outbox_pending
                               WHERE published_at IS NULL ORDER BY seq LIMIT 1)
             FROM outbox INDEXED BY outbox_pending WHERE published_at IS NULL",
        )
        .fetch_one(self.database.reader())
        .await?;
        Ok(Depth { pending: unsigned(pending), oldest: oldest.map(from_micros).transpose()? })
    }

    async fn prune(&self, limits: &PruneLimits) -> anyhow::Result<u64> {
        let published = limits.published_until.map(to_micros);
        let recorded = limits.recorded_until.map(to_micros);
        let doomed = match (published, recorded) {
            (None, None) => return Ok(0),
            (Some(_), _) => {
                "SELECT seq FROM outbox INDEXED BY outbox_published
                 WHERE published_at <= ?1 AND published_at IS NOT NULL AND (?2 IS NULL OR recorded_at <= ?2)
                 ORDER BY published_at LIMIT ?3"
            }
            // Rows lie in the order of recording, so the walk ends at the first young one instead of the table's end.
            (None, Some(_)) => {
                "SELECT seq FROM outbox
                 WHERE ?1 IS NULL AND seq < coalesce(
                     (SELECT seq FROM outbox WHERE recorded_at > ?2 ORDER BY seq LIMIT 1), 9223372036854775807)
                 ORDER BY seq LIMIT ?3"
            }
        };
        // Found without the writer; what is past its retention stays so.
        let seqs: Vec<i64> = sqlx::query_scalar(doomed)
            .bind(published)
            .bind(recorded)
            .bind(limits.rows)
            .fetch_all(self.database.reader())
            .await?;
        let Some(highest) = seqs.iter().max() else {
            return Ok(0);
        };
        let mut transaction = self.database.write().await?;
        let deleted =
            sqlx::query("DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?1))")
                .bind(serde_json::to_string(&seqs)?)
                .execute(&mut *transaction)
                .await?;
        sqlx::query("UPDATE outbox_state SET pruned = max(pruned, ?1)")
            .bind(highest)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(deleted.rows_affected())
    }
}
