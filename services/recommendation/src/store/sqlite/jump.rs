//! A clock that jumps, and what the trend makes of it.
//!
//! A score is kept as of a landmark, so an event that is counted by a clock that is ahead weighs more than any of now can,
//! and moving the landmark there makes nothing of all that was before. Whether a clock is ahead shows only later, when it
//! has gone back. So when it jumps ahead, by more than a half-life, the scores of before are kept beside, with the plain
//! weight of what is counted since. If it goes back, those two are the trend; once it has gone on for an hour
//! ([`CONFIRMED_AFTER`]) they are dropped.

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use tourin_shared_events::sqlite::to_micros;

use super::micros;
use super::trend::{move_landmark, time};
use crate::domain::decay::Decay;
use crate::domain::trend::{CONFIRMED_AFTER, jump_of};

/// The time that the trend has come to is noted when it is so much another, in microseconds.
const SEEN_EVERY: u64 = 1_000_000;

/// The trend's time, and how its scores are kept.
pub(super) struct Settled {
    pub(super) landmark: DateTime<Utc>,
    /// What is counted is to be noted beside as well.
    pub(super) has_jumped: bool,
}

/// Brings the trend to the time `now`, whatever the time was that it has seen before.
pub(super) async fn settle(
    connection: &mut SqliteConnection,
    decay: Decay,
    now: DateTime<Utc>,
) -> sqlx::Result<Settled> {
    let (landmark, seen, jump): (i64, i64, Option<i64>) = sqlx::query_as(
        "SELECT landmark, coalesce(seen_at, landmark), (SELECT jumped_at FROM trend_jump)
         FROM trend_state",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (mut landmark, mut jump) = (time(landmark)?, jump);
    let step = micros(jump_of(decay.half_life()));
    let at = to_micros(now);
    if jump.is_some_and(|jumped| seen.saturating_sub(jumped) >= micros(CONFIRMED_AFTER)) {
        drop_jump(connection).await?;
        jump = None;
    }
    if at > seen.saturating_add(step) && jump.is_none() {
        sqlx::query("INSERT INTO trend_scores_before SELECT spot_id, score FROM trend_scores")
            .execute(&mut *connection)
            .await?;
        sqlx::query(
            "INSERT INTO trend_jump (id, jumped_at, landmark)
             SELECT 1, ?, landmark FROM trend_state",
        )
        .bind(at)
        .execute(&mut *connection)
        .await?;
        jump = Some(at);
    } else if at < seen.saturating_sub(step) {
        landmark = match jump.take() {
            Some(_) => restore(connection, decay, now).await?,
            // What the scores are worth there, they are worth now.
            None => time(to_micros(landmark).saturating_sub(seen.saturating_sub(at)))?,
        };
        // Of a time to come: they would name people for as long as that is away.
        sqlx::query(
            "UPDATE OR REPLACE trend_counted SET counted_at = ?1 WHERE counted_at > ?1 + ?2",
        )
        .bind(at)
        .bind(step)
        .execute(&mut *connection)
        .await?;
    }
    // A second is nothing to a jump: events at once share a note of the time.
    if at.abs_diff(seen) >= SEEN_EVERY {
        sqlx::query("UPDATE trend_state SET landmark = ?, seen_at = ?")
            .bind(to_micros(landmark))
            .bind(at)
            .execute(connection)
            .await?;
    }
    Ok(Settled { landmark, has_jumped: jump.is_some() })
}

/// The scores of before the jump, and what was counted since as of now. Returns their landmark.
async fn restore(
    connection: &mut SqliteConnection,
    decay: Decay,
    now: DateTime<Utc>,
) -> sqlx::Result<DateTime<Utc>> {
    let landmark: i64 =
        sqlx::query_scalar("SELECT landmark FROM trend_jump").fetch_one(&mut *connection).await?;
    let mut landmark = time(landmark)?;
    for statement in [
        "DELETE FROM trend_scores",
        "INSERT INTO trend_scores SELECT spot_id, score FROM trend_scores_before",
    ] {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    if decay.must_move(landmark, now) {
        move_landmark(connection, decay, landmark, now).await?;
        landmark = now;
    }
    sqlx::query(
        "INSERT INTO trend_scores (spot_id, score)
         SELECT spot_id, weight * ? FROM trend_scores_since WHERE true
         ON CONFLICT DO UPDATE SET score = score + excluded.score",
    )
    .bind(decay.gain(landmark, now))
    .execute(&mut *connection)
    .await?;
    drop_jump(connection).await?;
    Ok(landmark)
}

/// Forgets what was before the jump.
pub(super) async fn drop_jump(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    for statement in [
        "DELETE FROM trend_scores_before",
        "DELETE FROM trend_scores_since",
        "DELETE FROM trend_jump",
    ] {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    Ok(())
}
