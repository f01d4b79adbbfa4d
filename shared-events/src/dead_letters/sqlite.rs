//! Dead letters in SQLite.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{Row as _, sqlite::SqliteRow};
use uuid::Uuid;

use super::{CUT, DeadLetter, DeadLetterStore, MAX_LIST, Settled};
use crate::sqlite::{Database, Migration, from_micros, to_micros};

/// The default bound on dead letters.
pub const DEFAULT_CAPACITY: u32 = 100_000;

/// The table that records which steps of [`MIGRATIONS`] ran.
pub const MIGRATIONS_TABLE: &str = "dead_letter_migrations";

/// The schema of dead letters.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
    version: 1,
    description: "dead letters",
    sql: "
-- number is the highest plus one: without gaps, for only the lowest are ever deleted.
CREATE TABLE dead_letters (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    queue TEXT NOT NULL,
    event_id TEXT,
    routing_key TEXT NOT NULL,
    reason TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    body BLOB NOT NULL,
    body_bytes INTEGER NOT NULL,
    headers TEXT NOT NULL,
    failed_at INTEGER NOT NULL
);
CREATE UNIQUE INDEX dead_letters_event ON dead_letters (queue, event_id) WHERE event_id IS NOT NULL;
",
},
    Migration {
        version: 2,
        description: "replay",
        sql: "
ALTER TABLE dead_letters ADD COLUMN exchange TEXT NOT NULL DEFAULT '';
ALTER TABLE dead_letters ADD COLUMN ordering_key TEXT;
-- The order in which replays were asked for; null where none was.
ALTER TABLE dead_letters ADD COLUMN replay_number INTEGER;
CREATE INDEX dead_letters_replay ON dead_letters (queue, replay_number) WHERE replay_number IS NOT NULL;
",
    },
];

/// The dead letters of one database.
#[derive(Clone, Debug)]
pub struct SqliteDeadLetters {
    database: Database,
    capacity: u32,
}

impl SqliteDeadLetters {
    /// Creates or updates the table, and opens it with room for [`DEFAULT_CAPACITY`] letters.
    ///
    /// # Errors
    /// When the table cannot be brought up to date.
    pub async fn open(database: Database) -> anyhow::Result<Self> {
        Self::with_capacity(database, DEFAULT_CAPACITY).await
    }

    /// Like `open`, with room for `capacity` (at least 1) letters. Beyond it the oldest are dropped, with a warning in
    /// the log.
    ///
    /// # Errors
    /// When the table cannot be brought up to date.
    pub async fn with_capacity(database: Database, capacity: u32) -> anyhow::Result<Self> {
        database.migrate(MIGRATIONS, MIGRATIONS_TABLE).await?;
        Ok(Self { database, capacity: capacity.max(1) })
    }
}

fn letter(row: &SqliteRow) -> anyhow::Result<DeadLetter> {
    let event_id: Option<&str> = row.try_get("event_id")?;
    Ok(DeadLetter {
        id: Uuid::parse_str(row.try_get("id")?)?,
        queue: row.try_get("queue")?,
        exchange: row.try_get("exchange")?,
        ordering_key: row.try_get("ordering_key")?,
        event_id: event_id.map(Uuid::parse_str).transpose()?,
        routing_key: row.try_get("routing_key")?,
        reason: row.try_get("reason")?,
        attempts: row.try_get("attempts")?,
        body: row.try_get::<Vec<u8>, _>("body")?.into(),
        body_bytes: u64::try_from(row.try_get::<i64, _>("body_bytes")?)?,
        headers: serde_json::from_str(row.try_get("headers")?)?,
        failed_at: failed_at(row)?,
        replay_requested: row.try_get::<Option<i64>, _>("replay_number")?.is_some(),
    })
}

fn failed_at(row: &SqliteRow) -> anyhow::Result<DateTime<Utc>> {
    from_micros(row.try_get("failed_at")?)
}

