//! The ownership of shards.

use std::time::Duration;

use chrono::Utc;
use sqlx::SqliteConnection;

use super::rows::json;
use crate::outbox::{Claim, Shard, fair_share, too_far_ahead};
use crate::sqlite::{Database, to_micros};

/// How long the name of a dead relay is kept, in microseconds (an hour).
const FORGET_AFTER: i64 = 3_600_000_000;

pub(super) async fn claim(
    database: &Database,
    holder: &str,
    lease: Duration,
) -> sqlx::Result<Claim> {
    let lease = i64::try_from(lease.as_micros()).unwrap_or(i64::MAX / 4);
    let mut transaction = database.write().await?;
    // Read while holding the writer: waiting for it may have taken long.
    let now = to_micros(Utc::now());
    let until = now + lease;
    // A lease that ends later is from before the clock was set back.
    let latest = now + too_far_ahead(lease);
    sqlx::query("INSERT OR REPLACE INTO outbox_relays (holder, alive_until) VALUES (?, ?)")
        .bind(holder)
        .bind(until)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("DELETE FROM outbox_relays WHERE alive_until < ? OR alive_until > ?")
        .bind(now - FORGET_AFTER)
        .bind(latest)
        .execute(&mut *transaction)
        .await?;
    let relays: i64 =
        sqlx::query_scalar("SELECT count(*) FROM outbox_relays WHERE alive_until > ?")
            .bind(now)
            .fetch_one(&mut *transaction)
            .await?;
    let relays = usize::try_from(relays).unwrap_or(0);
    sqlx::query("UPDATE outbox_shards SET held_until = ?2 WHERE holder = ?1")
        .bind(holder)
        .bind(until)
        .execute(&mut *transaction)
        .await?;
    let held = held_by(&mut transaction, holder).await?;
    let room = fair_share(relays).saturating_sub(held.len());
    let taken = sqlx::query(
        "UPDATE outbox_shards SET holder = ?1, held_until = ?2 WHERE shard IN (
             SELECT shard FROM outbox_shards
             WHERE holder IS NULL OR held_until <= ?3 OR held_until > ?4 ORDER BY shard LIMIT ?5)",
    )
    .bind(holder)
    .bind(until)
    .bind(now)
    .bind(latest)
    .bind(i64::try_from(room).unwrap_or(i64::MAX))
    .execute(&mut *transaction)
    .await?;
    let shards = match taken.rows_affected() {
        0 => held,
        _ => held_by(&mut transaction, holder).await?,
    };
    transaction.commit().await?;
    Ok(Claim { shards, relays })
}

async fn held_by(connection: &mut SqliteConnection, holder: &str) -> sqlx::Result<Vec<Shard>> {
    sqlx::query_scalar("SELECT shard FROM outbox_shards WHERE holder = ? ORDER BY shard")
        .bind(holder)
        .fetch_all(connection)
        .await
}

pub(super) async fn release(
    database: &Database,
    holder: &str,
    shards: &[Shard],
) -> sqlx::Result<()> {
    let mut transaction = database.write().await?;
    sqlx::query(
        "UPDATE outbox_shards SET holder = NULL, held_until = NULL
         WHERE holder = ?1 AND shard IN (SELECT value FROM json_each(?2))",
    )
    .bind(holder)
    .bind(json(shards))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

pub(super) async fn leave(database: &Database, holder: &str) -> sqlx::Result<()> {
    let mut transaction = database.write().await?;
    sqlx::query("UPDATE outbox_shards SET holder = NULL, held_until = NULL WHERE holder = ?")
        .bind(holder)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("DELETE FROM outbox_relays WHERE holder = ?")
        .bind(holder)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}
