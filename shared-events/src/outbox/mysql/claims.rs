//! The ownership of shards.
//!
//! All times are the server's, so relays whose clocks differ do not take each other's shards.

use std::time::Duration;

use sqlx::mysql::MySqlConnection;

use super::rows::json;
use crate::mysql::Database;
use crate::outbox::sql::numbers;
use crate::outbox::{Claim, SHARDS, Shard, fair_share, too_far_ahead};

/// The server's time in microseconds; constant within a statement.
macro_rules! now {
    () => {
        "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)"
    };
}

/// A shard without an owner, with an expired lease, or with a lease from before the clock was set back. Its parameter
/// is the limit for leases that end too far ahead.
macro_rules! free {
    () => {
        concat!("(holder IS NULL OR held_until <= ", now!(), " OR held_until > ", now!(), " + ?)")
    };
}

pub(super) async fn claim(
    database: &Database,
    holder: &str,
    lease: Duration,
) -> sqlx::Result<Claim> {
    let lease = i64::try_from(lease.as_micros()).unwrap_or(i64::MAX / 4);
    let mut transaction = database.write().await?;
    sqlx::query(concat!(
        "INSERT INTO outbox_relays (holder, alive_until) VALUES (?, ",
        now!(),
        " + ?) ON DUPLICATE KEY UPDATE alive_until = VALUES(alive_until)"
    ))
    .bind(holder)
    .bind(lease)
    .execute(&mut *transaction)
    .await?;
    sqlx::query(concat!("UPDATE outbox_shards SET held_until = ", now!(), " + ? WHERE holder = ?"))
        .bind(lease)
        .bind(holder)
        .execute(&mut *transaction)
        .await?;
    let relays: i64 = sqlx::query_scalar(concat!(
        "SELECT COUNT(*) FROM outbox_relays WHERE alive_until BETWEEN ",
        now!(),
        " AND ",
        now!(),
        " + ?"
    ))
    .bind(too_far_ahead(lease))
    .fetch_one(&mut *transaction)
    .await?;
    let relays = usize::try_from(relays).unwrap_or(0);
    let mut shards = held_by(&mut transaction, holder).await?;
    let room = fair_share(relays).saturating_sub(shards.len());
    if room > 0 && shards.len() < usize::from(SHARDS) {
        let taken = take(&mut transaction, holder, lease, room).await?;
        if !taken.is_empty() {
            delete_dead_relays(&mut transaction).await?;
        }
        shards.extend(taken);
        shards.sort_unstable();
    }
    transaction.commit().await?;
    Ok(Claim { shards, relays })
}

async fn held_by(connection: &mut MySqlConnection, holder: &str) -> sqlx::Result<Vec<Shard>> {
    sqlx::query_scalar("SELECT shard FROM outbox_shards WHERE holder = ? ORDER BY shard")
        .bind(holder)
        .fetch_all(connection)
        .await
}

/// Skips shards that another relay is taking or renewing now.
async fn take(
    connection: &mut MySqlConnection,
    holder: &str,
    lease: i64,
    room: usize,
) -> sqlx::Result<Vec<Shard>> {
    let free: Vec<Shard> = sqlx::query_scalar(concat!(
        "SELECT shard FROM outbox_shards WHERE ",
        free!(),
        " ORDER BY shard LIMIT ? FOR UPDATE SKIP LOCKED"
    ))
    .bind(too_far_ahead(lease))
    .bind(u64::try_from(room).unwrap_or(u64::MAX))
    .fetch_all(&mut *connection)
    .await?;
    if !free.is_empty() {
        sqlx::query(concat!(
            "UPDATE ",
            numbers!(),
            " STRAIGHT_JOIN outbox_shards AS s ON s.shard = w.v SET s.holder = ?, s.held_until = ",
            now!(),
            " + ?"
        ))
        .bind(json(&free))
        .bind(holder)
        .bind(lease)
        .execute(connection)
        .await?;
    }
    Ok(free)
}

async fn delete_dead_relays(connection: &mut MySqlConnection) -> sqlx::Result<()> {
    // Skips relays whose rows are locked; a later call deletes them.
    let dead: Vec<String> = sqlx::query_scalar(concat!(
        "SELECT holder FROM outbox_relays WHERE alive_until < ",
        now!(),
        " - 3600000000 LIMIT 100 FOR UPDATE SKIP LOCKED"
    ))
    .fetch_all(&mut *connection)
    .await?;
    for holder in dead {
        sqlx::query("DELETE FROM outbox_relays WHERE holder = ?")
            .bind(holder)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

pub(super) async fn release(
    database: &Database,
    holder: &str,
    shards: &[Shard],
) -> sqlx::Result<()> {
    sqlx::query(concat!(
        "UPDATE ",
        numbers!(),
        " STRAIGHT_JOIN outbox_shards AS s ON s.shard = w.v SET s.holder = NULL, s.held_until = NULL
          WHERE s.holder = ?"
    ))
    .bind(json(shards))
    .bind(holder)
    .execute(database.writer())
    .await?;
    Ok(())
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