#[async_trait]
impl DeadLetterStore for SqliteDeadLetters {
    async fn put(&self, letter: DeadLetter) -> anyhow::Result<()> {
        let mut transaction = self.database.write().await?;
        sqlx::query(
            "INSERT INTO dead_letters
                 (id, queue, event_id, routing_key, reason, attempts, body, body_bytes, headers, failed_at,
                  exchange, ordering_key)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
             ON CONFLICT (queue, event_id) WHERE event_id IS NOT NULL DO UPDATE SET
                 reason = excluded.reason, attempts = excluded.attempts, headers = excluded.headers,
                 failed_at = excluded.failed_at, replay_number = NULL",
        )
        .bind(letter.id.to_string())
        .bind(letter.queue)
        .bind(letter.event_id.map(|id| id.to_string()))
        .bind(letter.routing_key)
        .bind(letter.reason)
        .bind(letter.attempts)
        .bind(letter.body.as_ref())
        .bind(i64::try_from(letter.body_bytes)?)
        .bind(serde_json::to_string(&letter.headers)?)
        .bind(to_micros(letter.failed_at))
        .bind(letter.exchange)
        .bind(letter.ordering_key)
        .execute(&mut *transaction)
        .await?;
        // Replayed letters leave gaps in the numbers. The first comparison is cheap and finds nothing while there
        // cannot be too many letters. Only otherwise the second one searches for the letters beyond the bound.
        let dropped = sqlx::query(
            "DELETE FROM dead_letters WHERE number <= (SELECT max(number) FROM dead_letters) - ?1
                 AND number <= (SELECT number FROM dead_letters ORDER BY number DESC LIMIT 1 OFFSET ?1)",
        )
        .bind(self.capacity)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        transaction.commit().await?;
        if dropped > 0 {
            tracing::warn!(dropped, capacity = self.capacity, "oldest dead letters dropped");
        }
        Ok(())
    }

    async fn list(&self, limit: u32, before: Option<Uuid>) -> anyhow::Result<Vec<DeadLetter>> {
        let rows = sqlx::query(
            "SELECT * FROM dead_letters WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2",
        )
        .bind(before.map(|id| id.to_string()))
        .bind(limit.min(MAX_LIST))
        .fetch_all(self.database.reader())
        .await?;
        rows.iter().map(letter).collect()
    }

    async fn count(&self) -> anyhow::Result<u64> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters")
            .fetch_one(self.database.reader())
            .await?;
        Ok(u64::try_from(count)?)
    }
    async fn get(&self, id: Uuid) -> anyhow::Result<Option<DeadLetter>> {
        let row = sqlx::query("SELECT * FROM dead_letters WHERE id = ?1")
            .bind(id.to_string())
            .fetch_optional(self.database.reader())
            .await?;
        row.as_ref().map(letter).transpose()
    }

    async fn replay(&self, ids: &[Uuid]) -> anyhow::Result<Vec<Settled>> {
        let mut transaction = self.database.write().await?;
        let mut number: i64 = sqlx::query_scalar(
            "SELECT coalesce(max(replay_number), 0) FROM dead_letters WHERE replay_number IS NOT NULL",
        )
        .fetch_one(&mut *transaction)
        .await?;
        let mut settled = Vec::with_capacity(ids.len());
        for id in ids {
            number += 1;
            let cut: Option<bool> = sqlx::query_scalar(
                "UPDATE dead_letters SET replay_number =
                     CASE WHEN body_bytes > length(body) THEN NULL ELSE coalesce(replay_number, ?2) END
                 WHERE id = ?1 RETURNING body_bytes > length(body)",
            )
            .bind(id.to_string())
            .bind(number)
            .fetch_optional(&mut *transaction)
            .await?;
            settled.push(match cut {
                None => Settled::Gone,
                Some(true) => Settled::Failed(CUT.to_owned()),
                Some(false) => Settled::Accepted,
            });
        }
        transaction.commit().await?;
        Ok(settled)
    }

    async fn discard(&self, ids: &[Uuid]) -> anyhow::Result<Vec<Settled>> {
        let mut transaction = self.database.write().await?;
        let mut settled = Vec::with_capacity(ids.len());
        for id in ids {
            let deleted = sqlx::query("DELETE FROM dead_letters WHERE id = ?1")
                .bind(id.to_string())
                .execute(&mut *transaction)
                .await?;
            let gone = deleted.rows_affected() == 0;
            settled.push(if gone { Settled::Gone } else { Settled::Done });
        }
        transaction.commit().await?;
        Ok(settled)
    }

    async fn requested(&self, queue: &str, limit: u32) -> anyhow::Result<Vec<DeadLetter>> {
        let rows = sqlx::query(
            "SELECT * FROM dead_letters WHERE queue = ?1 AND replay_number IS NOT NULL
             ORDER BY replay_number LIMIT ?2",
        )
        .bind(queue)
        .bind(limit.min(MAX_LIST))
        .fetch_all(self.database.reader())
        .await?;
        rows.iter().map(letter).collect()
    }

    async fn finish_replay(&self, id: Uuid) -> anyhow::Result<()> {
        let mut transaction = self.database.write().await?;
        sqlx::query("DELETE FROM dead_letters WHERE id = ?1 AND replay_number IS NOT NULL")
            .bind(id.to_string())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }
}
