//! The outbox's tables in SQLite.

use sqlx::Row as _;

use crate::outbox::shard_of;
use crate::sqlite::{Database, Migration};

/// The table that records which steps of [`MIGRATIONS`] ran.
pub const MIGRATIONS_TABLE: &str = "outbox_migrations";

/// The outbox's schema.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
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
    },
    Migration {
        version: 2,
        description: "shards, refusals, a bound",
        sql: "
-- Empty in rows of before until they are given one, which takes the program: see outbox_state.sharded.
ALTER TABLE outbox ADD COLUMN shard INTEGER;
ALTER TABLE outbox ADD COLUMN rejected_at INTEGER;
ALTER TABLE outbox ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN last_error TEXT;
DROP INDEX outbox_pending;
CREATE INDEX outbox_pending ON outbox (seq, shard) WHERE published_at IS NULL AND rejected_at IS NULL;
CREATE INDEX outbox_rejected ON outbox (seq) WHERE rejected_at IS NOT NULL;
ALTER TABLE outbox_state DROP COLUMN holder;
ALTER TABLE outbox_state DROP COLUMN held_until;
ALTER TABLE outbox_state ADD COLUMN sharded INTEGER NOT NULL DEFAULT 0;
-- Nothing may be appended: too much waits.
ALTER TABLE outbox_state ADD COLUMN is_full INTEGER NOT NULL DEFAULT 0;
-- Which relay publishes a shard's events until when.
CREATE TABLE outbox_shards (
    shard INTEGER PRIMARY KEY,
    holder TEXT,
    held_until INTEGER
);
INSERT INTO outbox_shards (shard) VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9), (10), (11), (12), (13), (14), (15);
-- Who is at work until when, whether he holds a shard or not.
CREATE TABLE outbox_relays (
    holder TEXT PRIMARY KEY,
    alive_until INTEGER NOT NULL
) WITHOUT ROWID;
",
    },
    Migration {
        version: 3,
        description: "versions of events",
        sql: "
-- One row: what is added to a row's number to make the version of its event, and the last row that has none because it is
-- older than versions are.
CREATE TABLE outbox_versions (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    base INTEGER NOT NULL,
    unversioned INTEGER NOT NULL
);
INSERT INTO outbox_versions (id, base, unversioned) VALUES (
    1,
    CAST(strftime('%s', 'now') AS INTEGER) * 1000000,
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0)
);
",
    },
];

/// Rows per statement that computes shards.
const ROWS_AT_ONCE: u32 = 5_000;

/// Migrates the tables, and computes the shards of older rows. `outbox_state.pruned` is from when the outbox was also
/// read over HTTP.
pub(super) async fn migrate_tables(database: &Database) -> anyhow::Result<()> {
    database.migrate(MIGRATIONS, MIGRATIONS_TABLE).await?;
    // In one transaction: a relay that sees only some of the rows would break the order of their keys.
    let mut transaction = database.write().await?;
    let sharded: bool =
        sqlx::query_scalar("SELECT sharded FROM outbox_state").fetch_one(&mut *transaction).await?;
    if sharded {
        return Ok(transaction.rollback().await?);
    }
    let mut after = 0_i64;
    loop {
        let rows = sqlx::query(
            "SELECT seq, ordering_key FROM outbox WHERE seq > ? AND shard IS NULL ORDER BY seq LIMIT ?",
        )
        .bind(after)
        .bind(ROWS_AT_ONCE)
        .fetch_all(&mut *transaction)
        .await?;
        let Some(last) = rows.last() else { break };
        after = last.try_get("seq")?;
        let mut pairs: Vec<(i64, u8)> = Vec::with_capacity(rows.len());
        for row in &rows {
            pairs.push((row.try_get("seq")?, shard_of(row.try_get("ordering_key")?)));
        }
        sqlx::query(
            "UPDATE outbox SET shard = pair.value ->> 1 FROM json_each(?) AS pair
             WHERE outbox.seq = pair.value ->> 0",
        )
        .bind(serde_json::to_string(&pairs)?)
        .execute(&mut *transaction)
        .await?;
    }
    sqlx::query("UPDATE outbox_state SET sharded = 1").execute(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}
